from __future__ import annotations

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from sidecar.identity.certificates import CertificateError, read_der, read_url_encoded_pem
from sidecar.identity.mtls import MtlsResolver
from sidecar.identity.settings import MtlsSettings
from sidecar.identity.types import Identity, Peer
from tests.unit.identity.kit import NOW_S, Clock, certificate, der, fuzz, reason_of, url_encoded_pem


def resolver(wall: Clock | None = None, **settings: object) -> MtlsResolver:
    model = MtlsSettings.model_validate({"type": "mtls"} | settings)
    return MtlsResolver(model, realm="bank", wall=wall or Clock(NOW_S))


def peer(cert: x509.Certificate) -> Peer:
    return Peer("203.0.113.9", trusted=False, certificate=der(cert))


def test_the_organisation_identifier_of_the_client_certificate_is_the_account() -> None:
    assert resolver().resolve({}, peer(certificate("PSDGB-FCA-123456"))) == Identity("PSDGB-FCA-123456", "mtls")


def test_a_table_gives_the_organisation_another_account() -> None:
    mapped = resolver(accounts={"PSDGB-FCA-123456": "tpp-1"})
    assert mapped.resolve({}, peer(certificate("PSDGB-FCA-123456"))) == Identity("tpp-1", "mtls")


def test_a_connection_without_client_certificate_shows_no_credential() -> None:
    assert resolver().resolve({}, Peer("203.0.113.9", trusted=True)) is None


@pytest.mark.parametrize(
    ("identifiers", "reason"),
    [
        ([], "no organizationIdentifier"),
        (["GB123"], "none of the accepted forms"),
        (["PSDGB-FCA-1", "PSDGB-FCA-2"], "several"),
    ],
)
def test_a_certificate_that_does_not_name_one_organisation_is_refused(identifiers: list[str], reason: str) -> None:
    outcome = resolver().resolve({}, peer(certificate(*identifiers)))
    assert reason in reason_of(outcome)


def test_a_certificate_that_expires_during_the_connection_is_refused_from_then_on() -> None:
    wall = Clock(NOW_S)
    subject, caller = resolver(wall), peer(certificate("PSDGB-FCA-1", not_after_s=NOW_S + 10))
    assert subject.resolve({}, caller) == Identity("PSDGB-FCA-1", "mtls")
    wall.advance(10)
    assert subject.resolve({}, caller) == Identity("PSDGB-FCA-1", "mtls")
    wall.advance(1)
    assert reason_of(subject.resolve({}, caller)) == "the client certificate has expired"


def test_a_certificate_is_read_once_and_the_memory_of_it_is_bounded() -> None:
    subject, caller = resolver(cache_entries=2), peer(certificate("PSDGB-FCA-1"))
    first = subject.resolve({}, caller)
    assert subject.resolve({}, caller) is first
    for number in range(3):
        subject.resolve({}, peer(certificate(f"PSDGB-FCA-{number}")))
    assert "2 of 2" in repr(subject)


@pytest.mark.parametrize("changed", [b"\x03\x0b\x00SDGB-FCA-1", b"\x0c\x0b\xffSDGB-FCA-1"])
def test_an_identifier_that_is_no_text_is_refused(changed: bytes) -> None:
    """A bit string, and what calls itself UTF-8 and is not."""
    raw = der(certificate("PSDGB-FCA-1")).replace(b"\x0c\x0bPSDGB-FCA-1", changed)
    assert changed in raw
    assert reason_of(resolver().resolve({}, Peer("", False, raw))) == "the certificate cannot be read"


GOOD = der(certificate("PSDGB-FCA-1"))


@fuzz
@given(
    st.binary(max_size=100)
    | st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)).map(
        lambda change: GOOD[: change[0]] + bytes([change[1]]) + GOOD[change[0] + 1 :]
    )
)
def test_no_bytes_at_all_make_the_reader_raise_anything_else(raw: bytes) -> None:
    try:
        read = read_der(raw)
    except CertificateError:
        return
    assert all(isinstance(text, str) for text in read.identifiers)


def test_a_certificate_beyond_the_limit_is_not_even_looked_at() -> None:
    with pytest.raises(CertificateError, match="too large"):
        read_der(GOOD + bytes(32 * 1024))


@pytest.mark.parametrize("text", ["", "x", "%", "%zz", "-----BEGIN%20CERTIFICATE-----", "%00", "é"])
def test_what_is_no_pem_is_refused(text: str) -> None:
    with pytest.raises(CertificateError):
        read_url_encoded_pem(text)


def test_two_certificates_in_one_value_are_refused() -> None:
    one = url_encoded_pem(certificate("PSDGB-FCA-1"))
    assert read_url_encoded_pem(one).identifiers == ("PSDGB-FCA-1",)
    with pytest.raises(CertificateError, match="not one PEM block"):
        read_url_encoded_pem(one + one)
