"""Verification of one JWT (RFC 7519) with one key, along RFC 8725. No I/O, no clock of its own."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import jwt

from sidecar.identity.account_id import is_account_id
from sidecar.identity.jwks import SigningKey

TOKEN_BYTES_MAX: Final = 8192
"""Longer than any token that fits beside other fields into usual header limits."""

#: JWS compact form, RFC 7515 section 7.1.
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")

#: What PyJWT raises for bytes that are no token, and what Python adds for JSON that is deep, large or odd.
_BAD_TOKEN = (jwt.PyJWTError, ValueError, TypeError, RecursionError, OverflowError)


_THUMBPRINT: Final = "x5t#S256"
_SHA256 = re.compile(r"[A-Za-z0-9_-]{43}")
"""In base64url without padding: 32 bytes."""

NO_JWT: Final = "the bearer token in Authorization is not a JWT"


class TokenRefused(Exception):
    """The token is no good; the message fits into an error_description (RFC 6750 section 3)."""


class WrongSignature(TokenRefused):
    """The key is not the one that the token was signed with."""


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What a token must be like. ``audience`` None: not looked at; ``types`` None: any. Times in seconds."""

    algorithms: tuple[str, ...]
    issuer: str
    audience: tuple[str, ...] | None
    types: tuple[str, ...] | None
    account_claim: str
    leeway_s: float


@dataclass(frozen=True, slots=True)
class TokenHeader:
    """The part of the header that chooses the key."""

    algorithm: str
    key_id: str | None


@dataclass(frozen=True, slots=True)
class Verified:
    """The account, and the Unix second from which the token is no good any more (leeway included).

    ``certificate``: SHA-256 of the client certificate that the token is bound to (RFC 8705 section 3.1); None: of none.
    """

    account: str
    ends_at_s: float
    certificate: bytes | None = None


def read_header(token: str, rules: TokenRules) -> TokenHeader:
    """Read the unverified header, and refuse what no key could make good. Raises ``TokenRefused``."""
    if len(token) > TOKEN_BYTES_MAX:
        raise TokenRefused("the token is too long")
    if _COMPACT.fullmatch(token) is None:
        raise TokenRefused(NO_JWT)
    try:
        header: Mapping[str, Any] = jwt.get_unverified_header(token)
    except _BAD_TOKEN:
        raise TokenRefused("the token is malformed") from None
    if "crit" in header:  # RFC 7515 section 4.1.11: extensions that are not understood must be refused
        raise TokenRefused("the token has critical extensions")
    algorithm, key_id, kind = header.get("alg"), header.get("kid"), header.get("typ")
    if algorithm not in rules.algorithms:
        raise TokenRefused("the algorithm of the token is not accepted")
    if not isinstance(key_id, str | None):
        raise TokenRefused("the token is malformed")
    if rules.types is not None and _media_type(kind) not in map(_media_type, rules.types):
        raise TokenRefused("the type of the token is not accepted")
    return TokenHeader(str(algorithm), key_id)


def verify(token: str, header: TokenHeader, key: SigningKey, rules: TokenRules, now_s: float) -> Verified:
    """Verify signature, issuer, audience and times, and take the account from its claim.

    ``now_s`` in Unix seconds. Raises ``TokenRefused``.
    """
    try:
        claims: Mapping[str, Any] = jwt.decode(
            token,
            key.public_key,
            algorithms=[header.algorithm],
            issuer=rules.issuer,
            audience=rules.audience,
            # Times are compared below, on the clock that the caller gives; sub and jti mean nothing here.
            options={
                "require": ["exp", "iss"],
                "verify_aud": rules.audience is not None,
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
                "verify_sub": False,
                "verify_jti": False,
            },
        )
    except jwt.InvalidAudienceError:
        raise TokenRefused("the token is for another audience") from None
    except jwt.InvalidIssuerError:
        raise TokenRefused("the token is from another issuer") from None
    except jwt.MissingRequiredClaimError as error:
        raise TokenRefused(f"the token lacks the claim {error.claim}") from None
    except jwt.InvalidSignatureError:
        raise WrongSignature("the signature of the token is wrong") from None
    except _BAD_TOKEN:
        raise TokenRefused("the token is malformed") from None
    ends_at_s = _time(claims, "exp") + rules.leeway_s
    if now_s >= ends_at_s:
        raise TokenRefused("the token has expired")
    if "nbf" in claims and now_s < _time(claims, "nbf") - rules.leeway_s:
        raise TokenRefused("the token is not valid yet")
    return Verified(_account(claims, rules.account_claim), ends_at_s, _certificate(claims))


def _media_type(kind: object) -> str | None:
    """Compare ``typ`` as RFC 7515 section 4.1.9 has it: without case, "application/" left out."""
    return kind.lower().removeprefix("application/") if isinstance(kind, str) else None


def _time(claims: Mapping[str, Any], name: str) -> float:
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not -(2**53) < value < 2**53:
        raise TokenRefused(f"the claim {name} is not a time")
    return float(value)


def _certificate(claims: Mapping[str, Any]) -> bytes | None:
    """The confirmation of a token that only who has a certificate's key may use (RFC 7800, RFC 8705)."""
    confirmation = claims.get("cnf")
    if confirmation is None:
        return None
    if not isinstance(confirmation, Mapping) or confirmation.keys() != {_THUMBPRINT}:
        # Another proof of possession is none that is looked at here, so nothing would have been proven.
        raise TokenRefused("the token is bound to something else than a client certificate")
    value = confirmation[_THUMBPRINT]
    if not isinstance(value, str) or _SHA256.fullmatch(value) is None:
        raise TokenRefused("the confirmation of the token is malformed")
    return urlsafe_b64decode(value + "=")


def _account(claims: Mapping[str, Any], path: str) -> str:
    value: object = claims.get(path)
    if value is None:  # else the claim's own name has dots in it, as those of namespaced claims do
        value = claims
        for step in path.split("."):
            value = value.get(step) if isinstance(value, Mapping) else None
    if not isinstance(value, str):
        raise TokenRefused("the token names no account")
    if not is_account_id(value):
        raise TokenRefused("the account claim of the token is not an account id")
    return value
