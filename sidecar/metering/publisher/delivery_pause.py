"""One sender for all deliveries: it pauses all requests together, and knows whether OpenMeter accepts any events."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from sidecar.basics.clock import Clock
from sidecar.basics.logger import get_logger
from sidecar.metering.metrics import PublisherMetrics
from sidecar.metering.publisher.ingest_responses import IngestResponse, ResponseClass
from sidecar.metering.publisher.sender import Sender
from sidecar.metering.settings import MeteringSettings

log = get_logger("sidecar.metering")


REFUSED_IN_A_ROW_MAX: Final = 5
"""Events refused one by one, with none accepted in between, that are no fault of the events any more.

Bad events are rare, and those of one batch mostly have good ones between them: two or three in a row happen. A server
that refuses everything reaches this within one batch.
"""


class Stopping(Exception):
    """The publisher stops; who waits shall leave its work to another publisher."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """Numbers of the latest requests that were accepted, 0 if none was: with any events, and with events that had not
    been refused in an earlier delivery."""

    any_events: int = 0
    new_events: int = 0

    def with_request(self, number: int, *, is_new: bool) -> Accepted:
        return Accepted(max(self.any_events, number), max(self.new_events, number) if is_new else self.new_events)


class PausableSender:
    """A sender that pauses. Retry-After and a pause stop all requests, as they concern the publisher and not a batch.

    ``sent`` counts the requests; it dates a refusal. ``accepted`` knows the latest that were accepted, in the order in
    which they were sent: events that were sent before a refusal prove nothing about what came after.
    """

    def __init__(
        self,
        sender: Sender,
        settings: MeteringSettings,
        metrics: PublisherMetrics,
        clock: Clock,
        stop: asyncio.Event,
    ) -> None:
        self._sender = sender
        self._pause_s = settings.pause_ms / 1000
        self._retry_after_s_max = settings.retry_after_ms_max / 1000
        self._metrics = metrics
        self._clock = clock
        self._stop = stop
        self._paused_until_s = 0.0
        self._failing = False
        self._refused_in_a_row = 0
        self.sent = 0
        self.accepted = Accepted()

    def __repr__(self) -> str:
        state = "paused" if self._metrics.paused else "failing" if self._failing else "well"
        refused = f"{self._refused_in_a_row} refused in a row"
        return f"PausableSender({state}, {self.accepted} of {self.sent}, {refused})"

    @property
    def in_doubt(self) -> bool:
        """Whether so many events were refused, and none accepted since, that the server may refuse all of them."""
        return self._refused_in_a_row >= REFUSED_IN_A_ROW_MAX

    @property
    def pauses(self) -> bool:
        """Whether a pause is in force."""
        return self._paused_until_s > self.now_s()

    def now_s(self) -> float:
        """Seconds that only pass."""
        return self._clock.monotonic_s()

    async def post(self, body: bytes, *, is_new: bool = True) -> IngestResponse:
        """Sends one body, of at least one event, as soon as no pause is in force. ``is_new``: of events that were not
        refused in an earlier delivery.

        Raises:
            Stopping: the publisher stops during a pause.
        """
        await self.wait_while_paused()
        self.sent += 1
        number = self.sent
        response = await self._sender.post(body)
        self._metrics.requests[response.response_class] += 1
        match response.response_class:
            case ResponseClass.ACCEPTED:
                self.accepted = self.accepted.with_request(number, is_new=is_new)
                self._recovered()
            case ResponseClass.RETRY:
                if not self._failing:
                    log.warning("requests to openmeter fail", reason=response.reason)
                self._failing = True
                self._pause_for(min(response.retry_after_s or 0.0, self._retry_after_s_max))
            case ResponseClass.PAUSE:
                if response.status in (401, 403):
                    self._sender.reload_token()
                self.pause(response)
        return response

    def pause(self, response: IngestResponse) -> None:
        """Nothing is sent for a while: it is not the events that are refused."""
        if not self._metrics.paused:
            log.error(
                "openmeter refuses the publisher: check metering.url, the token and the proxies in between",
                status=response.status,
                reason=response.reason,
            )
        self._metrics.paused = True
        self._pause_for(self._pause_s)

    def refused(self, response: IngestResponse) -> None:
        """An event was refused by itself. With :data:`REFUSED_IN_A_ROW_MAX` of them, and after each further one,
        nothing is sent for a while."""
        self._refused_in_a_row += 1
        if self.in_doubt:
            self.pause_in_doubt(response)

    def pause_in_doubt(self, response: IngestResponse) -> None:
        """Nothing is sent for a while: nobody knows whether anything would be accepted."""
        if not self._metrics.paused:
            log.error(
                "openmeter refuses one event after another and accepts none: they wait, none becomes a dead letter",
                status=response.status,
                reason=response.reason,
                refused=self._refused_in_a_row,
            )
        self._metrics.paused = True
        self._pause_for(self._pause_s)

    def end_doubt(self) -> None:
        """No refused event is left, so that there is nothing to find out."""
        if self.in_doubt:
            self._refused_in_a_row = 0
            self._metrics.paused = False

    async def wait_while_paused(self) -> None:
        """Waits for the end of a pause. Raises :class:`Stopping` instead if the publisher stops."""
        while (wait_s := self._paused_until_s - self.now_s()) > 0:
            await self.wait(wait_s)

    async def wait(self, seconds: float) -> None:
        """Waits. Raises :class:`Stopping` if the publisher stops meanwhile."""
        if await self._clock.wait(self._stop, seconds):
            raise Stopping

    def _pause_for(self, seconds: float) -> None:
        self._paused_until_s = max(self._paused_until_s, self.now_s() + seconds)

    def _recovered(self) -> None:
        if self._failing or self._metrics.paused:
            log.info("openmeter accepts events again")
        self._failing = False
        self._refused_in_a_row = 0
        self._metrics.paused = False
