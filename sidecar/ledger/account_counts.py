"""Reads what the ledger has charged to given accounts: units of each period, and of each hour where they are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from sidecar.ledger.accounts.account_state import decode_closed
from sidecar.ledger.accounts.state_values import unpack_state
from sidecar.ledger.hours import DAY_MS, HOURS_OF_DAY, KEPT_DAYS, WHOLE_DAY, MalformedHours, day_counts, kept_from_ms
from sidecar.ledger.hours import periods as periods_of
from sidecar.ledger.keys import Keys
from sidecar.valkey.calls import call_each, script_call
from sidecar.valkey.topology import Client

_READ: Final = b"""
-- The counts of an account at one instant: an hour or a period that ends moves from the state to the hash.
-- KEYS [1] state [2] hash of the account  ARGV fields of the hash
-- reply {state, {field, ...}}; an error in the place of what cannot be read
return {redis.pcall('GET', KEYS[1]), redis.pcall('HMGET', KEYS[2], unpack(ARGV))}
"""

DAYS_MAX: Final = 400
"""Days that are asked for at most, the newest; hours before are not known."""


@dataclass(frozen=True, slots=True)
class AccountCounts:
    """Units that one account was charged. ``periods``: by start in ms and metric, of the current period and of those
    that are closed and not forgotten. ``hours``: by metric, and in it by hour since 1970. ``hours_from``: hours before
    are not known; ``days_unknown``: nor are those of these days, which have become one count. ``taken``: units of
    periods that were counted elsewhere and came with a load; no hour has them."""

    periods: Mapping[tuple[int, str], int] = field(default_factory=dict)
    hours: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    hours_from: int = 0
    days_unknown: frozenset[int] = frozenset()
    taken: Mapping[tuple[int, str], int] = field(default_factory=dict)

    def of_period(self, start_ms: int, metric: str) -> int:
        """N of a period."""
        return self.periods.get((start_ms, metric), 0)

    def of_hours(self, first: int, end: int, metric: str) -> int | None:
        """Units of the hours ``first`` to just before ``end``; None if one of them is not known."""
        if first < self.hours_from:
            return None
        if self.days_unknown and not self.days_unknown.isdisjoint(
            range(first // HOURS_OF_DAY, (end - 1) // HOURS_OF_DAY + 1)
        ):
            return None
        return self.known_of_hours(first, end, metric)

    def known_of_hours(self, first: int, end: int, metric: str) -> int:
        """Units of those of the hours ``first`` to just before ``end`` that are known."""
        hours = self.hours.get(metric)
        if hours is None:
            return 0
        if end - first == 1:
            return hours.get(first, 0)
        if end - first < len(hours):
            return sum([hours[hour] for hour in range(first, end) if hour in hours])
        return sum([units for hour, units in hours.items() if first <= hour < end])


class AccountCountsReader:
    """Counts of the accounts of one ledger. The client is not closed."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    def __repr__(self) -> str:
        return f"AccountCountsReader({self._keys.prefix})"

    async def read(
        self, accounts: Sequence[str], from_hour: int, to_hour: int
    ) -> dict[str, AccountCounts | MalformedHours]:
        """The counts of each account, with the hours ``from_hour`` to ``to_hour``, both included; an error where they
        cannot be read.

        Raises:
            RedisError, OSError: Valkey cannot be reached.
        """
        last_day = to_hour // HOURS_OF_DAY
        first_day = max(from_hour // HOURS_OF_DAY, last_day - DAYS_MAX + 1)
        days = range(first_day, last_day + 1)
        fields = ["closed", "taken", *(f"h{day}" for day in days)]
        calls = [
            script_call(_READ, [self._keys.state(account), self._keys.account(account)], *fields)
            for account in accounts
        ]
        found: dict[str, AccountCounts | MalformedHours] = {}
        for account, reply in zip(accounts, await call_each(self._client, calls), strict=True):
            if isinstance(reply, Exception):
                raise reply
            try:
                found[account] = _counts(reply, days)
            except ValueError as error:
                found[account] = MalformedHours(f"the counts of account {account} cannot be read: {error}"[:300])
        return found


def _counts(reply: Any, days: range) -> AccountCounts:
    """Raises ValueError (MalformedHours is one): something cannot be read."""
    for part in reply:
        if isinstance(part, Exception):
            raise MalformedHours(str(part))
    state, (closed, packed_taken, *packed_days) = reply
    periods: Counter[tuple[int, str]] = Counter()
    hours: dict[bytes, dict[int, int]] = {}
    unknown: set[int] = set()
    if state is not None:
        _count_state(state, periods, hours)
    for record in decode_closed(closed):
        periods[record.start_ms, record.metric] += record.units
    for day, packed in zip(days, packed_days, strict=True):
        first = day * HOURS_OF_DAY
        for hour_of_day, _, name, units in day_counts(packed) if packed else ():
            if hour_of_day == WHOLE_DAY:
                unknown.add(day)
                continue
            of_metric = hours.get(name)
            if of_metric is None:
                of_metric = hours[name] = {}
            hour = first + hour_of_day
            of_metric[hour] = of_metric.get(hour, 0) + units
    kept_from = _kept_from(state, days)
    by_metric = {name.decode("utf-8", "replace"): of_metric for name, of_metric in hours.items()}
    return AccountCounts(periods, by_metric, kept_from * HOURS_OF_DAY, frozenset(unknown), _taken(packed_taken))


def _kept_from(state: bytes | None, days: range) -> int:
    """The first of these days that was not dropped (``sidecar.metering.audit.hour_compaction``)."""
    if state is None:
        return days.start
    cutoff_ms = kept_from_ms(periods_of(state))
    return max(days.start, min(cutoff_ms // DAY_MS, days[-1] - KEPT_DAYS))


def _taken(packed: bytes | None) -> Counter[tuple[int, str]]:
    values = msgpack.unpackb(packed, raw=False) if packed else []
    if not isinstance(values, list) or len(values) % 4:
        raise ValueError("the units that were taken over are not four values for each")
    found: Counter[tuple[int, str]] = Counter()
    for start_ms, metric, units in zip(values[::4], values[2::4], values[3::4], strict=True):
        if not (isinstance(start_ms, int) and isinstance(metric, str) and isinstance(units, int)):
            raise ValueError("units that were taken over are not those of a period, a metric and whole units")
        found[start_ms, metric] += units
    return found


def _count_state(state: bytes, periods: Counter[tuple[int, str]], hours: dict[bytes, dict[int, int]]) -> None:
    values = unpack_state(state)
    for number, metric, _, _, _, _, _, hour, settled, _, of_hour in values.counters:
        if not (isinstance(number, int) and 1 <= number <= len(values.subscriptions) and isinstance(metric, str)):
            raise ValueError("a counter of no subscription")
        if not all(isinstance(each, int) for each in (hour, settled, of_hour)):
            raise ValueError("a count that is no whole number")
        start_ms = values.subscriptions[number - 1][1]
        periods[start_ms, metric] += settled
        of_metric = hours.setdefault(metric.encode(), {})
        of_metric[hour] = of_metric.get(hour, 0) + of_hour
