"""Who pays, and for what: every way in which a request can end."""

from __future__ import annotations

import asyncio
import json
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


@pytest.mark.parametrize("status", [200, 201, 204, 301, 304, 400, 404, 409, 429, 499])
async def test_an_answer_below_500_is_charged_once(gateway: Any, status: int) -> None:
    async with gateway(always(b"HTTP/1.1 %d Whatever\r\nContent-Length: 0\r\n\r\n" % status)) as rig:
        assert (await rig.ask(get())).status == status
        assert await rig.events() == [("tpp", "api_calls", 1, "(other)", "GET", status)]


@pytest.mark.parametrize("status", [500, 502, 503, 504, 599])
async def test_an_answer_of_500_or_more_is_forwarded_and_not_charged(gateway: Any, status: int) -> None:
    async with gateway(always(length(b"why", b"Retry-After: 7", status=b"%d Oh" % status))) as rig:
        answer = await rig.ask(get())
        assert (answer.status, answer.body, answer.get(b"Retry-After")) == (status, b"why", b"7")
        assert await rig.charged() == []


TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


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
        b"HTTP/1.1 200 OK\r\nX: a\r\n folded\r\n\r\n", b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
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
    "said",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\nxyz\r\n",
    ],
)
async def test_an_answer_that_breaks_off_cuts_the_client_and_costs_nothing(gateway: Any, said: bytes) -> None:
    async with gateway(once(said)) as rig:
        assert (await rig.ask(get())).cut
        assert await rig.charged() == []
        assert rig.gateway.context.counters.upstream_aborts == 1


async def test_an_answer_that_breaks_off_resets_a_client_that_would_take_a_close_for_its_end(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        await talk.answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n")
        await talk.reader.read(1)

    async with gateway(script, upstream_idle_timeout_s=0.1) as rig:
        wire = await rig.connect()
        await wire.send(get().replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert (await wire.head()).status == 200
        assert await wire.was_reset()


async def test_an_api_that_does_not_answer_in_time_is_a_504_and_costs_nothing(gateway: Any) -> None:
    async with gateway(silent, response_timeout_s=0.1) as rig:
        for request in (get(), post(b"abc")):
            assert (await rig.ask(request)).status == 504
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


@pytest.mark.parametrize(("status", "charged"), [(200, [499]), (404, [499]), (503, [])])
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

    async with gateway(script) as rig:
        wire = await rig.connect()
        await wire.send(get(b"/p", b"Transfer-Encoding: chunked", method=b"POST") + b"1\r\nx\r\n")
        assert (await wire.head()).status == 200
        await wire.send(b"nonsense\r\n")
        await wire.ended()
        assert await rig.charged() == [499]


@pytest.mark.parametrize("end", ["reset", "close"])
async def test_a_client_that_goes_away_in_the_middle_of_its_body_pays_nothing(gateway: Any, end: str) -> None:
    async def script(talk: Conversation) -> None:
        await talk.head()
        await talk.reader.read()

    async with gateway(script) as rig:
        wire = await rig.connect()
        await wire.send(get(b"/p", b"Content-Length: 100", method=b"POST") + b"part")
        await rig.until(lambda: rig.api.open)
        getattr(wire, end)()
        await rig.until(lambda: not rig.gateway.connections and not rig.api.open)
        assert await rig.charged() == []
        assert [line["status"] for line in rig.log] == [499]


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


# One call under one key


@pytest.mark.parametrize("name", [b"x-idempotency-key", b"Idempotency-Key"])
async def test_a_repetition_under_one_key_is_forwarded_and_not_charged(gateway: Any, name: bytes) -> None:
    async with gateway(echo) as rig:
        first = await rig.ask(post(b"a", name + b": one"))
        again = await rig.ask(post(b"a", name + b": one"))
        other = await rig.ask(post(b"a", name + b": two"))
        assert [a.get(b"X-Credits-Repeat") for a in (first, again, other)] == [None, b"true", None]
        assert [a.body for a in (first, again, other)] == [b"a"] * 3
        assert len(await rig.charged()) == 2


async def test_a_key_is_good_for_one_method_one_target_and_one_account(gateway: Any) -> None:
    two = [account("tpp"), account("other")]
    async with gateway(echo, accounts=two) as rig:
        for request in (
            post(b"", b"x-idempotency-key: k"),
            post(b"", b"x-idempotency-key: k", target=b"/elsewhere"),
            post(b"", b"x-idempotency-key: k", method=b"PUT"),
            post(b"", b"x-idempotency-key: k").replace(b"key-of-tpp", b"key-of-other"),
        ):
            assert (await rig.ask(request)).get(b"X-Credits-Repeat") is None
        assert len(await rig.charged()) == 4


async def test_a_call_that_failed_is_charged_when_it_is_tried_again(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        await talk.answer(length(status=b"503 No"))
        await talk.answer(length())
        await talk.answer(length())

    async with gateway(script) as rig:
        answers = [await rig.ask(post(b"", b"x-idempotency-key: k")) for _ in range(3)]
        assert [a.status for a in answers] == [503, 200, 200]
        assert answers[2].get(b"X-Credits-Repeat") == b"true"
        assert await rig.charged() == [200]


async def test_a_get_is_charged_every_time_whatever_key_it_carries(gateway: Any) -> None:
    async with gateway(echo) as rig:
        for _ in range(2):
            await rig.ask(get(b"/a", b"x-idempotency-key: k"))
        assert await rig.charged() == [200, 200]


async def test_two_that_race_under_one_key_are_charged_once(gateway: Any) -> None:
    async with gateway(echo) as rig:
        answers = await asyncio.gather(*(rig.ask(post(b"", b"x-idempotency-key: k")) for _ in range(10)))
        assert {a.status for a in answers} == {200}
        assert await rig.charged() == [200]


async def test_a_plan_without_a_price_is_a_403(gateway: Any) -> None:
    only_payments = account(prices={"payments": Standard(Decimal(1))})
    async with gateway(echo, accounts=[only_payments]) as rig:
        assert (await rig.ask(get())).status == 403
        assert (await rig.ask(chunked_post())).status == 403
        assert not rig.api.requests


def chunked_post() -> bytes:
    return get(b"/p", b"Transfer-Encoding: chunked", method=b"POST") + chunked(b"abc")
