from __future__ import annotations

import asyncio
import re

import aiohttp
import pytest
from aiohttp import web

from sidecar.sandbox.bank.bank_server import SampleApi
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter, OpenMeterConfig
from sidecar.sandbox.server import Server, ServerError
from tests.integration.sandbox.kit import call

HEALTH = "/open-banking/health"


async def test_port_zero_is_replaced_by_a_free_one(client: aiohttp.ClientSession) -> None:
    async with Server(SampleApi().app()) as one, Server(SampleApi().app()) as two:
        assert one.port != two.port
        for server in (one, two):
            async with client.get(server.url + HEALTH) as answer:
                assert (answer.status, await answer.json()) == (200, {"status": "UP"})


async def test_an_address_in_use_is_an_error_that_names_it() -> None:
    async with Server(SampleApi().app()) as first:
        second = Server(SampleApi().app(), port=first.port)
        with pytest.raises(ServerError, match=re.escape(f"cannot listen on 127.0.0.1:{first.port}: ")):
            await second.start()
        with pytest.raises(ServerError, match="has been started already"):
            await first.start()


async def test_a_port_out_of_range_is_an_error_that_names_it() -> None:
    with pytest.raises(ServerError, match=re.escape("cannot listen on 127.0.0.1:70000: ")):
        await Server(SampleApi().app(), port=70000).start()


async def test_a_closed_server_refuses_connections_and_closing_twice_is_fine(client: aiohttp.ClientSession) -> None:
    server = Server(SampleApi().app())
    url = await server.start()
    await server.close()
    await server.close()
    assert "closed" in repr(server)
    with pytest.raises(aiohttp.ClientConnectorError):
        await client.get(url + HEALTH)


async def test_a_handler_ends_when_its_client_goes_away(client: aiohttp.ClientSession) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def wait(request: web.Request) -> web.Response:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return web.Response()

    app = web.Application()
    app.router.add_get("/", wait)
    async with Server(app) as server:
        request = asyncio.create_task(client.get(server.url))
        await begun.wait()
        request.cancel()
        await asyncio.wait_for(ended.wait(), timeout=10)


async def test_state_outlives_a_restart_on_the_same_port(client: aiohttp.ClientSession) -> None:
    meter = OpenMeter()
    async with Server(meter.app()) as server:
        port = server.port
        answer = await client.post(f"{server.url}/api/v1/events", json=call("1"))
        assert answer.status == 204
    async with Server(meter.app(), port=port) as server:
        answer = await client.post(f"{server.url}/api/v1/events", json=call("1"))
        assert answer.status == 204
    assert (meter.counts.accepted, meter.counts.duplicates) == (1, 1)


def test_a_token_does_not_show_in_a_repr() -> None:
    config = OpenMeterConfig(token="very-secret")
    assert "very-secret" not in repr(config) + repr(OpenMeter(config))
