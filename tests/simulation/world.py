"""A simulated system: real links, registrations, reapers and spools on a simulated server, network and clock.

`run` plays a schedule and raises AssertionError where a rule of the ledger is broken at the end.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import msgpack
from redis.asyncio import Redis

from sidecar.billing.settings import AuditSettings
from sidecar.ledger.client.ledger_client import LedgerClient
from sidecar.ledger.client.link_settings import LinkSettings
from sidecar.ledger.client.outcomes import Code, Hold
from sidecar.ledger.client.reaper import Reaper, reap
from sidecar.ledger.client.sealed import events_of
from sidecar.ledger.keys import Keys
from sidecar.ledger.spool.adoption import Adoption
from sidecar.ledger.spool.dead_spools import DeadSpools
from sidecar.ledger.spool.spool import Spool, SpoolSettings
from sidecar.metering.audit import auditor as auditor_module
from sidecar.metering.audit.auditor import Auditor
from sidecar.metering.publisher import publisher as publisher_module
from sidecar.metering.publisher.publisher import Publisher
from sidecar.metering.settings import MeteringSettings
from sidecar.valkey.endpoints import endpoints
from sidecar.valkey.topology import CLIENT_ERRORS
from tests.integration.ledger_client.kit import METRIC, at, event_of, key_of, load
from tests.simulation.loop import LoopClock, SimulatedLoop, simulate
from tests.simulation.network import Network, Node, Weather
from tests.simulation.openmeter import SimulatedOpenMeter, SimulatedQuery, SimulatedSender
from tests.simulation.schedule import ENDING, LOSING, Fault, Schedule
from tests.simulation.valkey.server import SimulatedValkey, Trouble
from tests.support.ledger_totals import read_totals
from tests.support.verified import assert_verified

PORT = 6379
KEYS = Keys(partitions=2)
ACCOUNTS = {"big": 1_000_000, "small": 25, "keyed": 1_000_000}
HOW = LinkSettings(hold_budget_s=1.0, no_reply_s=1.0, operations_max=16)
TTL_MS = 4_000
METERING = MeteringSettings(
    url="http://openmeter", linger_ms=50, claim_idle_ms=3000, backoff_ms_min=20, backoff_ms_max=500, timeout_ms=1000
)
QUIET_S = 120.0
"""Virtual seconds within which all must be over after the last fault."""
ROUGH = Weather(slow=0.02, lost=0.03, reply_lost=0.03, cut=0.03, late=0.03, stuck=0.01, refused=0.05)


@dataclass
class Gateway:
    """One process: it ends, and another one comes with the same directory."""

    client: LedgerClient
    spool: Spool
    dead_spools: DeadSpools
    control: Redis
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    callers: list[asyncio.Task[None]] = field(default_factory=list)


@dataclass
class World:
    """``served``: units that callers were served, by account. ``forgotten``: those of them that a killed process had
    neither sent nor written down. ``may_lack``: data was lost after a process had ended that alone knew of it."""

    loop: SimulatedLoop
    schedule: Schedule
    directory: Path
    served: Counter[str] = field(default_factory=Counter)
    forgotten: Counter[str] = field(default_factory=Counter)
    may_lack: bool = False
    data_was_lost: bool = False
    ended: int = 0
    started: int = 0
    gateways: list[Gateway] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.network = Network(self.loop)
        address = f"127.0.0.1:{PORT}"
        self.server = SimulatedValkey(self.loop.wall_us, seed=self.schedule.seed, address=address)
        self.node: Node = self.network.add(self.server, address)
        self.random = random.Random(self.schedule.seed + 1)
        self.openmeter = SimulatedOpenMeter(random.Random(self.schedule.seed + 2))
        self.publishers: list[asyncio.Task[None]] = []
        self.hour_ms = self.loop.wall_us() // 3_600_000_000 * 3_600_000
        self.calling = asyncio.Event()
        self.calling.set()

    # Gateways

    async def start_gateway(self) -> Gateway:
        self.started += 1
        control = Redis(port=PORT, protocol=2, socket_timeout=2, socket_connect_timeout=2)
        client = LedgerClient(endpoints(at(PORT)), KEYS, HOW, heartbeat_s=0.5, instance=f"gw-{self.started}")
        client.start()
        spool = Spool(SpoolSettings(self.directory), client)
        spool.start()
        dead = DeadSpools(self.directory, Adoption(control, KEYS, HOW), client.instance)
        gateway = Gateway(client, spool, dead, control)
        gateway.tasks = [
            self.loop.create_task(dead.keep_replaying(lambda: client.is_up)),
            self.loop.create_task(self._keep_reaping(control)),
        ]
        gateway.callers = [self.loop.create_task(self._call(gateway, account)) for account in ACCOUNTS for _ in "ab"]
        return gateway

    async def _keep_reaping(self, control: Redis) -> None:
        reaper = Reaper(control, KEYS, TTL_MS, now_s=self.loop.time)
        while True:
            await asyncio.sleep(reaper.pause_s)
            await reaper.round()

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

    async def _end_tasks(self, gateway: Gateway) -> None:
        tasks = gateway.callers + gateway.tasks
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def kill(self, gateway: Gateway) -> None:
        """Without a word to the server or the disk."""
        self._note_end(gateway)
        for link in gateway.client.links:
            written = {(home.home_partition, number) for _, home, number, _ in gateway.spool._entries}
            for sealed in link.seal_waiting() + list(link._sealed):
                if (sealed.home_partition, sealed.number) not in written:
                    self.forgotten.update(event[0] for event in events_of(sealed))
            flight = link._flight
            if flight is not None and (link.home_partition, flight.number) not in written:
                self.forgotten.update(event[0] for event, _ in flight.settles())
        await gateway.spool.stop_keeping()
        for task in gateway.client._tasks:
            task.cancel()
        for link in gateway.client.links:
            link._closing = True
            for each in (link._maintainer, link._entry, link._following):
                if each is not None:
                    each.cancel()
            link._drop_connection()
        await self._end_tasks(gateway)
        journal, gateway.spool._journal = gateway.spool._journal, None
        if journal is not None:
            journal.close(remove=False)
        gateway.spool._thread.shutdown()
        with suppress(*CLIENT_ERRORS):
            await gateway.control.aclose()

    def _note_end(self, gateway: Gateway) -> None:
        """Whether it ends with charges that only its memory has: those that the server lost and it did not notice."""
        trouble, self.server.trouble = self.server.trouble, Trouble()
        for link in gateway.client.links:
            key = KEYS.instance(link.home_partition, gateway.client.instance)
            packed: Any = self.server.call("GET", key)
            unpacker = msgpack.Unpacker(raw=True)
            unpacker.feed(packed or b"\x00\x00")
            _epoch, number = list(unpacker)[:2]
            self.may_lack = self.may_lack or number < link.confirmed
        self.server.trouble = trouble

    async def stop(self, gateway: Gateway) -> None:
        """As by SIGTERM."""
        await self._end_tasks(gateway)
        await gateway.client.close(1.0)
        await gateway.spool.close()
        with suppress(*CLIENT_ERRORS):
            await gateway.control.aclose()

    # Publishers

    def start_publisher(self) -> asyncio.Task[None]:
        self.started += 1
        control = Redis(port=PORT, protocol=2, socket_timeout=2, socket_connect_timeout=2)
        publisher = Publisher(
            control, KEYS, METERING, clock=LoopClock(self.loop), random=random.Random(self.started),
            consumer=f"publisher-{self.started}",
        )  # fmt: skip
        return self.loop.create_task(publisher.run())

    async def _publisher_killed(self, fault: Fault) -> None:
        which = fault.who % len(self.publishers)
        self.publishers[which].cancel()
        await asyncio.sleep(fault.length_s)
        self.publishers[which] = self.start_publisher()

    async def _openmeter_fails(self, fault: Fault) -> None:
        self.openmeter.failing = 0.6
        await asyncio.sleep(3 * fault.length_s)
        self.openmeter.failing = 0.0

    async def _until_delivered(self) -> None:
        async with Redis(port=PORT, protocol=2) as client:
            for _ in range(int(QUIET_S)):
                left = [await client.xlen(KEYS.outbox(partition)) for partition in range(KEYS.partitions)]
                if not any(left):
                    break
                await asyncio.sleep(1)
            else:
                raise AssertionError(f"entries stay in the outbox: {left}")
        for task in self.publishers:
            task.cancel()
        await asyncio.gather(*self.publishers, return_exceptions=True)

    # Faults

    async def play(self, fault: Fault) -> None:
        await asyncio.sleep(max(0.0, fault.at_s))
        self.data_was_lost = self.data_was_lost or fault.kind in LOSING
        await getattr(self, "_" + fault.kind.replace(" ", "_"))(fault)

    async def _rough_network(self, fault: Fault) -> None:
        self.network.weather = ROUGH
        await asyncio.sleep(3 * fault.length_s)
        self.network.weather = Weather()

    async def _server_stands_still(self, fault: Fault) -> None:
        self.node.pause()
        await asyncio.sleep(fault.length_s)
        self.node.resume()

    async def _server_cut_off(self, fault: Fault) -> None:
        self.node.cut_off()
        await asyncio.sleep(fault.length_s)
        self.node.rejoin()

    async def _connections_break(self, fault: Fault) -> None:
        self.node.break_connections()

    async def _server_ends_and_starts(self, fault: Fault) -> None:
        self.node.kill()
        await asyncio.sleep(fault.length_s)
        self.server.restart(functions=self.random.random() < 0.5, data=True)
        self.node.start()

    async def _scripts_are_gone(self, fault: Fault) -> None:
        self.server.restart(functions=False, data=True)

    async def _data_goes_back(self, fault: Fault) -> None:
        """To a server that starts with older data, or a replica that takes over."""
        snapshot = self.server.snapshot()
        await asyncio.sleep(fault.length_s)
        self.node.kill()
        self.server.restore(snapshot)
        self.may_lack = self.may_lack or self.ended > 0
        await asyncio.sleep(self.random.uniform(0, 0.5))
        self.node.start()

    async def _data_goes_back_unseen(self, fault: Fault) -> None:
        """Behind connections that stand, as a proxy in front of the servers keeps them."""
        snapshot = self.server.snapshot()
        await asyncio.sleep(fault.length_s)
        self.server.restore(snapshot)
        self.may_lack = self.may_lack or self.ended > 0

    async def _all_data_is_gone(self, fault: Fault) -> None:
        self.node.kill()
        self.server.restart(data=False)
        self.may_lack = self.may_lack or self.ended > 0
        await asyncio.sleep(fault.length_s)
        self.node.start()
        await self.load_accounts()

    async def _out_of_memory(self, fault: Fault) -> None:
        await self._trouble("out_of_memory", fault)

    async def _no_replicas(self, fault: Fault) -> None:
        await self._trouble("lacks_replicas", fault)

    async def _disk_fails(self, fault: Fault) -> None:
        await self._trouble("disk_fails", fault)

    async def _loading(self, fault: Fault) -> None:
        await self._trouble("is_loading", fault)

    async def _a_script_runs(self, fault: Fault) -> None:
        await self._trouble("is_busy", fault)

    async def _trouble(self, name: str, fault: Fault) -> None:
        setattr(self.server.trouble, name, True)
        await asyncio.sleep(fault.length_s)
        setattr(self.server.trouble, name, False)

    async def _clock_steps(self, fault: Fault) -> None:
        self.loop.wall_offset_s += fault.step_s

    async def _gateway_killed(self, fault: Fault) -> None:
        await self._replace(fault, killed=True)

    async def _gateway_stopped(self, fault: Fault) -> None:
        await self._replace(fault, killed=False)

    async def _replace(self, fault: Fault, *, killed: bool) -> None:
        gateway = self.gateways[fault.who]
        self.ended += 1
        await (self.kill(gateway) if killed else self.stop(gateway))
        await asyncio.sleep(fault.length_s)
        self.gateways[fault.who] = await self.start_gateway()

    async def load_accounts(self) -> None:
        """Tried until the server takes it: nobody else fills an empty ledger here."""
        while True:
            try:
                async with Redis(port=PORT, protocol=2, socket_timeout=2) as client:
                    await load(client, ACCOUNTS, KEYS)
                return
            except CLIENT_ERRORS:
                await asyncio.sleep(0.2)

    # The course

    async def run(self) -> None:
        await self.load_accounts()
        for _ in range(self.schedule.gateways):
            self.gateways.append(await self.start_gateway())
        self.publishers = [self.start_publisher() for _ in range(2)]
        busy: dict[int, asyncio.Lock] = {n: asyncio.Lock() for n in range(self.schedule.gateways)}
        serial = asyncio.Lock()

        async def play(fault: Fault) -> None:
            # Faults of one thing come one after the other; those of different things overlap.
            await asyncio.sleep(fault.at_s)
            lock = busy[fault.who] if fault.kind in ENDING else serial
            async with lock:
                await self.play(replace(fault, at_s=0.0))

        faults = [self.loop.create_task(play(each)) for each in self.schedule.faults]
        await asyncio.sleep(self.schedule.load_s)
        await asyncio.gather(*faults)
        self.calling.clear()
        await asyncio.gather(*(task for gateway in self.gateways for task in gateway.callers))
        await self._until_quiet()
        held = await self._until_nothing_is_held()
        for gateway in self.gateways:
            await self.stop(gateway)
        await self._until_delivered()
        await self._check(held)
        await self._audit()

    async def _until_quiet(self) -> None:
        try:
            async with asyncio.timeout(QUIET_S):
                while not all(self._is_quiet(gateway) for gateway in self.gateways):
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"not quiet after {QUIET_S} s: {[g.client for g in self.gateways]}") from None

    def _is_quiet(self, gateway: Gateway) -> bool:
        names = {f"{each.client.instance}.journal" for each in self.gateways}
        return (
            gateway.client.is_up
            and not gateway.client.backlog
            and not gateway.spool.bytes_used
            and {file.name for file in self.directory.iterdir()} <= names
        )

    async def _until_nothing_is_held(self) -> dict[str, int]:
        async with Redis(port=PORT, protocol=2) as client:
            for _ in range(int(QUIET_S)):
                held = (await read_totals(client, KEYS, sorted(ACCOUNTS))).held
                if not any(held.values()):
                    break
                await asyncio.sleep(1)
        return held

    async def _check(self, held: dict[str, int]) -> None:
        assert not any(held.values()), f"units stay held: {held}"
        async with Redis(port=PORT, protocol=2) as client:
            totals = await read_totals(client, KEYS, sorted(ACCOUNTS))
        metered = self.openmeter.units()
        for account in ACCOUNTS:
            settled = totals.settled.get(account, 0)
            assert metered[account] >= settled, f"{account}: {settled} charged, OpenMeter has {metered[account]}"
            assert self.may_lack or metered[account] == settled, (
                f"{account}: OpenMeter has {metered[account]}, N {settled}"
            )
        for account in ACCOUNTS:
            settled = totals.settled.get(account, 0)
            served, forgotten = self.served[account], self.forgotten[account]
            assert settled <= served, f"{account}: {settled} charged, {served} served"
            if not self.may_lack:
                assert settled >= served - forgotten, (
                    f"{account}: {settled} charged, {served} served, {forgotten} forgotten"
                )
        if not self.data_was_lost:
            assert totals.settled.get("small", 0) <= ACCOUNTS["small"], "overspent"
        async with Redis(port=PORT, protocol=2) as client:
            await reap(client, KEYS, 0)
            await assert_verified(client, KEYS, moved_clock=any(f.kind == "clock steps" for f in self.schedule.faults))

    async def _audit(self) -> None:
        """OpenMeter loses some of what it accepted; the audit sends it again. Where data or clock went back, events of
        one hour may be in another, and what OpenMeter has beyond the ledger hides what it lacks. A server out of memory
        drops what could be sent again (``memory_relief``)."""
        if {fault.kind for fault in self.schedule.faults} & {*LOSING, "clock steps", "out of memory"}:
            return
        before = self.openmeter.units()
        self.openmeter.lose(0.1)
        self.loop.wall_offset_s += 3 * 3600
        async with Redis(port=PORT, protocol=2) as client:
            query: Any = SimulatedQuery(self.openmeter, self.hour_ms)
            auditor = Auditor(client, KEYS, AuditSettings(hours=5), METERING, query, LoopClock(self.loop))
            for _ in range(3):
                await auditor.audit(self.loop.wall_us() // 1000)
                self.loop.wall_offset_s += 3600
        assert self.openmeter.units() == before, "the audit did not bring back what OpenMeter lost"


def run(schedule: Schedule, directory: Path) -> None:
    """Raises AssertionError: a rule is broken."""

    async def main(loop: SimulatedLoop) -> Any:
        world = World(loop, schedule, directory)

        def sender(*_: Any) -> SimulatedSender:
            return SimulatedSender(world.openmeter)

        with mock.patch.object(publisher_module, "Sender", sender), mock.patch.object(auditor_module, "Sender", sender):
            await world.run()

    simulate(main, schedule.seed)
