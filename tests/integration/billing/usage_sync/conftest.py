"""Real Valkey, and the stand-ins of OpenMeter and Lago on real sockets, with the clients that production uses."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from sidecar.billing.lago.client import LagoClient
from sidecar.billing.settings import LagoSettings
from sidecar.ledger.keys import Keys
from sidecar.metering.openmeter.meter_query import MeterQuery
from sidecar.metering.settings import MeteringSettings
from sidecar.sandbox.lago.lago_server import Lago, LagoConfig
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter, OpenMeterConfig
from sidecar.sandbox.server import Server
from tests.integration.billing.usage_sync.kit import T0, SyncSystem


@pytest.fixture
async def system(client: Redis, keys: Keys) -> AsyncIterator[SyncSystem]:
    lago = Lago(LagoConfig(now=lambda: T0))
    meter = OpenMeter(OpenMeterConfig(seed=3))
    async with Server(lago.app()) as lago_server, Server(meter.app()) as meter_server:
        settings = LagoSettings.model_validate(
            {
                "url": lago_server.url,
                "api_key": lago.config.api_key,
                "attempts_max": 1,
                "requests_per_second": 5_000,
            }
        )
        async with LagoClient(settings) as api, MeterQuery(MeteringSettings(url=meter_server.url)) as query:
            yield await SyncSystem(client, keys, lago, meter, api, query).opened()
