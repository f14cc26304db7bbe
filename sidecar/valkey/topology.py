"""Clients of Valkey for control work, whichever of the four topologies holds it.

``connect`` gives a redis-py client: for loading accounts, registering, publishing, listing. The data plane keeps
connections of its own (``endpoints``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeAlias

import redis.asyncio as valkey
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.cluster import RedisCluster as ClusterClient
from redis.asyncio.connection import SSLConnection
from redis.asyncio.sentinel import MasterNotFoundError, SentinelConnectionPool, SentinelManagedConnection
from redis.asyncio.sentinel import Sentinel as SentinelGroup
from redis.exceptions import RedisClusterException, RedisError

from sidecar.valkey.client_options import TopologyError, client_options, login_options, tls_context, tls_options
from sidecar.valkey.cluster_client import PartialClusterClient
from sidecar.valkey.cluster_primaries import ClusterPrimaries
from sidecar.valkey.primary_watch import PrimaryWatch
from sidecar.valkey.sentinel_primary import SentinelPrimary
from sidecar.valkey.slot_map import SLOTS, SlotMap, SlotRange, keyslot
from sidecar.valkey.url import (
    Address,
    Cluster,
    Credentials,
    Embedded,
    Sentinel,
    Standalone,
    Tls,
    Topology,
    parse_valkey_url,
)

__all__ = [
    "CLIENT_ERRORS",
    "SLOTS",
    "Address",
    "Client",
    "Cluster",
    "Credentials",
    "Embedded",
    "Sentinel",
    "SlotMap",
    "SlotRange",
    "Standalone",
    "Tls",
    "Topology",
    "TopologyError",
    "cluster_slots",
    "connect",
    "connected",
    "keyslot",
    "parse_valkey_url",
    "primary_address",
    "tls_context",
]

Client: TypeAlias = valkey.Redis | ClusterClient
"""What control work is done with; answers are bytes."""


CLIENT_ERRORS: Final = (RedisError, RedisClusterException, OSError)
"""What a client raises when the server cannot be reached or refuses; a Cluster's own errors are a family apart."""


def connect(
    topology: Topology, *, timeout_s: float = 5.0, connect_timeout_s: float = 2.0, client_name: str = "quota-sidecar"
) -> Client:
    """A client for control work; nothing is opened before its first command, nor before ``aclose`` closed.

    ``timeout_s`` is for one answer, ``connect_timeout_s`` for one connection. An embedded server must be running.

    Raises:
        TopologyError: the TLS files cannot be used.
    """
    options = client_options(timeout_s, connect_timeout_s) | {"client_name": client_name}
    match topology:
        case Embedded():
            return valkey.Redis(unix_socket_path=str(topology.socket), **options)
        case Standalone(address, credentials, db, tls):
            options |= login_options(credentials) | tls_options(tls) | {"db": db}
            if isinstance(address, Path):
                return valkey.Redis(unix_socket_path=str(address), **options)
            return valkey.Redis(host=address.host, port=address.port, **options)
        case Sentinel(_, service, credentials, _, db, tls):
            options |= login_options(credentials) | tls_options(tls) | {"db": db}
            group = SentinelGroup([], sentinel_kwargs={})  # type: ignore[no-untyped-call]
            client: valkey.Redis = group.master_for(
                service,
                connection_pool_class=_FollowingPool,
                connection_class=_FollowingTlsConnection if tls is not None else _FollowingConnection,
                **options,
            )
            pool = _pool(client)
            pool.known, pool.find_timeout_s = SentinelPrimary(topology), connect_timeout_s
            return client
        case Cluster(nodes, credentials, tls):
            options |= login_options(credentials) | tls_options(tls)
            starts = [ClusterNode(node.host, node.port) for node in nodes]
            return PartialClusterClient(startup_nodes=starts, **options)


@asynccontextmanager
async def connected(topology: Topology, *, timeout_s: float = 5.0) -> AsyncIterator[Client]:
    """A client that is closed at the end, and that follows the primary meanwhile. Raises as ``connect``."""
    client = connect(topology, timeout_s=timeout_s)
    watching: asyncio.Task[None] | None = None
    if isinstance(topology, Sentinel):
        # Connections look at what is known when they are used next, so nobody has to be told.
        watch = PrimaryWatch(topology, lambda: None, _pool(client).known)
        watching = asyncio.get_running_loop().create_task(watch.run())
    try:
        yield client
    finally:
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        await client.aclose()


class _FollowingPool(SentinelConnectionPool):
    """Connections to whatever is the primary, by what all Sentinels say and not the first that answers.

    redis-py's own would go on with an open connection to a primary that was, until that one breaks it: seconds in which
    what is written there is lost.
    """

    known: SentinelPrimary
    find_timeout_s: float

    async def get_master_address(self) -> tuple[str, int]:
        try:
            found = await self.known.find(self.find_timeout_s)
        except TopologyError as error:
            raise MasterNotFoundError(str(error)) from None
        self.master_address = found.host, found.port
        return self.master_address


def _pool(client: Client) -> _FollowingPool:
    assert isinstance(client, valkey.Redis)
    pool = client.connection_pool
    assert isinstance(pool, _FollowingPool)
    return pool


class _FollowingConnection(SentinelManagedConnection):
    """Called for whenever it is taken out of its pool: one that is open to a primary that was is opened anew."""

    async def connect(self) -> None:
        if self.is_connected and not self.connection_pool.known.is_current(self.host, self.port):
            await self.disconnect()
        await super().connect()  # type: ignore[no-untyped-call]


class _FollowingTlsConnection(_FollowingConnection, SSLConnection):
    pass


async def primary_address(topology: Embedded | Standalone | Sentinel, *, timeout_s: float = 2.0) -> Address | Path:
    """Where the primary is now: the address that the Sentinels agree on, or the configured one.

    Raises:
        TopologyError: no Sentinel can be reached, or none knows a primary that is up.
    """
    if isinstance(topology, Embedded):
        return topology.socket
    if isinstance(topology, Standalone):
        return topology.address
    return await SentinelPrimary(topology).find(timeout_s)


async def cluster_slots(topology: Cluster, *, timeout_s: float = 2.0) -> SlotMap:
    """Which primary has which slots, by the first node that answers.

    Raises:
        TopologyError: no node answers, or none is in a Cluster; says what each of them said.
    """
    known = ClusterPrimaries(topology)
    with known.inquiries(timeout_s) as inquiries:
        await known.look(inquiries)
    assert known.slots is not None
    return known.slots
