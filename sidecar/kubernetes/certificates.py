"""Certificates of the webhook: made by itself, where nobody else makes them. Pure; times are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_VALID: Final = timedelta(days=3650)
AUTHORITY_LEFT_MIN: Final = timedelta(days=730)
SERVING_VALID: Final = timedelta(days=365)
SERVING_LEFT_MIN: Final = SERVING_VALID / 3
_SKEW: Final = timedelta(hours=1)
_AUTHORITY_NAME: Final = "quota-sidecar injector authority"
_UNUSABLE: Final = (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound)


@dataclass(frozen=True, slots=True)
class Bundle:
    """PEM texts. ``ca_crt`` may hold two authorities while one follows another; the first signs."""

    ca_crt: bytes
    ca_key: bytes
    tls_crt: bytes
    tls_key: bytes

    def __repr__(self) -> str:
        return "<Bundle>"  # keys do not get into logs


def service_names(service: str, namespace: str) -> tuple[str, ...]:
    """Names of a Service. The API server uses the first (``clientConfig.service``)."""
    return f"{service}.{namespace}.svc", f"{service}.{namespace}.svc.cluster.local"


def renewed(bundle: Bundle | None, names: Sequence[str], now: datetime) -> Bundle:
    """The bundle itself while it is good for all ``names`` and long enough; else one with what is new.

    A new authority is added before the old one, so that those who know only the old go on to trust what it signed.
    """
    authority = _authority(bundle, now) if bundle is not None else None
    if bundle is None or authority is None:
        certificate, key = _new_authority(now)
        before = b"" if bundle is None else _first_certificate(bundle.ca_crt)
        ca_crt, ca_key = _pem(certificate) + before, _pem_key(key)
    else:
        if _is_good(bundle, authority[0], names, now):
            return bundle
        certificate, key = authority
        ca_crt, ca_key = bundle.ca_crt, bundle.ca_key
    serving, serving_key = _new_serving(certificate, key, names, now)
    return Bundle(ca_crt, ca_key, _pem(serving), _pem_key(serving_key))


def expires(tls_crt: bytes) -> datetime:
    """When a certificate ends. Raises ValueError: it is none."""
    return x509.load_pem_x509_certificate(tls_crt).not_valid_after_utc


def trusts(ca_bundle: bytes, ca_crt: bytes) -> bool:
    """Whether all authorities of ``ca_crt`` are in ``ca_bundle``."""
    try:
        known = set(x509.load_pem_x509_certificates(ca_bundle))
        return known >= set(x509.load_pem_x509_certificates(ca_crt))
    except _UNUSABLE:
        return False


def _authority(bundle: Bundle, now: datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None:
    try:
        certificate = x509.load_pem_x509_certificate(bundle.ca_crt)
        key = serialization.load_pem_private_key(bundle.ca_key, None)
    except _UNUSABLE:
        return None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
        return None
    return (certificate, key) if certificate.not_valid_after_utc - now > AUTHORITY_LEFT_MIN else None


def _is_good(bundle: Bundle, authority: x509.Certificate, names: Sequence[str], now: datetime) -> bool:
    try:
        serving = x509.load_pem_x509_certificate(bundle.tls_crt)
        key = serialization.load_pem_private_key(bundle.tls_key, None)
        serving.verify_directly_issued_by(authority)
        found = serving.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except _UNUSABLE:
        return False
    is_timely = serving.not_valid_before_utc <= now < serving.not_valid_after_utc - SERVING_LEFT_MIN
    has_names = set(names) <= set(found.get_values_for_type(x509.DNSName))
    return is_timely and has_names and serving.public_key() == key.public_key()


def _new_authority(now: datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _AUTHORITY_NAME)])
    builder = _builder(name, name, key, now, AUTHORITY_VALID)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return builder.add_extension(identifier, critical=False).sign(key, hashes.SHA256()), key


def _new_serving(
    authority: x509.Certificate, authority_key: ec.EllipticCurvePrivateKey, names: Sequence[str], now: datetime
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    builder = _builder(subject, authority.subject, key, now, SERVING_VALID)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return builder.add_extension(issuer, critical=False).sign(authority_key, hashes.SHA256()), key


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, key_cert_sign=signs_certificates, crl_sign=signs_certificates,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, valid: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + valid)
    )


def _first_certificate(pem: bytes) -> bytes:
    try:
        return _pem(x509.load_pem_x509_certificate(pem))
    except ValueError:
        return b""


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
