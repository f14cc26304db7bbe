"""The holds of a client that died come back; one that only seemed dead works on and corrupts nothing."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgpack
import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from sidecar.ledger.client import reaper
from sidecar.ledger.client.ledger_client import LedgerClient
from sidecar.ledger.client.outcomes import Code
from sidecar.ledger.client.reaper import keep_reaping, reap
from sidecar.valkey.scripts import script
from sidecar.valkey.url import Standalone
from tests.integration.ledger_client.kit import (
    KEYS,
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
from tests.support.valkey_process import valkey_process

TTL_MS = 600
TTL_S = TTL_MS / 1000
ALL = 0
"""An age that every heartbeat has."""


async def _dead_for_ttl(control: Redis) -> int:
    await asyncio.sleep(0.002)  # a heartbeat of this very millisecond is younger than any age
    return await reap(control, KEYS, ALL)


async def test_holds_of_a_client_that_crashed_come_back(control: Redis, proxy: FaultProxy) -> None:
    await load(control, {"a": 5, "b": 5})
    async with client_of(at(proxy.listening_port), leave=False) as client:
        await asyncio.gather(*(ask(client, account) for account in "aabbb"))
    assert (await read_totals(control, KEYS, ["a", "b"])).held == {"a": 2, "b": 3}
    assert await _dead_for_ttl(control) == 1
    totals = await read_totals(control, KEYS, ["a", "b"])
    assert (totals.held, totals.settled, totals.alive) == ({"a": 0, "b": 0}, {}, frozenset())
    assert await _dead_for_ttl(control) == 0


@pytest.mark.parametrize(
    ("holds", "expected"),
    [
        (0, ("info", "a gateway process died without holds", None)),
        (3, ("warning", "a gateway process died, its holds are released", 3)),
    ],
)
async def test_a_dead_client_is_a_warning_only_if_it_kept_holds(
    control: Redis, proxy: FaultProxy, holds: int, expected: tuple[str, str, int | None]
) -> None:
    await load(control, {"a": 5, "b": 5})
    async with client_of(at(proxy.listening_port), leave=False) as client:
        await asyncio.gather(*(ask(client, account) for account in "abb"[:holds]))
    with capture_logs() as lines:
        assert await _dead_for_ttl(control) == 1
    assert [(line["log_level"], line["event"], line.get("units")) for line in lines] == [expected]


async def test_holds_on_more_accounts_than_one_call_names_come_back_in_several(
    control: Redis, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaper, "ACCOUNTS_MAX", 20)
    accounts = [f"tpp-{n}" for n in range(50)]
    await load(control, dict.fromkeys(accounts, 1))
    async with client_of(at(proxy.listening_port), leave=False) as client:
        await asyncio.gather(*(ask(client, account) for account in accounts))
    assert await _dead_for_ttl(control) == 1
    assert not any((await read_totals(control, KEYS, accounts)).held.values())


async def test_a_client_reaped_while_it_works_registers_again_and_loses_no_call(
    control: Redis, proxy: FaultProxy
) -> None:
    await load(control, {"tpp": 1_000_000})
    async with client_of(at(proxy.listening_port)) as client:
        done = 0

        async def work() -> None:
            nonlocal done
            # As long as it takes until it was reaped at least twice, however fast the machine is.
            while done < 600 or client.counters.registrations < 3:
                assert await call(client, "tpp") == Code.GRANTED
                done += 1

        workers = [asyncio.create_task(work()) for _ in range(10)]
        while not all(worker.done() for worker in workers):
            await _dead_for_ttl(control)
            await asyncio.sleep(0.01)
        await asyncio.gather(*workers)
        assert client.counters.registrations > 2, "it was never reaped"
        assert client.counters.reconnects == 1
    totals = await read_totals(control, KEYS, ["tpp"])
    totals.check()
    assert totals.settled == {"tpp": done}


async def test_a_zombie_charges_what_it_had_under_way_once_and_gives_back_nothing_twice(
    control: Redis, proxy: FaultProxy
) -> None:
    await load(control, {"tpp": 10})
    async with (
        client_of(at(proxy.listening_port), heartbeat_s=60.0) as zombie,
        client_of(at(proxy.listening_port)) as other,
    ):
        settled, released, stays = [await ask(zombie, "tpp") for _ in range(3)]
        await control.zrem(KEYS.alive(zombie._links[0].home_partition), other.instance)  # this one is not reaped here
        assert await _dead_for_ttl(control) >= 1
        others = [await ask(other, "tpp") for _ in range(4)]
        zombie.settle(settled, event_of(settled))
        zombie.release(released)
        assert await call(zombie, "tpp") == Code.GRANTED, "asked again after the registration, within its budget"
        assert await zombie.drain(5)
        totals = await read_totals(control, KEYS, ["tpp"])
        assert totals.settled == {"tpp": 2}
        assert totals.held["tpp"] == sum(hold.epoch == other._links[0].epoch for hold in others)
        zombie.settle(stays, event_of(stays))
        for hold in others:
            other.release(hold)
    totals = await read_totals(control, KEYS, ["tpp"])
    totals.check()
    assert totals.settled == {"tpp": 3}


@pytest.mark.parametrize("how", ["heartbeat", "hold", "settle", "all at once"])
async def test_a_zombie_finds_out_however_it_first_speaks_again(control: Redis, proxy: FaultProxy, how: str) -> None:
    await load(control, {"tpp": 10})
    async with client_of(at(proxy.listening_port), heartbeat_s=60.0) as client:
        held = await ask(client, "tpp")
        assert await _dead_for_ttl(control) == 1
        jobs: list[asyncio.Future[object]] = []
        if how in ("heartbeat", "all at once"):
            jobs += [asyncio.ensure_future(client._links[0].heartbeat()) for _ in range(3)]
        if how in ("settle", "all at once"):
            client.settle(held, event_of(held))
        if how in ("hold", "all at once"):
            jobs += [asyncio.ensure_future(call(client, "tpp")) for _ in range(3)]
        await asyncio.gather(*jobs)
        await until(lambda: client.counters.registrations == 2 and client.is_up, client)
        assert await client.drain(5)
        assert client.counters.reconnects == 1
        if held.open:
            client.settle(held, event_of(held))
    totals = await read_totals(control, KEYS, ["tpp"])
    totals.check()
    assert totals.settled == {"tpp": 4 if how in ("hold", "all at once") else 1}


async def test_what_a_client_held_before_it_registered_again_comes_back(control: Redis, proxy: FaultProxy) -> None:
    """A registration whose answer was lost, and that arrived late, leaves shares of an epoch that nobody reaped."""
    await load(control, {"tpp": 10})
    async with client_of(at(proxy.listening_port), heartbeat_s=60.0) as client:
        held = await ask(client, "tpp")
        home = client._links[0].home_partition
        names = [KEYS.instance(home, client.instance), KEYS.clock(home), KEYS.alive(home), KEYS.meta(home)]
        await control.eval(script("register").text.decode(), len(names), *names, client.instance, home)
        assert await calls(client, "tpp", 3) == [Code.GRANTED] * 3
        client.settle(held, event_of(held))
    assert (await read_totals(control, KEYS, ["tpp"])).held == {"tpp": 1}
    await reap(control, KEYS, ALL)
    totals = await read_totals(control, KEYS, ["tpp"])
    totals.check()
    assert totals.settled == {"tpp": 4}


async def test_an_account_that_cannot_be_read_keeps_its_holds_until_it_can_and_no_other_does(
    control: Redis, proxy: FaultProxy
) -> None:
    await load(control, {"bad": 5, "good": 5})
    for instance in ("aaa", "zzz"):
        async with client_of(at(proxy.listening_port), leave=False, instance=instance) as client:
            await asyncio.gather(ask(client, "bad"), ask(client, "good"))
    state = await control.get(KEYS.state("bad"))
    await control.set(KEYS.state("bad"), msgpack.packb("nonsense"))
    assert await _dead_for_ttl(control) == 2
    assert (await read_totals(control, KEYS, ["good"])).held == {"good": 0}
    await control.set(KEYS.state("bad"), state)
    assert await _dead_for_ttl(control) == 0
    assert (await read_totals(control, KEYS, ["bad"])).held == {"bad": 0}


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gateways come back as soon for the TTL of these tests as they do by default."""
    monkeypatch.setattr("sidecar.ledger.client.link.RECONNECT_S_MAX", TTL_S / 10)


