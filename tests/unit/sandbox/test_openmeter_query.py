from __future__ import annotations

from datetime import UTC, datetime
from typing import cast
from zoneinfo import ZoneInfo

import orjson
import pytest

from sidecar.sandbox.openmeter.meters import DEFAULT_METERS, Aggregation, Meter
from sidecar.sandbox.openmeter.query import (
    GroupFilter,
    Query,
    UsageRow,
    WindowSize,
    as_csv,
    bounds_s,
    run_query,
)

UNITS, REQUESTS = DEFAULT_METERS


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def row(when: str, subject: str = "tpp-1", **data: object) -> tuple[int, str, bytes]:
    return int(at(when).timestamp()), subject, orjson.dumps(data) if data else b""


def meter(aggregation: str) -> Meter:
    value = None if aggregation == "COUNT" else "$.v"
    return Meter("m", "t", cast("Aggregation", aggregation), value, {"g": "$.g"})


def shown(rows: list[UsageRow]) -> list[tuple[object, ...]]:
    return [(r.value, r.window_start.isoformat(), r.window_end.isoformat(), r.subject, dict(r.groups)) for r in rows]


def test_units_are_summed_and_requests_are_counted() -> None:
    rows = [row("2025-06-01T10:00:00Z", units=2), row("2025-06-01T10:00:01Z", units=3)]
    assert [r.value for r in run_query(UNITS, Query(), rows)] == [5.0]
    assert [r.value for r in run_query(REQUESTS, Query(), rows)] == [2.0]


@pytest.mark.parametrize(
    ("aggregation", "values", "expected"),
    [
        ("SUM", [1, 2, "3", 0.5], [6.5]),
        ("SUM", [2**53, 1], [float(2**53 + 1)]),
        ("SUM", [None, "many", True, {}], []),
        ("SUM", [5, None], [5]),
        ("AVG", [1, None, 4], [2.5]),
        ("MIN", [3, 1, 2], [1]),
        ("MAX", [3, 1, 2], [3]),
        ("MAX", [-3, -1, -2], [-1]),
        ("LATEST", [3, 1, 2], [2]),
        ("LATEST", [3, 1, None], [1]),
        ("COUNT", [3, None, "x"], [3]),
        ("UNIQUE_COUNT", ["a", "b", "a", None], [2]),
    ],
)
def test_each_aggregation_takes_numbers_and_leaves_the_rest_out(
    aggregation: str, values: list[object], expected: list[float]
) -> None:
    rows = [row(f"2025-06-01T10:00:{i:02d}Z", v=value) for i, value in enumerate(values)]
    assert [r.value for r in run_query(meter(aggregation), Query(), rows)] == expected


def test_the_latest_value_is_that_of_the_latest_event_whatever_the_order_of_arrival() -> None:
    rows = [row("2025-06-01T10:00:09Z", v=9), row("2025-06-01T10:00:01Z", v=1)]
    assert [r.value for r in run_query(meter("LATEST"), Query(), rows)] == [9]


def test_a_total_without_bounds_spans_the_minutes_of_its_events() -> None:
    rows = [row("2025-06-01T10:00:59Z", units=1), row("2025-06-01T10:02:00Z", units=1)]
    expected = [(2.0, "2025-06-01T10:00:00+00:00", "2025-06-01T10:03:00+00:00", None, {})]
    assert shown(run_query(UNITS, Query(), rows)) == expected


def test_a_total_with_bounds_spans_the_bounds() -> None:
    query = Query(begin=at("2025-06-01T00:00:00Z"), end=at("2025-06-02T00:00:00Z"))
    expected = [(1.0, "2025-06-01T00:00:00+00:00", "2025-06-02T00:00:00+00:00", None, {})]
    assert shown(run_query(UNITS, query, [row("2025-06-01T10:00:59Z", units=1)])) == expected


def test_nothing_counted_is_a_row_of_zero_but_nothing_summed_is_no_row() -> None:
    query = Query(begin=at("2025-06-01T00:00:00Z"))
    assert shown(run_query(REQUESTS, query, [])) == [
        (0.0, "2025-06-01T00:00:00+00:00", "1970-01-01T00:01:00+00:00", None, {})
    ]
    assert run_query(UNITS, query, []) == []
    assert run_query(REQUESTS, Query(group_by=("subject",)), []) == []
    assert run_query(REQUESTS, Query(window="HOUR"), []) == []


