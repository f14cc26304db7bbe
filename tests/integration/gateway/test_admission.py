"""Whoever takes his time, or has many calls under way, is in nobody else's way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.integration.gateway.api import Conversation, echo, length
from tests.integration.gateway.rig import account, get, post, route

GREEDY = b"X-API-Key: this-is-the-key-of-greedy\r\n"
ACCOUNTS = (account("tpp"), account("greedy"))
UPGRADE = (b"Connection: Upgrade", b"Upgrade: websocket")
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


async def slow_for_some(talk: Conversation) -> None:
    """Answers ``/slow`` never, ``/ws`` with a switch, ``/events`` with an endless stream, all else at once."""
    while True:
        request = await talk.request()
        if request.target == b"/ws":
            await talk.send(SWITCH)
            await talk.reader.read()
        elif request.target == b"/events":
            await talk.send(EVENTS)
            await talk.reader.read()
        elif request.target == b"/slow":
            await talk.reader.read()
        await talk.send(length(b"ok"))


async def test_an_account_whose_calls_take_long_has_half_of_the_places_and_the_rest_is_for_others(gateway: Any) -> None:
    async with gateway(slow_for_some, accounts=ACCOUNTS, upstream_connections_max=8, admission_timeout_s=0.3) as rig:
        wires = [await rig.connect() for _ in range(20)]
        for wire in wires:
            await wire.send(get(b"/slow", key=GREEDY))
        await rig.until(lambda: len(rig.api.requests) == 4 and rig.pool.waiting == 16)
        for _ in range(20):
            assert (await rig.ask(get())).status == 200
        refused = [await wire.response() for wire in wires[4:]]
        assert {(a.status, a.get(b"Retry-After")) for a in refused} == {(503, b"1")}
        assert len(rig.api.requests) == 4 + 20
        assert rig.gateway.context.counters.sheds == {"places": 16}
        shed = [(line["reason"], line["shed"]) for line in rig.log if line["account"] == "greedy"]
        assert shed == [("overloaded", "places")] * 16
        for wire in wires:
            wire.reset()
        await rig.until(lambda: len(rig.gateway.context.detached) == 4)  # they are the account's as long as they last
        wire = await rig.connect()
        await wire.send(get(b"/any", key=GREEDY))
        assert (await wire.response()).status == 503
        for talk in list(rig.gateway.context.detached):
            talk.timed_out()


@pytest.mark.parametrize("target", [b"/ws", b"/events"])
async def test_an_account_has_a_quarter_of_the_places_in_tunnels_and_streams(gateway: Any, target: bytes) -> None:
    lines = UPGRADE if target == b"/ws" else ()
    async with gateway(slow_for_some, accounts=ACCOUNTS, upstream_connections_max=8) as rig:
        wires = [await rig.connect() for _ in range(3)]
        heads = []
        for wire in wires:
            await wire.send(get(target, *lines, key=GREEDY))
            heads.append((await wire.head()).status)
        assert heads == [101 if lines else 200] * 2 + [503]
        assert rig.gateway.context.counters.sheds == {"streams": 1}
        assert (await rig.ask(get(b"/any", key=GREEDY))).status == 200
        wire = await rig.connect()
        await wire.send(get(target, *lines))
        assert (await wire.head()).status in (101, 200)
        for each in (*wires, wire):
            each.reset()
        await rig.until(lambda: rig.pool.may_stream("greedy"))
        # The API did what the third asked for, if it was not known before that it would be a stream.
        assert sorted(event[0] for event in await rig.events()) == ["greedy"] * (3 if lines else 4) + ["tpp"]


async def test_free_routes_share_a_tenth_of_the_places(gateway: Any) -> None:
    routes = [route("/slow", free=True), route("/free", free=True)]
    async with gateway(
        slow_for_some, routes=routes, upstream_connections_max=20, admission_timeout_s=0.2, response_timeout_s=2.0
    ) as rig:
        wires = [await rig.connect() for _ in range(5)]
        for wire in wires:
            await wire.send(get(b"/slow", key=b""))
        assert [(await wire.response()).status for wire in wires[2:]] == [503] * 3
        assert (await rig.ask(get(b"/free", key=b""))).status == 503
        assert (await rig.ask(get())).status == 200


async def test_calls_that_wait_get_places_in_turn_between_accounts(gateway: Any) -> None:
    proceed = asyncio.Event()

    async def script(talk: Conversation) -> None:
        while True:
            await talk.request()
            await proceed.wait()
            await talk.send(length())

    async with gateway(script, accounts=ACCOUNTS, upstream_connections_max=1) as rig:
        asked = [asyncio.ensure_future(rig.ask(get(b"/greedy", key=GREEDY))) for _ in range(30)]
        await rig.until(lambda: rig.pool.waiting == 29)
        asked.append(asyncio.ensure_future(rig.ask(get(b"/tpp"))))
        await rig.until(lambda: rig.pool.waiting == 30)
        proceed.set()
        assert {(await each).status for each in asked} == {200}
        order = [request.target for request in rig.api.requests]
        assert order.index(b"/tpp") <= 3


async def test_slow_bodies_take_no_place(gateway: Any) -> None:
    async with gateway(echo, accounts=ACCOUNTS, upstream_connections_max=2) as rig:
        for _ in range(20):
            wire = await rig.connect()
            await wire.send(post(b"x" * 100).replace(b"key-of-tpp", b"key-of-greedy")[:-50])
        await rig.until(lambda: rig.gateway.context.bodies.used == 20 * 50)
        assert (await rig.ask(post(b"abc"))).status == 200
        assert not rig.pool.waiting
