"""Sends events again, within limits: what cannot be sent now is found missing by the next audit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from random import Random
from typing import Final

from sidecar.basics.backoff import Backoff
from sidecar.basics.clock import Clock, SystemClock
from sidecar.basics.logger import get_logger
from sidecar.ledger.keys import Keys
from sidecar.metering.audit.streams import Streams
from sidecar.metering.outbox.events import EventAttributes
from sidecar.metering.publisher.batches import Batch
from sidecar.metering.publisher.bisection import Bisection
from sidecar.metering.publisher.ingest_responses import IngestResponse, ResponseClass
from sidecar.metering.publisher.sender import Sender
from sidecar.metering.settings import MeteringSettings
from sidecar.valkey.topology import Client

log = get_logger("sidecar.metering")

TRIES_MAX: Final = 5
RETRY_AFTER_S_MAX: Final = 30.0
REFUSED_MAX: Final = 20
"""OpenMeter has accepted all of these events once. More refusals than this mean that something else is wrong."""


@dataclass(slots=True)
class Resent:
    """``events`` and ``units``: that are kept of what was asked for. ``sent`` and ``refused`` count events;
    ``failure``: why not all of them were sent, None if they were."""

    events: int = 0
    units: int = 0
    sent: int = 0
    refused: int = 0
    failure: str | None = None


async def resend_kept(
    client: Client,
    keys: Keys,
    settings: MeteringSettings,
    from_ms: int,
    to_ms: int,
    account: str | None = None,
    *,
    dry_run: bool = False,
) -> Resent:
    """Sends the events of the tail again that happened from ``from_ms`` until before ``to_ms``.

    Raises:
        RedisError, OSError: Valkey cannot be reached. What was sent stays sent.
        MeteringError: the settings cannot be used.
    """
    found = Resent()
    streams = Streams(client, keys, EventAttributes(settings.source, settings.type))

    async def bodies() -> AsyncIterator[list[bytes]]:
        async for page in streams.kept(from_ms, to_ms, account):
            found.events += len(page)
            found.units += sum(event.units for event in page)
            yield [event.body for event in page]

    if dry_run:
        async for _ in bodies():
            pass
        return found
    clock = SystemClock()
    async with Sender(settings, clock) as sender:
        random = Random()  # noqa: S311 - spreads waits, keeps no secret
        resender = Resender(sender, settings, clock, random, asyncio.Event())
        await resender.send(bodies())
    found.sent, found.refused, found.failure = resender.sent, resender.refused, resender.failure
    return found


class Resender:
    """``sent`` and ``refused`` count events. ``failure``: why it gave up, None if it did not."""

    def __init__(
        self, sender: Sender, settings: MeteringSettings, clock: Clock, random: Random, stop: asyncio.Event
    ) -> None:
        self.sent = 0
        self.refused = 0
        self.failure: str | None = None
        self._sender = sender
        self._settings = settings
        self._clock = clock
        self._random = random
        self._stop = stop

    def __repr__(self) -> str:
        return f"Resender({self.sent} sent, {self.refused} refused, failure={self.failure!r})"

    async def send(self, pages: AsyncIterator[list[bytes]]) -> None:
        """Sends what comes, in batches, until the end or the first failure."""
        waiting: list[bytes] = []
        async for page in pages:
            waiting += page
            while self._is_full(waiting):
                await self._deliver(self._cut(waiting))
                if self.failure:
                    return
        while waiting and not self.failure:
            await self._deliver(self._cut(waiting))

    def _is_full(self, waiting: list[bytes]) -> bool:
        settings = self._settings
        return len(waiting) >= settings.batch_events_max or sum(map(len, waiting)) >= settings.batch_bytes_max

    def _cut(self, waiting: list[bytes]) -> Batch:
        count, size = 0, 2
        for body in waiting[: self._settings.batch_events_max]:
            size += len(body) + 1
            if count and size > self._settings.batch_bytes_max:
                break
            count += 1
        batch = Batch(waiting[:count], [])
        del waiting[:count]
        return batch

    async def _deliver(self, batch: Batch) -> None:
        work = Bisection(len(batch))
        while (part := work.part) is not None and not self.failure:
            response = await self._post(batch.body(part))
            if response.response_class is ResponseClass.ACCEPTED:
                self.sent += len(work.accept())
            elif response.response_class in (ResponseClass.RETRY, ResponseClass.PAUSE):
                self.failure = response.reason
            elif len(part) > 1:
                work.divide(response.position)
            else:
                work.reject()
                self._note_refusal(response)

    def _note_refusal(self, response: IngestResponse) -> None:
        self.refused += 1
        log.warning("openmeter refuses an event that it has accepted before", reason=response.reason)
        if self.refused > REFUSED_MAX:
            self.failure = response.reason

    async def _post(self, body: bytes) -> IngestResponse:
        backoff = Backoff(self._settings.backoff_ms_min / 1000, self._settings.backoff_ms_max / 1000, self._random)
        for _ in range(TRIES_MAX):
            response = await self._sender.post(body)
            if response.status in (401, 403):
                self._sender.reload_token()
            elif response.response_class is not ResponseClass.RETRY:
                return response
            wait_s = max(backoff.next_s(), response.retry_after_s or 0.0)
            if wait_s > RETRY_AFTER_S_MAX or await self._clock.wait(self._stop, wait_s):
                return response
        return response
