"""A failover between the steps of a link."""

from __future__ import annotations

import asyncio
from typing import Any

import msgpack
import pytest

from sidecar.ledger.client.ledger_client import LedgerClient
from sidecar.ledger.client.outcomes import Code
from sidecar.ledger.client.reaper import reap
from sidecar.valkey.endpoints import SingleEndpoints, endpoints
from sidecar.valkey.resp import RespConnection
from sidecar.valkey.topology import connected
from tests.integration.ledger_client.kit import PATIENT, call, load
from tests.integration.ledger_client.test_entry_chain import CHAINED, KEY, ends, entries, verify_origin
from tests.simulation.deployment import WithReplica, server_of
from tests.simulation.loop import SimulatedLoop, simulate
from tests.simulation.network import Network
from tests.simulation.processes import KEYS
from tests.support.ledger_totals import read_totals
from tests.support.verified import assert_verified


def test_a_failover_while_a_link_connects_leaves_it_at_the_new_primary() -> None:
    """Nobody has a connection to leave when the change is told, and the former primary still takes writes."""

    async def main(loop: SimulatedLoop) -> Any:
        servers = WithReplica(Network(loop), KEYS, 1)
        async with connected(servers.topology) as control:
            await load(control, {"tpp-1": 100}, KEYS)
        await asyncio.sleep(1)
        found = endpoints(servers.topology)
        assert isinstance(found, SingleEndpoints)
        connect, former = found.connect, servers.one(0)

        async def slowly(partition_key: str) -> RespConnection:
            connection = await connect(partition_key)
            if servers.one(0) is former:
                servers.fail_over()
                await asyncio.sleep(1.2)
            return connection

        found.connect = slowly  # type: ignore[method-assign]
        client = LedgerClient(found, KEYS, PATIENT)
        client.start()
        assert await client.wait_ready(20)
        writes = server_of(former).writes
        assert await call(client, "tpp-1") == 0
        await client.close(5)
        assert server_of(former).writes == writes, "it wrote to a primary that was"

    simulate(main, 1)


@pytest.mark.parametrize("after_s", [0.0, 0.002, 0.01, 0.03, 0.1, 0.5])
@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_replica_that_has_what_the_primary_lost_charges_nothing_twice(after_s: float, keyed: bool, seed: int) -> None:
    """A primary starts with older data, gateways offer again what it lost, and the replica takes over, which has all of
    it: its numbers are ahead of what is offered."""

    async def main(loop: SimulatedLoop) -> Any:
        network = Network(loop)
        servers = WithReplica(network, KEYS, 1)
        async with connected(servers.topology) as control:
            await load(control, {"tpp-1": 1_000}, KEYS)
        client = LedgerClient(endpoints(servers.topology), KEYS, CHAINED, heartbeat_s=0.5)
        client.start()
        assert await client.wait_ready(20)
        early = server_of(servers.one(0)).snapshot()
        served = 0
        asked = [call(client, "tpp-1", scope=b"%d" % n if keyed else None) for n in range(40)]
        for each in asked:
            served += await each == Code.GRANTED
        assert await client.drain(10)
        await asyncio.sleep(1)
        former = servers.one(0)
        servers.replication.break_link()
        server_of(former).restore(early)
        going = [asyncio.ensure_future(call(client, "tpp-1", scope=b"x%d" % n if keyed else None)) for n in range(5)]
        while not client.counters.losses:
            await asyncio.sleep(0.0005)
        await asyncio.sleep(after_s)
        servers.fail_over()
        former.kill()
        served += sum(code == Code.GRANTED for code in await asyncio.gather(*going))
        served += await call(client, "tpp-1", scope=b"last" if keyed else None) == Code.GRANTED
        assert await client.drain(20)
        assert client.counters.refused_settles == client.counters.lost_settles == client.counters.script_errors == 0
        (link,) = client.links
        assert await client.close(10)
        async with connected(servers.topology) as control:
            found = await entries(control)
            report = verify_origin(KEY, found, [await ends(control, link)])
            # Once all was offered again nobody knows which of two histories the new primary has (docs/audit.md).
            assert len(report.faults) <= (after_s >= 0.1), report.faults
            await reap(control, KEYS, 0)
            totals = await read_totals(control, KEYS, ["tpp-1"])
            totals.check()
            await assert_verified(control, KEYS)
        assert totals.settled == {"tpp-1": served}

    simulate(main, seed)


def test_a_server_that_has_more_than_was_asked_of_it_is_entered_anew() -> None:
    """It has another history of this process: what it holds for it, and under which number the next batch goes, is not
    what the link knows."""

    async def main(loop: SimulatedLoop) -> Any:
        network = Network(loop)
        servers = WithReplica(network, KEYS, 1)
        async with connected(servers.topology) as control:
            await load(control, {"tpp-1": 1_000}, KEYS)
        client = LedgerClient(endpoints(servers.topology), KEYS, PATIENT, heartbeat_s=0.5)
        client.start()
        assert await client.wait_ready(20)
        for _ in range(3):
            assert await call(client, "tpp-1") == Code.GRANTED
        assert await client.drain(10)
        (link,) = client.links
        server, key = server_of(servers.one(0)), KEYS.instance(link.home_partition, client.instance)
        stored = server.call("GET", key)
        assert isinstance(stored, bytes)
        unpacker = msgpack.Unpacker(raw=True)
        unpacker.feed(stored)
        epoch, number, held, chain = (unpacker.unpack() for _ in range(4))
        reply = stored[unpacker.tell() :]
        more = [*map(msgpack.packb, (epoch, number + 5, held)), msgpack.packb(chain, use_bin_type=False), reply]
        server.call("SET", key, b"".join(more))
        await asyncio.sleep(2)
        assert client.counters.registrations == 2
        assert await call(client, "tpp-1") == Code.GRANTED
        assert await client.drain(10)
        assert await client.close(10)
        async with connected(servers.topology) as control:
            totals = await read_totals(control, KEYS, ["tpp-1"])
        assert totals.settled == {"tpp-1": 4}

    simulate(main, 1)
