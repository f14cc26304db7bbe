"""Nobody waits longer than the budget or queues up behind a server that is gone; what comes late is given back."""

from __future__ import annotations

import asyncio

from redis.asyncio import Redis

from sidecar.ledger.client.ledger_client import LedgerClient
from sidecar.ledger.client.link_settings import LinkSettings
from sidecar.ledger.client.outcomes import Code, Hold
from sidecar.ledger.client.sealed import events_of
from tests.integration.ledger_client.kit import KEYS, ask, at, call, calls, client_of, event_of, load, until
from tests.support.fault_proxy import FaultProxy
from tests.support.ledger_totals import read_totals

BUDGET_S = 0.2
HASTY = LinkSettings(hold_budget_s=BUDGET_S, breaker_failures=3, breaker_open_s=0.4)


async def test_a_hold_is_told_of_a_server_that_hangs_after_its_budget_and_given_back_if_granted_later(
    control: Redis, proxy: FaultProxy
) -> None:
    await load(control, {"tpp": 9})
    async with client_of(at(proxy.listening_port), HASTY, heartbeat_s=60.0) as client:
        proxy.stall()
        held = await asyncio.gather(*(ask(client, "tpp") for _ in range(5)))
        assert {hold.code for hold in held} == {Code.UNAVAILABLE}
        proxy.flow()
        await until(lambda: client.counters.late_grants == 5, client)
        assert await client.drain(5)
        assert (await read_totals(control, KEYS, ["tpp"])).held == {"tpp": 0}
        assert (await ask(client, "tpp")).available == 8, "nothing was charged"


async def test_behind_an_overdue_batch_holds_are_told_at_once(control: Redis, proxy: FaultProxy) -> None:
    await load(control, {"tpp": 9})
    async with client_of(at(proxy.listening_port), HASTY, heartbeat_s=60.0) as client:
        proxy.stall()
        assert (await ask(client, "tpp")).code == Code.UNAVAILABLE
        for _ in range(100):
            assert ask(client, "tpp").done(), "told before the call returned"
        assert not client.is_up
        proxy.flow()
        await until(lambda: client.is_up, client)
        assert await call(client, "tpp") == Code.GRANTED


async def test_behind_settles_that_hang_holds_wait_once_and_no_more(control: Redis, proxy: FaultProxy) -> None:
    """The batch on its way has no hold that could be late: it is the batch itself that is."""
    await load(control, {"tpp": 9})
    async with client_of(at(proxy.listening_port), HASTY, heartbeat_s=60.0) as client:
        held = await ask(client, "tpp")
        proxy.stall()
        client.settle(held, event_of(held))
        await until(lambda: client.counters.batches == 2, client)
        assert (await ask(client, "tpp")).code == Code.UNAVAILABLE
        assert ask(client, "tpp").done()
        proxy.flow()
        await until(lambda: client.is_up, client)
    totals = await read_totals(control, KEYS, ["tpp"])
    totals.check()
    assert totals.settled == {"tpp": 1}


async def test_a_server_that_answers_too_late_again_and_again_opens_the_breaker(
    control: Redis, proxy: FaultProxy
) -> None:
    await load(control, {"tpp": 9})
    async with client_of(at(proxy.listening_port), HASTY, heartbeat_s=60.0) as client:
        for failures in range(1, 4):
            proxy.stall()
            assert (await ask(client, "tpp")).code == Code.UNAVAILABLE
            proxy.flow()
            await until(lambda failures=failures: client.counters.late_grants == failures, client)
            assert await client.drain(5)
        proxy.flow()
        sent = client.counters.batches
        assert client.is_up
        assert ask(client, "tpp").done(), "the breaker is open although the server answers"
        assert client.counters.batches == sent
        await until(lambda: not _refused_at_once(client), "the breaker closes")
        assert await calls(client, "tpp", 3) == [Code.GRANTED] * 3


def _refused_at_once(client: LedgerClient) -> bool:
    hold = ask(client, "tpp")
    if hold.done():
        return True
    hold.add_done_callback(lambda done: client.release(done.result()))
    return False


async def test_without_a_connection_holds_wait_no_longer_than_their_budget(control: Redis, proxy: FaultProxy) -> None:
    await load(control, {"tpp": 9})
    async with client_of(at(proxy.listening_port), HASTY) as client:
        proxy.refuse()
        loop = asyncio.get_running_loop()
        began = loop.time()
        held = [(await ask(client, "tpp")).code for _ in range(50)]
        assert set(held) == {Code.UNAVAILABLE}
        assert loop.time() - began < 20 * BUDGET_S, "fifty one after the other, and only the first had to wait"
        proxy.accept()
        await until(lambda: client.is_up, client)
        await until(lambda: not _refused_at_once(client), "the breaker closes")


async def test_holds_of_a_split_batch_are_told_too_when_the_server_is_gone(control: Redis, proxy: FaultProxy) -> None:
    await load(control, {f"tpp-{n}": 9 for n in range(40)})
    how = LinkSettings(hold_budget_s=BUDGET_S, operations_max=2)
    async with client_of(at(proxy.listening_port), how) as client:
        proxy.stall()
        asked = [ask(client, f"tpp-{n}") for n in range(40)]
        await until(lambda: client.counters.batches == 1, client)
        held = await asyncio.wait_for(asyncio.gather(*asked), 20 * BUDGET_S)
        assert {hold.code for hold in held} == {Code.UNAVAILABLE}
        proxy.flow()
        assert await client.drain(10)
    assert not any((await read_totals(control, KEYS, [f"tpp-{n}" for n in range(40)])).held.values())


async def test_what_is_granted_to_a_caller_that_has_gone_is_given_back(control: Redis, proxy: FaultProxy) -> None:
    await load(control, {"tpp": 9})

    def never(_hold: Hold) -> None:
        raise AssertionError("the caller has gone")

    async with client_of(at(proxy.listening_port)) as client:
        hold = client.hold("tpp", "api_calls", 1, never)
        hold.callback = None
        await until(lambda: client.counters.late_grants == 1, client)
        assert await client.drain(5)
        assert (await read_totals(control, KEYS, ["tpp"])).held == {"tpp": 0}


async def test_settles_that_were_never_sent_can_be_taken_when_the_client_gives_up(
    control: Redis, proxy: FaultProxy
) -> None:
    await load(control, {"tpp": 9})
    async with client_of(at(proxy.listening_port), HASTY, leave=False) as client:
        held = [await ask(client, "tpp") for _ in range(3)]
        proxy.refuse()
        await until(lambda: not client._links[0].is_connected, client)
        for hold in held:
            client.settle(hold, event_of(hold))
        assert not await client.close(0.05)
        sealed = client.seal_waiting()
        assert [event for each in sealed for event in events_of(each)] == [event_of(hold) for hold in held]
        assert client.seal_waiting() == []
