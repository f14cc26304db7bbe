from __future__ import annotations

from typing import Any

import aiohttp
import orjson
import pytest

from sidecar.sandbox.openmeter.openmeter_faults import OpenMeterFault
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter, OpenMeterConfig
from sidecar.sandbox.server import Server
from tests.integration.sandbox.kit import NOW_S, call, instant

BATCH = "application/cloudevents-batch+json"
SINGLE = "application/cloudevents+json"


async def ingest(
    client: aiohttp.ClientSession, url: str, body: object, content_type: str = BATCH, *, api: str = "v1", **fields: str
) -> tuple[int, Any]:
    path = "/api/v1/events" if api == "v1" else "/api/v3/openmeter/events"
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    async with client.post(url + path, data=raw, headers={"Content-Type": content_type, **fields}) as answer:
        return answer.status, await answer.json(content_type=None) if answer.content_type.endswith("json") else None


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (SINGLE, call("1")),
        (BATCH, [call("1")]),
        ("application/json", call("1")),
        ("application/json", [call("1")]),
    ],
)
async def test_v1_answers_204_and_v3_202_and_the_event_is_there(
    client: aiohttp.ClientSession, meter: OpenMeter, meter_url: str, content_type: str, body: object
) -> None:
    assert await ingest(client, meter_url, body, content_type) == (204, None)
    assert await ingest(client, meter_url, body, content_type, api="v3") == (202, None)
    assert (meter.counts.requests, meter.counts.accepted, meter.counts.duplicates) == (2, 1, 1)


async def test_a_refused_batch_leaves_nothing_behind(
    client: aiohttp.ClientSession, meter: OpenMeter, meter_url: str
) -> None:
    bad = {key: value for key, value in call("4").items() if key != "subject"}
    status, problem = await ingest(client, meter_url, [call("1"), call("2"), call("3"), bad])
    assert status == 400
    assert problem == {
        "type": "about:blank",
        "title": "Bad Request",
        "status": 400,
        "detail": 'request body has an error: doesn\'t match schema: Error at "/3/subject": '
        'property "subject" is missing',
        "instance": "urn:request:sandbox/000001",
    }
    assert (len(meter.store), meter.counts.refused, meter.counts.accepted) == (0, 1, 0)


async def test_an_empty_batch_is_fine_and_an_empty_array_as_json_is_not(
    client: aiohttp.ClientSession, meter_url: str
) -> None:
    assert await ingest(client, meter_url, []) == (204, None)
    status, problem = await ingest(client, meter_url, [], "application/json")
    assert (status, problem["detail"]) == (400, "invalid event: no events found")


@pytest.mark.parametrize("status", [400, 402, 429, 503])
async def test_an_empty_batch_is_fine_whatever_is_wrong_with_all_others(
    client: aiohttp.ClientSession, meter: OpenMeter, meter_url: str, status: int
) -> None:
    meter.faults.always(OpenMeterFault(status=status))
    assert await ingest(client, meter_url, b" [ ] ") == (204, None)
    assert (await ingest(client, meter_url, [call("1")]))[0] == status
    assert await ingest(client, meter_url, [], api="v3") == (202, None)


async def test_a_fault_waits_for_the_batch_behind_an_empty_one(
    client: aiohttp.ClientSession, meter: OpenMeter, meter_url: str
) -> None:
    meter.faults.script(OpenMeterFault(status=400))
    assert await ingest(client, meter_url, []) == (204, None)
    assert (await ingest(client, meter_url, [call("1")]))[0] == 400
    assert await ingest(client, meter_url, [call("1")]) == (204, None)


async def test_a_source_that_go_cannot_parse_refuses_the_batch(
    client: aiohttp.ClientSession, meter: OpenMeter, meter_url: str
) -> None:
    status, problem = await ingest(client, meter_url, [call("1"), {**call("2"), "source": "eu1 gateway: prod"}])
    assert (status, problem["title"]) == (400, "Bad Request")
    assert problem["detail"] == "invalid event: cannot parse uri ref: eu1 gateway: prod"
    assert (len(meter.store), meter.counts.refused) == (0, 1)


async def test_a_charset_is_too_much_for_v1_and_fine_for_v3(client: aiohttp.ClientSession, meter_url: str) -> None:
    with_charset = f"{BATCH}; charset=utf-8"
    assert (await ingest(client, meter_url, [call("1")], with_charset))[0] == 400
    assert (await ingest(client, meter_url, [call("1")], with_charset, api="v3"))[0] == 202


async def test_v3_names_each_bad_field(client: aiohttp.ClientSession, meter_url: str) -> None:
    status, problem = await ingest(client, meter_url, [{**call("1"), "extra": 1}, {**call("2"), "id": ""}], api="v3")
    assert (status, problem["title"]) == (400, "Bad Request")
    assert [(item["field"], item["rule"], item["source"]) for item in problem["invalid_parameters"]] == [
        ("0.extra", "additionalProperties", "body"),
        ("1.id", "minLength", "body"),
    ]


