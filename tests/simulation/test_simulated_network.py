"""The real clients on simulated time, network and servers: nothing waits, and a seed tells all that happens."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest
import redis.exceptions
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode

from sidecar.ledger.client.ledger_client import LedgerClient
from sidecar.ledger.client.outcomes import Code
from sidecar.ledger.client.reaper import reap
from sidecar.valkey.endpoints import endpoints
from sidecar.valkey.resp import LedgerConnectionError, ReplyError, RespConnection, ServerAddress
from sidecar.valkey.topology import connect
from tests.integration.ledger_client.kit import KEYS, PATIENT, at, call, client_of, load
from tests.simulation.loop import NoRealSockets, SimulatedLoop, Stalled, simulate
from tests.simulation.network import Network, Node, Weather
from tests.simulation.replication import Replication
from tests.simulation.valkey.cluster import SlotTable, slot_of
from tests.simulation.valkey.server import SimulatedValkey
from tests.support.ledger_totals import LedgerTotals, read_totals

PORT = 6379
ROUGH = Weather(slow=0.02, lost=0.02, reply_lost=0.02, cut=0.02, late=0.02, stuck=0.005, refused=0.05)


def node_in(network: Network, port: int = PORT) -> Node:
    address = f"127.0.0.1:{port}"
    return network.add(SimulatedValkey(network.loop.wall_us, seed=network.loop.seed, address=address), address)


# The loop


def test_a_day_is_over_at_once() -> None:
    async def main(loop: SimulatedLoop) -> tuple[float, float]:
        began = loop.time(), time.time()
        await asyncio.sleep(86_400)
        return loop.time() - began[0], time.time() - began[1]

    began = time.process_time()
    assert simulate(main, 1) == (86_400, 86_400)
    assert time.process_time() >= began


def test_timers_ring_in_order_and_what_is_left_is_cancelled() -> None:
    rang: list[str] = []

    async def later(name: str, seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
            rang.append(name)
        except asyncio.CancelledError:
            rang.append(f"{name} cancelled")
            raise

    async def main(loop: SimulatedLoop) -> None:
        tasks = [loop.create_task(later(str(s), s)) for s in (3.0, 1.0, 2.0, 9.0)]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.5):
                await tasks[0]
        rang.append(str(await asyncio.to_thread(lambda: "a thread")))

    simulate(main, 1)
    assert rang == ["1.0", "2.0", "3.0 cancelled", "a thread", "9.0 cancelled"]


def test_waiting_for_what_never_comes_is_an_error() -> None:
    async def main(loop: SimulatedLoop) -> None:
        await loop.create_future()

    with pytest.raises(Stalled, match="seed 7"):
        simulate(main, 7)


def test_there_are_no_real_sockets() -> None:
    async def main(loop: SimulatedLoop) -> None:
        await asyncio.open_connection("127.0.0.1", 1)

    with pytest.raises(NoRealSockets):
        simulate(main, 1)


# The network


async def ask(connection: RespConnection, *parts: bytes) -> Any:
    async with asyncio.timeout(5):
        return await connection.call(*parts)


def test_the_request_paths_connection_talks_to_a_simulated_server() -> None:
    async def main(loop: SimulatedLoop) -> None:
        node = node_in(Network(loop))
        connection = await RespConnection.open(ServerAddress(), timeout_s=1)
        assert await ask(connection, b"SET", b"a", b"1") == b"OK"
        assert await ask(connection, b"GET", b"a") == b"1"
        assert isinstance(await ask(connection, b"HGET", b"a", b"b"), ReplyError)
        began = loop.time()
        node.pause()
        asking = asyncio.ensure_future(ask(connection, b"GET", b"a"))
        await asyncio.sleep(3)
        assert not asking.done()
        node.resume()
        assert await asking == b"1"
        assert loop.time() - began > 3
        node.kill()
        await connection.lost.wait()
        with pytest.raises(LedgerConnectionError):
            await ask(connection, b"GET", b"a")
        with pytest.raises(LedgerConnectionError):
            await RespConnection.open(ServerAddress(), timeout_s=1)
        node.start()
        connection = await RespConnection.open(ServerAddress(), timeout_s=1)
        assert await ask(connection, b"GET", b"a") == b"1"

    simulate(main, 1)


def test_redis_py_talks_to_simulated_servers_and_to_a_cluster_of_them() -> None:
    async def main(loop: SimulatedLoop) -> None:
        network = Network(loop)
        node_in(network)
        async with Redis(port=PORT, protocol=2) as client:
            await client.set("a", 1)
            assert await client.get("a") == b"1"
            async with client.pipeline(transaction=False) as pipe:
                pipe.get("a")
                pipe.get("b")
                assert await pipe.execute() == [b"1", None]
            with pytest.raises(redis.exceptions.ResponseError):
                await client.hget("a", "b")
        addresses = [f"127.0.0.1:{port}" for port in (7001, 7002)]
        tables = [SlotTable(each, [addresses[slot % 2] for slot in range(16384)]) for each in addresses]
        for port, table in zip((7001, 7002), tables, strict=True):
            server = node_in(network, port).server
            assert isinstance(server, SimulatedValkey)
            server.slots = table
        cluster = RedisCluster(startup_nodes=[ClusterNode("127.0.0.1", 7001)], protocol=2)
        for name in ("a", "b", "c"):
            await cluster.set(name, name)
        assert [await cluster.get(name) for name in ("a", "b", "c")] == [b"a", b"b", b"c"]
        await cluster.aclose()
        assert {slot_of(name) % 2 for name in (b"a", b"b", b"c")} == {0, 1}

    simulate(main, 1)


def outcomes_of_writes(weather: Weather, seed: int) -> tuple[Counter[str], int, float]:
    """Two hundred INCRs through connections that break: what the client saw, what the server has, and when it ended."""

    async def main(loop: SimulatedLoop) -> tuple[Counter[str], int, float]:
        node = node_in(Network(loop, weather))
        seen: Counter[str] = Counter()
        connection: RespConnection | None = None
        for _ in range(200):
            try:
                if connection is None or connection.closed:
                    connection = await RespConnection.open(ServerAddress(), timeout_s=1)
                await ask(connection, b"HINCRBY", b"a", b"n", b"1")
                seen["done"] += 1
            except TimeoutError:
                seen["silent"] += 1
                assert connection is not None
                connection.close()
            except LedgerConnectionError:
                seen["broken"] += 1
        await asyncio.sleep(10)
        assert isinstance(node.server, SimulatedValkey)
        return seen, int(node.server.call("HGET", "a", "n")), loop.time()

    return simulate(main, seed)


@pytest.mark.parametrize("kind", ["lost", "reply_lost", "cut", "late", "stuck"])
def test_a_connection_breaks_before_or_after_the_server_has_done_it(kind: str) -> None:
    seen, done, _ = outcomes_of_writes(Weather(**{kind: 0.2}), 3)
    failed = seen["broken"] + seen["silent"]
    assert failed > 20
    if kind in ("lost", "stuck"):
        assert done == seen["done"], "what was never sent on is not done"
    else:
        assert seen["done"] < done <= seen["done"] + failed, "what the client does not know of is done"


def test_what_is_sent_on_one_connection_arrives_and_is_answered_in_order() -> None:
    async def main(loop: SimulatedLoop) -> None:
        network = Network(loop)
        node_in(network)
        connection = await RespConnection.open(ServerAddress(), timeout_s=1)
        network.weather = Weather(slow=0.5)
        asked = [ask(connection, b"ECHO", b"%d" % number) for number in range(100)]
        assert await asyncio.gather(*asked) == [b"%d" % number for number in range(100)]

    simulate(main, 1)


@pytest.mark.parametrize("kind", ["lost", "reply_lost", "cut", "late", "stuck"])
@pytest.mark.parametrize("seed", range(10))
def test_what_follows_a_fault_on_a_connection_does_not_overtake_it(kind: str, seed: int) -> None:
    async def main(loop: SimulatedLoop) -> tuple[list[Any], list[bytes]]:
        network = Network(loop)
        node = node_in(network)
        connection = await RespConnection.open(ServerAddress(), timeout_s=1)
        # Without differences of delay all is as close to each other as can be.
        network.weather = Weather(delay_s_min=0.001, delay_s_max=0.001, slow=0.3 * (seed % 2), **{kind: 0.1})
        asked = [ask(connection, b"XADD", b"a", id_, b"f", b"v") for id_ in ids]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(node.server, SimulatedValkey)
        await asyncio.sleep(10)
        return answers, [entry[0] for entry in node.server.call("XRANGE", "a", "-", "+")]

    ids = [b"%d-0" % number for number in range(1, 61)]
    answers, done = simulate(main, seed)
    known = [answer for answer in answers if isinstance(answer, bytes)]
    assert known == ids[: len(known)], "a client gets its answers in order"
    assert not any(isinstance(answer, bytes) for answer in answers[len(known) :]), "up to where it gets none"
    assert done == ids[: len(done)], "what comes after what is lost is lost"
    assert len(known) <= len(done)


def test_one_seed_is_one_course_of_events() -> None:
    assert outcomes_of_writes(ROUGH, 5) == outcomes_of_writes(ROUGH, 5)
    assert outcomes_of_writes(ROUGH, 5) != outcomes_of_writes(ROUGH, 6)


# The ledger's own client


def charged(weather: Weather, seed: int) -> tuple[LedgerTotals, int, Counter[int]]:
    """Two gateways settle calls through a network; what the ledger says once they have left and were reaped."""

    async def main(loop: SimulatedLoop) -> tuple[LedgerTotals, int, Counter[int]]:
        network = Network(loop)
        node_in(network)
        async with Redis(port=PORT, protocol=2) as control:
            await load(control, {"tpp-1": 500, "tpp-2": 5})
        network.weather = weather
        codes: Counter[int] = Counter()

        async def gateway(instance: str) -> None:
            async with client_of(at(PORT), instance=instance) as client:
                for number in range(40):
                    codes[await call(client, f"tpp-{1 + number % 2}")] += 1
                while client.backlog:
                    await asyncio.sleep(0.1)

        await asyncio.gather(gateway("gw-a"), gateway("gw-b"))
        network.weather = Weather()
        async with Redis(port=PORT, protocol=2) as control:
            await asyncio.sleep(60)
            await reap(control, KEYS, 10_000)
            return await read_totals(control, KEYS, ["tpp-1", "tpp-2"]), network.breaks, codes

    return simulate(main, seed)


def test_two_gateways_charge_what_they_settled() -> None:
    totals, breaks, codes = charged(Weather(), 1)
    totals.check()
    assert breaks == 0
    assert (totals.settled, codes[Code.GRANTED], codes[Code.CREDIT]) == ({"tpp-1": 40, "tpp-2": 5}, 45, 35)


@pytest.mark.parametrize("seed", range(6))
def test_so_they_do_through_a_network_that_breaks(seed: int) -> None:
    totals, breaks, codes = charged(ROUGH, seed)
    totals.check()
    assert breaks > 3
    assert sum(totals.settled.values()) == codes[Code.GRANTED]
    assert totals.settled["tpp-2"] <= 5


def test_after_a_failover_the_old_primary_refuses_and_unreplicated_writes_are_gone() -> None:
    async def main(loop: SimulatedLoop) -> None:
        network = Network(loop)
        one, two = node_in(network, 7001), node_in(network, 7002)
        both = Replication(one, two, lag_s=0.5)
        async with Redis(port=7001, protocol=2) as old, Redis(port=7002, protocol=2) as new:
            await old.set("a", 1)
            await asyncio.sleep(1)
            assert await new.get("a") == b"1"
            await old.set("a", 2)
            both.fail_over()
            assert both.lost_writes == 1
            assert await new.get("a") == b"1"
            with pytest.raises(redis.exceptions.ReadOnlyError):
                await old.set("a", 3)
            await new.set("b", 1)
            await asyncio.sleep(1)
            assert [await old.get("a"), await old.get("b")] == [b"1", b"1"]

    simulate(main, 1)


def test_a_primary_that_is_cut_off_takes_writes_until_its_guard_says_no() -> None:
    async def main(loop: SimulatedLoop) -> None:
        network = Network(loop)
        both = Replication(node_in(network, 7001), node_in(network, 7002), guard_s=2.0)
        async with Redis(port=7001, protocol=2) as old, Redis(port=7002, protocol=2) as new:
            both.break_link()
            both.fail_over()
            await old.set("a", "lost")
            await asyncio.sleep(3)
            with pytest.raises(redis.exceptions.ResponseError, match="NOREPLICAS"):
                await old.set("a", "refused")
            await new.set("b", 1)
            both.demote()
            assert [await old.get("a"), await old.get("b")] == [None, b"1"]

    simulate(main, 1)


def test_the_clients_of_the_control_plane_and_of_the_gateway_are_the_real_ones() -> None:
    async def main(loop: SimulatedLoop) -> None:
        node_in(Network(loop))
        control = connect(at(PORT))
        await load(control, {"tpp-1": 3})
        client = LedgerClient(endpoints(at(PORT)), KEYS, PATIENT)
        client.start()
        assert await client.wait_ready(5)
        assert [await call(client, "tpp-1") for _ in range(4)] == [0, 0, 0, Code.CREDIT]
        await client.close(5)
        await control.aclose()

    simulate(main, 1)
