"""The ledger as a whole under random use (machine.py). LEDGER_EXAMPLES: the number of runs, e.g. 5000 over night."""

from __future__ import annotations

import os

import redis
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.integration.ledger.machine import LedgerMachine
from tests.support.ledger_driver import text_of

FEW_KEPT = "local KNOWN_MAX = 1500", "local KNOWN_MAX = 2"
EXAMPLES = int(os.environ.get("LEDGER_EXAMPLES", "100"))


def test_the_scripts_do_what_the_document_says_whatever_happens(valkey: redis.Redis) -> None:
    class Machine(LedgerMachine):
        def __init__(self) -> None:
            super().__init__(valkey)

    run(Machine)


def test_so_do_they_where_fewer_accounts_are_kept_unpacked_than_are_in_use(valkey: redis.Redis) -> None:
    assert FEW_KEPT[0] in text_of("batch", movable_clock=True)

    class Machine(LedgerMachine):
        def __init__(self) -> None:
            super().__init__(valkey, edit=lambda text: text.replace(*FEW_KEPT))

    run(Machine)


def run(machine: type[LedgerMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            print_blob=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        ),
    )