async def test_a_body_beyond_the_limit_is_413(client: aiohttp.ClientSession) -> None:
    meter = OpenMeter(OpenMeterConfig(body_bytes_max=4096))
    async with Server(meter.app()) as server:
        events = [call(str(i)) for i in range(100)]
        status, problem = await ingest(client, server.url, events)
        assert (status, problem["status"]) == (413, 413)
        assert (await ingest(client, server.url, events[:10]))[0] == 204
    assert meter.counts.accepted == 10


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        ("", 401),
        ("Bearer", 401),
        ("Bearer wrong", 401),
        ("Basic right-token", 401),
        ("Bearer right-token", 204),
        ("bearer right-token", 204),
    ],
)
async def test_only_the_right_token_opens_the_api_when_there_is_one(
    client: aiohttp.ClientSession, authorization: str, status: int
) -> None:
    async with Server(OpenMeter(OpenMeterConfig(token="right-token")).app()) as server:
        fields = {"Authorization": authorization} if authorization else {}
        got, problem = await ingest(client, server.url, [call("1")], **fields)
    assert got == status
    assert problem is None or "right-token" not in str(problem)


async def test_listed_events_are_those_ingested_cut_to_seconds_with_the_remarks_of_the_server(
    client: aiohttp.ClientSession, meter_url: str
) -> None:
    extended = {**call("1", offset_s=-60), "time": instant(-60).replace("Z", ".999Z"), "traceparent": "00-1-2-01"}
    bare = {key: value for key, value in call("2").items() if key not in ("data", "time")}
    await ingest(client, meter_url, [extended, bare, {**call("3", offset_s=-10), "type": "other"}])
    async with client.get(f"{meter_url}/api/v1/events") as answer:
        listed = await answer.json()
    assert [item["event"]["id"] for item in listed] == ["2", "3", "1"]
    expected = {**call("1", offset_s=-60), "datacontenttype": "application/json"}
    assert listed[2]["event"] == expected
    assert listed[0]["event"]["time"] == listed[0]["ingestedAt"] == instant()
    assert listed[0]["validationError"].splitlines()[0] == "invalid event: null and missing value property"
    assert listed[1]["validationError"].splitlines() == [
        "no meter found for event type: other",
        "no customer found for event subject: tpp-1",
    ]
    assert listed[2]["validationError"] == "no customer found for event subject: tpp-1"


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("", ["now", "minute", "hour", "month"]),
        ("limit=2", ["now", "minute"]),
        (f"from={instant(-3600)}", ["now", "minute", "hour"]),
        (f"from={instant(-3600)}&to={instant()}", ["minute", "hour"]),
        ("id=our", ["hour"]),
        ("subject=tpp-2", ["minute"]),
        ("subject=tpp", []),
        (f"ingestedAtFrom={instant()}", ["now", "minute", "hour", "month"]),
        (f"ingestedAtFrom={instant(1)}", []),
        (f"ingestedAtTo={instant()}", []),
        (f"from={instant(-7200).replace('Z', '%2B00:00')}", ["now", "minute", "hour"]),
    ],
)
async def test_events_are_listed_youngest_first_within_the_bounds(
    client: aiohttp.ClientSession, meter_url: str, query: str, ids: list[str]
) -> None:
    day = 86400
    events = [
        call("month", offset_s=-31 * day),
        call("hour", offset_s=-3600),
        call("now"),
        call("minute", subject="tpp-2", offset_s=-60),
        call("too-old", offset_s=-33 * day),
    ]
    await ingest(client, meter_url, events)
    async with client.get(f"{meter_url}/api/v1/events?{query}") as answer:
        assert [item["event"]["id"] for item in await answer.json()] == ids


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("limit=0", '"limit"'),
        ("limit=101", '"limit"'),
        ("limit=x", '"limit"'),
        ("from=yesterday", '"from"'),
        ("from=2020-01-01T00:00:00Z", "from date is too old"),
        ("ingestedAtFrom=2020-01-01T00:00:00Z", "ingestedAtFrom date is too old"),
        (f"from={instant()}&to={instant(-1)}", "to date is before from date"),
        (f"ingestedAtFrom={instant()}&ingestedAtTo={instant(-1)}", "ingestedAtTo date is before"),
        ("customerId=01G65Z755AFWAKHE12NY0CQ9FH", "customers not found"),
    ],
)
async def test_a_list_that_cannot_be_made_is_refused(
    client: aiohttp.ClientSession, meter_url: str, query: str, says: str
) -> None:
    async with client.get(f"{meter_url}/api/v1/events?{query}") as answer:
        assert answer.status == 400
        assert says in (await answer.json())["detail"]


async def test_dedupe_off_is_what_openmeter_does_out_of_the_box(client: aiohttp.ClientSession) -> None:
    meter = OpenMeter(OpenMeterConfig(dedupe=False, now=lambda: NOW_S))
    async with Server(meter.app()) as server:
        for _ in range(2):
            assert (await ingest(client, server.url, [call("1")]))[0] == 204
        async with client.get(f"{server.url}/api/v1/meters/api_requests/query") as answer:
            assert (await answer.json())["data"][0]["value"] == 2


async def test_what_is_not_there_is_a_problem_too(client: aiohttp.ClientSession, meter_url: str) -> None:
    async with client.get(f"{meter_url}/api/v1/nothing") as answer:
        assert (answer.status, answer.content_type) == (404, "application/problem+json")
    async with client.delete(f"{meter_url}/api/v1/events") as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "GET,HEAD,POST")
