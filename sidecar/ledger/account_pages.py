"""Goes through all accounts of a ledger in pages, with one round trip for each and little memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from redis.asyncio import RedisCluster

from sidecar.ledger.keys import Keys
from sidecar.valkey.calls import Argument
from sidecar.valkey.topology import Client

PAGE_ACCOUNTS: Final = 500
"""Accounts of one look at the index and of one pipeline."""


async def account_pages(
    client: Client, keys: Keys, *, accounts_max: int = PAGE_ACCOUNTS
) -> AsyncIterator[tuple[int, list[str]]]:
    """Number of the partition and account ids, partition by partition. An account that comes while this goes on may be
    left out.

    Raises:
        RedisError, OSError: Valkey cannot be reached.
    """
    for partition in range(keys.partitions):
        low: str | bytes = "-"
        while True:
            # The library's annotations leave open what comes back; it is a list of bytes.
            page: Any = await client.zrangebylex(keys.accounts(partition), low, "+", start=0, num=accounts_max)
            if page:
                yield partition, [id_.decode("utf-8", "replace") for id_ in page]
                low = b"(" + page[-1]
            if len(page) < accounts_max:
                break


async def replies_of_one_slot(client: Client, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
    """The replies to commands whose keys all have the same hash tag, in order; that of one which was refused is its
    exception.

    Raises:
        RedisError, OSError: Valkey cannot be reached.
    """
    if isinstance(client, RedisCluster):
        await client.initialize()  # reads the topology again after a failure, otherwise does nothing
        pipeline: Any = client.pipeline()
    else:
        pipeline = client.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    return list(await pipeline.execute(raise_on_error=False))
