"""Whatever a ledger has lived through, its verification finds nothing wrong with it.

The lives are those of the ledger's state machine: restarts, reaped processes, clocks that go back, loads of every kind.
"""

from __future__ import annotations

import asyncio
import os

import msgpack
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from sidecar.ledger.accounts.account_about import About
from sidecar.valkey.topology import Address, Standalone, connected
from tests.integration.ledger.machine import LedgerMachine
from tests.integration.ledger.strategies import ACCOUNTS
from tests.support.verified import assert_verified

EXAMPLES = int(os.environ.get("LEDGER_EXAMPLES", "20"))
VIEW = bytes(msgpack.packb([2, "GBP", "prepaid", "0", 0, 0, 0, False]))


def test_a_ledger_agrees_with_itself_whatever_happens(valkey: redis.Redis) -> None:
    options = valkey.get_connection_kwargs()

    class Machine(LedgerMachine):
        def __init__(self) -> None:
            super().__init__(valkey)

        def teardown(self) -> None:
            super().teardown()
            for key in map(self.real.keys.account, ACCOUNTS):
                if self.client.hexists(key, "view"):  # the machine's own are texts that nobody reads
                    self.client.hset(key, mapping={"view": VIEW, "about": About().packed()})
            asyncio.run(self.verify())

        async def verify(self) -> None:
            async with connected(Standalone(Address(options["host"], options["port"]))) as client:
                await assert_verified(client, self.real.keys, moved_clock=True)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
