"""Whatever the wire does to a batch, no debit is lost and none is doubled."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from sidecar.ledger.client.link_settings import LinkSettings
from sidecar.ledger.client.outcomes import Code
from sidecar.ledger.client.reaper import reap
from tests.integration.ledger_client.kit import KEYS, PATIENT, ask, at, call, calls, client_of, event_of, load, until
from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.ledger_totals import read_totals

FAULTS: tuple[Fault, ...] = ("drop before", "drop after", "split")


@pytest.fixture
def quick_silence() -> LinkSettings:
    """A connection without answers is given up soon, so that a swallowed reply costs a test no seconds."""
    return replace(PATIENT, no_reply_s=0.15)


@pytest.mark.parametrize("step", ["hold", "settle", "release"])
@pytest.mark.parametrize("fault", [*FAULTS, "swallow reply"])
async def test_a_batch_whose_answer_is_lost_is_done_once(
    control: Redis, proxy: FaultProxy, quick_silence: LinkSettings, fault: Fault, step: str
) -> None:
    await load(control, {"tpp": 5})
    async with client_of(at(proxy.listening_port), quick_silence, heartbeat_s=0.05) as client:
        if step != "hold":
            hold = await ask(client, "tpp")
        proxy.faults.append(fault)
        match step:
            case "hold":
                assert await call(client, "tpp") == Code.GRANTED
            case "settle":
                client.settle(hold, event_of(hold))
            case "release":
                client.release(hold)
        assert await client.drain(10)
        assert proxy.done == [fault], "the fault never happened"
        remaining = (await ask(client, "tpp")).available
    await reap(control, KEYS, 0)
    totals = await read_totals(control, KEYS, ["tpp"])
    charged = 0 if step == "release" else 1
    assert totals.settled.get("tpp", 0) == totals.events.get("tpp", 0) == charged
    assert remaining == 5 - charged - 1
    assert totals.held == {"tpp": 0}, "what a client still holds when it leaves comes back"


async def test_exactly_the_credit_is_spent_through_a_wire_that_breaks_all_the_time(
    control: Redis, proxy: FaultProxy
) -> None:
    await load(control, {"a": 60, "b": 40, "c": 500})
    chance = random.Random(11)
    proxy.faults = [chance.choice(FAULTS) for _ in range(40)]
    async with client_of(at(proxy.listening_port)) as client:
        jobs = [calls(client, account, 10) for account in ("a", "b", "c") * 8]
        codes = [code for job in await asyncio.gather(*jobs) for code in job]
        await until(lambda: not client.backlog, client)
        while proxy.faults:  # whatever the batches were, every fault is met
            await call(client, "c", released=True)
    totals = await read_totals(control, KEYS, ["a", "b", "c"])
    totals.check()
    assert totals.settled == {"a": 60, "b": 40, "c": 80}
    assert codes.count(Code.GRANTED) == 180
    assert codes.count(Code.CREDIT) == 60


async def test_repeats_under_one_idempotency_key_are_counted_once_through_lost_replies(
    control: Redis, proxy: FaultProxy
) -> None:
    await load(control, {"tpp": 50})
    proxy.faults = ["drop after", "drop before", "drop after", "drop after", "split"]
    async with client_of(at(proxy.listening_port)) as client:
        codes = [await call(client, "tpp", scope=b"POST /payments 7") for _ in range(6)]
    assert codes == [Code.GRANTED, *[Code.REPEAT] * 3, *[Code.GRANTED] * 2]
    totals = await read_totals(control, KEYS, ["tpp"])
    totals.check()
    assert totals.settled == {"tpp": 3}


async def test_a_batch_that_arrives_after_its_repetition_changes_nothing(
    control: Redis, proxy: FaultProxy, quick_silence: LinkSettings
) -> None:
    """It was stuck on the way: the client gave the connection up, sent the batch again, and the next ones too."""
    await load(control, {"tpp": 5})
    async with client_of(at(proxy.listening_port), quick_silence, heartbeat_s=0.05) as client:
        first = await ask(client, "tpp")
        proxy.stall()
        client.settle(first, event_of(first))
        await until(lambda: client.counters.batches == 2, client)
        connected = proxy.connections
        await until(lambda: proxy.connections > connected, proxy)
        proxy.flow()
        assert await calls(client, "tpp", 4) == [Code.GRANTED] * 4
    totals = await read_totals(control, KEYS, ["tpp"])
    totals.check()
    assert totals.settled == {"tpp": 5}


async def test_an_answer_to_a_batch_sent_twice_is_not_taken_for_that_of_the_next_one(
    control: Redis, proxy: FaultProxy
) -> None:
    await load(control, {"rich": 1000, "poor": 0})
    async with client_of(at(proxy.listening_port), PATIENT) as client:
        rich = ask(client, "rich")
        await asyncio.sleep(0)
        client._links[0]._resend()
        poor = ask(client, "poor")
        assert (await rich).code == Code.GRANTED
        assert (await poor).code == Code.CREDIT
        client.release(await rich)
    assert (await read_totals(control, KEYS, ["rich", "poor"])).held == {"rich": 0, "poor": 0}


async def test_a_wire_cut_a_hundred_times_under_load_loses_and_doubles_nothing(
    control: Redis, proxy: FaultProxy
) -> None:
    await load(control, {"tpp": 10_000})
    async with client_of(at(proxy.listening_port)) as client:
        done = 0

        async def work() -> None:
            nonlocal done
            for _ in range(40):
                assert await call(client, "tpp") == Code.GRANTED
                done += 1

        workers = [asyncio.create_task(work()) for _ in range(20)]
        for cut in range(1, 31):
            await until(lambda cut=cut: done >= cut * 20, "load")
            proxy.cut()
        await asyncio.gather(*workers)
        assert client.counters.reconnects > 5
    totals = await read_totals(control, KEYS, ["tpp"])
    totals.check()
    assert totals.settled == {"tpp": 800}
