"""Keeps Lago's public key for webhooks signed with JWT, and fetches it again when a signature is unknown.

Source: ``GET /api/v1/webhooks/json_public_key``; who makes the request is given from outside.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from sidecar.basics.clock import Clock
from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.logger import get_logger

log = get_logger("sidecar.webhooks")

COOL_DOWN_S: Final = 60.0
"""Between two fetches: invented signatures must not turn the receiver on Lago."""
COOL_DOWN_FAILED_S: Final = 5.0
AGE_S_MAX: Final = 3_600.0
"""After which the key is fetched again though every signature is known: a withdrawn one has to end."""
FETCH_TIMEOUT_S: Final = 15.0
PEM_BYTES_MAX: Final = 65_536
RSA_BITS_MIN, RSA_BITS_MAX = 2_048, 16_384


class PublicKeyError(Exception):
    """The fetched text is no key that may check signatures."""


def parse_public_key(pem: bytes) -> RSAPublicKey:
    """Raises ``PublicKeyError``."""
    if len(pem) > PEM_BYTES_MAX:
        raise PublicKeyError(f"it is larger than {PEM_BYTES_MAX} bytes")
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise PublicKeyError("it is not a public key in PEM") from None
    if not isinstance(key, RSAPublicKey):
        raise PublicKeyError("it is not an RSA key")
    if not RSA_BITS_MIN <= key.key_size <= RSA_BITS_MAX:
        raise PublicKeyError(f"an RSA key of {key.key_size} bits is not between {RSA_BITS_MIN} and {RSA_BITS_MAX}")
    return key


class PublicKey:
    """The key as it is now. ``fetch`` answers PEM and may raise anything; a known key stays in use then.

    ``fetches`` and ``failures`` count for the metrics.
    """

    def __init__(self, fetch: Callable[[], Awaitable[bytes]], clock: Clock) -> None:
        self.fetches = 0
        self.failures = 0
        self._fetch = fetch
        self._clock = clock
        self._key: RSAPublicKey | None = None
        self._fetched_at_s = -math.inf
        self._next_fetch_at_s = -math.inf
        self._fetching: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"PublicKey({'known' if self._key else 'unknown'}, {self.fetches} fetches, {self.failures} failures)"

    async def current(self) -> RSAPublicKey | None:
        """The key; None if there is none yet and it cannot be had now. Waits for nothing once a key is known."""
        if self._key is None:
            await self.refresh()
        elif self._clock.monotonic_s() - self._fetched_at_s >= AGE_S_MAX:
            self._begin()
        return self._key

    async def refresh(self) -> RSAPublicKey | None:
        """The key after a fetch, which all who ask meanwhile share; after no fetch within the cool-down."""
        fetching = self._begin()
        if fetching is not None:
            await asyncio.shield(fetching)  # one who stops waiting must not end it for the others
        return self._key

    def _begin(self) -> asyncio.Task[None] | None:
        if self._fetching is None and self._clock.monotonic_s() >= self._next_fetch_at_s:
            self._fetching = asyncio.get_running_loop().create_task(self._run())
        return self._fetching

    async def _run(self) -> None:
        self.fetches += 1
        cool_down_s = COOL_DOWN_FAILED_S
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                pem = await self._fetch()
            key = parse_public_key(pem)
            if self._key is not None and key.public_numbers() != self._key.public_numbers():
                log.info("lago has a new public key for webhooks")
            self._key = key
            self._fetched_at_s = self._clock.monotonic_s()
            cool_down_s = COOL_DOWN_S
        except Exception as error:  # whatever the client of Lago raises, a known key stays in use
            self.failures += 1
            reason = reason_of(error)
            log.warning("cannot read lago's public key for webhooks", reason=reason)
        finally:
            self._next_fetch_at_s = self._clock.monotonic_s() + cool_down_s
            self._fetching = None

    async def close(self) -> None:
        """End a fetch under way."""
        fetching = self._fetching
        if fetching is not None:
            fetching.cancel()
            await asyncio.wait({fetching})
