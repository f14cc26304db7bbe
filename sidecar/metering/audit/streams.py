"""Reads the ledger's streams, cell by cell: the outbox, the dead letters, and the tail of accepted entries."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from sidecar.ledger.hours import HOUR_MS
from sidecar.ledger.keys import Keys
from sidecar.metering.audit.comparison import Cell, Tail
from sidecar.metering.outbox.events import EventAttributes, MalformedEntry, decode_entry, event_times
from sidecar.metering.outbox.outbox import SKIPPED
from sidecar.valkey.topology import Client

PAGE_ENTRIES: Final = 32
"""Entries of one look; an entry of a busy gateway holds hundreds of events, all decoded in one go."""

ENTRIES_MAX: Final = {"outbox": 200_000, "dead": 50_000, "sent": 2_000_000}
"""Entries of all partitions that one audit looks at."""

AHEAD_MS: Final = 24 * HOUR_MS
"""How much earlier than its hour an event may have been accepted. Nothing is accepted before it is charged, but an
account's time may be ahead of a server whose clock went back."""

Fields = Mapping[bytes, bytes]


@dataclass(slots=True)
class PendingUnits:
    """Units by cell that OpenMeter is not to have yet. ``complete``: nothing was left out."""

    outbox: Counter[Cell] = field(default_factory=Counter)
    dead: Counter[Cell] = field(default_factory=Counter)
    complete: bool = True


@dataclass(frozen=True, slots=True)
class TailEvent:
    """An event that was, or will be, sent: its cell, units, JSON and time."""

    cell: Cell
    units: int
    body: bytes
    at_ms: int


@dataclass(slots=True)
class TailUnits:
    """Units of the tail by cell, and ``events``, how many of them are settled. ``complete``: nothing was left out."""

    settled: Counter[Cell] = field(default_factory=Counter)
    arriving: Counter[Cell] = field(default_factory=Counter)
    events: Counter[Cell] = field(default_factory=Counter)
    complete: bool = True

    def of(self, cell: Cell) -> Tail | None:
        """None if it is not known whether there is something."""
        if not self.complete and not self.settled[cell]:
            return None
        return Tail(self.settled[cell], self.arriving[cell])


class Streams:
    """Reads the streams of one ledger. All methods raise what redis-py raises when Valkey cannot be reached."""

    def __init__(self, client: Client, keys: Keys, attributes: EventAttributes) -> None:
        self._client = client
        self._keys = keys
        self._attributes = attributes

    def __repr__(self) -> str:
        return f"Streams({self._keys.prefix})"

    async def waiting(self, hours: Collection[int]) -> PendingUnits:
        """Units of these hours in the outbox and among the dead letters.

        Take it before OpenMeter is asked: an event that OpenMeter does not show was in the outbox then, or it is
        missing. Dead letters come first, since putting one back moves it to the outbox; one that is written
        between the two looks goes unseen, which the next audit mends.
        """
        found = PendingUnits()
        looks = (("dead", self._keys.dead_letters, found.dead), ("outbox", self._keys.outbox, found.outbox))
        for name, key_of, units in looks:
            left = ENTRIES_MAX[name]
            for partition in range(self._keys.partitions):
                async for page in self._pages(key_of(partition)):
                    left -= len(page)
                    if left < 0:
                        found.complete = False
                        break
                    for _, fields in page:
                        for event in self._events(fields, hours):
                            units[event.cell] += event.units
        return found

    async def tail_units(self, hours: Collection[int], settled_before_ms: int) -> TailUnits:
        """Units of these hours in the tail, accepted before ``settled_before_ms`` or since."""
        found = TailUnits()
        seen = 0
        async for page in self._tail_pages(hours):
            seen += len(page)
            for accepted_ms, fields in page:
                for event in self._events(fields, hours):
                    if accepted_ms < settled_before_ms:
                        found.settled[event.cell] += event.units
                        found.events[event.cell] += 1
                    else:
                        found.arriving[event.cell] += event.units
        found.complete = seen < ENTRIES_MAX["sent"]
        return found

    async def tail(self, cells: Collection[Cell], settled_before_ms: int) -> AsyncIterator[list[bytes]]:
        """The events of these cells, as they were sent, that were accepted before ``settled_before_ms``."""
        hours = frozenset(cell.hour for cell in cells)
        async for page in self._tail_pages(hours):
            yield [
                event.body
                for accepted_ms, fields in page
                if accepted_ms < settled_before_ms
                for event in self._events(fields, hours)
                if event.cell in cells
            ]

    async def kept(self, from_ms: int, to_ms: int, account: str | None = None) -> AsyncIterator[list[TailEvent]]:
        """The events of the tail with times from ``from_ms`` to just before ``to_ms``, as they were sent; of one
        account if it is given."""
        hours = range(from_ms // HOUR_MS, (to_ms - 1) // HOUR_MS + 1)
        async for page in self._tail_pages(hours):
            yield [
                event
                for _, fields in page
                for event in self._events(fields, hours)
                if from_ms <= event.at_ms < to_ms and account in (None, event.cell.account)
            ]

    async def _tail_pages(self, hours: Collection[int]) -> AsyncIterator[list[tuple[int, Fields]]]:
        """``ENTRIES_MAX`` entries at most, with the time of their acceptance in ms."""
        start = f"{max(0, min(hours) * HOUR_MS - AHEAD_MS)}-0"
        left = ENTRIES_MAX["sent"]
        for partition in range(self._keys.partitions):
            async for page in self._pages(self._keys.sent(partition), start):
                page = page[:left]
                left -= len(page)
                yield [(int(id_.partition(b"-")[0]), fields) for id_, fields in page]
                if not left:
                    return

    async def _pages(self, key: str, start: str = "-") -> AsyncIterator[list[tuple[bytes, Fields]]]:
        while True:
            reply: Any = await self._client.xrange(key, start, "+", PAGE_ENTRIES)
            if reply:
                yield reply
                start = "(" + reply[-1][0].decode()
            if len(reply) < PAGE_ENTRIES:
                return

    def _events(self, fields: Fields, hours: Collection[int]) -> list[TailEvent]:
        """The events of an entry that lie in one of the hours; none if it cannot be read."""
        try:
            times = event_times(fields)
            if not any(ms // HOUR_MS in hours for ms in times.all()):
                return []
            bodies = decode_entry(fields, self._attributes).bodies
        except MalformedEntry:
            return []
        skipped = frozenset(fields.get(SKIPPED, b"").decode("latin-1").split(","))
        found = []
        for body in bodies:
            event = orjson.loads(body)
            at_ms = times.of(event["subject"])
            hour = at_ms // HOUR_MS
            if hour in hours and event["id"].rpartition(".")[2] not in skipped:
                data = event["data"]
                found.append(TailEvent(Cell(hour, event["subject"], str(data["metric"])), data["units"], body, at_ms))
        return found
