"""Reads the units that accounts settled hour by hour (docs/ledger.md, "Hours and what was sent").

An hour is a number, counted from 1970. An account has the running hour of each of its counters in its state, and its
finished hours in a field for each day; lua/lib/account.lua has the layout. An hour that is over does not change any
more, unless Valkey's clock goes back or its data does; a total tells cheaply whether it did.

All hours that are asked for are read in one pass over all accounts, a page of them at a time. What stays in memory is a
total for each hour, and the cells of those hours of which they are wanted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sidecar.ledger.account_pages import account_pages, replies_of_one_slot
from sidecar.ledger.accounts.state_values import StateValues, unpack_state, unpack_values
from sidecar.ledger.keys import Keys
from sidecar.valkey.calls import Argument, raise_first, script_call
from sidecar.valkey.topology import Client

HOUR_MS: Final = 3_600_000
HOURS_OF_DAY: Final = 24
DAY_MS: Final = HOURS_OF_DAY * HOUR_MS
KEPT_DAYS: Final = 9
"""Days for which hours and the notes about them are kept at least. As in lua/compact_hours.lua."""
KEPT_MS: Final = KEPT_DAYS * DAY_MS

WHOLE_DAY: Final = HOURS_OF_DAY
"""The hour of the day of a count that is that of a whole day."""

UNREADABLE_MAX: Final = 100
"""Accounts that are named at most."""

PAGE_ACCOUNTS: Final = 200
"""Accounts of one look: it keeps each near a millisecond of the server's only thread."""

_READ: Final = """
-- The counts of accounts, each of one instant: an hour that ends moves from the state to the hash.
-- KEYS [1 2, 3 4, ...] state and hash of each account   ARGV fields of the hash
-- reply {{state, {field, ...}}, ...}; an error in the place of what cannot be read
local found = {}
for k = 1, #KEYS, 2 do
  found[#found + 1] = {redis.pcall('GET', KEYS[k]), redis.pcall('HMGET', KEYS[k + 1], unpack(ARGV))}
end
return found
"""

_NOTE: Final = b"""
-- KEYS [1] notes of an hour  ARGV [1] ms to live [2 ...] name, text, name, text, ...
-- The first note gives the hash its end.
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
if redis.call('PTTL', KEYS[1]) < 0 then
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
"""

Units = dict[tuple[str, str], int]
"""Units by account and metric."""


@dataclass(frozen=True, slots=True)
class HourTotal:
    """``counts``: how many pairs of account and metric settled something; ``units``: their sum."""

    counts: int
    units: int


@dataclass(slots=True)
class HourCounts:
    """What a pass has found. ``totals``: of the hours in which something was settled. ``cells``: of those hours of
    which they were asked for. ``unreadable``: accounts whose counts cannot be read, and why; the first of them."""

    totals: dict[int, HourTotal] = field(default_factory=dict)
    cells: dict[int, Units] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


class MalformedHours(ValueError):
    """The counts of an account cannot be read. The message says why."""


