"""A journal on disk: what is written comes back until it is done, whatever crash comes between.

Calls block, and one journal is used by one caller at a time, on any thread. The bytes: `journal_format`; which
directories and files are trusted: `spool_directory`. The file of a process is locked for as long as the process lives;
the one of a dead process is adopted, which reads and finishes it and adds nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from sidecar.ledger.spool.damaged_parts import TooManyFiles, keep_parts, write_all
from sidecar.ledger.spool.journal_directory import (
    SUFFIX,
    JournalError,
    JournalFull,
    dead_journals,
    journal_path,
    opened,
)
from sidecar.ledger.spool.journal_format import (
    HEAD_BYTES,
    PAYLOAD_BYTES_MAX,
    RECORD_HEAD_BYTES,
    SLOT_OFFSETS,
    Damage,
    FormatError,
    Head,
    Record,
    decode_head,
    encode_head,
    encode_record,
    read_records,
)
from sidecar.ledger.spool.spool_directory import open_trusted

__all__ = ["Damage", "Journal", "JournalEntry", "JournalError", "JournalFull", "dead_journals"]

_CREATE_ATTEMPTS: Final = 20


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """``sequence``: from 1, rising by one in a journal, never used twice."""

    sequence: int
    payload: bytes


class Journal:
    """One file. Made by :meth:`create` or :meth:`adopt`."""

    def __init__(
        self, path: Path, directory: int, descriptor: int, head: Head, *, size: int, bytes_max: int | None
    ) -> None:
        self.path = path
        self._directory = directory
        self._descriptor = descriptor
        self._head = head
        self._bytes_max = bytes_max
        """None: adopted."""
        self._end = size
        """Where the next record begins. What is behind it is none of ours."""
        self._last = head.position
        self._pending = 0
        self._must_truncate = False
        """An append failed, and the disk did not even take that."""
        self._cuts = 0
        self._kept_to = 0
        """Damage that begins before this byte is in a file of its own."""
        self._has_damage = False
        """There may be damage that is not."""
        self._damaged_file: Path | None = None

    @classmethod
    def create(cls, directory: Path, name: str, *, bytes_max: int) -> Self:
        """A new journal. Makes the directory (0700) if it is absent, and the file (0600), and locks it.

        Args:
            bytes_max: of the file, its head of 8 KiB included.

        Raises:
            JournalError: the directory may not be trusted, or the file is there already, or cannot be made.
        """
        path = journal_path(directory, name)
        with opened(directory, path, create=True) as folder:
            for _ in range(_CREATE_ATTEMPTS):
                descriptor = open_trusted(folder, path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
                try:
                    # Between the two, somebody may take the empty file for a dead one's, and remove it.
                    if _try_lock(descriptor) and os.fstat(descriptor).st_nlink:
                        head = Head(name, secrets.token_bytes(16), 1, 0, HEAD_BYTES)
                        write_all(descriptor, encode_head(head), 0)
                        os.fsync(descriptor)
                        os.fsync(folder)  # a file whose name is not on disk is lost with all that is in it
                        return cls(path, os.dup(folder), descriptor, head, size=HEAD_BYTES, bytes_max=bytes_max)
                except OSError:
                    with contextlib.suppress(OSError):
                        os.unlink(path.name, dir_fd=folder)
                    os.close(descriptor)
                    raise
                os.close(descriptor)
        raise JournalError(f"{path}: it vanishes as soon as it is made")

    @classmethod
    def adopt(cls, directory: Path, name: str) -> Self | None:
        """The journal of a dead process. None: its process lives, or somebody else has finished it.

        Raises:
            JournalError: directory or file may not be trusted, or the head cannot be read. The file stays as it is.
        """
        path = journal_path(directory, name)
        try:
            with opened(directory, path) as folder:
                descriptor = open_trusted(folder, path, os.O_RDWR)
                try:
                    journal = cls._adopted(path, folder, descriptor)
                except BaseException:
                    os.close(descriptor)
                    raise
                if journal is None:
                    os.close(descriptor)
                return journal
        except FileNotFoundError:
            return None

    @classmethod
    def _adopted(cls, path: Path, folder: int, descriptor: int) -> Self | None:
        if not _try_lock(descriptor):
            return None
        found = os.fstat(descriptor)
        if not found.st_nlink:
            return None
        size = found.st_size
        if size:
            try:
                head = decode_head(os.pread(descriptor, HEAD_BYTES, 0))
            except FormatError as error:
                raise JournalError(f"{path}: {error}; it is not read, and stays") from None
            if head.name + SUFFIX != path.name:
                raise JournalError(f"{path}: it is a copy or was renamed, it says {head.name!r}; it is not read")
        else:
            # Its process died before it had a head; nobody was told of anything in it.
            head = Head(path.name.removesuffix(SUFFIX), secrets.token_bytes(16), 0, 0, 0)
        journal = cls(path, os.dup(folder), descriptor, head, size=size, bytes_max=None)
        try:
            for item in journal._read():
                if isinstance(item, Record):
                    journal._last = item.sequence
                    journal._pending += 1
        except BaseException:
            os.close(journal._directory)
            raise
        return journal

    def __repr__(self) -> str:
        how = "adopted" if self._bytes_max is None else "own"
        return f"<Journal {self.path} {how} pending={self._pending} position={self.position} size={self._end}>"

    @property
    def id(self) -> str:
        """Random hex digits. Sequences begin anew in another file of the same name; with this they name one entry."""
        return self._head.id.hex()

    @property
    def position(self) -> int:
        """All up to this sequence is done. It is on disk."""
        return self._head.position

    @property
    def pending(self) -> int:
        """Entries that are not done."""
        return self._pending

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._end

    # writing

    def append(self, payloads: Sequence[bytes]) -> list[int]:
        """Writes all of them to the disk (fsync), or none. Their sequences.

        Raises:
            JournalFull: the file would be larger than its limit.
            JournalError: it is adopted, or a payload is longer than PAYLOAD_BYTES_MAX.
            OSError: the disk refused. The file is as it was; what could not be taken back is never read.
        """
        if self._bytes_max is None:
            raise JournalError(f"{self.path}: it is a dead process's, nothing is added to it")
        longest = max(map(len, payloads), default=0)
        if longest > PAYLOAD_BYTES_MAX:
            raise JournalError(f"{self.path}: an entry of {longest} bytes, at most {PAYLOAD_BYTES_MAX} are taken")
        size = self._end + sum(map(len, payloads)) + RECORD_HEAD_BYTES * len(payloads)
        if size > self._bytes_max:
            raise JournalFull(f"{self.path}: it is full, it may have {self._bytes_max} bytes")
        sequences = list(range(self._last + 1, self._last + 1 + len(payloads)))
        if not sequences:
            return []
        key = self._head.id
        data = b"".join(encode_record(key, number, each) for number, each in zip(sequences, payloads, strict=True))
        self._truncate_again()
        try:
            write_all(self._descriptor, data, self._end)
            os.fdatasync(self._descriptor)
        except OSError:
            self._must_truncate = True
            with contextlib.suppress(OSError):  # then before the next append
                self._truncate_again()
            raise
        self._end += len(data)
        self._last = sequences[-1]
        self._pending += len(sequences)
        return sequences

    def _truncate_again(self) -> None:
        if self._must_truncate:
            os.ftruncate(self._descriptor, self._end)
            os.fsync(self._descriptor)
            self._must_truncate = False

    # reading

    def entries(self) -> Iterator[JournalEntry | Damage]:
        """What lies behind the position now, in order; a torn end, of which nobody was told, is left out.

        The journal may be advanced and appended to meanwhile. Raises OSError.
        """
        for item in self._read():
            yield JournalEntry(item.sequence, item.payload) if isinstance(item, Record) else item

    def _read(self) -> Iterator[Record | Damage]:
        cuts = self._cuts
        for item in self._found():
            if isinstance(item, Damage) and item.offset >= self._kept_to:
                self._has_damage = True
            yield item
            if self._cuts != cuts:
                return  # all of it is done, and other entries are where they were

    def _found(self) -> Iterator[Record | Damage]:
        offset, end = self._head.offset, self._end
        if offset > end:
            yield Damage(end, 0, f"the file is cut off before its position; it had {offset} bytes or more")
        yield from read_records(self._read_at, self._head.id, offset, end, self.position)

    def _read_at(self, offset: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, offset)

    # the position

    def advance(self, sequence: int) -> None:
        """All up to ``sequence`` is done, on disk (fsync). With nothing left, the file is cut back to its head, and
        sequences go on. Damaged parts that it passes are kept first, as by :meth:`keep_damaged`.

        Raises:
            JournalError: no entry has this sequence yet.
            OSError: the disk refused. The position is as it was.
        """
        if sequence > self._last:
            raise JournalError(f"{self.path}: it has entries up to {self._last}, none with sequence {sequence}")
        if sequence <= self.position:
            return
        done, offset = self._done_until(sequence)
        if self._has_damage:
            self.keep_damaged()
        if sequence < self._last:
            self._move(replace(self._head, position=sequence, offset=offset))
            self._pending -= done
            return
        self._move(replace(self._head, position=sequence, offset=HEAD_BYTES))
        self._pending = 0
        self._cuts += 1
        self._kept_to = 0
        self._has_damage = False
        self._end = HEAD_BYTES
        self._must_truncate = True
        with contextlib.suppress(OSError):  # what is there is done, and is cut before the next append
            self._truncate_again()

    def _done_until(self, sequence: int) -> tuple[int, int]:
        """How many entries are done then, and the byte behind them."""
        if sequence == self._last:
            return self._pending, self._end
        done, offset = 0, self._head.offset
        for item in self._read():
            if isinstance(item, Record):
                if item.sequence > sequence:
                    break
                done, offset = done + 1, item.end
        return done, offset

    def _move(self, head: Head) -> None:
        head = replace(head, counter=head.counter + 1)
        slot = head.encode()
        for at in SLOT_OFFSETS:  # one after the other, so that one is whole whatever happens
            write_all(self._descriptor, slot, at)
            os.fdatasync(self._descriptor)
        self._head = head

    # damage

    def keep_damaged(self) -> Path | None:
        """Copies damaged parts to a file beside this one, ``NAME.damaged-N`` (0600, fsync), each behind a line that
        says where it was and what is wrong. Parts that are in such a file already are not copied again.

        Returns:
            The last such file, None if nothing was damaged.

        Raises:
            JournalError: there are too many such files.
            OSError: it cannot be written.
        """
        damages = (item for item in self._read() if isinstance(item, Damage) and item.offset >= self._kept_to)
        base = self.path.with_name(self.path.name.removesuffix(SUFFIX))
        try:
            kept = keep_parts(self._directory, base, self._read_at, damages)
        except TooManyFiles as error:
            raise JournalError(str(error)) from None
        if kept is not None:
            self._damaged_file, self._kept_to = kept
        self._has_damage = False
        return self._damaged_file

    # the end

    def close(self, *, remove: bool) -> None:
        """Lets go of the file. ``remove``: it is removed if nothing in it is pending; damaged parts are kept first.

        Raises:
            OSError, JournalError: it cannot be removed. It is closed.
        """
        try:
            if remove and not self._pending:
                if self._has_damage:
                    self.keep_damaged()
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path.name, dir_fd=self._directory)
                os.fsync(self._directory)
        finally:
            os.close(self._descriptor)
            os.close(self._directory)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
