"""redis-py's client of a Cluster, as it works while some of the primaries are away."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from redis._parsers import AsyncCommandsParser
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from sidecar.valkey.deadlines import with_deadline

START_S: Final = (0.5, 1.0, 2.0, 5.0)
"""How long the topology may take to be read, in one attempt after another: each asks another node first, and a node
that hangs answers none."""


class PartialClusterClient(RedisCluster):
    """redis-py asks the primary of the first slots which commands there are, again after every failure; while that one
    is away its client does nothing at all. This one asks whichever answers, and once."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands_parser = _Commands(self)

    async def initialize(self, *args: Any, **kwargs: Any) -> PartialClusterClient:
        if not self._initialize:
            return self
        for deadline_s in START_S[:-1]:
            try:
                await with_deadline(deadline_s, super().initialize(*args, **kwargs))
            except TimeoutError:
                self._ask_another_first()
            else:
                return self
        await with_deadline(START_S[-1], super().initialize(*args, **kwargs))
        return self

    def _ask_another_first(self) -> None:
        nodes = self.nodes_manager.startup_nodes
        if nodes:
            first = next(iter(nodes))
            nodes[first] = nodes.pop(first)

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
        """Asks all primaries at once; the first answer counts."""
        if self.commands:
            return
        nodes = {each.name: each for each in ([node] if node is not None else []) + self._client.get_primaries()}
        asking = {asyncio.ensure_future(super(_Commands, self).initialize(each)) for each in nodes.values()}
        failure: BaseException | None = None
        try:
            while asking and not self.commands:
                done, asking = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    failure = task.exception() or failure
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        if not self.commands:
            raise failure or RedisError("the Cluster has no primary")
