"""One simulated course of events, and what has to be true at its end.

`run` plays a schedule and raises AssertionError where a rule of the ledger is broken.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest import mock

from sidecar.billing.settings import AuditSettings
from sidecar.ledger.accounts.loader import AccountLoader
from sidecar.ledger.client.reaper import reap
from sidecar.metering.audit import auditor as auditor_module
from sidecar.metering.audit.auditor import Auditor
from sidecar.metering.publisher import publisher as publisher_module
from sidecar.metering.watermarks import ledger_name, subject_of
from sidecar.valkey.topology import Client, connected
from tests.simulation.faults import BY_KIND
from tests.simulation.lago import ACCOUNT, PRICE
from tests.simulation.loop import LoopClock, SimulatedLoop, simulate
from tests.simulation.openmeter import SimulatedQuery, SimulatedSender
from tests.simulation.processes import KEYS, METERING, Gateway
from tests.simulation.schedule import CONTROL, ENDING, Fault, Schedule
from tests.simulation.system import ACCOUNTS, LOADED, System
from tests.support.ledger_totals import LedgerTotals, read_totals
from tests.support.verified import assert_verified

QUIET_S = 120.0
"""Virtual seconds within which all must be over after the last fault."""


@dataclass
class Course:
    """A schedule that is played on a system."""

    system: System
    hour_ms: int

    async def run(self) -> None:
        system, schedule = self.system, self.system.schedule
        await system.start()
        gateways = [asyncio.Lock() for _ in system.gateways]
        control_planes, serial = asyncio.Lock(), asyncio.Lock()

        async def play(fault: Fault) -> None:
            # Faults of one thing come one after the other; those of different things overlap.
            await asyncio.sleep(fault.at_s)
            lock = gateways[fault.who] if fault.kind in ENDING else control_planes if fault.kind in CONTROL else serial
            async with lock:
                await BY_KIND[fault.kind](system, fault)

        faults = [system.loop.create_task(play(each)) for each in schedule.faults]
        await asyncio.sleep(schedule.load_s)
        await asyncio.gather(*faults)
        system.calling.clear()
        await asyncio.gather(*(task for gateway in system.gateways for task in gateway.callers))
        await self._until_quiet()
        async with connected(system.deployment.topology) as client:
            held = await self._until_nothing_is_held(client)
            for gateway in system.gateways:
                await gateway.stop()
            await self._until_delivered(client)
            await self._until_funds_are_true(client)
            for plane in system.control_planes:
                assert not any(task.done() for task in plane.tasks), "the work of a control plane has ended by itself"
                await plane.kill()
            await self._check(client, held)
            await self._audit(client)

    # Until all is over

    async def _until_quiet(self) -> None:
        gateways = self.system.gateways
        try:
            async with asyncio.timeout(QUIET_S):
                while not all(self._is_quiet(gateway) for gateway in gateways):
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"not quiet after {QUIET_S} s: {[g.client for g in gateways]}") from None

    def _is_quiet(self, gateway: Gateway) -> bool:
        names = {f"{each.client.instance}.journal" for each in self.system.gateways}
        return (
            gateway.client.is_up
            and not gateway.client.backlog
            and not gateway.spool.bytes_used
            and {file.name for file in self.system.directory.iterdir()} <= names
        )

    async def _until_nothing_is_held(self, client: Client) -> dict[str, int]:
        held: dict[str, int] = {}
        for _ in range(int(QUIET_S)):
            held = (await read_totals(client, KEYS, sorted(ACCOUNTS))).held
            if not any(held.values()):
                break
            await asyncio.sleep(1)
        return held

    async def _until_delivered(self, client: Client) -> None:
        left: list[int] = []
        for _ in range(int(QUIET_S)):
            left = [await client.xlen(KEYS.outbox(partition)) for partition in range(KEYS.partitions)]
            if not any(left):
                return
            await asyncio.sleep(1)
        raise AssertionError(f"entries stay in the outbox: {left}")

    async def _until_funds_are_true(self, client: Client) -> None:
        """What Lago's account has to spend is what Lago was paid, less what was charged."""
        loader = AccountLoader(client, KEYS)
        available = expected = None
        for _ in range(int(QUIET_S)):
            settled = (await read_totals(client, KEYS, [ACCOUNT])).settled.get(ACCOUNT, 0)
            expected = Decimal(self.system.lago.credits) - settled * Decimal(PRICE)
            shown = await loader.show(ACCOUNT)
            available = shown.available if shown is not None else None
            if available == expected:
                return
            await asyncio.sleep(1)
        raise AssertionError(f"{ACCOUNT} can spend {available}, not {expected}")

    # What has to be true

    async def _check(self, client: Client, held: dict[str, int]) -> None:
        assert not any(held.values()), f"units stay held: {held}"
        totals = await read_totals(client, KEYS, sorted(ACCOUNTS))
        self._check_units(totals)
        if not self.system.data_was_lost:
            assert totals.settled.get("small", 0) <= LOADED["small"], "overspent"
            funded = self.system.lago.credits / Decimal(PRICE)
            assert totals.settled.get(ACCOUNT, 0) <= funded, "more charged than Lago was paid"
        await reap(client, KEYS, 0)
        await assert_verified(client, KEYS, moved_clock=self._had("clock steps"))

    def _check_units(self, totals: LedgerTotals) -> None:
        system = self.system
        metered = system.openmeter.units()
        for account in ACCOUNTS:
            settled = totals.settled.get(account, 0)
            assert metered[account] >= settled, f"{account}: {settled} charged, OpenMeter has {metered[account]}"
            # A process that dies while it offers again what a server lost takes along what was delivered before.
            beyond = system.forgotten[account] if system.data_was_lost else 0
            assert system.may_lack or metered[account] <= settled + beyond, (
                f"{account}: OpenMeter has {metered[account]}, N {settled}, {beyond} of them may be lost"
            )
        for account in ACCOUNTS:
            settled = totals.settled.get(account, 0)
            served, forgotten = system.served[account], system.forgotten[account]
            assert settled <= served, f"{account}: {settled} charged, {served} served"
            if not system.may_lack:
                assert settled >= served - forgotten, (
                    f"{account}: {settled} charged, {served} served, {forgotten} forgotten"
                )

    def _had(self, *kinds: str) -> bool:
        return any(fault.kind in kinds for fault in self.system.schedule.faults)

    async def _audit(self, client: Client) -> None:
        """OpenMeter loses some of what it accepted; the audit sends it again. Where data or clock went back, events of
        one hour may be in another, and what OpenMeter has beyond the ledger hides what it lacks. A server out of memory
        drops what could be sent again (``memory_relief``)."""
        system, loop = self.system, self.system.loop
        if system.data_was_lost or self._had("clock steps", "out of memory"):
            return
        before = system.openmeter.units()
        system.openmeter.lose(0.1)
        loop.wall_offset_s += 3 * 3600
        ledger = await ledger_name(client, KEYS)
        assert ledger is not None
        watermarks = tuple(subject_of(ledger, partition) for partition in range(KEYS.partitions))
        query: Any = SimulatedQuery(system.openmeter, self.hour_ms, watermarks)
        auditor = Auditor(client, KEYS, AuditSettings(hours=5), METERING, query, LoopClock(loop))
        for _ in range(3):
            await auditor.audit(loop.wall_us() // 1000)
            loop.wall_offset_s += 3600
        assert system.openmeter.units() == before, "the audit did not bring back what OpenMeter lost"


def run(schedule: Schedule, directory: Path) -> None:
    """Raises AssertionError: a rule is broken."""

    async def main(loop: SimulatedLoop) -> Any:
        system = System(loop, schedule, directory)

        def sender(*_: Any) -> SimulatedSender:
            return SimulatedSender(system.openmeter)

        with (
            mock.patch.object(publisher_module, "Sender", sender),
            mock.patch.object(auditor_module, "Sender", sender),
            system.lago.in_place(),
        ):
            await Course(system, loop.wall_us() // 3_600_000_000 * 3_600_000).run()

    simulate(main, schedule.seed)
