"""APIs that give up a caller before the gateway does: who kept whom waiting decides who pays."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from sidecar.gateway.http1.limits import Limits
from tests.integration.gateway.api import Conversation, length
from tests.integration.gateway.rig import get, post

LONG = 200_000
PART = 150_000
ECHO_HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LONG
CHUNKED = b"Transfer-Encoding: chunked"
GIVES_UP_S = 1.1
"""After the second in which a caller may be late."""


async def stalls(rig: Any, request: bytes) -> None:
    """Sends a part of its body, and nothing more until the gateway ends the connection."""
    wire = await rig.connect()
    await wire.send(request)
    with suppress(ConnectionError):
        await wire.ended()


HALF = post(bytes(LONG))[: PART - LONG]


@pytest.mark.parametrize(
    ("said", "charged"),
    [
        (b"", [499]),
        (b"nonsense", [499]),
        (length(b"late", status=b"408 Request Timeout"), [499]),
        (length(b"no", status=b"400 Bad Request"), []),
        (length(b"no", status=b"503 Oh"), []),
        (length(b"done"), [200]),
    ],
    ids=["closes", "nonsense", "408", "400", "503", "200"],
)
async def test_an_api_that_no_longer_waits_for_a_body_is_paid(gateway: Any, said: bytes, charged: list[int]) -> None:
    """It worked on what it had, as one does that takes records as they come."""

    async def script(talk: Conversation) -> None:
        await talk.head()
        with suppress(TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(GIVES_UP_S):
                await talk.reader.readexactly(LONG)
        await talk.send(said)

    async with gateway(script) as rig:
        await stalls(rig, HALF)
        assert await rig.charged() == charged


async def test_an_answer_that_the_api_breaks_off_as_it_waits_for_the_rest_of_the_request_is_paid(gateway: Any) -> None:
    """The API answers while it reads, and the caller keeps back the last byte."""

    async def script(talk: Conversation) -> None:
        await talk.head()
        await talk.send(ECHO_HEAD)
        with suppress(TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(GIVES_UP_S):
                while piece := await talk.reader.read(65_536):
                    await talk.send(piece)

    async with gateway(script) as rig:
        await stalls(rig, post(bytes(LONG))[:-1])
        assert await rig.charged() == [499]


async def test_an_api_that_breaks_off_while_the_caller_still_sends_is_not_paid(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        request = await talk.head()
        if request.target == b"/answers":
            await talk.send(ECHO_HEAD + b"some")
        await talk.reader.readexactly(PART - 50_000)

    async with gateway(script) as rig:
        for target in (b"/says-nothing", b"/answers"):
            await stalls(rig, post(bytes(LONG), target=target)[: PART - LONG])
        assert await rig.charged() == []


@pytest.mark.parametrize("head", [get(b"/a", CHUNKED, method=b"POST"), get(b"/a", CHUNKED, method=b"GET")])
async def test_a_caller_that_waits_for_the_api_is_not_late(gateway: Any, head: bytes) -> None:
    """The API takes nothing, so the gateway does not read on."""

    async def script(talk: Conversation) -> None:
        await talk.head()
        await asyncio.sleep(GIVES_UP_S)

    async with gateway(script, limits=Limits(body_bytes_max=None)) as rig:
        wire = await rig.connect()
        wire.writer.write(head + b"4000000\r\n" + bytes(0x4000000 - 1))
        assert (await wire.response()).status == 502
        assert await rig.charged() == []
