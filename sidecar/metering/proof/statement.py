"""A statement of account: units by metric and day, from the entries of the books. No I/O."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Final

from sidecar.metering.outbox.events import MalformedEntry, event_times, event_units
from sidecar.metering.proof.book_verification import CountedEntry

DAY_MS: Final = 86_400_000


class PeriodError(ValueError):
    """The text names no period. The message says what does."""


@dataclass(frozen=True, slots=True)
class Period:
    """From ``start_ms`` until before ``end_ms``. ``month``: it was given as a month."""

    start_ms: int
    end_ms: int
    month: bool = False


def period_of(text: str) -> Period:
    """`2026-11`, or `2026-11-01..2026-11-15` with both days in it; in UTC. Raises :class:`PeriodError`."""
    try:
        if re.fullmatch(r"\d{4}-\d{2}", text):
            first = date.fromisoformat(text + "-01")
            after = (first + timedelta(days=31)).replace(day=1)
            return Period(_ms(first), _ms(after), month=True)
        first_text, dots, last_text = text.partition("..")
        if dots:
            first, last = date.fromisoformat(first_text), date.fromisoformat(last_text)
            if last < first:
                raise PeriodError(f"{text}: the last day is before the first")
            return Period(_ms(first), _ms(last + timedelta(days=1)))
    except PeriodError:
        raise
    except (ValueError, OverflowError):
        pass
    raise PeriodError(f"{text!r} is no period; give a month, 2026-11, or two days, 2026-11-01..2026-11-15")


def _ms(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)


@dataclass(frozen=True, slots=True)
class DayUnits:
    """Units of one metric on one day, in UTC."""

    day: str
    metric: str
    units: int


@dataclass(slots=True)
class Statement:
    """``units``: by metric, in all. ``unproven_units``: of them, in entries without a chain value. ``refused_units``:
    of them, of events that OpenMeter refused and that were not put back; no invoice has them."""

    account: str
    start_ms: int
    end_ms: int
    days: list[DayUnits] = field(default_factory=list)
    units: dict[str, int] = field(default_factory=dict)
    unproven_units: dict[str, int] = field(default_factory=dict)
    refused_units: dict[str, int] = field(default_factory=dict)
    events: int = 0


class StatementSum:
    """Adds up entries. An event counts once, by its id."""

    def __init__(self, account: str, period: Period) -> None:
        self._account = account
        self._period = period
        self._seen: set[str] = set()
        self._sent: set[str] = set()
        self._refused: dict[str, tuple[str, int]] = {}
        self._days: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._unproven: Counter[str] = Counter()
        self._name = account.encode()

    def __repr__(self) -> str:
        return f"StatementSum({self._account}, {len(self._seen)} events)"

    def add(self, entry: CountedEntry) -> None:
        """What cannot be read is nobody's."""
        fields = entry.what.fields
        if not entry.counts:
            return
        try:
            at_ms = event_times(fields).of(self._account)
            if not self._period.start_ms <= at_ms < self._period.end_ms:
                return
            events = event_units(fields)
        except MalformedEntry:
            return
        prefix = f"{fields.get(b'o', b'').decode('utf-8', 'replace')}.{fields.get(b'q', b'').decode('latin-1')}."
        for event in events:
            if event.account == self._account:
                self._count(f"{prefix}{event.number}", event.number, event.metric, event.units, at_ms, entry)

    def _count(self, id_: str, number: int, metric: str, units: int, at_ms: int, entry: CountedEntry) -> None:
        if number in entry.what.refused:
            self._refused[id_] = metric, units
        else:
            self._sent.add(id_)
        if id_ in self._seen:
            return
        self._seen.add(id_)
        day = f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d}"
        self._days[day, metric] += units
        if not entry.is_chained:
            self._unproven[metric] += units

    def statement(self) -> Statement:
        units: Counter[str] = Counter()
        for (_, metric), some in self._days.items():
            units[metric] += some
        refused: Counter[str] = Counter()
        for id_, (metric, some) in self._refused.items():
            if id_ not in self._sent:
                refused[metric] += some
        days = [DayUnits(day, metric, some) for (day, metric), some in sorted(self._days.items())]
        return Statement(
            self._account, self._period.start_ms, self._period.end_ms, days, _sorted(units), _sorted(self._unproven),
            _sorted(refused), len(self._seen),
        )  # fmt: skip


def _sorted(units: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(units.items()))