class Hours:
    """The hours of one ledger. All methods raise what redis-py raises (``sidecar.valkey.topology.CLIENT_ERRORS``)."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    def __repr__(self) -> str:
        return f"Hours({self._keys.prefix})"

    async def read(self, hours: Collection[int], cells_of: Collection[int] = ()) -> HourCounts:
        """The totals of ``hours``, and the cells of those of them in ``cells_of``, in one pass over all accounts."""
        wanted, wanted_cells = frozenset(hours), frozenset(cells_of) & frozenset(hours)
        found = HourCounts(cells={hour: {} for hour in wanted_cells})
        if not wanted:
            return found
        counts, units = Counter[int](), Counter[int]()
        days = sorted({hour // HOURS_OF_DAY for hour in wanted})
        fields = [f"h{day}" for day in days]
        async for _, accounts in account_pages(self._client, self._keys, accounts_max=PAGE_ACCOUNTS):
            names = [name for id_ in accounts for name in (self._keys.state(id_), self._keys.account(id_))]
            replies: Any = await self._client.eval(_READ, len(names), *names, *fields)
            for account, reply in zip(accounts, replies, strict=True):
                try:
                    settled = _settled(reply, days, wanted)
                except MalformedHours as error:
                    if len(found.unreadable) < UNREADABLE_MAX:
                        found.unreadable[account] = str(error)
                    continue
                for (hour, metric), number in settled.items():
                    counts[hour] += 1
                    units[hour] += number
                    if hour in wanted_cells:
                        found.cells[hour][account, metric] = number
        found.totals = {hour: HourTotal(counts[hour], units[hour]) for hour in sorted(counts)}
        return found

    async def counts(self, hours: Collection[int]) -> dict[int, Units]:
        """Units of each of these hours by account and metric."""
        return (await self.read(hours, hours)).cells

    async def totals(self, hours: Collection[int]) -> dict[int, HourTotal]:
        """The sums of those of these hours in which something was settled."""
        return (await self.read(hours)).totals

    async def notes(self, hours: Collection[int], *names: str) -> dict[int, list[bytes | None]]:
        """Texts that were noted with each of these hours; None where there is none."""
        if not hours:
            return {}
        commands: list[tuple[Argument, ...]] = [("HMGET", self._keys.audited_hour(hour), *names) for hour in hours]
        replies = await replies_of_one_slot(self._client, commands)
        raise_first(replies)
        return {hour: list(reply) for hour, reply in zip(hours, replies, strict=True)}

    async def note(self, hour: int, notes: Mapping[str, str | bytes]) -> None:
        """Keeps texts with an hour for :data:`KEPT_DAYS` days from its first note."""
        args = [part for note in notes.items() for part in note]
        call = script_call(_NOTE, [self._keys.audited_hour(hour)], KEPT_MS, *args)
        raise_first(await replies_of_one_slot(self._client, [call.args]))


def _settled(reply: Any, days: Collection[int], wanted: Collection[int]) -> dict[tuple[int, str], int]:
    """Units of one account by hour and metric, of the hours that are wanted. ``reply``: its state, and its days.

    Raises:
        MalformedHours: it cannot be read.
    """
    for part in reply:
        if isinstance(part, Exception):
            raise MalformedHours(str(part))
    found: dict[tuple[int, bytes], int] = {}
    state, fields = reply
    for hour, metric, units in running_hours(state) if state is not None else ():
        if hour in wanted and units:
            key = hour, metric
            found[key] = found.get(key, 0) + units
    for day, packed in zip(days, fields, strict=True):
        if packed:
            first = day * HOURS_OF_DAY
            for hour_of_day, _, metric, units in day_counts(packed):
                hour = first + hour_of_day
                if hour in wanted and units and hour_of_day < WHOLE_DAY:
                    key = hour, metric
                    found[key] = found.get(key, 0) + units
    return {(hour, metric.decode("utf-8", "replace")): units for (hour, metric), units in found.items()}


def running_hours(state: bytes) -> list[tuple[int, bytes, int]]:
    """Hour, metric and units of each counter of an account's state.

    Raises:
        MalformedHours: it cannot be read.
    """
    rows = _state_values(state).counters
    hours, units = [row[7] for row in rows], [row[10] for row in rows]
    metrics = [row[1].encode() if isinstance(row[1], str) else row[1] for row in rows]
    _check(hours, metrics, units)
    return list(zip(hours, metrics, units, strict=True))


def periods(state: bytes) -> list[tuple[int, int]]:
    """Start and end, in ms, of the current period of each subscription of an account's state.

    Raises:
        MalformedHours: it cannot be read.
    """
    bounds = [(start, end) for _, start, end in _state_values(state).subscriptions]
    if not all(type(start) is int and type(end) is int for start, end in bounds):
        raise MalformedHours("the state has a period that is no pair of whole numbers")
    return bounds


def kept_from_ms(bounds: Collection[tuple[int, int]]) -> int:
    """Days that end by this instant may be dropped. ``bounds``: start and end of an account's current periods, in ms.

    The period before an open one of 28 days may have had 31.
    """
    return min((start_ms - (end_ms - start_ms) * 9 // 8 for start_ms, end_ms in bounds), default=0)


def _state_values(state: bytes) -> StateValues:
    try:
        return unpack_state(state)
    except ValueError as error:
        raise MalformedHours(f"the state is not that of an account: {error}"[:200]) from None


def day_counts(packed: bytes) -> list[tuple[int, bytes, bytes, int]]:
    """Hour of the day, subscription, metric and units of each count of a day.

    Raises:
        MalformedHours: it cannot be read.
    """
    try:
        values = unpack_values(packed, raw=True)
    except ValueError as error:
        raise MalformedHours(f"the counts of a day cannot be read: {error}"[:200]) from None
    if len(values) % 4:
        raise MalformedHours(f"the counts of a day have {len(values)} values, not four for each")
    hours, subscriptions, metrics, units = values[::4], values[1::4], values[2::4], values[3::4]
    _check(hours, metrics, units)
    return list(zip(hours, subscriptions, metrics, units, strict=True))


def _check(hours: list[Any], metrics: list[Any], units: list[Any]) -> None:
    if not (set(map(type, hours)) | set(map(type, units)) <= {int} and set(map(type, metrics)) <= {bytes}):
        raise MalformedHours("a count is not that of an hour, a metric and whole units")
