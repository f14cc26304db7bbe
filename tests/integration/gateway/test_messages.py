"""Interim responses, trailers, pipelining, older versions, and messages without a body."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sidecar.gateway.routes import Route
from tests.integration.gateway.api import Conversation, always, echo, length, once
from tests.integration.gateway.rig import HOST, KEY, account, chunked, get, post

FREE = Route("(other)", free=True)
UNBUFFERED = Route("(other)", buffered=False)
EXPECT = b"Expect: 100-continue"
CHUNKED = b"Transfer-Encoding: chunked"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n"


# Interim responses


async def test_a_client_that_waits_for_100_gets_it_from_the_gateway(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        request = await talk.request()
        assert request.get(b"Expect") is None
        await talk.send(CONTINUE)  # which the client has heard already
        await talk.send(length(request.body))

    async with gateway(script) as rig:
        wire = await rig.connect()
        request = post(b"content", EXPECT)
        await wire.send(request[: -len(b"content")])
        assert (await wire.head()).start == b"HTTP/1.1 100 Continue"
        assert not rig.api.connections
        await wire.send(b"content")
        answer = await wire.response()
        assert (answer.interim, answer.body) == ([], b"content")
        assert await rig.charged() == [200]


async def test_a_client_that_waits_for_100_gets_the_apis_where_bodies_are_not_gathered(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        request = await talk.head()
        assert request.get(b"Expect") == b"100-continue"
        await talk.send(CONTINUE)
        await talk.body(request)
        await talk.send(length(request.body))

    async with gateway(script, default=UNBUFFERED) as rig:
        wire = await rig.connect()
        request = post(b"content", EXPECT)
        await wire.send(request[: -len(b"content")])
        assert (await wire.head()).start == b"HTTP/1.1 100 Continue"
        await wire.send(b"content")
        assert (await wire.response()).body == b"content"
        assert await rig.charged() == [200]


async def test_a_client_that_waits_for_100_is_refused_before_it_sends(gateway: Any) -> None:
    async with gateway(echo, accounts=[account("tpp", "prepaid")]) as rig:
        wire = await rig.connect()
        await wire.send(get(b"/p", EXPECT, b"Content-Length: 1000000", method=b"POST"))
        answer = await wire.response()
        assert (answer.status, answer.get(b"Connection")) == (402, b"close")
        assert await wire.ended() == b""
        assert not rig.api.connections


async def test_a_client_that_does_not_wait_is_answered_all_the_same(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        request = await talk.head()
        await talk.send(CONTINUE)
        await talk.body(request)
        await talk.send(length(request.body))

    async with gateway(script, default=UNBUFFERED) as rig:
        answer = await rig.ask(post(b"content", EXPECT))
        assert [i.status for i in answer.interim] == [100]
        assert answer.body == b"content"


async def test_an_api_that_never_says_100_is_late_not_the_client_that_waits_for_it(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        await talk.head()
        await talk.reader.read()

    async with gateway(script, default=UNBUFFERED, body_timeout_s=0.1, response_timeout_s=0.1) as rig:
        assert (await rig.ask(get(b"/p", EXPECT, b"Content-Length: 9", method=b"POST"))).status == 504


async def test_a_client_that_was_told_to_go_on_and_does_not_is_late(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        await talk.head()
        await talk.send(CONTINUE)
        await talk.reader.read()

    async with gateway(script, default=UNBUFFERED, body_timeout_s=0.1) as rig:
        answer = await rig.ask(get(b"/p", EXPECT, b"Content-Length: 9", method=b"POST"))
        assert [i.status for i in answer.interim] == [100]
        assert answer.status == 408
        assert await rig.charged() == [499]


@pytest.mark.parametrize("pieces", [1, 2], ids=["in one piece", "apart"])
async def test_interim_responses_are_forwarded_in_order_and_charged_with_the_final_one(
    gateway: Any, pieces: int
) -> None:
    said = [HINTS, b"HTTP/1.1 102 Processing\r\n\r\n", HINTS, length(b"ok")]

    async def script(talk: Conversation) -> None:
        await talk.request()
        await talk.send(*(said if pieces > 1 else [b"".join(said)]), apart=pieces > 1)

    async with gateway(script) as rig:
        answer = await rig.ask(get())
        assert [(i.status, i.all(b"Link")) for i in answer.interim] == [
            (103, [b"</a>; rel=preload"]), (102, []), (103, [b"</a>; rel=preload"])
        ]  # fmt: skip
        assert (answer.status, answer.body) == (200, b"ok")
        assert await rig.charged() == [200]


async def test_interim_responses_are_kept_from_a_client_of_http_1_0(gateway: Any) -> None:
    async with gateway(once(HINTS + CONTINUE + length(b"ok"))) as rig:
        answer = await rig.ask(get().replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert (answer.status, answer.interim, answer.body) == (200, [], b"ok")


async def test_hints_reach_the_client_while_it_still_sends(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        request = await talk.head()
        await talk.send(HINTS)
        await talk.body(request)
        await talk.send(length(request.body))

    async with gateway(script, default=UNBUFFERED) as rig:
        wire = await rig.connect()
        await wire.send(get(b"/p", b"Content-Length: 6", method=b"POST") + b"abc")
        assert (await wire.head()).status == 103
        await wire.send(b"def")
        assert (await wire.response()).body == b"abcdef"


# Trailers, chunks


async def test_trailers_pass_in_both_directions(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        request = await talk.request()
        assert request.get(b"TE") == b"trailers"
        assert request.trailers == [b"Content-Digest: sha-256=:a:", b"X-Sum: 1"]
        head = b"HTTP/1.1 200 OK\r\nTrailer: X-Out\r\nTransfer-Encoding: chunked\r\n\r\n"
        await talk.send(head + chunked(request.body, trailers=b"X-Out: 2\r\nServer-Timing: a\r\n"))

    trailers = b"Content-Digest: sha-256=:a:\r\nX-Sum: 1\r\nHost: evil\r\nX-API-Key: b\r\nContent-Length: 3\r\n"
    async with gateway(script) as rig:
        lines = (CHUNKED, b"TE: trailers", b"Trailer: X-Sum")
        answer = await rig.ask(get(b"/p", *lines, method=b"POST") + chunked(b"ab", b"c", trailers=trailers))
        assert answer.body == b"abc"
        assert answer.get(b"Trailer") == b"X-Out"
        assert answer.trailers == [b"X-Out: 2", b"Server-Timing: a"]


async def test_a_chunked_body_passes_however_it_is_cut(gateway: Any) -> None:
    request = get(b"/p", CHUNKED, method=b"POST") + chunked(b"hello ", b"chunked ", b"world", trailers=b"X-T: 1\r\n")
    async with gateway(echo, accounts=[account()]) as rig:
        wire = await rig.connect()
        for size in (1, 7, 1000):
            await wire.send(*(request[i : i + size] for i in range(0, len(request), size)), apart=True)
            assert (await wire.response()).body == b"hello chunked world"
        assert rig.api.requests[0].trailers == [b"X-T: 1"]


# Pipelining


@pytest.mark.parametrize("size", [10_000, 50, 3])
async def test_pipelined_requests_are_answered_in_order(gateway: Any, size: int) -> None:
    requests = [
        get(b"/1"), post(b"two", target=b"/2"), get(b"/p", CHUNKED, method=b"PUT") + chunked(b"th", b"ree"),
        get(b"/4", method=b"HEAD"), get(b"/5", key=b""), get(b"/6"), get(b"/7", b"Connection: close"), get(b"/8"),
    ]  # fmt: skip
    methods = [request.partition(b" ")[0] for request in requests]
    whole = b"".join(requests)
    async with gateway(echo) as rig:
        wire = await rig.connect()
        pieces = [whole[i : i + size] for i in range(0, len(whole), size)]
        sending = asyncio.ensure_future(wire.send(*pieces, apart=size > 10))
        answers = [await wire.response(method) for method in methods[:7]]
        await sending
        assert [a.status for a in answers] == [200, 200, 200, 200, 401, 200, 200]
        assert [a.body for a in answers if a.status == 200] == [b"", b"two", b"three", b"", b"", b""]
        assert await wire.ended() == b""
        assert len(rig.api.requests) == 6
        assert await rig.charged() == [200] * 6


async def test_a_flood_of_pipelined_requests_is_served_to_the_last(gateway: Any) -> None:
    async with gateway(echo, default=FREE) as rig:
        wire = await rig.connect()
        sending = asyncio.ensure_future(wire.send(b"".join(get(b"/%d" % i) for i in range(1000))))
        for i in range(1000):
            assert (await wire.response()).get(b"X-Start") == b"GET /%d HTTP/1.1" % i
        await sending


async def test_what_follows_a_refusal_that_may_go_on_is_served(gateway: Any) -> None:
    async with gateway(echo, accounts=[account("tpp", "prepaid")]) as rig:
        wire = await rig.connect()
        await wire.send(get() + get(key=b"") + get())
        assert [(await wire.response()).status for _ in range(3)] == [402, 401, 402]


# Without a body


@pytest.mark.parametrize(
    ("method", "response"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\n\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"GET", b'HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\nETag: "a"\r\n\r\n'),
        (b"POST", b"HTTP/1.1 205 Reset\r\nContent-Length: 0\r\n\r\n"),
    ],
)
async def test_a_response_without_a_body_leaves_both_connections_usable(
    gateway: Any, method: bytes, response: bytes
) -> None:
    async with gateway(always(response)) as rig:
        wire = await rig.connect()
        for _ in range(3):
            await wire.send(get(method=method))
            answer = await wire.response(b"HEAD")
            assert answer.start == response.partition(b"\r\n")[0]
            announced = b"1000" if b"1000" in response else None
            assert answer.get(b"Content-Length") in (announced, b"0")
        assert rig.api.connections == 1


# Older versions


@pytest.mark.parametrize(
    ("lines", "kept"), [((), False), ((b"Connection: keep-alive",), True), ((b"Connection: close",), False)]
)
async def test_http_1_0_keeps_its_connection_only_if_it_asks(gateway: Any, lines: tuple[bytes], kept: bool) -> None:
    async with gateway(echo) as rig:
        wire = await rig.connect()
        await wire.send(get(b"/1", *lines).replace(b"HTTP/1.1", b"HTTP/1.0"))
        answer = await wire.response()
        assert answer.start == b"HTTP/1.1 200 OK"
        assert answer.get(b"Connection") == (b"keep-alive" if kept else b"close")
        if kept:
            await wire.send(get(b"/2"))
            assert (await wire.response()).status == 200
        else:
            assert await wire.ended() == b""


async def test_http_1_0_gets_a_chunked_answer_without_chunks(gateway: Any) -> None:
    body = chunked(b"hello ", b"world", trailers=b"X-T: 1\r\n")
    said = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body
    async with gateway(always(said)) as rig:
        wire = await rig.connect()
        await wire.send(get(b"/1", b"Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"))
        answer = await wire.response()
        assert (answer.body, answer.get(b"Connection")) == (b"hello world", b"close")
        assert answer.all(b"Transfer-Encoding") == []


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.0 200 OK\r\n\r\nall of it", b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it",
        b"HTTP/1.1 200 OK\r\n\r\nall of it",
    ],
)  # fmt: skip
async def test_an_answer_that_ends_with_its_connection_is_chunked_for_the_client_whose_own_goes_on(
    gateway: Any, said: bytes
) -> None:
    async with gateway(once(said)) as rig:
        wire = await rig.connect()
        for _ in range(2):
            await wire.send(get())
            answer = await wire.response()
            assert (answer.body, answer.get(b"Transfer-Encoding")) == (b"all of it", b"chunked")
        assert await rig.charged() == [200, 200]


@pytest.mark.parametrize(("lines", "connections"), [(b"Connection: keep-alive\r\n", 1), (b"", 2)])
async def test_an_api_of_http_1_0_keeps_its_connection_only_if_it_says_so(
    gateway: Any, lines: bytes, connections: int
) -> None:
    async with gateway(always(b"HTTP/1.0 200 OK\r\n" + lines + b"Content-Length: 2\r\n\r\nok")) as rig:
        wire = await rig.connect()
        for _ in range(2):
            await wire.send(get())
            answer = await wire.response()
            assert (answer.start, answer.body) == (b"HTTP/1.1 200 OK", b"ok")
        assert rig.api.connections == connections


async def test_a_body_on_http_1_0_passes(gateway: Any) -> None:
    async with gateway(echo) as rig:
        answer = await rig.ask(b"POST /p HTTP/1.0\r\n" + HOST + KEY + b"Content-Length: 3\r\n\r\nabc")
        assert answer.body == b"abc"


# Answers before the end of the request


async def test_an_answer_before_the_end_of_the_body_reaches_the_client_and_ends_both_connections(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        talk.api.requests.append(await talk.head())
        await talk.send(length(b"too much", status=b"413 Content Too Large"))
        await talk.reader.read()

    async with gateway(script, default=UNBUFFERED) as rig:
        wire = await rig.connect()
        await wire.send(get(b"/p", b"Content-Length: 1000000", method=b"POST") + b"first part")
        answer = await wire.response()
        assert (answer.status, answer.body, answer.get(b"Connection")) == (413, b"too much", b"close")
        await wire.send(bytes(500_000))  # a client that goes on sending must not lose the answer to a reset
        assert await wire.ended() == b""
        await rig.until(lambda: not rig.api.open)
        assert await rig.charged() == []


async def test_an_answer_while_the_body_is_still_sent_goes_on_with_it(gateway: Any) -> None:
    async def script(talk: Conversation) -> None:
        request = await talk.head()
        await talk.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(int(request.get(b"Content-Length") or 0)):
            await talk.send(b"1\r\n" + await talk.reader.readexactly(1) + b"\r\n")
        await talk.send(b"0\r\n\r\n")

    async with gateway(script, default=UNBUFFERED) as rig:
        wire = await rig.connect()
        await wire.send(get(b"/p", b"Content-Length: 5", method=b"POST"))
        head = await wire.head()
        for byte in (b"h", b"e", b"l", b"l", b"o"):
            await wire.send(byte)
            assert await wire.reader.readexactly(6) == b"1\r\n" + byte + b"\r\n"
        assert (head.status, await wire.ended()) == (200, b"0\r\n\r\n")
