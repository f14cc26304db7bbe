"""A gateway that starts while Valkey is away makes nothing there before it has seen what there is."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from sidecar.app import assemble, ledger_start
from sidecar.app.configuration import load_config
from sidecar.app.data_plane import DataPlane
from sidecar.app.ledger_start import check_ledger
from sidecar.app.serve import key_store
from sidecar.ledger.store import open_store
from tests.integration.ledger_client.kit import until, valkey_client
from tests.support.valkey_process import valkey_process


async def test_a_gateway_that_starts_before_valkey_opens_no_partition_beside_a_ledger_of_the_former_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_start, "CHECK_AGAIN_S", 0.05)
    with valkey_process(tmp_path / "valkey", appendonly="yes", appendfsync="always") as server:
        async with valkey_client(server.port) as client:
            await client.zadd("qs:{p03}:accounts", {"tpp": 0})
        server.kill()
        path = tmp_path / "gateway.yaml"
        path.write_text(
            json.dumps(
                {
                    "listen": {"host": "127.0.0.1", "port": 0},
                    "upstream": {"url": "http://127.0.0.1:9"},
                    "valkey": f"valkey://127.0.0.1:{server.port}",
                }
            )
        )
        config = load_config(path, {})
        async with open_store(config.valkey, assemble.keys(config)) as store:
            is_checked = await check_ledger(config, store.client)
            assert not is_checked
            plane = DataPlane(config, store.client, key_store(store), ledger_is_checked=is_checked)
            await plane.start()
            try:
                await asyncio.to_thread(server.start)
                await asyncio.sleep(2.5)
                assert not plane.ledger.is_up
                async with valkey_client(server.port) as client:
                    assert await client.keys("qs:v2:*") == []
                    await client.delete("qs:{p03}:accounts")  # somebody migrates it, or removes it
                await until(lambda: plane.ledger.is_up, plane.ledger)
            finally:
                await plane.stop()
