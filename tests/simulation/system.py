"""A simulated system: gateways and control planes on simulated servers, network, clock, OpenMeter and Lago."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack

from sidecar.ledger.client.link_settings import LinkSettings
from sidecar.ledger.client.outcomes import Code, Hold
from sidecar.valkey.topology import CLIENT_ERRORS, connected
from tests.integration.ledger_client.kit import METRIC, event_of, key_of, load
from tests.simulation.deployment import KINDS as DEPLOYMENTS
from tests.simulation.lago import ACCOUNT, SimulatedLago
from tests.simulation.loop import SimulatedLoop
from tests.simulation.network import Network
from tests.simulation.openmeter import SimulatedOpenMeter
from tests.simulation.processes import KEYS, ControlPlane, Gateway
from tests.simulation.schedule import Schedule

LOADED = {"big": 1_000_000, "small": 25, "keyed": 1_000_000}
"""Accounts that an operator has loaded, with the calls that they can pay for."""
ACCOUNTS = (*LOADED, ACCOUNT)
"""The last one is Lago's."""
CREDITS = 2
"""Of Lago's account at first: 200 calls."""
HOW = LinkSettings(hold_budget_s=1.0, no_reply_s=1.0, operations_max=16)


class System:
    """``served``: units that callers were served, by account. ``forgotten``: those of them that a killed process had
    neither sent nor written down. ``data_was_lost``: a server lost what it had confirmed. ``may_lack``: when a process
    had ended before that, or one ends that alone knows of it."""

    def __init__(self, loop: SimulatedLoop, schedule: Schedule, directory: Path) -> None:
        self.loop = loop
        self.schedule = schedule
        self.directory = directory
        self.random = random.Random(schedule.seed + 1)
        self.network = Network(loop)
        self.deployment = DEPLOYMENTS[schedule.servers](self.network, KEYS, schedule.seed)
        self.openmeter = SimulatedOpenMeter(random.Random(schedule.seed + 2))
        self.lago = SimulatedLago(loop, schedule.seed)
        self.how = replace(HOW, create_again=self.random.random() < 0.5)
        self.gateways: list[Gateway] = []
        self.control_planes: list[ControlPlane] = []
        self.served: Counter[str] = Counter()
        self.forgotten: Counter[str] = Counter()
        self.data_was_lost = False
        self.may_lack = False
        self.calling = asyncio.Event()
        self.calling.set()
        self._ended = 0
        self._started = 0

    async def start(self) -> None:
        await self.load_accounts()
        await self.lago.seed_customer(CREDITS)
        for _ in range(2):
            self.control_planes.append(await self._new_control_plane())
        for _ in range(self.schedule.gateways):
            self.gateways.append(await self._new_gateway())

    def data_is_lost(self) -> None:
        """Told when a server has lost what it had confirmed."""
        self.data_was_lost = True
        self.may_lack = self.may_lack or self._ended > 0

    async def load_accounts(self) -> None:
        """As an operator does it, who tries until the server takes it."""
        while True:
            try:
                async with connected(self.deployment.topology, timeout_s=2) as client:
                    await load(client, LOADED, KEYS)
                return
            except CLIENT_ERRORS:
                await asyncio.sleep(0.2)

    # Gateways

    async def _new_gateway(self) -> Gateway:
        self._started += 1
        gateway = await Gateway.start(
            self.loop, self.deployment.topology, self.directory, f"gw-{self._started}", self.how
        )
        gateway.callers = [self.loop.create_task(self._call(gateway, account)) for account in ACCOUNTS for _ in "ab"]
        return gateway

    async def _call(self, gateway: Gateway, account: str) -> None:
        while self.calling.is_set():
            await asyncio.sleep(self.random.expovariate(20))
            scope = b"%d" % self.random.randrange(30) if account == "keyed" else None
            decided: asyncio.Future[Hold] = self.loop.create_future()
            key = key_of(account, scope) if scope else None
            hold = gateway.client.hold(account, METRIC, 1, decided.set_result, key)
            try:
                await decided
            except asyncio.CancelledError:
                hold.callback = None  # a caller that leaves
                raise
            if hold.code != Code.GRANTED:
                continue
            await asyncio.sleep(self.random.expovariate(50))
            if self.random.random() < 0.15:
                gateway.client.release(hold, unpaid=self.random.random() < 0.5)
            else:
                gateway.client.settle(hold, event_of(hold))
                self.served[account] += 1

    async def replace_gateway(self, which: int, after_s: float, *, killed: bool) -> None:
        gateway = self.gateways[which]
        self._ended += 1
        if killed:
            self._note_end(gateway)
            self.forgotten.update(gateway.unwritten())
            await gateway.kill()
        else:
            await gateway.stop()
            self._note_left(gateway)
        await asyncio.sleep(after_s)
        self.gateways[which] = await self._new_gateway()

    def _note_end(self, gateway: Gateway) -> None:
        """Whether it ends with charges that only its memory has: those that a server lost and it did not notice."""
        for link in gateway.client.links:
            key = KEYS.instance(link.home_partition, gateway.client.instance)
            unpacker = msgpack.Unpacker(raw=True)
            unpacker.feed(self.deployment.stored(link.home_partition, key) or b"\x00\x00")
            numbers: list[Any] = list(unpacker)
            self.may_lack = self.may_lack or numbers[1] < link.confirmed

    def _note_left(self, gateway: Gateway) -> None:
        """Whether it left at a primary that was one no longer, which has taken along what it confirmed: the new one has
        the process still, with an older number, or has lost it."""
        for link in gateway.client.links:
            stored = self.deployment.stored(
                link.home_partition, KEYS.instance(link.home_partition, gateway.client.instance)
            )
            unpacker = msgpack.Unpacker(raw=True)
            unpacker.feed(stored or b"")
            numbers: list[Any] = list(unpacker)
            is_gone = not numbers and self.data_was_lost
            self.may_lack = self.may_lack or is_gone or (bool(numbers) and numbers[1] < link.confirmed)

    # Control planes

    async def _new_control_plane(self) -> ControlPlane:
        self._started += 1
        return await ControlPlane.start(self.loop, self.deployment.topology, self._started)

    async def replace_control_plane(self, which: int, after_s: float) -> None:
        await self.control_planes[which].kill()
        await asyncio.sleep(after_s)
        self.control_planes[which] = await self._new_control_plane()
