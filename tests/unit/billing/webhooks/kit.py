"""Signing as Lago does, and a clock that is moved by hand."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

HMAC_KEY = "hmac-key-of-the-organisation"
ISSUER = "https://lago.example"


def hmac_signature(body: bytes, key: str = HMAC_KEY) -> str:
    """lago-api ``app/models/webhook.rb``: Base64 of HMAC-SHA256."""
    return base64.b64encode(hmac.new(key.encode(), body, hashlib.sha256).digest()).decode()


class SigningKey:
    """An RSA key of Lago's."""

    def __init__(self, bits: int = 2048) -> None:
        self.private = rsa.generate_private_key(public_exponent=65537, key_size=bits)

    @property
    def pem(self) -> bytes:
        return self.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def sign(self, body: bytes, **changes: Any) -> str:
        """A JWT; ``changes`` replace claims, None leaves one out."""
        claims = {"data": body.decode(), "iss": ISSUER, **changes}
        return jwt.encode({k: v for k, v in claims.items() if v is not None}, self.private, algorithm="RS256")


class HandClock:
    """Time stands still until it is moved. Waiting lets others run and takes no time."""

    def __init__(self) -> None:
        self.at_s = 1_000.0

    def now_s(self) -> float:
        return 1_700_000_000.0 + self.at_s

    def monotonic_s(self) -> float:
        return self.at_s

    async def wait(self, event: asyncio.Event, timeout_s: float) -> bool:
        await asyncio.sleep(0)
        return event.is_set()
