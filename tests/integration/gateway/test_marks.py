"""What a request says of its way: its interaction id, its trace, the gateways before this one, how many may follow."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from sidecar.gateway.addresses import Addresses
from sidecar.gateway.http1.limits import Limits
from sidecar.gateway.parameters import UpstreamTarget
from sidecar.gateway.routes import Route
from tests.integration.gateway.api import Conversation, Script, always, echo, length
from tests.integration.gateway.rig import HOST, KEY, account, get, post, route
from tests.integration.gateway.wire import Message

ID = b"x-fapi-interaction-id"
DIALECTS = [("problem", ID), ("obie", ID), ("berlin_group", b"x-request-id")]


def is_uuid(value: bytes | None) -> bool:
    assert value is not None
    return uuid.UUID(value.decode()).version == 4 and str(uuid.UUID(value.decode())) == value.decode()


async def play_back(talk: Conversation) -> None:
    """Answers with every field of the request, as FAPI asks for one of them."""
    while True:
        request = await talk.request()
        lines = [line for line in request.lines if not line.lower().startswith((b"content-", b"host", b"connection"))]
        await talk.send(length(request.body, *lines))


# Interaction ids


@pytest.mark.parametrize(("dialect", "field"), DIALECTS)
async def test_an_id_is_made_when_it_is_missing_and_is_everywhere(gateway: Any, dialect: str, field: bytes) -> None:
    async with gateway(always(length()), error_format=dialect) as rig:
        answer = await rig.ask(get())
        made = answer.get(field)
        assert is_uuid(made)
        assert rig.api.requests[0].get(field) == made
        [event] = await rig.whole_events()
        assert (event[7], rig.log[0]["interaction_id"]) == (made.decode(), made.decode())


@pytest.mark.parametrize(("dialect", "field"), DIALECTS)
async def test_an_id_of_the_caller_is_kept(gateway: Any, dialect: str, field: bytes) -> None:
    async with gateway(always(length()), error_format=dialect) as rig:
        answer = await rig.ask(get(b"/a", field.upper() + b": mine"))
        assert answer.get(field) == b"mine"
        assert rig.api.requests[0].get(field) == b"mine"
        [event] = await rig.whole_events()
        assert (event[7], rig.log[0]["interaction_id"]) == ("mine", "mine")


@pytest.mark.parametrize(("dialect", "field"), DIALECTS)
@pytest.mark.parametrize("given", [b"", b"mine"])
async def test_an_id_of_the_api_is_taken_over(gateway: Any, dialect: str, field: bytes, given: bytes) -> None:
    async with gateway(always(length(b"ok", field.title() + b":  theirs ")), error_format=dialect) as rig:
        answer = await rig.ask(get(b"/a", *([field + b": " + given] if given else [])))
        assert answer.get(field) == b"theirs"
        [event] = await rig.whole_events()
        assert (event[7], rig.log[0]["interaction_id"]) == ("theirs", "theirs")


@pytest.mark.parametrize(
    "lines", [(b"x-fapi-interaction-id:",), (b"x-fapi-interaction-id: a", b"x-fapi-interaction-id: a")]
)
async def test_an_answer_with_no_id_or_two_gets_one(gateway: Any, lines: tuple[bytes, ...]) -> None:
    async with gateway(always(length(b"ok", *lines, b"A: 1"))) as rig:
        answer = await rig.ask(get(b"/a", b"x-fapi-interaction-id: mine"))
        assert (answer.get(ID), answer.get(b"A")) == (b"mine", b"1")


async def test_an_id_without_a_value_is_as_good_as_none(gateway: Any) -> None:
    async with gateway(always(length())) as rig:
        answer = await rig.ask(get(b"/a", b"x-fapi-interaction-id: "))
        assert is_uuid(answer.get(ID))
        assert rig.api.requests[0].get(ID) == answer.get(ID)


@pytest.mark.parametrize(
    "value",
    [b"x" * 32_657, b"x" * 129, b"a b", b"a\tb", b"caf\xe9", b"\xff"],
    ids=["32,657 bytes", "129 bytes", "a space", "a tab", "latin-1", "no text"],
)
@pytest.mark.parametrize("dialect", ["problem", "berlin_group"])
async def test_an_unfit_id_is_refused_and_the_api_hears_nothing(gateway: Any, value: bytes, dialect: str) -> None:
    async with gateway(play_back, error_format=dialect, limits=Limits(head_bytes_max=65_536)) as rig:
        for field in {ID, dict(DIALECTS)[dialect]}:
            answer = await rig.ask(post(b"{}", field + b": " + value))
            assert answer.status == 400
            assert field in answer.body
            made = answer.all(dict(DIALECTS)[dialect])
            assert len(made) == 1
            assert is_uuid(made[0]) or made == [value]
        assert rig.api.requests == []
        assert await rig.charged() == []


async def test_two_ids_are_refused(gateway: Any) -> None:
    async with gateway(echo) as rig:
        assert (await rig.ask(get(b"/a", b"x-fapi-interaction-id: a", b"X-FAPI-Interaction-Id: a"))).status == 400


@pytest.mark.parametrize("bytes_", [1, 36, 128])
async def test_an_id_up_to_the_limit_passes(gateway: Any, bytes_: int) -> None:
    async with gateway(play_back) as rig:
        answer = await rig.ask(post(b"{}", b"x-fapi-interaction-id: " + b"x" * bytes_))
        assert (answer.status, answer.get(ID)) == (200, b"x" * bytes_)


REFUSED: dict[str, tuple[int, bytes, Script]] = {
    "no key": (401, get(b"/a", key=b""), echo),
    "no such route": (404, get(b"/nowhere"), echo),
    "an odd path": (400, get(b"/a//b"), echo),
    "no method": (501, get(method=b"TRACE"), echo),
    "a large body": (413, b"POST /a HTTP/1.1\r\n" + HOST + KEY + b"Content-Length: 99999999\r\n\r\n", echo),
    "no head": (400, b"nonsense\r\n\r\n", echo),
    "no host": (400, b"GET / HTTP/1.1\r\n\r\n", echo),
    "no credit": (402, get(b"/a", key=b"X-API-Key: this-is-the-key-of-poor\r\n"), echo),
    "no answer": (502, get(b"/a"), always(b"nonsense\r\n\r\n")),
}


@pytest.mark.parametrize(("status", "request_", "script"), REFUSED.values(), ids=REFUSED)
async def test_every_refusal_has_an_id_that_the_log_has_too(
    gateway: Any, status: int, request_: bytes, script: Script
) -> None:
    accounts = [account("tpp"), account("poor", "prepaid")]
    options: dict[str, Any] = {"routes": [route("/a/**")], "default": Route("(other)", deny=True)}
    async with gateway(script, accounts=accounts, **options) as rig:
        answer = await rig.ask(request_)
        assert answer.status == status
        assert is_uuid(answer.get(ID))
        assert rig.log[-1]["interaction_id"].encode() == answer.get(ID)
        if request_.endswith(b"\r\n\r\n") and request_.count(b"\r\n") > 3:
            answer = await rig.ask(request_[:-2] + b"x-fapi-interaction-id: mine\r\n\r\n")
            assert (answer.status, answer.get(ID), rig.log[-1]["interaction_id"]) == (status, b"mine", "mine")


async def test_who_finds_no_room_gets_an_id_too(gateway: Any) -> None:
    async with gateway(echo, connections_max=1) as rig:
        await rig.connect()
        await rig.until(lambda: rig.gateway.connections)
        answer = await rig.ask(get())
        assert answer.status == 503
        assert is_uuid(answer.get(ID))


async def test_ids_differ_and_stay_with_their_request_on_one_connection(gateway: Any) -> None:
    async with gateway(play_back) as rig:
        wire = await rig.connect()
        seen = set()
        for _ in range(600):
            await wire.send(get())
            seen.add((await wire.response()).get(ID))
        assert len(seen) == 600
        assert {request.get(ID) for request in rig.api.requests} == seen


@pytest.mark.parametrize("method", [b"HEAD", b"OPTIONS"])
async def test_answers_without_a_body_have_an_id(gateway: Any, method: bytes) -> None:
    async with gateway(always(b"HTTP/1.1 204 No Content\r\n\r\n")) as rig:
        assert is_uuid((await rig.ask(get(method=method))).get(ID))


# Answers that repeat the request


COOKIES = b"; ".join(b"c%d=" % number for number in range(3_000))
REPEATED: dict[str, tuple[bytes, Callable[[Message], list[bytes]]]] = {
    "all of it": (b"X-A: " + b"a" * 32_000, lambda m: m.lines[1:]),
    "all of it in one field, escaped": (
        b"X-A: " + b" " * 100 + b"\xe9" * 31_000,
        lambda m: [b"Location: /" + (m.get(b"X-A") or b"").hex("%").encode()],
    ),
    "all of it, eight times": (b"X-A: " + b"a" * 32_000, lambda m: m.lines[1:] * 8),
    "cookies that are deleted": (
        b"Cookie: " + COOKIES,
        lambda m: [b"Set-Cookie: %b; Max-Age=0; Path=/; Secure; HttpOnly" % c for c in COOKIES.split(b"; ")],
    ),
}


@pytest.mark.parametrize(("line", "repeat"), REPEATED.values(), ids=REPEATED)
async def test_an_answer_that_repeats_the_request_is_passed_on_and_charged(
    gateway: Any, line: bytes, repeat: Callable[[Message], list[bytes]]
) -> None:
    async def script(talk: Conversation) -> None:
        while True:
            request = await talk.request()
            lines = [each for each in repeat(request) if not each.lower().startswith(b"content-length")]
            await talk.send(length(b"done", *lines))

    async with gateway(script) as rig:
        answer = await rig.ask(post(b"{}", line))
        assert (answer.status, answer.body) == (200, b"done")
        assert await rig.charged() == [200]


# Traces

TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
GOOD_TRACES = [
    TRACE, TRACE[:-1] + b"0", b"cc" + TRACE[2:], b"cc" + TRACE[2:] + b"-what-comes-later",
    b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-ff",
]  # fmt: skip
BAD_TRACES = [
    b"", b"00-a-b-01", b"ff" + TRACE[2:], TRACE + b"-more", TRACE.upper(), b"00-" + b"0" * 32 + TRACE[35:],
    TRACE[:36] + b"0" * 16 + TRACE[52:], TRACE + b" ", b"x" * 30_000, b"cc" + TRACE[2:] + b"-" + b"x" * 30_000,
    TRACE[:-1], TRACE + b"0", b"cc" + TRACE[2:] + b"x", TRACE.replace(b"-", b"_"), TRACE + b", " + TRACE, b"\xff" * 55,
]  # fmt: skip


@pytest.mark.parametrize("trace", GOOD_TRACES)
async def test_a_valid_trace_goes_on_as_it_is(gateway: Any, trace: bytes) -> None:
    async with gateway(always(length())) as rig:
        await rig.ask(get(b"/a", b"Traceparent: " + trace, b"tracestate: a=1", b"tracestate: b=2"))
        [arrived] = rig.api.requests
        assert (arrived.get(b"traceparent"), arrived.all(b"tracestate")) == (trace, [b"a=1", b"b=2"])
        [event] = await rig.whole_events()
        assert (event[8], rig.log[0]["traceparent"]) == (trace.decode(), trace.decode())


@pytest.mark.parametrize("trace", [trace for trace in BAD_TRACES if trace.strip() == trace], ids=lambda t: t[:60].hex())
async def test_an_invalid_trace_is_begun_anew(gateway: Any, trace: bytes) -> None:
    async with gateway(always(length())) as rig:
        answer = await rig.ask(get(b"/a", b"Traceparent: " + trace, b"tracestate: a=1", b"X-A: 1"))
        [arrived] = rig.api.requests
        begun = arrived.get(b"traceparent")
        assert begun is not None
        assert re.fullmatch(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-01", begun)
        assert begun != TRACE
        assert (answer.status, arrived.all(b"tracestate"), arrived.get(b"X-A")) == (200, [], b"1")
        [event] = await rig.whole_events()
        assert (event[8], rig.log[0]["traceparent"]) == (begun.decode(), begun.decode())


async def test_two_traces_are_none(gateway: Any) -> None:
    async with gateway(always(length())) as rig:
        await rig.ask(get(b"/a", b"traceparent: " + TRACE, b"traceparent: " + TRACE))
        begun = rig.api.requests[0].get(b"traceparent")
        assert begun != TRACE


async def test_no_trace_is_made_where_there_is_none(gateway: Any) -> None:
    async with gateway(always(length())) as rig:
        await rig.ask(get())
        assert rig.api.requests[0].all(b"traceparent") == []


# Loops


async def test_a_request_that_comes_back_is_refused_and_not_charged(gateway: Any) -> None:
    async with gateway(echo) as rig:
        # The gateway is its own API.
        rig.pool._addresses = Addresses("127.0.0.1", rig.port)
        answer = await rig.ask(get(b"/a"))
        assert answer.status == 508
        assert await rig.charged() == []
        assert is_uuid(answer.get(ID))


async def test_two_gateways_in_a_row_are_no_loop(gateway: Any) -> None:
    async with gateway(always(length()), default=Route("(other)", free=True)) as inner:
        target = UpstreamTarget(port=inner.port)
        async with gateway(echo, upstream=target, default=Route("(other)", free=True)) as outer:
            answer = await outer.ask(get(b"/a"))
            assert answer.status == 200
            [arrived] = inner.api.requests
            ids = [each.gateway.context.gateway_id for each in (outer, inner)]
            assert arrived.all(b"X-Quota-Sidecar-Hops") == ids
            assert answer.all(b"X-Quota-Sidecar-Hops") == []
            # A TPP's id is that of the gateway before: both log the same one.
            assert inner.log[0]["interaction_id"] == outer.log[0]["interaction_id"]


@pytest.mark.parametrize(("hops", "status"), [(1, 200), (7, 200), (8, 508), (100, 508)])
async def test_a_chain_of_gateways_has_a_bounded_length(gateway: Any, hops: int, status: int) -> None:
    async with gateway(echo) as rig:
        value = b", ".join(b"%016x" % number for number in range(hops))
        for line in (b"X-Quota-Sidecar-Hops: " + value, b"x-quota-sidecar-hops: " + value.replace(b" ", b"")):
            assert (await rig.ask(get(b"/a", line))).status == status


@pytest.mark.parametrize("value", [b"", b"x", b"a" * 15, b"a" * 17, b"A" * 16, b"a" * 16 + b",", b"x" * 20_000])
async def test_what_is_no_list_of_gateways_does_not_go_on(gateway: Any, value: bytes) -> None:
    async with gateway(echo) as rig:
        assert (await rig.ask(get(b"/a", b"X-Quota-Sidecar-Hops: " + value))).status == 200
        assert rig.api.requests[0].all(b"X-Quota-Sidecar-Hops") == [rig.gateway.context.gateway_id]


async def test_a_caller_cannot_take_the_mark_of_a_loop_off(gateway: Any) -> None:
    async with gateway(echo) as rig:
        assert (await rig.ask(get(b"/a", b"Connection: X-Quota-Sidecar-Hops"))).status == 400
        assert (await rig.ask(get(b"/a", b"X_Quota_Sidecar_Hops: 1"))).status == 400


# Max-Forwards


@pytest.mark.parametrize("target", [b"*", b"/accounts", b"http://api.bank.example"])
async def test_options_that_may_not_be_forwarded_are_answered_here(gateway: Any, target: bytes) -> None:
    async with gateway(echo) as rig:
        wire = await rig.connect()
        for _ in range(2):
            await wire.send(get(target, b"Max-Forwards: 0", method=b"OPTIONS"))
            answer = await wire.response()
            assert (answer.status, answer.body, answer.get(b"Content-Length")) == (200, b"", b"0")
            assert b"GET" in (answer.get(b"Allow") or b"").split(b", ")
            assert is_uuid(answer.get(ID))
        assert rig.api.requests == []
        assert await rig.charged() == []
        await wire.send(get())
        assert (await wire.response()).status == 200


async def test_options_with_a_body_that_end_here_end_the_connection(gateway: Any) -> None:
    async with gateway(echo) as rig:
        wire = await rig.connect()
        await wire.send(get(b"/a", b"Max-Forwards: 00", b"Content-Length: 5", method=b"OPTIONS") + b"GET /")
        answer = await wire.response()
        assert (answer.status, answer.get(b"Connection")) == (200, b"close")
        assert await wire.ended() == b""


@pytest.mark.parametrize(("given", "left"), [(b"1", b"0"), (b"010", b"9"), (b"9" * 18, b"999999999")])
async def test_max_forwards_counts_down(gateway: Any, given: bytes, left: bytes) -> None:
    async with gateway(always(length())) as rig:
        assert (await rig.ask(get(b"/a", b"MAX-forwards: " + given, method=b"OPTIONS"))).status == 200
        assert rig.api.requests[0].get(b"Max-Forwards") == left


@pytest.mark.parametrize("given", [b"", b"-1", b"1.5", b"x", b"1, 1", b"9" * 19])
async def test_a_max_forwards_that_is_no_number_is_refused(gateway: Any, given: bytes) -> None:
    async with gateway(echo) as rig:
        assert (await rig.ask(get(b"/a", b"Max-Forwards: " + given, method=b"OPTIONS"))).status == 400


async def test_max_forwards_means_nothing_to_other_methods(gateway: Any) -> None:
    async with gateway(always(length())) as rig:
        for given in (b"0", b"x"):
            assert (await rig.ask(get(b"/a", b"Max-Forwards: " + given))).status == 200
        assert [request.get(b"Max-Forwards") for request in rig.api.requests] == [b"0", b"x"]
