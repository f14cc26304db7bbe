"""The chain through an origin's outbox entries: what the field ``c`` of an entry has, and the value of an entry.

The value of an entry is an HMAC-SHA-256 over the value before it, origin, number, time and the exact bytes of its
events. The next entry carries it. Whoever has no key can make no entry, change none and take none out without a trace.
Each kind of text begins with a word of its own, so none can stand for another.
"""

from __future__ import annotations

from collections.abc import Sequence
from hmac import digest
from typing import Final

KEY_BYTES_MIN: Final = 32
VALUE_BYTES: Final = 32
MAC_BYTES: Final = 16
"""Of one event of an adopted batch whose events the ledger may leave out."""

_ADOPTED_BYTES: Final = 2 * VALUE_BYTES


def beginning(key: bytes, origin: str, number: int) -> bytes:
    """What the first entry of an origin carries, if its batch has this number."""
    return digest(key, b"begin %d %b" % (number, origin.encode()), "sha256")


def entry_value(key: bytes, before: bytes, origin: str, number: int, at_ms: int, events: bytes) -> bytes:
    """``before``: what the entry carries. ``events``: the bytes of its field ``e``."""
    name = origin.encode()
    text = b"entry %d %d %d %d %b%b%b" % (len(before), len(name), number, at_ms, before, name, events)
    return digest(key, text, "sha256")


def adopted(
    key: bytes, before: bytes, origin: str, number: int, events: Sequence[bytes], *, all_charged: bool
) -> bytes:
    """What an entry carries that another process appends for a dead one, out of its spool: what the ledger says of the
    origin's chain, then a proof. Nobody knows the time of the entry before it is made, so it is not in it.

    ``all_charged`` False: the ledger may find that some of the events were charged before, and leave them out. Then a
    code for each event follows the proof.
    """
    before = link_of(before)
    codes = b"" if all_charged else b"".join(digest(key, b"event " + event, "sha256")[:MAC_BYTES] for event in events)
    what = b"[" + b",".join(events) + b"]" if all_charged else codes
    return before + _adoption(key, before, origin, number, what, all_charged=all_charged) + codes


def is_adopted(chain: bytes) -> bool:
    """Whether an entry that carries this was appended out of a spool."""
    return len(chain) >= _ADOPTED_BYTES


def adoption_holds(key: bytes, chain: bytes, origin: str, number: int, whole: bytes, events: Sequence[bytes]) -> bool:
    """Whether the adopted entry has no event that was not offered. ``whole``: its field ``e``; ``events``: the JSON of
    each."""
    before, proof, codes = chain[:VALUE_BYTES], chain[VALUE_BYTES:_ADOPTED_BYTES], chain[_ADOPTED_BYTES:]
    what = codes or whole
    if proof != _adoption(key, before, origin, number, what, all_charged=not codes):
        return False
    at = 0
    for event in events if codes else ():
        code = digest(key, b"event " + event, "sha256")[:MAC_BYTES]
        while codes[at : at + MAC_BYTES] != code:
            at += MAC_BYTES
            if at >= len(codes):
                return False
        at += MAC_BYTES
    return True


def link_of(chain: bytes) -> bytes:
    """The value in a chain value of the ledger that an adopted entry goes on from."""
    return chain[VALUE_BYTES:_ADOPTED_BYTES] if is_adopted(chain) else chain[:VALUE_BYTES].ljust(VALUE_BYTES, b"\0")


def _adoption(key: bytes, before: bytes, origin: str, number: int, what: bytes, *, all_charged: bool) -> bytes:
    name = origin.encode()
    word = b"adopted" if all_charged else b"adopted-some"
    return digest(key, b"%b %d %d %b%b%b" % (word, len(name), number, before, name, what), "sha256")
