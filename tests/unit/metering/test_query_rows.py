"""OpenMeter's answers: read exactly, or refused."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from sidecar.metering.openmeter.query_rows import Meter, QueryError, UsageRow, meter_as_json, parse_meter, parse_usage

HOUR_MS = 3_600_000
FROM_MS = 1_767_225_600_000
AT = "2026-01-01T00:00:00Z"


def usage_row(**changes: Any) -> dict[str, Any]:
    row = {"value": 12, "windowStart": AT, "windowEnd": "2026-01-01T01:00:00Z", "subject": "tpp-1"}
    return {**row, "groupBy": {"metric": "api_calls"}, **changes}


def read(*rows: Any, step_ms: int | None = HOUR_MS) -> tuple[UsageRow, ...]:
    document = orjson.loads(orjson.dumps({"data": list(rows)}))
    return parse_usage(document, "api_calls", FROM_MS, FROM_MS + 2 * HOUR_MS, step_ms)


def test_only_rows_of_the_metric_count() -> None:
    other = usage_row(groupBy={"metric": "payments"}, value=5)
    nameless = usage_row(groupBy={"metric": ""}, subject=None)
    assert read(usage_row(), other, nameless) == (UsageRow("tpp-1", FROM_MS, 12),)


@pytest.mark.parametrize(
    ("text", "units"),
    [
        (b"0", 0),
        (b"12", 12),
        (b"12.0", 12),
        (b"1.2e1", 12),
        (b"9007199254740992", 2**53),
        (b"9.007199254740992e15", 2**53),
    ],
)
def test_whole_numbers_are_read_exactly_however_they_are_written(text: bytes, units: int) -> None:
    raw = orjson.dumps({"data": [usage_row(value=0)]}).replace(b'"value":0', b'"value":' + text)
    assert parse_usage(orjson.loads(raw), "api_calls", FROM_MS, FROM_MS + HOUR_MS, HOUR_MS)[0].units == units


@pytest.mark.parametrize("value", [0.5, 12.000001, 2**53 + 1, 2**53 + 2, 1e300, -1, "12", None, True, [1]])
def test_what_is_no_count_of_units_is_refused_with_its_subject(value: Any) -> None:
    with pytest.raises(QueryError, match=r"tpp-1.*no count of units") as caught:
        read(usage_row(value=value))
    assert not caught.value.transient


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (usage_row(groupBy={}), "without group metric: the meter needs groupBy"),
        (usage_row(groupBy=None), "without group metric"),
        (usage_row(subject=None), "without subject"),
        (usage_row(subject=""), "without subject"),
        (usage_row(windowStart="soon"), "no time"),
        (usage_row(windowStart="2026-01-01T00:00:00"), "no time"),
        (usage_row(windowStart=None), "no time"),
        (usage_row(windowStart="2026-01-01T00:30:00Z"), "not asked for"),
        (usage_row(windowStart="2026-01-01T02:00:00Z"), "not asked for"),
        (usage_row(windowStart="2025-12-31T23:00:00Z"), "not asked for"),
        ("row", "without group metric"),
    ],
)
def test_a_row_that_is_not_as_it_must_be_is_an_error_that_says_why(row: Any, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        read(row)


def test_two_rows_of_one_window_are_an_error() -> None:
    assert len(read(usage_row(), usage_row(subject="tpp-2"), usage_row(windowStart="2026-01-01T01:00:00Z"))) == 3
    with pytest.raises(QueryError, match="two rows"):
        read(usage_row(), usage_row(windowStart="2026-01-01T01:00:00+01:00"))


def test_without_windows_a_row_begins_where_was_asked() -> None:
    assert read(usage_row(windowStart="2025-06-01T00:00:00Z"), step_ms=None) == (UsageRow("tpp-1", FROM_MS, 12),)


@pytest.mark.parametrize("document", [[], {}, {"data": None}, {"data": {}}, "data", None])
def test_what_is_no_answer_to_a_query_is_an_error(document: Any) -> None:
    with pytest.raises(QueryError, match="no array `data`"):
        parse_usage(document, "api_calls", FROM_MS, FROM_MS + HOUR_MS, HOUR_MS)


def test_a_meter_is_read_as_it_is_written() -> None:
    meter = Meter("api_calls", "SUM", "$.units", "api.call", {"metric": "$.metric"})
    assert parse_meter({**meter_as_json(meter), "id": "01", "name": "calls"}) == meter
    count = Meter("api_requests", "COUNT", None, "api.call")
    assert "valueProperty" not in meter_as_json(count)
    assert parse_meter({**meter_as_json(count), "groupBy": None}) == count


@pytest.mark.parametrize("document", [None, [], {}, {"slug": 1}, {"slug": "a", "aggregation": "SUM"}])
def test_what_is_no_meter_is_an_error(document: Any) -> None:
    with pytest.raises(QueryError, match="not a meter"):
        parse_meter(document)
