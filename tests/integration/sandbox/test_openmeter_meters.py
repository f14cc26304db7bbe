from __future__ import annotations

from typing import Any

import aiohttp
import orjson
import pytest

from sidecar.sandbox.openmeter.openmeter_events import BATCH, parse_events
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter
from tests.integration.sandbox.kit import call

METERS = "/api/v1/meters"
NEW: dict[str, Any] = {
    "slug": "latency",
    "name": "Latency",
    "description": "Slowest answer",
    "eventType": "api.call",
    "aggregation": "MAX",
    "valueProperty": "$.response_time_ms",
    "groupBy": {"endpoint": "$.endpoint"},
    "eventFrom": "2020-01-01T00:00:00Z",
    "metadata": {"owner": "platform"},
}


async def send(client: aiohttp.ClientSession, method: str, url: str, body: object = None) -> tuple[int, Any]:
    async with client.request(method, url, json=body) as answer:
        return answer.status, await answer.json(content_type=None)


async def test_the_default_meters_are_listed_and_found_by_slug_and_id(
    client: aiohttp.ClientSession, meter_url: str
) -> None:
    _, listed = await send(client, "GET", meter_url + METERS)
    assert [item["slug"] for item in listed] == ["api_calls", "api_requests"]
    for item in listed:
        assert await send(client, "GET", f"{meter_url}{METERS}/{item['slug']}") == (200, item)
        assert await send(client, "GET", f"{meter_url}{METERS}/{item['id']}") == (200, item)


async def test_a_new_meter_is_shown_as_it_was_given_and_sees_events_from_before_it(
    client: aiohttp.ClientSession, meter: OpenMeter, meter_url: str
) -> None:
    old = [call("1", response_time_ms=5.5), call("2", response_time_ms=70)]
    meter.keep(parse_events(BATCH, orjson.dumps(old), "v1"))
    status, created = await send(client, "POST", meter_url + METERS, NEW)
    assert status == 200
    assert {key: created[key] for key in NEW} == NEW
    _, found = await send(client, "GET", f"{meter_url}{METERS}/latency/query")
    assert [row["value"] for row in found["data"]] == [70]


async def test_a_deleted_meter_is_gone_and_its_events_stay(
    client: aiohttp.ClientSession, meter: OpenMeter, meter_url: str
) -> None:
    meter.keep(parse_events(BATCH, orjson.dumps([call("1")]), "v1"))
    async with client.delete(f"{meter_url}{METERS}/api_calls") as answer:
        assert (answer.status, await answer.read()) == (204, b"")
    assert (await send(client, "GET", f"{meter_url}{METERS}/api_calls"))[0] == 404
    assert (await send(client, "DELETE", f"{meter_url}{METERS}/api_calls"))[0] == 404
    assert len(meter.store) == 1


async def test_a_meter_of_another_event_type_sees_only_its_own(
    client: aiohttp.ClientSession, meter: OpenMeter, meter_url: str
) -> None:
    body = {"slug": "payments", "eventType": "payment.made", "aggregation": "COUNT"}
    assert (await send(client, "POST", meter_url + METERS, body))[0] == 200
    meter.keep(parse_events(BATCH, orjson.dumps([call("1"), {**call("2"), "type": "payment.made"}]), "v1"))
    for slug in ("payments", "api_requests"):
        _, found = await send(client, "GET", f"{meter_url}{METERS}/{slug}/query")
        assert [row["value"] for row in found["data"]] == [1], slug


async def test_an_update_empties_what_it_leaves_out(client: aiohttp.ClientSession, meter_url: str) -> None:
    await send(client, "POST", meter_url + METERS, NEW)
    url = f"{meter_url}{METERS}/latency"
    status, updated = await send(client, "PUT", url, {"name": "Slowest", "groupBy": {"method": "$.method"}})
    assert (status, updated["name"], updated["groupBy"]) == (200, "Slowest", {"method": "$.method"})
    assert "description" not in updated
    assert await send(client, "GET", url) == (200, updated)
    assert "groupBy" not in (await send(client, "PUT", url, {}))[1]


async def test_an_update_changes_nothing_but_name_description_and_groups(
    client: aiohttp.ClientSession, meter_url: str
) -> None:
    _, created = await send(client, "POST", meter_url + METERS, NEW)
    changed = {"name": "Slowest", "description": "Of a day", "groupBy": {"method": "$.method"}}
    fixed = {
        "slug": "other", "eventType": "other", "aggregation": "MIN", "valueProperty": "$.units",
        "eventFrom": "2040-01-01T00:00:00Z", "metadata": {"owner": "nobody"},
    }  # fmt: skip
    _, updated = await send(client, "PUT", f"{meter_url}{METERS}/latency", {**fixed, **changed})
    assert updated == {**created, **changed, "updatedAt": updated["updatedAt"]}


async def test_a_meter_that_is_deleted_is_gone_and_a_new_one_of_its_slug_counts_the_events_that_are_there(
    client: aiohttp.ClientSession, meter: OpenMeter, meter_url: str
) -> None:
    url = f"{meter_url}{METERS}/latency"
    meter.keep(parse_events(BATCH, orjson.dumps([call("1", response_time_ms=7)]), "v1"))
    await send(client, "POST", meter_url + METERS, NEW)
    async with client.delete(url) as answer:
        assert (answer.status, await answer.read()) == (204, b"")
    assert (await send(client, "GET", url))[0] == 404
    assert (await send(client, "GET", f"{url}/query"))[0] == 404
    assert (await send(client, "DELETE", url))[0] == 404
    assert (await send(client, "POST", meter_url + METERS, NEW))[0] == 200
    assert [row["value"] for row in (await send(client, "GET", f"{url}/query"))[1]["data"]] == [7]


