"""What identity takes from an X.509 certificate (RFC 5280): the organisation identifiers and the end of its life.

Whether the certificate is genuine was settled by whoever ended TLS; nothing here verifies a chain.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sidecar.identity.organisation import OID
from sidecar.identity.types import Outcome

#: A qualified certificate has 2 to 3 KiB; the largest seen with long policies and many names stay below this.
DER_BYTES_MAX: Final = 32 * 1024

_ORGANISATION_IDENTIFIER = x509.ObjectIdentifier(OID)


class CertificateError(ValueError):
    """The bytes are no certificate that could be read. The message is fit for the caller's eyes."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """``not_after_s`` in Unix seconds; ``sha256`` over the DER form."""

    identifiers: tuple[str, ...]
    not_after_s: float
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Verdict:
    """An outcome and until when it holds, in Unix seconds."""

    outcome: Outcome
    not_after_s: float


def read_der(der: bytes) -> Certificate:
    """Read a certificate in DER. Raises ``CertificateError``."""
    if len(der) > DER_BYTES_MAX:
        raise CertificateError("the certificate is too large")
    try:
        return _read(x509.load_der_x509_certificate(der), der)
    except (ValueError, x509.InvalidVersion):
        raise CertificateError("the certificate cannot be read") from None


def read_url_encoded_pem(text: str) -> Certificate:
    """Read a certificate in PEM (RFC 7468) with percent-encoding, as Envoy forwards it. Raises ``CertificateError``."""
    pem = unquote_to_bytes(text)
    if pem.count(b"-----BEGIN ") != 1:
        raise CertificateError("the certificate is not one PEM block")
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        return _read(certificate, certificate.public_bytes(Encoding.DER))
    except (ValueError, x509.InvalidVersion):
        raise CertificateError("the certificate cannot be read") from None


def _read(certificate: x509.Certificate, der: bytes) -> Certificate:
    values = [a.value for a in certificate.subject.get_attributes_for_oid(_ORGANISATION_IDENTIFIER)]
    identifiers = tuple(value for value in values if isinstance(value, str))
    if len(identifiers) != len(values):
        raise CertificateError("the certificate's organizationIdentifier is not text")
    not_after_s = certificate.not_valid_after_utc.timestamp()
    return Certificate(identifiers, not_after_s, hashlib.sha256(der).digest())
