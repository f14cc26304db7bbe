"""Brings the events of the outbox to OpenMeter.

One loop: look after what is in progress, read, cut batches, start deliveries. An entry leaves the outbox only when
each of its events was accepted or condemned (``Courier``), so whatever happens to a publisher, its entries are still
there; the ids of the events are fixed, so sending them again counts once, as long as OpenMeter removes duplicates
(``sink.dedupe.enabled``, for longer than the longest outage).

Any number of publishers may run at once: the consumer group gives every entry to one of them. One that goes silent
for ``claim_idle_ms`` loses its entries to the others. One that is alive but cannot deliver keeps them; one that merely
stood still for so long may find them taken and send them a second time.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Sequence
from random import Random

import structlog

from sidecar.ledger.keys import Keys
from sidecar.metering.backoff import Backoff
from sidecar.metering.batches import Batch, Batcher, Entry
from sidecar.metering.calls import VALKEY_ERRORS, Client
from sidecar.metering.clock import Clock, SystemClock
from sidecar.metering.delivery import Courier
from sidecar.metering.endpoint import Endpoint, Stopping
from sidecar.metering.events import MalformedEntry, Stamp, decode_entry
from sidecar.metering.letters import letter_of_entry, letter_of_position
from sidecar.metering.metrics import PublisherMetrics
from sidecar.metering.outbox import Outbox
from sidecar.metering.sender import Sender
from sidecar.metering.settings import MeteringSettings

log = structlog.get_logger("sidecar.metering")

CHORES_S_MAX = 5.0
LEAVE_TIMEOUT_S = 2.0
CANCEL_AGAIN_S = 0.1


def new_consumer_name() -> str:
    """Unique for every start: what an earlier process left pending is taken over like any other's."""
    return f"{socket.gethostname()[:64]}-{os.getpid()}-{secrets.token_hex(4)}"


