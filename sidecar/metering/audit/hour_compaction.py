"""Makes one count of the hours of a day that needs no audit any more, and drops days of periods that are long over.

An account that is used all day has 24 counts of each metric for every day. They serve the audit; after it the day's sum
is enough. A day is compacted when it has left the audit's look-back, and each of its hours has agreed with OpenMeter
and still has the counts with which it agreed. Days that did not agree stay as they are, as evidence, until they go.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack
from redis.exceptions import NoScriptError, ResponseError

from sidecar.basics.cancellation import notice_cancellation
from sidecar.basics.clock import Clock, SystemClock
from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.logger import get_logger
from sidecar.ledger.account_pages import account_pages, replies_of_one_slot
from sidecar.ledger.hours import (
    DAY_MS,
    HOUR_MS,
    HOURS_OF_DAY,
    KEPT_DAYS,
    WHOLE_DAY,
    Hours,
    MalformedHours,
    day_counts,
    kept_from_ms,
    periods,
)
from sidecar.ledger.keys import Keys
from sidecar.metering.audit.audit_state import CHOSEN, COMPACTED, DAY, load_hour_states
from sidecar.valkey.calls import Argument
from sidecar.valkey.scripts import script
from sidecar.valkey.topology import CLIENT_ERRORS, Client

log = get_logger("sidecar.metering")

PAGE_ACCOUNTS: Final = 100
"""Accounts of one look."""

SCAN_FIELDS: Final = 500
"""Fields of an account that one command looks at: one of many idempotency keys has thousands."""

PAUSE_S_MIN: Final = 0.005
"""Pause after each page; it is at least as long as the page took."""

UNAUDITED_DAYS: Final = 2
"""Days whose hours are kept where there is no audit."""

AGAIN_S: Final = 21_600.0
"""Time between two looks at days that have not agreed."""

ALONE_INTERVAL_S: Final = 900.0
"""Time between two looks where no audit sets the pace."""

SWEPT: Final = "swept"
"""A note at a day's first hour: on that day all accounts were gone through."""

_DAY = re.compile(rb"h([0-9]{1,9})")


@dataclass(slots=True)
class CompactionCounts:
    """What a pass has done: accounts that were changed, days of accounts made one count, days of accounts dropped,
    accounts that could not be read or changed."""

    accounts: int = 0
    compacted: int = 0
    dropped: int = 0
    failed: int = 0


