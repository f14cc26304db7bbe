"""How long the publisher waits when OpenMeter asks it to; the clock passes as it is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from random import Random

import pytest

from sidecar.metering.metrics import PublisherMetrics
from sidecar.metering.publisher.batch_delivery import BatchDelivery
from sidecar.metering.publisher.batches import Batch, Batcher, Entry
from sidecar.metering.publisher.delivery_pause import PausableSender, Stopping
from sidecar.metering.publisher.ingest_responses import ResponseClass
from sidecar.metering.publisher.sender import Sender
from sidecar.metering.settings import MeteringSettings
from sidecar.sandbox.openmeter.openmeter_faults import OpenMeterFault
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter
from tests.integration.metering.kit import SkippingClock

BODY = b'{"specversion":"1.0","id":"gw.0.1.0","source":"bank","type":"api.call","subject":"tpp-1"}'


class Delivering:
    """A delivery with a clock that skips, and what it has finished."""

    def __init__(self, how: MeteringSettings, sender: Sender, clock: SkippingClock) -> None:
        self.metrics = PublisherMetrics()
        self.stop = asyncio.Event()
        self.clock = clock
        self.finished: list[Entry] = []
        pausable_sender = PausableSender(sender, how, self.metrics, clock, self.stop)
        self.delivery = BatchDelivery(pausable_sender, how, self.metrics, Random(1), self._finish, lambda size: None)

    async def _finish(self, entries: list[Entry]) -> None:
        self.finished += entries

    async def deliver(self) -> float:
        """Delivers a batch of one event. Answers how many seconds that took."""
        begin_s = self.clock.monotonic_s()
        await self.delivery.deliver(one_event())
        return self.clock.monotonic_s() - begin_s


def one_event() -> Batch:
    batcher = Batcher(1, 1_000)
    batcher.add(Entry(0, b"1-0", {}, 1), [BODY])
    batch = batcher.cut(partial=True)
    assert batch is not None
    return batch


@asynccontextmanager
async def delivering(url: str, **changes: int) -> AsyncIterator[Delivering]:
    how = MeteringSettings.model_validate({"url": url, **changes})
    clock = SkippingClock()
    async with Sender(how, clock) as sender:
        yield Delivering(how, sender, clock)


def http_date(seconds: float) -> str:
    return format_datetime(datetime.fromtimestamp(seconds, UTC), usegmt=True)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [("7", 7.0), (http_date(SkippingClock().now_s() + 90), 90.0), ("86400", 300.0), ("soon", 0.0)],
    ids=["seconds", "date", "longer than allowed", "unreadable"],
)
async def test_retry_after_is_waited_for_within_its_limit(
    meter: OpenMeter, url: str, status: int, retry_after: str, seconds: float
) -> None:
    meter.faults.script(OpenMeterFault(status=status, retry_after=retry_after))
    async with delivering(url, backoff_ms_min=100) as audits:
        took_s = await audits.deliver()
    assert seconds <= took_s <= seconds + 0.1
    assert meter.counts.accepted == len(audits.finished) == 1


async def test_retry_after_holds_back_every_other_batch_too(meter: OpenMeter, url: str) -> None:
    meter.faults.script(OpenMeterFault(status=429, retry_after="60"))
    async with delivering(url) as audits:
        begin_s = audits.clock.monotonic_s()
        first = asyncio.create_task(audits.deliver())
        while not audits.metrics.requests[ResponseClass.RETRY]:
            await asyncio.sleep(0)
        await audits.delivery.deliver(one_event())
        assert audits.clock.monotonic_s() - begin_s >= 60
        await first


async def test_waits_between_retries_are_random_below_a_bound_that_doubles(meter: OpenMeter, url: str) -> None:
    meter.faults.script(*[OpenMeterFault(status=500)] * 12)
    async with delivering(url, backoff_ms_min=100, backoff_ms_max=5_000) as audits:
        await audits.deliver()
    waits = audits.clock.waits
    assert len(set(waits)) == len(waits) == 12
    assert all(0 <= wait <= min(5.0, 0.1 * 2**n) for n, wait in enumerate(waits))
    assert max(waits) > 1.0


async def test_a_pause_is_as_long_as_configured(meter: OpenMeter, url: str) -> None:
    meter.faults.script(*[OpenMeterFault(status=401)] * 3)
    async with delivering(url, pause_ms=30_000) as audits:
        assert await audits.deliver() == 90.0
        assert audits.metrics.requests[ResponseClass.PAUSE] == 3
        assert not audits.metrics.paused


async def test_a_stop_ends_a_long_wait_and_gives_the_batch_up(meter: OpenMeter, url: str) -> None:
    meter.faults.always(OpenMeterFault(status=503))
    async with delivering(url) as audits:
        delivery = asyncio.create_task(audits.deliver())
        while audits.metrics.requests[ResponseClass.RETRY] < 3:
            await asyncio.sleep(0)
        audits.stop.set()
        with pytest.raises(Stopping):
            await delivery
    assert audits.finished == []
