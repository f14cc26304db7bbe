"""Random callers over three gateways with one Valkey, before an API that counts.

Two accounts call: ``honest`` sends whole requests and takes its answers, ``hostile`` does whatever comes to its mind.
At rest what the API did, the ledger and the events have to agree, and nothing may be left over in any gateway.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import redis
import uvloop
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from sidecar.gateway.routes import IdempotencyRule, Route
from tests.adversary.counting import BREAKS, CLOSES, LARGE, NOT_FOUND, SERVES, STREAM, SUCCESS, UNAVAILABLE, Counting
from tests.adversary.counting import account_of as api_account_of
from tests.integration.gateway.api import Conversation
from tests.integration.gateway.rig import Rig, account, beside, chunked, get, running
from tests.integration.gateway.wire import TIMEOUT_S, Message, Wire
from tests.support.ledger_totals import read_totals

HONEST, HOSTILE = "honest", "hostile"
GATEWAYS = 3
REPEATS_MAX = 2
LONG = 100_000
"""A body of which the gateway gathers a part."""
HELD = "held"
"""The API answers 200, but not before the machine comes to rest or lets it."""
PLAN = (SUCCESS, SUCCESS, HELD, STREAM, LARGE, NOT_FOUND, UNAVAILABLE, CLOSES, BREAKS)
KEYS = (None, None, b"k1", b"k2")
KINDS = ("GET", "HEAD", "POST", "CHUNKS", "LONG", "LONG CHUNKS")
ENDS = {"reset": Wire.reset, "close": Wire.close, "half close": Wire.half_close}
T = TypeVar("T")


def request_of(who: str, kind: str, answer: str, key: bytes | None, body: int) -> bytes:
    """``body``: a number that tells bodies apart; the API is told it in a field."""
    long = kind.startswith("LONG")
    lines = [b"X-Body: %d" % (body + 10 * long)]
    if key is not None:
        lines.append(b"Idempotency-Key: " + key)
    target = b"/payments?" + answer.replace(" ", "-").encode()
    credential = f"X-API-Key: this-is-the-key-of-{who}\r\n".encode()
    if kind in ("GET", "HEAD"):
        return get(target, *lines, key=credential, method=kind.encode())
    content = bytes([body]) * LONG if long else b"%d" % body
    if kind.endswith("CHUNKS"):
        lines.append(b"Transfer-Encoding: chunked")
        return get(target, *lines, key=credential, method=b"POST") + chunked(content)
    lines.append(b"Content-Length: %d" % len(content))
    return get(target, *lines, key=credential, method=b"POST") + content


class PlannedApi(Counting):
    """Does what the query of a request says. ``calls``: what it did for a success, by account and all that tells one
    call from another; calls without a key are each their own."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.calls: Counter[tuple[Any, ...]] = Counter()

    def _work(self, request: Message) -> None:
        super()._work(request)
        self.answer = request.target.partition(b"?")[2].decode().replace("-", " ")
        if self.answer in (*SERVES, HELD):
            names = (b"Idempotency-Key", b"X-Body")
            self.calls[api_account_of(request), request.start, *(request.get(name) for name in names)] += 1

    async def _answer(self, talk: Conversation, request: Message) -> bool:
        answer = request.target.partition(b"?")[2].decode().replace("-", " ")
        if answer == HELD:
            await self.gate.wait()
            answer = SUCCESS
        if talk.writer.transport.is_closing():
            return False
        self.answer = answer  # read before the next wait
        return await super()._answer(talk, request)

    def served(self, who: str) -> int:
        return sum(count for call, count in self.calls.items() if call[0] == who)

    def free(self, who: str) -> int:
        """Calls of which the API can tell that they repeat one before, as many as may be free."""
        return sum(
            min(count - 1, REPEATS_MAX)
            for call, count in self.calls.items()
            if call[0] == who and call[2] is not None and not call[1].startswith((b"GET", b"HEAD"))
        )


