"""A failover between the steps of a link."""

from __future__ import annotations

import asyncio
from typing import Any

from sidecar.ledger.client.ledger_client import LedgerClient
from sidecar.valkey.endpoints import SingleEndpoints, endpoints
from sidecar.valkey.resp import RespConnection
from sidecar.valkey.topology import connected
from tests.integration.ledger_client.kit import PATIENT, call, load
from tests.simulation.deployment import WithReplica, server_of
from tests.simulation.loop import SimulatedLoop, simulate
from tests.simulation.network import Network
from tests.simulation.processes import KEYS


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
