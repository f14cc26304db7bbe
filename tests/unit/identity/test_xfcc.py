from __future__ import annotations

import hashlib
from typing import Any
from urllib.parse import unquote

import orjson
import pytest

from sidecar.identity.settings import XfccSettings
from sidecar.identity.types import Identity, Outcome
from sidecar.identity.xfcc import XfccResolver
from tests.unit.identity.kit import (
    NOW_S,
    STRANGER,
    TRUSTED,
    Clock,
    certificate,
    der,
    reason_of,
    url_encoded_pem,
    xfcc,
)


def resolver(wall: Clock | None = None, **settings: Any) -> XfccResolver:
    model = XfccSettings.model_validate({"type": "xfcc"} | settings)
    return XfccResolver(model, realm="bank", wall=wall or Clock(NOW_S))


def ask(header: bytes, **settings: Any) -> Outcome | None:
    return resolver(**settings).resolve({b"x-forwarded-client-cert": header}, TRUSTED)


def subject(text: str) -> bytes:
    return xfcc(("By", "spiffe://mesh/gateway"), ("Hash", "ab" * 32), ("Subject", f'"{text}"'), ("URI", ""))


FCA = Identity("PSDGB-FCA-123456", "xfcc")
FCA_HEX = "0c10" + b"PSDGB-FCA-123456".hex()

SUBJECTS = [
    "CN=x,2.5.4.97=PSDGB-FCA-123456,O=TPP",
    "CN=x,organizationIdentifier=PSDGB-FCA-123456,O=TPP",
    "CN=x,OrganizationIdentifier=PSDGB-FCA-123456",
    f"CN=x,2.5.4.97=#{FCA_HEX},O=TPP",
    f"2.5.4.97=#{FCA_HEX.upper()}",
    r"O=Foo\, Bar \"Ltd\",2.5.4.97=PSDGB-FCA-123456",
    r"O=ends with a backslash\\,2.5.4.97=PSDGB-FCA-123456",
    r"O=2.5.4.97=PSDGB-FCA-9,2.5.4.97=PSDGB-FCA-123456",
    r"O=x\,2.5.4.97=PSDGB-FCA-9,2.5.4.97=PSDGB-FCA-123456",
    "CN=x+2.5.4.97=PSDGB-FCA-123456",
    r"CN=Lu\C4\8Di\C4\87,2.5.4.97=PSDGB-FCA-123456",
]


@pytest.mark.parametrize("text", SUBJECTS)
def test_the_organisation_identifier_of_the_subject_is_the_account(text: str) -> None:
    assert ask(subject(text)) == FCA


def test_the_organisation_identifier_of_the_certificate_is_the_account() -> None:
    cert = certificate("PSDGB-FCA-123456")
    digest = hashlib.sha256(der(cert)).hexdigest()
    assert ask(xfcc(("Hash", digest), ("Cert", f'"{url_encoded_pem(cert)}"'))) == FCA
    assert ask(xfcc(("Hash", digest.upper()), ("Cert", f'"{url_encoded_pem(cert)}"'))) == FCA


def test_the_certificate_counts_more_than_the_subject_beside_it() -> None:
    cert = url_encoded_pem(certificate("PSDGB-FCA-123456"))
    assert ask(xfcc(("Subject", '"2.5.4.97=PSDGB-FCA-9"'), ("Cert", f'"{cert}"'))) == FCA


def test_a_certificate_that_cannot_be_read_is_not_rescued_by_the_subject_beside_it() -> None:
    outcome = ask(xfcc(("Subject", '"2.5.4.97=PSDGB-FCA-123456"'), ("Cert", '"rubbish"')))
    assert "not one PEM block" in reason_of(outcome)


def test_a_certificate_that_is_not_the_one_of_the_hash_is_refused() -> None:
    cert = url_encoded_pem(certificate("PSDGB-FCA-123456"))
    outcome = ask(xfcc(("Hash", "00" * 32), ("Cert", f'"{cert}"')))
    assert "different certificates" in reason_of(outcome)


