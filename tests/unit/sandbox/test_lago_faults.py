"""Scripted and chance faults, by path."""

from __future__ import annotations

import pytest

from sidecar.sandbox.lago.lago_faults import FaultError, LagoFault, LagoFaults


def test_a_script_strikes_once_each_and_only_where_it_applies() -> None:
    faults = LagoFaults()
    faults.script(
        LagoFault(path="/api/v1/wallets", status=500), LagoFault(status=503), LagoFault(method="POST", drop="before")
    )
    assert faults.next("GET", "/api/v1/plans") == LagoFault(status=503)
    assert faults.next("GET", "/api/v1/plans") is None
    assert faults.next("GET", "/api/v1/wallets/1") == LagoFault(path="/api/v1/wallets", status=500)
    assert faults.next("GET", "/api/v1/wallets/1") is None
    assert faults.next("POST", "/api/v1/events") == LagoFault(method="POST", drop="before")
    assert faults.struck == 3


def test_chances_are_drawn_for_the_requests_that_they_meet() -> None:
    faults = LagoFaults(seed=7)
    faults.chance(0.5, LagoFault(path="/api/v1/events", status=500))
    drawn = [faults.next("POST", "/api/v1/events/batch") for _ in range(1000)]
    assert 400 < sum(1 for fault in drawn if fault) < 600
    assert faults.next("GET", "/api/v1/wallets") is None
    faults.always(LagoFault(delay_ms=5))
    assert faults.next("GET", "/api/v1/wallets") == LagoFault(delay_ms=5)
    faults.clear()
    assert faults.next("POST", "/api/v1/events") is None


def test_a_plan_replaces_all_or_changes_nothing() -> None:
    faults = LagoFaults()
    faults.replace({"script": [{"status": 500}], "chances": [{"probability": 1, "fault": {"body": "html"}}], "seed": 3})
    before = faults.as_json()
    with pytest.raises(FaultError, match=r"chances\[0\]\.probability: must be a number"):
        faults.replace({"chances": [{"probability": "1", "fault": {}}]})
    assert faults.as_json() == before
    assert faults.next("GET", "/") == LagoFault(status=500)
    assert faults.next("GET", "/") == LagoFault(body="html")


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ([], "the plan must be an object"),
        ({"faults": []}, "faults: there is no such key"),
        ({"seed": "1"}, "seed: must be of type int"),
        ({"script": {}}, "script: must be an array"),
        ({"script": [1]}, r"script\[0\]: a fault must be an object"),
        ({"script": [{"colour": "red"}]}, r"script\[0\]: colour: there is no such field"),
        ({"script": [{"status": "500"}]}, "status: must be of type int"),
        ({"script": [{"status": 600}]}, "status: 600 is not from 200 to 599"),
        ({"script": [{"delay_ms": 60_001}]}, "delay_ms: 60001 is not"),
        ({"script": [{"path": "wallets"}]}, "path: must be a path"),
        ({"script": [{"method": "BREW"}]}, "method: must be"),
        ({"script": [{"body": "json"}]}, "body: must be"),
        ({"script": [{"drop": "during"}]}, "drop: must be"),
        ({"script": [{"retry_after": "1\r\n"}]}, "retry_after: must be"),
        ({"chances": [{"probability": 2, "fault": {}}]}, r"chances\[0\]\.probability: 2\.0 is not from 0 to 1"),
        ({"chances": [{"probability": 1}]}, "must have the keys probability and fault"),
    ],
)
def test_a_bad_plan_is_refused_with_the_place(plan: object, message: str) -> None:
    with pytest.raises(FaultError, match=message):
        LagoFaults().replace(plan)
