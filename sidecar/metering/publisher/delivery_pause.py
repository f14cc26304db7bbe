"""OpenMeter as all deliveries see it together: when it may be called, and how it is doing."""

from __future__ import annotations

import asyncio

from sidecar.basics.clock import Clock
from sidecar.basics.logger import get_logger
from sidecar.metering.metrics import PublisherMetrics
from sidecar.metering.publisher.ingest_answers import Answer, Verdict
from sidecar.metering.publisher.sender import Sender
from sidecar.metering.settings import MeteringSettings

log = get_logger("sidecar.metering")


class Stopping(Exception):
    """The publisher stops; who waits shall leave its work to another publisher."""


class Endpoint:
    """One gate before all requests. Retry-After and a pause close it for everyone, as they concern the publisher and
    not a batch. ``acceptances`` counts requests that were accepted.
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
        self._closed_until_s = 0.0
        self._failing = False
        self.acceptances = 0

    def __repr__(self) -> str:
        state = "paused" if self._metrics.paused else "failing" if self._failing else "well"
        return f"Endpoint({state}, {self.acceptances} acceptances)"

    async def post(self, body: bytes) -> Answer:
        """Sends one body as soon as the gate is open.

        Raises:
            Stopping: the gate is closed and the publisher stops.
        """
        await self.opened()
        answer = await self._sender.post(body)
        self._metrics.requests[answer.verdict] += 1
        match answer.verdict:
            case Verdict.ACCEPTED:
                self.acceptances += 1
                self._recovered()
            case Verdict.RETRY:
                if not self._failing:
                    log.warning("openmeter does not answer as it should", reason=answer.reason)
                self._failing = True
                self._close(min(answer.retry_after_s or 0.0, self._retry_after_s_max))
            case Verdict.PAUSE:
                if answer.status in (401, 403):
                    self._sender.reload_token()
                self.pause(answer)
        return answer

    def pause(self, answer: Answer) -> None:
        """Nothing is sent for a while: it is not the events that are refused."""
        if not self._metrics.paused:
            log.error("openmeter refuses the publisher: check url, token and what stands between", reason=answer.reason)
        self._metrics.paused = True
        self._close(self._pause_s)

    async def opened(self) -> None:
        """Waits for the gate. Raises :class:`Stopping` instead if the publisher stops."""
        while (wait_s := self._closed_until_s - self._clock.monotonic_s()) > 0:
            await self.wait(wait_s)

    async def wait(self, seconds: float) -> None:
        """Waits. Raises :class:`Stopping` if the publisher stops meanwhile."""
        if await self._clock.wait(self._stop, seconds):
            raise Stopping

    def _close(self, seconds: float) -> None:
        self._closed_until_s = max(self._closed_until_s, self._clock.monotonic_s() + seconds)

    def _recovered(self) -> None:
        if self._failing or self._metrics.paused:
            log.info("openmeter accepts events again")
        self._failing = False
        self._metrics.paused = False
