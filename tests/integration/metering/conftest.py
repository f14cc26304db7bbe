"""A publisher's surroundings: a client of Valkey, and OpenMeter's stand-in on a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import redis
from redis.asyncio import Redis

from sidecar.ledger.keys import Keys
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter, OpenMeterConfig
from sidecar.sandbox.server import Server


@pytest.fixture
def keys() -> Keys:
    return Keys(partitions=4)


@pytest.fixture
async def client(valkey: redis.Redis) -> AsyncIterator[Redis]:
    where = valkey.connection_pool.connection_kwargs
    async with Redis(host=where["host"], port=where["port"]) as client:
        yield client


@pytest.fixture
def meter() -> OpenMeter:
    return OpenMeter(OpenMeterConfig(seed=3))


@pytest.fixture
async def url(meter: OpenMeter) -> AsyncIterator[str]:
    async with Server(meter.app()) as server:
        yield server.url
