"""The file of an exported ledger: JSON lines, of which the first tells what it is and the last what was written.

Values that need not be text are base64. The last line has the SHA-256 of all before it, so that a file which was cut
short or changed is found before anything is done with it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any, Final

import orjson

from sidecar.ledger.keys import FORMAT
from sidecar.ledger.transfer.access import TransferError

FILE_FORMAT: Final = 1
KINDS: Final = frozenset({"account", "api_keys", "hash", "zset", "string", "entries", "stream", "instance"})


class FileError(TransferError):
    """The file cannot be imported. The message says why, and at which line."""


@dataclass(frozen=True, slots=True)
class Header:
    """The first line. ``generations``: of each partition. ``epochs``, ``adjustments``: the highest numbers given to
    gateways and to corrections of an operator, which must not be given twice. ``live``: others used the ledger."""

    prefix: str
    partitions: int
    generations: tuple[str, ...]
    time_ms: int
    epochs: int = 0
    adjustments: int = 0
    live: bool = False

    def row(self) -> dict[str, Any]:
        return {
            "quota_ledger": FILE_FORMAT, "format": FORMAT, "prefix": self.prefix, "partitions": self.partitions,
            "generations": list(self.generations), "time_ms": self.time_ms, "epochs": self.epochs,
            "adjustments": self.adjustments, "live": self.live,
        }  # fmt: skip

    @classmethod
    def read(cls, row: Any) -> Header:
        """Raises ``FileError``."""
        if not isinstance(row, dict) or row.get("quota_ledger") != FILE_FORMAT:
            raise FileError("it is no exported ledger of this release")
        if row.get("format") != FORMAT:
            raise FileError(f"the ledger in the file has format {row.get('format')}, this release has {FORMAT}")
        try:
            header = cls(
                str(row["prefix"]), int(row["partitions"]), tuple(map(str, row["generations"])), int(row["time_ms"]),
                int(row["epochs"]), int(row["adjustments"]), bool(row["live"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"its first line lacks something, or has something else: {error}") from None
        if not header.generations:
            raise FileError("its first line has no generation")
        return header

    def generation_of(self, partition: int) -> str:
        """Of a partition of the imported ledger: the random part stays, the count grows by one."""
        random, _, count = self.generations[partition if partition < len(self.generations) else 0].partition(":")
        return f"{random}:{int(count or 0) + 1}"


class LineWriter:
    """Writes lines, and counts what is in them."""

    def __init__(self, file: IO[bytes]) -> None:
        self.counts: Counter[str] = Counter()
        self._file = file
        self._sha256 = hashlib.sha256()

    def __repr__(self) -> str:
        return f"LineWriter({self.counts.total()} lines)"

    def write(self, row: dict[str, Any]) -> None:
        """Raises ``OSError``."""
        line = orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
        self._sha256.update(line)
        self._file.write(line)

    def count(self, what: str, number: int = 1) -> None:
        self.counts[what] += number

    def end(self) -> str:
        """Writes the last line; answers the checksum of those before. Raises ``OSError``."""
        digest = self._sha256.hexdigest()
        row = {"kind": "end", "counts": dict(self.counts), "sha256": digest}
        self._file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        return digest


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """A file that is whole. ``lines``: without the first and the last."""

    header: Header
    lines: int
    counts: dict[str, int] = field(default_factory=dict)
    sha256: str = ""


def check_file(file: IO[bytes]) -> CheckedFile:
    """Reads all of it, from the beginning.

    Raises:
        FileError: it is not whole, or none of this release.
        OSError: it cannot be read.
    """
    file.seek(0)
    sha256 = hashlib.sha256()
    header: Header | None = None
    end: dict[str, Any] | None = None
    lines = 0
    for number, line in enumerate(file, 1):
        if end is not None:
            raise FileError(f"line {number}: there is more after its end")
        row = parsed_line(line, number)
        if header is None:
            header = Header.read(row)
        elif row.get("kind") == "end":
            end = row
            continue
        elif row.get("kind") not in KINDS:
            raise FileError(f"line {number}: {str(row.get('kind'))[:40]!r} is not known")
        else:
            lines += 1
        sha256.update(line)
    if header is None:
        raise FileError("it is empty")
    if end is None:
        raise FileError("it has no end: the export was interrupted, or the file was cut")
    if end.get("sha256") != sha256.hexdigest():
        raise FileError("its checksum is wrong: it was changed")
    return CheckedFile(header, lines, dict(end.get("counts", {})), sha256.hexdigest())


def parsed_line(line: bytes, number: int) -> dict[str, Any]:
    """Raises ``FileError``."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise FileError(f"line {number}: no JSON: {error}") from None
    if not isinstance(row, dict):
        raise FileError(f"line {number}: no JSON object")
    return row


def lines_of(file: IO[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number from 1 and content of the lines between the first and the last."""
    file.readline()
    for number, line in enumerate(file, 1):
        row = parsed_line(line, number + 1)
        if row.get("kind") == "end":
            return
        yield number, row


def encoded(value: bytes) -> str:
    return base64.b64encode(value).decode()


def decoded(text: Any) -> bytes:
    """Raises ``FileError``."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise FileError(f"{str(text)[:40]!r} is no base64") from None
