"""Gives back the holds of dead gateway processes. Several processes may run it at once: the scripts decide."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from redis.asyncio.cluster import RedisCluster
from redis.exceptions import ResponseError

from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.logger import get_logger
from sidecar.ledger.client.server_answers import Meaning, server_answer
from sidecar.ledger.keys import Keys
from sidecar.valkey.scripts import script
from sidecar.valkey.topology import CLIENT_ERRORS

log = get_logger("sidecar.reaper")

ACCOUNTS_MAX: Final = 250
"""Accounts of one call: it keeps each near a millisecond of the server's only thread."""

DEPARTED: Final = b"departed:"


async def reap(client: Any, keys: Keys, ttl_ms: int) -> int:
    """Reaps every instance whose last heartbeat is older than ``ttl_ms``, gives back what departed ones hold; returns
    how many were reaped.

    ``client``: redis.asyncio's Redis or RedisCluster. The script decides what is dead, by the ledger's clock.
    """
    reaped = 0
    for partition in range(keys.partitions):
        reaped += await _reap_partition(client, keys, partition, ttl_ms)
        await _give_back(client, keys, partition)
    return reaped


async def _reap_partition(client: Any, keys: Keys, partition: int, ttl_ms: int) -> int:
    reaped = 0
    beats = await client.zrange(keys.alive(partition), 0, -1, withscores=True)
    if not beats:
        return 0
    seconds, micros = await _time(client, keys.alive(partition))
    now_ms = seconds * 1000 + micros // 1000
    for member, beat_ms in beats:
        if now_ms - ttl_ms < beat_ms <= now_ms:
            continue
        instance = member.decode()
        names = [
            keys.instance(partition, instance), keys.clock(partition), keys.alive(partition), keys.meta(partition)
        ]  # fmt: skip
        held = await client.eval(script("reap").text, len(names), *names, instance, ttl_ms)
        if held < 0:
            continue
        reaped += 1
        if held:
            log.warning("a gateway process died, its holds are released", instance=instance, partition=partition,
                        units=held)  # fmt: skip
        else:
            log.info("a gateway process died without holds", instance=instance, partition=partition)
    return reaped


async def _time(client: Any, key: str) -> tuple[int, int]:
    if not isinstance(client, RedisCluster):
        seconds, micros = await client.time()
        return int(seconds), int(micros)
    if client.nodes_manager.default_node is None:
        await client.initialize()
    node = client.get_node_from_key(key)
    seconds, micros = await client.execute_command("TIME", target_nodes=node)
    return int(seconds), int(micros)


async def _departed(client: Any, keys: Keys, partition: int) -> set[bytes]:
    """The fields of the departures whose units are not given back yet."""
    return {field for field in await client.hkeys(keys.meta(partition)) if field.startswith(DEPARTED)}


async def _give_back(client: Any, keys: Keys, home: int) -> None:
    """Goes through the accounts until nothing remains that departed instances of this home partition hold."""
    departed = await _departed(client, keys, home)
    if not departed:
        return
    skipped = False
    async for accounts in _pages(client, keys, home):
        remain, unreadable = await _give_back_page(client, keys, home, accounts)
        skipped = skipped or unreadable
        if not remain:
            return
    if skipped:
        return  # what they hold of an unreadable account comes back when it can be read
    left = await _departed(client, keys, home) & departed
    if left:
        # The accounts are gone, and their holds with them.
        log.warning("departed processes held units of accounts that are gone", partition=home, processes=len(left))
        await client.hdel(keys.meta(home), *left)


async def _pages(client: Any, keys: Keys, home: int) -> AsyncIterator[list[str]]:
    # On a cluster a batch has only accounts of its home partition; on one server it may have any.
    partitions: Sequence[int] = [home] if isinstance(client, RedisCluster) else range(keys.partitions)
    for partition in partitions:
        after = "-"
        while True:
            page = await client.zrangebylex(keys.accounts(partition), after, "+", start=0, num=ACCOUNTS_MAX)
            if page:
                yield [member.decode() for member in page]
                after = "(" + page[-1].decode()
            if len(page) < ACCOUNTS_MAX:
                break


async def _give_back_page(client: Any, keys: Keys, home: int, accounts: list[str]) -> tuple[int, bool]:
    """What remains after these accounts, and whether one of them cannot be read."""
    unreadable = False
    while True:
        names = [keys.meta(home), keys.clock(home)]
        for account in accounts:
            names += (keys.state(account), keys.account(account))
        try:
            return int(await client.eval(script("give_back").text, len(names), *names)), unreadable
        except ResponseError as error:
            answer = server_answer(str(error))
            if answer.meaning is not Meaning.ACCOUNT or answer.account > len(accounts):
                raise
            # One account that cannot be read must not keep the others' holds.
            unreadable = True
            log.error(
                "cannot release the holds of an account", account=accounts[answer.account - 1], reason=answer.reason
            )
            accounts = accounts[: answer.account - 1] + accounts[answer.account :]


async def keep_reaping(client: Any, keys: Keys, ttl_ms: int) -> None:
    """Reaps every half of ``ttl_ms``, until it is cancelled."""
    task = asyncio.current_task()
    # redis-py can lose a cancellation that falls together with an answer; who waits for the end must not wait for ever.
    while task is None or not task.cancelling():
        await asyncio.sleep(ttl_ms / 2000)
        try:
            await reap(client, keys, ttl_ms)
        except CLIENT_ERRORS as error:
            log.warning("releasing the holds of dead processes failed, it is tried again", error=reason_of(error)[:200])
