"""Commands to many partitions at once, on one server or on a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import RedisError

Client = Redis | RedisCluster
"""With ``decode_responses=False``."""

VALKEY_ERRORS = (RedisError, OSError)
"""What any call may raise while Valkey is out of reach, fails over or is misused."""

Argument = str | bytes | int


@dataclass(frozen=True, slots=True)
class Call:
    """A command, all of whose keys live with ``key``."""

    key: str
    args: tuple[Argument, ...]


def script_call(text: bytes, keys: Sequence[str], *args: Argument) -> Call:
    """EVAL of one of ``sidecar.metering.scripts``."""
    return Call(keys[0], ("EVAL", text, len(keys), *keys, *args))


async def call_each(client: Client, calls: Sequence[Call]) -> list[Any]:
    """The replies, in order; a call that failed has its exception as reply, so that one failed node of a cluster
    leaves the others' replies usable.

    Raises:
        RedisError, OSError: nothing can be said of any call, as the server cannot be reached.
    """
    if isinstance(client, RedisCluster):
        await client.initialize()  # reads the topology again after a failure, otherwise does nothing
        return list(await asyncio.gather(*(_routed(client, call) for call in calls)))
    pipeline = client.pipeline(transaction=False)
    for call in calls:
        pipeline.execute_command(*call.args)
    return list(await pipeline.execute(raise_on_error=False))


async def _routed(client: RedisCluster, call: Call) -> Any:
    # The node is named because the library would otherwise ask a server which of XREADGROUP's arguments are keys.
    try:
        node = client.get_node_from_key(call.key)
        return await client.execute_command(*call.args, target_nodes=node)
    except VALKEY_ERRORS as error:
        return error


def raise_first(replies: Iterable[Any]) -> None:
    """Raises the first reply that is an exception."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
