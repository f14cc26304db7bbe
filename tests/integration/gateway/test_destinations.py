"""Several APIs behind one gateway: by the port that a client came in by, or by where it was on its way to."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass
from typing import Any

import pytest

from sidecar.basics.listening import listening_sockets, plain_address
from sidecar.gateway.counters import ProxyCounters
from sidecar.gateway.destinations import Destinations, original_destination
from sidecar.gateway.parameters import OriginalDestinations, ProxySettings, UpstreamTarget
from tests.integration.gateway.api import Api, Conversation, always, echo, length
from tests.integration.gateway.rig import get
from tests.integration.gateway.wire import connect


async def test_a_port_has_an_api_of_its_own(gateway: Any) -> None:
    other = Api(always(length(b"from the other")))
    other_port = await other.start()
    async with gateway(always(length(b"from the first"))) as rig:
        port = await rig.gateway.listen("127.0.0.1", 0, UpstreamTarget(port=other_port))
        wire = await connect(port)
        await wire.send(get())
        assert (await wire.response()).body == b"from the other"
        assert (await rig.ask(get())).body == b"from the first"
        wire.close()
        assert await rig.charged() == [200, 200]
    await other.close()


@dataclass
class Redirected:
    """A socket whose client wanted to go elsewhere, as Linux tells it."""

    host: str
    port: int
    local: str = "10.0.0.9"
    redirected: bool = True

    @property
    def family(self) -> int:
        return socket.AF_INET6 if ":" in self.local else socket.AF_INET

    def getsockname(self) -> tuple[Any, ...]:
        return (self.local, 15701, 0, 0) if ":" in self.local else (self.local, 15701)

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        if not self.redirected:
            raise OSError(2, "No such file or directory")
        if level == socket.IPPROTO_IP:
            return struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", self.port, socket.inet_aton(self.host))
        packed = socket.inet_pton(socket.AF_INET6, self.host)
        return struct.pack("=H", socket.AF_INET6) + struct.pack("!H4x16s4x", self.port, packed)


@pytest.mark.parametrize(
    ("sock", "expected"),
    [
        (Redirected("10.0.0.9", 8080), ("10.0.0.9", 8080)),
        (Redirected("fd00::9", 8080, local="fd00::9"), ("fd00::9", 8080)),
        (Redirected("10.0.0.9", 8080, local="::ffff:10.0.0.9"), ("10.0.0.9", 8080)),
        (Redirected("10.0.0.9", 8080, redirected=False), None),
        (Redirected("fd00::9", 8080, local="fd00::9", redirected=False), None),
    ],
    ids=["IPv4", "IPv6", "IPv4 on a socket for both", "not redirected", "IPv6, not redirected"],
)
def test_where_a_client_wanted_to_go_is_asked_of_the_kernel(sock: Redirected, expected: tuple[str, int] | None) -> None:
    assert original_destination(sock) == expected


def test_a_socket_that_is_none_of_the_internet_s_leads_nowhere() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert original_destination(left) is None


async def test_only_ports_that_are_served_lead_anywhere_and_never_the_gateway_s_own() -> None:
    destinations = Destinations(ProxySettings(), ProxyCounters())
    some = OriginalDestinations(ports=frozenset({8080, 15701}), own_ports=frozenset({15701}))
    any_port = OriginalDestinations(own_ports=frozenset({15701}))
    found = {
        (wanted, port): destinations.of(Redirected("10.0.0.9", port), wanted) is not None
        for wanted in (some, any_port)
        for port in (8080, 9090, 15701)
    }
    assert found == {
        (some, 8080): True, (some, 9090): False, (some, 15701): False,
        (any_port, 8080): True, (any_port, 9090): True, (any_port, 15701): False,
    }  # fmt: skip


async def test_destinations_that_nobody_uses_make_room_and_used_ones_do_not() -> None:
    destinations = Destinations(ProxySettings(destinations_max=2), ProxyCounters())
    anywhere = OriginalDestinations()
    pools = [destinations.of(Redirected("10.0.0.9", port), anywhere) for port in (1, 2)]
    assert destinations.of(Redirected("10.0.0.9", 1), anywhere) is pools[0], "one destination has one pool"
    for pool in pools:
        assert pool is not None
        pool.clients += 1
    assert destinations.of(Redirected("10.0.0.9", 3), anywhere) is None
    assert pools[1] is not None
    pools[1].clients -= 1
    assert destinations.of(Redirected("10.0.0.9", 3), anywhere) is not None
    assert [str(pool.target) for pool in destinations] == ["10.0.0.9:1", "10.0.0.9:3"]


async def test_a_client_that_was_not_redirected_is_closed_and_counted(gateway: Any) -> None:
    async with gateway(echo) as rig:
        port = await rig.gateway.listen("127.0.0.1", 0, OriginalDestinations(ports=frozenset({8080})))
        wire = await connect(port)
        await wire.send(get())
        assert await wire.ended() == b""
        assert rig.gateway.context.counters.connections_refused == 1
        assert not rig.api.requests


async def test_a_delayed_drain_serves_those_who_come_late_and_tells_all_to_go(gateway: Any) -> None:
    async with gateway(echo) as rig:
        kept = await rig.connect()
        await kept.send(get())
        assert (await kept.response()).get(b"Connection") is None
        draining = asyncio.ensure_future(rig.gateway.drain(10.0, 30.0))
        await rig.until(lambda: rig.gateway.context.draining)
        for wire in (kept, await rig.connect()):
            await wire.send(get())
            answer = await wire.response()
            assert (answer.status, answer.get(b"Connection")) == (200, b"close")
            assert await wire.ended() == b""
        rig.gateway.skip_drain_delay()
        assert await draining
        with pytest.raises(ConnectionError):
            await rig.connect()


# Listening


def reached(port: int, family: int, host: str) -> bool:
    with socket.socket(family) as sock:
        sock.settimeout(5)
        return sock.connect_ex((host, port)) == 0


def test_the_address_for_both_families_takes_clients_of_both() -> None:
    (sock,) = listening_sockets("::", 0)
    with sock:
        sock.listen()
        port = sock.getsockname()[1]
        assert reached(port, socket.AF_INET, "127.0.0.1")
        assert reached(port, socket.AF_INET6, "::1")


def test_an_address_of_one_family_takes_clients_of_that_one() -> None:
    (sock,) = listening_sockets("::1", 0)
    with sock:
        sock.listen()
        assert not reached(sock.getsockname()[1], socket.AF_INET, "127.0.0.1")


def test_where_there_is_no_ipv6_both_means_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    made = socket.socket

    def without_ipv6(family: int, *arguments: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return made(family, *arguments)

    monkeypatch.setattr(socket, "socket", without_ipv6)
    (sock,) = listening_sockets("::", 0)
    with sock:
        assert sock.family == socket.AF_INET


def test_a_port_that_is_taken_is_an_error_and_keeps_nothing_bound() -> None:
    (taken,) = listening_sockets("127.0.0.1", 0)
    with taken:
        taken.listen()
        with pytest.raises(OSError, match="in use"):
            listening_sockets("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize(
    ("shown", "plain"),
    [("::ffff:192.0.2.1", "192.0.2.1"), ("192.0.2.1", "192.0.2.1"), ("::ffff:1", "::ffff:1"), ("", "")],
)
def test_an_ipv4_client_has_the_same_address_on_every_socket(shown: str, plain: str) -> None:
    assert plain_address(shown) == plain


async def test_an_ipv4_client_of_a_socket_for_both_is_forwarded_and_trusted_by_its_ipv4_address(gateway: Any) -> None:
    seen: list[Any] = []

    async def script(talk: Conversation) -> None:
        seen.append((await talk.request()).get(b"X-Forwarded-For"))
        await talk.send(length(b""))

    async with gateway(script, trusted=["127.0.0.1/32"]) as rig:
        port = await rig.gateway.listen("::", 0, rig.pool.target)
        wire = await connect(port)
        await wire.send(get(b"/", b"X-TPP-ID: tpp", b"X-Forwarded-For: 198.51.100.7", key=b""))
        assert (await wire.response()).status == 200
        wire.close()
    assert seen == [b"198.51.100.7, 127.0.0.1"]
