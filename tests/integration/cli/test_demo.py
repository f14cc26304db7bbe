"""What a new user does: starts the demo, calls, is refused, looks at what was counted."""

from __future__ import annotations

import http.client
import json
import signal
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.processes import Running, running

ACCOUNTS = "/open-banking/v3.1/aisp/accounts"
COUNTED_WITHIN_S = 20.0


@pytest.fixture(scope="module")
def demo() -> Iterator[Running]:
    with running("demo", "--proxy-port", "0", "--admin-port", "0", "--json") as started:
        yield started


def get(url: str, **headers: str) -> tuple[int, http.client.HTTPMessage, Any]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    try:
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        connection.request("GET", target, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers, json.loads(answer.read())
    finally:
        connection.close()


def key_of(demo: Running, account: str) -> str:
    return next(str(each["api_key"]) for each in demo.ready["accounts"] if each["id"] == account)


def counted(demo: Running, subject: str, expected: int) -> float:
    """What the OpenMeter stand-in has counted, once it is what is expected or time is up."""
    value = 0.0
    until = time.monotonic() + COUNTED_WITHIN_S
    while time.monotonic() < until:
        _, _, found = get(f"{demo.ready['openmeter']}/api/v1/meters/api_calls/query?groupBy=subject")
        value = sum(row["value"] for row in found["data"] if row["subject"] == subject)
        if value == expected:
            break
        time.sleep(0.1)
    return value


def test_the_ready_line_has_every_field_of_the_contract(demo: Running) -> None:
    assert set(demo.ready) == {
        "proxy", "admin", "lago", "openmeter", "upstream", "valkey", "accounts", "lago_api_key", "webhook_hmac_key",
    }  # fmt: skip
    assert [(a["id"], a["mode"]) for a in demo.ready["accounts"]] == [
        ("tpp-prepaid", "prepaid"), ("tpp-overage", "overage"), ("tpp-postpaid", "postpaid"),
    ]  # fmt: skip


def test_credits_fall_until_402_and_exactly_the_charged_calls_are_counted(demo: Running) -> None:
    key = key_of(demo, "tpp-prepaid")
    url = demo.ready["proxy"] + ACCOUNTS
    remaining = []
    for _ in range(10):
        status, headers, body = get(url, X_API_Key=key)
        assert status == 200
        assert [account["AccountId"] for account in body["Data"]["Account"]] == ["acc-001", "acc-002", "acc-003"]
        assert headers["X-Credits-Charged"] == "0.10"
        remaining.append(headers["X-Credits-Remaining"])
    assert remaining == ["0.90", "0.80", "0.70", "0.60", "0.50", "0.40", "0.30", "0.20", "0.10", "0.00"]

    for _ in range(3):
        status, headers, body = get(url, X_API_Key=key)
        assert status == 402
        assert headers["Content-Type"] == "application/problem+json"
        assert (body["balance"], body["needed"], body["missing"], body["currency"]) == ("0.00", "0.10", "0.10", "GBP")

    assert counted(demo, "tpp-prepaid", 10) == 10
    _, _, account = get(f"{demo.ready['admin']}/v1/accounts/tpp-prepaid")
    assert account["available"] == "0.00"
    usage = {metric["metric"]: (metric["settled"], metric["held"]) for metric in account["metrics"]}
    assert usage["api_calls"] == (10, 0)


def test_a_caller_without_a_key_is_told_so(demo: Running) -> None:
    status, headers, body = get(demo.ready["proxy"] + ACCOUNTS)
    assert status == 401
    assert headers["WWW-Authenticate"]
    assert body["title"] == "The gateway does not know the caller"


def test_included_calls_cost_nothing_and_say_so(demo: Running) -> None:
    status, headers, _ = get(demo.ready["proxy"] + ACCOUNTS, X_API_Key=key_of(demo, "tpp-overage"))
    assert (status, headers["X-Credits-Charged"], headers["X-Credits-Remaining"]) == (200, "0.00", "1.00")


def test_the_free_route_needs_no_key(demo: Running) -> None:
    status, headers, _ = get(demo.ready["proxy"] + "/open-banking/health")
    assert status == 200
    assert "X-Credits-Remaining" not in headers


def test_metrics_tell_requests_by_account_and_route(demo: Running) -> None:
    get(demo.ready["proxy"] + ACCOUNTS, X_API_Key=key_of(demo, "tpp-postpaid"))
    parts = urlsplit(demo.ready["admin"])
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    line = f'open_banking_requests_total{{endpoint="{ACCOUNTS}",method="GET",status="200",tpp_id="tpp-postpaid"}} '
    assert line in text
    assert 'open_banking_credits_remaining{tpp_id="tpp-postpaid"}' in text
    assert "sidecar_outbox_lag_events" in text
    assert "sidecar_hold_duration_seconds_bucket" in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_exit_code_0(number: signal.Signals) -> None:
    with running("demo", "--proxy-port", "0", "--admin-port", "0", "--json", "--period", "60") as demo:
        assert get(demo.ready["proxy"] + ACCOUNTS, X_API_Key=key_of(demo, "tpp-prepaid"))[0] == 200
        assert demo.stop(number) == 0
        assert b"Traceback" not in b"".join(demo.errors)
