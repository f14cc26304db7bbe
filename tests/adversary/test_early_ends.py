"""A client's end that is known before the request that it cuts off begins."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.integration.gateway.api import Conversation, length
from tests.integration.gateway.rig import get, post

LONG = 200_000


@pytest.mark.parametrize("sent", [0, 5, 150_000], ids=["nothing", "a little", "more than is gathered"])
@pytest.mark.parametrize("end", ["close", "half_close"])
async def test_a_pipelined_body_that_can_never_come_is_not_waited_for(gateway: Any, sent: int, end: str) -> None:
    """No further end of the connection is told, so this request waited for its time-out."""
    proceed = asyncio.Event()

    async def script(talk: Conversation) -> None:
        await talk.request()
        await proceed.wait()
        await talk.send(length())
        await talk.head()
        await talk.reader.read()
        await talk.send(length(b"incomplete", status=b"400 Bad Request"))

    async with gateway(script) as rig:
        wire = await rig.connect()
        await wire.send(get() + post(bytes(LONG), target=b"/second")[:-LONG] + bytes(sent))
        getattr(wire, end)()
        await rig.until(
            lambda: any(connection.eof or connection.reading_paused for connection in rig.gateway.connections)
        )
        proceed.set()
        await rig.until(lambda: not rig.gateway.connections)
        charged = await rig.charged()
        assert len(charged) == 1 + (sent > 65_536)
        assert not rig.gateway.context.bodies.used


async def test_an_end_that_comes_before_the_switch_of_protocols_is_passed_on(gateway: Any) -> None:
    proceed = asyncio.Event()

    async def script(talk: Conversation) -> None:
        await talk.request()
        await proceed.wait()
        await talk.send(b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert await talk.reader.read() == b""
        await talk.send(b"bye")

    async with gateway(script) as rig:
        wire = await rig.connect()
        await wire.send(get(b"/ws", b"Connection: Upgrade", b"Upgrade: websocket"))
        wire.half_close()
        await rig.until(lambda: any(connection.eof for connection in rig.gateway.connections))
        proceed.set()
        assert (await wire.head()).status == 101
        assert await wire.ended() == b"bye"
        assert await rig.charged() == [101]
