"""Connections to the API: kept, counted, queued for, and given up."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from sidecar.gateway.parameters import UpstreamTarget
from tests.integration.gateway.api import Conversation, echo, length
from tests.integration.gateway.rig import Rig, get, post

OK = length(b"ok")
EMPTY = length(b"")


async def first_answer_then_close(talk: Conversation) -> None:
    """The first connection dies after one answer, when the next request is there; later ones live."""
    await talk.answer(EMPTY)
    if talk.number == 1:
        await talk.reader.readuntil(b"\r\n\r\n")
        return
    while True:
        await talk.answer(EMPTY)


async def test_a_connection_is_used_again_and_the_one_used_last_first(gateway: Any) -> None:
    async with gateway(echo) as rig:
        await asyncio.gather(*(rig.ask(get()) for _ in range(5)))
        made = rig.api.connections
        for _ in range(20):
            assert (await rig.ask(get())).status == 200
        assert rig.api.connections == made


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"])
async def test_what_may_be_done_twice_is_sent_again_when_a_kept_connection_dies(gateway: Any, method: bytes) -> None:
    async with gateway(first_answer_then_close) as rig:
        wire = await rig.connect()
        for _ in range(2):
            await wire.send(get(method=method))
            assert (await wire.response(method)).status == 200
        assert rig.gateway.context.counters.upstream_retries == 1
        assert await rig.charged() == [200, 200]


@pytest.mark.parametrize("request_", [get(method=b"POST"), get(method=b"PATCH"), post(b"x", method=b"PUT")])
async def test_what_may_not_be_done_twice_is_a_502_and_costs_nothing(gateway: Any, request_: bytes) -> None:
    async with gateway(first_answer_then_close) as rig:
        assert (await rig.ask(get())).status == 200
        assert (await rig.ask(request_)).status == 502
        assert rig.gateway.context.counters.upstream_retries == 0
        assert await rig.charged() == [200]


async def test_a_request_is_sent_again_once_only(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        if talk.number == 1:
            await talk.answer(OK)
        await talk.reader.readuntil(b"\r\n\r\n")

    async with gateway(script) as rig:
        assert (await rig.ask(get())).status == 200
        assert (await rig.ask(get())).status == 502
        assert rig.api.connections == 2
        assert await rig.charged() == [200]


async def test_a_client_that_goes_away_while_its_request_waits_to_be_sent_again_pays_nothing(gateway: Any) -> None:
    die, proceed = asyncio.Event(), asyncio.Event()

    async def script(talk: Conversation) -> None:
        await talk.answer(OK)
        if talk.number == 1:
            await talk.request()
            await die.wait()
            return
        await proceed.wait()
        while True:
            await talk.answer(OK)

    async with gateway(script, upstream_connections_max=1) as rig:
        assert (await rig.ask(get())).status == 200
        first, second, third = [await rig.connect() for _ in range(3)]
        await first.send(get(b"/first"))
        await rig.until(lambda: len(rig.api.requests) == 2)
        for wire in (second, third):
            await wire.send(get(b"/other"))
            await rig.until(lambda wire=wire: rig.pool.waiting == (1 if wire is second else 2))
        die.set()
        assert (await second.response()).status == 200
        await rig.until(lambda: rig.gateway.context.counters.upstream_retries)
        first.reset()
        await rig.until(lambda: not any(c.relay and c.relay.retried for c in rig.gateway.connections))
        proceed.set()
        assert (await third.response()).status == 200
        assert len(await rig.charged()) == 3
        assert not rig.gateway.context.detached


async def test_a_connection_that_the_api_closed_meanwhile_is_not_used(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        await talk.answer(OK)

    async with gateway(script) as rig:
        for number in range(3):
            assert (await rig.ask(post(b"x"))).status == 200
            await rig.until(lambda: not rig.pool.size)
            assert rig.api.connections == number + 1


@pytest.mark.parametrize("extra", [b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", b"\r\n", b"x"])
@pytest.mark.parametrize("apart", [False, True])
async def test_bytes_after_an_answer_are_never_taken_for_the_next_one(gateway: Any, extra: bytes, apart: bool) -> None:
    async def script(talk: Conversation) -> None:
        while True:
            await talk.request()
            await talk.send(*((OK, extra) if apart else (OK + extra,)), apart=apart)

    async with gateway(script) as rig:
        wire = await rig.connect()
        for _ in range(3):
            await wire.send(get())
            assert (await wire.response()).body == b"ok"
            await rig.until(lambda: not rig.pool.size)
        assert rig.api.connections == 3


async def test_requests_wait_for_a_connection_and_no_more_than_may_are_open(gateway: Any) -> None:
    most = 0

    async def script(talk: Conversation) -> None:
        nonlocal most
        while True:
            await talk.request()
            most = max(most, talk.api.open)
            await asyncio.sleep(0.002)
            await talk.send(OK)

    async with gateway(script, upstream_connections_max=6) as rig:
        answers = await asyncio.gather(*(rig.ask(get()) for _ in range(40)))
        assert {a.status for a in answers} == {200}
        assert most == 3
        assert rig.api.connections == 3


async def test_more_than_may_wait_are_a_503(gateway: Any) -> None:
    proceed = asyncio.Event()

    async def script(talk: Conversation) -> None:
        while True:
            await talk.request()
            await proceed.wait()
            await talk.send(OK)

    async with gateway(script, upstream_connections_max=1, upstream_waiting_max=1) as rig:
        waiting = [asyncio.ensure_future(rig.ask(get())) for _ in range(2)]
        await rig.until(lambda: rig.pool.waiting)
        assert (await rig.ask(get())).status == 503
        proceed.set()
        assert [(await each).status for each in waiting] == [200, 200]
        assert await rig.charged() == [200, 200]


async def test_a_request_does_not_wait_for_a_connection_for_ever(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        await talk.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
        await talk.reader.read()

    async with gateway(script, upstream_connections_max=1, admission_timeout_s=0.2) as rig:
        first = await rig.connect()
        await first.send(get())
        await first.head()
        answer = await rig.ask(post(b"content 9"))
        assert (answer.status, answer.get(b"Retry-After")) == (503, b"1")
        assert not rig.pool.waiting
        first.reset()
        assert await rig.charged() == [499]


async def test_those_that_wait_get_on_when_a_connection_dies(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        await talk.request()
        await talk.api.hold.wait()  # type: ignore[attr-defined]
        if talk.number > 1:
            await talk.send(OK)

    async with gateway(script, upstream_connections_max=1) as rig:
        rig.api.hold = asyncio.Event()
        asked = [asyncio.ensure_future(rig.ask(get())) for _ in range(3)]
        await rig.until(lambda: rig.pool.waiting == 2)
        rig.api.hold.set()
        assert sorted([(await each).status for each in asked]) == [200, 200, 502]


async def test_an_idle_connection_is_closed_after_a_while(gateway: Any) -> None:
    async with gateway(echo, keepalive_s=0.1) as rig:
        await rig.ask(get())
        await rig.until(lambda: not rig.pool.size)
        await rig.until(lambda: not rig.api.open)


async def test_the_api_may_be_on_a_unix_socket(gateway: Any, tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    async with gateway(echo, api_path=path, upstream=UpstreamTarget(path=str(path), host="localhost")) as rig:
        assert (await rig.ask(post(b"abc"))).body == b"abc"
        await check_host(rig)


async def check_host(rig: Rig) -> None:
    await rig.ask(b"GET / HTTP/1.0\r\nX-API-Key: this-is-the-key-of-tpp\r\n\r\n")
    assert rig.api.requests[-1].get(b"Host") == b"localhost:80"


async def test_an_api_that_does_not_accept_in_time_is_a_504(gateway: Any) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        fillers = []
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            fillers.append((filler, asyncio.ensure_future(loop.sock_connect(filler, ("127.0.0.1", port)))))
        await asyncio.sleep(0.01)
        async with gateway(echo, upstream=UpstreamTarget(port=port), connect_timeout_s=0.1) as rig:
            assert (await rig.ask(get())).status == 504
            assert await rig.charged() == []
        for filler, task in fillers:
            task.cancel()
            filler.close()
        await asyncio.gather(*(task for _, task in fillers), return_exceptions=True)


async def test_a_connection_that_is_being_made_when_the_gateway_stops_is_counted_out(
    gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gateway(echo) as rig:
        monkeypatch.setattr(rig.pool._addresses, "connect", lambda: asyncio.sleep(60))
        wire = await rig.connect()
        await wire.send(get())
        await rig.until(lambda: rig.pool.size)
        assert not await rig.gateway.drain(0.0)
        assert (rig.pool.size, rig.pool._places.taken) == (0, 0)
