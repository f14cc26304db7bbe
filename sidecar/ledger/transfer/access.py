"""Commands to all servers of a ledger, for tools that go through everything that it has."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

from redis.asyncio import RedisCluster

from sidecar.basics.errors import SetupError
from sidecar.ledger.keys import Keys
from sidecar.valkey.calls import Argument, Call, call_each, raise_first
from sidecar.valkey.topology import Client

SCAN_COUNT: Final = 1_000
"""Keys that a server looks at for one page: about a millisecond."""

Progress = Callable[[str, int, int | None], None]
"""Told what is done, how much of it, and of how much (None: not known)."""


class TransferError(SetupError):
    """The data cannot be moved. The message says why."""


def no_progress(what: str, done: int, total: int | None) -> None:
    """Tells nobody."""


class Access:
    """All methods raise what redis-py raises (``sidecar.valkey.topology.CLIENT_ERRORS``)."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def __repr__(self) -> str:
        return f"Access({self.client!r})"

    async def each(self, calls: Sequence[Call]) -> list[Any]:
        """The replies, in order. On one server the commands are done in order; on a cluster, those of different calls
        in any order."""
        if not calls:
            return []
        replies = await call_each(self.client, calls)
        raise_first(replies)
        return replies

    async def one(self, key: str, *args: Argument) -> Any:
        """The reply to one command, whose first key is ``key``."""
        return (await self.each([Call(key, args)]))[0]

    async def key_pages(self, pattern: str) -> AsyncIterator[list[bytes]]:
        """Names of all keys that match. One that is made or removed meanwhile may be left out, and one may come
        twice."""
        nodes: list[Any] = [None]
        if isinstance(self.client, RedisCluster):
            await self.client.initialize()
            nodes = list(self.client.get_primaries())
        for node in nodes:
            cursor = 0
            while True:
                cursor, page = await self._scan(node, cursor, pattern)
                if page:
                    yield page
                if cursor == 0:
                    break

    async def _scan(self, node: Any, cursor: int, pattern: str) -> tuple[int, list[bytes]]:
        options = {} if node is None else {"target_nodes": node}
        command = "SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT
        execute: Any = self.client.execute_command
        found, page = await execute(*command, **options)
        if isinstance(found, dict):  # redis-py has the cursors of a cluster by the node
            [found] = found.values()
        return int(found), list(page)

    async def now_ms(self, key: str) -> int:
        """The clock of the server that has ``key``."""
        seconds, microseconds = await self.one(key, "EVAL", "return redis.call('TIME')", 1, key)
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def unlink(self, names: Sequence[str | bytes]) -> None:
        """Removes keys."""
        texts = [name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name for name in names]
        await self.each([Call(text, ("UNLINK", name)) for text, name in zip(texts, names, strict=True)])


async def living(access: Access, names: Sequence[str], ttl_ms: int) -> list[str]:
    """Instances whose last heartbeat is younger than ``ttl_ms``. ``names``: sorted sets of instances and heartbeats."""
    found: list[str] = []
    for name in names:
        if await access.one(name, "TYPE", name) != b"zset":
            continue
        since = await access.now_ms(name) - ttl_ms
        found += [
            member.decode("utf-8", "replace")
            for member in await access.one(name, "ZRANGEBYSCORE", name, f"({since}", "+inf")
        ]
    return found


def leases_pattern(keys: Keys, *, first_format: bool) -> str:
    """Names of leases, for SCAN."""
    return keys.first_format(0, "lease:*") if first_format else keys.lease("*")
