"""Outbox entries as proof sees them, wherever they are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


class UnreadableEntry(ValueError):
    """The fields are not those of an outbox entry. The message says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as it was found.

    Attributes:
        place: where, for people: `outbox {p03} 1796…-0`, `2026-11-30T14.jsonl line 7`.
        origin: `<instance>.<home partition>`.
        number: of its batch.
        at_ms: its field ``t``.
        events: the bytes of its field ``e``.
        chain: its field ``c``; b"" without one.
        is_part: cut to one event (a dead letter that was put back): its field ``i`` is set.
        order: what orders the entries of one stream, such as its id; None where order means nothing.
        has_parts: OpenMeter refused some of its events, which may stand alone elsewhere.
        is_edge: what came before it may have been dropped on purpose, as it was kept long enough.
    """

    place: str
    origin: str
    number: int
    at_ms: int
    events: bytes
    chain: bytes = b""
    is_part: bool = False
    order: tuple[int, ...] | None = None
    is_edge: bool = False
    has_parts: bool = False

    @property
    def name(self) -> str:
        """The first parts of the ids of its events."""
        return f"{self.origin}.{self.number}"


def entry_of(
    place: str,
    fields: Mapping[bytes, bytes],
    order: tuple[int, ...] | None = None,
    *,
    is_edge: bool = False,
    has_parts: bool = False,
) -> Entry:
    """Raises :class:`UnreadableEntry`."""
    try:
        return Entry(
            place, fields[b"o"].decode(), int(fields[b"q"]), int(fields[b"t"]), fields[b"e"], fields.get(b"c", b""),
            b"i" in fields, order, is_edge, has_parts or b"x" in fields,
        )  # fmt: skip
    except KeyError as error:
        raise UnreadableEntry(f"{place}: field {error.args[0].decode()} is missing") from None
    except ValueError as error:
        raise UnreadableEntry(f"{place}: {error}") from None
