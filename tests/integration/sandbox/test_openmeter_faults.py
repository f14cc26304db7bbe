from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from sidecar.sandbox.openmeter.openmeter_faults import OpenMeterFault
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter
from sidecar.sandbox.server import Server
from tests.integration.sandbox.kit import call

EVENTS = [call(str(i)) for i in range(5)]


async def ingest(client: aiohttp.ClientSession, url: str, **options: Any) -> tuple[int, str | None]:
    headers = {"Content-Type": "application/cloudevents-batch+json"}
    async with client.post(f"{url}/api/v1/events", json=EVENTS, headers=headers, **options) as answer:
        return answer.status, answer.headers.get("Retry-After")


@pytest.mark.parametrize("status", [400, 408, 413, 429, 500, 503])
async def test_a_scripted_status_strikes_once_and_keeps_nothing(
    client: aiohttp.ClientSession, meter: OpenMeter, meter_url: str, status: int
) -> None:
    meter.faults.script(OpenMeterFault(status=status, retry_after="7"))
    assert await ingest(client, meter_url) == (status, "7")
    assert len(meter.store) == 0
    assert await ingest(client, meter_url) == (204, None)
    assert len(meter.store) == 5


async def test_an_error_in_mid_batch_keeps_the_first_events_and_a_repeat_completes_them(
    client: aiohttp.ClientSession, meter: OpenMeter, meter_url: str
) -> None:
    meter.faults.script(OpenMeterFault(status=500, kept=3))
    assert await ingest(client, meter_url) == (500, None)
    assert meter.counts.accepted == 3
    assert await ingest(client, meter_url) == (204, None)
    assert (meter.counts.accepted, meter.counts.duplicates) == (5, 3)


@pytest.mark.parametrize(("drop", "kept"), [("before", 0), ("after", 5)])
async def test_a_dropped_connection_gives_no_answer_before_or_after_keeping(
    client: aiohttp.ClientSession, meter: OpenMeter, meter_url: str, drop: Any, kept: int
) -> None:
    meter.faults.script(OpenMeterFault(drop=drop))
    with pytest.raises(aiohttp.ClientConnectionError):
        await ingest(client, meter_url)
    assert len(meter.store) == kept
    assert await ingest(client, meter_url) == (204, None)
    assert len(meter.store) == 5


async def test_a_hanging_request_keeps_nothing_and_ends_with_its_client(
    client: aiohttp.ClientSession, meter: OpenMeter, meter_url: str
) -> None:
    meter.faults.script(OpenMeterFault(hang=True))
    with pytest.raises(TimeoutError):
        await ingest(client, meter_url, timeout=aiohttp.ClientTimeout(total=0.1))
    assert await ingest(client, meter_url) == (204, None)
    assert meter.counts.accepted == 5


async def test_closing_the_server_cuts_a_hanging_request_which_keeps_nothing(client: aiohttp.ClientSession) -> None:
    meter = OpenMeter()
    meter.faults.script(OpenMeterFault(hang=True))
    server = Server(meter.app())
    hanging = asyncio.create_task(ingest(client, await server.start()))
    while not meter.faults.struck:
        await asyncio.sleep(0.001)
    await server.close()
    with pytest.raises(aiohttp.ClientConnectionError):
        await hanging
    assert len(meter.store) == 0


async def test_a_delay_lets_the_request_pass_afterwards(
    client: aiohttp.ClientSession, meter: OpenMeter, meter_url: str
) -> None:
    meter.faults.script(OpenMeterFault(delay_ms=60_000), OpenMeterFault(delay_ms=1))
    with pytest.raises(TimeoutError):
        await ingest(client, meter_url, timeout=aiohttp.ClientTimeout(total=0.1))
    assert await ingest(client, meter_url) == (204, None)


async def test_lost_events_are_answered_204_all_the_same(
    client: aiohttp.ClientSession, meter: OpenMeter, meter_url: str
) -> None:
    meter.faults.script(OpenMeterFault(lose=True))
    assert await ingest(client, meter_url) == (204, None)
    assert (len(meter.store), meter.counts.lost) == (0, 5)


async def test_an_outage_lasts_until_it_is_cleared(
    client: aiohttp.ClientSession, meter: OpenMeter, meter_url: str
) -> None:
    meter.faults.always(OpenMeterFault(status=503))
    assert [await ingest(client, meter_url) for _ in range(3)] == [(503, None)] * 3
    meter.faults.clear()
    assert await ingest(client, meter_url) == (204, None)
    assert meter.faults.struck == 3


async def test_faults_are_set_shown_and_cleared_over_http(
    client: aiohttp.ClientSession, meter: OpenMeter, meter_url: str
) -> None:
    url = f"{meter_url}/sandbox/faults"
    outage = {"probability": 1, "fault": {"status": 503}}
    async with client.post(url, json={"script": [{"status": 429}], "chances": [outage]}) as answer:
        assert answer.status == 200
    assert [(await ingest(client, meter_url))[0] for _ in range(3)] == [429, 503, 503]
    async with client.get(url) as answer:
        shown = await answer.json()
        assert (shown["script"], shown["struck"]) == ([], 3)
        assert shown["chances"][0]["fault"]["status"] == 503
    async with client.delete(url) as answer:
        assert answer.status == 204
    assert (await ingest(client, meter_url))[0] == 204
    async with client.get(f"{meter_url}/sandbox/stats") as answer:
        assert await answer.json() == {
            "requests": 4,
            "refused": 0,
            "accepted": 5,
            "duplicates": 0,
            "dropped": 0,
            "lost": 0,
            "events": 5,
        }


async def test_a_plan_with_a_mistake_is_a_problem_that_names_the_place(
    client: aiohttp.ClientSession, meter_url: str
) -> None:
    async with client.post(f"{meter_url}/sandbox/faults", json={"script": [{"status": 200}]}) as answer:
        assert answer.status == 400
        assert (await answer.json())["detail"] == "script[0]: status: 200 is not from 400 to 599"
