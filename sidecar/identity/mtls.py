"""Identity from the client certificate of a TLS connection that ends here."""

from __future__ import annotations

import time
from collections.abc import Callable

from sidecar.identity.cache import BoundedCache
from sidecar.identity.certificates import CertificateError, Verdict, read_der
from sidecar.identity.organisation import OrganisationRules
from sidecar.identity.settings import MtlsSettings
from sidecar.identity.types import Fields, Outcome, Peer, Unidentified


class MtlsResolver:
    """Reads the eIDAS organisation identifier, once per certificate.

    The end of the certificate's life is looked at with every request, since a connection may outlive it.
    """

    name = "mtls"
    reads: frozenset[bytes] = frozenset()
    consumes: frozenset[bytes] = frozenset()
    spoofable: frozenset[bytes] = frozenset()
    refused_lookups = 0

    def __init__(self, settings: MtlsSettings, *, realm: str, wall: Callable[[], float] = time.time) -> None:
        self.challenge = f'ClientCertificate realm="{realm}"'
        self.asks_for = "a client certificate"
        self._rules = OrganisationRules(
            self.name, schemes=settings.schemes, accounts=settings.accounts, challenge=self.challenge
        )
        self._expired: Unidentified = self._rules.refuse("the client certificate has expired")
        self._verdicts: BoundedCache[bytes, Verdict] = BoundedCache(settings.cache_entries)
        self._wall = wall

    def resolve(self, fields: Fields, peer: Peer) -> Outcome | None:
        """See ``Resolver.resolve``."""
        der = peer.certificate
        if der is None:
            return None
        verdict = self._verdicts.get(der)
        if verdict is None:
            try:
                certificate = read_der(der)
            except CertificateError as error:
                return self._rules.refuse(str(error))
            verdict = Verdict(self._rules.decide(certificate.identifiers), certificate.not_after_s)
            self._verdicts.put(der, verdict)
        return verdict.outcome if self._wall() <= verdict.not_after_s else self._expired

    async def start(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    def __repr__(self) -> str:
        return f"MtlsResolver({self._verdicts!r})"
