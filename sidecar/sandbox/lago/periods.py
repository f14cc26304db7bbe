"""Billing periods of the Lago stand-in: pure calendar arithmetic in the customer's time zone.

Source: lago-api ``app/services/subscriptions/dates_service.rb`` and ``dates/``: whole local days; ``calendar`` starts
on Mondays and firsts of months, ``anniversary`` on the day of ``subscription_at``, clamped to shorter months.
"""

from __future__ import annotations

from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from fractions import Fraction
from typing import Protocol
from zoneinfo import ZoneInfo

from sidecar.sandbox.lago.clock import instant_us, unix_us

MICROSECOND = timedelta(microseconds=1)
INTERVALS = ("weekly", "monthly", "quarterly", "semiannual", "yearly")
_MONTHS = {"monthly": 1, "quarterly": 3, "semiannual": 6, "yearly": 12}
#: Only for comparing plans of different intervals (``Plan#yearly_amount_cents``).
PER_YEAR = {"weekly": 52, "monthly": 12, "quarterly": 4, "semiannual": 2, "yearly": 1}


@dataclass(frozen=True, slots=True)
class Span:
    """From ``start`` to just before ``until``. ``shown_to`` is what Lago prints for the end, which it includes."""

    start: datetime
    until: datetime
    shown_to: datetime

    @classmethod
    def whole(cls, start: datetime, until: datetime) -> Span:
        return cls(start, until, until - MICROSECOND)

    def from_start(self, earliest: datetime) -> Span:
        """Not before ``earliest``; empty, at ``earliest``, if it ends before that."""
        if self.until <= earliest:
            return Span(earliest, earliest, earliest)
        return Span(max(self.start, earliest), self.until, self.shown_to)

    def cut(self, end: datetime, *, included: bool) -> Span:
        """Ends at ``end`` if that is earlier; ``included``: what happened exactly then belongs to it."""
        if end >= self.until:
            return self
        until = max(self.start, end + MICROSECOND if included else end)
        return Span(self.start, until, max(self.start, end))

    @property
    def is_empty(self) -> bool:
        return self.until <= self.start


class Periods(Protocol):
    """The periods of one subscription."""

    def containing(self, when: datetime) -> Span:
        """The period in which ``when`` lies."""

    def day_start(self, when: datetime) -> datetime:
        """The start of the smallest part that fees are prorated by: a local day."""

    def share(self, span: Span, *, without_last: bool = False) -> Fraction:
        """How much of the whole period around its start a span is, for proration; ``without_last`` part of it."""


def before(periods: Periods, span: Span) -> Span:
    """The period before a whole one."""
    return periods.containing(span.start - MICROSECOND)


@dataclass(frozen=True, slots=True)
class CalendarPeriods:
    """``anchor`` is the first day of anniversary periods, None for calendar ones."""

    interval: str
    zone: ZoneInfo
    anchor: date | None

    def containing(self, when: datetime) -> Span:
        first, following = period_days(when.astimezone(self.zone).date(), self.interval, self.anchor)
        return Span.whole(midnight(first, self.zone), midnight(following, self.zone))

    def day_start(self, when: datetime) -> datetime:
        return midnight(when.astimezone(self.zone).date(), self.zone)

    def share(self, span: Span, *, without_last: bool = False) -> Fraction:
        first, following = period_days(span.start.astimezone(self.zone).date(), self.interval, self.anchor)
        days = (self._date(span.shown_to) - self._date(span.start)).days + 1 - without_last
        return Fraction(max(0, days), (following - first).days)

    def _date(self, when: datetime) -> date:
        return when.astimezone(self.zone).date()


@dataclass(frozen=True, slots=True)
class SecondPeriods:
    """Periods of ``length_s`` seconds, aligned to the Unix epoch: the stand-in's own kind."""

    length_s: int

    def containing(self, when: datetime) -> Span:
        length_us = self.length_s * 1_000_000
        start_us = unix_us(when) // length_us * length_us
        return Span.whole(instant_us(start_us), instant_us(start_us + length_us))

    def day_start(self, when: datetime) -> datetime:
        return when

    def share(self, span: Span, *, without_last: bool = False) -> Fraction:
        return Fraction((span.until - span.start) // MICROSECOND, self.length_s * 1_000_000)


def period_days(day: date, interval: str, anchor: date | None) -> tuple[date, date]:
    """The first day of the period around ``day``, and the first of the next."""
    if interval == "weekly":
        weekday = 0 if anchor is None else anchor.weekday()
        first = day - timedelta(days=(day.weekday() - weekday) % 7)
        return first, first + timedelta(days=7)
    months = _MONTHS[interval]
    origin = date(2000, 1, 1) if anchor is None else anchor
    passed = (day.year - origin.year) * 12 + day.month - origin.month
    steps = passed // months
    if _shift(origin, steps * months) > day:
        steps -= 1
    return _shift(origin, steps * months), _shift(origin, (steps + 1) * months)


def midnight(day: date, zone: ZoneInfo) -> datetime:
    """A local day's start in UTC."""
    return datetime.combine(day, time(), zone).astimezone(UTC)


def _shift(origin: date, months: int) -> date:
    year, month = divmod(origin.year * 12 + origin.month - 1 + months, 12)
    return date(year, month + 1, min(origin.day, monthrange(year, month + 1)[1]))
