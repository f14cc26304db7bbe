"""The webhook's own certificates, over the years."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from sidecar.kubernetes.certificates import (
    AUTHORITY_LEFT_MIN,
    AUTHORITY_VALID,
    SERVING_LEFT_MIN,
    SERVING_VALID,
    Bundle,
    expires,
    renewed,
    service_names,
    trusts,
)  # fmt: skip

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
NAMES = service_names("injector", "quota")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return renewed(None, NAMES, NOW)


def authorities(made: Bundle) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(made.ca_crt)


def test_what_it_shows_is_signed_by_its_authority_and_for_its_names(bundle: Bundle) -> None:
    serving = x509.load_pem_x509_certificate(bundle.tls_crt)
    serving.verify_directly_issued_by(authorities(bundle)[0])
    alternatives = serving.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert alternatives.get_values_for_type(x509.DNSName) == [
        "injector.quota.svc",
        "injector.quota.svc.cluster.local",
    ]
    assert expires(bundle.tls_crt) == NOW + SERVING_VALID


def test_what_is_good_stays(bundle: Bundle) -> None:
    assert renewed(bundle, NAMES, NOW + SERVING_VALID - SERVING_LEFT_MIN - timedelta(hours=1)) is bundle
    assert renewed(bundle, NAMES[:1], NOW) is bundle


def test_a_new_certificate_comes_from_the_same_authority(bundle: Bundle) -> None:
    later = NOW + SERVING_VALID - SERVING_LEFT_MIN + timedelta(hours=1)
    made = renewed(bundle, NAMES, later)
    assert (made.ca_crt, made.ca_key) == (bundle.ca_crt, bundle.ca_key)
    assert expires(made.tls_crt) == later + SERVING_VALID
    x509.load_pem_x509_certificate(made.tls_crt).verify_directly_issued_by(authorities(made)[0])


def test_another_name_needs_another_certificate(bundle: Bundle) -> None:
    made = renewed(bundle, service_names("another", "quota"), NOW)
    assert made.ca_crt == bundle.ca_crt
    assert made.tls_crt != bundle.tls_crt


def test_a_new_authority_comes_long_before_the_old_one_ends_and_the_old_one_stays_trusted(bundle: Bundle) -> None:
    made = renewed(bundle, NAMES, NOW + AUTHORITY_VALID - AUTHORITY_LEFT_MIN + timedelta(days=1))
    new, old = authorities(made)
    assert old == authorities(bundle)[0]
    x509.load_pem_x509_certificate(made.tls_crt).verify_directly_issued_by(new)
    assert len(authorities(renewed(made, NAMES, NOW + AUTHORITY_VALID + timedelta(days=3000)))) == 2


@pytest.mark.parametrize("field", ["ca_crt", "ca_key", "tls_crt", "tls_key"])
@pytest.mark.parametrize("how", ["empty", "garbage", "of another"])
def test_what_is_broken_is_made_anew(bundle: Bundle, field: str, how: str) -> None:
    other = renewed(None, NAMES, NOW)
    value = {"empty": b"", "garbage": b"-----BEGIN X-----\nno\n", "of another": getattr(other, field)}[how]
    fields = {name: getattr(bundle, name) for name in ("ca_crt", "ca_key", "tls_crt", "tls_key")}
    made = renewed(Bundle(**{**fields, field: value}), NAMES, NOW)
    assert made is not bundle
    x509.load_pem_x509_certificate(made.tls_crt).verify_directly_issued_by(authorities(made)[0])
    assert renewed(made, NAMES, NOW) is made


def test_a_certificate_of_the_future_is_not_shown(bundle: Bundle) -> None:
    assert renewed(bundle, NAMES, NOW - timedelta(hours=2)).tls_crt != bundle.tls_crt


def test_an_authority_can_sign_servers_only_and_its_certificates_nothing(bundle: Bundle) -> None:
    authority, serving = authorities(bundle)[0], x509.load_pem_x509_certificate(bundle.tls_crt)
    for certificate, is_authority in ((authority, True), (serving, False)):
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
        assert (constraints.critical, constraints.value.ca) == (True, is_authority)
        assert (usage.critical, usage.value.key_cert_sign) == (True, is_authority)
        assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    purposes = serving.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_who_trusts_more_than_is_needed_trusts_enough(bundle: Bundle) -> None:
    other = renewed(None, NAMES, NOW)
    both = other.ca_crt + bundle.ca_crt
    assert trusts(both, bundle.ca_crt)
    assert trusts(both, bundle.ca_crt + other.ca_crt)
    assert not trusts(bundle.ca_crt, both)
    assert not trusts(other.ca_crt, bundle.ca_crt)
    assert not trusts(b"", bundle.ca_crt)
    assert not trusts(b"-----BEGIN X-----", bundle.ca_crt)


def test_keys_do_not_get_into_logs(bundle: Bundle) -> None:
    assert repr(bundle) == "<Bundle>"
