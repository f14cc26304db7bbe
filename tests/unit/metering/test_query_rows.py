"""OpenMeter's answers: read exactly, or refused."""

from __future__ import annotations

from dataclasses import replace
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


GOOD = UsageRow("tpp-2", FROM_MS, 12)


@pytest.mark.parametrize(
    "value", [0.5, -0.5, 12.000001, 2**53 + 1, -(2**53) - 1, 2**53 + 2, 1e300, "12", None, True, [1]]
)
def test_what_is_no_count_of_units_is_a_fault_of_its_subject_alone(value: Any) -> None:
    bad, good = read(usage_row(value=value), usage_row(subject="tpp-2"))
    assert (bad.subject, bad.units, good) == ("tpp-1", 0, GOOD)
    assert bad.fault.endswith("which is no count of units")


def test_units_may_be_below_zero() -> None:
    """Whether they are a correction the ledger knows."""
    assert read(usage_row(value=-3)) == (UsageRow("tpp-1", FROM_MS, -3),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windowStart": "soon"}, "no time"),
        ({"windowStart": "2026-01-01T00:00:00"}, "no time"),
        ({"windowStart": None}, "no time"),
        ({"windowStart": 12}, "no time"),
        ({"windowStart": "2026-01-01T00:30:00Z"}, "not asked for"),
        ({"windowStart": "2026-01-01T02:00:00Z"}, "not asked for"),
        ({"windowStart": "2025-12-31T23:00:00Z"}, "not asked for"),
    ],
)
def test_a_window_that_cannot_be_is_a_fault_of_its_subject_alone(changes: dict[str, Any], message: str) -> None:
    bad, good = read(usage_row(**changes), usage_row(subject="tpp-2"))
    assert (bad.subject, good) == ("tpp-1", GOOD)
    assert message in bad.fault


def test_two_rows_of_one_window_are_a_fault_of_their_subject() -> None:
    assert len(read(usage_row(), usage_row(subject="tpp-2"), usage_row(windowStart="2026-01-01T01:00:00Z"))) == 3
    twice = usage_row(), usage_row(windowStart="2026-01-01T01:00:00+01:00"), usage_row()
    bad, good = read(*twice, usage_row(subject="tpp-2"))
    assert (bad.fault, good) == ("has two rows of one window", GOOD)


@pytest.mark.parametrize("row", ["row", None, 5, {}, usage_row(subject=None), usage_row(subject=""),
                                 usage_row(subject=5), usage_row(groupBy=None)])  # fmt: skip
def test_a_row_of_nobody_concerns_nobody(row: Any) -> None:
    assert read(row, usage_row(subject="tpp-2"), row) == (GOOD,)


@pytest.mark.parametrize("row", ["row", usage_row(groupBy={}), usage_row(groupBy=None)])
def test_an_answer_without_the_group_is_none(row: Any) -> None:
    with pytest.raises(QueryError, match="without group metric: the meter needs groupBy") as caught:
        read(row)
    assert not caught.value.transient


def test_without_windows_a_row_begins_where_was_asked() -> None:
    assert read(usage_row(windowStart="2025-06-01T00:00:00Z"), step_ms=None) == (UsageRow("tpp-1", FROM_MS, 12),)


@pytest.mark.parametrize("document", [[], {}, {"data": None}, {"data": {}}, "data", None])
def test_what_is_no_answer_to_a_query_is_an_error(document: Any) -> None:
    with pytest.raises(QueryError, match="no array `data`"):
        parse_usage(document, "api_calls", FROM_MS, FROM_MS + HOUR_MS, HOUR_MS)


METER = meter_as_json(Meter("api_calls", "SUM", "$.units", "api.call"))


def test_a_meter_is_read_as_it_is_written() -> None:
    meter = Meter("api_calls", "SUM", "$.units", "api.call", {"metric": "$.metric"})
    assert parse_meter({**meter_as_json(meter), "id": "01", "name": "api_calls"}) == meter
    named = replace(meter, event_from_ms=1_767_225_600_123, name="Calls", description="Of the API")
    assert parse_meter(meter_as_json(named)) == named
    count = Meter("api_requests", "COUNT", None, "api.call")
    assert "valueProperty" not in meter_as_json(count)
    assert parse_meter({**meter_as_json(count), "groupBy": None}) == count


@pytest.mark.parametrize("text", ["2026-01-01T00:00:00.123456789Z", "2026-01-01T01:00:00.123+01:00"])
def test_the_first_instant_of_a_meter_is_read_as_go_writes_it(text: str) -> None:
    assert parse_meter({**METER, "eventFrom": text}).event_from_ms == 1_767_225_600_123


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"slug": 1},
        {"slug": "a", "aggregation": "SUM"},
        {**METER, "eventFrom": "soon"},
        {**METER, "eventFrom": 7},
    ],
)
def test_what_is_no_meter_is_an_error(document: Any) -> None:
    with pytest.raises(QueryError, match="not a meter"):
        parse_meter(document)
