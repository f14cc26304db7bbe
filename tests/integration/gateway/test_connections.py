"""Connections of clients: how long they may take, how many there may be, and how they end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sidecar.gateway.http1.limits import Limits
from sidecar.gateway.routes import IdempotencyRule, Route
from tests.integration.gateway.api import Conversation, always, echo, length, silent
from tests.integration.gateway.rig import get, post

FREE = Route("(other)", free=True)


async def test_a_connection_that_says_nothing_is_closed(gateway: Any) -> None:
    async with gateway(echo, header_timeout_s=0.1) as rig:
        wire = await rig.connect()
        assert await wire.ended() == b""


async def test_a_head_that_trickles_in_is_a_408(gateway: Any) -> None:
    async with gateway(echo, header_timeout_s=0.2) as rig:
        wire = await rig.connect()
        await wire.send(get())
        await wire.response()
        sending = asyncio.ensure_future(trickle(wire, get()))
        answer = await wire.response()
        assert (answer.status, answer.get(b"Connection")) == (408, b"close")
        assert await wire.ended() == b""
        sending.cancel()
        assert rig.gateway.context.counters.requests["-", "other", "-", 408] == 1


async def trickle(wire: Any, data: bytes) -> None:
    for at in range(len(data)):
        await wire.send(data[at : at + 1])
        await asyncio.sleep(0.05)


async def test_a_body_that_stops_is_a_408_and_costs_nothing(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        await talk.head()
        await talk.reader.read()

    async with gateway(script, body_timeout_s=0.1) as rig:
        wire = await rig.connect()
        await wire.send(get(b"/p", b"Content-Length: 10", method=b"POST") + b"part")
        assert (await wire.response()).status == 408
        assert await wire.ended() == b""
        await rig.until(lambda: not rig.api.open)
        assert await rig.charged() == []


async def test_a_kept_connection_without_a_request_is_closed(gateway: Any) -> None:
    async with gateway(echo, idle_timeout_s=0.1) as rig:
        wire = await rig.connect()
        await wire.send(get())
        assert (await wire.response()).get(b"Connection") is None
        assert await wire.ended() == b""


async def test_connections_beyond_the_limit_are_told_so_and_closed(gateway: Any) -> None:
    proceed = asyncio.Event()

    async def script(talk: Conversation) -> None:
        while True:
            await talk.request()
            await proceed.wait()
            await talk.send(length())

    async with gateway(script, connections_max=2) as rig:
        wires = [await rig.connect() for _ in range(2)]
        for wire in wires:
            await wire.send(get())
        await rig.until(lambda: len(rig.api.requests) == 2)
        third = await rig.connect()
        answer = await third.response()
        assert (answer.status, answer.get(b"Connection"), answer.get(b"Retry-After")) == (503, b"close", b"1")
        assert await third.ended() == b""
        assert rig.gateway.context.counters.sheds == {"connections": 1}
        proceed.set()
        assert [(await wire.response()).status for wire in wires] == [200, 200]
        wires[0].close()
        await rig.until(lambda: len(rig.gateway.connections) == 1)
        assert (await rig.ask(get())).status == 200


async def test_a_connection_ends_after_as_many_requests_as_it_may_carry(gateway: Any) -> None:
    async with gateway(echo, requests_per_connection_max=3) as rig:
        wire = await rig.connect()
        await wire.send(get() * 5)
        answers = [await wire.response() for _ in range(3)]
        assert [a.get(b"Connection") for a in answers] == [None, None, b"close"]
        assert await wire.ended() == b""
        assert await rig.charged() == [200] * 3


async def test_a_client_that_never_takes_its_answer_does_not_keep_its_connection(gateway: Any) -> None:
    async with gateway(always(length(bytes(200_000))), write_timeout_s=0.2) as rig:
        wire = await rig.connect(receive_bytes=4096)
        await wire.send(get(b"/1") * 40)
        await rig.until(lambda: rig.gateway.connections)
        await rig.until(lambda: not rig.gateway.connections)
        assert set(await rig.charged()) <= {200, 499}


async def test_a_client_that_closes_last_and_takes_nothing_does_not_keep_its_connection(gateway: Any) -> None:
    async with gateway(always(length(bytes(250_000))), write_timeout_s=0.2) as rig:
        wires = [await rig.connect(receive_bytes=4096) for _ in range(30)]
        for wire in wires:
            await wire.send(get(b"/1", b"Connection: close"))
        await rig.until(lambda: rig.gateway.connections)
        await rig.until(lambda: not rig.gateway.connections)
        assert len(await rig.charged()) == 30


# The end of the gateway


async def test_a_drain_lets_requests_end_and_closes_what_is_idle(gateway: Any) -> None:
    proceed = asyncio.Event()

    async def script(talk: Conversation) -> None:
        await talk.request()
        await proceed.wait()
        await talk.send(length(b"done"))

    async with gateway(script) as rig:
        idle, busy = await rig.connect(), await rig.connect()
        await busy.send(get())
        await rig.until(lambda: rig.api.requests and len(rig.gateway.connections) == 2)
        draining = asyncio.ensure_future(rig.gateway.drain(10.0))
        assert await idle.ended() == b""
        with pytest.raises(ConnectionError):
            await rig.connect()
        proceed.set()
        answer = await busy.response()
        assert (answer.body, answer.get(b"Connection")) == (b"done", b"close")
        assert await busy.ended() == b""
        assert await draining
        assert await rig.charged() == [200]


async def test_a_drain_that_takes_too_long_cuts_off_and_gives_back(gateway: Any) -> None:
    async with gateway(silent) as rig:
        stays, goes = await rig.connect(), await rig.connect()
        await stays.send(get())
        await goes.send(get())
        await rig.until(lambda: len(rig.api.requests) == 2)
        goes.reset()
        await rig.until(lambda: rig.gateway.context.detached)
        assert not await rig.gateway.drain(0.05)
        assert await stays.ended() == b""
        assert not rig.gateway.context.detached
        assert await rig.charged() == []


async def test_a_drain_ends_a_call_whose_client_is_gone_while_the_api_takes_its_body(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        await talk.head()
        talk.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(60)

    large = {"buffer_bytes_high": 30_000_000, "buffer_bytes_low": 29_000_000}
    async with gateway(script, limits=Limits(body_bytes_max=None), **large) as rig:
        wire = await rig.connect()
        head = get(b"/p", b"Content-Length: 20000000", method=b"POST")
        await wire.send(head, *[bytes(1_000_000)] * 20)
        await rig.until(lambda: any(c.relay is not None and not c.relay.wants_data() for c in rig.gateway.connections))
        wire.reset()
        await rig.until(lambda: rig.gateway.context.detached)
        (exchange,) = rig.gateway.context.detached
        exchange.upstream._unsent = 20_000_000  # some of it has gone out since somebody looked
        assert not await rig.gateway.drain(0.0)
        assert exchange.finished
        assert not rig.gateway.context.detached
        assert await rig.charged() == [499]


async def test_a_drain_answers_what_was_pipelined_before_it_and_then_closes(gateway: Any) -> None:
    proceed = asyncio.Event()

    async def script(talk: Conversation) -> None:
        while True:
            await talk.request()
            await proceed.wait()
            await talk.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
            await talk.send(b"ok")

    async with gateway(script) as rig:
        wire = await rig.connect()
        await wire.send(get() + post(b"x"))
        await rig.until(lambda: rig.api.requests)
        draining = asyncio.ensure_future(rig.gateway.drain(10.0))
        await asyncio.sleep(0)
        proceed.set()
        assert (await wire.response()).get(b"Connection") == b"close"
        assert await wire.ended() == b""
        assert await draining


# How they are counted


async def test_requests_are_counted_by_account_method_route_and_status(gateway: Any) -> None:
    async with gateway(echo) as rig:
        for request in (get(), get(method=b"PROPFIND"), get(key=b""), post(b"x")):
            await rig.ask(request)
        await rig.idle()
        assert rig.gateway.context.counters.requests == {
            ("tpp", "GET", "(other)", 200): 1,
            ("tpp", "PROPFIND", "(other)", 200): 1,
            ("-", "GET", "(other)", 401): 1,
            ("tpp", "POST", "(other)", 200): 1,
        }
        assert rig.gateway.context.counters.charged_units == {"api_calls": 3}
        assert rig.gateway.context.counters.refusals == {"unidentified": 1}


async def test_the_log_has_a_line_for_each_request_without_its_credentials(gateway: Any) -> None:
    repeats = Route("(other)", idempotency=IdempotencyRule(b"x-idempotency-key"))
    async with gateway(echo, default=repeats) as rig:
        await rig.ask(get(b"/accounts?secret=1", b"x-fapi-interaction-id: 93bac548"))
        await rig.ask(post(b"", b"x-idempotency-key: k"))
        await rig.ask(post(b"", b"x-idempotency-key: k"))
        await rig.ask(get(key=b""))
        await rig.idle()
        assert [(line["status"], line["units"], line["path"]) for line in rig.log] == [
            (200, 1, "/accounts"), (200, 1, "/payments"), (200, 0, "/payments"), (401, 0, "/accounts")
        ]  # fmt: skip
        assert [line["repeat"] for line in rig.log] == [False, False, True, False]
        assert rig.log[0]["interaction_id"] == "93bac548"
        assert rig.log[0]["client"] == "127.0.0.1"
        assert "this-is-the-key" not in str(rig.log)
        assert "secret" not in str(rig.log)
