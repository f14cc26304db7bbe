"""Connections to Valkey, whichever of the four topologies holds it.

``connect`` gives a redis-py client for control work: loading accounts, registering, publishing, listing. The data plane
keeps connections of its own; it asks here where the primaries are and with what TLS to talk to them.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import redis.asyncio as valkey
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.cluster import RedisCluster as ClusterClient
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel as SentinelGroup
from redis.backoff import ExponentialBackoff
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import RedisClusterException, RedisError

from sidecar.basics.fault_reasons import reason_of
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

SLOTS: Final = REDIS_CLUSTER_HASH_SLOTS

Client: TypeAlias = valkey.Redis | ClusterClient
"""What control work is done with; answers are bytes."""


CLIENT_ERRORS: Final = (RedisError, RedisClusterException, OSError)
"""What a client raises when the server cannot be reached or refuses; a Cluster's own errors are a family apart."""


class TopologyError(Exception):
    """No primary can be found or talked to as configured; the message names the place and holds no secret."""


@dataclass(frozen=True, slots=True)
class SlotRange:
    """Slots ``first`` to ``last``, both included, and their primary."""

    first: int
    last: int
    primary: Address


@dataclass(frozen=True, slots=True)
class SlotMap:
    """Which primary has which slots of a Cluster, in rising order."""

    ranges: tuple[SlotRange, ...]

    def primary_of(self, slot: int) -> Address:
        """The primary of a slot.

        Raises:
            TopologyError: the Cluster has given it to nobody.
        """
        for each in self.ranges:
            if each.first <= slot <= each.last:
                return each.primary
        raise TopologyError(f"slot {slot} of the Cluster has no primary")

    def primary_of_key(self, key: str) -> Address:
        """The primary of a key's slot. Raises as ``primary_of``."""
        return self.primary_of(keyslot(key))


def keyslot(key: str | bytes) -> int:
    """The Cluster slot of a key: CRC16 of its hash tag, or of all of it (Valkey Cluster specification)."""
    return key_slot(key.encode() if isinstance(key, str) else key)


def tls_context(tls: Tls) -> ssl.SSLContext:
    """A context for connections of one's own.

    Raises:
        TopologyError: a file cannot be read, or holds no certificate or no matching key; names the setting.
    """
    try:
        context = ssl.create_default_context(cafile=tls.ca_file)
    except (OSError, ValueError) as error:
        raise TopologyError(f"valkey_tls.ca_file {tls.ca_file}: {_reason(error)}") from None
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if tls.certificate_file is not None:
        try:
            context.load_cert_chain(tls.certificate_file, tls.key_file)
        except (OSError, ValueError) as error:
            files = f"{tls.certificate_file} with key_file {tls.key_file}"
            raise TopologyError(f"valkey_tls.certificate_file {files}: {_reason(error)}") from None
    return context


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"is not usable PEM ({error.reason or 'unknown reason'})"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def connect(
    topology: Topology, *, timeout_s: float = 5.0, connect_timeout_s: float = 2.0, client_name: str = "quota-sidecar"
) -> Client:
    """A client for control work; nothing is opened before its first command, nor before ``aclose`` closed.

    ``timeout_s`` is for one answer, ``connect_timeout_s`` for one connection. An embedded server must be running.

    Raises:
        TopologyError: the TLS files cannot be used.
    """
    options = _options(timeout_s, connect_timeout_s) | {"client_name": client_name}
    match topology:
        case Embedded():
            return valkey.Redis(unix_socket_path=str(topology.socket), **options)
        case Standalone(address, credentials, db, tls):
            options |= _login(credentials) | _tls_options(tls) | {"db": db}
            if isinstance(address, Path):
                return valkey.Redis(unix_socket_path=str(address), **options)
            return valkey.Redis(host=address.host, port=address.port, **options)
        case Sentinel(_, service, credentials, _, db, tls):
            options |= _login(credentials) | _tls_options(tls) | {"db": db}
            group = _sentinels(topology, timeout_s, connect_timeout_s)
            client: valkey.Redis = group.master_for(service, redis_class=_SentinelClient, **options)
            return client
        case Cluster(nodes, credentials, tls):
            options |= _login(credentials) | _tls_options(tls)
            starts = [ClusterNode(node.host, node.port) for node in nodes]
            return ClusterClient(startup_nodes=starts, **options)


