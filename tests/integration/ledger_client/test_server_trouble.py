"""What servers do: forget scripts, restart, cut clients off, stand still, run out of memory, turn into replicas."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from redis.asyncio import Redis

from sidecar.ledger.client import link
from sidecar.ledger.client.link_settings import LinkSettings
from sidecar.ledger.client.outcomes import Code
from tests.integration.ledger_client.kit import (
    KEYS,
    PATIENT,
    ask,
    at,
    call,
    calls,
    client_of,
    event_of,
    load,
    until,
    valkey_client,
)
from tests.support.fault_proxy import FaultProxy
from tests.support.ledger_totals import read_totals
from tests.support.valkey_process import ValkeyProcess, valkey_process

RELOADS_MAX = 20


@pytest.fixture
def own(tmp_path: Path) -> Iterator[ValkeyProcess]:
    """A server to break, with its data on disk."""
    with valkey_process(tmp_path / "own", appendonly="yes", appendfsync="always", enable_debug_command="yes") as server:
        yield server


async def forget_scripts(control: Redis) -> None:
    await control.script_flush()
    await control.execute_command("FUNCTION", "FLUSH")


async def test_scripts_that_the_server_forgot_are_loaded_again_without_a_failed_call(
    control: Redis, proxy: FaultProxy
) -> None:
    await load(control, {"tpp": 9})
    async with client_of(at(proxy.listening_port)) as client:
        for _ in range(3):
            await forget_scripts(control)
            assert await calls(client, "tpp", 3) == [Code.GRANTED] * 3
            await forget_scripts(control)
            await client._links[0].heartbeat()
        assert client.counters.reconnects == 1, "no connection was given up for it"
    (await read_totals(control, KEYS, ["tpp"])).check()


async def test_a_server_that_does_not_take_the_function_yet_is_waited_for(own: ValkeyProcess) -> None:
    async with valkey_client(own.port) as control:
        await load(control, {"tpp": 9})
        async with client_of(at(own.port), LinkSettings(hold_budget_s=1.0)) as client:
            held = await ask(client, "tpp")
            await control.execute_command("ACL", "SETUSER", "default", "-function|load")
            await control.execute_command("FUNCTION", "FLUSH")
            client.settle(held, event_of(held))
            assert await call(client, "tpp") == Code.UNAVAILABLE
            await until(lambda: client.counters.resent > 1, client)
            await control.execute_command("ACL", "SETUSER", "default", "+function|load")
            assert await client.drain(5)
            assert await calls(client, "tpp", 8) == [Code.GRANTED] * 8
            assert client.counters.script_errors == 0
        totals = await read_totals(control, KEYS, ["tpp"])
    totals.check()
    assert totals.settled == {"tpp": 9}


async def test_a_server_killed_and_restarted_finds_its_clients_again(own: ValkeyProcess) -> None:
    async with valkey_client(own.port) as control:
        await load(control, {"tpp": 100})
        async with client_of(at(own.port)) as client:
            for _ in range(3):
                held = await ask(client, "tpp")
                assert await calls(client, "tpp", 5) == [Code.GRANTED] * 5
                own.kill()
                calling = asyncio.create_task(asyncio.to_thread(own.start))
                await until(lambda: not client._links[0].is_connected, client)
                client.settle(held, event_of(held))
                # What asks while it is known to be away is told so; the first that is asked after that passes.
                await calling
                await until(lambda: client.is_up, client)
                assert await calls(client, "tpp", 5) == [Code.GRANTED] * 5
        totals = await read_totals(control, KEYS, ["tpp"])
    totals.check()
    assert totals.settled == {"tpp": 33}


async def test_a_server_that_still_reads_its_data_is_waited_for(own: ValkeyProcess) -> None:
    async with valkey_client(own.port) as control, FaultProxy("127.0.0.1", own.port) as proxy:
        await load(control, {"tpp": 1_000_000})
        await control.execute_command("DEBUG", "POPULATE", "20000", "fill", "100")
        async with client_of(at(proxy.listening_port)) as client:
            held = await ask(client, "tpp")
            client.settle(held, event_of(held))
            assert await client.drain(5)
            # DEBUG LOADAOF reads everything again and answers LOADING meanwhile.
            await control.config_set("key-load-delay", "50")
            await control.config_set("loading-process-events-interval-bytes", "1024")
            # On a busy machine a whole reload may pass between two calls, so there are as many as it takes.
            called = 0
            for _ in range(RELOADS_MAX):
                reading = asyncio.create_task(_reload(own.port))
                while not reading.done():
                    assert await calls(client, "tpp", 5) == [Code.GRANTED] * 5
                    called += 5
                await reading
                if client.counters.resent > 0:
                    break
            assert client.counters.resent > 0, "Valkey refused nothing"
        totals = await read_totals(control, KEYS, ["tpp"])
    totals.check()
    assert totals.settled == {"tpp": 1 + called}


async def _reload(port: int) -> None:
    async with valkey_client(port) as admin:
        await admin.execute_command("DEBUG", "LOADAOF")


async def test_a_server_that_lost_its_data_gets_what_is_settled_and_knows_no_account(
    control: Redis, proxy: FaultProxy
) -> None:
    await load(control, {"tpp": 9})
    async with client_of(at(proxy.listening_port), replace(PATIENT, create_again=True)) as client:
        held = await ask(client, "tpp")
        await control.flushall()
        client.settle(held, event_of(held))
        assert await call(client, "tpp") == Code.UNKNOWN
        assert client.counters.registrations == 2
        assert client.counters.generations == 1, "it is another ledger"
    totals = await read_totals(control, KEYS, ["tpp"])
    totals.check()
    assert totals.settled == {"tpp": 1}


async def test_a_client_that_is_killed_off_comes_back_without_a_failed_call(control: Redis, proxy: FaultProxy) -> None:
    await load(control, {"tpp": 40})
    async with client_of(at(proxy.listening_port)) as client:
        for _ in range(4):
            calling = asyncio.create_task(calls(client, "tpp", 10))
            await control.client_kill_filter(_type="normal", skipme=True)
            assert await calling == [Code.GRANTED] * 10
        assert client.counters.registrations == 1, "its epoch stays valid"
    totals = await read_totals(control, KEYS, ["tpp"])
    totals.check()
    assert totals.settled == {"tpp": 40}


async def test_a_server_that_stands_still_for_a_moment_is_waited_for(control: Redis, proxy: FaultProxy) -> None:
    await load(control, {"tpp": 9})
    async with client_of(at(proxy.listening_port)) as client:
        await control.client_pause(200, all=True)
        assert await calls(client, "tpp", 9) == [Code.GRANTED] * 9
        assert client.counters.reconnects == 1
    (await read_totals(control, KEYS, ["tpp"])).check()


@asynccontextmanager
async def out_of_memory(server: Redis) -> AsyncIterator[None]:
    await server.config_set("maxmemory-policy", "noeviction")
    await server.config_set("maxmemory", "1")
    try:
        yield
    finally:
        await server.config_set("maxmemory", "0")


@pytest.mark.parametrize("give_up", [False, True], ids=["on one connection", "and connections are given up meanwhile"])
async def test_settles_wait_for_a_server_that_is_out_of_memory(
    control: Redis, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, give_up: bool
) -> None:
    if give_up:
        monkeypatch.setattr(link, "RECONNECT_S_MAX", 0.1)
    await load(control, {"tpp": 9})
    how = replace(PATIENT, no_reply_s=0.1) if give_up else PATIENT
    async with client_of(at(proxy.listening_port), how, heartbeat_s=0.1 if give_up else 60.0) as client:
        held = [await ask(client, "tpp") for _ in range(3)]
        async with out_of_memory(control):
            for hold in held:
                client.settle(hold, event_of(hold))
            asking = ask(client, "tpp")
            seen = client.counters.resent
            await until(lambda: client.counters.resent > seen + 3 or (give_up and proxy.connections > 4), client)
            assert client.backlog >= 3
        if not give_up:
            assert (await asking).code == Code.GRANTED
            client.release(await asking)
        else:
            await until(lambda: client.is_up, client)
            await until(asking.done, client)
            if asking.result().open:
                client.release(asking.result())
        assert await client.drain(10)
        assert proxy.connections < 30, "connections are not made in a loop"
    totals = await read_totals(control, KEYS, ["tpp"])
    totals.check()
    assert totals.settled == {"tpp": 3}


async def test_connections_that_cannot_be_used_are_closed(
    control: Redis, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "RECONNECT_S_MAX", 0.05)
    async with out_of_memory(control), client_of(at(proxy.listening_port), ready=False) as client:
        await until(lambda: proxy.connections > 10, proxy)
        assert not client.is_up
        assert len(proxy._pairs) <= 2
        assert (await ask(client, "tpp")).code == Code.UNAVAILABLE


async def test_a_primary_that_became_a_replica_is_left_for_the_new_one(own: ValkeyProcess, tmp_path: Path) -> None:
    with valkey_process(tmp_path / "new", repl_diskless_sync_delay="0") as new:
        async with (
            valkey_client(own.port) as old_control, valkey_client(new.port) as new_control,
            FaultProxy("127.0.0.1", own.port) as proxy,
        ):  # fmt: skip
            await old_control.config_set("repl-diskless-sync-delay", "0")
            await load(old_control, {"tpp": 20})
            await new_control.replicaof("127.0.0.1", own.port)
            async with client_of(at(proxy.listening_port)) as client:
                assert await calls(client, "tpp", 5) == [Code.GRANTED] * 5
                held = await ask(client, "tpp")
                await _caught_up(old_control, new_control)
                await new_control.replicaof("NO", "ONE")
                await old_control.replicaof("127.0.0.1", new.port)
                client.settle(held, event_of(held))
                calling = asyncio.create_task(calls(client, "tpp", 5))
                await until(lambda: client.counters.reconnects > 1 or proxy.connections > 2, client)
                # Whatever stands for the address (a Sentinel, a service) names the new primary now.
                proxy.aim("127.0.0.1", new.port)
                assert await calling == [Code.GRANTED] * 5
            totals = await read_totals(new_control, KEYS, ["tpp"])
            totals.check()
            assert totals.settled == {"tpp": 11}


async def _caught_up(primary: Redis, replica: Redis) -> None:
    async with asyncio.timeout(20):
        while True:
            there = await replica.info("replication")
            here = await primary.info("replication")
            if there["master_link_status"] == "up" and there["master_repl_offset"] >= here["master_repl_offset"]:
                return
            await asyncio.sleep(0.02)


async def test_one_account_that_the_script_cannot_read_costs_the_others_nothing(
    control: Redis, proxy: FaultProxy
) -> None:
    await load(control, {"good": 9, "bad": 9, "fine": 9})
    async with client_of(at(proxy.listening_port)) as client:
        await control.set(KEYS.state("bad"), "no msgpack")
        good, bad, fine = await asyncio.gather(*(call(client, account) for account in ("good", "bad", "fine")))
        assert (good, bad, fine) == (Code.GRANTED, Code.UNAVAILABLE, Code.GRANTED)
        assert await call(client, "good") == Code.GRANTED, "the link is not taken for dead"
    totals = await read_totals(control, KEYS, ["good", "fine"])
    totals.check()
    assert totals.settled == {"good": 2, "fine": 1}


async def test_settles_of_an_account_that_cannot_be_read_are_kept_as_refused(control: Redis, proxy: FaultProxy) -> None:
    await load(control, {"good": 99, "bad": 99})
    async with client_of(at(proxy.listening_port)) as client:
        held = [await ask(client, account) for account in ("good", "bad", "bad", "good")]
        once = await ask(client, "bad", scope=b"key")
        await control.set(KEYS.state("bad"), "no msgpack")
        for hold in (*held, once):
            client.settle(hold, event_of(hold))
        assert await client.drain(5)
        assert client.counters.refused_settles == 3
        [(_, entry)] = await control.xrange(KEYS.refused(client._links[0].home_partition))
    assert entry[b"account"] == b"bad"
    assert entry[b"reason"]
    assert [event[0] for event in json.loads(entry[b"e"])] == ["bad"] * 3
    assert [mark is not None for mark in json.loads(entry[b"marks"])] == [False, False, True]
    totals = await read_totals(control, KEYS, ["good"])
    totals.check()
    assert totals.settled == {"good": 2}


async def test_ten_charges_with_keys_are_made_although_one_account_of_their_batch_cannot_be_read(
    control: Redis, proxy: FaultProxy
) -> None:
    """Seen on 0.2.0: the ten keys were marked as charged, and nothing was."""
    await load(control, {"good": 99, "bad": 99})
    async with client_of(at(proxy.listening_port)) as client:
        held = [await ask(client, "good", scope=b"%d" % n) for n in range(10)]
        bad = await ask(client, "bad")
        await control.delete(KEYS.state("bad"))
        await control.rpush(KEYS.state("bad"), "of the wrong type")
        for hold in (*held, bad):
            client.settle(hold, event_of(hold))
        assert await client.drain(5)
    totals = await read_totals(control, KEYS, ["good"])
    totals.check()
    assert totals.settled == {"good": 10}


async def test_a_caller_that_fails_costs_the_others_of_its_batch_nothing(control: Redis, proxy: FaultProxy) -> None:
    await load(control, {"tpp": 9})

    def failing(_hold: object) -> None:
        raise RuntimeError("a caller's own fault")

    async with client_of(at(proxy.listening_port)) as client:
        client.hold("tpp", "api_calls", 1, failing)
        assert await call(client, "tpp") == Code.GRANTED
        assert client.counters.reconnects == 1


async def test_more_operations_of_one_account_than_a_batch_may_have_are_all_done(
    control: Redis, proxy: FaultProxy
) -> None:
    await load(control, {"tpp": 10_000, "other": 10})
    async with client_of(at(proxy.listening_port)) as client:
        jobs = [call(client, "tpp", scope=b"%d" % n if n % 2 else None) for n in range(7_000)]
        jobs.append(call(client, "other"))
        assert set(await asyncio.gather(*jobs)) == {Code.GRANTED}
        assert client.counters.script_errors == 0
    totals = await read_totals(control, KEYS, ["tpp", "other"])
    totals.check()
    assert totals.settled == {"tpp": 7_000, "other": 1}
