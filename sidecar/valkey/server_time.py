"""The clock of Valkey, for control work."""

from __future__ import annotations

from typing import Final

from redis.asyncio.cluster import RedisCluster

from sidecar.valkey.deadlines import with_deadline
from sidecar.valkey.topology import CLIENT_ERRORS, Client

ANSWER_S: Final = 1.0
"""How long a node of a Cluster may take before another one is asked."""


async def server_now_ms(client: Client) -> int:
    """Now, by a server; of a Cluster by any primary that answers.

    Raises:
        RedisError, OSError: none answers.
    """
    if not isinstance(client, RedisCluster):
        return _ms(await client.time())
    await client.initialize()
    failure: Exception | None = None
    for node in client.get_primaries():
        try:
            return _ms(await with_deadline(ANSWER_S, client.execute_command("TIME", target_nodes=node)))
        except CLIENT_ERRORS as error:
            failure = error
    raise failure or ConnectionError("the Cluster has no primary")


def _ms(reply: tuple[int, int]) -> int:
    seconds, micros = reply
    return int(seconds) * 1000 + int(micros) // 1000
