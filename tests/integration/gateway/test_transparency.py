"""What the gateway leaves as it is, what it takes out and what it adds."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.gateway.http1.limits import Limits
from sidecar.gateway.routes import Route
from tests.integration.gateway.api import always, echo, length
from tests.integration.gateway.rig import HOST, KEY, get, post
from tests.integration.gateway.wire import Message

FREE = Route("(other)", free=True)
ADDED = (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"via")


def forwarded_lines(request: Message) -> list[bytes]:
    """What arrived, without what the gateway adds."""
    return [line for line in request.lines if line.partition(b":")[0].lower() not in ADDED]


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
    "FAPI and tracing": b"x-fapi-interaction-id: 93bac548\r\ntraceparent: 00-a-b-01\r\nx-idempotency-key: k\r\n",
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
        assert b"\r\n".join(answer.lines) + b"\r\n" == b"Date: now\r\n" + lines + b"Content-Length: 2\r\n"


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
        (b"GET HTTPS://api.bank.example HTTP/1.1\r\n" + HOST, b"GET / HTTP/1.1", b"api.bank.example"),
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


METHODS = [b"DELETE", b"PATCH", b"PROPFIND", b"QUERY", b"VERSION-CONTROL"]


@pytest.mark.parametrize("method", METHODS)
async def test_a_registered_method_passes_and_is_charged(gateway: Any, method: bytes) -> None:
    async with gateway(echo) as rig:
        answer = await rig.ask(get(method=method))
        assert answer.get(b"X-Start") == method + b" /accounts HTTP/1.1"
        assert [event[4] for event in await rig.events()] == [method.decode()]


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
        assert (await rig.ask(get())).lines == [b"A: 1", b"Content-Length: 2"]


FORGED = [b"X-Forwarded-For: 6.6.6.6", b"X-Forwarded-Proto: https", b"X-Forwarded-Host: evil", b"X-TPP-Id: rich"]


async def test_what_a_stranger_says_of_himself_is_replaced_by_what_is_seen(gateway: Any) -> None:
    async with gateway(always(length())) as rig:
        assert (await rig.ask(get(b"/accounts", *FORGED))).status == 200
        arrived = rig.api.requests[0]
        assert [arrived.all(name) for name in ADDED[:3]] == [[b"127.0.0.1"], [b"http"], [b"api.bank.example"]]
        assert arrived.all(b"X-TPP-Id") == []
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
    async with gateway(always(answered)) as rig:
        answer = await rig.ask(b"GET / HTTP/1.%d\r\n" % minor + HOST + KEY + b"Via: 1.1 front\r\n\r\n")
        assert rig.api.requests[0].all(b"Via") == [b"1.1 front", b"1.%d quota-sidecar" % minor]
        assert answer.all(b"Via") == [b"1.%d quota-sidecar" % minor]


async def test_a_head_of_the_largest_size_passes(gateway: Any) -> None:
    async with gateway(echo, default=FREE, limits=Limits(head_bytes_max=65_536)) as rig:
        room = 65_536 - len(get(b"/accounts", b"X-Big: "))
        answer = await rig.ask(get(b"/accounts", b"X-Big: " + b"x" * room))
        assert answer.status == 200
        refused = await rig.ask(get(b"/accounts", b"X-Big: " + b"x" * (room + 1)))
        assert refused.status == 431