@asynccontextmanager
async def reaping(client: object, ttl_ms: int = TTL_MS) -> AsyncIterator[None]:
    task = asyncio.create_task(keep_reaping(client, KEYS, ttl_ms))
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def living(topology: Standalone, count: int = 4) -> AsyncIterator[list[LedgerClient]]:
    """Gateways that live, with heartbeats as often for the TTL of these tests as by default."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(client_of(topology, heartbeat_s=TTL_MS / 5000)) for _ in range(count)]


async def alive(control: Redis) -> set[bytes]:
    return {member for p in range(KEYS.partitions) for member in await control.zrange(KEYS.alive(p), 0, -1)}


def registrations(clients: list[LedgerClient]) -> list[int]:
    return [client.counters.registrations for client in clients]


async def test_the_holds_of_the_dead_come_back_while_others_live(control: Redis, proxy: FaultProxy) -> None:
    await load(control, {"tpp": 5})
    async with living(at(proxy.listening_port)) as clients, reaping(control):
        async with client_of(at(proxy.listening_port), leave=False) as dies:
            await ask(dies, "tpp")
        async with asyncio.timeout(20):
            while (await read_totals(control, KEYS, ["tpp"])).held["tpp"]:
                await asyncio.sleep(0.01)
        assert registrations(clients) == [1, 1, 1, 1]
        assert await alive(control) == {client.instance.encode() for client in clients}


async def test_the_only_gateway_is_reaped_too_when_it_dies(control: Redis, proxy: FaultProxy) -> None:
    await load(control, {"tpp": 5})
    async with client_of(at(proxy.listening_port), leave=False) as dies:
        await ask(dies, "tpp")
    async with reaping(control):
        async with asyncio.timeout(20):
            while await alive(control):
                await asyncio.sleep(0.01)


@pytest.mark.usefixtures("soon")
async def test_a_reaper_that_starts_into_the_end_of_an_outage_reaps_nobody_alive(
    control: Redis, proxy: FaultProxy
) -> None:
    await load(control, {"tpp": 5})
    async with living(at(proxy.listening_port)) as clients:
        proxy.refuse()
        await asyncio.sleep(3 * TTL_S)
        async with reaping(control):
            proxy.accept()
            await asyncio.sleep(1.5 * TTL_S)
        await until(lambda: all(client.is_up for client in clients), clients)
        assert registrations(clients) == [1, 1, 1, 1]


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("how", ["refused", "paused", "no writes", "restarted"])
async def test_an_outage_is_no_death(tmp_path: Path, how: str) -> None:
    """Seen on 0.1.0: after 12 s without Valkey 8 to 12 of 12 living gateways were reaped. The reaper is the first to
    reach the server again, as may happen."""
    with valkey_process(tmp_path, appendonly="yes", appendfsync="always") as server:
        async with (
            FaultProxy("127.0.0.1", server.port) as of_gateways,
            FaultProxy("127.0.0.1", server.port) as of_reaper,
            valkey_client(of_reaper.listening_port, retry=None) as client,
            valkey_client(server.port) as direct,
            living(at(of_gateways.listening_port)) as clients,
            reaping(client),
        ):
            await asyncio.sleep(1.2 * TTL_S)
            of_gateways.refuse()
            match how:
                case "refused":
                    of_reaper.refuse()
                case "paused":
                    server.send(signal.SIGSTOP)
                case "no writes":
                    await direct.config_set("min-replicas-to-write", 1)
                case _:
                    server.kill()
            await asyncio.sleep(1.8 * TTL_S)
            match how:
                case "refused":
                    of_reaper.accept()
                case "paused":
                    server.send(signal.SIGCONT)
                case "no writes":
                    await direct.config_set("min-replicas-to-write", 0)
                case _:
                    await asyncio.to_thread(server.start)
            await asyncio.sleep(0.6 * TTL_S)
            of_gateways.accept()
            await asyncio.sleep(TTL_S)
            await until(lambda: all(client.is_up for client in clients), clients)
            assert registrations(clients) == [1, 1, 1, 1]


@pytest.mark.usefixtures("soon")
async def test_gateways_that_are_all_silent_have_one_ttl_more(control: Redis, proxy: FaultProxy) -> None:
    """A network that is cut between all of them and the server, and not between it and this reaper."""
    async with living(at(proxy.listening_port)) as clients, reaping(control):
        await asyncio.sleep(1.2 * TTL_S)
        proxy.refuse()
        await asyncio.sleep(1.3 * TTL_S)
        proxy.accept()
        await until(lambda: all(client.is_up for client in clients), clients)
        assert registrations(clients) == [1, 1, 1, 1]


async def test_a_partition_that_cannot_be_read_keeps_no_other_and_is_told_of_once(
    control: Redis, proxy: FaultProxy
) -> None:
    await load(control, {"tpp": 5})
    with capture_logs() as lines:
        async with client_of(at(proxy.listening_port), leave=False, instance="dies") as dies:
            await ask(dies, "tpp")
            home = dies._links[0].home_partition
        broken = KEYS.alive(0 if home else 1)
        await control.set(broken, "nonsense")
        async with reaping(control):
            async with asyncio.timeout(20):
                while await control.zscore(KEYS.alive(home), "dies") is not None:
                    await asyncio.sleep(0.01)
            await control.delete(broken)
            await until(lambda: any(line["event"].endswith("released again") for line in lines), lines)
    told = [line for line in lines if line["event"].startswith("cannot release the holds of dead")]
    assert [(line["of"], "WRONGTYPE" in line["reason"]) for line in told] == [(f"partition {0 if home else 1}", True)]


async def test_a_reaper_whose_server_goes_away_says_so_once_and_goes_on(proxy: FaultProxy, control: Redis) -> None:
    async with valkey_client(proxy.listening_port, retry=None) as through_proxy:
        with capture_logs() as lines:
            async with reaping(through_proxy, 40):
                proxy.refuse()
                await until(lambda: lines)
                await asyncio.sleep(0.2)
                proxy.accept()
                await until(lambda: len(lines) > 1)
    assert [line["log_level"] for line in lines] == ["warning", "info"]


async def test_the_reaper_ends_although_its_client_lost_the_cancellation() -> None:
    """redis-py can lose one that falls together with an answer or a timeout; a gateway would then never end."""

    class Swallowing:
        asked = 0

        async def execute_command(self, *_arguments: object, **_options: object) -> list[object]:
            self.asked += 1
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(20)
            raise TimeoutError

    client = Swallowing()
    task = asyncio.create_task(keep_reaping(client, KEYS, 2))
    await until(lambda: client.asked == 1, client)
    task.cancel()
    await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 10)
    assert client.asked == 1
