"""Slow readers and slow writers: what waits in memory is bounded, and nobody else is slowed down."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Any

import pytest

from sidecar.gateway.http1.limits import Limits
from sidecar.gateway.routes import Route
from tests.integration.gateway.api import Conversation, always, echo, length
from tests.integration.gateway.rig import Rig, chunked, get, post

FREE = Route("(other)", free=True)
ANY_SIZE = Limits(body_bytes_max=None)
READ_BYTES_MAX = 262_144
"""What a transport of asyncio may hand over at once, on top of what it was told to bear."""
HIGH = 65_536
BOUNDS = {"buffer_bytes_high": HIGH, "buffer_bytes_low": 16_384}
MEGABYTE = bytes(1_000_000)


class Watch:
    """The most that waited to be written at any look, towards clients and towards the API."""

    def __init__(self, rig: Rig) -> None:
        self.most = 0
        self._rig = rig
        self._task = asyncio.ensure_future(self._look())

    async def _look(self) -> None:
        while True:
            for connection in self._rig.gateway.connections:
                transports = [connection.transport]
                if connection.relay is not None and connection.relay.upstream is not None:
                    transports.append(connection.relay.upstream.transport)
                for transport in transports:
                    if not transport.is_closing():
                        self.most = max(self.most, transport.get_write_buffer_size())
            await asyncio.sleep(0)

    def stop(self) -> int:
        self._task.cancel()
        return self.most


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_slow_reader_of_a_large_answer_costs_little_memory(gateway: Any, chunked: bool) -> None:
    async def script(talk: Conversation) -> None:
        await talk.request()
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 20000000"
        await talk.send(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n")
        for _ in range(20):
            await talk.send(b"%x\r\n%b\r\n" % (len(MEGABYTE), MEGABYTE) if chunked else MEGABYTE)
        await talk.send(b"0\r\n\r\n" if chunked else b"")

    async with gateway(script, **BOUNDS) as rig:
        watch = Watch(rig)
        wire = await rig.connect(receive_bytes=8192)
        await wire.send(get())
        await rig.until(lambda: any(c.writing_paused for c in rig.gateway.connections))
        assert len((await wire.response()).body) == 20_000_000
        assert HIGH <= watch.stop() <= HIGH + 2 * READ_BYTES_MAX
        assert await rig.charged() == [200]


async def test_a_slow_reader_of_a_large_body_costs_little_memory(gateway: Any) -> None:
    proceed = asyncio.Event()

    async def script(talk: Conversation) -> None:
        request = await talk.head()
        await proceed.wait()
        await talk.body(request)
        await talk.send(length(b"%d" % len(request.body)))

    async with gateway(script, limits=ANY_SIZE, body_timeout_s=0.1, **BOUNDS) as rig:
        watch = Watch(rig)
        wire = await rig.connect()
        head = get(b"/p", b"Content-Length: 20000000", method=b"POST")
        sending = asyncio.ensure_future(wire.send(head, *[MEGABYTE] * 20))
        await rig.until(lambda: any(c.reading_paused for c in rig.gateway.connections))
        proceed.set()
        assert (await wire.response()).body == b"20000000"
        await sending
        assert HIGH <= watch.stop() <= HIGH + 2 * READ_BYTES_MAX
        assert await rig.charged() == [200]


async def test_a_body_that_comes_in_little_pieces_takes_no_more_memory_than_it_counts(gateway: Any) -> None:
    async with gateway(echo) as rig:
        wire = await rig.connect()
        await wire.send(get(b"/p", b"Transfer-Encoding: chunked", method=b"POST"))
        await rig.until(lambda: any(c.relay is not None for c in rig.gateway.connections))
        (connection,) = rig.gateway.connections
        for _ in range(10):
            connection.data_received(b"01\r\na\r\n" * 500)  # a size line that is written anew, so many pieces
            assert len(connection.relay.queued) <= 64
        await wire.send(b"0\r\n\r\n")
        assert (await wire.response()).body == b"a" * 5000


@pytest.mark.parametrize("refused_before", [False, True])
async def test_a_body_goes_on_that_had_to_wait_until_it_was_known_whose_it_is(
    gateway: Any, refused_before: bool
) -> None:
    """Its framing takes more than may be gathered, and its content less."""
    known = asyncio.Event()

    class SlowStore:
        async def account_of(self, sha256_hex: str) -> str:
            await known.wait()
            return "tpp"

    async with gateway(echo, request_buffer_bytes=1000, body_timeout_s=0.5) as rig:
        rig.gateway.context.identity.resolvers[-1]._store = SlowStore()
        if refused_before:
            rig.gateway.context.note_refused_account("tpp")
        wire = await rig.connect()
        body = chunked(*[b"a"] * 900)
        await wire.send(get(b"/p", b"Transfer-Encoding: chunked", method=b"POST") + body[:3000])
        await rig.until(lambda: any(c.reading_paused for c in rig.gateway.connections))
        await wire.send(body[3000:])
        known.set()
        assert (await wire.response()).body == b"a" * 900
        assert await rig.charged() == [200]


async def test_an_api_that_stops_reading_the_body_is_late_not_the_client(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        await talk.head()
        talk.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(60)

    async with gateway(script, limits=ANY_SIZE, response_timeout_s=0.2, write_timeout_s=0.2, **BOUNDS) as rig:
        wire = await rig.connect()
        head = get(b"/p", b"Content-Length: 50000000", method=b"POST")
        sending = asyncio.ensure_future(wire.send(head, *[MEGABYTE] * 50))
        assert (await wire.head()).status == 504
        sending.cancel()
        wire.reset()
        assert await rig.charged() == [504]


async def test_what_a_slow_reader_takes_of_the_kernels_buffer_counts(gateway: Any) -> None:
    """Of 12 MB, at five times the rate that it has to keep. The kernel asks for more seconds apart."""
    response = length(bytes(12_000_000))
    async with gateway(always(response), write_timeout_s=0.4, bytes_per_second_min=20_000, **BOUNDS) as rig:
        wire = await rig.connect(receive_bytes=8192)
        wire.reader._limit = 8192
        await wire.send(get())
        await wire.head()
        taken = 0
        until = asyncio.get_running_loop().time() + 2.5
        while asyncio.get_running_loop().time() < until:
            taken += len(await wire.reader.read(8192))
            await asyncio.sleep(0.08)
        assert taken > 100_000
        assert rig.gateway.connections
        wire.close()
        assert await rig.charged() == [499]


async def test_a_client_that_reads_slowly_but_steadily_is_not_cut_off(gateway: Any) -> None:
    """2 MB through small buffers at a pace at which the limit would pass many times over."""

    async def script(talk: Conversation) -> None:
        await talk.answer(length(bytes(2_000_000)))
        await talk.reader.read()

    async with gateway(script, write_timeout_s=0.1, upstream_idle_timeout_s=0.1, **BOUNDS) as rig:
        wire = await rig.connect(receive_bytes=8192)
        wire.reader._limit = 8192  # how much the test's own side reads ahead
        await wire.send(get())
        await wire.head()
        left = 2_000_000
        while left:
            left -= len(await wire.reader.readexactly(min(left, 40_000)))
            await asyncio.sleep(0.02)
        assert await rig.charged() == [200]


async def test_a_client_that_sends_many_requests_and_reads_no_answer_costs_little_memory(gateway: Any) -> None:
    async with gateway(always(length(bytes(500_000))), default=FREE, **BOUNDS) as rig:
        watch = Watch(rig)
        wire = await rig.connect(receive_bytes=8192)
        await wire.send(get() * 40)
        await rig.until(lambda: any(c.writing_paused for c in rig.gateway.connections))
        before = -1
        while before != len(rig.api.requests):  # until nothing more comes of it
            before = len(rig.api.requests)
            await asyncio.sleep(0.05)
        assert watch.most <= HIGH + 2 * READ_BYTES_MAX
        for _ in range(40):
            assert len((await wire.response()).body) == 500_000
        assert watch.stop() <= HIGH + 2 * READ_BYTES_MAX


async def test_the_next_caller_does_not_wait_for_the_slow_reader_before_it(gateway: Any) -> None:
    """The API's connection comes back to the pool while the answer before still waits for its slow reader."""
    body = bytes(30_000)  # comes in one piece
    small = {"buffer_bytes_high": 4096, "buffer_bytes_low": 1024}
    async with gateway(always(length(body)), default=FREE, upstream_connections_max=1, **small) as rig:
        slow = await rig.connect(receive_bytes=4096)
        slow.writer.transport.pause_reading()
        await rig.until(lambda: rig.gateway.connections)
        for connection in rig.gateway.connections:
            sock = connection.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        await slow.send(get())
        await rig.until(lambda: rig.pool.idle)
        assert any(c.writing_paused for c in rig.gateway.connections)
        assert (await rig.ask(get())).body == body
        slow.writer.transport.resume_reading()
        assert (await slow.response()).body == body