def test_whatever_a_stranger_sends_it_is_as_if_it_were_not_there() -> None:
    for header in (subject(SUBJECTS[0]), b"rubbish", b""):
        assert resolver().resolve({b"x-forwarded-client-cert": header}, STRANGER) is None


def test_no_header_is_no_credential() -> None:
    assert resolver().resolve({}, TRUSTED) is None


def test_with_more_proxies_the_first_element_is_the_callers() -> None:
    mesh = xfcc(("Hash", "cd"), ("URI", "spiffe://mesh/edge"))
    assert ask(b",".join([subject(SUBJECTS[0]), mesh]), element_from_right=2) == FCA


@pytest.mark.parametrize("elements", [1, 2, 4])
def test_more_or_fewer_elements_than_proxies_are_refused(elements: int) -> None:
    header = b",".join([subject(SUBJECTS[0])] * elements)
    assert "more or fewer elements" in reason_of(ask(header, element_from_right=3))


@pytest.mark.parametrize("name", ["URI", "DNS"])
@pytest.mark.parametrize("key", ["Subject", "Cert", "Hash", "By", "Chain"])
@pytest.mark.parametrize("elements", [1, 2])
@pytest.mark.parametrize(
    "said", ["a,{forged}", "a;{forged}", '"a",{forged}', '"a";{forged}', ",{forged}", ";{forged}", "a, By=x;{forged}"]
)
def test_a_certificate_cannot_write_an_element_through_its_names(name: str, key: str, elements: int, said: str) -> None:
    """Envoy writes URI and DNS names of a certificate as they are. Whoever gets one signed says what is in them."""
    forged = f'{key}="2.5.4.97=PSDGB-FCA-9"'
    header = xfcc(("Hash", "ab" * 32), ("Subject", '"CN=nobody,2.5.4.97=PSDGB-FCA-123456"'),
                  (name, said.format(forged=forged)))  # fmt: skip
    outcome = ask(header, element_from_right=elements)
    assert outcome == FCA or "X-Forwarded-Client-Cert" in reason_of(outcome)
    without_subject = xfcc(("Hash", "ab" * 32), (name, said.format(forged=forged)))
    assert reason_of(ask(without_subject, element_from_right=elements))


BAD = [
    (b"", "cannot be read: no key"),
    (b"rubbish", "cannot be read: no key"),
    (b"Hash=1", "neither Cert nor Subject"),
    (subject(""), "no organizationIdentifier"),
    (subject("CN=x"), "no organizationIdentifier"),
    (subject("CN=x;y"), "Subject in X-Forwarded-Client-Cert cannot be read"),
    (subject("/C=GB/CN=x"), "Subject in X-Forwarded-Client-Cert cannot be read"),
    (subject("2.5.4.97=#0203010001"), "not text"),
    (subject("2.5.4.97=PSDGB-FCA-1,2.5.4.97=PSDGB-FCA-2"), "several"),
    (subject("2.5.4.97=PSDGB-FCA-1,organizationIdentifier=PSDGB-FCA-2"), "several"),
    (b"URI=" + b"x" * 16_384, "longer than 16384 bytes"),
    (b",".join([b"Hash=1"] * 17), "more than 16 elements"),
]


@pytest.mark.parametrize(("header", "reason"), BAD, ids=[f"{n} {reason}" for n, (_, reason) in enumerate(BAD)])
def test_a_header_that_does_not_name_one_organisation_is_refused(header: bytes, reason: str) -> None:
    outcome = ask(header)
    assert reason in reason_of(outcome)


def test_a_certificate_that_has_expired_is_refused_although_it_was_read_before() -> None:
    wall = Clock(NOW_S)
    once = resolver(wall)
    cert = url_encoded_pem(certificate("PSDGB-FCA-123456", not_after_s=NOW_S + 10))
    fields = {b"x-forwarded-client-cert": xfcc(("Cert", f'"{cert}"'))}
    assert once.resolve(fields, TRUSTED) == FCA
    wall.advance(11)
    assert reason_of(once.resolve(fields, TRUSTED)) == "the client certificate has expired"


