"""The stand-ins on real sockets, and a client that tests talk to them with."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from sidecar.sandbox.bank.bank_server import SampleApi
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter, OpenMeterConfig
from sidecar.sandbox.server import Server
from tests.integration.sandbox.kit import NOW_S


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=20)
    async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session:
        yield session


@pytest.fixture
def bank() -> SampleApi:
    return SampleApi()


@pytest.fixture
async def bank_url(bank: SampleApi) -> AsyncIterator[str]:
    async with Server(bank.app()) as server:
        yield server.url


@pytest.fixture
def meter() -> OpenMeter:
    return OpenMeter(OpenMeterConfig(now=lambda: NOW_S))


@pytest.fixture
async def meter_url(meter: OpenMeter) -> AsyncIterator[str]:
    async with Server(meter.app()) as server:
        yield server.url
