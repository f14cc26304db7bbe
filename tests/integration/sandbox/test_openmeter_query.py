from __future__ import annotations

from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
import pytest

from sidecar.sandbox.openmeter.openmeter_events import BATCH, parse_events
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter
from tests.integration.sandbox.kit import call, instant

CALLS = "/api/v1/meters/api_calls/query"


@pytest.fixture(autouse=True)
def events(meter: OpenMeter) -> None:
    """Two hours of calls by two accounts."""
    found = [
        call("1", offset_s=-3600, units=1, metric="api_calls"),
        call("2", offset_s=-3599, units=2, metric="payments", method="POST"),
        call("3", subject="tpp-2", offset_s=-60, units=4, metric="api_calls"),
        call("4", offset_s=0, units=8, metric="api_calls"),
    ]
    meter.keep(parse_events(BATCH, orjson.dumps(found), "v1"))


async def query(client: aiohttp.ClientSession, url: str, text: str) -> tuple[int, Any]:
    async with client.get(f"{url}{CALLS}?{text}") as answer:
        return answer.status, await answer.json(content_type=None)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", [15]),
        (f"from={instant(-3600)}&to={instant()}", [7]),
        (f"from={instant(-3599)}", [14]),
        (f"to={instant(-3599)}", [1]),
        (f"from={instant(1)}", []),
        ("windowSize=HOUR", [3, 12]),
        ("windowSize=MINUTE", [3, 4, 8]),
        ("windowSize=DAY", [15]),
        ("windowSize=MONTH&windowTimeZone=Europe/London", [15]),
        ("groupBy=subject", [11, 4]),
        ("subject=tpp-1", [11]),
        ("subject=tpp-1&subject=tpp-2", [11, 4]),
        ("subject=nobody", []),
        ("groupBy=metric", [13, 2]),
        ("groupBy=metric&groupBy=method&groupBy=metric", [13, 2]),
        ("filterGroupBy[metric]=payments", [2]),
        (quote("filterGroupBy[method]") + "=GET", [13]),
        ("advancedMeterGroupByFilters=" + quote('{"metric":{"$ne":"payments"},"method":{"$in":["GET"]}}'), [13]),
        ("clientId=console", [15]),
    ],
)
async def test_a_query_sums_what_its_parameters_choose(
    client: aiohttp.ClientSession, meter_url: str, text: str, values: list[int]
) -> None:
    status, body = await query(client, meter_url, text)
    assert (status, [row["value"] for row in body["data"]]) == (200, values)


async def test_an_answer_repeats_the_bounds_and_labels_its_windows(
    client: aiohttp.ClientSession, meter_url: str
) -> None:
    _, body = await query(client, meter_url, f"from={instant(-3600)}&to={instant(60)}&windowSize=HOUR&groupBy=subject")
    assert body == {
        "from": "2025-06-01T09:30:00Z",
        "to": "2025-06-01T10:31:00Z",
        "windowSize": "HOUR",
        "data": [
            hour("09", "10", 3, "tpp-1"),
            hour("10", "11", 8, "tpp-1"),
            hour("10", "11", 4, "tpp-2"),
        ],
    }


def hour(begin: str, end: str, value: int, subject: str) -> dict[str, object]:
    window = {"windowStart": f"2025-06-01T{begin}:00:00Z", "windowEnd": f"2025-06-01T{end}:00:00Z"}
    return {"value": value, **window, "subject": subject, "groupBy": {}}


async def test_a_post_takes_the_same_parameters_as_json(client: aiohttp.ClientSession, meter_url: str) -> None:
    body = {
        "from": instant(-3600),
        "to": instant(60),
        "windowSize": "HOUR",
        "windowTimeZone": "UTC",
        "subject": ["tpp-1"],
        "groupBy": ["method"],
        "filterGroupBy": {"metric": ["api_calls", "payments"]},
    }
    async with client.post(meter_url + CALLS, json=body) as answer:
        rows = (await answer.json())["data"]
    assert [(row["value"], row["subject"], row["groupBy"]["method"]) for row in rows] == [
        (1, "tpp-1", "GET"),
        (2, "tpp-1", "POST"),
        (8, "tpp-1", "GET"),
    ]


