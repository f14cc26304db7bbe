"""How the Lago stand-in signs webhooks. Source: lago-api ``app/models/webhook.rb``."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

RSA_BITS = 2048


class Signatures:
    """HMAC-SHA256 over the body, or a JWT (RS256) that holds the body as text. ``issuer`` answers its ``iss``."""

    def __init__(self, hmac_key: str, issuer: Callable[[], str]) -> None:
        self._hmac_key = hmac_key.encode()
        self._issuer = issuer
        self._rsa: RSAPrivateKey | None = None

    def __repr__(self) -> str:
        return "Signatures()"

    def sign(self, algorithm: str, body: bytes) -> str:
        if algorithm == "hmac":
            return base64.b64encode(hmac.digest(self._hmac_key, body, hashlib.sha256)).decode()
        return jwt.encode({"data": body.decode(), "iss": self._issuer()}, self._private_key(), algorithm="RS256")

    def public_key_base64(self) -> str:
        """The public key's PEM in base64 with line breaks, as Ruby's ``Base64.encode64`` writes it."""
        pem = self._private_key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        text = base64.b64encode(pem).decode()
        return "".join(f"{text[at : at + 60]}\n" for at in range(0, len(text), 60))

    def _private_key(self) -> RSAPrivateKey:
        """Made when first asked for, which takes a moment."""
        if self._rsa is None:
            self._rsa = generate_private_key(public_exponent=65537, key_size=RSA_BITS)
        return self._rsa
