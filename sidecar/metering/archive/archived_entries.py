"""The lines of an archive, without I/O.

A line is JSON: ``partition``, ``id`` of the entry in the outbox, ``accepted_ms``, ``fields`` with the text of each of
the entry's fields, ``base64`` with those that are no text, and ``refused``, the numbers of the events that OpenMeter
refused, if there are any.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from sidecar.metering.outbox.outbox import NUMBER
from sidecar.metering.publisher.batches import Entry

CHAIN: Final = b"c"


class UnreadableLine(ValueError):
    """The line is not one of an archive. The message says why."""


@dataclass(frozen=True, slots=True)
class ArchivedEntry:
    """An entry of the outbox as it left it."""

    partition: int
    id: str
    accepted_ms: int
    fields: Mapping[bytes, bytes]
    refused: frozenset[int] = frozenset()

    def to_line(self) -> bytes:
        texts: dict[str, str] = {}
        binary: dict[str, str] = {}
        for name, value in self.fields.items():
            key = name.decode("latin-1")
            try:
                if name == CHAIN:
                    raise ValueError
                texts[key] = value.decode()
            except ValueError:
                binary[key] = base64.b64encode(value).decode()
        line: dict[str, Any] = {
            "partition": self.partition, "id": self.id, "accepted_ms": self.accepted_ms, "fields": texts,
        }  # fmt: skip
        if binary:
            line["base64"] = binary
        if self.refused:
            line["refused"] = sorted(self.refused)
        return orjson.dumps(line) + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> ArchivedEntry:
        """Raises :class:`UnreadableLine`."""
        try:
            row = orjson.loads(line)
            fields = {name.encode("latin-1"): text.encode() for name, text in row["fields"].items()}
            for name, text in row.get("base64", {}).items():
                fields[name.encode("latin-1")] = base64.b64decode(text, validate=True)
            ms, _, count = row["id"].partition("-")
            if not ms.isdigit() or not count.isdigit():
                raise ValueError("an id is two numbers")
            refused = frozenset(int(number) for number in row.get("refused", ()))
            return cls(int(row["partition"]), str(row["id"]), int(row["accepted_ms"]), fields, refused)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UnreadableLine(f"not a line of an archive: {error!r}"[:200]) from None

    @property
    def order(self) -> tuple[int, ...]:
        """Of its stream."""
        ms, _, count = self.id.partition("-")
        return int(ms), int(count)


def archived(entry: Entry, accepted_ms: int) -> ArchivedEntry:
    """What the archive keeps of an entry that leaves the outbox."""
    refused = frozenset(int(letter[NUMBER]) for letter in entry.dead_letters if NUMBER in letter)
    return ArchivedEntry(entry.partition, entry.id.decode(), accepted_ms, entry.fields, refused)