@asynccontextmanager
async def connected(topology: Topology, *, timeout_s: float = 5.0) -> AsyncIterator[Client]:
    """A client that is closed at the end. Raises as ``connect``."""
    client = connect(topology, timeout_s=timeout_s)
    try:
        yield client
    finally:
        await client.aclose()


class _SentinelClient(valkey.Redis):
    """Closes its connections to the Sentinels with those to the primary; redis-py leaves them to whoever made them."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await super().aclose(close_connection_pool)
        group = getattr(self.connection_pool, "sentinel_manager", None)
        for sentinel in group.sentinels if group is not None else ():
            await sentinel.aclose()


def _options(timeout_s: float, connect_timeout_s: float) -> dict[str, Any]:
    return {
        # A pooled connection may have died unseen; more than that is for the caller, who knows how long he can wait.
        "retry": Retry(ExponentialBackoff(cap=0.2, base=0.02), 2),
        "socket_timeout": timeout_s,
        "socket_connect_timeout": connect_timeout_s,
        "decode_responses": False,
        # RESP2: answers have one shape with every version of redis-py and on every server.
        "protocol": 2,
    }


def _login(credentials: Credentials) -> dict[str, Any]:
    return {"username": credentials.username, "password": credentials.password}


def _tls_options(tls: Tls | None) -> dict[str, Any]:
    if tls is None:
        return {}
    tls_context(tls)  # redis-py reads the files at the first connection; a bad one is to be known now, by its name
    return {
        "ssl": True,
        "ssl_ca_certs": str(tls.ca_file) if tls.ca_file else None,
        "ssl_certfile": str(tls.certificate_file) if tls.certificate_file else None,
        "ssl_keyfile": str(tls.key_file) if tls.key_file else None,
        "ssl_cert_reqs": "required" if tls.verify else "none",
        "ssl_check_hostname": tls.verify,
    }


def _sentinels(topology: Sentinel, timeout_s: float, connect_timeout_s: float) -> SentinelGroup:
    options = (
        _options(timeout_s, connect_timeout_s) | _login(topology.sentinel_credentials) | _tls_options(topology.tls)
    )
    hosts = [(each.host, each.port) for each in topology.sentinels]
    return SentinelGroup(hosts, sentinel_kwargs=options)  # type: ignore[no-untyped-call]


async def primary_address(topology: Embedded | Standalone | Sentinel, *, timeout_s: float = 2.0) -> Address | Path:
    """Where the primary is now: the address that the Sentinels agree on, or the configured one.

    Raises:
        TopologyError: no Sentinel can be reached, or none knows a primary that is up.
    """
    if isinstance(topology, Embedded):
        return topology.socket
    if isinstance(topology, Standalone):
        return topology.address
    group = _sentinels(topology, timeout_s, timeout_s)
    try:
        host, port = await group.discover_master(topology.service)
    except (RedisError, OSError) as error:
        hosts = ", ".join(map(str, topology.sentinels))
        reason = reason_of(error)
        raise TopologyError(f"no primary of {topology.service!r} is known to the Sentinels {hosts}: {reason}") from None
    finally:
        for sentinel in group.sentinels:
            await sentinel.aclose()
    return Address(_text(host), int(port))


async def cluster_slots(topology: Cluster, *, timeout_s: float = 2.0) -> SlotMap:
    """Which primary has which slots, by the first node that answers.

    Raises:
        TopologyError: no node answers, or none is in a Cluster; says what each of them said.
    """
    failures: list[str] = []
    options = _options(timeout_s, timeout_s) | _login(topology.credentials) | _tls_options(topology.tls)
    for node in topology.nodes:
        client = valkey.Redis(host=node.host, port=node.port, **options)
        try:
            # Spelled as two words, the answer comes as the server sent it: redis-py's own reading differs by version.
            answer = await client.execute_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]
        except (RedisError, OSError) as error:
            failures.append(f"{node}: {reason_of(error)}")
            continue
        finally:
            await client.aclose()
        if answer:
            return SlotMap(tuple(sorted((_slot_range(each, node) for each in answer), key=lambda r: r.first)))
        failures.append(f"{node}: has no slots")
    raise TopologyError("no node reports the slots of the Cluster: " + "; ".join(failures))


def _slot_range(entry: list[Any], asked: Address) -> SlotRange:
    first, last, primary, *_ = entry
    host = _text(primary[0]) if primary[0] else ""
    # A node that does not know its own name leaves it empty or "?": it is the one that was asked.
    return SlotRange(int(first), int(last), Address(host if host not in ("", "?") else asked.host, int(primary[1])))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
