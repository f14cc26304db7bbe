from __future__ import annotations

from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from sidecar.identity.jwks import KeySet, KeySetError, parse_key_set
from tests.unit.identity.kit import IssuerKey, es_key, fuzz, key_set, rs_key, rsa_key

RSA = rs_key("r")
EC = es_key("e")
P384 = IssuerKey("p", "ES384", ec.generate_private_key(ec.SECP384R1()))
ED = IssuerKey("d", "EdDSA", ed25519.Ed25519PrivateKey.generate())

RSA_ALL = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}


@pytest.mark.parametrize(
    ("member", "algorithms"),
    [
        (RSA.jwk(), {"RS256"}),
        (RSA.jwk(alg=None), RSA_ALL),
        (RSA.jwk(alg="PS512", use=None), {"PS512"}),
        (RSA.jwk(key_ops=["verify"]), {"RS256"}),
        (RSA.jwk(x5u="https://evil.example", unknown=[1]), {"RS256"}),
        (EC.jwk(), {"ES256"}),
        (EC.jwk(alg=None), {"ES256"}),
        (P384.jwk(), {"ES384"}),
        (ED.jwk(), {"EdDSA"}),
    ],
)
def test_a_key_may_verify_what_its_kind_and_its_alg_allow(member: dict[str, Any], algorithms: set[str]) -> None:
    (key,) = parse_key_set(key_set(member)).keys
    assert key.algorithms == algorithms
    assert key.key_id == member["kid"]


UNUSABLE = [
    ("no object", 7),
    ("no kind", {"kid": "x"}),
    ("symmetric", {"kty": "oct", "k": "c2VjcmV0", "kid": "x"}),
    ("unknown kind", {"kty": "PQ", "kid": "x"}),
    ("kind that is no text", {"kty": ["RSA"]}),
    ("for encryption", RSA.jwk(use="enc")),
    ("for signing only", RSA.jwk(key_ops=["sign"])),
    ("odd key_ops", RSA.jwk(key_ops="verify")),
    ("odd kid", RSA.jwk(kid=7)),
    ("odd alg", RSA.jwk(alg=["RS256"])),
    ("alg of another kind", RSA.jwk(alg="ES256")),
    ("alg none", RSA.jwk(alg="none")),
    ("symmetric alg with a public key", RSA.jwk(alg="HS256")),
    ("curve of another alg", EC.jwk(alg="ES384")),
    ("curve that is not accepted", EC.jwk(crv="secp256k1", alg=None)),
    ("curve that is no text", EC.jwk(crv=["P-256"])),
    ("point that is not on the curve", EC.jwk(x=EC.jwk()["y"])),
    ("no point", EC.jwk(y=None)),
    ("point that is no base64", EC.jwk(x="!")),
    ("no modulus", RSA.jwk(n=None)),
    ("empty modulus", RSA.jwk(n="")),
    ("even exponent", RSA.jwk(e="Ag")),
    ("huge modulus", RSA.jwk(n="_" * 1401)),
    ("short modulus", IssuerKey("s", "RS256", rsa_key("short", 1024)).jwk()),
    ("okp of the wrong length", ED.jwk(x="AAAA")),
]


@pytest.mark.parametrize(("member"), [member for _, member in UNUSABLE], ids=[name for name, _ in UNUSABLE])
def test_a_key_that_must_not_verify_is_skipped_and_the_others_stay(member: Any) -> None:
    keys = parse_key_set(key_set(member, EC))
    assert [key.key_id for key in keys.keys] == ["e"]
    assert keys.skipped == 1
    with pytest.raises(KeySetError, match="no key that verifies"):
        parse_key_set(key_set(member))


def test_private_members_are_not_read() -> None:
    private = jwt.algorithms.RSAAlgorithm.to_jwk(rsa_key(), as_dict=True)
    (key,) = parse_key_set(key_set(RSA.jwk() | {"d": private["d"]})).keys
    assert not hasattr(key.public_key, "private_numbers")


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b"", "not JSON"),
        (b"<html>", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", 'no list "keys"'),
        (b"{}", 'no list "keys"'),
        (b'{"keys": {}}', 'no list "keys"'),
        (b'{"keys": []}', "no key that verifies"),
        (key_set(*[EC.jwk()] * 101), "more than 100 keys"),
    ],
)
def test_what_is_no_key_set_is_refused(document: bytes, reason: str) -> None:
    with pytest.raises(KeySetError, match=reason):
        parse_key_set(document)


TWO = parse_key_set(key_set(RSA, RSA.jwk(kid="r2", alg="PS256"), EC))


@pytest.mark.parametrize(
    ("key_id", "algorithm", "found"),
    [
        ("r", "RS256", "r"),
        ("r", "PS256", None),
        ("r2", "PS256", "r2"),
        ("e", "ES256", "e"),
        ("e", "RS256", None),
        ("x", "RS256", None),
        (None, "ES256", "e"),
        (None, "RS256", "r"),
        (None, "ES384", None),
    ],
)
def test_the_key_is_found_by_id_and_algorithm(key_id: str | None, algorithm: str, found: str | None) -> None:
    key = TWO.find(key_id, algorithm)
    assert (key and key.key_id) == found


def test_without_a_key_id_two_keys_that_fit_are_none() -> None:
    keys = parse_key_set(key_set(es_key("1"), es_key("2")))
    assert keys.find(None, "ES256") is None


def test_two_keys_under_one_id_are_none() -> None:
    assert parse_key_set(key_set(es_key("1"), es_key("1"))).find("1", "ES256") is None


@pytest.mark.parametrize(
    ("older", "newer", "lacking"),
    [
        ([RSA, EC], [RSA, EC], False),
        ([RSA], [EC, RSA], False),
        ([RSA, EC], [EC], True),
        ([RSA], [rs_key("r", name="two")], True),
        ([RSA], [RSA.jwk(kid="other")], True),
        ([RSA.jwk(alg=None)], [RSA], True),
        ([RSA], [RSA.jwk(alg=None)], False),
        ([RSA, RSA.jwk(alg="PS256")], [RSA, RSA.jwk(alg="PS256")], False),
    ],
)
def test_a_key_counts_as_withdrawn_when_it_is_gone_changed_or_may_do_less(
    older: list[Any], newer: list[Any], lacking: bool
) -> None:
    assert parse_key_set(key_set(*newer)).lacks_any_of(parse_key_set(key_set(*older))) is lacking


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**31), 2**31) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["kty", "x", "keys"]), inner),
    max_leaves=5,
)
CHANGES = st.dictionaries(st.sampled_from(["kty", "crv", "x", "y", "n", "e", "alg", "use", "kid", "key_ops"]), JSON)


@fuzz
@given(st.sampled_from([RSA.jwk(), EC.jwk(), ED.jwk()]), CHANGES)
def test_no_change_of_a_key_makes_the_reader_raise_anything_else(
    member: dict[str, Any], changes: dict[str, Any]
) -> None:
    try:
        keys = parse_key_set(key_set(member | changes))
    except KeySetError:
        return
    assert isinstance(keys, KeySet)
