"""Who pays, and for what: every way in which a request can end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest
from structlog.testing import capture_logs

from sidecar.gateway.parameters import UpstreamTarget
from sidecar.gateway.routes import Route
from sidecar.ledger.pricing.price_tables import Standard
from tests.conftest import free_port
from tests.integration.gateway.api import Conversation, absent, always, echo, length, once, silent
from tests.integration.gateway.rig import account, chunked, get, post, route
from tests.integration.gateway.wire import Message

UNBUFFERED = Route("(other)", buffered=False)
CHUNKED_HEAD = b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("status", [200, 201, 204, 206, 301, 304])
async def test_a_success_is_charged_once(gateway: Any, status: int) -> None:
    async with gateway(always(b"HTTP/1.1 %d Whatever\r\nContent-Length: 0\r\n\r\n" % status)) as rig:
        assert (await rig.ask(get())).status == status
        assert await rig.events() == [("tpp", "api_calls", 1, "(other)", "GET", status)]


@pytest.mark.parametrize("status", [400, 401, 404, 406, 409, 412, 417, 429, 499, 500, 502, 503, 504, 599])
async def test_any_other_answer_is_forwarded_and_not_charged(gateway: Any, status: int) -> None:
    async with gateway(always(length(b"why", b"Retry-After: 7", status=b"%d Oh" % status))) as rig:
        answer = await rig.ask(get())
        assert (answer.status, answer.body, answer.get(b"Retry-After")) == (status, b"why", b"7")
        assert await rig.charged() == []


@pytest.mark.parametrize("status", [406, 412, 416, 417])
@pytest.mark.parametrize("method", [b"POST", b"PUT", b"PATCH", b"DELETE", b"MOVE"])
async def test_a_failure_that_the_callers_fields_can_provoke_is_charged_where_work_may_be_done(
    gateway: Any, method: bytes, status: int
) -> None:
    async with gateway(always(length(b"no", status=b"%d Oh" % status))) as rig:
        await rig.ask(get(method=method))
        assert await rig.charged() == [status]


TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("status", "charged", "left"), [(200, b"0.10", b"0.90"), (404, b"0.00", b"1.00"), (503, b"0.00", b"1.00")]
)
async def test_an_answer_says_what_it_cost_and_what_is_left(
    gateway: Any, status: int, charged: bytes, left: bytes
) -> None:
    purse = account("tpp", "prepaid", funds=Decimal("1.00"))
    async with gateway(always(length(status=b"%d X" % status)), accounts=[purse]) as rig:
        answer = await rig.ask(get())
        assert (answer.get(b"X-Credits-Charged"), answer.get(b"X-Credits-Remaining")) == (charged, left)


async def test_an_answer_of_the_gateways_own_says_what_it_cost(gateway: Any) -> None:
    purse = account("tpp", "prepaid", funds=Decimal("1.00"))
    async with gateway(silent, accounts=[purse], response_timeout_s=0.1) as rig:
        free, paid = await rig.ask(get()), await rig.ask(post(b"x"))
        assert [a.status for a in (free, paid)] == [504, 504]
        assert [a.get(b"X-Credits-Charged") for a in (free, paid)] == [None, b"0.10"]


@pytest.mark.parametrize("answered", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"])
async def test_a_call_that_the_gateway_cuts_off_as_it_stops_is_free(gateway: Any, answered: bytes) -> None:
    async def script(talk: Conversation) -> None:
        await talk.answer(answered)
        await talk.reader.read()

    async with gateway(script) as rig:
        wire = await rig.connect()
        await wire.send(post(b"pay"))
        await rig.until(lambda: rig.api.requests)
        if answered:
            await wire.head()
        assert not await rig.gateway.drain(0.0)
        assert await rig.charged() == []
        assert [line["reason"] for line in rig.log] == ["stopped"]


async def test_a_client_that_is_gone_when_the_api_does_not_answer_in_time_pays_where_something_may_have_changed(
    gateway: Any,
) -> None:
    async with gateway(silent, response_timeout_s=0.2) as rig:
        wire = await rig.connect()
        await wire.send(post(b"pay"))
        await rig.until(lambda: rig.api.requests)
        wire.reset()
        assert await rig.charged() == [499]


async def test_a_route_says_which_statuses_are_charged(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        while True:
            request = await talk.request()
            await talk.send(length(status=request.target[1:] + b" X"))

    only_200_and_500 = Route("(other)", charged=frozenset({200, 500}))
    async with gateway(script, default=only_200_and_500) as rig:
        for status in (b"200", b"201", b"404", b"500", b"503"):
            await rig.ask(get(b"/" + status))
        assert await rig.charged() == [200, 500]


async def test_a_route_says_which_metric_and_how_many_units(gateway: Any) -> None:
    routes = [
        route("/payments", "POST", metric="payments", units=7),
        route("/accounts/{AccountId}/**", units=3),
        route("/health", free=True),
    ]
    async with gateway(echo, routes=routes, default=Route("(other)", deny=True)) as rig:
        statuses = [
            (await rig.ask(request)).status
            for request in (post(b"x"), get(b"/accounts/123/balances"), get(b"/health", key=b""), get(b"/secret"))
        ]
        assert statuses == [200, 200, 200, 404]
        assert await rig.events() == [
            ("tpp", "payments", 7, "/payments", "POST", 200),
            ("tpp", "api_calls", 3, "/accounts/{AccountId}/**", "GET", 200),
        ]
        assert [request.target for request in rig.api.requests] == [b"/payments", b"/accounts/123/balances", b"/health"]


async def test_an_event_says_how_the_call_is_known_elsewhere(gateway: Any) -> None:
    async with gateway(echo) as rig:
        await rig.ask(get(b"/accounts", b"x-fapi-interaction-id: 93bac548", b"traceparent: " + TRACE))
        [event] = await rig.whole_events()
        assert event[7:] == ["93bac548", TRACE.decode()]


async def test_credit_that_is_used_up_ends_in_402_and_the_api_hears_nothing(gateway: Any) -> None:
    poor = account("tpp", "prepaid", funds=Decimal("0.30"))
    async with gateway(echo, accounts=[poor]) as rig:
        answers = [await rig.ask(get()) for _ in range(5)]
        assert [answer.status for answer in answers] == [200, 200, 200, 402, 402]
        assert [a.get(b"X-Credits-Remaining") for a in answers] == [b"0.20", b"0.10", b"0.00", b"0.00", b"0.00"]
        assert len(rig.api.requests) == 3


async def test_a_hundred_that_race_for_credit_for_five_get_five(gateway: Any) -> None:
    poor = account("tpp", "prepaid", funds=Decimal("0.50"))
    async with gateway(echo, accounts=[poor]) as rig:
        answers = await asyncio.gather(*(rig.ask(get()) for _ in range(100)))
        assert sorted(answer.status for answer in answers) == [200] * 5 + [402] * 95


async def test_credit_held_by_a_call_that_fails_can_be_used_again(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        await talk.answer(length(status=b"503 No"))
        await talk.answer(length())

    async with gateway(script, accounts=[account("tpp", "prepaid", funds=Decimal("0.10"))]) as rig:
        assert [(await rig.ask(get())).status for _ in range(3)] == [503, 200, 402]


# What the API may do instead of an answer


def detail(answer: Message) -> tuple[int, str]:
    return answer.status, json.loads(answer.body)["detail"]


async def test_an_api_that_refuses_connections_is_a_502_and_costs_nothing(gateway: Any) -> None:
    port = free_port()
    async with gateway(echo, upstream=UpstreamTarget(port=port)) as rig:
        with capture_logs() as lines:
            assert (await rig.ask(get())).status == 502
        assert [line["error"] for line in lines] == [f"127.0.0.1:{port}: connection refused"]
        assert detail(await rig.ask(get())) == (502, "The gateway cannot connect to the API.")
        assert detail(await rig.ask(post(b"abc"))) == (502, "The gateway cannot connect to the API.")
        assert await rig.charged() == []


@pytest.mark.parametrize(
    "said",
    [
        b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", b"ICY 200 OK\r\n\r\n", b"\x15\x03\x01\0",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", b"HTTP/1.1 99 Low\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n",
    ],
    ids=lambda said: repr(said[:40]),
)  # fmt: skip
async def test_an_api_that_answers_nonsense_is_a_502_and_costs_nothing(gateway: Any, said: bytes) -> None:
    async with gateway(once(said)) as rig:
        wire = await rig.connect()
        await wire.send(get())
        answer = await wire.response()
        assert answer.get(b"Content-Type") == b"application/problem+json"
        said_nothing = "The API closed the connection without an answer."
        assert detail(answer) == (502, "The API sent an invalid response." if said else said_nothing)
        assert await rig.charged() == []
        await wire.send(get())
        assert (await wire.response()).status == 502  # the client's connection is none the worse for it


@pytest.mark.parametrize(
    ("said", "charged"),
    [
        (b"HTTP/1.1 201 Created\r\nX: " + b"x" * 1_000_000, [502]),
        (b"HTTP/1.1 201 Created\r\n" + b"X: x\r\n" * 200_000, [502]),
        (b"HTTP/1.1 201 Created\r\nX: \x01\r\nContent-Length: 0\r\n\r\n", [502]),
        (b"HTTP/1.1 201 Created\r\nX: \x7f\r\nContent-Length: 0\r\n\r\n", [502]),
        (b"HTTP/1.1 201 Created\r\nX: long\r\n folded\r\nContent-Length: 0\r\n\r\n", [502]),
        (b"HTTP/1.1 404 No\r\nX: \x01\r\nContent-Length: 0\r\n\r\n", []),
        (b"HTTP/1.1 500 Oh\r\nX: \x01\r\nContent-Length: 0\r\n\r\n", []),
        (b"HTTP/1.1 201 Created\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nok", []),
    ],
    ids=lambda said: repr(said[:40]) if isinstance(said, bytes) else str(said),
)
async def test_a_success_that_cannot_be_passed_on_because_of_what_the_caller_sent_is_charged(
    gateway: Any, said: bytes, charged: list[int]
) -> None:
    async with gateway(once(said)) as rig:
        assert (await rig.ask(post(b"pay"))).status == 502
        assert await rig.charged() == charged


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n",
    ],
)
async def test_an_answer_that_breaks_off_cuts_the_client_and_costs_nothing(gateway: Any, said: bytes) -> None:
    async with gateway(once(said)) as rig:
        assert (await rig.ask(get())).cut
        assert await rig.charged() == []
        assert rig.gateway.context.counters.upstream_aborts == 1


@pytest.mark.parametrize("rest", [b"", b"xyz\r\n"], ids=["closed", "broken"])
async def test_a_stream_that_breaks_off_after_something_of_it_was_delivered_is_charged(
    gateway: Any, rest: bytes
) -> None:
    said = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n"
    async with gateway(once(said + rest)) as rig:
        assert (await rig.ask(get())).cut
        assert await rig.charged() == [200]


@pytest.mark.parametrize(("charged", "statuses"), [(True, [200, 200]), (False, [])])
async def test_a_route_says_what_a_broken_answer_costs(gateway: Any, charged: bool, statuses: list[int]) -> None:
    async def script(talk: Conversation) -> None:
        request = await talk.request()
        framing = b"Content-Length: 10\r\n\r\n" if request.target == b"/length" else CHUNKED_HEAD
        await talk.send(b"HTTP/1.1 200 OK\r\n" + framing + b"5\r\nabcde")

    async with gateway(script, default=Route("(other)", broken_charged=charged)) as rig:
        for target in (b"/length", b"/stream"):
            assert (await rig.ask(get(target))).cut
        assert await rig.charged() == statuses


async def test_an_answer_that_breaks_off_resets_a_client_that_would_take_a_close_for_its_end(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        await talk.answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n")
        await talk.reader.read(1)

    async with gateway(script, upstream_idle_timeout_s=0.1) as rig:
        wire = await rig.connect()
        await wire.send(get().replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert (await wire.head()).status == 200
        assert await wire.was_reset()


async def test_an_api_that_does_not_answer_in_time_is_a_504_that_is_free_where_nothing_can_have_changed(
    gateway: Any,
) -> None:
    async with gateway(silent, response_timeout_s=0.1) as rig:
        for request in (get(), get(method=b"HEAD"), get(method=b"OPTIONS"), post(b"abc"), get(method=b"DELETE")):
            assert (await rig.ask(request)).status == 504
        assert [event[4:6] for event in await rig.events()] == [("POST", 504), ("DELETE", 504)]


async def test_a_route_says_that_an_api_that_does_not_answer_in_time_is_free(gateway: Any) -> None:
    async with gateway(silent, response_timeout_s=0.1, default=Route("(other)", timeout_charged=False)) as rig:
        assert (await rig.ask(post(b"abc"))).status == 504
        assert await rig.charged() == []


async def test_an_api_that_stops_in_the_middle_of_its_answer_is_cut_and_costs_nothing(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        await talk.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort")
        await talk.reader.read(1)

    async with gateway(script, upstream_idle_timeout_s=0.1) as rig:
        assert (await rig.ask(get())).cut
        assert await rig.charged() == []


async def test_an_api_that_closes_what_connects_is_a_502_and_costs_nothing(gateway: Any) -> None:
    async with gateway(absent) as rig:
        assert (await rig.ask(get())).status == 502
        assert await rig.charged() == []


# What the client may do


@pytest.mark.parametrize(("status", "charged"), [(200, [499]), (404, []), (503, [])])
async def test_a_client_that_is_gone_before_the_answer_pays_by_the_answers_status(
    gateway: Any, status: int, charged: list[int]
) -> None:
    proceed = asyncio.Event()

    async def script(talk: Conversation) -> None:
        await talk.request()
        await proceed.wait()
        await talk.send(length(status=b"%d X" % status))

    async with gateway(script) as rig:
        wire = await rig.connect()
        await wire.send(get())
        await rig.until(lambda: rig.api.requests)
        wire.reset()
        await rig.until(lambda: rig.gateway.context.detached)
        proceed.set()
        assert await rig.charged() == charged
        await rig.until(lambda: [line["status"] for line in rig.log] == [499])


async def test_a_client_that_is_gone_costs_nothing_if_the_api_never_answers(gateway: Any) -> None:
    async with gateway(silent, response_timeout_s=0.2) as rig:
        wire = await rig.connect()
        await wire.send(get())
        await rig.until(lambda: rig.api.requests)
        wire.reset()
        await rig.until(lambda: rig.gateway.context.detached)
        assert await rig.charged() == []


async def test_a_client_that_goes_away_in_the_middle_of_the_answer_pays(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        await talk.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nfirst")
        await talk.reader.read()

    async with gateway(script) as rig:
        wire = await rig.connect()
        await wire.send(get())
        await wire.head()
        wire.reset()
        await rig.until(lambda: not rig.gateway.connections)
        assert await rig.charged() == [499]


async def test_a_client_that_takes_all_but_the_end_of_the_answer_pays(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        await talk.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n")
        for _ in range(50):
            await talk.send(bytes(1_000_000))

    async with gateway(script, write_timeout_s=0.3) as rig:
        wire = await rig.connect(receive_bytes=8192)
        await wire.send(get())
        await wire.head()
        await rig.until(lambda: not rig.gateway.connections)
        assert await rig.charged() == [499]


async def test_a_client_cannot_undo_a_charge_with_a_malformed_end_of_its_body(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        await talk.head()
        await talk.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nfirst")
        await talk.reader.read()

    async with gateway(script, default=UNBUFFERED) as rig:
        wire = await rig.connect()
        await wire.send(get(b"/p", b"Transfer-Encoding: chunked", method=b"POST") + b"1\r\nx\r\n")
        assert (await wire.head()).status == 200
        await wire.send(b"nonsense\r\n")
        await wire.ended()
        assert await rig.charged() == [499]


@pytest.mark.parametrize("end", ["reset", "close"])
async def test_a_client_that_goes_away_before_its_body_is_gathered_pays_nothing(gateway: Any, end: str) -> None:
    async with gateway(echo) as rig:
        wire = await rig.connect()
        await wire.send(get(b"/p", b"Content-Length: 100", method=b"POST") + b"part")
        await rig.until(lambda: rig.gateway.context.bodies.used)
        getattr(wire, end)()
        await rig.until(lambda: not rig.gateway.connections)
        assert await rig.charged() == []
        assert [line["status"] for line in rig.log] == [499]
        assert not rig.api.connections
        assert not rig.gateway.context.bodies.used


def break_chunk(wire: Any) -> None:
    wire.writer.write(b"nonsense\r\n")


BREAKS: dict[str, Callable[[Any], None]] = {
    "reset": lambda wire: wire.reset(),
    "close": lambda wire: wire.close(),
    "half close": lambda wire: wire.half_close(),
    "broken chunk": break_chunk,
    "silence": lambda wire: None,
}


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize(
    ("answer", "charged"),
    [
        (length(b"done"), [499]),
        (length(status=b"400 No"), [499]),
        (length(status=b"500 Oh"), []),
        (b"", [499]),
        (b"nonsense", [499]),
    ],
    ids=["200", "400", "500", "closed", "nonsense"],
)
async def test_a_client_that_breaks_off_a_body_that_the_api_had_in_part_pays_unless_the_api_failed(
    gateway: Any, how: str, answer: bytes, charged: list[int]
) -> None:
    reached = asyncio.Event()

    async def script(talk: Conversation) -> None:
        await talk.head()
        reached.set()
        with suppress(asyncio.IncompleteReadError):
            await talk.reader.readexactly(10_000_000)
        await talk.send(answer)

    start = b"10001\r\n" + bytes(0x10001) + b"\r\n"
    async with gateway(script, body_timeout_s=0.2) as rig:
        wire = await rig.connect()
        await wire.send(get(b"/p", b"Transfer-Encoding: chunked", method=b"POST") + start)
        await rig.until(reached.is_set)  # an accepted connection is no call yet
        BREAKS[how](wire)
        assert await rig.charged() == charged
        await rig.until(lambda: [line["status"] for line in rig.log] == [499])
        if how in ("broken chunk", "silence"):
            assert (await wire.response()).status == {"silence": 408, "broken chunk": 400}[how]


@pytest.mark.parametrize(("status", "charged"), [(b"404 No", [499]), (b"500 Oh", [])])
async def test_an_answer_that_cannot_be_passed_on_does_not_free_a_client_that_broke_its_body_off(
    gateway: Any, status: bytes, charged: list[int]
) -> None:
    reached = asyncio.Event()

    async def script(talk: Conversation) -> None:
        await talk.head()
        reached.set()
        with suppress(asyncio.IncompleteReadError):
            await talk.reader.readexactly(1000)
        await talk.send(length(b"", b"X-Echo: a\x01b", status=status))

    async with gateway(script, default=UNBUFFERED) as rig:
        wire = await rig.connect()
        await wire.send(get(b"/p", b"Content-Length: 1000", method=b"POST") + b"a")
        await rig.until(reached.is_set)  # an accepted connection is no call yet
        wire.half_close()
        assert await rig.charged() == charged


async def test_a_client_that_leaves_interim_responses_behind_pays_by_the_answers_status(gateway: Any) -> None:
    proceed = asyncio.Event()

    async def script(talk: Conversation) -> None:
        await talk.request()
        await proceed.wait()
        await talk.send(length(b"done"))
        await talk.reader.read()

    async with gateway(script, response_timeout_s=1.0) as rig:
        wire = await rig.connect()
        await wire.send(get())
        await rig.until(lambda: rig.api.requests)
        (connection,) = rig.gateway.connections
        connection.pause_writing()  # as interim responses do that it does not take
        wire.reset()
        await rig.until(lambda: rig.gateway.context.detached)
        proceed.set()
        assert await rig.charged() == [499]


async def test_a_client_that_was_behind_before_the_answer_is_not_why_the_api_breaks_it_off(gateway: Any) -> None:
    async with gateway(silent) as rig:
        wire = await rig.connect()
        await wire.send(get())
        await rig.until(lambda: rig.api.requests)
        (connection,) = rig.gateway.connections
        relay = connection.relay
        connection.pause_writing()  # as interim responses do
        relay.upstream.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart")  # came with them
        connection.resume_writing()
        relay.upstream.transport.abort()
        await wire.ended()
        assert await rig.charged() == []


async def test_a_client_that_breaks_off_a_body_pays_if_the_api_says_nothing_in_time(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        await talk.head()
        await asyncio.sleep(60)

    async with gateway(script, default=UNBUFFERED, response_timeout_s=0.2) as rig:
        wire = await rig.connect()
        await wire.send(get(b"/p", b"Content-Length: 1", method=b"DELETE"))
        await rig.until(lambda: any(c.relay is not None and c.relay.sent for c in rig.gateway.connections))
        wire.reset()
        assert await rig.charged() == [499]


@pytest.mark.parametrize(
    "lines",
    [(b"Content-Length: 1",), (b"Transfer-Encoding: chunked",), (b"Content-Length: 1", b"Expect: 100-continue")],
)
async def test_the_api_hears_nothing_of_a_body_that_does_not_come(gateway: Any, lines: tuple[bytes, ...]) -> None:
    async with gateway(echo, body_timeout_s=0.1) as rig:
        wire = await rig.connect()
        await wire.send(get(b"/p", *lines, method=b"DELETE"))
        assert (await wire.response()).status == 408
        assert not rig.api.connections
        assert await rig.charged() == []


async def test_an_api_that_gives_up_an_answer_that_the_client_does_not_take_is_paid(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        await talk.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n")
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await talk.send(bytes(50_000_000))
        talk.reset()

    async with gateway(script) as rig:
        wire = await rig.connect(receive_bytes=65_536)
        await wire.send(get())
        await wire.head()
        await rig.until(lambda: not rig.api.open)
        await asyncio.sleep(1.1)  # the client looks away for so long, and then takes what the gateway has
        with suppress(ConnectionError):
            await wire.ended()
        assert await rig.charged() == [499]


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_a_stream_of_events_may_be_silent_for_long_and_is_charged_when_it_is_cut(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        await talk.answer(STREAM)
        for pause in (0.3, 0.0):
            await talk.send(b"5\r\nevent\r\n")
            await asyncio.sleep(pause)
        await talk.reader.read()

    async with gateway(script, upstream_idle_timeout_s=0.1, stream_idle_timeout_s=0.6) as rig:
        answer = await rig.ask(get())
        assert (answer.cut, answer.body) == (True, b"eventevent")
        assert await rig.charged() == [200]


async def test_a_client_that_leaves_a_silent_stream_is_noticed(gateway: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.gateway.exchange.answer.LEFT_STREAM_S", 0.1)

    async def script(talk: Conversation) -> None:
        await talk.answer(STREAM + b"5\r\nevent\r\n")
        await talk.reader.read()

    async with gateway(script) as rig:
        wire = await rig.connect()
        await wire.send(get())
        await wire.head()
        wire.half_close()
        await rig.until(lambda: not rig.gateway.connections)
        assert await rig.charged() == [499]


async def test_a_client_that_leaves_before_the_switch_to_another_protocol_pays_for_it(gateway: Any) -> None:
    proceed = asyncio.Event()

    async def script(talk: Conversation) -> None:
        await talk.request()
        await proceed.wait()
        await talk.send(b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        await talk.reader.read()

    async with gateway(script) as rig:
        wire = await rig.connect()
        await wire.send(get(b"/ws", b"Connection: Upgrade", b"Upgrade: websocket"))
        await rig.until(lambda: rig.api.requests)
        wire.reset()
        await rig.until(lambda: rig.gateway.context.detached)
        proceed.set()
        assert await rig.charged() == [499]


async def test_a_client_that_is_gone_before_a_connection_to_the_api_is_had_pays_nothing(gateway: Any) -> None:
    proceed = asyncio.Event()

    async def script(talk: Conversation) -> None:
        await talk.request()
        await proceed.wait()
        await talk.send(length())

    async with gateway(script, upstream_connections_max=1) as rig:
        first, second = await rig.connect(), await rig.connect()
        await first.send(get())
        await rig.until(lambda: rig.api.requests)
        await second.send(get(b"/second"))
        await rig.until(lambda: rig.pool.waiting)
        second.reset()
        await rig.until(lambda: not rig.pool.waiting)
        proceed.set()
        assert (await first.response()).status == 200
        assert await rig.charged() == [200]


async def test_a_client_that_half_closes_gets_its_answers(gateway: Any) -> None:
    async with gateway(echo) as rig:
        wire = await rig.connect()
        await wire.send(get(b"/1") + post(b"two", target=b"/2") + get(b"/3"))
        wire.half_close()
        starts = [(await wire.response()).get(b"X-Start") for _ in range(3)]
        assert starts == [b"GET /1 HTTP/1.1", b"POST /2 HTTP/1.1", b"GET /3 HTTP/1.1"]
        assert await wire.ended() == b""
        assert await rig.charged() == [200, 200, 200]


async def test_a_client_that_half_closes_hears_every_refusal(gateway: Any) -> None:
    async with gateway(echo) as rig:
        wire = await rig.connect()
        await wire.send(get(key=b"") * 5 + get())
        wire.half_close()
        assert [(await wire.response()).status for _ in range(6)] == [401] * 5 + [200]
        assert await wire.ended() == b""


async def test_a_plan_without_a_price_is_a_403(gateway: Any) -> None:
    only_payments = account(prices={"payments": Standard(Decimal(1))})
    async with gateway(echo, accounts=[only_payments]) as rig:
        assert (await rig.ask(get())).status == 403
        assert (await rig.ask(chunked_post())).status == 403
        assert not rig.api.requests


def chunked_post() -> bytes:
    return get(b"/p", b"Transfer-Encoding: chunked", method=b"POST") + chunked(b"abc")
