"""Files of the spool: one line a charge, CRC-32, a space, JSON ``[id, account, metric, units, event]``.

A call under an idempotency key has ``[digest, fingerprint, repeats_max]`` behind these, both in hex.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import orjson

from sidecar.ledger.client.outcomes import Event, IdempotencyKey
from sidecar.ledger.spool.spool_directory import NotTrusted, open_directory, open_trusted

LINE_BYTES_MAX = 65_536
"""Longest line that is read. An event's texts are bounded by the proxy to a fraction of this."""
_EVENT_FIELDS = 9
KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class Record:
    """One charge on disk. The ledger charges each ``id`` once. ``key``: the caller's, None without one."""

    id: str
    account: str
    metric: str
    units: int
    event: Event
    key: IdempotencyKey | None = None


@dataclass(frozen=True, slots=True)
class Damage:
    """A line that is no record. ``torn``: the last one, cut off before its end, which was never promised."""

    line_number: int
    line: bytes
    torn: bool


def encode_record(record: Record) -> bytes:
    parts: list[object] = [record.id, record.account, record.metric, record.units, record.event]
    if record.key is not None:
        parts.append([record.key.digest.hex(), record.key.fingerprint.hex(), record.key.repeats_max])
    body = orjson.dumps(parts)
    return b"%08x %b\n" % (crc32(body), body)


def decode_record(line: bytes) -> Record:
    """Raises ValueError: the line is damaged, or was not written by :func:`encode_record`."""
    body = line[9:-1]
    if not line.endswith(b"\n") or line[8:9] != b" " or int(line[:8], 16) != crc32(body):
        raise ValueError("checksum")
    match orjson.loads(body):
        case [str(name), str(account), str(metric), int(units), [*event], *rest] if (
            len(event) == _EVENT_FIELDS and units > 0 and len(rest) < 2
        ):
            key = _key(rest[0]) if rest else None
            return Record(name, account, metric, units, tuple(event), key)  # fields as encode_record wrote them
        case _:
            raise ValueError("not a charge")


def _key(parts: object) -> IdempotencyKey:
    match parts:
        case [str(digest), str(fingerprint), int(repeats_max)] if repeats_max >= 0:
            key = IdempotencyKey(bytes.fromhex(digest), bytes.fromhex(fingerprint), repeats_max)
            if len(key.digest) == len(key.fingerprint) == KEY_BYTES:
                return key
    raise ValueError("not an idempotency key")


def read_records(path: Path) -> Iterator[Record | Damage]:
    """The lines of a file, in order. Raises OSError; PermissionError for one that may not be trusted."""
    with open(_open(path, os.O_RDONLY), "rb") as file:
        number = 0
        while line := file.readline(LINE_BYTES_MAX):
            number += 1
            try:
                yield decode_record(line)
            except ValueError:
                # A file system may put zeros in place of what was written: they were no torn line, which has none.
                torn = not line.endswith(b"\n") and len(line) < LINE_BYTES_MAX and b"\0" not in line
                yield Damage(number, line, torn)


def open_locked(path: Path, *, create: bool) -> int:
    """A descriptor for appending, with the file's lock.

    Raises OSError; BlockingIOError if its process lives, PermissionError for a file that may not be trusted.
    """
    descriptor = _open(path, os.O_APPEND | os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0))
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if create:
            sync_directory(path.parent)  # a file whose name is not on disk is lost with all that is in it
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _open(path: Path, flags: int) -> int:
    try:
        directory = open_directory(path.parent)
        try:
            return open_trusted(directory, path, flags)
        finally:
            os.close(directory)
    except NotTrusted as error:
        raise PermissionError(errno.EPERM, str(error)) from None


def append(descriptor: int, size: int, data: bytes) -> None:
    """Writes at the end of a file of ``size`` bytes, to the disk. Raises OSError; then the file is as it was, so that
    what is written next does not continue half a line.
    """
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
        os.fdatasync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def keep_damaged(path: Path, lines: list[bytes]) -> Path:
    """Puts damaged lines aside for people to look at, beside the file that is about to go. Raises OSError."""
    aside = path.with_suffix(".damaged")
    descriptor = _open(aside, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    try:
        append(descriptor, os.fstat(descriptor).st_size, b"".join(lines))
    finally:
        os.close(descriptor)
    return aside


def sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
