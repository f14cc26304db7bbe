from __future__ import annotations

import orjson
import pytest

from sidecar.sandbox.openmeter.openmeter_events import BATCH, EITHER, SINGLE, Version, parse_events
from sidecar.sandbox.openmeter.openmeter_wire import Problem
from tests.unit.sandbox.event_cases import ACCEPTED, GOOD, REFUSED, EventCase


def refusal(content_type: str, body: object, version: Version = "v1") -> Problem:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    with pytest.raises(Problem) as caught:
        parse_events(content_type, raw, version)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case.name)
def test_a_valid_event_is_taken_alone_and_in_a_batch(case: EventCase) -> None:
    alone = parse_events(SINGLE, orjson.dumps(case.event), "v1")
    batch = parse_events(BATCH, orjson.dumps([GOOD, case.event]), "v1")
    assert [alone[0].subject, batch[1]] == [case.event["subject"], alone[0]]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_one_bad_event_refuses_the_whole_batch_and_the_detail_names_its_index(case: EventCase) -> None:
    problem = refusal(BATCH, [GOOD, GOOD, GOOD, case.event, {}])
    expected = f'request body has an error: doesn\'t match schema: Error at "/3/{case.at}": {case.reason}'
    assert problem.detail == expected


def test_the_detail_of_a_single_event_names_the_schema() -> None:
    event = {key: value for key, value in GOOD.items() if key != "subject"}
    expected = (
        "request body has an error: doesn't match schema #/components/schemas/Event: "
        'Error at "/subject": property "subject" is missing'
    )
    assert refusal(SINGLE, event).detail == expected


def test_application_json_gives_no_index_because_it_is_an_any_of() -> None:
    expected = (
        "request body has an error: doesn't match schema #/components/schemas/IngestEventsBody: "
        'doesn\'t match any schema from "anyOf"'
    )
    assert refusal(EITHER, [GOOD, {}]).detail == expected


@pytest.mark.parametrize(
    ("content_type", "body", "events"),
    [
        (SINGLE, GOOD, 1),
        (BATCH, [GOOD, GOOD], 2),
        (BATCH, [], 0),
        (EITHER, GOOD, 1),
        (EITHER, [GOOD, GOOD, GOOD], 3),
    ],
)
def test_a_content_type_decides_between_one_event_and_many(content_type: str, body: object, events: int) -> None:
    assert len(parse_events(content_type, orjson.dumps(body), "v1")) == events


@pytest.mark.parametrize(
    ("content_type", "body", "detail"),
    [
        (EITHER, [], "invalid event: no events found"),
        (f"{BATCH}; charset=utf-8", [GOOD], f"invalid content type: {BATCH}; charset=utf-8"),
        (BATCH.upper(), [GOOD], f"invalid content type: {BATCH.upper()}"),
        ("text/plain", GOOD, 'request body has an error: header Content-Type has unexpected value "text/plain"'),
        ("", GOOD, 'request body has an error: header Content-Type has unexpected value ""'),
        (BATCH, b"", "request body has an error: value is required but missing"),
        (BATCH, GOOD, "request body has an error: doesn't match schema: value must be an array"),
        (
            SINGLE,
            [GOOD],
            "request body has an error: doesn't match schema #/components/schemas/Event: value must be an object",
        ),
        (
            BATCH,
            [GOOD, 7],
            'request body has an error: doesn\'t match schema: Error at "/1": value must be an object',
        ),
        (SINGLE, {**GOOD, "specversion": "2.0"}, 'invalid event: specversion: unknown value: "2.0"'),
        (BATCH, [GOOD, {**GOOD, "source": "100% bank"}], "invalid event: cannot parse uri ref: 100% bank"),
        (SINGLE, {**GOOD, "source": "eu1 gateway: prod"}, "invalid event: cannot parse uri ref: eu1 gateway: prod"),
        (EITHER, {**GOOD, "source": "bank\n"}, "invalid event: no events found"),
    ],
)
def test_what_v1_refuses_it_refuses_in_these_words(content_type: str, body: object, detail: str) -> None:
    assert refusal(content_type, body).detail == detail


def test_a_body_that_is_no_json_is_refused_with_the_place() -> None:
    detail = refusal(BATCH, b'[{"id": ').detail
    assert detail.startswith("request body has an error: failed to decode request body")
    assert detail.endswith("at byte 8")


def test_nesting_without_end_is_refused_not_followed() -> None:
    assert "failed to decode" in refusal(BATCH, b"[" * 1_000_000).detail


def test_v3_takes_parameters_of_the_content_type() -> None:
    assert len(parse_events(f"{BATCH}; charset=utf-8", orjson.dumps([GOOD]), "v3")) == 1


def test_v3_refuses_an_unknown_key_that_v1_lets_pass() -> None:
    body = [GOOD, {**GOOD, "traceparent": "00-1-2-01"}]
    assert len(parse_events(BATCH, orjson.dumps(body), "v1")) == 2
    problem = refusal(BATCH, body, "v3")
    assert [(item.field, item.rule) for item in problem.invalid or ()] == [("1.traceparent", "additionalProperties")]


def test_v3_reads_a_source_as_v1_does() -> None:
    assert refusal(BATCH, [{**GOOD, "source": "//[bank]"}], "v3").detail == "cannot parse uri ref: //[bank]"


def test_v3_names_every_bad_field_up_to_a_hundred() -> None:
    problem = refusal(BATCH, [{}, {**GOOD, "id": ""}], "v3")
    fields = [item.field for item in problem.invalid or ()]
    assert fields == ["0.id", "0.source", "0.specversion", "0.type", "0.subject", "1.id"]
    assert len(refusal(BATCH, [{}] * 1000, "v3").invalid or ()) == 100


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("1970-01-01T00:00:59.999999999Z", 59),
        ("2025-06-01T10:00:00.999Z", 1748772000),
        ("2025-06-01T12:00:00.5+02:00", 1748772000),
        ("1969-12-31T23:59:59.5Z", -1),
    ],
)
def test_a_time_is_cut_to_whole_seconds(time: str, seconds: int) -> None:
    (event,) = parse_events(SINGLE, orjson.dumps({**GOOD, "time": time}), "v1")
    assert event.time_s == seconds
