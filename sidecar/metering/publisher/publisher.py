"""Delivers the events of the outbox to OpenMeter.

One loop: look after what is in progress, read, cut batches, start deliveries. An entry leaves the outbox only when each
of its events was accepted or became a dead letter (``BatchDelivery``), so whatever happens to a publisher, its entries
are still there; the ids of the events are fixed, so sending them again counts once, as long as OpenMeter removes
duplicates (``sink.dedupe.enabled``, for longer than the longest outage). What was accepted is kept for a while
(``retain_s``), since OpenMeter may still lose it (``sidecar.metering.audit``).

Any number of publishers may run at once: the consumer group gives every entry to one of them. One that goes silent
for ``claim_idle_ms`` loses its entries to the others. One that is alive but cannot deliver keeps them; one that merely
stood still for so long may find them taken and send them a second time.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Coroutine, Sequence
from random import Random

from sidecar.basics.backoff import Backoff
from sidecar.basics.cancellation import notice_cancellation
from sidecar.basics.clock import Clock, SystemClock
from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.logger import get_logger
from sidecar.ledger.keys import Keys
from sidecar.metering.archive.archive import RETRY_S_MAX, RETRY_S_MIN, Archive
from sidecar.metering.metrics import PublisherMetrics
from sidecar.metering.outbox.events import EventAttributes
from sidecar.metering.outbox.outbox import Outbox, Retention
from sidecar.metering.publisher.batch_delivery import BatchDelivery
from sidecar.metering.publisher.batches import Batcher
from sidecar.metering.publisher.delivery_pause import PausableSender, Stopping
from sidecar.metering.publisher.memory_relief import MemoryRelief
from sidecar.metering.publisher.pending_entries import PendingEntries
from sidecar.metering.publisher.sender import Sender
from sidecar.metering.publisher.watermark_sender import WatermarkSender
from sidecar.metering.settings import MeteringSettings
from sidecar.valkey.calls import VALKEY_ERRORS
from sidecar.valkey.topology import Client

log = get_logger("sidecar.metering")

MAINTENANCE_S_MAX = 5.0
VALKEY_BACKOFF_S_MIN, VALKEY_BACKOFF_S_MAX = 0.05, 5.0
LEAVE_TIMEOUT_S = 2.0
CANCEL_AGAIN_S = 0.1


def new_consumer_name() -> str:
    """Unique for every start: what an earlier process left pending is taken over like any other's."""
    return f"{socket.gethostname()[:64]}-{os.getpid()}-{secrets.token_hex(4)}"


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
        retention = Retention(settings.retain_s * 1000, settings.retain_entries_max)
        self._outbox = Outbox(client, keys, self._consumer, retention)
        self._memory_relief = MemoryRelief(client, self._outbox, self._clock)
        self._batcher = Batcher(settings.batch_events_max, settings.batch_bytes_max)
        attributes = EventAttributes(settings.source, settings.type)
        self._archive = self._new_archive()
        self._watermarks = WatermarkSender(client, keys, settings, self._clock)
        self._marking: asyncio.Task[None] | None = None
        self._pending = PendingEntries(self._outbox, self._batcher, attributes, self.metrics, self._archive)
        self._deliveries: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()
        self._slot_freed = asyncio.Event()
        self._maintenance_s = min(MAINTENANCE_S_MAX, settings.claim_idle_ms / 4000)
        self._maintenance_due_s = 0.0
        self._valkey_backoff = Backoff(VALKEY_BACKOFF_S_MIN, VALKEY_BACKOFF_S_MAX, self._random)
        self._valkey_failing = False

    def _new_archive(self) -> Archive | None:
        settings = self._settings.archive
        if settings.directory is None:
            return None
        backoff = Backoff(RETRY_S_MIN, RETRY_S_MAX, self._random)
        return Archive(settings, self._consumer, backoff, self._clock, time.time, self.metrics)

    def __repr__(self) -> str:
        return f"Publisher({self._consumer}, {len(self._deliveries)} deliveries, {self._pending!r})"

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
            pausable_sender = PausableSender(sender, self._settings, self.metrics, self._clock, self._stop)
            delivery = BatchDelivery(
                pausable_sender, self._settings, self.metrics, self._random, self._pending.finish, self._batcher.shrink
            )
            log.info("publisher started", consumer=self._consumer, url=self._settings.url)
            try:
                # A delivery that fails for a reason nobody thought of ends the publisher: better seen than stuck.
                async with asyncio.TaskGroup() as tasks:
                    while not self._stop.is_set():
                        notice_cancellation()
                        if self._marking is None or self._marking.done():
                            self._marking = tasks.create_task(self._watermarks.send_if_due(sender))
                        await self._iterate(tasks, delivery)
                    if self._marking is not None:
                        self._marking.cancel()
                    await self._drain(tasks, delivery)
            finally:
                await self._leave()
                if self._archive is not None:
                    self._archive.close()
        log.info("publisher stopped", consumer=self._consumer, left=len(self._pending))

    async def _iterate(self, tasks: asyncio.TaskGroup, delivery: BatchDelivery) -> None:
        more = False
        try:
            await self._memory_relief.relieve()
            await self._maintain_if_due()
            await self._pending.finish_rest()
            if self._is_full():
                self._give_up_refused(delivery)
            if not self._is_full():
                reading = await self._outbox.read(self._settings.buffer_bytes_max - self._pending.bytes)
                await self._pending.take(reading.entries)
                more = reading.more
        except VALKEY_ERRORS as error:
            self._start_deliveries(tasks, delivery, partial=True)
            self._note_valkey([error, *self._outbox.take_errors()])
            self._maintenance_due_s = 0.0  # once it is back, first of all say that we are still here
            await self._clock.wait(self._stop, self._valkey_backoff.next_s())
            return
        self._note_valkey(self._outbox.take_errors())
        self._valkey_backoff.reset()
        self._start_deliveries(tasks, delivery, partial=not more or self._is_full())
        if self._deliveries and (self._is_full() or not delivery.may_start(len(self._deliveries))):
            self._slot_freed.clear()
            if not self._stop.is_set():  # a stop has set the event for the last time
                await self._clock.wait(self._slot_freed, self._maintenance_s)
        elif not more or self._is_full():
            await self._clock.wait(self._stop, min(self._settings.linger_ms / 1000, self._maintenance_s))

    def _is_full(self) -> bool:
        return self._pending.bytes >= self._settings.buffer_bytes_max

    def _give_up_refused(self, delivery: BatchDelivery) -> None:
        """With a buffer full of nothing but refused events, those behind them would never be read, and one of them may
        be what the server accepts. Refused events stay in the outbox, and come back after ``claim_idle_ms``."""
        if not len(self._batcher) and not self._deliveries:
            self._pending.give_up(delivery.refused.give_up())

    def _start_deliveries(self, tasks: asyncio.TaskGroup, delivery: BatchDelivery, *, partial: bool) -> None:
        while delivery.may_start(len(self._deliveries)):
            work = delivery.next(self._batcher, partial=partial)
            if work is None:
                return
            task = tasks.create_task(self._deliver(work))
            self._deliveries.add(task)
            task.add_done_callback(self._free_slot)

    def _free_slot(self, task: asyncio.Task[None]) -> None:
        self._deliveries.discard(task)
        self._slot_freed.set()

    async def _deliver(self, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except Stopping:
            log.info("delivery stopped, another publisher delivers its events")

    async def _maintain_if_due(self) -> None:
        now_s = self._clock.monotonic_s()
        if now_s < self._maintenance_due_s:
            return
        self._maintenance_due_s = now_s + self._maintenance_s
        idle_ms = self._settings.claim_idle_ms
        await self._pending.keep()
        claimed = await self._outbox.claim(idle_ms, self._settings.buffer_bytes_max - self._pending.bytes)
        self.metrics.entries_claimed += len(claimed)
        await self._pending.take(claimed)
        await self._outbox.forget(2 * idle_ms)
        await self._outbox.trim()
        measure = await self._outbox.measure()
        gone = 0
        if measure.dead_letters > self._settings.dead_letters_max:
            gone = await self._outbox.bound_dead_letters(self._settings.dead_letters_max)
        if gone:
            log.error(
                "too many dead letters: the oldest are deleted, and openmeter never counts their events",
                deleted=gone,
                dead_letters_max=self._settings.dead_letters_max,
            )
            self.metrics.dead_letters_dropped += gone
        self.metrics.note_outbox(measure.entries, len(self._pending), measure.oldest_s, measure.dead_letters - gone)
        self.metrics.refused_entries = measure.refused_entries

    async def _drain(self, tasks: asyncio.TaskGroup, delivery: BatchDelivery) -> None:
        try:
            async with asyncio.timeout(self._settings.stop_grace_ms / 1000):
                self._start_deliveries(tasks, delivery, partial=True)
                while self._deliveries:
                    await asyncio.wait(self._deliveries, return_when=asyncio.FIRST_COMPLETED)
                    self._start_deliveries(tasks, delivery, partial=True)
                await self._pending.finish_rest()
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
            log.warning("publisher could not deregister from valkey", reason=reason_of(error))

    def _note_valkey(self, errors: Sequence[Exception]) -> None:
        self.metrics.valkey_failures += len(errors)
        self.metrics.tail_entries_dropped = self._outbox.tail_entries_dropped
        self._memory_relief.note(errors)
        if errors and not self._valkey_failing:
            log.warning("requests to valkey fail", reason=reason_of(errors[0]))
            self._valkey_failing = True
        elif self._valkey_failing and not errors and self._outbox.all_partitions_available:
            log.info("requests to valkey succeed again")
            self._valkey_failing = False