async def test_a_meter_counts_nothing_from_before_its_event_from(
    client: aiohttp.ClientSession, meter: OpenMeter, meter_url: str
) -> None:
    events = [call("1", response_time_ms=9), {**call("2", response_time_ms=3), "time": "2040-01-01T00:00:00Z"}]
    meter.keep(parse_events(BATCH, orjson.dumps(events), "v1"))
    await send(client, "POST", meter_url + METERS, {**NEW, "eventFrom": "2040-01-01T00:00:00Z"})
    url = f"{meter_url}{METERS}/latency/query"
    assert [row["value"] for row in (await send(client, "GET", url))[1]["data"]] == [3]
    assert (await send(client, "GET", f"{url}?to=2039-12-31T00:00:00Z"))[1]["data"] == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, b"1"), (0.5, b"0.5"), (-3, b"-3"), (1e15, b"1000000000000000"), (1e20, b"100000000000000000000"),
     (1e21, b"1e+21"), (2.5e-7, b"2.5e-7"), (1e-6, b"0.000001")],
)  # fmt: skip
async def test_values_are_written_as_go_writes_them(
    client: aiohttp.ClientSession, meter: OpenMeter, meter_url: str, value: float, text: bytes
) -> None:
    meter.keep(parse_events(BATCH, orjson.dumps([call("1", units=value)]), "v1"))
    async with client.get(f"{meter_url}{METERS}/api_calls/query") as answer:
        assert b'"value":%s,' % text in await answer.read()


@pytest.mark.parametrize(
    ("query", "slugs"),
    [
        ("pageSize=1", ["api_calls", "api_requests"]),
        ("pageSize=1&page=2", ["api_calls", "api_requests"]),
        ("page=3", ["api_calls", "api_requests"]),
        ("order=DESC&orderBy=key", ["api_requests", "api_calls"]),
        ("orderBy=aggregation", ["api_requests", "api_calls"]),
    ],
)
async def test_all_meters_are_listed_in_order_whatever_page_is_asked_for(
    client: aiohttp.ClientSession, meter_url: str, query: str, slugs: list[str]
) -> None:
    _, listed = await send(client, "GET", f"{meter_url}{METERS}?{query}")
    assert [item["slug"] for item in listed] == slugs


@pytest.mark.parametrize("query", ["page=0", "pageSize=1001", "pageSize=x", "order=UP", "orderBy=colour"])
async def test_a_list_parameter_that_is_wrong_is_refused_by_name(
    client: aiohttp.ClientSession, meter_url: str, query: str
) -> None:
    status, problem = await send(client, "GET", f"{meter_url}{METERS}?{query}")
    assert status == 400
    assert f'"{query.split("=")[0]}"' in problem["detail"]


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"slug": "api_calls"}, 409, "meter with the same slug already exists"),
        ({"slug": "Not A Slug"}, 400, "meter slug"),
        ({"slug": 7}, 400, 'Error at "/slug"'),
        ({"aggregation": "MEDIAN"}, 400, "invalid aggregation type: MEDIAN"),
        ({"aggregation": "COUNT"}, 400, "not allowed when the aggregation is count"),
        ({"valueProperty": None}, 400, 'Error at "/valueProperty"'),
        ({"groupBy": {"subject": "true"}}, 400, "must start with $ for key subject"),
        ({"groupBy": {"a": 1}}, 400, 'Error at "/groupBy"'),
        ({"groupBy": []}, 400, 'Error at "/groupBy"'),
        ({"eventFrom": "soon"}, 400, 'Error at "/eventFrom"'),
        ({"name": "n" * 257}, 400, 'Error at "/name"'),
    ],
)
async def test_a_meter_with_a_mistake_is_refused_by_the_field(
    client: aiohttp.ClientSession, meter_url: str, change: dict[str, object], status: int, says: str
) -> None:
    got, problem = await send(client, "POST", meter_url + METERS, {**NEW, **change})
    assert got == status
    assert says in problem["detail"]


@pytest.mark.parametrize("missing", ["slug", "aggregation", "eventType"])
async def test_a_meter_without_its_essentials_is_refused(
    client: aiohttp.ClientSession, meter_url: str, missing: str
) -> None:
    body = {key: value for key, value in NEW.items() if key != missing}
    status, problem = await send(client, "POST", meter_url + METERS, body)
    assert (status, problem["detail"].endswith(f'property "{missing}" is missing')) == (400, True)


async def test_an_update_with_a_mistake_changes_nothing(client: aiohttp.ClientSession, meter_url: str) -> None:
    before = await send(client, "GET", f"{meter_url}{METERS}/api_calls")
    assert (await send(client, "PUT", f"{meter_url}{METERS}/api_calls", {"groupBy": {"a": "a"}}))[0] == 400
    assert (await send(client, "PUT", f"{meter_url}{METERS}/nothing", {}))[0] == 404
    assert await send(client, "GET", f"{meter_url}{METERS}/api_calls") == before
