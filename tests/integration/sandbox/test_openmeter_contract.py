"""What the stand-in takes and answers is what OpenMeter's OpenAPI document allows, no more and no less."""

from __future__ import annotations

from typing import Any

import aiohttp
import orjson
import pytest

from sidecar.sandbox.openmeter.openmeter_events import BATCH, EITHER, SINGLE, parse_events
from sidecar.sandbox.openmeter.openmeter_faults import OpenMeterFault
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter, OpenMeterConfig
from sidecar.sandbox.server import Server
from tests.integration.sandbox.contract import DOCUMENT, answer_errors, request_errors
from tests.integration.sandbox.kit import call, instant
from tests.unit.sandbox.event_cases import ACCEPTED, GOOD, REFUSED, EventCase

EVENTS = "/api/v1/events"
METERS = "/api/v1/meters"
METER = "/api/v1/meters/{meterIdOrSlug}"
QUERY = "/api/v1/meters/{meterIdOrSlug}/query"


async def exchange(
    client: aiohttp.ClientSession,
    url: str,
    method: str,
    path: str,
    *,
    slug: str = "",
    query: str = "",
    body: object = None,
    content_type: str = EITHER,
) -> tuple[int, list[str], list[str]]:
    """The status, and what the document finds wrong with the request and with the answer."""
    target = f"{url}{path.replace('{meterIdOrSlug}', slug)}?{query}"
    if body is None:
        raw, headers, wrong = None, {}, []
    else:
        raw, headers = orjson.dumps(body), {"Content-Type": content_type}
        wrong = request_errors(method, path, content_type, body)
    async with client.request(method, target, data=raw, headers=headers) as answer:
        received = await answer.read()
        document = orjson.loads(received) if received else None
        return answer.status, wrong, answer_errors(method, path, answer.status, answer.content_type, document)


# No skipped tests: where the document is absent, these are not there.
if DOCUMENT.is_file():

    @pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case.name)
    @pytest.mark.parametrize("content_type", [SINGLE, BATCH, EITHER])
    async def test_what_is_accepted_is_valid(
        client: aiohttp.ClientSession, meter_url: str, case: EventCase, content_type: str
    ) -> None:
        body = [GOOD, case.event] if content_type == BATCH else case.event
        found = await exchange(client, meter_url, "post", EVENTS, body=body, content_type=content_type)
        assert found == (204, [], [])

    @pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
    @pytest.mark.parametrize("content_type", [SINGLE, BATCH, EITHER])
    async def test_what_is_refused_is_invalid_and_the_refusal_is_valid(
        client: aiohttp.ClientSession, meter_url: str, case: EventCase, content_type: str
    ) -> None:
        body = [GOOD, case.event] if content_type == BATCH else case.event
        status, wrong, answer = await exchange(client, meter_url, "post", EVENTS, body=body, content_type=content_type)
        assert (status, bool(wrong), answer) == (400, True, [])

    async def test_listed_events_are_valid_with_and_without_data(
        client: aiohttp.ClientSession, meter: OpenMeter, meter_url: str
    ) -> None:
        events: list[Any] = [call("1"), {**call("2"), "data": None}, {**call("3"), "type": "unheard-of"}]
        meter.keep(parse_events(BATCH, orjson.dumps(events), "v1"))
        assert await exchange(client, meter_url, "get", EVENTS) == (200, [], [])
        assert await exchange(client, meter_url, "get", EVENTS, query="limit=1000") == (400, [], [])

    @pytest.mark.parametrize(
        ("query", "status"),
        [
            ("", 200),
            ("windowSize=HOUR&groupBy=subject&groupBy=method", 200),
            (f"from={instant(-7200)}&to={instant(60)}&windowSize=DAY&windowTimeZone=Asia/Kolkata", 200),
            (f"from={instant(7200)}", 200),
            ("windowSize=YEAR", 400),
            ("groupBy=colour", 400),
        ],
    )
    @pytest.mark.parametrize("slug", ["api_calls", "api_requests"])
    async def test_answers_to_queries_are_valid(
        client: aiohttp.ClientSession, meter: OpenMeter, meter_url: str, slug: str, query: str, status: int
    ) -> None:
        meter.keep(parse_events(BATCH, orjson.dumps([call("1"), call("2", offset_s=-3600)]), "v1"))
        assert await exchange(client, meter_url, "get", QUERY, slug=slug, query=query) == (status, [], [])

    async def test_answers_to_posted_queries_are_valid(client: aiohttp.ClientSession, meter_url: str) -> None:
        body = {"from": instant(-60), "windowSize": "MINUTE", "groupBy": ["subject"], "subject": ["tpp-1"]}
        assert await exchange(client, meter_url, "post", QUERY, slug="api_calls", body=body) == (200, [], [])
        assert await exchange(client, meter_url, "post", QUERY, slug="nothing", body={}) == (404, [], [])

    async def test_meters_are_valid_when_created_read_listed_and_updated(
        client: aiohttp.ClientSession, meter_url: str
    ) -> None:
        new = {
            "slug": "slow",
            "eventType": "api.call",
            "aggregation": "MAX",
            "valueProperty": "$.response_time_ms",
            "eventFrom": "2025-01-01T00:00:00Z",
            "groupBy": {"method": "$.method"},
            "metadata": {"owner": "platform"},
        }
        change = {"name": "Slowest", "groupBy": {}}
        # The document says 201, the server answers 200.
        status, wrong, _ = await exchange(client, meter_url, "post", METERS, body=new)
        assert (status, wrong) == (200, [])
        assert await exchange(client, meter_url, "post", METERS, body=new) == (409, [], [])
        assert await exchange(client, meter_url, "get", METER, slug="slow") == (200, [], [])
        assert await exchange(client, meter_url, "put", METER, slug="slow", body=change) == (200, [], [])
        assert await exchange(client, meter_url, "get", METERS) == (200, [], [])
        assert await exchange(client, meter_url, "get", METER, slug="nothing") == (404, [], [])
        status, wrong, answer = await exchange(client, meter_url, "post", METERS, body={**new, "slug": "No Slug"})
        assert (status, bool(wrong), answer) == (400, True, [])

    @pytest.mark.parametrize("status", [413, 429, 500, 503])
    async def test_injected_errors_are_valid_problems(
        client: aiohttp.ClientSession, meter: OpenMeter, meter_url: str, status: int
    ) -> None:
        meter.faults.script(OpenMeterFault(status=status))
        found = await exchange(client, meter_url, "post", EVENTS, body=[GOOD], content_type=BATCH)
        assert found == (status, [], [])

    async def test_a_missing_token_is_a_valid_problem(client: aiohttp.ClientSession) -> None:
        async with Server(OpenMeter(OpenMeterConfig(token="right-token")).app()) as server:
            assert await exchange(client, server.url, "get", METERS) == (401, [], [])
