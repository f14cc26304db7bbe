from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.chaos.kit import KEYS, Api
from tests.support.valkey_process import ValkeyProcess, valkey_process
from tests.support.verified import assert_verified


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ValkeyProcess]:
    """A Valkey of one's own that loses nothing when it is killed."""
    with valkey_process(tmp_path / "valkey", appendonly="yes", appendfsync="always") as process:
        yield process


@pytest.fixture
async def control(server: ValkeyProcess) -> AsyncIterator[Redis]:
    """A client. Whatever a test does, at its end the ledger must agree with itself."""
    client = Redis(port=server.port, protocol=2)
    try:
        yield client
        await assert_verified(client, KEYS)
    finally:
        await client.aclose()


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with Api().serve() as upstream:
        yield upstream
