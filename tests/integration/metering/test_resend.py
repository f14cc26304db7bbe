"""Sending again: in batches, around what is refused, and not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest

from sidecar.metering.audit.resend import REFUSED_MAX, TRIES_MAX, Resender
from sidecar.metering.publisher.sender import Sender
from sidecar.metering.settings import MeteringSettings
from sidecar.sandbox.openmeter.openmeter_faults import OpenMeterFault
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter, OpenMeterConfig
from sidecar.sandbox.server import Server
from tests.integration.metering.kit import RefusingProxy, SkippingClock, first_poisoned, stored_ids


def bodies(count: int, subject: str = "tpp", first: int = 0) -> list[bytes]:
    event = {"specversion": "1.0", "source": "bank", "type": "api.call", "data": {"units": 1}}
    return [orjson.dumps({**event, "id": f"gw.{n}", "subject": f"{subject}-{n}"}) for n in range(first, first + count)]


async def pages(*each: list[bytes]) -> AsyncIterator[list[bytes]]:
    for page in each:
        yield page


@asynccontextmanager
async def resending(url: str, clock: SkippingClock | None = None, **changes: Any) -> AsyncIterator[Resender]:
    how = MeteringSettings.model_validate({"url": url, **changes})
    clock = clock or SkippingClock()
    async with Sender(how, clock) as sender:
        yield Resender(sender, how, clock, Random(1), asyncio.Event())


async def test_pages_of_any_size_become_batches_within_the_limits(meter: OpenMeter) -> None:
    proxy = RefusingProxy()
    size = len(bodies(1)[0]) + 10
    async with Server(proxy.app(meter)) as server, resending(server.url, batch_events_max=40) as resender:
        await resender.send(pages([], bodies(1), bodies(130, first=1), [], bodies(3, first=131)))
        assert [events for events, _ in proxy.requests] == [40, 40, 40, 14]
        assert (resender.sent, resender.refused, resender.failure) == (134, 0, None)
    proxy.requests.clear()
    async with Server(proxy.app(meter)) as server, resending(server.url, batch_bytes_max=40 * size) as resender:
        await resender.send(pages(bodies(200, first=1000)))
    assert all(size_bytes <= 40 * size for _, size_bytes in proxy.requests)
    assert 5 <= len(proxy.requests) <= 8
    assert len(stored_ids(meter)) == 334


@pytest.mark.parametrize("hint", [True, False])
async def test_an_event_that_is_refused_now_is_left_out_and_its_neighbours_arrive(meter: OpenMeter, hint: bool) -> None:
    proxy = RefusingProxy(first_poisoned, hint=hint)
    events = [*bodies(20), *bodies(1, "poison", 20), *bodies(20, first=21)]
    async with Server(proxy.app(meter)) as server, resending(server.url) as resender:
        await resender.send(pages(events))
    assert (resender.sent, resender.refused, resender.failure) == (40, 1, None)
    assert (len(proxy.requests) == 4) == hint
    assert len(stored_ids(meter)) == 40


async def test_a_body_that_is_too_large_for_somebody_on_the_way_is_divided(meter: OpenMeter) -> None:
    proxy = RefusingProxy(lambda batch: 0 if len(batch) > 7 else None, status=413, hint=False)
    async with Server(proxy.app(meter)) as server, resending(server.url) as resender:
        await resender.send(pages(bodies(50)))
    assert (resender.sent, resender.refused) == (50, 0)


async def test_a_server_that_refuses_everything_is_given_up_soon(meter: OpenMeter) -> None:
    proxy = RefusingProxy(refuse_all=True)
    async with Server(proxy.app(meter)) as server, resending(server.url) as resender:
        await resender.send(pages(bodies(500), bodies(500)))
    assert (resender.sent, resender.refused) == (0, REFUSED_MAX + 1)
    assert resender.failure is not None
    assert len(proxy.requests) < 80


async def test_a_passing_failure_is_waited_out_and_a_lasting_one_is_not(meter: OpenMeter, url: str) -> None:
    clock = SkippingClock()
    meter.faults.script(
        OpenMeterFault(status=503), OpenMeterFault(status=429, retry_after="7"), OpenMeterFault(drop="after")
    )
    async with resending(url, clock) as resender:
        await resender.send(pages(bodies(3)))
        assert (resender.sent, resender.failure) == (3, None)
        assert clock.waits[1] >= 7
    meter.faults.always(OpenMeterFault(status=503))
    meter.counts.requests = 0
    async with resending(url, batch_events_max=1) as resender:
        await resender.send(pages(bodies(3), bodies(3)))
    assert (resender.sent, resender.failure) == (0, "503 injected fault")
    assert meter.counts.requests == TRIES_MAX


async def test_nobody_waits_for_a_long_retry_after(meter: OpenMeter, url: str) -> None:
    clock = SkippingClock()
    meter.faults.always(OpenMeterFault(status=429, retry_after="3600"))
    async with resending(url, clock) as resender:
        await resender.send(pages(bodies(3)))
    assert resender.failure == "429 injected fault"
    assert clock.waits == []


async def test_a_token_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old")
    meter = OpenMeter(OpenMeterConfig(token="new"))
    async with Server(meter.app()) as server, resending(server.url, token_file=file) as resender:
        file.write_text("new")
        await resender.send(pages(bodies(3)))
    assert (resender.sent, resender.failure) == (3, None)
