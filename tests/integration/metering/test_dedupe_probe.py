"""Whether OpenMeter counts an event once is told by what it counts, however late, whatever its sink forgets."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace

import pytest

from sidecar.metering.dedupe_probe import (
    EVENT_TYPE,
    OTHERS_AFTER,
    OTHERS_BETWEEN,
    SLUG,
    Dedupe,
    ProbeError,
    ProbeOutcome,
    probe_dedupe,
)
from sidecar.metering.openmeter.meter_query import QueryError
from sidecar.metering.settings import MeteringSettings
from sidecar.sandbox.openmeter.meters import DEFAULT_METERS, Meter
from sidecar.sandbox.openmeter.openmeter_events import CloudEvent
from sidecar.sandbox.openmeter.openmeter_faults import OpenMeterFault
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter, OpenMeterConfig
from sidecar.sandbox.openmeter.openmeter_store import OpenMeterEventStore, Stored
from sidecar.sandbox.server import Server

NAMES = "MeterRegistry(api_calls, api_requests)"
LONG_S = 60.0


class Sink(OpenMeterEventStore):
    """What is accepted is seen after a flush, with every second query. A flush drops what is in it twice, and what is
    among the last ``keys`` events of flushes before.
    """

    def __init__(self, keys: int) -> None:
        super().__init__(dedupe=False, now=time.time)
        self.keys = keys
        self._known: OrderedDict[str, None] = OrderedDict()
        self._waiting: dict[str, CloudEvent] = {}
        self._queries = 0

    def add(self, event: CloudEvent) -> Stored:
        self._waiting.setdefault(event.id, event)
        return Stored.KEPT

    def rows(self, event_type: str, from_s: int | None, to_s: int | None) -> Iterator[tuple[int, str, bytes]]:
        self._queries += 1
        if self._queries % 2 == 0:
            self._flush()
        return super().rows(event_type, from_s, to_s)

    def _flush(self) -> None:
        for event in self._waiting.values():
            if event.id not in self._known:
                super().add(event)
            self._known[event.id] = None
        self._waiting.clear()
        while len(self._known) > self.keys:
            self._known.popitem(last=False)


async def probed(url: str, visible_s: float = LONG_S) -> ProbeOutcome:
    return await probe_dedupe(MeteringSettings(url=url), visible_s=visible_s, poll_s=0.01)


@pytest.mark.parametrize(("keys", "dedupe"), [(0, Dedupe.TWICE), (128, Dedupe.TWICE), (100_000, Dedupe.ONCE)])
async def test_a_sink_that_forgets_is_found_though_each_flush_drops_what_is_in_it_twice(
    meter: OpenMeter, url: str, keys: int, dedupe: Dedupe
) -> None:
    meter.store = Sink(keys)
    assert await probed(url) == ProbeOutcome(dedupe)


@pytest.mark.parametrize("seconds", [True, False])
async def test_one_event_comes_in_two_requests_under_one_id_and_source_and_a_type_of_its_own(seconds: bool) -> None:
    there = OpenMeter(OpenMeterConfig(dedupe=False, seconds=seconds))
    async with Server(there.app()) as server:
        assert await probed(server.url) == ProbeOutcome(Dedupe.TWICE)
    events = list(there.store.events())
    ids = [(event.source, event.id) for event in events]
    twice = {each for each in ids if ids.count(each) == 2}
    assert len(twice) == 1
    assert len(events) == 2 + OTHERS_BETWEEN + OTHERS_AFTER
    assert {event.type for event in events} == {EVENT_TYPE}
    assert there.counts.requests == 4
    assert repr(there.meters) == NAMES


async def test_a_second_probe_is_not_misled_by_the_events_of_the_first(meter: OpenMeter, url: str) -> None:
    sink = meter.store = Sink(0)
    assert await probed(url) == ProbeOutcome(Dedupe.TWICE)
    sink.keys = 100_000
    assert await probed(url) == ProbeOutcome(Dedupe.ONCE)
    assert repr(meter.meters) == NAMES


async def test_what_cannot_be_seen_in_time_is_said_and_the_meter_is_deleted(meter: OpenMeter, url: str) -> None:
    meter.faults.script(OpenMeterFault(lose=True))
    assert await probed(url, visible_s=0.1) == ProbeOutcome(Dedupe.NOT_VISIBLE)
    assert repr(meter.meters) == NAMES


@pytest.mark.parametrize("number", [1, 2, 3, 4])
async def test_an_event_that_is_refused_is_an_error_and_the_meter_is_deleted(
    meter: OpenMeter, url: str, number: int
) -> None:
    meter.faults.script(*[OpenMeterFault()] * (number - 1), OpenMeterFault(status=400))
    with pytest.raises(ProbeError, match="OpenMeter does not take events: 400 injected fault"):
        await probed(url)
    assert repr(meter.meters) == NAMES


async def test_a_probe_that_is_stopped_deletes_the_meter(meter: OpenMeter, url: str) -> None:
    meter.faults.script(OpenMeterFault(lose=True))
    probing = asyncio.create_task(probed(url))
    while meter.counts.lost == 0:
        await asyncio.sleep(0.01)
    assert SLUG in repr(meter.meters)
    probing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probing
    assert repr(meter.meters) == NAMES


async def test_what_a_probe_left_is_used_and_deleted_and_a_meter_of_somebody_else_is_left_alone(
    meter: OpenMeter, url: str
) -> None:
    now = meter.meters.get("api_calls").created
    left = Meter(SLUG, EVENT_TYPE, "SUM", "$.units", {"metric": "$.metric"})
    meter.meters.create(left, now)
    assert await probed(url) == ProbeOutcome(Dedupe.ONCE)
    assert repr(meter.meters) == NAMES
    meter.meters.create(replace(DEFAULT_METERS[0], slug=SLUG), now)
    requests = meter.counts.requests
    with pytest.raises(ProbeError, match=f"has a meter {SLUG} of another definition"):
        await probed(url)
    assert SLUG in repr(meter.meters)
    assert meter.counts.requests == requests


async def test_a_meter_that_cannot_be_deleted_is_said(
    meter: OpenMeter, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(self: object, slug: str) -> None:
        raise QueryError("not now", transient=True)

    monkeypatch.setattr("sidecar.metering.openmeter.meter_query.MeterQuery.delete_meter", refuse)
    assert await probed(url) == ProbeOutcome(Dedupe.ONCE, "not now")