def _notice_cancellation() -> None:
    """Before Python 3.12 ``asyncio.wait_for``, in which redis-py writes, may swallow a cancellation."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class Publisher:
    """``await run()`` until :meth:`stop`. ``metrics`` may be read at any time.

    ``client`` is not closed. Each instance runs once.
    """

    def __init__(
        self,
        client: Client,
        keys: Keys,
        settings: MeteringSettings,
        *,
        metrics: PublisherMetrics | None = None,
        clock: Clock | None = None,
        random: Random | None = None,
        consumer: str | None = None,
    ) -> None:
        self.metrics = metrics or PublisherMetrics()
        self._settings = settings
        self._clock = clock or SystemClock()
        self._random = random or Random()  # noqa: S311 - spreads waits, keeps no secret
        self._consumer = consumer or new_consumer_name()
        self._outbox = Outbox(client, keys, self._consumer)
        self._stamp = Stamp(settings.source, settings.type)
        self._batcher = Batcher(settings.batch_events_max, settings.batch_bytes_max)
        self._in_progress: dict[tuple[int, bytes], Entry] = {}
        self._bytes = 0
        self._deliveries: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()
        self._slot_freed = asyncio.Event()
        self._chores_s = min(CHORES_S_MAX, settings.claim_idle_ms / 4000)
        self._chores_due_s = 0.0
        self._valkey_backoff = Backoff(settings.backoff_ms_min / 1000, settings.backoff_ms_max / 1000, self._random)
        self._valkey_failing = False

    def __repr__(self) -> str:
        return (
            f"Publisher({self._consumer}, {len(self._in_progress)} entries in progress,"
            f" {len(self._deliveries)} deliveries, {self._batcher!r})"
        )

    def stop(self) -> None:
        """Reads nothing more; :meth:`run` returns when what was read is delivered, or after ``stop_grace_ms``.

        What is not delivered by then stays in the outbox, free to be taken over at once.
        """
        self._stop.set()
        self._slot_freed.set()

    async def run(self) -> None:
        """Delivers until :meth:`stop`, through every failure of OpenMeter and of Valkey.

        Raises:
            MeteringError: the settings name no URL, or a file that cannot be used.
        """
        async with Sender(self._settings, self._clock) as sender:
            endpoint = Endpoint(sender, self._settings, self.metrics, self._clock, self._stop)
            courier = Courier(endpoint, self._settings, self.metrics, self._random, self._finish, self._batcher.shrink)
            log.info("publisher started", consumer=self._consumer, url=self._settings.url)
            try:
                # A delivery that fails for a reason nobody thought of ends the publisher: better seen than stuck.
                async with asyncio.TaskGroup() as tasks:
                    while not self._stop.is_set():
                        _notice_cancellation()
                        await self._turn(tasks, courier)
                    await self._drain(tasks, courier)
            finally:
                await self._leave()
        log.info("publisher stopped", consumer=self._consumer, left=len(self._in_progress))

    async def _turn(self, tasks: asyncio.TaskGroup, courier: Courier) -> None:
        more = False
        try:
            await self._chores_if_due()
            room_bytes = self._settings.buffer_bytes_max - self._bytes
            if room_bytes > 0:
                reading = await self._outbox.read(room_bytes)
                await self._take(reading.entries)
                more = reading.more
                if reading.errors:
                    raise reading.errors[0]
            self._valkey_works()
        except VALKEY_ERRORS as error:
            self._start_deliveries(tasks, courier, partial=True)
            self._valkey_fails(error)
            await self._clock.wait(self._stop, self._valkey_backoff.next_s())
            return
        except Stopping:
            return
        self._start_deliveries(tasks, courier, partial=not more)
        if not self._has_slot() or self._bytes >= self._settings.buffer_bytes_max:
            self._slot_freed.clear()
            # A stop that came in between has set the event for the last time.
            if not self._stop.is_set() and self._deliveries:
                await self._clock.wait(self._slot_freed, self._chores_s)
        elif not more:
            await self._clock.wait(self._stop, min(self._settings.linger_ms / 1000, self._chores_s))

    async def _take(self, entries: Sequence[Entry]) -> None:
        """Decodes entries and queues their events."""
        finished: list[Entry] = []
        for entry in entries:
            if (entry.partition, entry.id) in self._in_progress:
                continue
            self._in_progress[entry.partition, entry.id] = entry
            self._bytes += entry.size_bytes
            self.metrics.entries_read += 1
            bodies = self._decode(entry)
            self.metrics.events_read += len(bodies)
            if bodies:
                self._batcher.add(entry, bodies)
                self.metrics.events_in_progress += entry.events
            else:
                finished.append(entry)
        if finished:
            await self._finish(finished)

    def _decode(self, entry: Entry) -> list[bytes]:
        try:
            decoded = decode_entry(entry.fields, self._stamp)
        except MalformedEntry as error:
            log.error("outbox entry cannot be read, kept as a dead letter", reason=str(error), entry=repr(entry))
            entry.letters.append(letter_of_entry(entry.fields, str(error)))
            return []
        for flaw in decoded.flaws:
            log.error("usage event cannot be sent, kept as a dead letter", reason=flaw.reason, entry=repr(entry))
            entry.letters.append(letter_of_position(entry.fields, flaw.position, flaw.reason))
        return decoded.bodies

    def _has_slot(self) -> bool:
        return len(self._deliveries) < self._settings.requests_in_flight_max

    def _start_deliveries(self, tasks: asyncio.TaskGroup, courier: Courier, *, partial: bool) -> None:
        while self._has_slot() and (batch := self._batcher.cut(partial=partial)) is not None:
            task = tasks.create_task(self._deliver(courier, batch))
            self._deliveries.add(task)
            task.add_done_callback(self._free_slot)

    def _free_slot(self, task: asyncio.Task[None]) -> None:
        self._deliveries.discard(task)
        self._slot_freed.set()

    async def _deliver(self, courier: Courier, batch: Batch) -> None:
        try:
            await courier.deliver(batch)
        except Stopping:
            log.info("delivery left to another publisher", events=len(batch))

    async def _finish(self, entries: list[Entry]) -> None:
        """Removes entries from the outbox, however long Valkey takes to come back. Raises :class:`Stopping`."""
        backoff = Backoff(self._settings.backoff_ms_min / 1000, self._settings.backoff_ms_max / 1000, self._random)
        while entries:
            try:
                await self._outbox.finish(entries)
                break
            except VALKEY_ERRORS as error:
                self._valkey_fails(error)
                if await self._clock.wait(self._stop, backoff.next_s()):
                    raise Stopping from None
        for entry in entries:
            if self._in_progress.pop((entry.partition, entry.id), None) is not None:
                self._bytes -= entry.size_bytes
                self.metrics.events_in_progress -= entry.events
            self.metrics.entries_finished += 1
            self.metrics.dead_letters += len(entry.letters)

    async def _chores_if_due(self) -> None:
        now_s = self._clock.monotonic_s()
        if now_s < self._chores_due_s:
            return
        self._chores_due_s = now_s + self._chores_s
        idle_ms = self._settings.claim_idle_ms
        await self._outbox.keep(list(self._in_progress.values()))
        claimed = await self._outbox.claim(idle_ms, self._settings.buffer_bytes_max - self._bytes)
        self.metrics.entries_claimed += len(claimed)
        await self._take(claimed)
        await self._outbox.forget(2 * idle_ms)
        measure = await self._outbox.measure()
        self.metrics.note_outbox(measure.entries, len(self._in_progress), measure.oldest_s, measure.dead_letters)

    async def _drain(self, tasks: asyncio.TaskGroup, courier: Courier) -> None:
        try:
            async with asyncio.timeout(self._settings.stop_grace_ms / 1000):
                while len(self._batcher) or self._deliveries:
                    self._start_deliveries(tasks, courier, partial=True)
                    await asyncio.wait(self._deliveries, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            while self._deliveries:
                for task in self._deliveries:
                    task.cancel()
                await asyncio.wait(self._deliveries, timeout=CANCEL_AGAIN_S)

    async def _leave(self) -> None:
        try:
            async with asyncio.timeout(LEAVE_TIMEOUT_S):
                await self._outbox.leave()
        except (TimeoutError, *VALKEY_ERRORS) as error:
            log.warning("publisher left without a word to valkey", reason=str(error))

    def _valkey_fails(self, error: Exception) -> None:
        self.metrics.valkey_failures += 1
        if not self._valkey_failing:
            log.warning("valkey does not answer as it should", reason=f"{type(error).__name__}: {error}")
        self._valkey_failing = True
        self._chores_due_s = 0.0  # once it is back, first of all say that we are still here

    def _valkey_works(self) -> None:
        if self._valkey_failing:
            log.info("valkey answers again")
        self._valkey_failing = False
        self._valkey_backoff.reset()
