"""Reads from the ledger's streams what its events say was charged, for the verification of the ledger.

An event is in the outbox, among the dead letters or, once accepted, in the tail; of an entry that goes from one to the
other meanwhile its events are counted once. Settles that are kept as refused are not charged. An hour can be compared
only if none of its events has left the streams: that is told by the newest entry that went and the oldest that is kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from sidecar.ledger.hours import HOUR_MS
from sidecar.ledger.keys import Keys
from sidecar.ledger.verification.charged_units import ChargedUnits, complete_hours
from sidecar.ledger.verification.pace import Pace
from sidecar.metering.outbox.events import MalformedEntry, event_times, event_units
from sidecar.metering.outbox.outbox import SKIPPED
from sidecar.valkey.calls import Call, call_each, is_missing
from sidecar.valkey.topology import Client

PAGE_ENTRIES: Final = 100
ENTRIES_MAX: Final = 2_000_000
"""Entries after which nothing is compared: they would take too much memory."""

AHEAD_MS: Final = 10_000
"""How much earlier than an event's time its entry may have been written: the ledger's clock stands for five seconds
while that of a server is behind it."""

SETTLE_MS: Final = 10_000
"""How long an hour must be over: servers of a cluster have clocks of their own."""


async def read_charged(client: Client, keys: Keys, now_ms: int, pace: Pace | None = None) -> ChargedUnits | None:
    """Units of the hours of which every event is there. None: there are more entries than can be looked at.

    Raises:
        RedisError, OSError: Valkey cannot be reached.
    """
    reader = _Reader(client, keys, pace or Pace())
    hours = complete_hours(await reader.complete_from_ms(), now_ms, SETTLE_MS)
    if not hours:
        return ChargedUnits(hours)
    for partition in range(keys.partitions):
        if not await reader.read_partition(partition, hours):
            return None
    return ChargedUnits(hours, reader.units)


class _Reader:
    def __init__(self, client: Client, keys: Keys, pace: Pace) -> None:
        self._client = client
        self._keys = keys
        self._pace = pace
        self._left = ENTRIES_MAX
        self.units: defaultdict[str, defaultdict[tuple[int, str], int]] = defaultdict(lambda: defaultdict(int))

    async def complete_from_ms(self) -> int:
        """From when on no event is missing."""
        keys, partitions = self._keys, range(self._keys.partitions)
        streams = [key_of(p) for p in partitions for key_of in (keys.outbox, keys.dead_letters, keys.sent)]
        replies = await call_each(self._client, [Call(key, ("XINFO STREAM", key)) for key in streams])
        await self._pace.wait()
        first_ms = 0
        for partition in partitions:
            outbox, dead, sent = replies[3 * partition : 3 * partition + 3]
            gone_ms = _ms(_info(outbox).get("max-deleted-entry-id"))
            kept = _info(sent).get("first-entry")
            if kept:
                gone_ms = min(gone_ms, _ms(kept[0]))
            first_ms = max(first_ms, gone_ms, _ms(_info(dead).get("max-deleted-entry-id")))
        return first_ms + AHEAD_MS

    async def read_partition(self, partition: int, hours: range) -> bool:
        """False: there are too many entries."""
        seen: dict[tuple[bytes, bytes], int] = {}
        keys = self._keys
        first = f"{max(0, hours.start * HOUR_MS - AHEAD_MS)}-0"
        for key, remember in (
            (keys.outbox(partition), True),
            (keys.dead_letters(partition), True),
            (keys.sent(partition), False),
        ):
            async for page in self._pages(key, "-" if remember else first):
                self._left -= len(page)
                if self._left < 0:
                    return False
                for _, fields in page:
                    self._take(fields, hours, seen, remember=remember)
        return True

    def _take(
        self, fields: Mapping[bytes, bytes], hours: range, seen: dict[tuple[bytes, bytes], int], *, remember: bool
    ) -> None:
        try:
            times = event_times(fields)
            if not any(ms // HOUR_MS in hours for ms in times.all()):
                return
            charges = event_units(fields)
        except MalformedEntry:
            return
        entry = fields.get(b"o", b""), fields.get(b"q", b"")
        known = seen.get(entry, 0)
        skipped = frozenset(fields.get(SKIPPED, b"").split(b","))
        for charge in charges:
            bit = 1 << charge.number
            hour = times.of(charge.account) // HOUR_MS
            if hour not in hours or known & bit or b"%d" % charge.number in skipped:
                continue
            known |= bit
            self.units[charge.account][hour, charge.metric] += charge.units
        if remember:
            seen[entry] = known

    async def _pages(self, key: str, start: str) -> AsyncIterator[list[tuple[bytes, Mapping[bytes, bytes]]]]:
        while True:
            await self._pace.wait()
            reply: Any = await self._client.xrange(key, start, "+", PAGE_ENTRIES)
            if reply:
                yield reply
                start = "(" + reply[-1][0].decode()
            if len(reply) < PAGE_ENTRIES:
                return


def _info(reply: Any) -> Mapping[str, Any]:
    if isinstance(reply, Exception):
        if is_missing(reply):
            return {}
        raise reply
    if not isinstance(reply, dict):
        reply = dict(zip(reply[::2], reply[1::2], strict=True))
    return {name.decode() if isinstance(name, bytes) else name: value for name, value in reply.items()}


def _ms(id_: Any) -> int:
    text = id_.decode() if isinstance(id_, bytes) else str(id_ or "0-0")
    return int(text.partition("-")[0])
