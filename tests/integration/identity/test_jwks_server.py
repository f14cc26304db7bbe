"""The JWT resolver against a real JWKS server, over real sockets: it rotates keys, goes down, lies and dawdles."""

from __future__ import annotations

import asyncio
import datetime as dt
import gzip
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from sidecar.identity.build import build_chain
from sidecar.identity.chain import IdentityChain
from sidecar.identity.jwks import KeySetError
from sidecar.identity.jwks_source import UrlKeySource
from sidecar.identity.jwt import JwtResolver
from sidecar.identity.settings import JwtSettings
from sidecar.identity.types import Identity, IdentitySetupError, IdentityUnavailable, Outcome
from tests.unit.identity.kit import (
    AUDIENCE,
    ISSUER,
    NOW_S,
    STRANGER,
    Clock,
    bearer,
    certificate_key,
    es_key,
    key_set,
    reason_of,
    settled,
)

OLD, NEW = es_key("old"), es_key("new")
TPP = Identity("tpp-1", "jwt")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class JwksServer:
    """An issuer on loopback. ``document`` may change at any time; ``handler`` replaces the whole answer."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.document = key_set(OLD)
        self.handler: Handler | None = None
        self.requests: list[web.Request] = []
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}/jwks?token=geheim"
        self._port = port
        self._tls = tls
        self._runner: web.AppRunner | None = None

    async def up(self) -> None:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=self._tls, reuse_address=True).start()

    async def down(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if self.handler is not None:
            return await self.handler(request)
        return web.Response(body=self.document, content_type="application/jwk-set+json")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
async def server() -> AsyncIterator[JwksServer]:
    server = JwksServer(free_port())
    await server.up()
    yield server
    await server.down()


class World:
    def __init__(self, chain: IdentityChain, clock: Clock) -> None:
        self.chain = chain
        self.clock = clock

    @property
    def resolver(self) -> JwtResolver:
        (resolver,) = self.chain.resolvers
        assert isinstance(resolver, JwtResolver)
        return resolver

    async def ask(self, token: str) -> Outcome | None:
        return await settled(self.chain.identify(bearer(token), STRANGER))


@asynccontextmanager
async def running(**settings: object) -> AsyncIterator[World]:
    clock = Clock()
    fixed = {"type": "jwt", "issuer": ISSUER, "audience": [AUDIENCE], "jwks_allow_http": True}
    chain = build_chain([JwtSettings.model_validate(fixed | settings)], clock=clock, wall=Clock(NOW_S))
    await chain.start()
    try:
        yield World(chain, clock)
    finally:
        await chain.close()


async def test_keys_are_read_at_start_and_tokens_verified_with_them(server: JwksServer) -> None:
    async with running(jwks_url=server.url) as world:
        assert world.chain.identify(bearer(OLD.token()), STRANGER) == TPP
        assert len(server.requests) == 1
        assert server.requests[0].headers["Accept-Encoding"] == "identity"


async def test_a_rotation_at_the_issuer_is_followed(server: JwksServer) -> None:
    async with running(jwks_url=server.url) as world:
        server.document = key_set(NEW, OLD)
        world.clock.advance(10)
        assert await world.ask(NEW.token()) == TPP
        assert await world.ask(OLD.token()) == TPP
        server.document = key_set(NEW)
        world.clock.advance(300)
        assert await world.ask(NEW.token(client_id="tpp-2")) == Identity("tpp-2", "jwt")
        assert "does not publish" in reason_of(await world.ask(OLD.token()))
        assert len(server.requests) == 3


async def test_while_the_issuer_is_down_known_keys_go_on_and_afterwards_new_ones_are_found(server: JwksServer) -> None:
    async with running(jwks_url=server.url) as world:
        await server.down()
        world.clock.advance(300)
        assert await world.ask(OLD.token()) == TPP
        assert world.resolver.ring.failures == 1
        with pytest.raises(IdentityUnavailable):
            await world.ask(NEW.token())
        server.document = key_set(NEW)
        await server.up()
        world.clock.advance(10)
        assert await world.ask(NEW.token()) == TPP


async def test_an_issuer_that_is_down_at_start_does_not_keep_the_gateway_from_starting(server: JwksServer) -> None:
    await server.down()
    async with running(jwks_url=server.url) as world:
        with pytest.raises(IdentityUnavailable):
            await world.ask(OLD.token())
        await server.up()
        world.clock.advance(10)
        assert await world.ask(OLD.token()) == TPP


async def answer_500(request: web.Request) -> web.StreamResponse:
    return web.Response(status=500, body=key_set(OLD))


async def answer_redirect(request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("/elsewhere")


async def answer_html(request: web.Request) -> web.StreamResponse:
    return web.Response(text="<html>log in</html>")


async def answer_too_much(request: web.Request) -> web.StreamResponse:
    return web.Response(body=key_set(OLD) + b" " * 5000)


async def answer_too_much_in_chunks(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:  # ends when the client, who has seen enough, hangs up
        await response.write(b" " * 1000)


async def answer_compressed(request: web.Request) -> web.StreamResponse:
    """Although it was asked not to: what is small on the way may be large in memory."""
    return web.Response(body=gzip.compress(key_set(OLD)), headers={"Content-Encoding": "gzip"})


async def answer_never(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def answer_half(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"keys":')
    assert request.transport is not None
    request.transport.abort()
    return response


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (answer_500, "answered 500"),
        (answer_redirect, "answered 302"),
        (answer_too_much, "larger than 4096"),
        (answer_too_much_in_chunks, "larger than 4096"),
        (answer_never, "cannot be read: no answer in time"),
        (answer_half, "cannot be read: Response payload"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_an_answer_that_cannot_be_a_key_set_is_not_taken(
    server: JwksServer, handler: Handler, reason: str
) -> None:
    server.handler = handler
    # Only the answer that never comes may meet the time limit: an answer on a busy machine can take a second.
    source = UrlKeySource(server.url, timeout_s=0.5 if handler is answer_never else 30, bytes_max=4096)
    with pytest.raises(KeySetError) as caught:
        await source.fetch()
    assert reason in str(caught.value)
    assert "geheim" not in f"{caught.value} {source!r} {source.description}"
    await source.close()


@pytest.mark.parametrize("handler", [answer_html, answer_compressed, answer_500, answer_too_much])
async def test_a_bad_answer_leaves_the_last_good_keys_in_force(server: JwksServer, handler: Handler) -> None:
    async with running(jwks_url=server.url, jwks_bytes_max=4096) as world:
        server.handler = handler
        world.clock.advance(300)
        assert await world.ask(OLD.token()) == TPP
        assert world.resolver.ring.failures == 1


async def test_many_requests_with_an_unknown_key_are_one_request_to_the_issuer(server: JwksServer) -> None:
    async with running(jwks_url=server.url) as world:
        world.clock.advance(10)
        tokens = [es_key(f"invented-{number}").token() for number in range(30)]
        outcomes = await asyncio.gather(*map(world.ask, tokens))
        assert len({reason_of(outcome) for outcome in outcomes}) == 1
        assert len(server.requests) == 2


async def test_keys_are_read_from_a_file_that_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(key_set(OLD))
    async with running(jwks_file=path) as world:
        assert await world.ask(OLD.token()) == TPP
        path.write_bytes(key_set(NEW))
        world.clock.advance(10)
        assert await world.ask(NEW.token()) == TPP
        path.unlink()
        world.clock.advance(300)
        assert await world.ask(NEW.token(client_id="tpp-2")) == Identity("tpp-2", "jwt")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"{}", 'no list "keys"'),
        (b" " * 5000, "larger than 4096"),
    ],
)
async def test_a_file_without_keys_is_a_mistake_in_the_setup(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "jwks.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(IdentitySetupError) as caught:
        async with running(jwks_file=path, jwks_bytes_max=4096):
            raise AssertionError
    assert reason in str(caught.value)
    assert f"jwks_file {path}" in str(caught.value)


def server_certificate(path: Path) -> ssl.SSLContext:
    """A certificate for 127.0.0.1 that signs itself, written to ``path`` with its key."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuer")])
    now = dt.datetime.now(dt.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(certificate_key().public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(certificate_key(), hashes.SHA256())
    )
    key = certificate_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(cert.public_bytes(Encoding.PEM) + key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(path)
    return context


async def test_over_tls_the_issuer_is_believed_only_with_a_certificate_of_the_configured_ca(tmp_path: Path) -> None:
    pem = tmp_path / "issuer.pem"
    server = JwksServer(free_port(), server_certificate(pem))
    await server.up()
    try:
        async with running(jwks_url=server.url, jwks_allow_http=False, jwks_ca_file=pem) as world:
            assert await world.ask(OLD.token()) == TPP
        async with running(jwks_url=server.url, jwks_allow_http=False) as world:
            with pytest.raises(IdentityUnavailable):
                await world.ask(OLD.token())
    finally:
        await server.down()


@pytest.mark.parametrize("content", [None, b"", b"rubbish"])
async def test_a_ca_file_that_cannot_be_used_is_a_mistake_in_the_setup(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(IdentitySetupError, match="jwks_ca_file") as caught:
        async with running(jwks_url="https://127.0.0.1:1/jwks", jwks_ca_file=path):
            raise AssertionError
    assert str(path) in str(caught.value)
