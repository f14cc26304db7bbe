"""Upgraded connections: WebSocket, what is no upgrade, and what must never become one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import websockets

from sidecar.gateway.parameters import UpstreamTarget
from sidecar.sandbox.bank.bank_server import SampleApi
from sidecar.sandbox.server import Server
from tests.integration.gateway.api import Conversation, always, echo, length, once
from tests.integration.gateway.rig import Rig, account, get, post
from tests.integration.gateway.wire import Wire

UPGRADE = (b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: eA==")
SWITCH = b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n"
HEADERS = {"X-API-Key": "this-is-the-key-of-tpp"}


@pytest.fixture
async def sandbox() -> AsyncIterator[UpstreamTarget]:
    async with Server(SampleApi().app()) as server:
        yield UpstreamTarget(port=server.port)


async def test_a_websocket_passes_and_is_charged_once(gateway: Any, sandbox: UpstreamTarget) -> None:
    async with gateway(echo, upstream=sandbox) as rig:
        url = f"ws://127.0.0.1:{rig.port}/open-banking/ws"
        async with websockets.connect(url, additional_headers=HEADERS, max_size=None) as socket:
            for message in ("hello", b"\x00\xff", "x" * 1_000_000, ""):
                await socket.send(message)
                assert await socket.recv() == message
            assert socket.response is not None
            assert "X-Credits-Charged" in socket.response.headers
        await rig.until(lambda: not rig.gateway.connections)
        assert await rig.events() == [("tpp", "api_calls", 1, "(other)", "GET", 101)]
        assert rig.gateway.context.counters.tunnels == 1
        assert [line["status"] for line in rig.log] == [101]


async def test_a_websocket_without_credit_is_a_402(gateway: Any, sandbox: UpstreamTarget) -> None:
    async with gateway(echo, upstream=sandbox, accounts=[account("tpp", "prepaid")]) as rig:
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(f"ws://127.0.0.1:{rig.port}/open-banking/ws", additional_headers=HEADERS)
        assert refused.value.response.status_code == 402


async def tunnelled(talk: Conversation) -> None:
    """Switches, and sends back what comes in capitals until the client is done."""
    await talk.answer(SWITCH + b"hi")
    while data := await talk.reader.read(1000):
        await talk.send(data.upper())
    await talk.send(b"bye")


async def open_tunnel(rig: Rig, *more: bytes) -> Wire:
    wire = await rig.connect()
    await wire.send(get(b"/ws", *UPGRADE) + b"".join(more))
    answer = await wire.response()
    assert (answer.status, answer.get(b"Upgrade"), answer.get(b"Connection")) == (101, b"websocket", b"Upgrade")
    assert await wire.reader.readexactly(2) == b"hi"
    return wire


async def test_bytes_pass_both_ways_from_the_first(gateway: Any) -> None:
    async with gateway(tunnelled) as rig:
        wire = await open_tunnel(rig, b"early")
        assert await wire.reader.readexactly(5) == b"EARLY"
        await wire.send(b"late")
        assert await wire.reader.readexactly(4) == b"LATE"


async def test_a_client_that_half_closes_a_tunnel_hears_the_rest(gateway: Any) -> None:
    async with gateway(tunnelled) as rig:
        wire = await open_tunnel(rig)
        await wire.send(b"last")
        wire.half_close()
        assert await wire.ended() == b"LASTbye"
        await rig.until(lambda: not rig.gateway.connections and not rig.pool.size)


async def test_an_api_that_half_closes_a_tunnel_hears_the_rest(gateway: Any) -> None:
    heard = asyncio.get_running_loop().create_future()

    async def script(talk: Conversation) -> None:
        await talk.answer(SWITCH + b"hi")
        talk.half_close()
        heard.set_result(await talk.reader.read())

    async with gateway(script) as rig:
        wire = await open_tunnel(rig)
        assert await wire.ended() == b""
        await wire.send(b"the rest")
        wire.half_close()
        assert await asyncio.wait_for(heard, 5) == b"the rest"
        await rig.until(lambda: not rig.gateway.connections and not rig.pool.size)


@pytest.mark.parametrize("who", ["client", "api"])
async def test_a_tunnel_ends_for_both_when_one_goes_away(gateway: Any, who: str) -> None:
    async def script(talk: Conversation) -> None:
        await talk.answer(SWITCH + b"hi")
        if who == "client":
            await talk.reader.read()
        else:
            talk.reset()

    async with gateway(script) as rig:
        wire = await open_tunnel(rig)
        if who == "client":
            wire.reset()
        else:
            await wire.ended()
        await rig.until(lambda: not rig.gateway.connections and not rig.pool.size and not rig.api.open)
        assert await rig.charged() == [101]
        assert len(rig.log) == 1


async def test_a_tunnel_on_which_nothing_moves_is_closed(gateway: Any) -> None:
    async with gateway(tunnelled, stream_idle_timeout_s=0.1) as rig:
        wire = await open_tunnel(rig)
        assert await wire.ended() == b""
        await rig.until(lambda: not rig.gateway.connections and not rig.pool.size)
        assert len(rig.log) == 1


async def test_more_than_a_head_sent_before_the_switch_reaches_the_api(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        await talk.request()
        await talk.api.hold.wait()  # type: ignore[attr-defined]
        await talk.send(SWITCH + b"hi")
        await talk.reader.readexactly(400_000)
        await talk.send(b"all")

    async with gateway(script) as rig:
        rig.api.hold = asyncio.Event()
        wire = await rig.connect()
        sending = asyncio.ensure_future(wire.send(get(b"/ws", *UPGRADE), *[bytes(100_000)] * 4))
        await rig.until(lambda: any(c.reading_paused for c in rig.gateway.connections))
        rig.api.hold.set()
        assert (await wire.response()).status == 101
        assert await wire.reader.readexactly(5) == b"hiall"
        await sending


async def test_an_upgrade_that_the_api_refuses_is_an_answer_like_any_other(gateway: Any) -> None:
    async with gateway(always(length(b"no", status=b"426 Upgrade Required"))) as rig:
        wire = await rig.connect()
        for _ in range(2):
            await wire.send(get(b"/ws", *UPGRADE))
            answer = await wire.response()
            assert (answer.status, answer.body) == (426, b"no")
        assert await rig.charged() == []


@pytest.mark.parametrize(
    "request_",
    [
        get(b"/", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AA"),
        get(b"/", b"Connection: Upgrade", b"Upgrade: websocket, h2c"),
        get(b"/", b"Upgrade: websocket"),
        post(b"body", b"Connection: Upgrade", b"Upgrade: websocket"),
        get(b"/", *UPGRADE).replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
)
async def test_what_may_not_be_upgraded_is_asked_without_it(gateway: Any, request_: bytes) -> None:
    async with gateway(echo) as rig:
        assert (await rig.ask(request_)).status == 200
        assert rig.api.requests[0].all(b"Upgrade") == []
        assert rig.api.requests[0].all(b"Connection") == []


@pytest.mark.parametrize("chosen", [b"h2c", b"websocket2", b""])
async def test_a_switch_to_what_the_client_did_not_name_is_a_502_and_costs_nothing(gateway: Any, chosen: bytes) -> None:
    async with gateway(once(SWITCH.replace(b"Upgrade: websocket", b"Upgrade: " + chosen))) as rig:
        assert (await rig.ask(get(b"/ws", *UPGRADE))).status == 502
        assert await rig.charged() == []


async def test_a_tunnel_under_way_is_cut_off_when_a_drain_takes_too_long(gateway: Any) -> None:
    async with gateway(tunnelled) as rig:
        wire = await open_tunnel(rig)
        assert not await rig.gateway.drain(0.05)
        await wire.ended()
        assert await rig.charged() == [101]
