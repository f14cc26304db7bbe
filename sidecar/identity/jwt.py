"""Identity from a JWT in ``Authorization: Bearer``."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sidecar.identity.cache import BoundedCache
from sidecar.identity.field_names import AUTHORIZATION, XFCC, spellings
from sidecar.identity.jwks import SigningKey
from sidecar.identity.jwt_token import (
    TOKEN_BYTES_MAX,
    TokenHeader,
    TokenRefused,
    TokenRules,
    WrongSignature,
    read_header,
    verify,
)
from sidecar.identity.key_ring import KeyRing
from sidecar.identity.settings import JwtSettings
from sidecar.identity.types import Fields, Identity, IdentityUnavailable, Outcome, Peer, Unidentified, identified
from sidecar.identity.xfcc import certificate_digest

_SCHEME = b"bearer"
_VALUE_BYTES_MAX = len(_SCHEME) + 1 + TOKEN_BYTES_MAX


@dataclass(frozen=True, slots=True)
class _Remembered:
    identity: Identity
    until_s: float
    certificate: bytes | None


class JwtResolver:
    """Verifies bearer tokens against the issuer's keys, and remembers the good ones by their digest.

    A remembered token is accepted until it expires, ``cache_ttl_s`` have passed, or a reading of the keys
    shows that one was withdrawn. So the tokens of a withdrawn key end after ``cache_ttl_s`` plus
    ``jwks_ttl_s`` at the latest. ``verifications`` counts for the metrics.

    A token that is bound to a client certificate (RFC 8705 section 3) is accepted only with it: that of the connection,
    or what the proxies in front say of it (``certificate_from_xfcc``).
    """

    name = "jwt"
    refused_lookups = 0

    def __init__(
        self, settings: JwtSettings, ring: KeyRing, *, realm: str, wall: Callable[[], float] = time.time
    ) -> None:
        self._proxies = settings.certificate_from_xfcc
        self.reads = frozenset({AUTHORIZATION} if self._proxies is None else {AUTHORIZATION, XFCC})
        self.spoofable: frozenset[bytes] = frozenset() if self._proxies is None else spellings(XFCC)
        self.consumes: frozenset[bytes] = frozenset() if settings.forward else frozenset({AUTHORIZATION})
        self._binding_required = settings.certificate_binding == "required"
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
            return self._bound(remembered, fields, peer)
        found = self._examine(value[7:].lstrip(b" ").decode("latin-1"), digest)
        if isinstance(found, asyncio.Future):
            # Of the request as it is now: its fields are not kept.
            return asyncio.ensure_future(self._bound_later(found, self._shown_certificate(fields, peer)))
        return self._bound(found, fields, peer) if isinstance(found, _Remembered) else found

    async def _bound_later(self, found: asyncio.Future[_Remembered | Unidentified], shown: bytes | None) -> Outcome:
        verified = await found
        return self._bound_to(verified, shown) if isinstance(verified, _Remembered) else verified

    def _bound(self, verified: _Remembered, fields: Fields, peer: Peer) -> Outcome:
        shown = None if verified.certificate is None else self._shown_certificate(fields, peer)
        return self._bound_to(verified, shown)

    def _bound_to(self, verified: _Remembered, shown: bytes | None) -> Outcome:
        """The identity, if the token's certificate is that of the caller."""
        if verified.certificate is None:
            if self._binding_required:
                return self._refuse("the token is not bound to a client certificate")
            return verified.identity
        if shown is None:
            return self._refuse("the token is bound to a client certificate, and the caller has shown none")
        if not hmac.compare_digest(shown, verified.certificate):
            return self._refuse("the token is bound to another client certificate")
        return verified.identity

    def _shown_certificate(self, fields: Fields, peer: Peer) -> bytes | None:
        """SHA-256 of the caller's certificate."""
        if self._proxies is not None and peer.trusted:
            header = fields.get(XFCC)
            return None if header is None else certificate_digest(header, self._proxies)
        return None if peer.certificate is None else hashlib.sha256(peer.certificate).digest()

    def _examine(self, token: str, digest: bytes) -> _Remembered | Unidentified | asyncio.Future[Any]:
        try:
            header = read_header(token, self._rules)
        except TokenRefused as refused:
            return self._refuse(str(refused))
        key = self.ring.ready(header.key_id, header.algorithm)
        if key is not None:
            try:
                return self._verify(token, header, key, digest)
            except WrongSignature as error:
                if not self.ring.may_read():
                    return self._refuse(str(error))
                # The issuer may have another key under this id by now.
        if self.ring.may_read():
            return asyncio.ensure_future(self._verify_later(token, header, digest))
        if self.ring.failing:
            unavailable: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            unavailable.set_exception(IdentityUnavailable("the gateway cannot read the issuer's keys"))
            return unavailable
        return self._unknown_key()

    async def _verify_later(self, token: str, header: TokenHeader, digest: bytes) -> _Remembered | Unidentified:
        key = await self.ring.read_for(header.key_id, header.algorithm)
        try:
            return self._unknown_key() if key is None else self._verify(token, header, key, digest)
        except WrongSignature as error:
            return self._refuse(str(error))

    def _verify(self, token: str, header: TokenHeader, key: SigningKey, digest: bytes) -> _Remembered | Unidentified:
        """Raises ``WrongSignature``."""
        self.verifications += 1
        now_s = self._wall()
        try:
            verified = verify(token, header, key, self._rules, now_s)
        except WrongSignature:
            raise
        except TokenRefused as refused:
            return self._refuse(str(refused))
        identity = identified(verified.account, self.name)
        until_s = min(verified.ends_at_s, now_s + self._cache_ttl_s)
        remembered = _Remembered(identity, until_s, verified.certificate)
        self._tokens.put(digest, remembered)
        return remembered

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