@dataclass
class Line:
    """A connection of the hostile account, and what it has not sent yet of a request."""

    wire: Wire
    rest: bytes = b""
    ended: bool = False


class Callers(RuleBasedStateMachine):
    """Needs ``valkey`` in the class."""

    valkey: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        self.valkey.flushall()
        self.loop = uvloop.new_event_loop()
        self.stack = AsyncExitStack()
        self.lines: list[Line] = []
        self.given: Counter[int] = Counter()
        """Answers of the honest account by status."""
        self.run(self.start())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    async def start(self) -> None:
        self.api = PlannedApi()
        first = await self.stack.enter_async_context(
            running(
                self.valkey,
                self.api,
                accounts=[account(HONEST), account(HOSTILE)],
                default=Route("(other)", idempotency=IdempotencyRule(repeats_max=REPEATS_MAX)),
                unpaid_per_second=1e4,
                unpaid_burst=10_000,
            )
        )
        others = [await self.stack.enter_async_context(beside(first)) for _ in range(GATEWAYS - 1)]
        self.rigs: list[Rig] = [first, *others]

    async def _open(self, gateway: int) -> Line:
        line = Line(await self.rigs[gateway].connect(receive_bytes=8192))
        self.lines.append(line)
        return line

    async def _send(self, line: Line, data: bytes) -> None:
        """Without waiting for who takes nothing."""
        if not line.wire.writer.transport.is_closing() and not line.ended:
            line.wire.writer.write(data)
        await asyncio.sleep(0.002)

    # honest

    @rule(
        gateway=st.integers(0, GATEWAYS - 1),
        kind=st.sampled_from(KINDS),
        answer=st.sampled_from((SUCCESS, STREAM, NOT_FOUND)),
        key=st.sampled_from(KEYS),
        body=st.integers(1, 2),
    )
    def asks(self, gateway: int, kind: str, answer: str, key: bytes | None, body: int) -> None:
        status = self.run(self._ask(self.rigs[gateway], request_of(HONEST, kind, answer, key, body)))
        assert status == (404 if answer == NOT_FOUND else 200)

    async def _ask(self, rig: Rig, request: bytes) -> int:
        wire = await rig.connect()
        await wire.send(request)
        answer = await wire.response(request.partition(b" ")[0])
        assert not answer.cut
        wire.close()
        return answer.status

    # hostile

    @rule(
        gateway=st.integers(0, GATEWAYS - 1),
        kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=4),
        answer=st.sampled_from(PLAN),
        key=st.sampled_from(KEYS),
        body=st.integers(1, 2),
        sent=st.floats(0.0, 1.0),
    )
    def sends(self, gateway: int, kinds: list[str], answer: str, key: bytes | None, body: int, sent: float) -> None:
        """Requests one behind the other, of which the last may be in part."""

        async def act() -> None:
            requests = [request_of(HOSTILE, kind, answer, key, body) for kind in kinds]
            cut = int(len(requests[-1]) * sent) if sent < 0.9 else len(requests[-1])
            line = await self._open(gateway)
            line.rest = requests[-1][cut:]
            await self._send(line, b"".join(requests[:-1]) + requests[-1][:cut])

        self.run(act())

    @precondition(lambda self: self.lines)
    @rule(which=st.integers(0), rest=st.sampled_from(("all", "some", "nonsense")))
    def goes_on(self, which: int, rest: str) -> None:
        line = self.lines[which % len(self.lines)]
        count = len(line.rest) if rest == "all" else len(line.rest) // 2
        data, line.rest = line.rest[:count], line.rest[count:]
        self.run(self._send(line, b"\xff\r\n\r\n" if rest == "nonsense" else data))

    @precondition(lambda self: self.lines)
    @rule(which=st.integers(0), how=st.sampled_from(sorted(ENDS)))
    def leaves(self, which: int, how: str) -> None:
        async def act() -> None:
            line = self.lines[which % len(self.lines)]
            line.ended = True
            if how != "half close":
                self.lines.remove(line)
            if not line.wire.writer.transport.is_closing():
                with suppress(OSError, RuntimeError):
                    ENDS[how](line.wire)
            await asyncio.sleep(0)

        self.run(act())

    @precondition(lambda self: self.lines)
    @rule(which=st.integers(0), size=st.sampled_from((1, 100, 100_000)))
    def takes(self, which: int, size: int) -> None:
        async def act() -> None:
            with suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(0.005):
                    await self.lines[which % len(self.lines)].wire.reader.read(size)

        self.run(act())

    @rule(
        key=st.sampled_from(KEYS[2:]),
        answer=st.sampled_from(PLAN),
        bodies=st.integers(1, 3),
        count=st.integers(2, 12),
        leave=st.booleans(),
    )
    def races(self, key: bytes, answer: str, bodies: int, count: int, leave: bool) -> None:
        """Calls under one key, on all gateways at once."""

        async def act() -> None:
            lines = [await self._open(number % GATEWAYS) for number in range(count)]
            for number, line in enumerate(lines):
                line.wire.writer.write(request_of(HOSTILE, "POST", answer, key, number % bodies))
            await asyncio.sleep(0.005)
            if leave:
                for line in lines:
                    self.lines.remove(line)
                    if not line.wire.writer.transport.is_closing():
                        line.wire.reset()

        self.run(act())

    @rule()
    def the_api_answers_all(self) -> None:
        async def act() -> None:
            self.api.gate.set()
            await asyncio.sleep(0.01)
            self.api.gate.clear()

        self.run(act())

    # at rest

    def teardown(self) -> None:
        try:
            self.run(self._rest())
        finally:
            self.run(self.loop.shutdown_asyncgens())
            self.loop.close()

    async def _rest(self) -> None:
        async with self.stack:
            self.api.gate.set()
            for rig in self.rigs:
                for wire in rig.wires:
                    wire.writer.transport.abort()  # a plain close would wait for what the gateway does not read
            for rig in self.rigs:
                try:
                    await rig.until(lambda rig=rig: not rig.gateway.connections)
                    await rig.idle()
                    await rig.until(lambda rig=rig: rig.pool.size == rig.pool.idle)
                except TimeoutError as error:
                    raise AssertionError(self._left(rig)) from error
                context = rig.gateway.context
                left = (rig.pool.waiting, context.bodies.used, context.bodies.waiting, len(context.detached))
                assert left == (0, 0, 0, 0)
                assert not rig.pool._places.taken
            for rig in self.rigs:
                assert await rig.ledger.drain(TIMEOUT_S)
            first = self.rigs[0]
            totals = await read_totals(first.client, first.ledger.keys, [HONEST, HOSTILE])
            totals.check()
            counted = sum((Counter(rig.gateway.context.counters.repeats) for rig in self.rigs), Counter[str]())
            for who in (HONEST, HOSTILE):
                charged, served = totals.settled.get(who, 0), self.api.served(who)
                assert charged >= served - self.api.free(who), f"{who}: the API did {served}, {charged} were charged"
                assert charged <= self.api.heads[who], f"{who}: {charged} were charged, the API heard of less"
            charged, served = totals.settled.get(HONEST, 0), self.api.served(HONEST)
            assert charged + counted[HONEST] == served
            assert counted[HONEST] <= self.api.free(HONEST)

    def _left(self, rig: Rig) -> str:
        """What has not come to an end."""
        context = rig.gateway.context
        connections = [
            f"{each!r} reading_paused={each.reading_paused} writing_paused={each.writing_paused} "
            f"lingering={each.lingering} ending={each.ending} {each.relay!r}"
            for each in rig.gateway.connections
        ]
        return f"{connections} {rig.pool!r} {context.bodies!r} detached={context.detached}"
