"""Usage events of the Lago stand-in, and what a metric makes of them.

Source: lago-api ``app/services/events/``, ``app/services/billable_metrics/aggregations/``. Events belong to a
subscription by its external id and their timestamp alone, so a successor under the same external id goes on where
its predecessor stopped.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_UP, Decimal, localcontext

from sidecar.sandbox.lago.clock import unix_us
from sidecar.sandbox.lago.fields import DECIMAL_MAX, decimal_of
from sidecar.sandbox.lago.money import WIDE
from sidecar.sandbox.lago.periods import Span
from sidecar.sandbox.lago.records import Event, Metric

AGGREGATIONS = ("count_agg", "sum_agg", "max_agg", "unique_count_agg", "latest_agg")
_ROUNDINGS = {"round": ROUND_HALF_UP, "ceil": ROUND_CEILING, "floor": ROUND_FLOOR}


@dataclass(frozen=True, slots=True)
class Aggregate:
    """``units`` of a span, ``count`` of its events, and their ``values`` one by one."""

    units: Decimal
    count: int
    values: tuple[Decimal, ...] = ()


@dataclass(slots=True)
class _Series:
    """Events of one subscription and code in the order of their timestamps.

    ``sums`` are by property: the sum and the count of usable values in the first n events, for each n. A period is
    added up again and again, so it must not take longer the more events it has.
    """

    keys: list[tuple[int, int]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    sums: dict[str, list[tuple[Decimal, int]]] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        key = (event.at_us, event.seq)
        if not self.keys or key > self.keys[-1]:
            self.keys.append(key)
            self.events.append(event)
            return
        insort(self.keys, key)
        self.events.insert(bisect_left(self.keys, key), event)
        self.sums.clear()

    def bounds(self, span: Span) -> tuple[int, int]:
        return bisect_left(self.keys, (unix_us(span.start), -1)), bisect_left(self.keys, (unix_us(span.until), -1))

    def total(self, field_name: str, span: Span) -> Aggregate:
        sums = self.sums.setdefault(field_name, [(Decimal(0), 0)])
        with localcontext(WIDE):
            for event in self.events[len(sums) - 1 :]:
                value, (units, count) = number(event, field_name), sums[-1]
                sums.append((units, count) if value is None else (units + value, count + 1))
            (before, skipped), (units, count) = (sums[at] for at in self.bounds(span))
            return Aggregate(units - before, count - skipped)


class LagoEventStore:
    """Events by subscription and code. Ids are unique for each subscription."""

    def __init__(self) -> None:
        self._ids: dict[tuple[str, str], Event] = {}
        self._by_transaction: dict[str, Event] = {}
        self._series: dict[tuple[str, str], _Series] = {}
        self.all: list[Event] = []

    def __len__(self) -> int:
        return len(self.all)

    def __repr__(self) -> str:
        return f"EventStore({len(self.all)} events)"

    def knows(self, external_subscription_id: str, transaction_id: str) -> bool:
        return (external_subscription_id, transaction_id) in self._ids

    def find(self, transaction_id: str) -> Event | None:
        return self._by_transaction.get(transaction_id)

    def add(self, event: Event) -> None:
        self._ids[event.external_subscription_id, event.transaction_id] = event
        self._by_transaction.setdefault(event.transaction_id, event)
        self._series.setdefault((event.external_subscription_id, event.code), _Series()).add(event)
        self.all.append(event)

    def within(self, external_subscription_id: str, code: str, span: Span) -> list[Event]:
        series = self._series.get((external_subscription_id, code))
        if series is None or span.is_empty:
            return []
        first, last = series.bounds(span)
        return series.events[first:last]

    def measure(self, metric: Metric, external_subscription_id: str, span: Span) -> Aggregate:
        """As :func:`aggregate` of what is within a span, without the values one by one where that is quicker."""
        series = self._series.get((external_subscription_id, metric.code))
        if series is None or span.is_empty or metric.aggregation != "sum_agg":
            return aggregate(metric, self.within(external_subscription_id, metric.code, span))
        found = series.total(metric.field_name or "", span)
        return Aggregate(_rounded(metric, found.units), found.count)


def aggregate(metric: Metric, events: Iterable[Event]) -> Aggregate:
    """Events without a usable value of the metric's field count for nothing, as in Lago."""
    if metric.aggregation == "count_agg":
        count = sum(1 for _ in events)
        return Aggregate(_rounded(metric, Decimal(count)), count, (Decimal(1),) * count)
    if metric.aggregation == "unique_count_agg":
        given = [event.properties.get(metric.field_name or "") for event in events]
        texts = [str(value) for value in given if value is not None]
        return Aggregate(_rounded(metric, Decimal(len(set(texts)))), len(texts))
    field_name = metric.field_name or ""
    values = tuple(value for event in events if (value := number(event, field_name)) is not None)
    with localcontext(WIDE):
        units = _NUMERIC[metric.aggregation](values) if values else Decimal(0)
    return Aggregate(_rounded(metric, units), len(values), values)


def number(event: Event, field_name: str) -> Decimal | None:
    """A property as a number; None if it is missing or no number."""
    value = decimal_of(event.properties.get(field_name))
    return value if value is not None and abs(value) <= DECIMAL_MAX else None


def is_usable(metric: Metric, event: Event) -> bool:
    """Whether an event counts for the metric."""
    if metric.field_name is None:
        return True
    if metric.aggregation == "unique_count_agg":
        return event.properties.get(metric.field_name) is not None
    return number(event, metric.field_name) is not None


_NUMERIC: Mapping[str, Callable[[tuple[Decimal, ...]], Decimal]] = {
    "sum_agg": lambda values: sum(values, Decimal(0)),
    "max_agg": max,
    "latest_agg": lambda values: values[-1],
}


def _rounded(metric: Metric, units: Decimal) -> Decimal:
    if metric.rounding is None:
        return units
    with localcontext(WIDE):
        return units.quantize(Decimal(1).scaleb(-(metric.rounding_places or 0)), _ROUNDINGS[metric.rounding])
