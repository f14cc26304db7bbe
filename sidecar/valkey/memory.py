"""How much of its memory each server uses."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.asyncio import RedisCluster

from sidecar.valkey.calls import VALKEY_ERRORS
from sidecar.valkey.deadlines import with_deadline
from sidecar.valkey.topology import Client

ANSWER_S = 0.5
"""How long a node of a cluster may take: who asks does it between other things, and of all nodes."""


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes that count towards ``maxmemory``, and that limit; 0: there is none."""

    used_bytes: int
    max_bytes: int

    @property
    def share(self) -> float:
        """How much of the limit is used, 0.0 where there is none."""
        return self.used_bytes / self.max_bytes if self.max_bytes else 0.0


async def memory_uses(client: Client) -> dict[str, MemoryUse]:
    """By server: of a single one under "", of a cluster's primaries under their names, if they answer.

    Raises:
        RedisError, OSError: the single server cannot be reached, or does not say it.
    """
    if not isinstance(client, RedisCluster):
        return {"": _use(await client.info("memory"))}
    try:
        await with_deadline(ANSWER_S, client.initialize())
    except VALKEY_ERRORS:
        return {}
    nodes = client.get_primaries()
    replies = await asyncio.gather(
        *(with_deadline(ANSWER_S, client.execute_command("INFO", "memory", target_nodes=node)) for node in nodes),
        return_exceptions=True,
    )
    found = {}
    for node, reply in zip(nodes, replies, strict=True):
        if isinstance(reply, VALKEY_ERRORS):
            continue
        if isinstance(reply, BaseException):
            raise reply
        found[node.name] = _use(reply)
    return found


def place_of_key(client: Client, key: str) -> str:
    """The server of a key, as :func:`memory_uses` names it; "" too where a cluster's slot has no server now."""
    if not isinstance(client, RedisCluster):
        return ""
    try:
        node = client.get_node_from_key(key)
    except VALKEY_ERRORS:
        return ""
    return "" if node is None else str(node.name)


def _use(info: Mapping[str, Any]) -> MemoryUse:
    # What replicas and the AOF have yet to take does not count.
    used = int(info["used_memory"]) - int(info.get("mem_not_counted_for_evict", 0))
    return MemoryUse(used, int(info.get("maxmemory", 0)))
