"""TLS on either side, and callers known by their certificate."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest

from sidecar.gateway.parameters import UpstreamTarget
from tests.integration.gateway.api import Conversation, echo, length
from tests.integration.gateway.certificates import Authority
from tests.integration.gateway.rig import account, get, post
from tests.integration.gateway.wire import connect

TPP = "PSDGB-FCA-123456"
NAME: dict[str, Any] = {"server_hostname": "gateway.example"}
ENDED = (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)
"""With TLS 1.3 the client hears of its refusal only when it reads."""


async def ask(port: int, tls: ssl.SSLContext) -> None:
    wire = await connect(port, tls=tls, **NAME)
    await wire.send(get())
    await wire.response()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path)


async def test_requests_pass_through_tls_and_say_so(gateway: Any, authority: Authority) -> None:
    async with gateway(echo, tls=authority.server("gateway.example")) as rig:
        wire = await rig.connect(tls=authority.client(), **NAME)
        for body in (b"", b"abc", bytes(1_000_000)):
            await wire.send(post(body))
            assert (await wire.response()).body == body
        assert rig.api.requests[0].get(b"X-Forwarded-Proto") == b"https"
        await wire.send(get(b"https://api.bank.example/a"))
        assert (await wire.response()).get(b"X-Start") == b"GET /a HTTP/1.1"
        assert await rig.charged() == [200] * 4


@pytest.mark.parametrize("mode", [ssl.CERT_OPTIONAL, ssl.CERT_REQUIRED])
async def test_a_certificate_says_who_calls_and_a_forged_header_does_not(
    gateway: Any, authority: Authority, mode: ssl.VerifyMode
) -> None:
    tls = authority.server("gateway.example", mode)
    async with gateway(echo, tls=tls, accounts=[account(TPP), account("rich")]) as rig:
        wire = await rig.connect(tls=authority.client(authority.issue("client", TPP)), **NAME)
        await wire.send(get(b"/a", b"X-TPP-Id: rich", key=b""))
        assert (await wire.response()).status == 200
        assert [event[0] for event in await rig.events()] == [TPP]
        names = (b"X-TPP-Id", b"X-TPP-Organisation-Id", b"X-TPP-Resolver")
        assert [rig.api.requests[0].get(name) for name in names] == [TPP.encode(), TPP.encode(), b"mtls"]


async def test_without_a_certificate_an_optional_one_leaves_other_credentials(
    gateway: Any, authority: Authority
) -> None:
    async with gateway(echo, tls=authority.server("gateway.example", ssl.CERT_OPTIONAL)) as rig:
        wire = await rig.connect(tls=authority.client(), **NAME)
        await wire.send(get(key=b"") + get())
        assert [(await wire.response()).status for _ in range(2)] == [401, 200]


async def test_without_a_certificate_a_required_one_ends_the_handshake(gateway: Any, authority: Authority) -> None:
    async with gateway(echo, tls=authority.server("gateway.example", ssl.CERT_REQUIRED)) as rig:
        with pytest.raises(ENDED):
            await ask(rig.port, authority.client())
        assert not rig.api.requests


async def test_a_certificate_of_another_authority_ends_the_handshake(
    gateway: Any, authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Authority.create(tmp_path / "other")
    tls = authority.server("gateway.example", ssl.CERT_OPTIONAL)
    async with gateway(echo, tls=tls, accounts=[account(TPP)]) as rig:
        with pytest.raises(ENDED):
            await ask(rig.port, authority.client(other.issue("client", TPP)))
        assert not rig.api.requests


async def test_a_client_that_leaves_a_tls_connection_before_the_answer_pays_by_its_status(
    gateway: Any, authority: Authority
) -> None:
    proceed = asyncio.Event()

    async def script(talk: Conversation) -> None:
        await talk.request()
        await proceed.wait()
        await talk.send(length())

    async with gateway(script, tls=authority.server("gateway.example")) as rig:
        wire = await rig.connect(tls=authority.client(), **NAME)
        await wire.send(get())
        await rig.until(lambda: rig.api.requests)
        wire.close()
        await rig.until(lambda: rig.gateway.context.detached)
        proceed.set()
        assert await rig.charged() == [499]


async def test_a_refusal_before_the_end_of_the_body_reaches_a_tls_client(gateway: Any, authority: Authority) -> None:
    async with gateway(echo, tls=authority.server("gateway.example")) as rig:
        wire = await rig.connect(tls=authority.client(), **NAME)
        await wire.send(get(b"/p", b"Content-Length: 1000", key=b"", method=b"POST") + b"part")
        answer = await wire.response()
        assert (answer.status, answer.get(b"Connection")) == (401, b"close")


async def test_the_api_may_speak_tls(gateway: Any, authority: Authority) -> None:
    target = UpstreamTarget(tls=authority.client(), server_hostname="api.example")
    async with gateway(echo, api_tls=authority.server("api.example"), upstream=target) as rig:
        for body in (b"abc", bytes(1_000_000)):
            assert (await rig.ask(post(body))).body == body
        assert rig.api.connections == 1


async def test_an_api_with_a_certificate_for_another_name_is_a_502_and_costs_nothing(
    gateway: Any, authority: Authority
) -> None:
    target = UpstreamTarget(tls=authority.client(), server_hostname="other.example")
    async with gateway(echo, api_tls=authority.server("api.example"), upstream=target) as rig:
        assert (await rig.ask(get())).status == 502
        assert await rig.charged() == []
