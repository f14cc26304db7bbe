"""The whole system as processes: two gateways, two control planes, OpenMeter, an API, and clients that remember."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from sidecar.ledger.spool.journal import dead_journals
from sidecar.sandbox.openmeter.meters import Meter
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter, OpenMeterConfig
from sidecar.sandbox.server import Server
from sidecar.valkey.topology import CLIENT_ERRORS, connected, parse_valkey_url
from tests.chaos.kit import KEYS, METRIC, Answers, Api, Caller, Process, get, load, settings, start
from tests.chaos.rounds.servers import Servers
from tests.support.fault_proxy import FaultProxy
from tests.support.ledger_totals import read_totals
from tests.support.verified import assert_verified

QUIET_S = 45.0
"""Within which all must be over after the last fault. What is not by then is counted as held, lost or down."""
PAUSE_S = 0.002
SMALL = 60
"""Calls that the small account of a round can pay for."""


@dataclass
class System:
    """``wires``: between the first gateway and Valkey, where that is one server."""

    servers: Servers
    directory: Path
    api: Api
    meter_url: str
    wire: FaultProxy | None = None
    gateways: list[Process] = field(default_factory=list)
    planes: list[Process] = field(default_factory=list)

    def gateway_document(self, number: int) -> dict[str, Any]:
        url = self.servers.url
        if self.wire is not None and number == 0:
            url = f"valkey://127.0.0.1:{self.wire.listening_port}"
        ledger = {"hold_budget_ms": 500, "heartbeat_ms": 300, "spool_directory": str(self.directory / "spool")}
        return settings(url, self.api.url, ledger=ledger)

    async def start_gateway(self, number: int) -> None:
        process = await start(self.gateway_document(number), self.directory, name=f"gateway-{number}")
        if number < len(self.gateways):
            self.gateways[number] = process
        else:
            self.gateways.append(process)

    async def start_plane(self, number: int) -> None:
        document = settings(self.servers.url, self.api.url, metering={
            "url": self.meter_url, "linger_ms": 50, "claim_idle_ms": 1000, "backoff_ms_min": 20, "backoff_ms_max": 300,
        })  # fmt: skip
        process = await start(document, self.directory, "control", f"plane-{number}")
        if number < len(self.planes):
            self.planes[number] = process
        else:
            self.planes.append(process)

    def port(self, number: int) -> int:
        return self.gateways[number].port

    async def load_accounts(self, accounts: dict[str, int]) -> None:
        """Tried until the servers take it."""
        deadline = time.monotonic() + QUIET_S
        while True:
            try:
                async with connected(parse_valkey_url(self.servers.url)) as client:
                    await load(client, accounts)  # type: ignore[arg-type]
                return
            except CLIENT_ERRORS:
                assert time.monotonic() < deadline, "accounts cannot be loaded"
                await asyncio.sleep(0.2)

    async def metric(self, number: int, name: str) -> float:
        try:
            lines = (await get(self.gateways[number].admin_port, "/metrics"))[1].splitlines()
        except OSError:
            return -1.0
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)

    async def is_quiet(self) -> bool:
        """Every gateway has its ledger, and nothing that waits for it."""
        for number in range(len(self.gateways)):
            if await self.metric(number, "sidecar_ledger_up") != 1.0:
                return False
            if await self.metric(number, "sidecar_ledger_backlog_operations") != 0:
                return False
            if await self.metric(number, "sidecar_spool_bytes") != 0:
                return False
        names = await self._names()
        return all(name in names for name in dead_journals(self.directory / "spool"))

    async def _names(self) -> set[str]:
        found = set()
        for process in self.gateways:
            with suppress(OSError):
                body = (await get(process.admin_port, "/v1/status"))[1]
                found.add(body.partition('"instance":"')[2].partition('"')[0])
        return found


@dataclass
class Traffic:
    """Clients of a round's accounts at both gateways. ``served`` by account."""

    accounts: dict[str, int]
    served: Counter[str] = field(default_factory=Counter)
    unanswered: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def begin(self, system: System, clients: int = 2) -> None:
        loop = asyncio.get_running_loop()
        for account in self.accounts:
            for number in range(len(system.gateways)):
                self._tasks += [loop.create_task(self._call(system, number, account)) for _ in range(clients)]

    async def _call(self, system: System, number: int, account: str) -> None:
        answers = Answers()
        caller = Caller(lambda: system.port(number), account, answers)
        while not self._stop.is_set():
            sent, lost = answers.sent, answers.lost
            status = await caller.call()
            self.requests += answers.sent - sent
            self.unanswered[account] += answers.lost - lost
            self.served[account] += status == 200
            await asyncio.sleep(PAUSE_S if status == 200 else 10 * PAUSE_S)
        caller.close()

    async def end(self) -> None:
        self._stop.set()
        _, late = await asyncio.wait(self._tasks, timeout=20)
        for task in late:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def running_system(servers: Servers, directory: Path) -> AsyncIterator[System]:
    """Everything, started; processes are ended at the end."""
    meter = Meter(slug=METRIC, event_type="api.call", aggregation="SUM", value_property="$.units")
    async with AsyncExitStack() as stack:
        openmeter = Server(OpenMeter(OpenMeterConfig(meters=(meter,))).app())
        meter_url = await openmeter.start()
        stack.push_async_callback(openmeter.close)
        api = Api(delay_s=0.001)
        await stack.enter_async_context(api.serve())
        wire = None
        if servers.kind == "single":
            proxy = FaultProxy("127.0.0.1", servers.servers[0].port, marker=b"FCALL")
            wire = await stack.enter_async_context(proxy)
        system = System(servers, directory, api, meter_url, wire)
        stack.push_async_callback(_end_all, system)
        for number in range(2):
            await system.start_gateway(number)
            await system.start_plane(number)
        yield system


async def _end_all(system: System) -> None:
    for process in [*system.gateways, *system.planes]:
        process.send(signal.SIGCONT)
        with suppress(AssertionError):
            await process.end(signal.SIGTERM)


async def wait_quiet(system: System) -> bool:
    """Whether all became quiet in time."""
    deadline = time.monotonic() + QUIET_S
    while time.monotonic() < deadline:
        with suppress(RedisError, OSError):
            if await asyncio.to_thread(system.servers.is_whole) and await system.is_quiet():
                return True
        await asyncio.sleep(0.1)
    return False


async def recovered_s(system: System, account: str) -> float:
    """Seconds until every gateway serves a call of this account."""
    began = time.monotonic()
    for number in range(len(system.gateways)):
        answers = Answers()
        caller = Caller(lambda number=number: system.port(number), account, answers)
        while time.monotonic() - began < QUIET_S and await caller.call() != 200:
            await asyncio.sleep(0.02)
        caller.close()
    return time.monotonic() - began


async def books(system: System, accounts: list[str]) -> tuple[dict[str, int], int, list[str]]:
    """Units charged by account, units that stay held, and what verification finds."""
    deadline = time.monotonic() + QUIET_S
    problem = ""
    while True:
        try:
            async with connected(parse_valkey_url(system.servers.url)) as client:
                totals = await read_totals(client, KEYS, accounts)
                held = sum(totals.held.values())
                if held and time.monotonic() < deadline:
                    await asyncio.sleep(0.2)
                    continue
                try:
                    await assert_verified(client, KEYS)
                except AssertionError as error:
                    problem = str(error)[:500]
                return totals.settled, held, [problem] if problem else []
        except CLIENT_ERRORS:
            assert time.monotonic() < deadline, "the ledger cannot be read"
            await asyncio.sleep(0.2)


def chance_of(seed: int) -> random.Random:
    return random.Random(seed)
