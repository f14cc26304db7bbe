"""What the gateway leaves as it is, what it takes out and what it adds."""

from __future__ import annotations

import re
from typing import Any

import pytest

from sidecar.gateway.http1.limits import Limits
from sidecar.gateway.routes import Route
from tests.integration.gateway.api import always, echo, length
from tests.integration.gateway.rig import HOST, KEY, get, post
from tests.integration.gateway.wire import Message

FREE = Route("(other)", free=True)
ADDED = (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"via", b"x-quota-sidecar-hops")
MADE_ID = re.compile(rb"x-fapi-interaction-id: [0-9a-f-]{36}")


def forwarded_lines(message: Message) -> list[bytes]:
    """What arrived, without what the gateway adds."""
    lines = (line for line in message.lines if line.partition(b":")[0].lower() not in ADDED)
    return [line for line in lines if not MADE_ID.fullmatch(line)]


UNCHANGED: dict[str, bytes] = {
    "order and case of names": b"x-B: 1\r\nX-a: 2\r\nX-C: 3\r\n",
    "repeated fields": b"Accept: a\r\nX-Y: 1\r\nAccept: b\r\n",
    "white space around values": b"X-A:1\r\nX-B:   2   \r\nX-C:\t3\t\r\nX-Empty:\r\n",
    "bytes above ASCII": b"X-Name: M\xfcller \xe2\x82\xac \xff\r\n",
    "cookies": b'Cookie: a=b; c=d\r\nCookie: e="f g"\r\n',
    "codings of the content": b"Accept-Encoding: gzip, br\r\nContent-Encoding: gzip\r\n",
    "a field of 16 KiB": b"X-Big: " + b"x" * 16_384 + b"\r\n",
    "ninety fields": b"".join(b"X-F%d: %d\r\n" % (i, i) for i in range(90)),
    "ranges and conditions": b'Range: bytes=0-1\r\nIf-None-Match: "a", W/"b"\r\nIf-Range: "a"\r\n',
    "FAPI and tracing": b"x-fapi-interaction-id: 93bac548\r\n"
    b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"
    b"tracestate: a=b\r\nx-idempotency-key: k\r\n",
    "authorization": b"Authorization: Bearer abc.def\r\nx-jws-signature: a..b\r\n",
}


@pytest.mark.parametrize("lines", UNCHANGED.values(), ids=UNCHANGED.keys())
async def test_fields_of_a_request_arrive_byte_for_byte(gateway: Any, lines: bytes) -> None:
    async with gateway(always(length()), default=FREE) as rig:
        answer = await rig.ask(b"GET /accounts HTTP/1.1\r\n" + HOST + lines + b"\r\n")
        assert answer.status == 200
        assert b"\r\n".join(forwarded_lines(rig.api.requests[0])) + b"\r\n" == HOST + lines


@pytest.mark.parametrize("lines", UNCHANGED.values(), ids=UNCHANGED.keys())
async def test_fields_of_a_response_arrive_byte_for_byte(gateway: Any, lines: bytes) -> None:
    response = b"HTTP/1.1 200 Very  Fine\r\nDate: now\r\n" + lines + b"Content-Length: 2\r\n\r\nok"
    async with gateway(always(response), default=FREE, via=b"") as rig:
        answer = await rig.ask(get())
        assert answer.start == b"HTTP/1.1 200 Very  Fine"
        arrived = b"\r\n".join(forwarded_lines(answer)) + b"\r\n"
        assert arrived == b"Date: now\r\n" + lines + b"Content-Length: 2\r\n"


TARGETS = [
    b"/", b"/a?b=c&d=%20%2F", b"/a?", b"/a?b?c", b"/a%2Db", b"/~user/(1)!*'", b"/a?x=/../y//z", b"/" + b"p" * 4000,
    b"/caf%C3%A9", b"/a?" + b"q=1&" * 1000,
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t[:20].decode())
async def test_a_target_arrives_as_it_was_sent(gateway: Any, target: bytes) -> None:
    async with gateway(echo, default=FREE) as rig:
        answer = await rig.ask(get(target))
        assert answer.get(b"X-Start") == b"GET " + target + b" HTTP/1.1"