@pytest.mark.parametrize(
    ("window", "zone", "when", "start", "end"),
    [
        ("MINUTE", "UTC", "2025-06-01T10:20:30Z", "2025-06-01T10:20:00+00:00", "2025-06-01T10:21:00+00:00"),
        ("HOUR", "UTC", "2025-06-01T10:20:30Z", "2025-06-01T10:00:00+00:00", "2025-06-01T11:00:00+00:00"),
        ("DAY", "UTC", "2025-06-01T10:20:30Z", "2025-06-01T00:00:00+00:00", "2025-06-02T00:00:00+00:00"),
        ("MONTH", "UTC", "2025-12-31T23:59:59Z", "2025-12-01T00:00:00+00:00", "2026-01-01T00:00:00+00:00"),
        ("MONTH", "UTC", "2024-02-29T12:00:00Z", "2024-02-01T00:00:00+00:00", "2024-03-01T00:00:00+00:00"),
        ("HOUR", "Asia/Kolkata", "2025-06-01T10:20:30Z", "2025-06-01T15:00:00+05:30", "2025-06-01T16:00:00+05:30"),
        ("DAY", "Europe/Berlin", "2025-06-01T22:30:00Z", "2025-06-02T00:00:00+02:00", "2025-06-03T00:00:00+02:00"),
        # 23 and 25 hours long: the days on which clocks change.
        ("DAY", "Europe/Berlin", "2025-03-30T12:00:00Z", "2025-03-30T00:00:00+01:00", "2025-03-31T00:00:00+02:00"),
        ("DAY", "Europe/Berlin", "2025-10-26T12:00:00Z", "2025-10-26T00:00:00+02:00", "2025-10-27T00:00:00+01:00"),
        # The hour from two to three happens twice.
        ("HOUR", "Europe/Berlin", "2025-10-26T00:30:00Z", "2025-10-26T02:00:00+02:00", "2025-10-26T02:00:00+01:00"),
        ("HOUR", "Europe/Berlin", "2025-10-26T01:30:00Z", "2025-10-26T02:00:00+01:00", "2025-10-26T03:00:00+01:00"),
        ("MONTH", "Europe/London", "2025-06-30T23:30:00Z", "2025-07-01T00:00:00+01:00", "2025-08-01T00:00:00+01:00"),
    ],
)
def test_a_window_is_one_of_the_clock_on_the_wall(window: str, zone: str, when: str, start: str, end: str) -> None:
    query = Query(window=cast("WindowSize", window), zone=ZoneInfo(zone))
    (found,) = run_query(UNITS, query, [row(when, units=1)])
    assert (found.window_start.isoformat(), found.window_end.isoformat()) == (start, end)


def test_windows_are_in_order_and_those_without_events_are_left_out() -> None:
    rows = [row("2025-06-01T13:00:00Z", units=1), row("2025-06-01T10:00:00Z", units=2), row("2025-06-01T10:59:59Z")]
    found = run_query(UNITS, Query(window="HOUR"), rows)
    assert [(r.value, r.window_start.hour) for r in found] == [(2.0, 10), (1.0, 13)]


def test_usage_is_told_apart_by_subject_and_groups_and_a_missing_group_is_empty() -> None:
    rows = [
        row("2025-06-01T10:00:00Z", "tpp-2", units=1, method="GET", status_code=200),
        row("2025-06-01T10:00:00Z", "tpp-1", units=2, method="GET", status_code=200),
        row("2025-06-01T10:00:00Z", "tpp-1", units=4, method="POST"),
        row("2025-06-01T10:00:00Z", "tpp-1", units=8, method="GET", status_code=200),
    ]
    query = Query(group_by=("method", "subject", "status_code"))
    assert [(r.value, r.subject, dict(r.groups)) for r in run_query(UNITS, query, rows)] == [
        (10.0, "tpp-1", {"method": "GET", "status_code": "200"}),
        (4.0, "tpp-1", {"method": "POST", "status_code": ""}),
        (1.0, "tpp-2", {"method": "GET", "status_code": "200"}),
    ]
    assert [(r.value, r.subject) for r in run_query(UNITS, Query(), rows)] == [(15.0, None)]


def test_subjects_and_filters_leave_other_events_out() -> None:
    rows = [
        row("2025-06-01T10:00:00Z", "tpp-1", units=1, metric="api_calls"),
        row("2025-06-01T10:00:00Z", "tpp-1", units=2, metric="payments"),
        row("2025-06-01T10:00:00Z", "tpp-2", units=4, metric="payments"),
    ]
    assert [r.value for r in run_query(UNITS, Query(subjects=("tpp-1",)), rows)] == [3.0]
    query = Query(filters=(GroupFilter("metric", "payments".__eq__),))
    assert [r.value for r in run_query(UNITS, query, rows)] == [6.0]


def test_events_of_several_ledger_metrics_are_added_up_unless_told_apart() -> None:
    rows = [
        row("2025-06-01T10:00:00Z", units=1, metric="api_calls"),
        row("2025-06-01T10:00:00Z", units=2, metric="payments"),
    ]
    assert [r.value for r in run_query(UNITS, Query(), rows)] == [3.0]
    assert [r.value for r in run_query(UNITS, Query(group_by=("metric",)), rows)] == [1.0, 2.0]


def test_a_meter_with_a_beginning_takes_no_earlier_events() -> None:
    begun = Meter("m", "t", "COUNT", event_from=at("2025-06-01T10:00:00Z"))
    begin_s = int(at("2025-06-01T10:00:00Z").timestamp())
    assert bounds_s(begun, Query()) == (begin_s, None)
    assert bounds_s(begun, Query(begin=at("2025-05-01T00:00:00Z"))) == (begin_s, None)
    assert bounds_s(begun, Query(begin=at("2025-06-01T10:00:01.9Z"), end=at("2025-06-01T10:00:02.9Z"))) == (
        begin_s + 1,
        begin_s + 2,
    )


def test_a_csv_has_the_headers_and_the_six_decimals_of_openmeter() -> None:
    found = UsageRow(
        2.5, datetime(2025, 6, 1, tzinfo=UTC), datetime(2025, 6, 2, tzinfo=UTC), 'a"b', (("method", "GET"),)
    )
    text = as_csv(Query(group_by=("method", "subject")), [found])
    assert text == (
        'window_start,window_end,subject,method,value\n2025-06-01T00:00:00Z,2025-06-02T00:00:00Z,"a""b",GET,2.500000\n'
    )
