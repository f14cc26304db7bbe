"""One batch, from its first request until each of its events is accepted or condemned."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random

from sidecar.basics.backoff import Backoff
from sidecar.basics.logger import get_logger
from sidecar.metering.dead_letters import letter_of_event
from sidecar.metering.metrics import PublisherMetrics
from sidecar.metering.publisher.batches import Batch, Entry
from sidecar.metering.publisher.bisection import Narrowing
from sidecar.metering.publisher.delivery_pause import Endpoint
from sidecar.metering.publisher.ingest_answers import Answer, Verdict
from sidecar.metering.settings import MeteringSettings

log = get_logger("sidecar.metering")

EMPTY_BATCH = b"[]"


class Courier:
    """Delivers batches. ``finish`` is given the entries of which all events are delivered or condemned;
    ``shrink`` is told the size of a body that was too large.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        settings: MeteringSettings,
        metrics: PublisherMetrics,
        random: Random,
        finish: Callable[[list[Entry]], Awaitable[None]],
        shrink: Callable[[int], None],
    ) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._metrics = metrics
        self._random = random
        self._finish = finish
        self._shrink = shrink

    async def deliver(self, batch: Batch) -> None:
        """Returns when nothing of the batch is left to send.

        Raises:
            Stopping: the publisher stops. What was not finished will be sent again, with the same ids.
        """
        work = Narrowing(len(batch))
        refused_at: int | None = None
        while (part := work.part) is not None:
            body = batch.body(part)
            answer = await self._ask(body)
            if answer.verdict is Verdict.ACCEPTED:
                self._metrics.events_delivered += len(work.accept())
            elif len(part) > 1:
                if answer.verdict is Verdict.TOO_LARGE:
                    self._shrink(len(body) // 2)
                work.divide(answer.position)
                continue
            elif refused_at is None or refused_at == self._endpoint.acceptances:
                refused_at = self._endpoint.acceptances
                await self._probe(answer)
                continue
            else:
                self._condemn(batch, work.condemn(), answer)
            refused_at = None
            await self._finish(batch.close(part))

    async def _ask(self, body: bytes) -> Answer:
        """Sends a body until the answer says something about its events."""
        backoff = Backoff(self._settings.backoff_ms_min / 1000, self._settings.backoff_ms_max / 1000, self._random)
        while True:
            answer = await self._endpoint.post(body)
            if answer.verdict is Verdict.RETRY:
                await self._endpoint.opened()
                await self._endpoint.wait(backoff.next_s())
            elif answer.verdict is not Verdict.PAUSE:
                return answer

    async def _probe(self, refusal: Answer) -> None:
        """Asks with an empty batch, which OpenMeter answers with 204, whether it is the event that was refused.

        An event is condemned when it was refused twice and something, if only this, was accepted in between. Without
        that a wrong URL, or a header that a proxy has changed, would turn the whole outbox into dead letters.
        """
        answer = await self._ask(EMPTY_BATCH)
        if answer.verdict is not Verdict.ACCEPTED:
            self._endpoint.pause(refusal)

    def _condemn(self, batch: Batch, position: int, answer: Answer) -> None:
        body, owner = batch.bodies[position], batch.owners[position]
        owner.letters.append(letter_of_event(owner.fields, body, answer.reason))
        log.warning(
            "usage event refused for good, kept as a dead letter",
            reason=answer.reason,
            entry=owner.id.decode(),
            partition=owner.partition,
        )
