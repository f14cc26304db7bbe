"""What identity takes from a certificate (RFC 5280): the organisation identifiers and the end of its life.

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

#: TypeError: a name's value is of an ASN.1 type that a name must not have.
_UNREADABLE = (ValueError, TypeError, x509.InvalidVersion)


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
    except _UNREADABLE:
        raise CertificateError("the certificate cannot be read") from None


def read_url_encoded_pem(text: str) -> Certificate:
    """Read a certificate in PEM (RFC 7468) with percent-encoding, as Envoy has it.

    Raises ``CertificateError``.
    """
    pem = unquote_to_bytes(text)
    if pem.count(b"-----BEGIN ") != 1:
        raise CertificateError("the certificate is not one PEM block")
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        return _read(certificate, certificate.public_bytes(Encoding.DER))
    except _UNREADABLE:
        raise CertificateError("the certificate cannot be read") from None


def _read(certificate: x509.Certificate, der: bytes) -> Certificate:
    attributes = certificate.subject.get_attributes_for_oid(_ORGANISATION_IDENTIFIER)
    identifiers = tuple(a.value for a in attributes if isinstance(a.value, str))  # bytes are of another OID alone
    not_after_s = certificate.not_valid_after_utc.timestamp()
    return Certificate(identifiers, not_after_s, hashlib.sha256(der).digest())
