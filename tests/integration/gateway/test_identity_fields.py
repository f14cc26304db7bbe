"""What the API learns of the caller, and what callers say of themselves."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from werkzeug.serving import make_server

from sidecar.gateway.context import UNTRUSTED_FIELDS
from sidecar.gateway.parameters import UpstreamTarget
from sidecar.gateway.routes import Route
from sidecar.gateway.settings import UpstreamSettings
from tests.integration.gateway.api import always, length
from tests.integration.gateway.rig import KEY, chunked, get, route
from tests.integration.gateway.wire import Message

FREE = Route("(other)", free=True)
TRUSTED = ["127.0.0.0/8"]
OWN = [b"X-TPP-Id", b"X-TPP-Organisation-Id", b"X-TPP-Resolver"]
UNCHECKED = [*OWN, b"X-Forwarded-Client-Cert"]
"""No resolver of these tests reads them."""

SPOOFED = [
    b"Forwarded", b"X-Forwarded", b"X-Forwarded-For", b"X-Forwarded-Proto", b"X-Forwarded-Host", b"X-Forwarded-Port",
    b"X-Forwarded-Prefix", b"X-Forwarded-Server", b"X-Forwarded-Ssl", b"X-Forwarded-User", b"X-Forwarded-Email",
    b"X-Forwarded-Groups", b"X-Forwarded-Client-Cert", b"X-Forwarded-Access-Token", b"X-Forwarded-Scheme",
    b"X-Forwarded-By", b"X-Forwarded-Anything", b"X-Real-IP", b"True-Client-IP", b"Client-Cert", b"Client-Cert-Chain",
    b"SSL-Client-Cert", b"ssl-client-verify", b"SSL-Client-S-DN", b"ssl-client-subject-dn", b"X-Consumer-ID",
    b"X-Consumer-Username", b"X-Consumer-Custom-ID", *OWN,
]  # fmt: skip
HONEST = [b"X-Forward: 1", b"X-Real: 1", b"SSL-Clients: 1", b"X-Consumers: 1", b"my_own_field: 1", b"Client-Certs: 1"]


def spellings(name: bytes) -> list[bytes]:
    """As HTTP has it, in other letters, and as CGI and its like take for the same."""
    return [name, name.lower(), name.upper(), name.replace(b"-", b"_"), name[::-1].replace(b"-", b"_", 1)[::-1]]


def cgi(line: bytes) -> bytes:
    return bytes(c if c in b"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789" else 0x5F for c in line.partition(b":")[0].upper())


def heard(request: Message, names: list[bytes]) -> list[bytes]:
    """Lines of ``request`` that a server may take for one of ``names``."""
    return [line for line in request.lines + request.trailers if cgi(line) in {cgi(name) for name in names}]


@pytest.mark.parametrize("name", SPOOFED, ids=bytes.decode)
@pytest.mark.parametrize("route_", [Route("(other)"), FREE], ids=["charged", "free"])
async def test_what_a_stranger_says_of_himself_does_not_reach_the_api(gateway: Any, name: bytes, route_: Route) -> None:
    async with gateway(always(length()), default=route_) as rig:
        for spelled in spellings(name):
            assert (await rig.ask(get(b"/a", spelled + b": forged", b"X-Last: 1"))).status == 200
            arrived = rig.api.requests[-1]
            assert b"forged" not in b"".join(arrived.lines), spelled
            assert arrived.get(b"X-Last") == b"1"


async def test_what_a_stranger_says_of_himself_is_not_heard_in_trailers(gateway: Any) -> None:
    async with gateway(always(length())) as rig:
        for name in SPOOFED:
            trailers = b"".join(spelled + b": forged\r\n" for spelled in spellings(name))
            request = get(b"/a", b"Transfer-Encoding: chunked", method=b"POST")
            await rig.ask(request + chunked(b"body", trailers=trailers + b"X-Last: 1\r\n"))
            assert rig.api.requests[-1].trailers == [b"X-Last: 1"], name


@pytest.mark.parametrize("name", SPOOFED, ids=bytes.decode)
@pytest.mark.parametrize("trusted", [(), TRUSTED], ids=["stranger", "trusted"])
async def test_connection_cannot_name_them(gateway: Any, name: bytes, trusted: list[str]) -> None:
    async with gateway(always(length()), trusted=trusted) as rig:
        for spelled in (name, name.replace(b"-", b"_")):
            assert (await rig.ask(get(b"/a", b"Connection: close, " + spelled))).status == 400, spelled
        assert rig.api.requests == []


async def test_what_only_looks_alike_passes(gateway: Any) -> None:
    async with gateway(always(length())) as rig:
        await rig.ask(get(b"/a", *HONEST))
        assert [line for line in rig.api.requests[0].lines if line in HONEST] == HONEST


async def test_what_no_resolver_checks_passes_from_nobody(gateway: Any) -> None:
    async with gateway(always(length()), trusted=TRUSTED, default=FREE) as rig:
        for spelled in (b"X-Forwarded-Client-Cert", *spellings(b"x-forwarded-client-cert")):
            assert (await rig.ask(get(b"/a", spelled + b": said"))).status == 200
            assert not any(b"said" in line for line in rig.api.requests[-1].lines), spelled


@pytest.mark.parametrize("name", [name for name in SPOOFED if name not in UNCHECKED], ids=bytes.decode)
async def test_what_a_trusted_peer_says_passes_in_its_plain_spelling_only(gateway: Any, name: bytes) -> None:
    async with gateway(always(length()), trusted=TRUSTED, default=FREE) as rig:
        for spelled in (name, name.lower()):
            assert (await rig.ask(get(b"/a", spelled + b": said"))).status == 200
            assert any(b"said" in line for line in heard(rig.api.requests[-1], [name])), spelled
        for spelled in spellings(name):
            if b"_" in spelled:
                assert (await rig.ask(get(b"/a", spelled + b": said"))).status == 200
                assert not any(b"said" in line for line in rig.api.requests[-1].lines), spelled


async def test_the_list_can_be_made_longer(gateway: Any) -> None:
    names = (b"x-partner-*", b"x-secret", b"traceparent")
    trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    lines = (b"X-Partner-Name: a", b"x_partner_a: b", b"X_Secret: c", b"x-secret: d", b"traceparent: " + trace)
    async with gateway(always(length()), drop_fields=names, default=FREE) as rig:
        await rig.ask(get(b"/a", *lines, b"X-Partner: e"))
        arrived = rig.api.requests[0].lines
        assert not {*lines} & {*arrived}
        assert b"X-Partner: e" in arrived
    async with gateway(always(length()), drop_fields=names, default=FREE, trusted=TRUSTED) as rig:
        await rig.ask(get(b"/a", *lines))
        assert [line for line in rig.api.requests[0].lines if line in lines] == [lines[0], lines[3], lines[4]]


# Who calls


async def test_the_api_learns_account_and_resolver(gateway: Any) -> None:
    async with gateway(always(length())) as rig:
        await rig.ask(get(b"/a", b"X-TPP-Id: rich", b"X-TPP-Resolver: god", b"X_TPP_Organisation_Id: PSDGB-FCA-1"))
        arrived = rig.api.requests[0]
        assert heard(arrived, OWN) == [b"X-TPP-Id: tpp", b"X-TPP-Resolver: api_key"]


async def test_a_trusted_peers_word_becomes_the_gateways(gateway: Any) -> None:
    async with gateway(always(length()), trusted=TRUSTED) as rig:
        await rig.ask(get(b"/a", b"x-tpp-id: tpp", b"X_TPP_Id: rich", b"X-TPP-Resolver: god", key=b""))
        assert heard(rig.api.requests[0], OWN) == [b"X-TPP-Id: tpp", b"X-TPP-Resolver: trusted_header"]
        assert [event[0] for event in await rig.events()] == ["tpp"]


@pytest.mark.parametrize("trusted", [(), TRUSTED], ids=["stranger", "trusted"])
async def test_nobody_is_named_where_nobody_was_asked(gateway: Any, trusted: list[str]) -> None:
    async with gateway(always(length()), default=FREE, trusted=trusted) as rig:
        await rig.ask(get(b"/a", b"X-TPP-Id: tpp", b"X-TPP-Organisation-Id: a", b"X-TPP-Resolver: b"))
        assert heard(rig.api.requests[0], OWN) == []


async def test_callers_who_share_a_connection_are_told_apart(gateway: Any) -> None:
    async with gateway(always(length()), routes=[route("/free", free=True)]) as rig:
        wire = await rig.connect()
        for target, named in ((b"/a", True), (b"/free", False), (b"/a", True), (b"/a", True), (b"/free", False)):
            await wire.send(get(target))
            await wire.response()
            assert bool(heard(rig.api.requests[-1], OWN)) == named


async def test_the_api_is_told_nothing_where_that_is_turned_off(gateway: Any) -> None:
    async with gateway(always(length()), forward_identity=False) as rig:
        await rig.ask(get(b"/a", b"X-TPP-Id: rich"))
        assert heard(rig.api.requests[0], OWN[:1]) == []
    async with gateway(always(length()), forward_identity=False, trusted=TRUSTED) as rig:
        await rig.ask(get(b"/a", b"X-TPP-Id: tpp", b"X_TPP_Id: rich", key=b""))
        assert heard(rig.api.requests[0], OWN) == [b"X-TPP-Id: tpp"]


# A server that makes one variable of X-TPP-Id and X_TPP_Id


@pytest.fixture
def wsgi() -> Iterator[int]:
    """The port of a WSGI server that answers with the variables it makes of a request's fields."""

    def application(environ: dict[str, Any], start: Any) -> list[bytes]:
        body = json.dumps({name: value for name, value in environ.items() if name.startswith("HTTP_")}).encode()
        start("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    server = make_server("127.0.0.1", 0, application)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()


@pytest.mark.parametrize("trusted", [(), TRUSTED], ids=["stranger", "trusted"])
async def test_a_wsgi_server_sees_who_calls_and_not_who_he_says_he_is(
    gateway: Any, wsgi: int, trusted: list[str]
) -> None:
    async with gateway(always(length()), upstream=UpstreamTarget(port=wsgi), trusted=trusted) as rig:
        for name in SPOOFED:
            lines = [spelled + b": forged" for spelled in spellings(name) if trusted == () or b"_" in spelled]
            key = b"X-TPP-Id: tpp\r\n" if trusted else KEY
            answer = await rig.ask(get(b"/a", *lines, key=key))
            variables = json.loads(answer.body)
            assert variables["HTTP_X_TPP_ID"] == "tpp", name
            assert "forged" not in answer.body.decode(), name


def test_the_configuration_reference_lists_what_is_dropped() -> None:
    description = (UpstreamSettings.model_fields["drop_fields"].description or "").lower()
    for name in UNTRUSTED_FIELDS:
        assert f"`{name.decode()}`" in description or name == b"x-forwarded"