@pytest.mark.parametrize(
    ("sent", "arrives", "host"),
    [
        (b"GET http://api.bank.example/a?b=c HTTP/1.1\r\n" + HOST, b"GET /a?b=c HTTP/1.1", b"api.bank.example"),
        (b"GET HTTP://api.bank.example HTTP/1.1\r\n" + HOST, b"GET / HTTP/1.1", b"api.bank.example"),
        (b"OPTIONS * HTTP/1.1\r\n" + HOST, b"OPTIONS * HTTP/1.1", b"api.bank.example"),
        (b"OPTIONS http://api.bank.example HTTP/1.1\r\n" + HOST, b"OPTIONS * HTTP/1.1", b"api.bank.example"),
        (b"\r\nGET /a HTTP/1.1\r\n" + HOST, b"GET /a HTTP/1.1", b"api.bank.example"),
        (b"GET http://old.example/a HTTP/1.0\r\n", b"GET /a HTTP/1.1", b"old.example"),
        (b"GET /a HTTP/1.1\r\nHost: [2001:db8::1]:8080\r\n", b"GET /a HTTP/1.1", b"[2001:db8::1]:8080"),
    ],
)
async def test_each_form_of_target_becomes_one_for_an_origin_with_one_host(
    gateway: Any, sent: bytes, arrives: bytes, host: bytes
) -> None:
    async with gateway(echo, default=FREE) as rig:
        answer = await rig.ask(sent + b"\r\n")
        assert answer.get(b"X-Start") == arrives
        assert rig.api.requests[0].all(b"Host") == [host]


async def test_a_request_without_a_host_gets_that_of_the_api(gateway: Any) -> None:
    async with gateway(echo, default=FREE) as rig:
        await rig.ask(b"GET /a HTTP/1.0\r\n\r\n")
        assert rig.api.requests[0].get(b"Host") == rig.pool.target.authority


@pytest.mark.parametrize("scheme", [b"https", b"HTTPS"])
async def test_a_target_with_https_is_for_a_connection_with_tls(gateway: Any, scheme: bytes) -> None:
    asked = b"GET " + scheme + b"://api.bank.example/a HTTP/1.1\r\n" + HOST + b"X-Forwarded-Proto: https\r\n\r\n"
    async with gateway(echo, default=FREE) as rig:
        assert (await rig.ask(asked)).status == 421
        assert rig.api.requests == []
    async with gateway(echo, default=FREE, trusted=["127.0.0.1"]) as rig:  # which may have taken TLS off
        assert (await rig.ask(asked)).get(b"X-Start") == b"GET /a HTTP/1.1"


FRAMED = [
    (b"content-length:5\t", b"hello", [b"Content-Length: 5"]),
    (b"Content-Length: 005", b"hello", [b"Content-Length: 5"]),
    (b"CONTENT-LENGTH:   5", b"hello", [b"Content-Length: 5"]),
    (b"Transfer-Encoding:\tChunked \t", b"5 ;a\r\nhello\r\n0\t; b = c\r\n\r\n", [b"Transfer-Encoding: chunked"]),
]


def framing(message: Message) -> list[bytes]:
    return [line for line in message.lines if line.lower().startswith((b"content-length", b"transfer-encoding"))]


@pytest.mark.parametrize(("line", "body", "arrives"), FRAMED)
async def test_framing_goes_on_in_one_form(gateway: Any, line: bytes, body: bytes, arrives: list[bytes]) -> None:
    answered = b"HTTP/1.1 200 OK\r\n" + line + b"\r\n\r\n" + body
    async with gateway(always(answered)) as rig:
        wire = await rig.connect()
        for _ in range(2):  # nothing of one body is taken for the next request
            await wire.send(get(b"/a", line, method=b"POST") + body)
            answer = await wire.response()
            assert (answer.status, answer.body, framing(answer)) == (200, b"hello", arrives)
            assert (rig.api.requests[-1].body, framing(rig.api.requests[-1])) == (b"hello", arrives)
        assert await rig.charged() == [200, 200]


