"""A failover costs no charge: neither a planned one, nor one to a replica that lacks what the primary confirmed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from sidecar.ledger.client.ledger_client import LedgerClient
from sidecar.ledger.client.outcomes import Code
from sidecar.ledger.client.reaper import reap
from sidecar.valkey.topology import connected
from tests.integration.ledger_client.kit import KEYS, ask, client_of, event_of, load, until
from tests.support.ledger_totals import read_totals
from tests.support.sentinels import Watched, wait_until, watched
from tests.support.verified import assert_verified

CALLS = 100_000


@pytest.fixture
def system(tmp_path: Path) -> Iterator[Watched]:
    with watched(tmp_path) as found:
        yield found


async def serve(client: LedgerClient, account: str, stop: asyncio.Event, served: Counter[str]) -> None:
    """Calls one after the other, each charged when it was granted."""
    while not stop.is_set():
        hold = await ask(client, account)
        if hold.code == Code.GRANTED:
            client.settle(hold, event_of(hold))
            served[account] += 1
        await asyncio.sleep(0.001)


async def check(system: Watched, client: LedgerClient, served: Counter[str]) -> None:
    assert await client.close(20)
    async with connected(system.topology) as control:
        await reap(control, KEYS, 0)
        totals = await read_totals(control, KEYS, sorted(served))
        totals.check()
        await assert_verified(control, KEYS)
    assert totals.settled == served


@pytest.mark.parametrize("lag", [False, True], ids=["planned", "to a replica that lags"])
async def test_what_was_served_is_charged_once_after_a_failover(system: Watched, lag: bool) -> None:
    old, new = system.servers
    async with connected(system.topology) as control:
        await load(control, {"a": CALLS, "b": CALLS})
    with redis.Redis(port=new.port) as replica:
        wait_until(lambda: replica.exists(KEYS.state("b")))
    stop, served = asyncio.Event(), Counter[str]()
    async with client_of(system.topology) as client:
        jobs = [asyncio.create_task(serve(client, account, stop, served)) for account in "ab" * 5]
        await until(lambda: served.total() > 50, served)
        if lag:
            assert new.process is not None
            os.kill(new.process.pid, signal.SIGSTOP)
            with redis.Redis(port=old.port) as primary:
                primary.client_kill_filter(_type="replica")  # else the kernel keeps what is sent for it
            before = served.total()
            await until(lambda: served.total() > before + 50, served)
            # Killed without a chance to send what it has: the replica stops at what it had.
            old.kill()
            os.kill(new.process.pid, signal.SIGCONT)
        else:
            await asyncio.to_thread(system.fail_over)
        await asyncio.to_thread(wait_until, lambda: system.primary() == new.port)
        await until(lambda: client.is_up, client)
        assert client.counters.losses or not lag, "the replica lacked nothing"
        after = served.total()
        await until(lambda: served.total() > after + 50, served)
        stop.set()
        await asyncio.gather(*jobs)
        await check(system, client, served)
