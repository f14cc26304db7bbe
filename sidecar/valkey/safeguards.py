"""Settings of Valkey without which a failover or an outage costs more than it must."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.exceptions import ResponseError

from sidecar.valkey.deadlines import with_deadline
from sidecar.valkey.topology import CLIENT_ERRORS, Client
from sidecar.valkey.url import Embedded, Sentinel, Topology

MAX_LAG_S: Final = 2
"""What is recommended for ``min-replicas-max-lag``. A replica reports once a second, and the primary counts in whole
seconds: with 2 a report may be missing for a whole second, with 1 each late one would stop all writes."""

MAX_LAG_S_TOLERATED: Final = 5
"""A guard that lets a primary that is cut off write for longer is none."""

NAMED_MAX: Final = 5
NODE_ANSWER_S: Final = 0.5
"""How long a node of a Cluster may take; one that is away must not keep what the others say."""


@dataclass(frozen=True, slots=True)
class Replication:
    """What a primary says of its replicas.

    Attributes:
        is_guarded: it takes no writes while no replica keeps up (``min-replicas-to-write``).
        max_lag_s: how old a replica's last report may be; None where the server does not tell (CONFIG is refused).
    """

    server: str
    replicas: int
    is_guarded: bool
    max_lag_s: int | None = None

    @property
    def is_safe(self) -> bool:
        return self.is_guarded and (self.max_lag_s is None or self.max_lag_s <= MAX_LAG_S_TOLERATED)


async def missing_safeguards(client: Client, topology: Topology) -> list[str]:
    """A sentence for each safeguard that is not set, with what it costs and what to set.

    Raises:
        RedisError, OSError: Valkey cannot be reached.
    """
    if isinstance(topology, Embedded):
        return []
    if isinstance(client, RedisCluster):
        return await _of_cluster(client)
    found = await _replication(client, str(topology))
    may_fail_over = isinstance(topology, Sentinel)
    return _unguarded([found] if found is not None and (found.replicas or may_fail_over) else [])


async def _of_cluster(client: RedisCluster) -> list[str]:
    await client.initialize()
    nodes = client.get_primaries()
    found = await asyncio.gather(*(_replication(client, node.name, node) for node in nodes), return_exceptions=True)
    answered = [each for each in found if isinstance(each, Replication)]
    # Without replicas there is no failover, and a guard would only stop all writes.
    unguarded = _unguarded(answered if client.get_replicas() else [])
    coverage = await asyncio.gather(
        *(_setting(client, "cluster-require-full-coverage", node) for node in nodes), return_exceptions=True
    )
    strict = [node.name for node, value in zip(nodes, coverage, strict=True) if value == b"yes"]
    if strict:
        unguarded.append(
            f"cluster-require-full-coverage is yes on {_named(strict)}: while one primary is away, all of them refuse "
            "every call; with no, only the accounts of that primary wait. Set cluster-require-full-coverage no"
        )
    return unguarded


def _unguarded(servers: list[Replication]) -> list[str]:
    without = [each.server for each in servers if not each.is_guarded]
    lax = [each for each in servers if each.is_guarded and not each.is_safe]
    advice = f"set min-replicas-to-write 1 and min-replicas-max-lag {MAX_LAG_S}"
    sentences = []
    if without:
        sentences.append(
            f"min-replicas-to-write is not set on {_named(without)}: a primary that was replaced or is cut off goes on "
            f"to take charges, and all of them are lost; {advice}"
        )
    if lax:
        worst = max(each.max_lag_s or 0 for each in lax)
        sentences.append(
            f"min-replicas-max-lag is {worst} on {_named([each.server for each in lax])}: a primary that was replaced "
            f"or is cut off takes charges for {worst + 1} s more, and all of them are lost; {advice}"
        )
    return sentences


def _named(servers: list[str]) -> str:
    more = f" and {len(servers) - NAMED_MAX} more" if len(servers) > NAMED_MAX else ""
    return ", ".join(servers[:NAMED_MAX]) + more


async def _replication(client: Client, server: str, node: ClusterNode | None = None) -> Replication | None:
    """None: it is no primary, or does not tell."""
    try:
        info = await _execute(client, node, "INFO", "replication")
    except ResponseError:
        return None
    if not isinstance(info, dict) or info.get("role") != "master":
        return None
    # The field is there only if both settings are above 0; CONFIG is refused by managed servers and careful ACLs.
    is_guarded = "min_slaves_good_slaves" in info
    lag = await _setting(client, "min-replicas-max-lag", node) if is_guarded else None
    return Replication(server, int(info.get("connected_slaves", 0)), is_guarded, int(lag) if lag else None)


async def _setting(client: Client, name: str, node: ClusterNode | None) -> bytes | None:
    """The value of a setting; None where the server does not tell."""
    try:
        # As one word, since redis-py would read the answer to "CONFIG GET" its own way, another one in each version.
        found = await _execute(client, node, "CONFIG GET", name)
    except CLIENT_ERRORS:
        return None
    pairs = dict(zip(found[::2], found[1::2], strict=False)) if isinstance(found, list) else found
    value = {_bytes(key): _bytes(value) for key, value in pairs.items()}.get(name.encode())
    return value or None


async def _execute(client: Client, node: ClusterNode | None, *args: str) -> Any:
    if isinstance(client, RedisCluster):
        return await with_deadline(NODE_ANSWER_S, client.execute_command(*args, target_nodes=node))
    return await client.execute_command(*args)  # type: ignore[no-untyped-call]


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
