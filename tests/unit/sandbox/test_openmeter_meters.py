from __future__ import annotations

import re
from typing import Any

import pytest

from sidecar.sandbox.openmeter.meters import DEFAULT_METERS, Meter, MeterError, value_error
from sidecar.sandbox.openmeter.paths import PathError, parse_number, path_reader, path_steps

SUM: dict[str, Any] = {"slug": "m", "event_type": "t", "aggregation": "SUM", "value_property": "$.v"}
COUNT: dict[str, Any] = {"slug": "m", "event_type": "t", "aggregation": "COUNT"}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({**COUNT, "slug": "Api-Calls"}, "lower-case words"),
        ({**COUNT, "slug": "a__b"}, "lower-case words"),
        ({**COUNT, "slug": "a" * 65}, "lower-case words"),
        ({**COUNT, "event_type": ""}, "event type is required"),
        ({**COUNT, "aggregation": "MEDIAN"}, "invalid aggregation type: MEDIAN"),
        ({**COUNT, "value_property": "$.v"}, "not allowed when the aggregation is count"),
        ({**SUM, "value_property": None}, "required when the aggregation is not count"),
        ({**SUM, "value_property": "v"}, "invalid JSONPath: 'v'"),
        ({**COUNT, "group_by": {"subject": "true"}}, "must start with $ for key subject"),
        ({**COUNT, "group_by": {"a-b": "$.a"}}, "only alphanumeric and underscore"),
        ({**SUM, "group_by": {"v": "$.v"}}, "cannot be the same as value property"),
        ({**COUNT, "group_by": {"a": "$..a"}}, "invalid JSONPath"),
    ],
)
def test_a_meter_that_openmeter_would_refuse_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(MeterError, match=re.escape(says)):
        Meter(**fields)


@pytest.mark.parametrize("slug", ["api_calls", "a", "a1_b2", "tokens_total"])
def test_the_id_of_a_meter_has_the_shape_of_a_ulid(slug: str) -> None:
    meter = Meter(slug, "t", "COUNT")
    assert re.fullmatch(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", meter.id)
    assert meter.id != Meter(f"{slug}_other", "t", "COUNT").id


def test_the_default_meters_sum_units_and_count_requests_of_api_calls() -> None:
    found = {meter.slug: (meter.event_type, meter.aggregation, meter.value_property) for meter in DEFAULT_METERS}
    assert found == {"api_calls": ("api.call", "SUM", "$.units"), "api_requests": ("api.call", "COUNT", None)}
    for meter in DEFAULT_METERS:
        assert {"endpoint", "method", "status_code", "metric"} == set(meter.group_by)


@pytest.mark.parametrize(
    ("path", "data", "text"),
    [
        ("$.endpoint", {"endpoint": "/accounts"}, "/accounts"),
        ("$.data.endpoint", {"endpoint": "/accounts"}, ""),
        ("$.a.b", {"a": {"b": "deep"}}, "deep"),
        ('$["a b"]', {"a b": "quoted"}, "quoted"),
        ("$['a']", {"a": "quoted"}, "quoted"),
        ("$.a[1]", {"a": ["x", "y"]}, "y"),
        ("$.a[2]", {"a": ["x", "y"]}, ""),
        ("$.a", {}, ""),
        ("$.a", None, ""),
        ("$.a", {"a": None}, "null"),
        ("$.a", {"a": True}, "true"),
        ("$.a", {"a": 200}, "200"),
        ("$.a", {"a": 2.0}, "2"),
        ("$.a", {"a": 0.25}, "0.25"),
        ("$.a", {"a": {"b": 1}}, ""),
        ("$.a", {"a": [1]}, ""),
        ("$.a.b", {"a": "no object"}, ""),
    ],
)
def test_a_path_is_rooted_at_data_and_reads_like_json_value(path: str, data: object, text: str) -> None:
    assert path_reader(path)(data) == text


@pytest.mark.parametrize("path", ["", "$", "a", "$a", "$.", "$..a", "$.a[", "$.a[*]", "$.a[-1]", "$." + "a" * 300])
def test_a_path_that_is_not_understood_is_an_error(path: str) -> None:
    with pytest.raises(PathError, match="invalid JSONPath"):
        path_steps(path)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12", 12),
        ("9007199254740993", 9007199254740993),
        ("-1.5", -1.5),
        ("1e3", 1000.0),
        ("", None),
        ("1_0", None),
        (" 1", None),
        ("nan", None),
        ("inf", None),
        ("1e999", None),
        ("true", None),
        ("9" * 401, None),
    ],
)
def test_a_value_is_a_number_only_if_clickhouse_would_read_it_as_one(text: str, number: float | None) -> None:
    assert parse_number(text) == number


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ({"v": 1}, None),
        ({"v": "1.5"}, None),
        (None, "invalid event: null and missing value property"),
        ({}, 'invalid event: missing value property: "$.v"'),
        ({"v": None}, "invalid event: value cannot be null"),
        ({"v": "many"}, "invalid event: value cannot be parsed as float64: many"),
        ({"v": True}, "invalid event: unsupported value property type: bool"),
    ],
)
def test_an_event_that_adds_nothing_to_a_sum_is_remarked_on(data: object, error: str | None) -> None:
    assert value_error(Meter(**SUM), data) == error
    assert value_error(Meter(**COUNT), data) is None
