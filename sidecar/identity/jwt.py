"""Identity from a JWT in ``Authorization: Bearer``."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from sidecar.identity.cache import BoundedCache
from sidecar.identity.field_names import AUTHORIZATION
from sidecar.identity.jwks import SigningKey
from sidecar.identity.jwt_token import (
    TOKEN_BYTES_MAX,
    TokenHeader,
    TokenRefused,
    TokenRules,
    read_header,
    verify,
)
from sidecar.identity.key_ring import KeyRing
from sidecar.identity.settings import JwtSettings
from sidecar.identity.types import Fields, Identity, IdentityUnavailable, Outcome, Peer, Unidentified, identified

_SCHEME = b"bearer"
_VALUE_BYTES_MAX = len(_SCHEME) + 1 + TOKEN_BYTES_MAX


@dataclass(frozen=True, slots=True)
class _Remembered:
    identity: Identity
    until_s: float


class JwtResolver:
    """Verifies bearer tokens against the issuer's keys, and remembers the good ones by their digest.

    A remembered token is accepted until it expires, ``cache_ttl_s`` have passed, or a reading of the keys
    shows that one was withdrawn. So the tokens of a withdrawn key end after ``cache_ttl_s`` plus
    ``jwks_ttl_s`` at the latest. ``verifications`` counts for the metrics.
    """

    name = "jwt"
    reads = frozenset({AUTHORIZATION})
    spoofable: frozenset[bytes] = frozenset()
    refused_lookups = 0

    def __init__(
        self, settings: JwtSettings, ring: KeyRing, *, realm: str, wall: Callable[[], float] = time.time
    ) -> None:
        self.consumes = frozenset() if settings.forward else self.reads
        self.challenge = f'Bearer realm="{realm}"'
        self.asks_for = "a bearer token in Authorization"
        self.verifications = 0
        self.ring = ring
        self._rules = TokenRules(
            algorithms=settings.algorithms,
            issuer=settings.issuer,
            audience=settings.audience,
            types=settings.token_types,
            account_claim=settings.account_claim,
            leeway_s=settings.leeway_s,
        )
        self._wall = wall
        self._cache_ttl_s = settings.cache_ttl_s
        self._tokens: BoundedCache[bytes, _Remembered] = BoundedCache(settings.cache_entries)
        self._withdrawals = 0

    def resolve(self, fields: Fields, peer: Peer) -> Outcome | asyncio.Future[Outcome] | None:
        """See ``Resolver.resolve``. Credentials of another scheme, such as Basic, are not of this kind."""
        value = fields.get(AUTHORIZATION)
        if value is None or value[:6].lower() != _SCHEME or value[6:7] not in (b" ", b""):
            return None
        if len(value) > _VALUE_BYTES_MAX:
            return self._refuse("the token is too long")
        if self._withdrawals != self.ring.withdrawals:
            self._withdrawals = self.ring.withdrawals
            self._tokens.clear()
        digest = hashlib.sha256(value).digest()
        remembered = self._tokens.get(digest)
        if remembered is not None and self._wall() < remembered.until_s:
            return remembered.identity
        return self._examine(value[7:].lstrip(b" ").decode("latin-1"), digest)

    def _examine(self, token: str, digest: bytes) -> Outcome | asyncio.Future[Outcome]:
        try:
            header = read_header(token, self._rules)
        except TokenRefused as refused:
            return self._refuse(str(refused))
        key = self.ring.ready(header.key_id, header.algorithm)
        if key is not None:
            return self._verify(token, header, key, digest)
        if self.ring.may_read():
            return asyncio.ensure_future(self._verify_later(token, header, digest))
        if self.ring.failing:
            unavailable: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
            unavailable.set_exception(IdentityUnavailable("the gateway cannot read the issuer's keys"))
            return unavailable
        return self._unknown_key()

    async def _verify_later(self, token: str, header: TokenHeader, digest: bytes) -> Outcome:
        key = await self.ring.read_for(header.key_id, header.algorithm)
        return self._unknown_key() if key is None else self._verify(token, header, key, digest)

    def _verify(self, token: str, header: TokenHeader, key: SigningKey, digest: bytes) -> Outcome:
        self.verifications += 1
        now_s = self._wall()
        try:
            verified = verify(token, header, key, self._rules, now_s)
        except TokenRefused as refused:
            return self._refuse(str(refused))
        identity = identified(verified.account, self.name)
        self._tokens.put(digest, _Remembered(identity, min(verified.ends_at_s, now_s + self._cache_ttl_s)))
        return identity

    def _unknown_key(self) -> Unidentified:
        return self._refuse("the token is signed with a key that the issuer does not publish")

    def _refuse(self, reason: str) -> Unidentified:
        """Answer a refusal as RFC 6750 section 3.1 has it: whatever is wrong with it, ``invalid_token``."""
        return Unidentified(reason, f'{self.challenge}, error="invalid_token", error_description="{reason}"')

    async def start(self) -> None:
        """Read the keys once. Raises ``IdentitySetupError``."""
        await self.ring.start()

    async def close(self) -> None:
        """End a reading of keys under way."""
        await self.ring.close()

    def __repr__(self) -> str:
        return f"JwtResolver({self._rules.issuer}, {self.ring!r}, {self._tokens!r})"
