"""Commands to many partitions at once, on one server or on a cluster."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import RedisCluster
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from sidecar.valkey.deadlines import with_deadline
from sidecar.valkey.topology import CLIENT_ERRORS, Client

VALKEY_ERRORS = CLIENT_ERRORS
"""What any call may raise while Valkey is out of reach, fails over or is misused."""

NODE_ANSWER_S = 2.0
"""How long a node of a cluster may take for one of several calls: one that hangs must not make the others wait."""

REST_S_MIN, REST_S_MAX = 0.1, 5.0
"""How long a partition is left alone after a failure, doubling: a node of a cluster that does not answer must not make
the others wait for it every time."""

CALLS_PER_NODE_MAX = 16
"""Calls of one look that wait for the same node of a cluster: each takes a connection, of which the library has 100."""

Argument = str | bytes | int


@dataclass(frozen=True, slots=True)
class Call:
    """A command, all of whose keys live with ``key``."""

    key: str
    args: tuple[Argument, ...]


def script_call(text: bytes, keys: Sequence[str], *args: Argument) -> Call:
    """EVAL of one of ``sidecar.metering.outbox.outbox_scripts``."""
    return Call(keys[0], ("EVAL", text, len(keys), *keys, *args))


async def call_each(client: Client, calls: Sequence[Call]) -> list[Any]:
    """The replies, in order; a call that failed has its exception as reply, so that one failed node of a cluster
    leaves the others' replies usable.

    Raises:
        RedisError, OSError: nothing can be said of any call, as the server cannot be reached.
    """
    if isinstance(client, RedisCluster):
        # Reads the topology again after a failure, otherwise does nothing.
        await client.initialize()
        nodes: dict[str, _Node] = defaultdict(_Node)
        return list(await asyncio.gather(*(_routed(client, call, nodes) for call in calls)))
    pipeline = client.pipeline(transaction=False)
    for call in calls:
        pipeline.execute_command(*call.args)
    return list(await pipeline.execute(raise_on_error=False))


@dataclass(slots=True)
class _Node:
    """A node in one look: whose turn it is, and why nobody else needs to try."""

    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CALLS_PER_NODE_MAX))
    lost: Exception | None = None


async def _routed(client: RedisCluster, call: Call, nodes: Mapping[str, _Node]) -> Any:
    # The node is named because the library would otherwise ask a server which of XREADGROUP's arguments are keys.
    try:
        node = client.get_node_from_key(call.key)
        state = nodes[node.name if node is not None else ""]
        async with state.turns:
            if state.lost is not None:
                return state.lost
            try:
                return await with_deadline(NODE_ANSWER_S, client.execute_command(*call.args, target_nodes=node))
            except (RedisConnectionError, RedisTimeoutError, OSError) as error:
                state.lost = error
                raise
    except VALKEY_ERRORS as error:
        return error


def raise_first(replies: Iterable[Any]) -> None:
    """Raises the first reply that is an exception."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply


def is_missing(reply: Any) -> bool:
    """The reply says that there is no such stream, or no such group."""
    return isinstance(reply, ResponseError) and ("NOGROUP" in str(reply) or "no such key" in str(reply))


class PartitionCalls:
    """Calls to those partitions that work. One that fails rests for a while, and its error is kept for a report."""

    def __init__(self, client: Client, partitions: int) -> None:
        self._client = client
        self._rest_s = [0.0] * partitions
        self._resting_until_s = [0.0] * partitions
        self._errors: list[Exception] = []

    def __repr__(self) -> str:
        return f"PartitionCalls({len(self.live())} of {len(self._rest_s)} partitions live)"

    def live(self) -> list[int]:
        """The partitions that do not rest."""
        now_s = time.monotonic()
        return [partition for partition, until_s in enumerate(self._resting_until_s) if until_s <= now_s]

    def note(self, error: Exception) -> None:
        """Keeps a failure for the report."""
        self._errors.append(error)

    def take_errors(self) -> list[Exception]:
        """The failures since the last time that nobody was told of."""
        errors, self._errors = self._errors, []
        return errors

    async def each(self, calls: Sequence[tuple[int, Call]]) -> list[tuple[int, Any]]:
        """The replies of the partitions that answered, in order. That a stream or group is missing is an answer.

        Raises:
            RedisError, OSError: none can be reached.
        """
        replies = await call_each(self._client, [call for _, call in calls])
        answered: list[tuple[int, Any]] = []
        for (partition, _), reply in zip(calls, replies, strict=True):
            if isinstance(reply, Exception) and not is_missing(reply):
                self.note(reply)
                self._rest_s[partition] = min(REST_S_MAX, max(REST_S_MIN, 2 * self._rest_s[partition]))
                self._resting_until_s[partition] = time.monotonic() + self._rest_s[partition]
            else:
                self._rest_s[partition] = 0.0
                answered.append((partition, reply))
        return answered
