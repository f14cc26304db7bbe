"""What a metric makes of events."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.sandbox.lago.clock import instant
from sidecar.sandbox.lago.lago_events import LagoEventStore, aggregate
from sidecar.sandbox.lago.periods import Span
from sidecar.sandbox.lago.records import Event, Metric

NOW = datetime(2025, 6, 10, tzinfo=UTC)


def metric(aggregation: str, **more: object) -> Metric:
    field_name = None if aggregation == "count_agg" else "calls"
    return Metric(
        id="m", seq=1, created=NOW, code="m", name="m", aggregation=aggregation, field_name=field_name, **more,  # type: ignore[arg-type]
    )  # fmt: skip


def event(seq: int, at_us: int = 0, *, sub: str = "s", code: str = "m", **properties: object) -> Event:
    return Event(
        id=str(seq), seq=seq, created=NOW, transaction_id=f"t{seq}", external_subscription_id=sub, code=code,
        at_us=at_us, properties=dict(properties),
    )  # fmt: skip


def of(values: Sequence[object]) -> list[Event]:
    return [event(number, calls=value) for number, value in enumerate(values)]


@pytest.mark.parametrize(
    ("aggregation", "values", "units", "count"),
    [
        ("sum_agg", [1, "2.5", 3], "6.5", 3),
        ("sum_agg", [1, "many", None, 2], "3", 2),
        ("sum_agg", [], "0", 0),
        ("count_agg", [1234], "1", 1),
        ("max_agg", [1, 9, 4], "9", 3),
        ("latest_agg", [1, 9, 4], "4", 3),
        ("unique_count_agg", ["a", "b", "a"], "2", 3),
    ],
)
def test_units_by_aggregation(aggregation: str, values: Sequence[object], units: str, count: int) -> None:
    found = aggregate(metric(aggregation), of(values))
    assert (found.units, found.count) == (Decimal(units), count)


@pytest.mark.parametrize(
    ("rounding", "places", "units"),
    [("round", 0, "3"), ("ceil", 0, "3"), ("floor", 0, "2"), ("round", 1, "2.5"), ("ceil", -1, "10")],
)
def test_units_are_rounded_as_the_metric_says(rounding: str, places: int, units: str) -> None:
    found = aggregate(metric("sum_agg", rounding=rounding, rounding_places=places), of(["1.25", "1.25"]))
    assert found.units == Decimal(units)


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(0, 50), st.integers(0, 50))
def test_a_span_finds_its_events_whatever_order_they_came_in(times: list[int], first: int, length: int) -> None:
    store = LagoEventStore()
    for number, at_us in enumerate(times):
        store.add(event(number, at_us))
        store.add(event(1000 + number, at_us, sub="other"))
    start = instant(0) + timedelta(microseconds=first)
    until = start + timedelta(microseconds=length)
    found = store.within("s", "m", Span(start, until, until))
    assert [item.at_us for item in found] == sorted(at_us for at_us in times if first <= at_us < first + length)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from([1, "2.5", None, "x", 7])), max_size=30),
    st.integers(0, 9),
    st.integers(0, 9),
)
def test_sums_kept_along_the_way_are_those_of_the_events(
    given: list[tuple[int, object]], first: int, length: int
) -> None:
    store, start = LagoEventStore(), instant(0) + timedelta(microseconds=first)
    span = Span(start, start + timedelta(microseconds=length), start)
    for number, (at_us, calls) in enumerate(given):
        store.add(event(number, at_us, calls=calls))
        found, expected = (
            store.measure(metric("sum_agg"), "s", span),
            aggregate(metric("sum_agg"), store.within("s", "m", span)),
        )
        assert (found.units, found.count) == (expected.units, expected.count)


def test_an_id_is_known_for_its_subscription_only() -> None:
    store = LagoEventStore()
    store.add(event(1))
    assert store.knows("s", "t1")
    assert not store.knows("other", "t1")
    assert store.find("t1") is not None
    assert store.find("t2") is None