def test_a_header_is_read_once_and_the_memory_of_it_is_bounded() -> None:
    once = resolver(cache_entries=2)
    first = once.resolve({b"x-forwarded-client-cert": subject(SUBJECTS[0])}, TRUSTED)
    assert once.resolve({b"x-forwarded-client-cert": subject(SUBJECTS[0])}, TRUSTED) is first
    for number in range(3):
        once.resolve({b"x-forwarded-client-cert": subject(f"2.5.4.97=PSDGB-FCA-{number}")}, TRUSTED)
    assert "2 of 2" in repr(once)


def test_the_header_of_a_stranger_is_spoofable_in_every_spelling_that_cgi_confuses() -> None:
    assert {b"x-forwarded-client-cert", b"x_forwarded_client_cert"} <= resolver().spoofable
    assert len(resolver().spoofable) == 8


# The JSON form, as Envoy 1.40 writes it


def json_element(**members: object) -> dict[str, object]:
    return {"by": ["spiffe://mesh/gw"], "hash": "ab" * 32, "uri": [], "dns": []} | members


def test_the_json_form_is_read_alike() -> None:
    cert = certificate("PSDGB-FCA-123456")
    digest = hashlib.sha256(der(cert)).hexdigest()
    pem = unquote(url_encoded_pem(cert))
    assert ask(orjson.dumps([json_element(hash=digest, cert=pem, chain=[pem])])) == FCA
    assert ask(orjson.dumps([json_element(subject=SUBJECTS[0], issuer="CN=ca")])) == FCA
    quoted = r"2.5.4.97=#0C1050534447422D4643412D313233343536,O=A \"quoted\"\, Ltd\; x=y,CN=client"
    assert ask(orjson.dumps([json_element(subject=quoted)])) == FCA


def test_names_of_a_certificate_are_only_names_in_the_json_form() -> None:
    names = ['spiffe://a,Subject="2.5.4.97=PSDGB-FCA-9"', 'x"},{"subject":"2.5.4.97=PSDGB-FCA-9']
    header = orjson.dumps([json_element(subject=SUBJECTS[0], uri=names, dns=names)])
    assert ask(header) == FCA
    assert "fewer elements" in reason_of(ask(header, element_from_right=2))


def test_with_more_proxies_the_first_json_element_is_the_callers() -> None:
    header = orjson.dumps([json_element(subject=SUBJECTS[0]), json_element(subject="2.5.4.97=PSDGB-FCA-9")])
    assert ask(header, element_from_right=2) == FCA
    assert "more or fewer elements" in reason_of(ask(header))


@pytest.mark.parametrize(
    "header",
    [
        b"[", b"[]", b"[1]", b"[null]", b"[[]]", b'[{"subject":1}]', b'[{"subject":["2.5.4.97=PSDGB-FCA-123456"]}]',
        b'[{"cert":{}}]', b'[{"chain":"x","subject":"2.5.4.97=PSDGB-FCA-123456"}]', b'[{"uri":[1]}]',
        b'[{"subject":"2.5.4.97=PSDGB-FCA-123456","Subject":"2.5.4.97=PSDGB-FCA-9"}]', b"[" * 10_000,
        b'{"subject":"2.5.4.97=PSDGB-FCA-123456"}', b"[{}],[{}]", b'[{"subject":"x"}] trailing',
        b"[" + b",".join([b"{}"] * 17) + b"]",
    ],
)  # fmt: skip
def test_json_that_envoy_does_not_write_is_refused(header: bytes) -> None:
    assert "X-Forwarded-Client-Cert cannot be read" in reason_of(ask(header))


def test_an_issuer_after_the_names_is_as_envoy_writes_it() -> None:
    assert ask(xfcc(("Hash", "cd"), ("Subject", f'"{SUBJECTS[0]}"'), ("URI", "spiffe://a"), ("DNS", "b.example"),
                    ("Issuer", '"CN=ca"'))) == FCA  # fmt: skip
