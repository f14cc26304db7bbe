"""Where the data plane's own connections go, for each topology. Each is to a primary, as that server says itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from zlib import crc32

from sidecar.valkey.client_options import TopologyError
from sidecar.valkey.cluster_primaries import ClusterPrimaries
from sidecar.valkey.primary_watch import PrimaryWatch
from sidecar.valkey.resp import LedgerConnectionError, RespConnection, ServerAddress
from sidecar.valkey.role import require_primary
from sidecar.valkey.sentinel_primary import SentinelPrimary
from sidecar.valkey.server_addresses import ServerAddresses
from sidecar.valkey.url import NO_CREDENTIALS, Address, Cluster, Embedded, Sentinel, Standalone, Topology

CONNECT_TIMEOUT_S = 2.0


class SingleEndpoints:
    """One primary: embedded, a server, or what the Sentinels report. One home partition, so one link."""

    def __init__(self, topology: Embedded | Standalone | Sentinel) -> None:
        self._topology = topology
        self._known = SentinelPrimary(topology) if isinstance(topology, Sentinel) else None
        if isinstance(topology, Embedded):
            self._addresses = ServerAddresses(None, NO_CREDENTIALS)
        else:
            self._addresses = ServerAddresses(topology.tls, topology.credentials, topology.db)

    def home_partitions(self, instance: str, partitions: int) -> list[int]:
        return [crc32(instance.encode()) % partitions]

    def watch(self, on_change: Callable[[], None]) -> PrimaryWatch:
        """A watch that keeps up to date what :meth:`is_current` and :meth:`connect` know. One for each of these."""
        return PrimaryWatch(self._topology, on_change, self._known)

    def is_current(self, partition_key: str, address: ServerAddress) -> bool:
        """Whether this server is the primary, as far as is known."""
        return self._known is None or self._known.is_current(address.host, address.port)

    async def connect(self, partition_key: str) -> RespConnection:
        topology = self._topology
        if isinstance(topology, Embedded):
            return await _open(self._addresses.of(topology.socket))
        if isinstance(topology, Standalone):
            return await _open(self._addresses.of(topology.address))
        assert self._known is not None
        try:
            where = await self._known.find(CONNECT_TIMEOUT_S)
        except TopologyError as error:
            raise LedgerConnectionError(str(error)) from None
        return await _open(self._addresses.of(where))

    async def connect_to(self, host: str, port: int) -> RespConnection:
        raise LedgerConnectionError(f"Valkey names another server, {host}:{port}: it is a cluster, valkey_url is not")


class ClusterEndpoints:
    """Every partition is a home partition, on whatever primary has its slot now.

    Whoever comes back for a partition has lost what the map of slots gave it, so the map is read anew; but once for all
    partitions that lost the same server, not once for each.
    """

    def __init__(self, topology: Cluster) -> None:
        self._topology = topology
        self._addresses = ServerAddresses(topology.tls, topology.credentials)
        self._known = ClusterPrimaries(topology)
        self._used: dict[str, int] = {}
        self._lock = asyncio.Lock()

    def home_partitions(self, instance: str, partitions: int) -> list[int]:
        return list(range(partitions))

    def watch(self, on_change: Callable[[], None]) -> PrimaryWatch:
        """As of `SingleEndpoints`."""
        return PrimaryWatch(self._topology, on_change, self._known)

    def is_current(self, partition_key: str, address: ServerAddress) -> bool:
        """Whether this server is the primary of this key, as far as is known."""
        return self._known.is_current(partition_key, address.host, address.port)

    async def connect(self, partition_key: str) -> RespConnection:
        known = self._known
        try:
            async with self._lock:
                if known.slots is None or self._used.get(partition_key) == known.reading:
                    with known.inquiries(CONNECT_TIMEOUT_S) as inquiries:
                        await known.look(inquiries)
                    known.reading += 1
                self._used[partition_key] = known.reading
                assert known.slots is not None
                where = known.slots.primary_of_key(partition_key)
        except TopologyError as error:
            raise LedgerConnectionError(str(error)) from None
        return await _open(self._addresses.of(where))

    async def connect_to(self, host: str, port: int) -> RespConnection:
        # A server that does not know its own name leaves it out: it is the one that was asked.
        return await _open(self._addresses.of(Address(host or self._topology.nodes[0].host, port)))


async def _open(address: ServerAddress) -> RespConnection:
    connection = await RespConnection.open(address, timeout_s=CONNECT_TIMEOUT_S)
    try:
        await require_primary(connection, CONNECT_TIMEOUT_S)
    except BaseException:
        connection.close()
        raise
    return connection


def endpoints(topology: Topology) -> SingleEndpoints | ClusterEndpoints:
    """Raises `TopologyError`: TLS files cannot be used."""
    return ClusterEndpoints(topology) if isinstance(topology, Cluster) else SingleEndpoints(topology)
