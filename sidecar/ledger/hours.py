"""Reads the ledger's counts of an hour, over all home partitions (docs/ledger.md, "Hours and what was sent").

An hour is a number, counted from 1970. One that is over does not change any more, unless Valkey's clock goes back or
its data does; a total tells cheaply whether it did.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

from sidecar.ledger.keys import Keys
from sidecar.valkey.topology import Client

HOUR_MS: Final = 3_600_000
KEPT_MS: Final = 9 * 24 * HOUR_MS
"""As in lua/batch.lua."""
PAGE_FIELDS: Final = 500
"""Fields that one command looks at: it keeps each well below a millisecond of the server's only thread."""

_TOTAL: Final = b"""
-- KEYS [1] hour  ARGV [1] cursor [2] fields to look at
-- reply {next cursor, counts, their sum}
local page = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local counts, units = 0, 0
for i = 1, #page[2], 2 do
  if string.find(page[2][i], '\\0', 1, true) then
    counts = counts + 1
    units = units + page[2][i + 1]
  end
end
return {page[1], counts, string.format('%.0f', units)}
"""

_NOTE: Final = b"""
-- KEYS [1] hour  ARGV [1] ms to live [2 ...] name, text, name, text, ...
-- The counts, if there are any, have given the hash its end; notes must not live without one.
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
if redis.call('PTTL', KEYS[1]) < 0 then
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
"""


@dataclass(frozen=True, slots=True)
class HourTotal:
    """``counts``: how many pairs of account and metric, once for each home partition; ``units``: their sum."""

    counts: int
    units: int


class Hours:
    """The hours of one ledger. All methods raise what redis-py raises (``sidecar.valkey.topology.CLIENT_ERRORS``)."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    def __repr__(self) -> str:
        return f"Hours({self._keys.prefix})"

    async def total(self, hour: int) -> HourTotal:
        """The sum of an hour. Zero counts: the ledger counted nothing, or did not count hours yet."""
        totals = await asyncio.gather(*(self._total(partition, hour) for partition in range(self._keys.partitions)))
        return HourTotal(sum(total.counts for total in totals), sum(total.units for total in totals))

    async def units(self, hour: int) -> dict[tuple[str, str], int]:
        """Units of an hour by account and metric."""
        found = Counter[tuple[str, str]]()
        for each in await asyncio.gather(*(self._units(p, hour) for p in range(self._keys.partitions))):
            found.update(each)
        return dict(found)

    async def notes(self, hour: int, *names: str) -> list[bytes | None]:
        """Texts that were noted with an hour; None where there is none."""
        return list(await self._client.execute_command("HMGET", self._keys.hour(0, hour), *names))

    async def note(self, hour: int, notes: dict[str, str | bytes]) -> None:
        """Keep texts with an hour, for as long as its counts are kept."""
        args = [part for note in notes.items() for part in note]
        await self._client.eval(_NOTE.decode(), 1, self._keys.hour(0, hour), KEPT_MS, *args)

    async def _total(self, partition: int, hour: int) -> HourTotal:
        counts = units = 0
        cursor: bytes | str = b"0"
        while True:
            reply = await self._client.eval(_TOTAL.decode(), 1, self._keys.hour(partition, hour), cursor, PAGE_FIELDS)
            cursor = reply[0]
            counts += int(reply[1])
            units += int(reply[2])
            if cursor in (b"0", "0"):
                return HourTotal(counts, units)

    async def _units(self, partition: int, hour: int) -> dict[tuple[str, str], int]:
        found: dict[tuple[str, str], int] = {}
        cursor = 0
        while True:
            # The library's annotations leave open what comes back; it is a dict of bytes.
            reply: Any = await self._client.hscan(self._keys.hour(partition, hour), cursor, count=PAGE_FIELDS)
            cursor, page = reply
            for field, units in page.items():
                key, cut, metric = field.partition(b"\0")
                if cut:
                    # A scan may show a field twice; it has one count all the same.
                    found[_account_of(key), metric.decode()] = int(units)
            if not cursor:
                return found


def _account_of(key: bytes) -> str:
    """The account's id, out of its key: <prefix>:{pNN}:account:<id>."""
    return key.decode().partition("}:account:")[2]
