"""What the identity tests share: clocks that are set by hand, certificates, issuers with keys, stores that
can be down.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import jwt
import orjson
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import settings

from sidecar.identity.jwks import KeySetError
from sidecar.identity.types import KeyStoreUnavailable, Outcome, Peer, Unidentified

TRUSTED = Peer("10.0.0.7", trusted=True)
STRANGER = Peer("203.0.113.9", trusted=False)

ORGANISATION_IDENTIFIER = x509.ObjectIdentifier("2.5.4.97")
#: No deadline: a busy machine is no failure.
fuzz = settings(deadline=None, max_examples=200)

NOW_S = 1_800_000_000.0
ISSUER = "https://id.bank.example"
AUDIENCE = "open-banking"


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


class MemoryKeyStore:
    """API keys in memory. It can be down, slow (``gate``) and tells what it was asked."""

    def __init__(self, accounts: Mapping[str, str]) -> None:
        self.accounts = {hashlib.sha256(key.encode()).hexdigest(): account for key, account in accounts.items()}
        self.down = False
        self.gate: asyncio.Event | None = None
        self.asked: list[str] = []

    async def account_of(self, sha256_hex: str) -> str | None:
        self.asked.append(sha256_hex)
        if self.gate is not None:
            await self.gate.wait()
        if self.down:
            raise KeyStoreUnavailable("connection refused")
        return self.accounts.get(sha256_hex)


class MemoryKeySource:
    """A JWKS in memory, which can be changed, be down and be slow."""

    description = "memory"
    must_work_at_start = False

    def __init__(self, document: bytes) -> None:
        self.document = document
        self.down = False
        self.gate: asyncio.Event | None = None

    async def open(self) -> None:
        pass

    async def fetch(self) -> bytes:
        if self.gate is not None:
            await self.gate.wait()
        if self.down:
            raise KeySetError("it cannot be read")
        return self.document

    async def close(self) -> None:
        pass


PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@functools.cache
def rsa_key(name: str = "one", bits: int = 2048) -> rsa.RSAPrivateKey:
    """One key per name and size for the whole run: they take a tenth of a second to make."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@dataclass(frozen=True)
class IssuerKey:
    """A signing key of an issuer, under a key id."""

    kid: str | None
    alg: str
    private: PrivateKey

    def jwk(self, **changes: object) -> dict[str, Any]:
        algorithm = jwt.get_algorithm_by_name(self.alg)
        member: dict[str, Any] = algorithm.to_jwk(self.private.public_key(), as_dict=True)
        member |= {"use": "sig", "kid": self.kid, "alg": self.alg} | changes
        member.pop("key_ops", None) if "key_ops" not in changes else None
        return {name: value for name, value in member.items() if value is not None}

    def sign(self, claims: Mapping[str, Any], **headers: object) -> str:
        if self.kid is not None:
            headers = {"kid": self.kid, **headers}
        return jwt.encode(dict(claims), self.private, algorithm=self.alg, headers=headers)

    def token(self, **changes: object) -> str:
        return self.sign(claims(**changes))


def es_key(kid: str | None = "k1") -> IssuerKey:
    return IssuerKey(kid, "ES256", ec.generate_private_key(ec.SECP256R1()))


def rs_key(kid: str | None = "r1", alg: str = "RS256", name: str = "one") -> IssuerKey:
    return IssuerKey(kid, alg, rsa_key(name))


def claims(**changes: object) -> dict[str, Any]:
    """Claims of a good token; a change to None leaves the claim out."""
    good: dict[str, object] = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "exp": NOW_S + 600,
        "client_id": "tpp-1",
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


def key_set(*members: IssuerKey | Mapping[str, Any]) -> bytes:
    return orjson.dumps({"keys": [m.jwk() if isinstance(m, IssuerKey) else m for m in members]})


def bearer(token: str) -> dict[bytes, bytes]:
    return {b"authorization": b"Bearer " + token.encode()}


@functools.cache
def certificate_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def certificate(
    *identifiers: str, common_name: str = "tpp.example", not_after_s: float = NOW_S + 86_400
) -> x509.Certificate:
    """A self-signed certificate with these organisation identifiers in its subject."""
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "GB"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "TPP Ltd, London"),
        ]
        + [x509.NameAttribute(ORGANISATION_IDENTIFIER, text) for text in identifiers]
        + [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    )
    not_after = dt.datetime.fromtimestamp(not_after_s, dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(certificate_key().public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_after - dt.timedelta(days=365))
        .not_valid_after(not_after)
        .sign(certificate_key(), hashes.SHA256())
    )


def der(cert: x509.Certificate) -> bytes:
    return cert.public_bytes(Encoding.DER)


def url_encoded_pem(cert: x509.Certificate) -> str:
    """As Envoy writes it: everything but letters and digits and a few signs is percent-encoded."""
    return quote(cert.public_bytes(Encoding.PEM).decode(), safe="")


def xfcc(*pairs: tuple[str, str]) -> bytes:
    """One element of X-Forwarded-Client-Cert with values as they are given, quotes included."""
    return ";".join(f"{key}={value}" for key, value in pairs).encode()


async def settled(outcome: Outcome | asyncio.Future[Outcome] | None) -> Outcome | None:
    """The outcome, waited for if it needs to be."""
    return await outcome if isinstance(outcome, asyncio.Future) else outcome


def reason_of(outcome: object) -> str:
    assert isinstance(outcome, Unidentified), outcome
    return outcome.reason


def ids(cases: Sequence[tuple[Any, ...]]) -> list[str]:
    """Names for parametrised cases: their last member."""
    return [str(case[-1]) for case in cases]
