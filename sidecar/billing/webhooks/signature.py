"""Checks that a webhook is Lago's (lago-api ``app/models/webhook.rb``).

``hmac``: the Base64 of HMAC-SHA256 over the raw body. ``jwt``: a JWT of RS256 whose claim ``data`` is the raw body
and whose ``iss`` is Lago's own URL. Neither has a time in it, so a copy of an old webhook is as good as new; what a
webhook may do is chosen so that this is harmless.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from sidecar.basics.clock import Clock
from sidecar.billing.settings import WebhookSettings
from sidecar.billing.webhooks.public_key import PublicKey

KEY_BYTES_MAX: Final = 65_536
SIGNATURE_BYTES_MAX: Final = 256
"""Of an HMAC, which has 44. A JWT may be as long as its body makes it."""

_ALGORITHM: Final = "RS256"
#: What PyJWT raises for bytes that are no token, and what Python adds for JSON that is deep, large or odd.
_BAD_TOKEN: Final = (jwt.PyJWTError, ValueError, TypeError, RecursionError, OverflowError)


class WebhookSetupError(Exception):
    """Webhooks cannot be received as configured. The message names the setting."""


class SignatureRefused(Exception):
    """The webhook is not Lago's. The message is for the log; the sender is not told."""


class KeyUnavailable(Exception):
    """Nobody can tell yet: Lago's public key is not known and cannot be had now."""


class _UnknownSignature(SignatureRefused):
    """A JWT that is sound except that another key has signed it."""


class Verifier:
    """The algorithms that are configured; others are refused. ``issuer`` goes with ``public_key``."""

    def __init__(self, hmac_key: bytes | None, public_key: PublicKey | None = None, issuer: str | None = None) -> None:
        assert hmac_key is None or hmac_key
        assert (public_key is None) == (issuer is None)
        self.public_key = public_key
        self._hmac_key = hmac_key
        self._issuer = issuer

    def __repr__(self) -> str:
        return f"Verifier({'hmac ' if self._hmac_key else ''}{self.public_key or ''})"

    @property
    def is_configured(self) -> bool:
        """Whether any algorithm is."""
        return self._hmac_key is not None or self.public_key is not None

    async def verify(self, algorithm: str, signature: bytes, body: bytes) -> None:
        """Raises ``SignatureRefused``, or ``KeyUnavailable``. ``algorithm``: ``X-Lago-Signature-Algorithm``."""
        if algorithm == "hmac" and self._hmac_key is not None:
            verify_hmac(signature, body, self._hmac_key)
        elif algorithm == "jwt" and self.public_key is not None and self._issuer is not None:
            await self._verify_jwt(self.public_key, signature, body, self._issuer)
        else:
            raise SignatureRefused("the algorithm is not configured")

    async def _verify_jwt(self, keys: PublicKey, signature: bytes, body: bytes, issuer: str) -> None:
        key = await keys.current()
        if key is None:
            raise KeyUnavailable
        try:
            verify_jwt(signature, body, key, issuer)
        except _UnknownSignature:
            newer = await keys.refresh()
            if newer is None or newer is key:
                raise
            verify_jwt(signature, body, newer, issuer)


def verify_hmac(signature: bytes, body: bytes, key: bytes) -> None:
    """Raises ``SignatureRefused``. Takes the same time wherever the difference is."""
    # The texts are compared, not what they decode to: Base64 that is merely similar is refused.
    expected = base64.b64encode(hmac.digest(key, body, "sha256"))
    if len(signature) > SIGNATURE_BYTES_MAX or not hmac.compare_digest(expected, signature):
        raise SignatureRefused("the HMAC is not that of the body")


def verify_jwt(signature: bytes, body: bytes, key: RSAPublicKey, issuer: str) -> None:
    """Raises ``SignatureRefused``.

    Only RS256 is taken, whatever the token says (RFC 8725 section 3.1): with any other algorithm the public key could
    be used as if it were a secret, or none be needed.
    """
    try:
        header: dict[str, Any] = jwt.get_unverified_header(signature)
        if header.get("alg") != _ALGORITHM or "crit" in header:
            raise SignatureRefused("the header of the JWT is not that of Lago")
        claims: dict[str, Any] = jwt.decode(
            signature,
            key,
            algorithms=[_ALGORITHM],
            # Lago sets iss and data alone; a time that it may set one day is looked at.
            options={"verify_aud": False, "verify_iss": False, "verify_iat": False, "verify_sub": False},
        )
    except jwt.InvalidSignatureError:
        raise _UnknownSignature("the JWT is not signed with the key of Lago") from None
    except _BAD_TOKEN:
        raise SignatureRefused("the JWT is malformed or has expired") from None
    issued_by, data = claims.get("iss"), claims.get("data")
    if not isinstance(issued_by, str) or issued_by.rstrip("/") != issuer.rstrip("/"):
        raise SignatureRefused("the JWT has another issuer")
    if not isinstance(data, str) or not hmac.compare_digest(data.encode(errors="surrogatepass"), body):
        raise SignatureRefused("the JWT is for another body")


def verifier_of(
    settings: WebhookSettings, lago_url: str | None, fetch_public_key: Callable[[], Awaitable[bytes]], clock: Clock
) -> Verifier:
    """The verifier for the settings; reads ``hmac_key_file``. ``lago_url`` is the issuer unless the settings name one.

    Raises:
        WebhookSetupError: the file cannot be used, or nobody says who issues the JWTs.
    """
    hmac_key: bytes | None = None
    if settings.hmac_key is not None:
        hmac_key = settings.hmac_key.get_secret_value().encode()
    elif settings.hmac_key_file is not None:
        hmac_key = _read_key(settings.hmac_key_file)
    if not settings.jwt:
        return Verifier(hmac_key)
    issuer = settings.jwt_issuer or lago_url
    if not issuer:
        raise WebhookSetupError("lago.webhooks.jwt_issuer is not set, and neither is lago.url")
    return Verifier(hmac_key, PublicKey(fetch_public_key, clock), issuer)


def _read_key(path: Path) -> bytes:
    """The file's text without one newline at its end."""
    where = f"lago.webhooks.hmac_key_file: {path}"
    try:
        with path.open("rb") as file:
            raw = file.read(KEY_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        raise WebhookSetupError(f"{where}: {getattr(error, 'strerror', None) or 'is not a path'}") from None
    if len(raw) > KEY_BYTES_MAX:
        raise WebhookSetupError(f"{where} is larger than {KEY_BYTES_MAX} bytes")
    key = raw.removesuffix(b"\n").removesuffix(b"\r")
    if not key:
        raise WebhookSetupError(f"{where} is empty")
    return key
