"""Where the data plane's own connections go, for each topology."""

from __future__ import annotations

import asyncio
from pathlib import Path
from zlib import crc32

from sidecar.valkey.resp import LedgerConnectionError, RespConnection, ServerAddress
from sidecar.valkey.topology import SlotMap, Topology, TopologyError, cluster_slots, primary_address, tls_context
from sidecar.valkey.url import Address, Cluster, Embedded, Sentinel, Standalone, Tls

CONNECT_TIMEOUT_S = 2.0


class SingleEndpoints:
    """One primary: embedded, a server, or what the Sentinels report. One home partition, so one link."""

    def __init__(self, topology: Embedded | Standalone | Sentinel) -> None:
        self._topology = topology
        self._tls = _Tls(None if isinstance(topology, Embedded) else topology.tls)

    def home_partitions(self, instance: str, partitions: int) -> list[int]:
        return [crc32(instance.encode()) % partitions]

    async def connect(self, partition_key: str) -> RespConnection:
        topology = self._topology
        try:
            where = await primary_address(topology, timeout_s=CONNECT_TIMEOUT_S)
        except TopologyError as error:
            raise LedgerConnectionError(str(error)) from None
        if isinstance(topology, Embedded):
            return await RespConnection.open(ServerAddress(path=str(where)), timeout_s=CONNECT_TIMEOUT_S)
        address = self._tls.address(where, topology.credentials.username, topology.credentials.password, topology.db)
        return await RespConnection.open(address, timeout_s=CONNECT_TIMEOUT_S)

    async def connect_to(self, host: str, port: int) -> RespConnection:
        raise LedgerConnectionError(f"Valkey names another server, {host}:{port}: it is a cluster, valkey_url is not")


class ClusterEndpoints:
    """Every partition is a home partition, on whatever primary has its slot now.

    Whoever comes back for a partition has lost what the map of slots gave it, so the map is read anew; but once for all
    partitions that lost the same server, not once for each.
    """

    def __init__(self, topology: Cluster) -> None:
        self._topology = topology
        self._tls = _Tls(topology.tls)
        self._slots: SlotMap | None = None
        self._reading = 0
        self._used: dict[str, int] = {}
        self._lock = asyncio.Lock()

    def home_partitions(self, instance: str, partitions: int) -> list[int]:
        return list(range(partitions))

    async def connect(self, partition_key: str) -> RespConnection:
        try:
            async with self._lock:
                if self._slots is None or self._used.get(partition_key) == self._reading:
                    self._slots = await cluster_slots(self._topology, timeout_s=CONNECT_TIMEOUT_S)
                    self._reading += 1
                self._used[partition_key] = self._reading
                where = self._slots.primary_of_key(partition_key)
        except TopologyError as error:
            raise LedgerConnectionError(str(error)) from None
        return await self._open(where)

    async def connect_to(self, host: str, port: int) -> RespConnection:
        # A server that does not know its own name leaves it out: it is the one that was asked.
        return await self._open(Address(host or self._topology.nodes[0].host, port))

    async def _open(self, where: Address) -> RespConnection:
        credentials = self._topology.credentials
        address = self._tls.address(where, credentials.username, credentials.password, 0)
        return await RespConnection.open(address, timeout_s=CONNECT_TIMEOUT_S)


class _Tls:
    """Addresses with the TLS of a topology. Files are read once; raises `TopologyError` if they cannot be used."""

    def __init__(self, tls: Tls | None) -> None:
        self._context = tls_context(tls) if tls is not None else None

    def address(self, where: Address | Path, username: str | None, password: str | None, db: int) -> ServerAddress:
        if isinstance(where, Path):
            return ServerAddress(path=str(where), username=username, password=password, db=db)
        return ServerAddress(
            host=where.host,
            port=where.port,
            username=username,
            password=password,
            db=db,
            tls=self._context,
            server_hostname=where.host if self._context is not None else None,
        )


def endpoints(topology: Topology) -> SingleEndpoints | ClusterEndpoints:
    """Raises `TopologyError`: TLS files cannot be used."""
    return ClusterEndpoints(topology) if isinstance(topology, Cluster) else SingleEndpoints(topology)
