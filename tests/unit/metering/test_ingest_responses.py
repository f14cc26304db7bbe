"""What an answer means."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.metering.publisher.ingest_responses import (
    REASON_CHARS_MAX,
    ResponseClass,
    ingest_response,
    response_class_of,
)

V = ResponseClass


@pytest.mark.parametrize(
    ("statuses", "response_class"),
    [
        ((200, 202, 204), V.ACCEPTED),
        ((408, 425, 429, 500, 502, 503, 504, 507, 599), V.RETRY),
        ((301, 302, 307, 308, 401, 403, 404, 407), V.PAUSE),
        ((413,), V.TOO_LARGE),
        ((400, 405, 409, 412, 415, 422), V.REFUSED),
    ],
    ids=lambda value: value.value if isinstance(value, ResponseClass) else "",
)
def test_every_status_has_its_class(statuses: tuple[int, ...], response_class: ResponseClass) -> None:
    assert {status: response_class_of(status) for status in statuses} == dict.fromkeys(statuses, response_class)


@given(st.integers(0, 999))
def test_only_a_2xx_is_an_acceptance(status: int) -> None:
    assert (response_class_of(status) is V.ACCEPTED) == (200 <= status <= 299)


@pytest.mark.parametrize(
    ("detail", "position"),
    [
        (
            'request body has an error: doesn\'t match schema: Error at "/3/subject": property "subject" is missing',
            3,
        ),
        ('request body has an error: doesn\'t match schema: Error at "/0": value must be an object', 0),
        ('Error at "/499/time": string doesn\'t match the format "date-time"', 499),
        ('Error at "/1234567/time": …', None),
        ('Error at "/subject": property "subject" is missing', None),
        ("invalid content type: application/json; charset=utf-8", None),
        ("", None),
    ],
)
def test_the_blamed_event_is_read_from_the_detail(detail: str, position: int | None) -> None:
    answer = ingest_response(400, orjson.dumps({"status": 400, "detail": detail}))
    assert (answer.response_class, answer.position) == (V.REFUSED, position)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"null", b'{"detail": 7}', b'{"title": "Bad Request"}', b"\xff" * 50]
)
def test_an_answer_that_is_no_problem_document_still_has_its_class(body: bytes) -> None:
    answer = ingest_response(400, body)
    assert (answer.response_class, answer.position, answer.reason) == (V.REFUSED, None, "400")


def test_a_reason_is_one_line_of_bounded_length() -> None:
    answer = ingest_response(422, orjson.dumps({"detail": "much\nto say " * 1000}))
    assert len(answer.reason) == REASON_CHARS_MAX
    assert answer.reason.startswith("422 much to say much to say")