async def test_a_body_that_comes_before_the_api_is_reached_waits_within_bounds(gateway: Any) -> None:
    proceed = asyncio.Event()

    async def script(talk: Conversation) -> None:
        while True:
            request = await talk.request()
            await proceed.wait()
            await talk.send(length(b"%d" % len(request.body)))

    async with gateway(script, limits=ANY_SIZE, upstream_connections_max=1, **BOUNDS) as rig:
        first = asyncio.ensure_future(rig.ask(get()))
        await rig.until(lambda: rig.api.requests)
        wire = await rig.connect()
        head = get(b"/p", b"Content-Length: 5000000", method=b"POST")
        sending = asyncio.ensure_future(wire.send(head, *[MEGABYTE] * 5))
        await rig.until(lambda: any(c.reading_paused for c in rig.gateway.connections))
        queued = [c.relay.queued_bytes for c in rig.gateway.connections if c.relay is not None]
        assert HIGH <= max(queued) <= HIGH + 2 * READ_BYTES_MAX
        proceed.set()
        assert (await wire.response()).body == b"5000000"
        await asyncio.gather(sending, first)
        assert await rig.charged() == [200, 200]


async def test_bodies_that_are_gathered_wait_when_they_are_too_many_and_all_get_through(gateway: Any) -> None:
    """Thirty bodies of 60 kB in room for 200 kB: what is kept stays near the bound, and nobody is refused."""
    body = bytes(60_000)
    async with gateway(echo, request_buffers_bytes=200_000) as rig:
        bodies = rig.gateway.context.bodies
        most = 0

        async def ask() -> int:
            nonlocal most
            wire = await rig.connect()
            whole = post(body)
            for at in range(0, len(whole), 6_000):
                await wire.send(whole[at : at + 6_000])
                await asyncio.sleep(0.02)
                most = max(most, bodies.used)
            return (await wire.response()).status

        assert await asyncio.gather(*(ask() for _ in range(30))) == [200] * 30
        assert most < 30 * 60_000 // 3
        assert (bodies.used, bodies.waiting) == (0, 0)


async def test_a_body_that_comes_too_slowly_in_all_ends_in_408_and_takes_no_place(gateway: Any) -> None:
    async with gateway(echo, body_timeout_s=0.3, bytes_per_second_min=1000) as rig:
        wire = await rig.connect()
        await wire.send(get(b"/p", b"Content-Length: 100", method=b"POST"))
        for _ in range(5):
            await wire.send(b"x")
            await asyncio.sleep(0.1)
        assert (await wire.response()).status == 408
        assert not rig.api.connections


async def test_a_client_that_takes_its_answer_too_slowly_in_all_is_cut_off_and_pays(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        await talk.answer(length(bytes(20_000_000)))
        await talk.reader.read()

    async with gateway(script, write_timeout_s=0.3, bytes_per_second_min=1_000_000, **BOUNDS) as rig:
        wire = await rig.connect(receive_bytes=4096)
        await wire.send(get())
        await wire.head()
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while rig.gateway.connections:
                await wire.reader.readexactly(100)
                await asyncio.sleep(0.02)
        assert await rig.charged() == [499]
