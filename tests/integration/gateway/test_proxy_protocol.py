"""PROXY protocol, version 2: whose connection a load balancer passes on."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from sidecar.gateway.admission.proxy_protocol import SIGNATURE
from tests.integration.gateway.api import echo
from tests.integration.gateway.certificates import Authority
from tests.integration.gateway.rig import account, get
from tests.integration.gateway.wire import Wire

TRUSTED: dict[str, Any] = {"trusted": ["127.0.0.0/8"], "proxy_protocol": True}


def header(source: str = "192.0.2.7", command: int = 0x21, family: int | None = None, tlvs: bytes = b"") -> bytes:
    """A header as section 2.2 has it."""
    six = ":" in source
    kind = socket.AF_INET6 if six else socket.AF_INET
    addresses = socket.inet_pton(kind, source) + socket.inet_pton(kind, "::1" if six else "127.0.0.1")
    rest = addresses + (4711).to_bytes(2, "big") + (443).to_bytes(2, "big") + tlvs
    code = family if family is not None else 0x21 if six else 0x11
    return SIGNATURE + bytes([command, code]) + len(rest).to_bytes(2, "big") + rest


@pytest.mark.parametrize("source", ["192.0.2.7", "2001:db8::7"])
async def test_the_api_and_the_log_learn_the_address_of_the_header(gateway: Any, source: str) -> None:
    async with gateway(echo, **TRUSTED) as rig:
        wire = await rig.connect()
        await wire.send(header(source, tlvs=b"\x04\x00\x03abc") + get() + get())
        assert [(await wire.response()).status for _ in range(2)] == [200, 200]
        assert {request.get(b"X-Forwarded-For") for request in rig.api.requests} == {source.encode()}
        await rig.idle()
        assert {line["client"] for line in rig.log} == {source}


async def test_a_header_may_come_byte_by_byte(gateway: Any) -> None:
    async with gateway(echo, **TRUSTED) as rig:
        wire = await rig.connect()
        await wire.send(*(bytes([each]) for each in header()), get(), apart=True)
        assert (await wire.response()).status == 200


async def test_the_client_has_not_the_trust_of_the_load_balancer(gateway: Any) -> None:
    lines = (b"X-TPP-Id: rich", b"X-Forwarded-For: 198.51.100.1")
    async with gateway(echo, accounts=[account(), account("rich")], **TRUSTED) as rig:
        wire = await rig.connect()
        await wire.send(header() + get(b"/a", *lines, key=b"") + get(b"/b", *lines))
        assert [(await wire.response()).status for _ in range(2)] == [401, 200]
        assert rig.api.requests[0].get(b"X-Forwarded-For") == b"192.0.2.7"
        wire = await rig.connect()  # a client that is trusted itself
        await wire.send(header("127.0.0.9") + get(b"/a", *lines, key=b""))
        assert (await wire.response()).status == 200
        assert [event[0] for event in await rig.events()] == ["tpp", "rich"]


@pytest.mark.parametrize("header_", [header(command=0x20), header(family=0x00), SIGNATURE + b"\x20\x00\x00\x00"])
async def test_a_connection_of_the_load_balancer_itself_keeps_its_address(gateway: Any, header_: bytes) -> None:
    async with gateway(echo, **TRUSTED) as rig:
        wire = await rig.connect()
        await wire.send(header_ + get())
        assert (await wire.response()).status == 200
        assert rig.api.requests[0].get(b"X-Forwarded-For") == b"127.0.0.1"


@pytest.mark.parametrize(
    "data",
    [
        get(),
        b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 443\r\n" + get(),
        header(command=0x11) + get(),
        header(command=0x22) + get(),
        header(family=0x12) + get(),
        header(family=0x31) + get(),
        SIGNATURE + b"\x21\x21\x00\x0c" + bytes(12) + get(),
        header(tlvs=bytes(4_100)) + get(),
        header()[:20],
    ],
)
async def test_what_is_no_header_is_closed_and_counted(gateway: Any, data: bytes) -> None:
    async with gateway(echo, **TRUSTED) as rig:
        wire = await rig.connect()
        await wire.send(data)
        if len(data) == 20:
            wire.half_close()
        assert await wire.ended() == b""
        await rig.until(lambda: not rig.gateway.taken)
        assert rig.gateway.context.counters.handshake_failures == {"proxy_header": 1}
        assert not rig.api.requests


async def test_a_peer_that_is_not_trusted_may_send_no_header(gateway: Any) -> None:
    async with gateway(echo, trusted=["10.0.0.0/8"], proxy_protocol=True) as rig:
        wire = await rig.connect()
        await wire.send(header() + get())
        assert await wire.ended() == b""
        await rig.until(lambda: not rig.gateway.taken)
        assert rig.gateway.context.counters.handshake_failures == {"untrusted_proxy": 1}


async def test_a_header_that_does_not_come_has_the_time_of_a_handshake(gateway: Any) -> None:
    async with gateway(echo, handshake_timeout_s=0.2, **TRUSTED) as rig:
        wire = await rig.connect()
        await wire.send(header()[:12])
        assert await wire.ended() == b""
        assert rig.gateway.context.counters.handshake_failures == {"timeout": 1}
        assert not rig.gateway.taken


async def test_the_header_comes_before_tls(gateway: Any, tmp_path: Path) -> None:
    authority = Authority.create(tmp_path)
    async with gateway(echo, tls=authority.server("gateway.example"), **TRUSTED) as rig:
        sock = socket.create_connection(("127.0.0.1", rig.port))
        sock.sendall(header())
        sock.setblocking(False)
        streams = await asyncio.open_connection(sock=sock, ssl=authority.client(), server_hostname="gateway.example")
        wire = Wire(*streams)
        rig.wires.append(wire)
        await wire.send(get())
        assert (await wire.response()).status == 200
        assert rig.api.requests[0].get(b"X-Forwarded-For") == b"192.0.2.7"
        assert rig.api.requests[0].get(b"X-Forwarded-Proto") == b"https"


async def test_shares_are_of_the_clients_behind_the_load_balancer(gateway: Any) -> None:
    async with gateway(echo, connections_max=40, free_per_second=0.1, **TRUSTED) as rig:
        few = []
        for number in range(4):
            few.append(await rig.connect())
            await few[-1].send(header(f"192.0.2.{number}") + get(key=b""))
            assert (await few[-1].response()).status == 401
        for _ in range(60):
            wire = await rig.connect()
            await wire.send(header("198.51.100.7") + get(key=b""))
            assert (await wire.response()).status == 401
        for wire in few:
            await wire.send(get())
            assert (await wire.response()).status == 200
