"""Gives back the holds of dead gateway processes. Several processes may run it at once: the script decides."""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio.cluster import RedisCluster
from redis.exceptions import ResponseError

from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.logger import get_logger
from sidecar.ledger.keys import Keys
from sidecar.valkey.scripts import script
from sidecar.valkey.topology import CLIENT_ERRORS

log = get_logger("sidecar.reaper")

SHARES_MAX = 1000
"""Accounts given to one call of the script; an instance that held more is reaped in several."""


async def reap(client: Any, keys: Keys, ttl_ms: int) -> int:
    """Reaps every instance whose last heartbeat is older than ``ttl_ms``; returns how many.

    ``client``: redis.asyncio's Redis or RedisCluster. The script decides what is dead, by Valkey's clock.
    """
    reaped = 0
    for partition in range(keys.partitions):
        alive = keys.alive(partition)
        seconds, micros = await _time(client, alive)
        now_ms = seconds * 1000 + micros // 1000
        for member in await client.zrangebyscore(alive, "-inf", now_ms - ttl_ms):
            instance = member.decode()
            try:
                accounts = await _reap_one(client, keys, partition, instance, ttl_ms)
            except ResponseError as error:
                # One account that the script cannot read must not keep the others' holds.
                log.error("cannot release the holds of a dead gateway process", instance=instance,
                          error=reason_of(error)[:200])  # fmt: skip
                continue
            if accounts is None:
                continue
            reaped += 1
            if accounts:
                log.warning("a gateway process died, its holds are released", instance=instance, partition=partition,
                            accounts=accounts)  # fmt: skip
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


async def _reap_one(client: Any, keys: Keys, partition: int, instance: str, ttl_ms: int) -> int | None:
    """The number of accounts whose holds it gave back. None: the instance is alive."""
    key = keys.instance(partition, instance)
    released: set[bytes] = set()
    while True:
        fields = await client.hkeys(key)
        accounts = sorted({field.split(b"\0", 1)[0] for field in fields if b"\0" in field})[:SHARES_MAX]
        arguments = [key, keys.alive(partition), *accounts]
        remain = await client.eval(script("reap").text, len(arguments), *arguments, instance, ttl_ms)
        if remain < 0:
            return None
        released.update(accounts)
        if remain == 0:
            return len(released)


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
