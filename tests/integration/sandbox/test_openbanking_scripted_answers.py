from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from sidecar.sandbox.bank.bank_server import SampleApi, SampleApiConfig
from sidecar.sandbox.server import Server
from tests.integration.sandbox.kit import read_until_cut

ACCOUNTS = "/open-banking/v3.1/aisp/accounts"
HEALTH = "/open-banking/health"


@pytest.mark.parametrize("status", [200, 201, 204, 304, 404, 429, 500, 503, 599])
async def test_a_request_gets_the_status_it_asks_for(client: aiohttp.ClientSession, bank_url: str, status: int) -> None:
    async with client.get(bank_url + ACCOUNTS, headers={"x-sandbox-status": str(status)}) as answer:
        assert answer.status == status
        if status >= 400:
            assert (await answer.json())["Code"].startswith(str(status))


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-sandbox-status", "99"),
        ("x-sandbox-status", "600"),
        ("x-sandbox-status", "teapot"),
        ("x-sandbox-delay-ms", "-1"),
        ("x-sandbox-delay-ms", "60001"),
        ("x-sandbox-abort", "yes"),
    ],
)
async def test_a_field_that_cannot_be_read_is_refused_by_name(
    client: aiohttp.ClientSession, bank_url: str, header: str, value: str
) -> None:
    async with client.get(bank_url + ACCOUNTS, headers={header: value}) as answer:
        assert (answer.status, (await answer.json())["Errors"][0]["Path"]) == (400, header)


async def test_an_abort_cuts_the_body_in_the_middle(client: aiohttp.ClientSession, bank_url: str) -> None:
    whole = await (await client.get(bank_url + ACCOUNTS)).read()
    for path in (ACCOUNTS, "/open-banking/echo"):
        async with client.get(bank_url + path, headers={"x-sandbox-abort": "1"}) as answer:
            assert answer.status == 200
            received = await read_until_cut(answer)
            assert 0 < len(received) == int(answer.headers["Content-Length"]) // 2
            if path == ACCOUNTS:
                assert received == whole[: len(whole) // 2]


async def test_an_abort_before_the_answer_sends_nothing(client: aiohttp.ClientSession, bank_url: str) -> None:
    # POST, so that the client does not try again of its own accord.
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await client.post(f"{bank_url}/open-banking/echo", headers={"x-sandbox-abort": "before"})


async def test_a_delay_is_waited_before_the_answer(
    client: aiohttp.ClientSession, bank: SampleApi, bank_url: str
) -> None:
    soon = aiohttp.ClientTimeout(total=0.1)
    with pytest.raises(TimeoutError):
        await client.get(bank_url + ACCOUNTS, headers={"x-sandbox-delay-ms": "60000"}, timeout=soon)
    async with client.get(bank_url + ACCOUNTS, headers={"x-sandbox-delay-ms": "1"}) as answer:
        assert answer.status == 200
    assert bank.calls.total() == 2


async def test_fields_have_no_effect_when_they_are_switched_off(client: aiohttp.ClientSession) -> None:
    async with Server(SampleApi(SampleApiConfig(scripted_answers=False)).app()) as server:
        headers = {"x-sandbox-status": "503", "x-sandbox-abort": "1", "x-sandbox-delay-ms": "nonsense"}
        async with client.get(server.url + ACCOUNTS, headers=headers) as answer:
            assert answer.status == 200
            assert await answer.read()


async def test_errors_strike_by_chance_but_never_the_health_route(client: aiohttp.ClientSession) -> None:
    config = SampleApiConfig(error_rates=((503, 0.5), (500, 0.5)), seed=3)
    async with Server(SampleApi(config).app()) as server:
        seen = set()
        for _ in range(20):
            async with client.get(server.url + ACCOUNTS) as answer:
                seen.add(answer.status)
            async with client.get(server.url + HEALTH) as answer:
                assert answer.status == 200
    assert seen == {500, 503}


async def test_latency_holds_up_every_route_but_health(client: aiohttp.ClientSession) -> None:
    config = SampleApiConfig(latency_ms=30_000, jitter_ms=5)
    async with Server(SampleApi(config).app(), grace_s=0.05) as server:
        async with client.get(server.url + HEALTH) as answer:
            assert answer.status == 200
        with pytest.raises(TimeoutError):
            await client.get(server.url + ACCOUNTS, timeout=aiohttp.ClientTimeout(total=0.1))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"latency_ms": -1}, "latency_ms: -1"),
        ({"jitter_ms": 60_001}, "jitter_ms: 60001"),
        ({"error_rates": ((200, 0.1),)}, "error_rates: 200"),
        ({"error_rates": ((500, 1.5),)}, "error_rates: 500"),
        ({"error_rates": ((500, 0.6), (503, 0.6))}, "error_rates: the probabilities"),
        ({"page_size": 0}, "page_size: 0"),
    ],
)
def test_a_configuration_out_of_range_is_refused_by_name(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SampleApiConfig(**fields)
