"""What an answer's status and body mean."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.billing.lago.errors import (
    LagoError,
    LagoMalformed,
    LagoRejected,
    LagoUnauthorized,
    LagoUnavailable,
    excerpt,
)
from sidecar.billing.lago.responses import PAUSE_S_MAX, LagoResponse, result_of

KEY = "lago-key-of-the-bank-0123456789"
NOW_S = 1_785_543_009.0
HTML = b"<html><body><h1>Welcome to nginx!</h1></body></html>"


def read(status: int, body: bytes | dict[str, Any] = b"{}", **headers: str) -> dict[str, Any]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return result_of("GET /wallets", LagoResponse(status, named, content), KEY, NOW_S)


def refusal(status: int, body: bytes | dict[str, Any] = b"{}", **headers: str) -> LagoError:
    with pytest.raises(LagoError) as refused:
        read(status, body, **headers)
    return refused.value


def test_numbers_with_decimals_are_exact() -> None:
    found = read(200, b'{"rate": 8.875, "deep": [0.1], "whole": 12}')
    assert found == {"rate": Decimal("8.875"), "deep": [Decimal("0.1")], "whole": 12}
    assert isinstance(found["rate"], Decimal)
    assert isinstance(found["deep"][0], Decimal)


@pytest.mark.parametrize("status", [200, 201, 299])
def test_every_status_of_success_is_one(status: int) -> None:
    assert read(status, {"a": 1}) == {"a": 1}


@pytest.mark.parametrize(
    "body",
    [HTML, b"", b"[]", b'"text"', b"null", b'{"wallets": [', b'{"a": NaN}', b'{"a": Infinity}', b"\xff\xfe{}",
     b'{"a": ' + b"[" * 200_000, b'{"a": 1' + b"0" * 5_000 + b"}", b'{"a": 1e' + b"9" * 30 + b"}"],
    ids=range(12),
)  # fmt: skip
def test_success_without_an_object_of_json_is_somebody_elses_answer(body: bytes) -> None:
    error = refusal(200, body)
    assert isinstance(error, LagoMalformed)
    assert error.transient
    assert not error.unsent
    assert str(error).startswith("GET /wallets: 200, but not a JSON object: ")
    assert len(str(error)) < 300


@pytest.mark.parametrize("status", [500, 502, 503, 504, 408, 425])
@pytest.mark.parametrize("body", [HTML, b"", b'{"status": 500, "error": "Internal Server Error"}'])
def test_trouble_of_the_server_passes(status: int, body: bytes) -> None:
    error = refusal(status, body)
    assert isinstance(error, LagoUnavailable)
    assert (error.kind, error.transient, error.unsent) == ("status", True, False)
    assert f"GET /wallets: {status}" in str(error)


def test_too_many_requests_have_had_no_effect() -> None:
    error = refusal(429, b"", x_ratelimit_reset="1")
    assert isinstance(error, LagoUnavailable)
    assert (error.kind, error.transient, error.unsent, error.after_s) == ("throttled", True, True, 1.0)


@pytest.mark.parametrize(
    ("headers", "after_s"),
    [
        ({"retry_after": "3"}, 3.0),
        ({"retry_after": "3", "x_ratelimit_reset": "9"}, 3.0),
        ({"x_ratelimit_reset": " 9 "}, 9.0),
        ({"x_ratelimit_reset": "0"}, 0.0),
        ({"x_ratelimit_reset": str(int(NOW_S) + 7)}, 7.0),
        ({"x_ratelimit_reset": str(int(NOW_S) - 7)}, 0.0),
        ({"x_ratelimit_reset": "soon"}, None),
        ({"x_ratelimit_reset": "-1"}, None),
        ({"x_ratelimit_reset": "9" * 40}, None),
        ({"retry_after": "86400"}, PAUSE_S_MAX),
        ({"x_ratelimit_reset": "86400"}, PAUSE_S_MAX),
        ({}, None),
    ],
)
def test_a_pause_that_is_asked_for_is_honoured_up_to_a_bound(headers: dict[str, str], after_s: float | None) -> None:
    assert refusal(429, b"", **headers).after_s == after_s
    assert refusal(503, b"", **headers).after_s == after_s


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_not_accepted(status: int) -> None:
    error = refusal(status, {"status": status, "error": "Forbidden", "code": "feature_unavailable"})
    assert isinstance(error, LagoUnauthorized)
    assert (error.status, error.transient, error.kind) == (status, False, "unauthorized")
    assert str(error) == f"GET /wallets: {status} feature_unavailable"


def test_what_is_not_there_has_lagos_code() -> None:
    error = refusal(404, {"status": 404, "error": "Not Found", "code": "wallet_not_found"})
    assert isinstance(error, LagoRejected)
    assert (error.status, error.code, error.transient) == (404, "wallet_not_found", False)


@pytest.mark.parametrize("status", [404, 400, 422, 405])
def test_a_refusal_that_is_not_lagos_may_pass(status: int) -> None:
    error = refusal(status, HTML)
    assert isinstance(error, LagoMalformed)
    assert error.transient
    assert "Welcome to nginx!" in str(error)


def test_a_body_that_a_proxy_finds_too_large_is_refused_for_good() -> None:
    error = refusal(413, HTML)
    assert isinstance(error, LagoRejected)
    assert error.status == 413


@pytest.mark.parametrize("status", [301, 302, 307, 308, 304])
def test_a_redirect_is_no_answer(status: int) -> None:
    error = refusal(status, HTML, location="https://elsewhere.example/?token=x")
    assert isinstance(error, LagoMalformed)
    assert error.transient
    assert "lago.url" in str(error)
    assert "elsewhere" not in str(error)


def test_reasons_come_by_field() -> None:
    details = {"code": ["value_already_exist"], "charges": {"0": {"amount": ["invalid_amount", "negative"]}}}
    error = refusal(422, {"status": 422, "error": "Unprocessable Entity", "code": "validation_errors",
                          "error_details": details})  # fmt: skip
    assert isinstance(error, LagoRejected)
    assert error.codes == {"code": ("value_already_exist",), "charges.0.amount": ("invalid_amount", "negative")}
    assert error.events == {}
    assert str(error) == (
        "GET /wallets: 422 validation_errors (code: value_already_exist; charges.0.amount: invalid_amount, negative)"
    )


def test_reasons_of_a_batch_come_by_position() -> None:
    details = {
        "3": {"transaction_id": ["value_already_exist"]},
        "12": {"timestamp": ["invalid_format"], "code": ["value_is_mandatory"]},
        "20": "expression cannot be evaluated",
    }
    error = refusal(422, {"status": 422, "code": "validation_errors", "error_details": details})
    assert isinstance(error, LagoRejected)
    assert error.events == {
        3: {"transaction_id": ("value_already_exist",)},
        12: {"timestamp": ("invalid_format",), "code": ("value_is_mandatory",)},
        20: {"": ("expression cannot be evaluated",)},
    }
    assert error.codes == {}
    assert "event 3: transaction_id: value_already_exist" in str(error)


def test_a_batch_that_is_too_long_is_refused_as_a_whole() -> None:
    error = refusal(422, {"code": "validation_errors", "error_details": {"events": ["too_many_events"]}})
    assert isinstance(error, LagoRejected)
    assert (error.codes, error.events) == ({"events": ("too_many_events",)}, {})


def test_a_bad_request_says_what_is_wrong_with_it() -> None:
    error = refusal(400, {"status": 400, "error": "BadRequest: param is missing: event"})
    assert isinstance(error, LagoRejected)
    assert str(error) == "GET /wallets: 400 BadRequest: param is missing: event"


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=300),
                    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=8), below, max_size=4),
                    max_leaves=20))  # fmt: skip
def test_whatever_a_refusal_holds_it_stays_short_and_printable(details: Any) -> None:
    error = refusal(422, {"code": "x", "error_details": details})
    assert len(str(error)) <= 400
    assert str(error).isprintable()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"echo: " + KEY.encode()),
        (500, b"x" * 190 + KEY.encode()),
        (404, b"<p>Authorization: Bearer " + KEY.encode()),
        (403, KEY.encode()),
        (422, json.dumps({"code": KEY, "error_details": {KEY: [KEY]}}).encode()),
    ],
)
def test_a_key_that_is_echoed_is_not_repeated(status: int, body: bytes) -> None:
    error = refusal(status, body)
    for length in (len(KEY), 12):
        assert KEY[:length] not in str(error) + repr(error)


@given(st.text(max_size=500))
def test_an_excerpt_is_one_short_printable_line(text: str) -> None:
    assert len(excerpt(text, 50)) <= 50
    assert excerpt(text, 50).isprintable()
