from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
import json
from typing import Any

import orjson
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from sidecar.identity.jwks import SigningKey, parse_key_set
from sidecar.identity.jwt_token import NO_JWT, TokenRefused, TokenRules, Verified, read_header, verify
from tests.unit.identity.kit import AUDIENCE, ISSUER, NOW_S, IssuerKey, claims, es_key, fuzz, key_set, rs_key

RULES = TokenRules(
    algorithms=("RS256", "PS256", "ES256"),
    issuer=ISSUER,
    audience=(AUDIENCE, "other-audience"),
    types=None,
    account_claim="client_id",
    leeway_s=30.0,
)
KEY = es_key("k1")


def public(key: IssuerKey) -> SigningKey:
    return parse_key_set(key_set(key)).keys[0]


PUBLIC = public(KEY)


def check(token: str, rules: TokenRules = RULES, key: SigningKey = PUBLIC) -> Verified:
    return verify(token, read_header(token, rules), key, rules, NOW_S)


def refusal(token: str, rules: TokenRules = RULES, key: SigningKey = PUBLIC) -> str:
    with pytest.raises(TokenRefused) as caught:
        check(token, rules, key)
    return str(caught.value)


def part(content: object) -> str:
    raw = content if isinstance(content, bytes) else orjson.dumps(content)
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def test_a_good_token_names_its_account_and_its_end() -> None:
    assert check(KEY.token()) == Verified("tpp-1", NOW_S + 630)


@pytest.mark.parametrize(
    "key",
    [
        rs_key("r", "RS256"),
        rs_key("r", "PS256"),
        rs_key("r", "RS512"),
        es_key("e"),
        IssuerKey("p", "ES384", ec.generate_private_key(ec.SECP384R1())),
        IssuerKey("d", "EdDSA", ed25519.Ed25519PrivateKey.generate()),
    ],
    ids=lambda key: key.alg,
)
def test_every_algorithm_verifies_once_it_is_accepted(key: IssuerKey) -> None:
    rules = dataclasses.replace(RULES, algorithms=(key.alg,))
    assert check(key.token(), rules, public(key)).account == "tpp-1"


HEADERS: list[tuple[str, dict[str, Any], str]] = [
    ("none", {"alg": "none"}, "algorithm"),
    ("None", {"alg": "None"}, "algorithm"),
    ("symmetric", {"alg": "HS256"}, "algorithm"),
    ("not accepted", {"alg": "ES384"}, "algorithm"),
    ("missing alg", {}, "algorithm"),
    ("alg that is no text", {"alg": ["ES256"]}, "algorithm"),
    ("kid that is no text", {"alg": "ES256", "kid": 7}, "malformed"),
    ("critical extension", {"alg": "ES256", "crit": ["exp"]}, ""),
    ("unencoded payload", {"alg": "ES256", "b64": False, "crit": ["b64"]}, ""),
]


@pytest.mark.parametrize(("header", "reason"), [c[1:] for c in HEADERS], ids=[c[0] for c in HEADERS])
def test_a_header_that_no_key_could_make_good_is_refused(header: dict[str, Any], reason: str) -> None:
    with pytest.raises(TokenRefused) as caught:
        read_header(f"{part(header)}.{part(claims())}.AAAA", RULES)
    assert reason in str(caught.value)


def test_a_token_signed_with_the_public_key_as_a_shared_secret_is_refused() -> None:
    """The confusion of RFC 8725 section 2.1."""
    signed = f"{part({'alg': 'HS256', 'kid': 'k1'})}.{part(claims())}"
    mac = hmac.new(PUBLIC.spki, signed.encode(), hashlib.sha256).digest()
    assert "algorithm" in refusal(f"{signed}.{part(mac)}")


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a.b",
        "a.b.c.d",
        "a.b.c.d.e",
        "..",
        "a..c",
        "a.b.c ",
        "a.b.c, a.b.c",
        "a.b.ü",
        "!.b.c",
        "YQ.YQ.YQ",
        f"{part([])}.{part(claims())}.AAAA",
        f"{part(b'[' * 3000)}.{part(claims())}.AAAA",
        f"{part({'alg': 'ES256'})}.{part(b'[' * 3000)}.AAAA",
        f"{part({'alg': 'ES256'})}.{part(b'7')}.AAAA",
        f"{part({'alg': 'ES256'})}.{part(b'1' * 5000)}.AAAA",
        "a" * 8000 + ".b." + "c" * 190,
    ],
    ids=lambda token: f"{len(token)} {token[:12]}",
)
def test_what_is_no_token_is_refused(token: str) -> None:
    assert refusal(token) in (
        NO_JWT,
        "the token is too long",
        "the token is malformed",
        "the signature of the token is wrong",
    )


CLAIMS: list[tuple[dict[str, Any], str]] = [
    ({"iss": None}, "lacks the claim iss"),
    ({"iss": "https://other.example"}, "another issuer"),
    ({"iss": ISSUER + "/"}, "another issuer"),
    ({"aud": None}, "lacks the claim aud"),
    ({"aud": "someone-else"}, "another audience"),
    ({"aud": ["someone-else", 7]}, "another audience"),
    ({"aud": {}}, "a"),
    ({"exp": None}, "lacks the claim exp"),
    ({"exp": NOW_S - 30}, "has expired"),
    ({"exp": 0}, "has expired"),
    ({"exp": -(2**60)}, "exp is not a time"),
    ({"exp": 2**60}, "exp is not a time"),
    ({"exp": 10**400}, "exp is not a time"),
    ({"exp": "1800000600"}, "exp is not a time"),
    ({"exp": True}, "exp is not a time"),
    ({"exp": [1]}, "exp is not a time"),
    ({"exp": float("inf")}, "exp is not a time"),
    ({"exp": float("nan")}, "exp is not a time"),
    ({"nbf": NOW_S + 31}, "not valid yet"),
    ({"nbf": "soon"}, "nbf is not a time"),
    ({"client_id": None}, "names no account"),
    ({"client_id": 7}, "names no account"),
    ({"client_id": {"a": 1}}, "names no account"),
    ({"client_id": ""}, "not an account id"),
    ({"client_id": "tpp 1"}, "not an account id"),
    ({"client_id": "x" * 129}, "not an account id"),
    ({"client_id": "\ud800"}, "not an account id"),
]


