"""Random callers over three gateways (machine.py). ADVERSARY_EXAMPLES: the number of runs, e.g. 2000 over night."""

from __future__ import annotations

import os

import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.adversary.machine import Callers

EXAMPLES = int(os.environ.get("ADVERSARY_EXAMPLES", "25"))


def test_api_ledger_and_events_agree_whatever_callers_do(valkey: redis.Redis) -> None:
    class Machine(Callers):
        pass

    Machine.valkey = valkey
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=25,
            print_blob=True,
            phases=(Phase.explicit, Phase.generate),  # a failure waits for what does not come: shrinking takes long
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        ),
    )
