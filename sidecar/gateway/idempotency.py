"""Idempotency keys of requests: which field counts, what is the same key, and what is the same call. No I/O.

After draft-ietf-httpapi-idempotency-key-header-07, whose ``Idempotency-Key`` is a string of RFC 9651, and the
Read/Write API of UK Open Banking, whose ``x-idempotency-key`` is plain text. Both spellings are read in both fields.
A key is the same with quotes and without: an API that tells them apart must not be declared idempotent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

from sidecar.gateway import errors
from sidecar.gateway.errors import Kind
from sidecar.gateway.http1.body import BodyRules, ChunkedDecoder, Piece
from sidecar.gateway.methods import METHOD_OVERRIDES
from sidecar.gateway.routes import SAFE_METHODS, IdempotencyRule
from sidecar.ledger.client.outcomes import IdempotencyKey
from sidecar.ledger.keys import idempotency_digest

KEY_BYTES_MAX: Final = 255
FIELD_BYTES_MAX: Final = 4096
"""Of a field's lines together: more than a key takes with all its quotes and escapes, several times."""
_QUOTE: Final = 0x22
_BACKSLASH: Final = 0x5C
_SPACE: Final = 0x20
_FINGERPRINT_BYTES: Final = 16


class KeyRefused(Exception):
    """A request's idempotency key is missing where it is required, or is none. ``kind`` is the refusal's."""

    def __init__(self, kind: Kind, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


def read_key(rule: IdempotencyRule | None, method: bytes, fields: Mapping[bytes, bytes]) -> bytes | None:
    """The caller's key, without quotes. None: the route has no rule, the method changes nothing, or there is no key
    by which the gateway and any API know the same call: none at all, or the same one several times, of which servers
    take the first, the last, or all as one text.

    Args:
        fields: values by lower-case name; those of a repeated field are joined with a comma and a space.

    Raises:
        KeyRefused: the key is missing and required, or it cannot be read.
    """
    if rule is None or method in SAFE_METHODS:
        return None
    value = fields.get(rule.header)
    if value is None:
        if rule.required:
            raise KeyRefused(errors.KEY_MISSING, f"{_shown(rule)} is missing.")
        return None
    if len(value) > FIELD_BYTES_MAX:
        raise KeyRefused(errors.KEY_INVALID, f"{_shown(rule)} is longer than {KEY_BYTES_MAX} bytes.")
    keys = _keys(value)
    if not keys:
        raise KeyRefused(errors.KEY_INVALID, f"{_shown(rule)} is not one visible text, with or without quotes.")
    key = keys[0]
    if any(other != key for other in keys):
        raise KeyRefused(errors.KEY_INVALID, f"{_shown(rule)} is there more than once, with different values.")
    if not key:
        raise KeyRefused(errors.KEY_INVALID, f"{_shown(rule)} is empty.")
    if len(key) > KEY_BYTES_MAX:
        raise KeyRefused(errors.KEY_INVALID, f"{_shown(rule)} is longer than {KEY_BYTES_MAX} bytes.")
    return key if len(keys) == 1 else None


def _shown(rule: IdempotencyRule) -> str:
    return rule.header.decode("latin-1")


def _keys(value: bytes) -> list[bytes]:
    """The keys of all lines of a field; none if one of them is no key."""
    if not value:
        return [b""]
    keys: list[bytes] = []
    at, end = 0, len(value)
    while True:
        if at < end and value[at] == _QUOTE:
            key, at = _quoted(value, at + 1)
            if at < 0:
                return []
        else:
            begin = at
            while at < end and value[at : at + 2] != b", ":
                byte = value[at]
                # Visible, and no quote in the middle: a sender that forgot one meant something else.
                if byte <= _SPACE or byte > 0x7E or byte == _QUOTE:
                    return []
                at += 1
            key = value[begin:at]
        keys.append(key)
        if at >= end:
            return keys
        if value[at : at + 2] != b", ":
            return []
        at += 2


def _quoted(value: bytes, at: int) -> tuple[bytes, int]:
    """A string of RFC 9651 section 3.3.3 from behind its quote on, and where it ends; -1 if it is none."""
    out = bytearray()
    end = len(value)
    while at < end:
        byte = value[at]
        at += 1
        if byte == _QUOTE:
            return bytes(out), at
        if byte == _BACKSLASH:
            if at >= end or value[at] not in (_QUOTE, _BACKSLASH):
                return b"", -1
            byte = value[at]
            at += 1
        elif byte < _SPACE or byte > 0x7E:
            return b"", -1
        out.append(byte)
    return b"", -1


def content_of(pieces: Sequence[Piece], rules: BodyRules, *, chunked: bool) -> bytes:
    """The content of a complete body, of the pieces in which it goes to the API: how it is cut says nothing."""
    whole = b"".join(pieces)
    return b"".join(ChunkedDecoder(rules, plain=True).feed(whole)) if chunked else whole


def named_method(method: bytes, fields: Mapping[bytes, bytes]) -> bytes:
    """The method, with those that fields name in its place: what they say is another call."""
    for name in METHOD_OVERRIDES:
        if name in fields:
            method += b" %b:%b" % (name, fields[name])
    return method


def call_key(
    rule: IdempotencyRule, key: bytes, account: str, method: bytes, target: bytes, content: bytes | None
) -> IdempotencyKey | None:
    """What tells the ledger that a call is a repeat: account, method and target are the key's scope, and the content is
    what must not differ. None without the content (it is too long): such a call is never a repeat.
    """
    if content is None:
        return None
    return IdempotencyKey(
        idempotency_digest(account, b"%b %b\0%b" % (method, target, key)),
        hashlib.blake2b(content, digest_size=_FINGERPRINT_BYTES).digest(),
        rule.repeats_max,
        rule.refuse_conflicts,
    )
