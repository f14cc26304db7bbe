"""From settings to resolvers.

What only some resolvers need (cryptography and PyJWT are 20 MB) is imported when one of them is configured.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, assert_never

from sidecar.identity.api_key import ApiKeyResolver
from sidecar.identity.chain import IdentityChain
from sidecar.identity.field_names import WELL_KNOWN, spellings
from sidecar.identity.settings import (
    ApiKeySettings,
    JwtSettings,
    MtlsSettings,
    ResolverSettings,
    TrustedHeaderSettings,
    XfccSettings,
)
from sidecar.identity.trusted_header import TrustedHeaderResolver
from sidecar.identity.types import IdentitySetupError, KeyStore, Resolver

if TYPE_CHECKING:
    from sidecar.identity.jwks_source import KeySource
    from sidecar.identity.key_ring import KeyRing

Clock = Callable[[], float]

_REALM = re.compile(r"[A-Za-z0-9 ._:/-]{1,64}")  # stands in quotes in a challenge


def build_chain(
    settings: Sequence[ResolverSettings],
    key_store: KeyStore | None = None,
    *,
    realm: str = "open-banking",
    clock: Clock = time.monotonic,
    wall: Clock = time.time,
) -> IdentityChain:
    """Build the chain; nothing is opened before its ``start``.

    ``realm`` goes into challenges (RFC 9110 section 11.5). ``clock`` counts seconds for caches, ``wall`` Unix
    seconds for certificates and tokens. Raises ``IdentitySetupError``.
    """
    if _REALM.fullmatch(realm) is None:
        raise IdentitySetupError("the realm is 1 to 64 of the characters A-Z a-z 0-9 . _ : / - and space")
    resolvers = [_build(each, key_store, realm, clock, wall) for each in settings]
    if not resolvers:
        raise IdentitySetupError("identity: no resolver is configured")
    read_by_choice = frozenset[bytes]().union(*(r.reads - r.spoofable for r in resolvers))
    untrusted_fields = frozenset[bytes]().union(*map(spellings, WELL_KNOWN - read_by_choice))
    read = frozenset[bytes]().union(*(r.reads for r in resolvers))
    unread = frozenset[bytes]().union(*map(spellings, WELL_KNOWN - read))
    return IdentityChain(resolvers, removed=unread, removed_from_untrusted_peers=untrusted_fields)


def _build(settings: ResolverSettings, key_store: KeyStore | None, realm: str, clock: Clock, wall: Clock) -> Resolver:
    match settings:
        case TrustedHeaderSettings():
            return TrustedHeaderResolver(settings, realm=realm)
        case XfccSettings():
            from sidecar.identity.xfcc import XfccResolver

            return XfccResolver(settings, realm=realm, wall=wall)
        case MtlsSettings():
            from sidecar.identity.mtls import MtlsResolver

            return MtlsResolver(settings, realm=realm, wall=wall)
        case ApiKeySettings():
            if key_store is None:
                raise IdentitySetupError("identity api_key: there is no store of API keys")
            return ApiKeyResolver(settings, key_store, realm=realm, clock=clock)
        case JwtSettings():
            from sidecar.identity.jwt import JwtResolver

            return JwtResolver(settings, _key_ring(settings, clock), realm=realm, wall=wall)
    assert_never(settings)


def _key_ring(settings: JwtSettings, clock: Clock) -> KeyRing:
    from sidecar.identity.key_ring import KeyRing

    return KeyRing(
        key_source(settings),
        ttl_s=settings.jwks_ttl_s,
        cool_down_s=settings.jwks_cool_down_s,
        max_stale_s=settings.jwks_max_stale_s,
        clock=clock,
    )


def key_source(settings: JwtSettings) -> KeySource:
    """Where an issuer's keys are read from."""
    from sidecar.identity.jwks_source import FileKeySource, UrlKeySource

    if settings.jwks_file is not None:
        return FileKeySource(settings.jwks_file, bytes_max=settings.jwks_bytes_max)
    assert settings.jwks_url is not None, "the settings' own validator asks for one of the two"
    return UrlKeySource(
        settings.jwks_url,
        timeout_s=settings.jwks_timeout_s,
        bytes_max=settings.jwks_bytes_max,
        ca_file=settings.jwks_ca_file,
    )
