"""Identity from an API key.

Keys are known only by their SHA-256: in the store, in the caches and in the look-up. A plain hash without
salt is enough because keys are random (128 bits or more) and cannot be guessed from it. It also makes timing
harmless: what is compared, by dictionary or by Valkey, is a digest, and nobody can steer the digest of a key
towards that of another.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from sidecar.identity.cache import BoundedCache
from sidecar.identity.field_names import lower
from sidecar.identity.lookup_turns import LookupTurns
from sidecar.identity.settings import ApiKeySettings
from sidecar.identity.single_flight import SingleFlight
from sidecar.identity.types import (
    Fields,
    Identity,
    IdentityUnavailable,
    KeyStore,
    KeyStoreUnavailable,
    Outcome,
    Peer,
    Unidentified,
    identified,
)

#: Visible ASCII without comma (a list is two keys, hence none). Longer values are not worth a look-up.
_KEY = re.compile(rb"[!-+\--~]{1,512}")

#: While the store is out of reach, stale keys ask it again at most this often.
_COOL_DOWN_S: Final = 1.0


def key_digest(key: str) -> str:
    """Answer what the store keeps of a key: SHA-256 in lower-case hexadecimal.

    Raises ``ValueError`` if no request could carry the key. The message does not repeat it.
    """
    raw = key.encode("utf-8", "surrogatepass")
    if _KEY.fullmatch(raw) is None:
        raise ValueError("an API key is 1 to 512 visible ASCII characters without comma")
    return hashlib.sha256(raw).hexdigest()


@dataclass(frozen=True, slots=True)
class _Known:
    identity: Identity
    fresh_until_s: float
    stale_until_s: float


class ApiKeyResolver:
    """Looks keys up in the store, once for many waiting requests, and remembers the answers.

    A key that was just confirmed is answered without I/O. One whose time is up waits for the store, so that a
    revoked key ends with its ``ttl_s``; while the store is out of reach it goes on for ``max_stale_s``. Good
    and bad keys are kept apart: a flood of invented keys must not push the good ones out, nor keep them waiting.

    ``lookups``, ``failures`` and ``stale_answers`` count for the metrics.
    """

    name = "api_key"
    spoofable: frozenset[bytes] = frozenset()

    def __init__(
        self,
        settings: ApiKeySettings,
        store: KeyStore,
        *,
        realm: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._field = lower(settings.header)
        self.reads = frozenset({self._field})
        self.consumes = frozenset() if settings.forward else self.reads
        self.challenge = f'ApiKey realm="{realm}", header="{settings.header}"'
        self.asks_for = f"an API key in {settings.header}"
        self.lookups = 0
        self.failures = 0
        self.stale_answers = 0
        self._settings = settings
        self._store = store
        self._clock = clock
        self._unknown_key = Unidentified("the API key is not known", self.challenge)
        self._malformed = Unidentified("the API key is malformed", self.challenge)
        self._known: BoundedCache[bytes, _Known] = BoundedCache(settings.cache_entries)
        self._refused_until_s: BoundedCache[bytes, float] = BoundedCache(settings.cache_entries)
        self._flight: SingleFlight[bytes, Outcome] = SingleFlight()
        self._ask_again_at_s = float("-inf")
        self.turns = LookupTurns()

    def resolve(self, fields: Fields, peer: Peer) -> Outcome | asyncio.Future[Outcome] | None:
        """See ``Resolver.resolve``."""
        key = fields.get(self._field)
        if key is None:
            return None
        digest = hashlib.sha256(key).digest()
        now = self._clock()
        known = self._known.get(digest)
        if known is not None:
            if now < known.fresh_until_s:
                return known.identity
            if now < self._ask_again_at_s and now < known.stale_until_s:
                self.stale_answers += 1
                return known.identity
        elif _KEY.fullmatch(key) is None:
            return self._malformed
        refused_until_s = self._refused_until_s.get(digest)
        if refused_until_s is not None and now < refused_until_s:
            return self._unknown_key
        return self._flight.join(digest, partial(self._look_up, digest, peer.address, known is not None))

    async def _look_up(self, digest: bytes, peer: str, known: bool) -> Outcome:
        self.lookups += 1
        try:
            async with asyncio.timeout(self._settings.lookup_timeout_s):
                await self.turns.take(peer, known=known)
                try:
                    account = await self._store.account_of(digest.hex())
                finally:
                    self.turns.give_back(known=known)
        except (KeyStoreUnavailable, TimeoutError):
            return self._without_store(digest)
        now = self._clock()
        self._ask_again_at_s = float("-inf")
        if account is None:
            self._known.drop(digest)
            self._refused_until_s.put(digest, now + self._settings.negative_ttl_s)
            return self._unknown_key
        identity = identified(account, self.name)
        stale_s = max(self._settings.ttl_s, self._settings.max_stale_s)
        self._known.put(digest, _Known(identity, now + self._settings.ttl_s, now + stale_s))
        return identity

    def _without_store(self, digest: bytes) -> Outcome:
        self.failures += 1
        now = self._clock()
        self._ask_again_at_s = now + _COOL_DOWN_S
        known = self._known.get(digest)
        if known is None or now >= known.stale_until_s:
            raise IdentityUnavailable("the store of API keys is unreachable")
        self.stale_answers += 1
        return known.identity

    @property
    def refused_lookups(self) -> int:
        """See ``Resolver``."""
        return self.turns.refused

    async def start(self) -> None:
        """Nothing to do: keys are looked up when they are first seen."""

    async def close(self) -> None:
        """End the look-ups under way; who waits for them gets ``IdentityUnavailable``."""
        await self._flight.close()

    def __repr__(self) -> str:
        field = self._field.decode()
        return f"ApiKeyResolver({field}, known {self._known!r}, refused {self._refused_until_s!r})"
