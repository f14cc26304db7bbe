"""Computes billing periods: the one of an instant, and the ends of the following ones.

A rule is data and the clock is given, so that a test, the demo and the reconciler can ask about any instant. Instants
are Unix milliseconds. A period begins with its start and ends just before its end.
"""

from __future__ import annotations

import bisect
import calendar
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from datetime import time as clock_time
from itertools import pairwise
from typing import Final, Literal
from zoneinfo import ZoneInfo

ENDS_AHEAD: Final = 36
"""Ends known in advance. A ledger that hears of no load for longer repeats the length of the last period."""

HOUR_MS: Final = 3_600_000
NOW_MS_MAX: Final = 64_060_588_800_000
"""The year 4000: within what dates, zones and the scripts' integers can do."""

Unit = Literal["day", "week", "month", "year"]


@dataclass(frozen=True, slots=True)
class PeriodBounds:
    """The current period, and the ends of those that follow it."""

    start_ms: int
    end_ms: int
    next_ends_ms: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        ends = (self.start_ms, self.end_ms, *self.next_ends_ms)
        assert all(a < b for a, b in pairwise(ends)), "periods follow one another"


@dataclass(frozen=True, slots=True)
class CalendarPeriods:
    """Days, weeks, months or years that begin at midnight in a time zone.

    ``anchor`` is the day on which one begins: 1 to 31 in a month (a month that is shorter begins it on its last day), 1
    (Monday) to 7 in a week, month and day in a year. A midnight that a change of clocks skips is the instant of the
    change; of one that comes twice it is the first.
    """

    every: Unit
    timezone: str = "UTC"
    anchor: int | tuple[int, int] = 1

    def at(self, now_ms: int) -> PeriodBounds:
        """The period around an instant."""
        _check(now_ms)
        zone = ZoneInfo(self.timezone)
        today = datetime.fromtimestamp(now_ms / 1000, zone).date()
        starts: list[int] = []
        for day in self._starts_from(today - timedelta(days=800 if self.every == "year" else 70)):
            start = _midnight_ms(day, zone)
            # Samoa left out 30 December 2011: both its midnight and the next are the instant of the change.
            if not starts or start > starts[-1]:
                starts.append(start)
            current = bisect.bisect_right(starts, now_ms) - 1
            if current >= 0 and len(starts) == current + 2 + ENDS_AHEAD:
                return PeriodBounds(starts[current], starts[current + 1], tuple(starts[current + 2 :]))
        raise AssertionError("the calendar goes on")

    def _starts_from(self, earliest: date) -> Iterator[date]:
        if self.every in ("day", "week"):
            day = earliest
            if self.every == "week":
                assert isinstance(self.anchor, int)
                day += timedelta(days=(self.anchor - day.isoweekday()) % 7)
            while True:
                yield day
                day += timedelta(days=7 if self.every == "week" else 1)
        year, month = earliest.year, earliest.month
        while True:
            if self.every == "month":
                assert isinstance(self.anchor, int)
                yield _clipped(year, month, self.anchor)
                year, month = (year, month + 1) if month < 12 else (year + 1, 1)
            else:
                first_month, first_day = self.anchor if isinstance(self.anchor, tuple) else (1, self.anchor)
                yield _clipped(year, first_month, first_day)
                year += 1


@dataclass(frozen=True, slots=True)
class EqualPeriods:
    """Periods of one length, counted from ``origin_ms`` (the Unix epoch, so that hours are full hours of UTC)."""

    length_ms: int
    origin_ms: int = 0

    def at(self, now_ms: int) -> PeriodBounds:
        """The period around an instant."""
        _check(now_ms)
        start = now_ms - (now_ms - self.origin_ms) % self.length_ms
        ends = [start + count * self.length_ms for count in range(1, ENDS_AHEAD + 2)]
        return PeriodBounds(start, ends[0], tuple(ends[1:]))


@dataclass(frozen=True, slots=True)
class FixedPeriod:
    """One period whose bounds somebody else knows, such as Lago for a subscription; ``next_ends_ms`` if known too.

    Where they are not, the ledger repeats its length.
    """

    start_ms: int
    end_ms: int
    next_ends_ms: tuple[int, ...] = ()

    def at(self, now_ms: int) -> PeriodBounds:
        """The period, whatever the instant."""
        _check(now_ms)
        return PeriodBounds(self.start_ms, self.end_ms, self.next_ends_ms)


PeriodRule = CalendarPeriods | EqualPeriods | FixedPeriod


def _check(now_ms: int) -> None:
    assert 0 <= now_ms <= NOW_MS_MAX, f"{now_ms} ms is not a time of this age"


def _clipped(year: int, month: int, day: int) -> date:
    return date(year, month, min(day, calendar.monthrange(year, month)[1]))


def _midnight_ms(day: date, zone: ZoneInfo) -> int:
    return int(datetime.combine(day, clock_time(), zone).timestamp()) * 1000
