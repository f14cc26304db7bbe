"""Delivers one batch: each of its events is accepted, or becomes a dead letter, or waits with the refused ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from random import Random

from sidecar.basics.backoff import Backoff
from sidecar.basics.logger import get_logger
from sidecar.metering.dead_letters import dead_letter_of_event
from sidecar.metering.metrics import PublisherMetrics
from sidecar.metering.publisher.batches import Batch, Batcher, Entry
from sidecar.metering.publisher.bisection import Bisection
from sidecar.metering.publisher.delivery_pause import REFUSED_IN_A_ROW_MAX, Accepted, PausableSender
from sidecar.metering.publisher.ingest_responses import IngestResponse, ResponseClass
from sidecar.metering.publisher.refused_batches import RefusedBatch, RefusedBatches
from sidecar.metering.settings import MeteringSettings

log = get_logger("sidecar.metering")


class BatchDelivery:
    """Delivers batches. ``finish`` is given the entries of which all events are accepted or are dead letters;
    ``shrink`` is told the size of a body that was too large. ``refused`` are the events that were refused and wait.
    """

    def __init__(
        self,
        sender: PausableSender,
        settings: MeteringSettings,
        metrics: PublisherMetrics,
        random: Random,
        finish: Callable[[list[Entry]], Awaitable[None]],
        shrink: Callable[[int], None],
    ) -> None:
        self._sender = sender
        self.refused = RefusedBatches(metrics)
        self._settings = settings
        self._metrics = metrics
        self._random = random
        self._finish = finish
        self._shrink = shrink

    def may_start(self, running: int) -> bool:
        """Whether a delivery may start beside ``running`` others. In doubt there is one at a time, after each pause."""
        if self._sender.in_doubt:
            return not running and not self._sender.pauses
        return running < self._settings.requests_in_flight_max

    def next(self, batcher: Batcher, *, partial: bool) -> Coroutine[None, None, None] | None:
        """The next delivery: of events that were refused and may be tried again, or of a batch from ``batcher``, one
        that could still grow only if ``partial``. In doubt new events come first, since they prove more. None if there
        is nothing to deliver now.
        """
        if self._sender.in_doubt and (batch := batcher.cut(partial=partial)) is not None:
            return self.deliver(batch)
        refused = self.refused.take(self._sender.accepted, self._sender.now_s())
        if refused is not None:
            return self._retry(refused)
        batch = batcher.cut(partial=partial)
        return None if batch is None else self.deliver(batch)

    async def _retry(self, refused: RefusedBatch) -> None:
        await self.deliver(refused.batch, refused)
        self.refused.done(refused)
        if not len(self.refused):
            self._sender.end_doubt()

    async def deliver(self, batch: Batch, before: RefusedBatch | None = None) -> None:
        """Returns when nothing of the batch is left to send now. ``before``: the earlier refusal of these events.

        Raises:
            Stopping: the publisher stops. Unfinished events will be sent again, with the same ids.
        """
        work = Bisection(len(batch))
        sent_before, accepted_before = self._sender.sent, self._sender.accepted
        divided = passed = False
        last: list[RefusedBatch] = []  # refused one by one since the last acceptance
        while (part := work.part) is not None:
            body = batch.body(part)
            response = await self._ask(body, is_new=before is None)
            if response.response_class is ResponseClass.ACCEPTED:
                self._metrics.events_delivered += len(work.accept())
                if before is not None and before.is_refused and not before.excused:
                    self.refused.excuse()
                passed, last = divided, []
                await self._finish(batch.close(part))
            elif len(part) > 1:
                divided = True
                self._divide(work, body, response)
            elif before is not None and before.is_at_fault(accepted_before):
                self._sender.refused(response)
                self._reject(batch, work.reject(), response)
                await self._finish(batch.close(part))
            else:
                self._sender.refused(response)
                event = batch.part(part)
                work.reject()
                if before is not None and before.is_refused:
                    last.append(self._set_aside_again(event, before, sent_before, accepted_before))
                else:
                    last.append(self._set_aside(event, self._sender.sent))
            if self._sender.in_doubt and (len(part) == 1 or response.response_class is ResponseClass.REFUSED):
                self._give_way(batch, work.take_rest(), before)
                return
        if passed and len(last) < REFUSED_IN_A_ROW_MAX:
            for refused in last:
                refused.neighbours_passed = True

    async def _ask(self, body: bytes, *, is_new: bool) -> IngestResponse:
        """Sends a body until the response says something about its events."""
        backoff = Backoff(self._settings.backoff_ms_min / 1000, self._settings.backoff_ms_max / 1000, self._random)
        while True:
            response = await self._sender.post(body, is_new=is_new)
            if response.response_class is ResponseClass.RETRY:
                await self._sender.wait_while_paused()
                await self._sender.wait(backoff.next_s())
            elif response.response_class is not ResponseClass.PAUSE:
                return response

    def _divide(self, work: Bisection, body: bytes, response: IngestResponse) -> None:
        if response.response_class is ResponseClass.TOO_LARGE:
            self._shrink(len(body) // 2)
        elif self._sender.in_doubt:
            self._sender.pause_in_doubt(response)
        work.divide(response.position)

    def _set_aside(self, event: Batch, refused_at: int, trials: int = 0) -> RefusedBatch:
        due_s = self._sender.now_s() + self._settings.pause_ms / 1000
        refused = RefusedBatch(event, refused_at, is_refused=True, due_s=due_s, trials=trials)
        self.refused.add(refused)
        return refused

    def _set_aside_again(
        self, event: Batch, before: RefusedBatch, sent_before: int, accepted_before: Accepted
    ) -> RefusedBatch:
        if before.others_passed(accepted_before):
            return self._set_aside(event, before.refused_at, before.trials + 1)
        # What was sent while this trial ran came after the earlier refusal, and may still prove something.
        return self._set_aside(event, sent_before)

    def _give_way(self, batch: Batch, rest: list[range], before: RefusedBatch | None) -> None:
        """In doubt other events come first: it takes one good event to know that the server accepts any."""
        if before is None:
            self.refused.prove_anew(self._sender.sent)
        refused_at = self._sender.sent if before is None or before.excused else before.refused_at
        for part in rest:
            self.refused.add(RefusedBatch(batch.part(part), refused_at, is_refused=False))

    def _reject(self, batch: Batch, position: int, response: IngestResponse) -> None:
        body, owner = batch.bodies[position], batch.owners[position]
        owner.dead_letters.append(dead_letter_of_event(owner.fields, body, response.reason))
        log.warning(
            "openmeter refused a usage event permanently, it is kept as a dead letter",
            reason=response.reason,
            entry=owner.id.decode(),
            partition=owner.partition,
        )
