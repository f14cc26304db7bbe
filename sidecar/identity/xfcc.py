"""Identity from the client certificate that Envoy, the peer, reports in ``X-Forwarded-Client-Cert``."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from typing import Final

from sidecar.identity import dn, xfcc_grammar
from sidecar.identity.cache import BoundedCache
from sidecar.identity.certificates import CertificateError, Verdict, read_url_encoded_pem
from sidecar.identity.field_names import XFCC, spellings
from sidecar.identity.organisation import OID, OrganisationRules
from sidecar.identity.settings import XfccSettings
from sidecar.identity.types import Fields, Outcome, Peer, Unidentified
from sidecar.identity.xfcc_grammar import Element

BYTES_MAX: Final = 16_384
ELEMENTS_MAX: Final = 16


def certificate_digest(header: bytes, elements: int) -> bytes | None:
    """SHA-256 of the caller's certificate as ``elements`` proxies tell it; None: they do not."""
    try:
        found = xfcc_grammar.parse(header, bytes_max=BYTES_MAX, elements_max=ELEMENTS_MAX)
        if len(found) != elements:
            return None
        if found[0].cert is not None:
            return read_url_encoded_pem(found[0].cert).sha256
        return bytes.fromhex(found[0].hash) if found[0].hash is not None else None
    except (xfcc_grammar.XfccError, CertificateError, ValueError):
        return None


class XfccResolver:
    """Accepts the header from a trusted peer and ignores it from any other.

    There must be as many elements as there are proxies that write one; the first is the caller's. A certificate's
    URI or DNS name can hold separators, which Envoy writes as they are: it makes an element of its own, so a
    header with more of them than proxies tells nothing.
    """

    name = "xfcc"
    refused_lookups = 0
    reads = frozenset({XFCC})
    spoofable = spellings(XFCC)

    def __init__(self, settings: XfccSettings, *, realm: str, wall: Callable[[], float] = time.time) -> None:
        self.consumes = frozenset() if settings.forward else self.reads
        self.challenge = f'ClientCertificate realm="{realm}"'
        self.asks_for = "a client certificate"
        self._settings = settings
        self._rules = OrganisationRules(
            self.name, schemes=settings.schemes, accounts=settings.accounts, challenge=self.challenge
        )
        self._expired: Unidentified = self._rules.refuse("the client certificate has expired")
        # Keyed by digest: a header with a certificate in it has some kilobytes, and a cache of them some
        # megabytes.
        self._verdicts: BoundedCache[bytes, Verdict] = BoundedCache(settings.cache_entries)
        self._wall = wall

    def resolve(self, fields: Fields, peer: Peer) -> Outcome | None:
        """See ``Resolver.resolve``."""
        if not peer.trusted:
            return None
        header = fields.get(XFCC)
        if header is None:
            return None
        digest = hashlib.sha256(header).digest()
        verdict = self._verdicts.get(digest)
        if verdict is None:
            verdict = self._read(header)
            self._verdicts.put(digest, verdict)
        return verdict.outcome if self._wall() <= verdict.not_after_s else self._expired

    def _read(self, header: bytes) -> Verdict:
        limits = self._settings
        try:
            elements = xfcc_grammar.parse(header, bytes_max=limits.bytes_max, elements_max=limits.elements_max)
        except xfcc_grammar.XfccError as error:
            return self._refuse(f"X-Forwarded-Client-Cert cannot be read: {error}")
        if len(elements) != limits.element_from_right:
            return self._refuse(
                "X-Forwarded-Client-Cert has more or fewer elements than there are proxies that write one"
            )
        element = elements[0]
        if element.cert is not None:
            return self._from_cert(element.cert, element)
        if element.subject is not None:
            return self._from_subject(element.subject)
        return self._refuse("X-Forwarded-Client-Cert has neither Cert nor Subject")

    def _from_cert(self, cert: str, element: Element) -> Verdict:
        try:
            certificate = read_url_encoded_pem(cert)
        except CertificateError as error:
            return self._refuse(str(error))
        if element.hash is not None and element.hash.lower() != certificate.sha256.hex():
            return self._refuse("Hash and Cert in X-Forwarded-Client-Cert are of different certificates")
        return Verdict(self._rules.decide(certificate.identifiers), certificate.not_after_s)

    def _from_subject(self, subject: str) -> Verdict:
        try:
            values = dn.values_of(dn.parse(subject), OID, "organizationIdentifier")
        except dn.DnError as error:
            return self._refuse(f"the Subject in X-Forwarded-Client-Cert cannot be read: {error}")
        identifiers = [value for value in values if isinstance(value, str)]
        if len(identifiers) != len(values):
            return self._refuse("the certificate's organizationIdentifier is not text")
        return Verdict(self._rules.decide(identifiers), math.inf)

    def _refuse(self, reason: str) -> Verdict:
        return Verdict(self._rules.refuse(reason), math.inf)

    async def start(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    def __repr__(self) -> str:
        return f"XfccResolver(element {self._settings.element_from_right} from the right, {self._verdicts!r})"
