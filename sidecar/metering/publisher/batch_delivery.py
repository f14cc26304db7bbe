"""Delivers one batch: from its first request until each of its events is accepted or refused for good."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random

from sidecar.basics.backoff import Backoff
from sidecar.basics.logger import get_logger
from sidecar.metering.dead_letters import dead_letter_of_event
from sidecar.metering.metrics import PublisherMetrics
from sidecar.metering.publisher.batches import Batch, Entry
from sidecar.metering.publisher.bisection import Bisection
from sidecar.metering.publisher.delivery_pause import PausableSender
from sidecar.metering.publisher.ingest_responses import IngestResponse, ResponseClass
from sidecar.metering.settings import MeteringSettings

log = get_logger("sidecar.metering")

EMPTY_BATCH = b"[]"


class BatchDelivery:
    """Delivers batches. ``finish`` is given the entries of which all events are accepted or are dead letters;
    ``shrink`` is told the size of a body that was too large.
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
        self._settings = settings
        self._metrics = metrics
        self._random = random
        self._finish = finish
        self._shrink = shrink

    async def deliver(self, batch: Batch) -> None:
        """Returns when nothing of the batch is left to send.

        Raises:
            Stopping: the publisher stops. Unfinished events will be sent again, with the same ids.
        """
        work = Bisection(len(batch))
        refused_at: int | None = None
        while (part := work.part) is not None:
            body = batch.body(part)
            response = await self._ask(body)
            if response.response_class is ResponseClass.ACCEPTED:
                self._metrics.events_delivered += len(work.accept())
            elif len(part) > 1:
                if response.response_class is ResponseClass.TOO_LARGE:
                    self._shrink(len(body) // 2)
                work.divide(response.position)
                continue
            elif refused_at is None or refused_at == self._sender.acceptances:
                refused_at = self._sender.acceptances
                await self._probe(response)
                continue
            else:
                self._reject(batch, work.reject(), response)
            refused_at = None
            await self._finish(batch.close(part))

    async def _ask(self, body: bytes) -> IngestResponse:
        """Sends a body until the response says something about its events."""
        backoff = Backoff(self._settings.backoff_ms_min / 1000, self._settings.backoff_ms_max / 1000, self._random)
        while True:
            response = await self._sender.post(body)
            if response.response_class is ResponseClass.RETRY:
                await self._sender.wait_while_paused()
                await self._sender.wait(backoff.next_s())
            elif response.response_class is not ResponseClass.PAUSE:
                return response

    async def _probe(self, refusal: IngestResponse) -> None:
        """Asks with an empty batch, which OpenMeter answers with 204, whether it is the event that was refused.

        An event becomes a dead letter when it was refused twice and something, if only this, was accepted in between.
        Without that a wrong URL, or a header that a proxy has changed, would turn the whole outbox into dead letters.
        """
        response = await self._ask(EMPTY_BATCH)
        if response.response_class is not ResponseClass.ACCEPTED:
            self._sender.pause(refusal)

    def _reject(self, batch: Batch, position: int, response: IngestResponse) -> None:
        body, owner = batch.bodies[position], batch.owners[position]
        owner.dead_letters.append(dead_letter_of_event(owner.fields, body, response.reason))
        log.warning(
            "openmeter refused a usage event permanently, it is kept as a dead letter",
            reason=response.reason,
            entry=owner.id.decode(),
            partition=owner.partition,
        )
