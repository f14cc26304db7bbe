"""Tokens that are bound to a client certificate (RFC 8705), and keys that were changed under their id."""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64encode
from typing import Any

import pytest

from sidecar.identity.types import Identity, Peer
from tests.unit.identity.kit import (
    bearer,
    certificate,
    der,
    es_key,
    key_set,
    reason_of,
    settled,
    url_encoded_pem,
    xfcc,
)
from tests.unit.identity.test_jwt import World, started

KEY = es_key("one")
MINE, OTHER = certificate("PSDGB-FCA-1"), certificate("PSDGB-FCA-2")
TPP = Identity("tpp-1", "jwt")


def thumbprint(cert: Any) -> str:
    return urlsafe_b64encode(hashlib.sha256(der(cert)).digest()).rstrip(b"=").decode()


def bound(cert: Any = MINE) -> str:
    return KEY.token(cnf={"x5t#S256": thumbprint(cert)})


def tls(cert: Any, *, trusted: bool = False) -> Peer:
    return Peer("203.0.113.9", trusted=trusted, certificate=None if cert is None else der(cert))


async def ask(world: World, token: str, peer: Peer, header: bytes | None = None) -> Any:
    fields = bearer(token) | ({} if header is None else {b"x-forwarded-client-cert": header})
    return await settled(world.resolver.resolve(fields, peer))


async def test_a_bound_token_is_accepted_with_its_certificate_alone() -> None:
    world = await started(KEY)
    for _ in range(2):  # the second one is remembered
        assert await ask(world, bound(), tls(MINE)) == TPP
        assert "another client certificate" in reason_of(await ask(world, bound(), tls(OTHER)))
        assert "shown none" in reason_of(await ask(world, bound(), tls(None)))


async def test_a_bound_token_is_judged_by_its_certificate_while_keys_are_read() -> None:
    world = World(KEY)  # nothing was read yet
    assert "another client certificate" in reason_of(await ask(world, bound(), tls(OTHER)))
    world = World(KEY)
    assert await ask(world, bound(), tls(MINE)) == TPP


async def test_a_token_that_is_not_bound_needs_no_certificate_unless_that_is_required() -> None:
    assert await ask(await started(KEY), KEY.token(), tls(None)) == TPP
    strict = await started(KEY, certificate_binding="required")
    for _ in range(2):
        assert "not bound" in reason_of(await ask(strict, KEY.token(), tls(MINE)))
        assert await ask(strict, bound(), tls(MINE)) == TPP


@pytest.mark.parametrize(
    "cnf",
    [
        "x", [], {}, {"jkt": "x"}, {"x5t#S256": 1}, {"x5t#S256": ""}, {"x5t#S256": "a" * 42}, {"x5t#S256": "a" * 44},
        {"x5t#S256": thumbprint(MINE), "jkt": "x"}, {"x5t#S256": thumbprint(MINE) + "="}, {"jwk": {"kty": "EC"}},
    ],
)  # fmt: skip
async def test_a_confirmation_that_is_not_understood_is_refused(cnf: object) -> None:
    outcome = await ask(await started(KEY), KEY.token(cnf=cnf), tls(MINE))
    assert "bound to something else" in reason_of(outcome) or "malformed" in reason_of(outcome)


async def test_behind_envoy_the_certificate_is_the_one_that_it_tells() -> None:
    world = await started(KEY, certificate_from_xfcc=1)
    cert = xfcc(("Hash", "00" * 32), ("Cert", f'"{url_encoded_pem(MINE)}"'))
    digest = xfcc(("Hash", hashlib.sha256(der(MINE)).hexdigest()), ("Subject", '"CN=x"'))
    envoy = tls(OTHER, trusted=True)
    for header in (cert, digest):
        assert await ask(world, bound(), envoy, header) == TPP
        assert "another client certificate" in reason_of(await ask(world, bound(OTHER), envoy, header))
        assert "shown none" in reason_of(await ask(world, bound(), envoy, header + b"," + header))
        assert "another client certificate" in reason_of(await ask(world, bound(), tls(OTHER), header)), "a stranger"
    for header in (None, b"", b"rubbish", b"Hash=zz", xfcc(("URI", "x"))):
        assert "shown none" in reason_of(await ask(world, bound(), envoy, header))


async def test_without_the_setting_nobody_believes_a_header() -> None:
    header = xfcc(("Cert", f'"{url_encoded_pem(MINE)}"'))
    outcome = await ask(await started(KEY), bound(), tls(None, trusted=True), header)
    assert "shown none" in reason_of(outcome)


async def test_a_key_that_was_changed_under_its_id_is_read_again() -> None:
    world = await started(KEY)
    changed = es_key("one")
    world.source.document = key_set(changed)
    assert "signature" in reason_of(await ask(world, changed.token(), tls(None))), "it was read just now"
    world.pass_time(10)

    assert await ask(world, changed.token(), tls(None)) == TPP

    readings = world.ring.readings
    for _ in range(20):
        assert "signature" in reason_of(await ask(world, KEY.token(), tls(None)))
    assert world.ring.readings == readings, "wrong signatures do not turn the gateway on the issuer"
