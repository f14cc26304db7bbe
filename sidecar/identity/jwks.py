"""JSON Web Key Sets (RFC 7517): which keys there are, and which one a token's header means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import jwt.algorithms
import orjson
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

KEYS_MAX: Final = 100
RSA_BITS_MIN: Final = 2048  # RFC 7518 section 3.3
RSA_BITS_MAX: Final = 8192  # verifying takes time with the square of the length, on the request path
_MEMBER_CHARACTERS_MAX: Final = 1400  # base64 of RSA_BITS_MAX

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey | Ed448PublicKey

#: Members that make up each kind of public key. Nothing else is read: not the private ones, not x5u.
_MEMBERS: Final[Mapping[str, tuple[str, ...]]] = {
    "RSA": ("kty", "n", "e"),
    "EC": ("kty", "crv", "x", "y"),
    "OKP": ("kty", "crv", "x"),
}
_RSA_ALGORITHMS: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
#: RFC 7518 section 3.4 ties each ES algorithm to one curve.
_CURVE_ALGORITHMS: Final[Mapping[str, frozenset[str]]] = {
    "P-256": frozenset({"ES256"}),
    "P-384": frozenset({"ES384"}),
    "P-521": frozenset({"ES512"}),
    "Ed25519": frozenset({"EdDSA"}),
    "Ed448": frozenset({"EdDSA"}),
}


class KeySetError(Exception):
    """There is no usable key set; the message says why."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A public key and the algorithms it may verify. ``spki`` is its DER form, by which keys are compared."""

    key_id: str | None
    algorithms: frozenset[str]
    public_key: PublicKey
    spki: bytes


@dataclass(frozen=True, slots=True)
class KeySet:
    """The usable keys of a set. ``skipped`` counts the others: not for signatures, too short, unknown."""

    keys: tuple[SigningKey, ...]
    skipped: int = 0

    def find(self, key_id: str | None, algorithm: str) -> SigningKey | None:
        """Answer the one key for a token's ``kid`` and ``alg``; None if there is none or more than one."""
        fitting = [key for key in self.keys if algorithm in key.algorithms and (key_id is None or key.key_id == key_id)]
        return fitting[0] if len(fitting) == 1 else None

    def lacks_any_of(self, older: KeySet) -> bool:
        """Tell whether a key of ``older`` is no longer here, or may verify less."""
        return not older._abilities() <= self._abilities()

    def _abilities(self) -> set[tuple[str | None, bytes, str]]:
        return {(key.key_id, key.spki, algorithm) for key in self.keys for algorithm in key.algorithms}


def parse_key_set(document: bytes) -> KeySet:
    """Read a JWKS. Keys that cannot verify signatures are skipped (RFC 7517 section 5).

    Raises ``KeySetError`` if it is no key set or no key is left.
    """
    try:
        content = orjson.loads(document)
    except orjson.JSONDecodeError:
        raise KeySetError("it is not JSON") from None
    members = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(members, list):
        raise KeySetError('it has no list "keys"')
    if len(members) > KEYS_MAX:
        raise KeySetError(f"it has more than {KEYS_MAX} keys")
    keys = [key for member in members if (key := _signing_key(member)) is not None]
    if not keys:
        raise KeySetError("it has no key that verifies signatures")
    return KeySet(tuple(keys), skipped=len(members) - len(keys))


def _signing_key(member: object) -> SigningKey | None:
    if not isinstance(member, dict):
        return None
    key_id = member.get("kid")
    if not isinstance(key_id, str | None) or not _is_for_verifying(member):
        return None
    public_key = _public_key(member)
    if public_key is None:
        return None
    algorithms = _RSA_ALGORITHMS if isinstance(public_key, RSAPublicKey) else _CURVE_ALGORITHMS[member["crv"]]
    declared = member.get("alg")
    if declared is not None:
        algorithms = algorithms & {declared} if isinstance(declared, str) else frozenset()
    if not algorithms:
        return None
    spki = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return SigningKey(key_id, algorithms, public_key, spki)


def _is_for_verifying(member: Mapping[str, Any]) -> bool:
    operations = member.get("key_ops")
    return member.get("use") in (None, "sig") and (
        operations is None or (isinstance(operations, list) and "verify" in operations)
    )


def _is_short_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _MEMBER_CHARACTERS_MAX


def _public_key(member: Mapping[str, Any]) -> PublicKey | None:
    kind = member.get("kty")
    names = _MEMBERS.get(kind) if isinstance(kind, str) else None
    if names is None or not all(_is_short_text(member.get(name)) for name in names):
        return None
    if kind != "RSA" and member["crv"] not in _CURVE_ALGORITHMS:
        return None
    try:
        key = _read({name: member[name] for name in names})
    except (jwt.PyJWTError, ValueError, TypeError, ArithmeticError):
        return None  # one key that is broken must not take the others along
    if isinstance(key, RSAPublicKey):
        return key if RSA_BITS_MIN <= key.key_size <= RSA_BITS_MAX else None
    return key if isinstance(key, EllipticCurvePublicKey | Ed25519PublicKey | Ed448PublicKey) else None


def _read(member: Mapping[str, str]) -> object:
    if member["kty"] == "RSA":
        return jwt.algorithms.RSAAlgorithm.from_jwk(dict(member))
    if member["kty"] == "EC":
        return jwt.algorithms.ECAlgorithm.from_jwk(dict(member))
    return jwt.algorithms.OKPAlgorithm.from_jwk(dict(member))
