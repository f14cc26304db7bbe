"""Idempotency keys of requests: what is read, what is refused, and what makes two calls one."""

from __future__ import annotations

from time import process_time

import pytest

from sidecar.gateway import errors
from sidecar.gateway.http1.body import BodyRules, ChunkedDecoder
from sidecar.gateway.http1.limits import Limits
from sidecar.gateway.idempotency import KEY_BYTES_MAX, KeyRefused, call_key, content_of, named_method, read_key
from sidecar.gateway.routes import SAFE_METHODS, IdempotencyRule

RULE = IdempotencyRule()
OBIE = IdempotencyRule(b"x-idempotency-key", repeats_max=5, refuse_conflicts=True)
UUID = b"8e03978e-40d5-43e8-bc93-6894a57f9324"


def read(value: bytes, rule: IdempotencyRule = RULE) -> bytes | None:
    return read_key(rule, b"POST", {rule.header: value})


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (UUID, UUID), (b'"' + UUID + b'"', UUID), (b"a,b", b"a,b"), (b'"a, b"', b"a, b"), (rb'"a\"b\\c"', rb'a"b\c'),
        (rb"a\b", rb"a\b"), (b"x" * KEY_BYTES_MAX, b"x" * KEY_BYTES_MAX),
        (rb'"' + rb"\\" * KEY_BYTES_MAX + b'"', b"\\" * KEY_BYTES_MAX),
    ],
)  # fmt: skip
def test_a_key_is_the_same_with_quotes_and_without(value: bytes, key: bytes) -> None:
    assert read(value) == key
    assert read(value, OBIE) == key


@pytest.mark.parametrize("value", [b"k, k", b'k, "k"', b'"k", "k", k'])
def test_a_key_that_is_there_several_times_is_legal_and_makes_no_repeat(value: bytes) -> None:
    assert read(value) is None
    assert read(value, IdempotencyRule(required=True)) is None


@pytest.mark.parametrize(
    "value",
    [
        b"", b'""', b'"', b'"abc', b'abc"', b'a"b', b'"abc"d', b'"abc";p=1', b'"abc",', b'"abc" ', b"a b", b"a\tb",
        b"a\xe9", b'"a\xe9"', b'"a\tb"', rb'"a\x"', b'"a\\', b"a, b", b'a, "b"', b", a", b"a, ", b"a, , a",
        b"x" * (KEY_BYTES_MAX + 1), b'"' + b"x" * (KEY_BYTES_MAX + 1) + b'"',
    ],
)  # fmt: skip
def test_what_is_no_key_is_refused(value: bytes) -> None:
    with pytest.raises(KeyRefused) as caught:
        read(value)
    assert caught.value.kind is errors.KEY_INVALID
    assert caught.value.reason.startswith("idempotency-key ")


def test_a_field_that_is_far_too_long_is_not_read_to_its_end() -> None:
    for value in (b"k, " * 10_000 + b"k", b'"' + b"\\\\" * 15_000 + b'"'):
        began = process_time()
        with pytest.raises(KeyRefused, match="longer than 255"):
            read_key(IdempotencyRule(), b"POST", {b"idempotency-key": value})
        assert process_time() - began < 0.001


def test_one_field_counts_and_others_are_ignored() -> None:
    fields = {b"idempotency-key": b"one", b"x-idempotency-key": b"two"}
    assert read_key(RULE, b"POST", fields) == b"one"
    assert read_key(OBIE, b"POST", fields) == b"two"
    assert read_key(IdempotencyRule(b"x-request-id"), b"POST", fields) is None
    assert read_key(None, b"POST", fields) is None


@pytest.mark.parametrize("method", sorted(SAFE_METHODS))
def test_what_changes_nothing_has_no_key(method: bytes) -> None:
    rule = IdempotencyRule(required=True)
    assert read_key(rule, method, {b"idempotency-key": b"a b"}) is None
    assert read_key(rule, method, {}) is None


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"PATCH", b"DELETE", b"MOVE", b"x"])
def test_a_key_that_is_required_and_missing_is_refused(method: bytes) -> None:
    assert read_key(RULE, method, {}) is None
    with pytest.raises(KeyRefused) as caught:
        read_key(IdempotencyRule(required=True), method, {b"x-idempotency-key": b"other"})
    assert caught.value.kind is errors.KEY_MISSING


def test_a_call_is_its_account_method_target_and_key_and_its_content_must_be_the_same() -> None:
    first = call_key(OBIE, b"k", "tpp", b"POST", b"/payments?a", b"body")
    assert first is not None
    assert (first.repeats_max, first.refuse_conflicts) == (5, True)
    assert (len(first.digest), len(first.fingerprint)) == (16, 16)
    for other in (
        call_key(OBIE, b"K", "tpp", b"POST", b"/payments?a", b"body"),
        call_key(OBIE, b"k", "Tpp", b"POST", b"/payments?a", b"body"),
        call_key(OBIE, b"k", "tpp", b"PUT", b"/payments?a", b"body"),
        call_key(OBIE, b"k", "tpp", b"POST", b"/payments?b", b"body"),
    ):
        assert other is not None
        assert other.digest != first.digest
        assert other.fingerprint == first.fingerprint
    changed = call_key(OBIE, b"k", "tpp", b"POST", b"/payments?a", b"bodY")
    assert changed is not None
    assert changed.digest == first.digest
    assert changed.fingerprint != first.fingerprint


def test_a_call_whose_method_a_field_names_is_another_call() -> None:
    assert named_method(b"POST", {b"idempotency-key": b"k"}) == b"POST"
    names = [b"x-http-method-override", b"x-method-override", b"x-http-method"]
    assert len({named_method(b"POST", {name: b"DELETE"}) for name in names} | {b"POST"}) == 4


def test_what_is_too_long_to_compare_is_no_repeat() -> None:
    assert call_key(RULE, b"k", "tpp", b"POST", b"/", None) is None
    assert call_key(RULE, b"k", "tpp", b"POST", b"/", b"") is not None


@pytest.mark.parametrize("sizes", [[10], [1] * 10, [3, 7], [9, 1]])
def test_how_a_body_is_cut_into_chunks_says_nothing(sizes: list[int]) -> None:
    content, at, wire = b"0123456789", 0, b""
    for size in sizes:
        wire += b"%x\r\n%b\r\n" % (size, content[at : at + size])
        at += size
    rules = BodyRules(Limits(), 400)
    pieces = ChunkedDecoder(rules).feed(wire + b"0\r\nDigest: x\r\n\r\n")
    assert content_of(pieces, rules, chunked=True) == content
    assert content_of([b"0123", b"456789"], rules, chunked=False) == content
    assert content_of(ChunkedDecoder(rules).feed(b"0\r\n\r\n"), rules, chunked=True) == b""