class HourCompaction:
    """Compacts the hours of one ledger. Any number may be at work at once: they change nothing twice.

    ``look_back_hours``: those that the audit compares. ``must_agree``: whether there is an audit at work, with which a
    day's hours must have agreed.
    """

    def __init__(
        self, client: Client, keys: Keys, look_back_hours: int, *, must_agree: bool, clock: Clock | None = None
    ) -> None:
        self._client = client
        self._keys = keys
        self._look_back_hours = look_back_hours
        self._must_agree = must_agree
        self._clock = clock or SystemClock()
        self._hours = Hours(client, keys)
        self._looked: tuple[tuple[int, ...], float] = ((), -AGAIN_S)

    def __repr__(self) -> str:
        return f"HourCompaction({self._keys.prefix})"

    async def run(self, stop: asyncio.Event) -> None:
        """Compacts whenever there is something to do, until ``stop``, through every failure."""
        while not stop.is_set():
            await self.compact_if_possible(stop)
            notice_cancellation()
            await self._clock.wait(stop, ALONE_INTERVAL_S)

    async def compact_if_possible(self, stop: asyncio.Event) -> None:
        """As :meth:`compact` does now; a Valkey that is away is logged, and the work left to the next time."""
        try:
            await self.compact(int(self._clock.now_s() * 1000), stop)
        except CLIENT_ERRORS as error:
            log.warning("hours were not compacted: valkey does not respond", reason=reason_of(error))

    async def compact(self, now_ms: int, stop: asyncio.Event | None = None) -> CompactionCounts | None:
        """Does what is due; a few commands where nothing is. None: nothing was. A ``stop`` leaves the rest to the next
        call.

        Raises:
            RedisError, OSError: Valkey cannot be reached.
        """
        stop = stop or asyncio.Event()
        today = now_ms // DAY_MS
        candidates = self._candidates(now_ms)
        notes = await self._hours.notes([day * HOURS_OF_DAY for day in (*candidates, today)], DAY, SWEPT)
        of_day = {day: notes[day * HOURS_OF_DAY][0] for day in candidates}
        chosen = [day for day in candidates if of_day[day] == CHOSEN]
        chosen += await self._choose([day for day in candidates if of_day[day] not in (CHOSEN, COMPACTED)])
        if not chosen and notes[today * HOURS_OF_DAY][1] is not None:
            return None
        for day in chosen:
            # Half of a day's accounts may be done when this ends; its hours would then no longer have their totals.
            await self._hours.note(day * HOURS_OF_DAY, {DAY: CHOSEN})
        counts = CompactionCounts()
        if not await self._pass(frozenset(chosen), today, counts, stop):
            return counts
        for day in chosen:
            await self._hours.note(day * HOURS_OF_DAY, {DAY: COMPACTED})
        await self._hours.note(today * HOURS_OF_DAY, {SWEPT: b"1"})
        log.info(
            "hours of the ledger compacted", days=len(chosen), accounts=counts.accounts, compacted=counts.compacted,
            dropped=counts.dropped, failed=counts.failed,
        )  # fmt: skip
        return counts

    def _candidates(self, now_ms: int) -> list[int]:
        """Days that no audit looks at any more, of those of which there are notes."""
        end = (now_ms // HOUR_MS - self._look_back_hours) // HOURS_OF_DAY
        if not self._must_agree:
            end = min(end, now_ms // DAY_MS - UNAUDITED_DAYS)
        return list(range(max(0, now_ms // DAY_MS - KEPT_DAYS), end))

    async def _choose(self, days: Sequence[int]) -> list[int]:
        """Those of these days whose hours may become one count."""
        if not self._must_agree or not days:
            return list(days)
        looked, at_s = self._looked
        if tuple(days) == looked and self._clock.monotonic_s() - at_s < AGAIN_S:
            return []
        hours = [hour for day in days for hour in range(day * HOURS_OF_DAY, (day + 1) * HOURS_OF_DAY)]
        states = await load_hour_states(self._hours, hours)
        found = await self._hours.read(hours)
        open_days = {hour // HOURS_OF_DAY for hour in hours if states[hour].agreed != found.totals.get(hour)}
        self._looked = tuple(day for day in days if day in open_days), self._clock.monotonic_s()
        return [day for day in days if day not in open_days]

    async def _pass(self, chosen: frozenset[int], today: int, counts: CompactionCounts, stop: asyncio.Event) -> bool:
        """Goes through all accounts. False: it was stopped."""
        began_s = time.monotonic()
        async for partition, accounts in account_pages(self._client, self._keys, accounts_max=PAGE_ACCOUNTS):
            await self._page(partition, accounts, chosen, today, counts)
            notice_cancellation()
            pause_s = max(PAUSE_S_MIN, time.monotonic() - began_s)
            if await self._clock.wait(stop, pause_s):
                return False
            began_s = time.monotonic()
        return True

    async def _page(
        self, partition: int, accounts: Sequence[str], chosen: frozenset[int], today: int, counts: CompactionCounts
    ) -> None:
        states = await replies_of_one_slot(self._client, [("GET", self._keys.state(account)) for account in accounts])
        days_of = await self._days(accounts)
        calls: list[tuple[Argument, ...]] = []
        for account, state in zip(accounts, states, strict=True):
            try:
                compact, drop = _due(state, days_of[account], chosen, today)
            except MalformedHours as error:
                counts.failed += 1
                log.warning("the hours of an account cannot be compacted", account=account, reason=str(error))
                continue
            if compact or drop:
                keys = [self._keys.account(account), self._keys.clock(partition)]
                calls.append((len(keys), *keys, _pack(compact), _pack(drop)))
        for reply in await self._replies_of_script(calls) if calls else ():
            if isinstance(reply, ResponseError):
                counts.failed += 1
                log.warning("the hours of an account cannot be compacted", reason=reason_of(reply))
            elif isinstance(reply, Exception):
                raise reply
            else:
                counts.accounts += 1
                counts.compacted += int(reply[0])
                counts.dropped += int(reply[1])

    async def _replies_of_script(self, calls: Sequence[tuple[Argument, ...]]) -> list[Any]:
        """By its digest: the text is long, and the same for every account."""
        compact = script("compact_hours")
        replies = await replies_of_one_slot(self._client, [("EVALSHA", compact.sha, *call) for call in calls])
        unknown = [number for number, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            first, *others = unknown
            commands: list[tuple[Argument, ...]] = [("EVAL", compact.text, *calls[first])]
            commands += [("EVALSHA", compact.sha, *calls[number]) for number in others]
            for number, reply in zip(unknown, await replies_of_one_slot(self._client, commands), strict=True):
                replies[number] = reply
        return replies

    async def _days(self, accounts: Sequence[str]) -> dict[str, dict[int, bytes] | ResponseError]:
        """The fields of the days of each account, or why they cannot be read."""
        found: dict[str, dict[int, bytes]] = {account: {} for account in accounts}
        unreadable: dict[str, ResponseError] = {}
        cursors: dict[str, int] = dict.fromkeys(accounts, 0)
        while cursors:
            replies = await replies_of_one_slot(
                self._client,
                [
                    ("HSCAN", self._keys.account(account), cursor, "MATCH", "h*", "COUNT", SCAN_FIELDS)
                    for account, cursor in cursors.items()
                ],
            )
            going: dict[str, int] = {}
            for account, reply in zip(cursors, replies, strict=True):
                if isinstance(reply, ResponseError):
                    unreadable[account] = reply
                    continue
                if isinstance(reply, Exception):
                    raise reply
                cursor, fields = reply
                pairs = fields.items() if isinstance(fields, dict) else zip(fields[::2], fields[1::2], strict=True)
                for name, packed in pairs:
                    if match := _DAY.fullmatch(name):
                        found[account][int(match[1])] = packed
                if int(cursor):
                    going[account] = int(cursor)
            cursors = going
        return {**found, **unreadable}


def _due(
    state: Any, days: dict[int, bytes] | ResponseError, chosen: frozenset[int], today: int
) -> tuple[list[int], list[int]]:
    """The days of an account to compact, and those to drop.

    Raises:
        MalformedHours: it cannot be read.
    """
    for part in (state, days):
        if isinstance(part, ResponseError):
            raise MalformedHours(str(part))
        if isinstance(part, Exception):
            raise part
    assert isinstance(days, dict)
    if state is None or not days:
        return [], []
    cutoff_ms = kept_from_ms(periods(state))
    drop = sorted(day for day in days if (day + 1) * DAY_MS <= cutoff_ms and day < today - KEPT_DAYS)
    compact = sorted(
        day
        for day, packed in days.items()
        if day in chosen and day not in drop and any(hour != WHOLE_DAY for hour, *_ in day_counts(packed))
    )
    return compact, drop


def _pack(days: Sequence[int]) -> bytes:
    return bytes(msgpack.packb(list(days)))
