"""Too many connections: who gives way, and that who means well gets through."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sidecar.gateway.routes import Route
from tests.integration.gateway.api import Conversation, always, echo, length
from tests.integration.gateway.certificates import Authority
from tests.integration.gateway.rig import Rig, get, post, route
from tests.integration.gateway.wire import Wire

FREE = Route("(other)", free=True)
NAME: dict[str, Any] = {"server_hostname": "gateway.example"}
PARTIAL = b"GET /accounts HTTP/1.1\r\nX-Filler: "


def sheds(rig: Rig) -> dict[str, int]:
    return rig.gateway.context.counters.sheds


async def many(rig: Rig, count: int, data: bytes = b"") -> list[Wire]:
    wires = []
    for _ in range(count):
        wires.append(await rig.connect())
        if data:
            with suppress(ConnectionError):
                await wires[-1].send(data)
    return wires


def opened(rig: Rig, count: int) -> list[socket.socket]:
    """Connections without a word, also where the gateway speaks TLS. It finds all of them in one turn of the loop."""
    return [socket.create_connection(("127.0.0.1", rig.port)) for _ in range(count)]


# Handshakes


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path)


async def test_connections_without_a_handshake_are_counted_and_an_honest_client_gets_through(
    gateway: Any, authority: Authority
) -> None:
    async with gateway(echo, tls=authority.server("gateway.example"), connections_max=40) as rig:
        sockets = opened(rig, 60)
        await rig.until(lambda: sheds(rig).get("handshakes") == 50 and not rig.gateway.handshakes.dropped)
        assert (rig.gateway.taken, len(rig.gateway.handshakes)) == (10, 10)
        assert (await rig.ask(get(), tls=authority.client(), **NAME)).status == 200
        assert len(rig.gateway.handshakes) == 9
        for sock in sockets:
            sock.close()
        await rig.until(lambda: not rig.gateway.handshakes)


async def test_a_handshake_has_a_time_of_its_own(gateway: Any, authority: Authority) -> None:
    async with gateway(echo, tls=authority.server("gateway.example"), handshake_timeout_s=0.2) as rig:
        assert await (await rig.connect()).ended() == b""
        assert rig.gateway.context.counters.handshake_failures == {"timeout": 1}
        assert not rig.gateway.taken


async def test_what_is_no_handshake_is_closed_and_counted(gateway: Any, authority: Authority) -> None:
    async with gateway(echo, tls=authority.server("gateway.example")) as rig:
        wire = await rig.connect()
        await wire.send(get())
        await wire.ended()
        await rig.until(lambda: rig.gateway.context.counters.handshake_failures == {"tls": 1})
        assert not rig.gateway.taken


async def test_a_drain_does_not_wait_for_handshakes(gateway: Any, authority: Authority) -> None:
    async with gateway(echo, tls=authority.server("gateway.example")) as rig:
        sockets = opened(rig, 3)
        await rig.until(lambda: len(rig.gateway.handshakes) == 3)
        began = time.monotonic()
        assert await rig.gateway.drain(10.0)
        assert time.monotonic() - began < 5.0
        await rig.until(lambda: not rig.gateway.handshakes)
        for sock in sockets:
            sock.close()


# Idle connections


async def test_who_was_refused_once_and_idles_gives_way_and_an_identified_client_keeps_its_connection(
    gateway: Any,
) -> None:
    async with gateway(echo, connections_max=40) as rig:
        honest = await rig.connect()
        await honest.send(get())
        assert (await honest.response()).status == 200
        strangers = await many(rig, 100, get(key=b""))
        newcomer = await rig.connect()
        await newcomer.send(get())
        assert (await newcomer.response()).status == 200
        await honest.send(get())
        assert (await honest.response()).status == 200
        assert set(sheds(rig)) == {"idle"}
        assert len(rig.gateway.connections) <= 33
        assert (await strangers[0].response()).status == 401
        assert await strangers[0].ended() == b""


async def test_connections_without_a_word_give_way_oldest_first(gateway: Any) -> None:
    async with gateway(echo, connections_max=40) as rig:
        wires = await many(rig, 50)
        await wires[0].ended()
        await rig.until(lambda: len(rig.gateway.connections) <= 33)
        for wire in wires[-20:]:
            await wire.send(get())
            assert (await wire.response()).status == 200


async def test_identified_idle_connections_give_way_when_there_are_no_others(gateway: Any) -> None:
    async with gateway(echo, connections_max=40) as rig:
        for _ in range(60):
            wire = await rig.connect()
            await wire.send(get())
            assert (await wire.response()).status == 200
        assert set(sheds(rig)) == {"idle"}


# Heads


async def test_partial_heads_give_way_when_connections_get_scarce(gateway: Any) -> None:
    async with gateway(echo, connections_max=40) as rig:
        wires = await many(rig, 60, PARTIAL)
        assert (await rig.ask(get())).status == 200
        answer = await wires[0].response()
        assert (answer.status, answer.get(b"Retry-After")) == (503, b"1")
        assert sheds(rig)["heads"] >= 28


async def test_partial_heads_take_no_more_memory_than_they_may(gateway: Any) -> None:
    most = 200_000
    async with gateway(echo, head_buffers_bytes=most) as rig:
        honest = await rig.connect()
        await honest.send(get())
        assert (await honest.response()).status == 200
        await honest.send(PARTIAL)
        wires = []
        for _ in range(40):
            wires.append(await rig.connect())
            with suppress(ConnectionError):
                await wires[-1].send(PARTIAL + b"x" * 20_000)
            await asyncio.sleep(0.002)
            assert rig.gateway.context.head_bytes <= most
        assert (await wires[0].response()).status == 503
        assert (await rig.ask(get())).status == 200
        await honest.send(b"x\r\n" + get().split(b"\r\n", 1)[1])
        assert (await honest.response()).status == 200
        for wire in wires:
            wire.close()
        await rig.until(lambda: not rig.gateway.context.head_bytes)
        assert set(sheds(rig)) == {"heads"}


async def test_requests_sent_ahead_take_no_more_memory_than_they_may(gateway: Any) -> None:
    proceed = asyncio.Event()

    async def script(talk: Conversation) -> None:
        while True:
            await talk.request()
            await proceed.wait()
            await talk.send(length())

    most = 1_000_000
    async with gateway(script, head_buffers_bytes=most) as rig:
        wires = await many(rig, 40)
        sending = [asyncio.ensure_future(wire.send(get() * 1_500)) for wire in wires]
        await rig.until(lambda: len(rig.api.requests) >= 40)
        for _ in range(20):
            await asyncio.sleep(0.005)
            assert rig.gateway.context.head_bytes <= most
        assert rig.gateway.context.head_bytes > 0
        proceed.set()
        for wire in wires:
            assert (await wire.response()).status == 200
        for task in sending:
            task.cancel()
        for wire in wires:
            wire.reset()
        await rig.until(lambda: not rig.gateway.connections)
        assert rig.gateway.context.head_bytes == 0
        await rig.idle()


async def test_who_alone_sends_too_much_ahead_gets_the_answer_under_way_and_the_end_of_the_connection(
    gateway: Any,
) -> None:
    proceed = asyncio.Event()

    async def script(talk: Conversation) -> None:
        await talk.request()
        await proceed.wait()
        await talk.send(length(b"done"))

    async with gateway(script, head_buffers_bytes=2_000) as rig:
        wire = await rig.connect()
        await wire.send(get() * 30)
        await rig.until(lambda: rig.api.requests and sheds(rig) == {"heads": 1})
        assert rig.gateway.context.head_bytes == 0
        proceed.set()
        answer = await wire.response()
        assert (answer.body, answer.get(b"Connection")) == (b"done", b"close")
        assert await wire.ended() == b""
        assert await rig.charged() == [200]


# Requests without a caller


async def test_slow_anonymous_bodies_to_a_free_route_give_way(gateway: Any) -> None:
    routes = [route("/free", free=True)]
    async with gateway(echo, routes=routes, connections_max=40) as rig:
        honest = await rig.connect()
        await honest.send(get())
        assert (await honest.response()).status == 200
        wires = await many(rig, 60, get(b"/free", b"Content-Length: 100", key=b"", method=b"POST") + b"x")
        for _ in range(5):
            assert (await rig.ask(post(b"abc"))).status == 200
        await honest.send(get())
        assert (await honest.response()).status == 200
        answer = await wires[0].response(b"POST")
        assert (answer.status, answer.get(b"Connection"), answer.get(b"Retry-After")) == (503, b"close", b"1")
        assert sheds(rig)["unidentified"] >= 28


async def test_a_request_that_the_api_has_never_gives_way(gateway: Any) -> None:
    proceed = asyncio.Event()

    async def script(talk: Conversation) -> None:
        await talk.request()
        await proceed.wait()
        await talk.send(length(b"done"))

    async with gateway(script, default=FREE, connections_max=10, upstream_connections_max=100) as rig:
        wires = []
        for number in range(10):
            wires += await many(rig, 1, get(key=b""))
            await rig.until(lambda: len(rig.api.requests) == number + 1)  # noqa: B023
        assert (await rig.ask(get())).status == 503
        proceed.set()
        assert [(await wire.response()).body for wire in wires] == [b"done"] * 10


async def test_a_peer_that_has_more_than_its_share_gives_way_to_another(gateway: Any) -> None:
    """Behind a trusted peer the clients are told apart by what it forwards."""
    async with gateway(always(length()), trusted=["127.0.0.0/8"], connections_max=40) as rig:
        few = []
        for number in range(4):
            few.append(await rig.connect())
            await few[-1].send(get(b"/a", b"X-Forwarded-For: 192.0.2.%d" % number, key=b""))
            assert (await few[-1].response()).status == 401
        for _ in range(60):
            wire = await rig.connect()
            await wire.send(get(b"/a", b"X-Forwarded-For: 198.51.100.7", key=b""))
            assert (await wire.response()).status == 401
        for wire in few:
            await wire.send(get(b"/a", b"X-Forwarded-For: 192.0.2.1"))
            assert (await wire.response()).status == 200


async def test_bodies_of_a_peer_above_its_share_give_way_also_if_their_caller_is_known(gateway: Any) -> None:
    slow = (b"Content-Length: 100", b"X-Forwarded-For: 198.51.100.7")
    async with gateway(echo, trusted=["127.0.0.0/8"], connections_max=40) as rig:
        other = await rig.connect()
        await other.send(get(b"/a", b"Content-Length: 3", b"X-Forwarded-For: 192.0.2.1", method=b"POST") + b"x")
        await many(rig, 60, get(b"/a", *slow, method=b"POST") + b"x")
        assert sheds(rig)["peer_share"] >= 28
        await other.send(b"yz")
        assert (await other.response()).status == 200


# Free routes


async def test_a_peer_has_a_limit_at_free_routes_and_at_others_it_has_none(gateway: Any) -> None:
    routes = [route("/free", free=True)]
    async with gateway(echo, routes=routes, free_per_second=0.1, free_burst=5) as rig:
        wire = await rig.connect()
        await wire.send(get(b"/free", key=b"") * 6)
        answers = [await wire.response() for _ in range(6)]
        assert [answer.status for answer in answers] == [200] * 5 + [429]
        assert 0 < int(answers[5].get(b"Retry-After") or 0) <= 10
        assert (await rig.ask(get(b"/free"))).status == 429
        for _ in range(10):
            await wire.send(get())
            assert (await wire.response()).status == 200
        assert sheds(rig) == {"free_routes": 2}


async def test_behind_a_trusted_peer_free_routes_are_limited_by_the_forwarded_address(gateway: Any) -> None:
    async with gateway(echo, default=FREE, trusted=["127.0.0.0/8"], free_per_second=0.1, free_burst=2) as rig:

        async def ask(*lines: bytes) -> int:
            return (await rig.ask(get(b"/free", *lines))).status

        one, other = b"X-Forwarded-For: 203.0.113.9, 192.0.2.1", b"X-Forwarded-For: 192.0.2.1, 192.0.2.2"
        assert [await ask(one) for _ in range(3)] == [200, 200, 429]
        assert [await ask(other) for _ in range(3)] == [200, 200, 429]
        assert [await ask() for _ in range(5)] == [200] * 5
        assert [await ask(b"X-Forwarded-For: unknown") for _ in range(5)] == [200] * 5