async def test_csv_is_answered_to_those_who_accept_it(client: aiohttp.ClientSession, meter_url: str) -> None:
    text = f"from={instant(-3600)}&to={instant(60)}&groupBy=subject&groupBy=method"
    for answer in (
        await client.get(f"{meter_url}{CALLS}?{text}", headers={"Accept": "text/csv"}),
        await client.post(
            meter_url + CALLS,
            json={"from": instant(-3600), "to": instant(60), "groupBy": ["subject", "method"]},
            headers={"Accept": "text/csv"},
        ),
    ):
        assert answer.headers["Content-Type"] == "text/csv"
        assert answer.headers["Content-Disposition"] == "attachment; filename=api_calls.csv"
        assert (await answer.text()).splitlines() == [
            "window_start,window_end,subject,method,value",
            "2025-06-01T09:30:00Z,2025-06-01T10:31:00Z,tpp-1,GET,9.000000",
            "2025-06-01T09:30:00Z,2025-06-01T10:31:00Z,tpp-1,POST,2.000000",
            "2025-06-01T09:30:00Z,2025-06-01T10:31:00Z,tpp-2,GET,4.000000",
        ]


@pytest.mark.parametrize(
    ("text", "status", "says"),
    [
        ("windowSize=SECOND", 400, '"windowSize" has an error: value is not one of the allowed values'),
        ("windowTimeZone=Mars/Olympus", 400, "unknown time zone Mars/Olympus"),
        ("windowTimeZone=../../etc/passwd", 400, "unknown time zone"),
        ("from=2025-06-01", 400, '"from" has an error'),
        (f"from={instant()}&to={instant()}", 400, "from and to cannot be equal"),
        (f"from={instant(1)}&to={instant()}", 400, "from must be before to"),
        ("groupBy=colour", 400, "invalid group by: colour"),
        ("groupBy=customer_id", 400, "customer filter is required"),
        ("filterCustomerId=01G65Z755AFWAKHE12NY0CQ9FH", 404, "customer with id"),
        ("filterGroupBy[colour]=red", 400, "invalid group by filter: colour"),
        ("advancedMeterGroupByFilters={", 400, "value is not JSON"),
        ("advancedMeterGroupByFilters={}&filterGroupBy[metric]=a", 200, ""),
        ("advancedMeterGroupByFilters=" + quote('{"colour":{"$eq":"a"}}'), 400, "does not have group by: colour"),
        (
            "advancedMeterGroupByFilters=" + quote('{"metric":{"$eq":"a"}}') + "&filterGroupBy[metric]=a",
            400,
            "cannot be used together",
        ),
        ("clientId=", 400, '"clientId"'),
        ("clientId=" + "c" * 37, 400, '"clientId"'),
        ("&".join(["subject=s"] * 101), 400, '"subject" has an error: maximum number of items is 100'),
    ],
)
async def test_a_parameter_that_is_wrong_is_refused_by_name(
    client: aiohttp.ClientSession, meter_url: str, text: str, status: int, says: str
) -> None:
    got, body = await query(client, meter_url, text)
    assert got == status
    assert says in body.get("detail", "")


@pytest.mark.parametrize(
    ("raw", "content_type", "says"),
    [
        (b"[]", "application/json", "value must be an object"),
        (b"{", "application/json", "failed to decode"),
        (b"{}", "text/plain", "header Content-Type has unexpected value"),
        (b'{"subject": "tpp-1"}', "application/json", "value must be an array of strings"),
        (b'{"windowSize": 5}', "application/json", "value must be a string"),
        (b'{"filterGroupBy": []}', "application/json", "value must be an object"),
        (b'{"filterGroupBy": {"metric": null}}', "application/json", "values must be arrays"),
    ],
)
async def test_a_body_that_is_wrong_is_refused(
    client: aiohttp.ClientSession, meter_url: str, raw: bytes, content_type: str, says: str
) -> None:
    async with client.post(meter_url + CALLS, data=raw, headers={"Content-Type": content_type}) as answer:
        assert answer.status == 400
        assert says in (await answer.json())["detail"]


async def test_a_query_of_no_known_meter_is_404(client: aiohttp.ClientSession, meter_url: str) -> None:
    async with client.get(f"{meter_url}/api/v1/meters/nothing/query") as answer:
        assert answer.status == 404
        assert (await answer.json())["detail"] == "failed to get meter: meter not found: nothing"
