"""The processes of a simulated system: gateways and control planes that start, stop and die."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from sidecar.billing.lago.client import LagoClient
from sidecar.controlplane.control_work import ControlWork
from sidecar.ledger.accounts.loader import AccountLoader
from sidecar.ledger.client.ledger_client import LedgerClient
from sidecar.ledger.client.link_settings import LinkSettings
from sidecar.ledger.client.reaper import Reaper
from sidecar.ledger.client.sealed import events_of
from sidecar.ledger.keys import Keys
from sidecar.ledger.spool.adoption import Adoption
from sidecar.ledger.spool.dead_spools import DeadSpools
from sidecar.ledger.spool.spool import Spool, SpoolSettings
from sidecar.ledger.store import Store
from sidecar.metering.publisher.publisher import Publisher
from sidecar.metering.settings import MeteringSettings
from sidecar.valkey.endpoints import endpoints
from sidecar.valkey.topology import CLIENT_ERRORS, Client, Topology, connected
from tests.simulation.lago import SETTINGS
from tests.simulation.loop import LoopClock, SimulatedLoop

KEYS = Keys(partitions=2)
TTL_MS = 4_000
METERING = MeteringSettings(
    url="http://openmeter", linger_ms=50, claim_idle_ms=3000, backoff_ms_min=20, backoff_ms_max=500, timeout_ms=1000
)


@dataclass
class Gateway:
    """One process: it ends, and another one comes with the same directory."""

    client: LedgerClient
    spool: Spool
    dead_spools: DeadSpools
    stack: AsyncExitStack
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    callers: list[asyncio.Task[None]] = field(default_factory=list)

    @classmethod
    async def start(
        cls, loop: SimulatedLoop, topology: Topology, directory: Path, instance: str, how: LinkSettings
    ) -> Gateway:
        stack = AsyncExitStack()
        control = await stack.enter_async_context(connected(topology, timeout_s=2))
        client = LedgerClient(endpoints(topology), KEYS, how, heartbeat_s=0.5, instance=instance)
        client.start()
        spool = Spool(SpoolSettings(directory), client)
        spool.start()
        dead = DeadSpools(directory, Adoption(control, KEYS, how), client.instance)
        gateway = cls(client, spool, dead, stack)
        gateway.tasks = [
            loop.create_task(dead.keep_replaying(lambda: client.is_up)),
            loop.create_task(_keep_reaping(control, loop.time)),
        ]
        return gateway

    def unwritten(self) -> Counter[str]:
        """Units by account that only this process' memory has: neither sent nor written down."""
        found: Counter[str] = Counter()
        for link in self.client.links:
            written = {(home.home_partition, number) for _, home, number, _ in self.spool._entries}
            for sealed in link.seal_waiting() + list(link._sealed):
                if (sealed.home_partition, sealed.number) not in written:
                    found.update(event[0] for event in events_of(sealed))
            flight = link._flight
            if flight is not None and (link.home_partition, flight.number) not in written:
                found.update(event[0] for event, _ in flight.settles())
        return found

    async def kill(self) -> None:
        """Without a word to the server or the disk."""
        await self.spool.stop_keeping()
        for task in self.client._tasks:
            task.cancel()
        for link in self.client.links:
            link._closing = True
            for each in (link._maintainer, link._entry, link._following):
                if each is not None:
                    each.cancel()
            link._drop_connection()
        await self._end_tasks()
        journal, self.spool._journal = self.spool._journal, None
        if journal is not None:
            journal.close(remove=False)
        self.spool._thread.shutdown()
        with suppress(*CLIENT_ERRORS):
            await self.stack.aclose()

    async def stop(self) -> None:
        """As by SIGTERM."""
        await self._end_tasks()
        await self.client.close(1.0)
        await self.spool.close()
        with suppress(*CLIENT_ERRORS):
            await self.stack.aclose()

    async def _end_tasks(self) -> None:
        await _ended(self.callers + self.tasks)


async def _keep_reaping(control: Client, now_s: Callable[[], float]) -> None:
    reaper = Reaper(control, KEYS, TTL_MS, now_s=now_s)
    while True:
        await asyncio.sleep(reaper.pause_s)
        await reaper.round()


@dataclass
class ControlPlane:
    """One process: it delivers, and it reads accounts from Lago while it leads."""

    work: ControlWork
    stack: AsyncExitStack
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @classmethod
    async def start(cls, loop: SimulatedLoop, topology: Topology, number: int) -> ControlPlane:
        stack = AsyncExitStack()
        client = await stack.enter_async_context(connected(topology, timeout_s=2))
        clock = LoopClock(loop)
        lago = await stack.enter_async_context(LagoClient(SETTINGS, clock=clock, random=random.Random(number)))
        store = Store(client, KEYS, AccountLoader(client, KEYS))
        work = ControlWork(SETTINGS, METERING, store, lago, None, holder=f"control-{number}")
        publisher = Publisher(
            client, KEYS, METERING, clock=clock, random=random.Random(number), consumer=f"publisher-{number}"
        )
        plane = cls(work, stack)
        plane.tasks = [loop.create_task(publisher.run()), loop.create_task(work.run(asyncio.Event()))]
        return plane

    async def kill(self) -> None:
        await _ended(self.tasks)
        with suppress(*CLIENT_ERRORS):
            await self.work.receiver.close()
            await self.stack.aclose()


async def _ended(tasks: Iterable[asyncio.Task[None]]) -> None:
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        # Again and again: before Python 3.12 a task may lose a cancellation.
        _, pending = await asyncio.wait(pending, timeout=1)
