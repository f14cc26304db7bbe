"""redis-py's client of a Cluster, as it works while some of the primaries are away."""

from __future__ import annotations

from typing import Any

from redis._parsers import AsyncCommandsParser
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError


class PartialClusterClient(RedisCluster):
    """redis-py asks the primary of the first slots which commands there are, again after every failure; while that one
    is away its client does nothing at all. This one asks whichever answers, and once."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands_parser = _Commands(self)

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().execute_command(*args, **kwargs)
        except AttributeError:
            # After a CLUSTERDOWN redis-py closes all connections, those under other commands among them.
            raise RedisConnectionError("the connection was closed after another command had failed") from None


class _Commands(AsyncCommandsParser):
    def __init__(self, client: RedisCluster) -> None:
        super().__init__()
        self._client = client

    async def initialize(self, node: ClusterNode | None = None) -> None:
        if self.commands:
            return
        others = [each for each in self._client.get_primaries() if each is not node]
        error: Exception | None = None
        for each in ([node] if node is not None else []) + others:
            try:
                await super().initialize(each)
                return
            except (RedisError, OSError) as failure:
                error = failure
        if error is not None:
            raise error
