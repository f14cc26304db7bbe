"""The official OpenMeter client (PyPI ``openmeter``) finds nothing amiss with the stand-in."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from corehttp.exceptions import ClientAuthenticationError, HttpResponseError, ResourceNotFoundError
from openmeter import Client
from openmeter.aio import Client as AioClient
from openmeter.models import Event

from sidecar.sandbox.openmeter.openmeter_faults import OpenMeterFault
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter, OpenMeterConfig
from sidecar.sandbox.server import Server
from tests.integration.sandbox.kit import NOW_S, call


def at(offset_s: int) -> datetime:
    return datetime.fromtimestamp(NOW_S + offset_s, UTC)


def event(id: str, subject: str, units: int) -> Event:
    data = {"endpoint": "/accounts", "method": "GET", "units": units}
    return Event(
        id=id, source="open-banking-api", specversion="1.0", type="api.call", subject=subject, time=at(0), data=data
    )


async def test_the_asynchronous_client_ingests_and_queries(meter: OpenMeter, meter_url: str) -> None:
    async with AioClient(endpoint=meter_url) as official:
        await official.events.ingest_event(event("1", "tpp-1", 1))
        await official.events.ingest_events([event("2", "tpp-1", 2), event("3", "tpp-2", 4)])
        await official.events.ingest_events(orjson.dumps([call("4", subject="tpp-2", units=8)]))
        await official.events.ingest_events_json([event("1", "tpp-1", 1), event("5", "tpp-3", 16)])
        result = await official.meters.query_json(
            "api_calls", from_parameter=at(-3600), to=at(60), window_size="HOUR", group_by=["subject", "endpoint"]
        )
        listed = await official.events.list(from_parameter=at(-60), limit=10)
    assert (meter.counts.accepted, meter.counts.duplicates) == (5, 1)
    rows = [(row.subject, row.value, row.group_by, row.window_start) for row in result.data]
    assert rows == [
        (subject, value, {"endpoint": "/accounts"}, at(-1800))
        for subject, value in (("tpp-1", 3), ("tpp-2", 12), ("tpp-3", 16))
    ]
    assert {item.event.id for item in listed} == {"1", "2", "3", "4", "5"}
    assert {item.event.time for item in listed} == {at(0)}


async def test_the_synchronous_client_ingests_and_queries(meter_url: str) -> None:
    def use() -> tuple[list[float], list[str], str]:
        with Client(endpoint=meter_url) as official:
            official.events.ingest_events([event("1", "tpp-1", 1), event("2", "tpp-2", 2)])
            filtered = official.meters.query_json(
                "api_calls",
                subject=["tpp-1", "tpp-2"],
                advanced_meter_group_by_filters={"method": {"$in": ["GET"]}},  # type: ignore[dict-item]
            )
            slugs = [item.slug for item in official.meters.list()]
            text = "".join(map(str, official.meters.query_csv("api_requests", group_by=["subject"])))
            return [row.value for row in filtered.data], slugs, text

    values, slugs, text = await asyncio.to_thread(use)
    assert values == [1, 2]
    assert slugs == ["api_calls", "api_requests"]
    assert text.splitlines()[0] == "window_start,window_end,subject,value"
    assert len(text.splitlines()) == 3


async def test_the_client_makes_reads_updates_and_deletes_meters(meter_url: str) -> None:
    body: Any = {"slug": "slow", "eventType": "api.call", "aggregation": "MAX", "valueProperty": "$.response_time_ms"}
    async with AioClient(endpoint=meter_url) as official:
        # It expects 201, as the document says; the server answers 200.
        with pytest.raises(HttpResponseError) as made:
            await official.meters.create(body)
        updated = await official.meters.update("slow", {"name": "Slowest answer"})
        read = await official.meters.get(updated.id)
        await official.meters.delete("slow")
        with pytest.raises(ResourceNotFoundError):
            await official.meters.get("slow")
    assert made.value.status_code == 200
    assert (read.slug, read.name, read.id) == ("slow", "Slowest answer", updated.id)


async def test_the_client_reads_refusals_as_problems(meter_url: str) -> None:
    async with AioClient(endpoint=meter_url) as official:
        with pytest.raises(HttpResponseError) as refused:
            await official.events.ingest_events([event("1", "tpp-1", 1), event("2", "", 1)])
        with pytest.raises(ResourceNotFoundError):
            await official.meters.query_json("nothing")
    assert refused.value.status_code == 400
    assert refused.value.model is not None
    assert refused.value.model.detail.endswith('Error at "/1/subject": minimum string length is 1')


async def test_the_client_repeats_after_an_outage_as_it_does_with_openmeter(meter: OpenMeter, meter_url: str) -> None:
    meter.faults.script(OpenMeterFault(status=503))
    async with AioClient(endpoint=meter_url) as official:
        await official.events.ingest_events([event("1", "tpp-1", 1)])
    assert (meter.counts.requests, meter.counts.accepted) == (2, 1)


async def test_the_client_shows_its_token() -> None:
    meter = OpenMeter(OpenMeterConfig(token="right-token"))
    async with Server(meter.app()) as server:
        async with AioClient(endpoint=server.url, token="right-token") as official:
            await official.events.ingest_event(event("1", "tpp-1", 1))
        async with AioClient(endpoint=server.url, token="wrong-token") as official:
            with pytest.raises(ClientAuthenticationError):
                await official.events.ingest_event(event("2", "tpp-1", 1))
    assert meter.counts.accepted == 1