@pytest.mark.parametrize("lines", [b"Content-Length: 2\r\nContent-Length: 2", b"Content-Length: 2, 2"])
async def test_two_equal_lengths_of_an_answer_are_one(gateway: Any, lines: bytes) -> None:
    async with gateway(always(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n\r\nok")) as rig:
        wire = await rig.connect()
        for _ in range(2):
            await wire.send(get())
            answer = await wire.response()
            assert (answer.status, answer.body, framing(answer)) == (200, b"ok", [b"Content-Length: 2"])
        assert (await rig.ask(get(b"/a", *lines.split(b"\r\n")))).status == 400
        assert rig.api.connections == 1


async def test_a_later_version_is_answered_as_our_own(gateway: Any) -> None:
    async with gateway(echo) as rig:
        wire = await rig.connect()
        for minor in (2, 9, 1):
            await wire.send(get().replace(b"HTTP/1.1", b"HTTP/1.%d" % minor))
            answer = await wire.response()
            assert answer.start == b"HTTP/1.1 200 OK"
            assert answer.get(b"X-Start") == b"GET /accounts HTTP/1.1"
        for version in (b"HTTP/2.0", b"HTTP/0.9", b"HTTP/3.0"):
            assert (await rig.ask(get().replace(b"HTTP/1.1", version))).status == 505


async def test_names_that_callers_invent_take_no_label(gateway: Any) -> None:
    async with gateway(echo, trusted=["127.0.0.1"]) as rig:
        counters = rig.gateway.context.counters
        counters.accounts_max = 2
        for number in range(5):
            assert (await rig.ask(get(b"/a", b"X-TPP-Id: invented-%d" % number, key=b""))).status == 401
        await rig.ask(get(b"/a", b"X-TPP-Id: tpp", key=b""))
        await rig.idle()
        assert {key[0] for key in counters.requests} == {"-", "tpp"}


METHODS = [b"DELETE", b"PATCH", b"PROPFIND", b"QUERY", b"VERSION-CONTROL"]


@pytest.mark.parametrize("method", METHODS)
async def test_a_registered_method_passes_and_is_charged(gateway: Any, method: bytes) -> None:
    async with gateway(echo) as rig:
        answer = await rig.ask(get(method=method))
        assert answer.get(b"X-Start") == method + b" /accounts HTTP/1.1"
        assert [event[4] for event in await rig.events()] == [method.decode()]
        assert [key[1] for key in rig.gateway.context.counters.requests] == [method.decode()]
        assert [line["method"] for line in rig.log] == [method.decode()]


@pytest.mark.parametrize(("method", "status"), [(b"get", 400), (b"M-SEARCH", 501), (b"X!#$%&'*+-.^_`|~9", 501)])
async def test_a_method_that_callers_make_up_is_refused_and_has_no_label(
    gateway: Any, method: bytes, status: int
) -> None:
    async with gateway(echo) as rig:
        assert (await rig.ask(get(method=method))).status == status
        assert await rig.events() == []
        assert [key[1] for key in rig.gateway.context.counters.requests] == ["other"]
        assert [line["method"] for line in rig.log] == ["other"]


BODIES = [b"", b"x", b"\x00\xff\r\n0\r\n\r\n", bytes(range(256)) * 4096]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: f"{len(body)} bytes")
async def test_a_body_passes_both_ways(gateway: Any, body: bytes) -> None:
    async with gateway(echo) as rig:
        assert (await rig.ask(post(body))).body == body


HOP_BY_HOP = [
    b"Connection: close", b"Connection: X-Secret\r\nX-Secret: 1", b"Connection: keep-alive, x-a\r\nx-A: 1\r\nX-a: 2",
    b"Keep-Alive: timeout=5", b"Proxy-Connection: keep-alive", b"Proxy-Authorization: Basic eA==", b"TE: gzip",
    b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
]  # fmt: skip


@pytest.mark.parametrize("lines", HOP_BY_HOP)
async def test_fields_for_one_connection_are_not_forwarded(gateway: Any, lines: bytes) -> None:
    async with gateway(always(length()), default=FREE) as rig:
        assert (await rig.ask(get(b"/accounts", lines, b"X-Last: 1", key=b""))).status == 200
        assert forwarded_lines(rig.api.requests[0]) == [HOST[:-2], b"X-Last: 1"]


async def test_fields_for_one_connection_are_taken_out_of_a_response(gateway: Any) -> None:
    hop_by_hop = (b"Connection: X-Hop", b"X-Hop: 1", b"Keep-Alive: max=1", b"Proxy-Authenticate: Basic")
    response = length(b"ok", *hop_by_hop, b"A: 1")
    async with gateway(always(response), default=FREE, via=b"") as rig:
        assert forwarded_lines(await rig.ask(get())) == [b"A: 1", b"Content-Length: 2"]


FORGED = [b"X-Forwarded-For: 6.6.6.6", b"X-Forwarded-Proto: https", b"X-Forwarded-Host: evil", b"X-TPP-Id: rich"]


async def test_what_a_stranger_says_of_himself_is_replaced_by_what_is_seen(gateway: Any) -> None:
    async with gateway(always(length())) as rig:
        assert (await rig.ask(get(b"/accounts", *FORGED))).status == 200
        arrived = rig.api.requests[0]
        assert [arrived.all(name) for name in ADDED[:3]] == [[b"127.0.0.1"], [b"http"], [b"api.bank.example"]]
        assert arrived.all(b"X-TPP-Id") == [b"tpp"]
        assert arrived.all(b"X-API-Key") == []
        assert [event[0] for event in await rig.events()] == ["tpp"]


async def test_what_a_trusted_peer_says_is_believed_and_extended(gateway: Any) -> None:
    async with gateway(always(length()), trusted=["127.0.0.0/8"]) as rig:
        lines = (b"X-Forwarded-For: 9.9.9.9", b"X-Forwarded-Proto: https", b"X-Forwarded-Host: front", b"X-TPP-Id: tpp")
        assert (await rig.ask(get(b"/accounts", *lines, key=b""))).status == 200
        arrived = rig.api.requests[0]
        assert [arrived.all(name) for name in ADDED[:3]] == [[b"9.9.9.9, 127.0.0.1"], [b"https"], [b"front"]]
        assert arrived.all(b"X-TPP-Id") == [b"tpp"]
        assert [event[0] for event in await rig.events()] == ["tpp"]


async def test_a_trusted_identity_reaches_the_api_without_forwarded_fields_too(gateway: Any) -> None:
    async with gateway(always(length()), trusted=["127.0.0.1"], forwarded_headers=False, via=b"") as rig:
        await rig.ask(get(b"/accounts", b"X-TPP-Id: tpp", b"X-Forwarded-For: 1.1.1.1", key=b""))
        arrived = rig.api.requests[0]
        assert arrived.get(b"X-TPP-Id") == b"tpp"
        assert arrived.all(b"X-Forwarded-For") == [b"1.1.1.1"]
        assert arrived.all(b"Via") == []


@pytest.mark.parametrize("minor", [0, 1])
async def test_via_names_the_version_that_was_received(gateway: Any, minor: int) -> None:
    answered = b"HTTP/1.%d 200 OK\r\nContent-Length: 0\r\n\r\n" % minor
    async with gateway(always(answered), via_on_requests=True) as rig:
        answer = await rig.ask(b"GET / HTTP/1.%d\r\n" % minor + HOST + KEY + b"Via: 1.1 front\r\n\r\n")
        assert rig.api.requests[0].all(b"Via") == [b"1.1 front", b"1.%d quota-sidecar" % minor]
        assert answer.all(b"Via") == [b"1.%d quota-sidecar" % minor]


async def test_a_request_gets_no_via_unless_it_is_asked_for(gateway: Any) -> None:
    async with gateway(always(length())) as rig:
        answer = await rig.ask(get())
        assert rig.api.requests[0].all(b"Via") == []
        assert answer.all(b"Via") == [b"1.1 quota-sidecar"]
    async with gateway(always(length()), via_on_answers=False) as rig:
        assert (await rig.ask(get())).all(b"Via") == []


async def test_a_head_of_the_largest_size_passes(gateway: Any) -> None:
    async with gateway(echo, default=FREE, limits=Limits(head_bytes_max=65_536)) as rig:
        room = 65_536 - len(get(b"/accounts", b"X-Big: "))
        answer = await rig.ask(get(b"/accounts", b"X-Big: " + b"x" * room))
        assert answer.status == 200
        refused = await rig.ask(get(b"/accounts", b"X-Big: " + b"x" * (room + 1)))
        assert refused.status == 431
