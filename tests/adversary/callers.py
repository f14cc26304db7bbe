"""What a caller can do on a connection: small functions, told apart by whether somebody honest would do so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sidecar.gateway.exchange.exchange import Exchange
from tests.adversary.counting import Counting
from tests.integration.gateway.rig import HOST, KEY, Rig, chunked, get, post
from tests.integration.gateway.wire import Wire

LONG = 200_000
"""More than the gateway gathers, so a part of it goes to the API."""
PART = 150_000
UPGRADE = (b"Connection: Upgrade", b"Upgrade: websocket")
SOON_S = 0.3
"""What a caller waits for before it does what it means to do; it does so in any case."""


class KeyedWire(Wire):
    """A connection whose requests are of another account than they were written for."""

    key = b""

    async def send(self, *data: bytes, apart: bool = False) -> None:
        await super().send(*(piece.replace(b"this-is-the-key-of-tpp", self.key) for piece in data), apart=apart)


@dataclass(frozen=True)
class Scene:
    """A rig and its API, and the account that calls."""

    rig: Rig
    api: Counting
    account: str

    async def connect(self, **options: Any) -> Wire:
        plain = await self.rig.connect(**options)
        wire = KeyedWire(plain.reader, plain.writer)
        wire.key = f"this-is-the-key-of-{self.account}".encode()
        return wire

    async def soon(self, condition: Callable[[], object]) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(SOON_S):
                while not condition():
                    await asyncio.sleep(0.002)

    async def heard(self) -> None:
        """Until the API has heard of a request, if it does."""
        await self.soon(lambda: self.api.heads[self.account])

    async def begun(self) -> None:
        """Until the gateway has begun with a request, if it does."""

        def is_there() -> bool:
            relays = (connection.relay for connection in self.rig.gateway.connections)
            return any(isinstance(each, Exchange) and each.account == self.account for each in relays)

        await self.soon(is_there)


Act = Callable[[Scene], Awaitable[None]]


@dataclass(frozen=True)
class Caller:
    """``honest``: pays for what it gets, neither more nor less. ``safe``: its method is. ``breaks_off``: it owes the
    API a part of a body."""

    act: Act
    honest: bool = False
    safe: bool = True
    breaks_off: bool = False


CALLERS: dict[str, Caller] = {}


def caller(*, honest: bool = False, safe: bool = True, breaks_off: bool = False) -> Callable[[Act], Act]:
    """Adds a function to the table, by its name."""

    def add(act: Act) -> Act:
        CALLERS[act.__name__.replace("_", " ")] = Caller(act, honest, safe, breaks_off)
        return act

    return add


def leave(wire: Wire, end: Callable[[Wire], None] = Wire.reset) -> None:
    """Ends a connection, unless the gateway has."""
    if not wire.writer.transport.is_closing():
        end(wire)


async def drink(wire: Wire) -> bytes:
    """All answers, until the gateway closes."""
    leave(wire, Wire.half_close)
    return await wire.ended()


def with_body(*lines: bytes, method: bytes = b"POST") -> bytes:
    return get(b"/payments", *lines, method=method)


ENDS: dict[str, Callable[[Wire], None]] = {
    "reset": Wire.reset,
    "close": Wire.close,
    "half close": Wire.half_close,
}

# Who asks and takes the answer


@caller(honest=True)
async def asks(scene: Scene) -> None:
    wire = await scene.connect()
    await wire.send(get())
    await drink(wire)


@caller(honest=True)
async def asks_in_the_old_version(scene: Scene) -> None:
    wire = await scene.connect()
    await wire.send(get().replace(b"HTTP/1.1", b"HTTP/1.0"))
    await drink(wire)


@caller(honest=True, safe=False)
async def pays(scene: Scene) -> None:
    wire = await scene.connect()
    await wire.send(post(b"pay"))
    await drink(wire)


@caller(honest=True, safe=False)
async def pays_in_chunks_with_extensions_and_trailers(scene: Scene) -> None:
    wire = await scene.connect()
    body = b'3;a="b;c";d\r\npay\r\n0003 ; x\r\nnow\r\n0;last\r\nDigest: x\r\nX-HTTP-Method: GET\r\n\r\n'
    await wire.send(with_body(b"Transfer-Encoding: chunked", b"Trailer: Digest") + body)
    await drink(wire)


@caller(honest=True, safe=False)
async def sends_a_long_body(scene: Scene) -> None:
    wire = await scene.connect()
    await wire.send(post(bytes(LONG)))
    await drink(wire)


@caller(honest=True, safe=False)
async def trickles_a_body(scene: Scene) -> None:
    wire = await scene.connect()
    request = post(b"slowly")
    await wire.send(request[:-6], *(bytes([byte]) for byte in request[-6:]), apart=True)
    await drink(wire)


@caller(honest=True, safe=False)
async def expects_100_and_sends(scene: Scene) -> None:
    wire = await scene.connect()
    await wire.send(with_body(b"Content-Length: 3", b"Expect: 100-continue"))
    assert (await wire.head()).status == 100
    await wire.send(b"pay")
    await drink(wire)


@caller(honest=True)
async def pipelines_and_reads(scene: Scene) -> None:
    wire = await scene.connect()
    await wire.send(get() + post(b"pay") + get(method=b"HEAD") + get(b"/last"))
    await drink(wire)


@caller(honest=True)
async def asks_with_conditions_and_ranges(scene: Scene) -> None:
    wire = await scene.connect()
    await wire.send(
        get(b"/a", b"Range: bytes=0-1")
        + get(b"/a", b'If-None-Match: "x"')
        + get(b"/a", b"Range: bytes=0-0,1-1,2-2,3-3")
        + get(b"/a", b"Accept: x/y;q=0", b"Accept-Encoding: identity;q=0")
    )
    await drink(wire)


@caller(honest=True, safe=False)
async def changes_under_a_condition(scene: Scene) -> None:
    wire = await scene.connect()
    await wire.send(post(b"pay", b'If-Match: "none"', b"Content-Range: bytes 0-2/3"))
    await drink(wire)


@caller(honest=True)
async def plays_with_connection(scene: Scene) -> None:
    options = (b"close", b"keep-alive", b"keep-alive, close", b"TE, x-unheard-of", b"upgrade", b"close, close, ,")
    for option in options:
        wire = await scene.connect()
        await wire.send(get(b"/a", b"Connection: " + option, b"TE: trailers, chunked", b"Keep-Alive: timeout=0"))
        await drink(wire)


@caller(honest=True)
async def sends_long_marks(scene: Scene) -> None:
    wire = await scene.connect()
    for size in (128, 129):
        await wire.send(get(b"/a", b"x-fapi-interaction-id: " + b"i" * size, b"traceparent: " + b"t" * 4_000))
    await drink(wire)


@caller(honest=True)
async def asks_what_there_is_again_and_again(scene: Scene) -> None:
    wire = await scene.connect()
    for forwards in (b"0", b"00", b"1", b"x", b"99999999999999999999"):
        await wire.send(get(b"/a", b"Max-Forwards: " + forwards, method=b"OPTIONS"))
    await wire.send(get(b"/a", b"Max-Forwards: 0"), get(b"*", b"Max-Forwards: 0", method=b"OPTIONS"))
    await drink(wire)


@caller(honest=True)
async def spells_methods_and_paths_in_every_way(scene: Scene) -> None:
    requests = [
        *(get(b"/accounts", method=method) for method in (b"get", b"Get", b"GETS", b"TRACE", b"PROPFIND", b"DELETE")),
        *(
            get(path)
            for path in (
                b"//accounts", b"/Accounts/", b"/accounts%2F", b"/a/../accounts", b"/accounts;a", b"/accounts%3B",
                b"/%61", b"/accounts%00", b"/accounts?a=%zz&b[]=../..", b"http://api.bank.example/a", b"a", b"/a#b",
            )
        ),
        *(
            post(b"x", name + b": DELETE")
            for name in (b"X-HTTP-Method-Override", b"X-Method-Override", b"X-HTTP-Method", b"X-Original-URL")
        ),
    ]  # fmt: skip
    for request in requests:
        wire = await scene.connect()
        await wire.send(request)
        await drink(wire)


@caller(honest=True, safe=False)
async def sends_more_than_it_said(scene: Scene) -> None:
    wire = await scene.connect()
    await wire.send(post(b"pay") + b"more\r\n\r\n")
    await drink(wire)


# Who leaves


def _leaves(name: str, request: bytes, *, safe: bool = True, heard: bool = True) -> None:
    """One for each way to end a connection."""
    for how, end in ENDS.items():

        async def act(scene: Scene, end: Callable[[Wire], None] = end) -> None:
            wire = await scene.connect()
            await wire.send(request)
            if heard:
                await scene.heard()
            leave(wire, end)
            if end is Wire.half_close:
                await wire.ended()

        CALLERS[f"{name}, {how}"] = Caller(act, safe=safe)


def _breaks_off(name: str, request: bytes, *, heard: bool = False) -> None:
    """One for each way to end a connection in the middle of a body, and one that says nothing more."""
    for how, end in {**ENDS, "silence": None}.items():

        async def act(scene: Scene, end: Callable[[Wire], None] | None = end) -> None:
            wire = await scene.connect()
            await wire.send(request)
            await (scene.heard() if heard else scene.begun())
            if end is not None:
                leave(wire, end)
            if end is None or end is Wire.half_close:
                await wire.ended()

        CALLERS[f"{name}, {how}"] = Caller(act, safe=False, breaks_off=True)


_leaves("leaves at once", get(), heard=False)
_leaves("pays and leaves at once", post(b"pay"), safe=False, heard=False)
_leaves("asks and leaves before the answer", get())
_leaves("pays and leaves before the answer", post(b"pay"), safe=False)
_leaves("sends a long body and leaves", post(bytes(LONG)), safe=False)
_leaves("deletes with no chunk and leaves", with_body(b"Transfer-Encoding: chunked", method=b"DELETE") + chunked())
_leaves("pipelines and leaves", get() * 5 + post(b"pay"))
_leaves("switches protocols and leaves", get(b"/ws", *UPGRADE))
_leaves("asks for the head and leaves", get(method=b"HEAD"))
_leaves("asks and is half way through the next", get() + post(b"pay")[:-2])
_breaks_off("sends nothing of a body", with_body(b"Content-Length: 1", method=b"DELETE"))
_breaks_off("sends no chunk", with_body(b"Transfer-Encoding: chunked", method=b"DELETE"))
_breaks_off("sends half a body", post(b"payment")[:-3])
_breaks_off("sends half a long body", post(bytes(LONG))[: PART - LONG], heard=True)
_breaks_off(
    "sends half of the long chunks", with_body(b"Transfer-Encoding: chunked") + chunked(bytes(PART))[:-5], heard=True
)
_breaks_off("sends a broken chunk", with_body(b"Transfer-Encoding: chunked") + b"3\r\npay\r\nnonsense\r\n")
_breaks_off(
    "sends a broken chunk after long ones",
    with_body(b"Transfer-Encoding: chunked") + chunked(bytes(PART))[:-5] + b"-1\r\n",
    heard=True,
)
_breaks_off("expects 100 and sends nothing", with_body(b"Content-Length: 3", b"Expect: 100-continue"))
_breaks_off("says less than it sends", HOST.join((b"POST /p HTTP/1.1\r\n", KEY)) + b"Content-Length: 9\r\n\r\n1")


@caller()
async def leaves_after_the_head_of_the_answer(scene: Scene) -> None:
    wire = await scene.connect()
    await wire.send(get())
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        await wire.head()
    leave(wire)


@caller()
async def takes_almost_all_of_the_answer(scene: Scene) -> None:
    wire = await scene.connect()
    await wire.send(get())
    with suppress(asyncio.IncompleteReadError, ConnectionError, ValueError):
        head = await wire.head()
        await wire.reader.readexactly(max(0, int(head.get(b"Content-Length") or 1) - 1))
    leave(wire)


@caller()
async def takes_nothing_of_the_answer(scene: Scene) -> None:
    wire = await scene.connect(receive_bytes=4096)
    await wire.send(get())
    await scene.soon(lambda: scene.api.bodies[scene.account])
    await asyncio.sleep(0.05)
    leave(wire)


@caller()
async def takes_nothing_while_it_sends(scene: Scene) -> None:
    wire = await scene.connect(receive_bytes=4096)
    await wire.send(get() * 20 + post(bytes(LONG)))
    await asyncio.sleep(0.05)
    leave(wire)


# Who uses keys


@caller(honest=True, safe=False)
async def has_one_key_for_many_bodies(scene: Scene) -> None:
    for number in range(6):
        wire = await scene.connect()
        await wire.send(post(b"%d" % number, b"Idempotency-Key: same", b"x-idempotency-key: same"))
        await drink(wire)


@caller(honest=True, safe=False)
async def has_a_key_that_does_not_count(scene: Scene) -> None:
    for number in range(6):
        wire = await scene.connect()
        await wire.send(post(b"pay", b"Idempotency-Key: fresh-%d" % number, b"x-idempotency-key: constant"))
        await drink(wire)


@caller(honest=True, safe=False)
async def races_under_one_key(scene: Scene) -> None:
    wires = [await scene.connect() for _ in range(40)]
    for number, wire in enumerate(wires):
        await wire.send(post(b"%d" % number, b"Idempotency-Key: race"))
    for wire in wires:
        await drink(wire)


@caller(safe=False)
async def races_and_leaves_under_one_key(scene: Scene) -> None:
    wires = [await scene.connect() for _ in range(20)]
    for wire in wires:
        await wire.send(post(b"pay", b"Idempotency-Key: race and leave"))
    await scene.heard()
    for wire in wires:
        leave(wire)
