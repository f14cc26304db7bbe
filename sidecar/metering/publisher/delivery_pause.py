"""One sender for all deliveries: it pauses all requests together, and knows whether OpenMeter accepts them."""

from __future__ import annotations

import asyncio

from sidecar.basics.clock import Clock
from sidecar.basics.logger import get_logger
from sidecar.metering.metrics import PublisherMetrics
from sidecar.metering.publisher.ingest_responses import IngestResponse, ResponseClass
from sidecar.metering.publisher.sender import Sender
from sidecar.metering.settings import MeteringSettings

log = get_logger("sidecar.metering")


class Stopping(Exception):
    """The publisher stops; who waits shall leave its work to another publisher."""


class PausableSender:
    """A sender that pauses. Retry-After and a pause stop all requests, as they concern the publisher and not a batch.

    ``acceptances`` counts requests that were accepted.
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
        self.acceptances = 0

    def __repr__(self) -> str:
        state = "paused" if self._metrics.paused else "failing" if self._failing else "well"
        return f"PausableSender({state}, {self.acceptances} acceptances)"

    async def post(self, body: bytes) -> IngestResponse:
        """Sends one body as soon as no pause is in force.

        Raises:
            Stopping: the publisher stops during a pause.
        """
        await self.wait_while_paused()
        response = await self._sender.post(body)
        self._metrics.requests[response.response_class] += 1
        match response.response_class:
            case ResponseClass.ACCEPTED:
                self.acceptances += 1
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
                reason=response.reason,
            )
        self._metrics.paused = True
        self._pause_for(self._pause_s)

    async def wait_while_paused(self) -> None:
        """Waits for the end of a pause. Raises :class:`Stopping` instead if the publisher stops."""
        while (wait_s := self._paused_until_s - self._clock.monotonic_s()) > 0:
            await self.wait(wait_s)

    async def wait(self, seconds: float) -> None:
        """Waits. Raises :class:`Stopping` if the publisher stops meanwhile."""
        if await self._clock.wait(self._stop, seconds):
            raise Stopping

    def _pause_for(self, seconds: float) -> None:
        self._paused_until_s = max(self._paused_until_s, self._clock.monotonic_s() + seconds)

    def _recovered(self) -> None:
        if self._failing or self._metrics.paused:
            log.info("openmeter accepts events again")
        self._failing = False
        self._metrics.paused = False
