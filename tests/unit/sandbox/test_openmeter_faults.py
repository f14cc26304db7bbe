from __future__ import annotations

import re
from typing import Any

import pytest

from sidecar.sandbox.faults import SCRIPT_MAX
from sidecar.sandbox.openmeter.openmeter_faults import FaultError, OpenMeterFault, OpenMeterFaults


def test_a_script_is_used_up_in_order_before_any_chance() -> None:
    faults = OpenMeterFaults()
    faults.always(OpenMeterFault(status=429))
    faults.script(OpenMeterFault(status=503), OpenMeterFault(), OpenMeterFault(drop="after"))
    assert [faults.next() for _ in range(5)] == [
        OpenMeterFault(status=503),
        OpenMeterFault(),
        OpenMeterFault(drop="after"),
        OpenMeterFault(status=429),
        OpenMeterFault(status=429),
    ]
    assert faults.struck == 4


def test_a_chance_strikes_about_as_often_as_it_says_and_the_same_in_every_run() -> None:
    def draws(seed: int) -> list[OpenMeterFault | None]:
        faults = OpenMeterFaults(seed)
        faults.chance(0.2, OpenMeterFault(status=500))
        return [faults.next() for _ in range(1000)]

    assert draws(1) == draws(1) != draws(2)
    assert 150 < sum(fault is not None for fault in draws(1)) < 250


def test_cleared_faults_are_gone() -> None:
    faults = OpenMeterFaults()
    faults.script(OpenMeterFault(status=500))
    faults.always(OpenMeterFault(hang=True))
    faults.clear()
    assert faults.next() is None


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"status": 200}, "status: 200"),
        ({"status": 600}, "status: 600"),
        ({"kept": 1}, "kept: "),
        ({"status": 500, "kept": -1}, "kept: "),
        ({"delay_ms": -1}, "delay_ms: -1"),
        ({"delay_ms": 60_001}, "delay_ms: 60001"),
        ({"drop": "during"}, "drop: "),
        ({"status": 503, "retry_after": "1\r\nX: y"}, "retry_after: "),
    ],
)
def test_a_fault_out_of_range_is_refused_by_name(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(FaultError, match=re.escape(says)):
        OpenMeterFault(**fields)


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ([], "the plan must be an object"),
        ({"scrpt": []}, "scrpt: there is no such key"),
        ({"script": {}}, "script: must be an array"),
        ({"script": [{}] * (SCRIPT_MAX + 1)}, "script: must be an array of at most"),
        ({"script": [{}, 7]}, "script[1]: a fault must be an object"),
        ({"script": [{"status": "503"}]}, "script[0]: status: must be of type int"),
        ({"script": [{"hang": 1}]}, "script[0]: hang: must be of type bool"),
        ({"script": [{"stauts": 503}]}, "script[0]: stauts: there is no such field"),
        ({"chances": [{"fault": {}}]}, "chances[0]: must have the keys"),
        ({"chances": [{"probability": 2, "fault": {}}]}, "chances[0].probability: 2.0"),
        ({"chances": [{"probability": True, "fault": {}}]}, "chances[0].probability: must be a number"),
        ({"chances": [{"probability": 1, "fault": {"status": 1}}]}, "chances[0].fault: status: 1"),
        ({"seed": "x"}, "seed: must be of type int"),
    ],
)
def test_a_plan_with_a_mistake_is_refused_by_place_and_changes_nothing(plan: object, says: str) -> None:
    faults = OpenMeterFaults()
    faults.script(OpenMeterFault(status=503))
    with pytest.raises(FaultError, match=re.escape(says)):
        faults.replace(plan)
    assert faults.next() == OpenMeterFault(status=503)


def test_a_plan_replaces_all_faults_and_is_shown_as_it_was_given() -> None:
    faults = OpenMeterFaults()
    faults.script(OpenMeterFault(status=500))
    faults.replace({"script": [{"status": 503, "retry_after": "2"}], "chances": [{"probability": 1, "fault": {}}]})
    shown = faults.as_json()
    again = OpenMeterFaults()
    again.replace({"script": shown["script"], "chances": shown["chances"]})
    assert again.next() == faults.next() == OpenMeterFault(status=503, retry_after="2")
    assert again.next() == faults.next() == OpenMeterFault()
