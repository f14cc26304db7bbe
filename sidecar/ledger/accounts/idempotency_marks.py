"""Idempotency keys as an account's hash has them (lua/lib/marks.lua)."""

from __future__ import annotations

from typing import Final

from sidecar.ledger.accounts.state_values import unpack_values

MARK_LENGTH: Final = 17
"""Bytes of the field: the letter i and a digest."""
_INSTANT_LENGTH: Final = 9
_UINT64: Final = 0xCF


def is_mark(field: bytes) -> bool:
    """Whether a field of the hash is one."""
    return len(field) == MARK_LENGTH and field[:1] == b"i"


def mark_until_ms(packed: bytes) -> int | None:
    """Until when it counts; None if that cannot be read."""
    if len(packed) < _INSTANT_LENGTH or packed[0] != _UINT64:
        return None
    return int.from_bytes(packed[1:_INSTANT_LENGTH], "big")


def is_under_way(packed: bytes) -> bool:
    """Whether a hold has it, and nothing was charged under it yet."""
    try:
        values = unpack_values(packed, raw=True)
    except ValueError:
        return False
    return len(values) > 1 and values[1] != 0