@pytest.mark.parametrize(("changes", "reason"), CLAIMS, ids=[f"{n} {r}" for n, (_, r) in enumerate(CLAIMS)])
def test_a_token_with_wrong_claims_is_refused_although_its_signature_is_right(
    changes: dict[str, Any], reason: str
) -> None:
    assert reason in refusal(sign_anything(claims(**changes)))


def sign_anything(content: dict[str, Any]) -> str:
    """Sign claims that no honest library would write."""
    signed = f"{part({'alg': 'ES256', 'kid': 'k1'})}.{part(json.dumps(content).encode())}"
    assert isinstance(KEY.private, ec.EllipticCurvePrivateKey)
    r, s = decode_dss_signature(KEY.private.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{part(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": ["x", "other-audience"]},
        {"exp": NOW_S - 29},
        {"exp": NOW_S + 0.5},
        {"nbf": NOW_S + 30},
        {"nbf": NOW_S - 100, "iat": NOW_S + 1000},
        {"sub": 7, "jti": 7},
    ],
    ids=str,
)
def test_a_token_with_unusual_claims_is_good(changes: dict[str, Any]) -> None:
    assert check(sign_anything(claims(**changes))).account == "tpp-1"


def test_aud_is_not_looked_at_when_no_audience_is_configured() -> None:
    rules = dataclasses.replace(RULES, audience=None)
    assert check(KEY.token(aud="someone-else"), rules).account == "tpp-1"
    assert check(KEY.token(aud=None), rules).account == "tpp-1"


@pytest.mark.parametrize(
    ("path", "changes", "account"),
    [
        ("sub", {"sub": "tpp-2"}, "tpp-2"),
        ("act.sub", {"act": {"sub": "tpp-2"}}, "tpp-2"),
        ("a.b.c", {"a": {"b": {"c": "tpp-2"}}}, "tpp-2"),
        ("https://bank.example/tpp", {"https://bank.example/tpp": "tpp-2"}, "tpp-2"),
        ("act.sub", {"act": "tpp-2"}, None),
        ("act.sub", {"act": [{"sub": "tpp-2"}]}, None),
        ("act.sub", {"act": {}}, None),
        ("act", {"act": {"sub": "tpp-2"}}, None),
    ],
)
def test_the_account_is_found_by_its_path(path: str, changes: dict[str, Any], account: str | None) -> None:
    rules = dataclasses.replace(RULES, account_claim=path)
    token = KEY.token(**changes)
    if account is None:
        assert refusal(token, rules) == "the token names no account"
    else:
        assert check(token, rules).account == account


@pytest.mark.parametrize(
    ("kind", "good"),
    [("at+jwt", True), ("AT+JWT", True), ("application/at+jwt", True), ("JWT", False), (None, False), (7, False)],
)
def test_the_type_of_the_token_counts_once_it_is_configured(kind: Any, good: bool) -> None:
    rules = dataclasses.replace(RULES, types=("at+jwt",))
    token = f"{part({'alg': 'ES256', 'typ': kind})}.{part(claims())}.AAAA"
    if good:
        assert read_header(token, rules).algorithm == "ES256"
    else:
        with pytest.raises(TokenRefused, match="type"):
            read_header(token, rules)


def test_a_token_beyond_the_limit_is_refused_although_its_signature_is_right() -> None:
    assert check(KEY.token(padding="x" * 5000)).account == "tpp-1"
    assert refusal(KEY.token(padding="x" * 6000)) == "the token is too long"


def test_a_signature_by_another_key_is_refused() -> None:
    assert refusal(es_key("k1").token()) == "the signature of the token is wrong"


def test_a_token_whose_claims_were_changed_is_refused() -> None:
    head, _, signature = KEY.token().split(".")
    assert refusal(f"{head}.{part(claims(client_id='tpp-2'))}.{signature}") == "the signature of the token is wrong"


GOOD = KEY.token()


@fuzz
@given(
    st.text(max_size=100)
    | st.tuples(st.integers(0, len(GOOD) - 1), st.characters(max_codepoint=0x17F)).map(
        lambda change: GOOD[: change[0]] + change[1] + GOOD[change[0] + 1 :]
    )
    | st.tuples(st.binary(max_size=60), st.binary(max_size=60), st.binary(max_size=70)).map(
        lambda parts: ".".join(map(part, parts))
    )
)
def test_no_text_but_the_token_itself_verifies_or_raises_anything_else(token: str) -> None:
    try:
        verified = check(token)
    except TokenRefused as refused:
        if '"' in str(refused):  # it could break out of the quotes of error_description
            raise
        return
    # The last character of base64 holds bits that mean nothing, which are the only ones that may differ.
    assert token[:-1] == GOOD[:-1]
    assert verified.account == "tpp-1"
