from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from sidecar.identity import settings
from sidecar.identity.settings import (
    ApiKeySettings,
    IdentitySettings,
    JwtSettings,
    MtlsSettings,
    TrustedHeaderSettings,
    TrustedPeersSettings,
    XfccSettings,
)

IDENTITY: TypeAdapter[tuple[Any, ...]] = TypeAdapter(IdentitySettings)
PEERS: TypeAdapter[tuple[str, ...]] = TypeAdapter(TrustedPeersSettings)

JWT = {
    "type": "jwt",
    "issuer": "https://id.bank.example",
    "audience": ["open-banking"],
    "jwks_url": "https://id.bank.example/jwks",
}


def test_the_order_of_the_file_is_the_order_of_the_resolvers() -> None:
    read = IDENTITY.validate_python(
        [{"type": "mtls"}, {"type": "trusted_header"}, {"type": "api_key"}, JWT, {"type": "xfcc"}]
    )
    assert [type(each) for each in read] == [
        MtlsSettings,
        TrustedHeaderSettings,
        ApiKeySettings,
        JwtSettings,
        XfccSettings,
    ]


def test_the_defaults_are_safe() -> None:
    jwt = JwtSettings.model_validate(JWT)
    assert jwt.algorithms == ("RS256", "PS256", "ES256")
    assert not jwt.jwks_allow_http
    assert MtlsSettings(type="mtls").schemes == ("PSD",)
    assert XfccSettings(type="xfcc").element_from_right == 1
    assert not ApiKeySettings(type="api_key").forward
    assert ApiKeySettings(type="api_key").ttl_s == 30
    assert TrustedHeaderSettings(type="trusted_header").header == "X-TPP-Id"


WRONG: list[tuple[str, Any, str]] = [
    ("no resolver", [], "at least 1"),
    ("too many", [{"type": "api_key", "header": f"X-{n}"} for n in range(9)], "at most 8"),
    ("no type", [{}], "type"),
    ("unknown type", [{"type": "basic"}], "'basic'"),
    ("unknown key", [{"type": "mtls", "schema": "PSD"}], "schema"),
    ("unknown scheme", [{"type": "mtls", "schemes": ["PAS"]}], "schemes"),
    ("no scheme", [{"type": "mtls", "schemes": []}], "schemes"),
    ("bad header", [{"type": "api_key", "header": "X API"}], "'X API' is not a header field name"),
    ("framing header", [{"type": "trusted_header", "header": "Host"}], "'Host' has a meaning of its own"),
    ("header of jwt", [{"type": "api_key", "header": "authorization"}], "meaning of its own"),
    ("many hyphens", [{"type": "trusted_header", "header": "a-b-c-d-e-f-g-h"}], "more than 6 hyphens"),
    ("typo in the table", [{"type": "mtls", "accounts": {"PSDGB-fca-1": "a"}}], "'PSDGB-fca-1' is not an organisation"),
    ("dead entry in the table", [{"type": "mtls", "accounts": {"VATGB-1": "a"}}], "'VATGB-1' can never match"),
    ("bad account in the table", [{"type": "mtls", "accounts": {"PSDGB-FCA-1": "a b"}}], "'a b' is not an account id"),
    ("element beyond limit", [{"type": "xfcc", "element_from_right": 3, "elements_max": 2}], "element_from_right"),
    ("element 0", [{"type": "xfcc", "element_from_right": 0}], "element_from_right"),
    ("two of a kind", [{"type": "mtls"}, {"type": "mtls"}], "two resolvers read the client certificate"),
    (
        "same header",
        [{"type": "api_key", "header": "X-TPP-ID"}, {"type": "trusted_header"}],
        "two resolvers read x-tpp-id",
    ),
    ("two issuers", [JWT, JWT], "two resolvers read authorization"),
    ("xfcc as a header", [{"type": "xfcc"}, {"type": "api_key", "header": "X-Forwarded-Client-Cert"}], "two resolvers"),
    ("zero ttl", [{"type": "api_key", "ttl_s": 0}], "ttl_s"),
    ("symmetric algorithm", [JWT | {"algorithms": ["HS256"]}], "algorithms"),
    ("none", [JWT | {"algorithms": ["none"]}], "algorithms"),
    ("no algorithm", [JWT | {"algorithms": []}], "algorithms"),
    ("no audience", [{k: v for k, v in JWT.items() if k != "audience"}], "audience"),
    ("empty audience", [JWT | {"audience": []}], "audience"),
    ("empty name in audience", [JWT | {"audience": [""]}], "audience"),
    ("no issuer", [JWT | {"issuer": ""}], "issuer"),
    ("no source", [JWT | {"jwks_url": None}], "exactly one of jwks_url and jwks_file"),
    ("two sources", [JWT | {"jwks_file": "/etc/jwks.json"}], "exactly one of jwks_url and jwks_file"),
    ("http", [JWT | {"jwks_url": "http://id.bank.example/jwks"}], "must be https"),
    ("ftp", [JWT | {"jwks_url": "ftp://id.bank.example/jwks"}], "not an https URL"),
    ("no host", [JWT | {"jwks_url": "https:///jwks"}], "not an https URL"),
    ("no url", [JWT | {"jwks_url": "jwks"}], "not an https URL"),
    ("bad port", [JWT | {"jwks_url": "https://id.bank.example:99999/"}], "jwks_url"),
    ("bad bracket", [JWT | {"jwks_url": "https://[::1/"}], "jwks_url"),
    ("fragment", [JWT | {"jwks_url": "https://id.bank.example/#x"}], "fragment"),
    ("cool-down beyond ttl", [JWT | {"jwks_ttl_s": 5}], "jwks_cool_down_s is longer"),
    ("stale below ttl", [JWT | {"jwks_max_stale_s": 5}], "jwks_max_stale_s is shorter"),
    ("claim with a space", [JWT | {"account_claim": "a b"}], "account_claim"),
]


@pytest.mark.parametrize(("value", "reason"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_a_mistake_is_refused_by_name(value: Any, reason: str) -> None:
    with pytest.raises(ValidationError) as caught:
        IDENTITY.validate_python(value)
    assert reason in str(caught.value)


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValidationError) as caught:
        JwtSettings.model_validate(JWT | {"jwks_url": "https://user:geheim@id.bank.example/jwks"})
    assert "neither user nor password" in str(caught.value)
    assert "geheim" not in str(caught.value)


def test_http_and_an_unchecked_audience_have_to_be_asked_for() -> None:
    read = JwtSettings.model_validate(
        JWT | {"jwks_url": "http://127.0.0.1:8080/jwks", "jwks_allow_http": True, "audience": None}
    )
    assert read.audience is None


def test_every_field_says_what_it_is_for() -> None:
    models: list[type[BaseModel]] = [TrustedHeaderSettings, XfccSettings, MtlsSettings, ApiKeySettings, JwtSettings]
    silent = [f"{m.__name__}.{name}" for m in models for name, field in m.model_fields.items() if not field.description]
    assert silent == []
    assert settings.__doc__


@pytest.mark.parametrize("entries", [[], ["unix"], ["10.0.0.0/8", "fd00::/8", "127.0.0.1"]])
def test_peers_are_networks_addresses_and_unix(entries: list[str]) -> None:
    assert PEERS.validate_python(entries) == tuple(entries)


@pytest.mark.parametrize("entry", ["10.1.2.3/8", "gateway", "10.0.0.0/33"])
def test_a_bad_peer_is_refused_by_name(entry: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PEERS.validate_python(["10.0.0.0/8", entry])
    assert repr(entry) in str(caught.value)
