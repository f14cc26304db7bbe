"""The values of an account's state as stored (lua/lib/account.lua): unpacked, checked for their shape, packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import gcd
from typing import Any, Final

import msgpack

from sidecar.ledger.pricing.price_tables import MAX_INT

_HEAD: Final = 10
_SUBSCRIPTION: Final = 3
_SLOW: Final = 8
_LIMITS: Final = 4
_HOT: Final = 3
_SHARE: Final = 3
_NIL: Final = b"\xc0"
_LENGTH: Final = 3
"""Bytes that tell how long the part is that seldom changes."""


@dataclass(frozen=True, slots=True)
class StateValues:
    """``terms``: version, status, ceiling, counts_unsettled, rate_interval_us, burst, day_limit, K. ``limits``: tat_us,
    unpaid_tat_us, day, day_count. A subscription: name, start_ms, end_ms. A counter: subscription (from 1), name,
    adjusted, lo, hi, a, b, hour, N, H, units of the hour. A share: epoch, counter (from 1), units."""

    terms: Sequence[Any] = (0, 0, False, 0, 0, 0, 0, 0)
    subscriptions: Sequence[Sequence[Any]] = (("", 0, MAX_INT),)
    counters: Sequence[Sequence[Any]] = ()
    limits: Sequence[Any] = (0, 0, 0, 0)
    shares: Sequence[Sequence[Any]] = ()

    def packed(self) -> bytes:
        """As it is stored."""
        front = [*self.terms, len(self.subscriptions), len(self.counters)]
        for subscription in self.subscriptions:
            front += subscription
        for counter in self.counters:
            front += counter[:_SLOW]
        hot = list(self.limits)
        for counter in self.counters:
            hot += counter[_SLOW:]
        for share in self.shares:
            hot += share
        first = _pack(front)
        return len(first).to_bytes(_LENGTH, "big") + first + _pack(hot)


def pack_ends(ends: Sequence[int]) -> list[int]:
    """The ends of periods, in ms, as the field ``periods`` has them: first end, unit, steps in units."""
    unit = gcd(*(after - before for before, after in pairwise(ends)))
    if not unit:
        return list(ends[:1])
    return [ends[0], unit, *((after - before) // unit for before, after in pairwise(ends))]


def unpack_ends(stored: Sequence[int]) -> tuple[int, ...]:
    """The opposite of ``pack_ends``."""
    if not stored:
        return ()
    unit = stored[1] if len(stored) > 1 else 0
    return tuple(accumulate((step * unit for step in stored[2:]), initial=stored[0]))


def unpack_state(packed: bytes) -> StateValues:
    """Reads a state.

    Raises:
        ValueError: it is none; says why.
    """
    values = unpack_values(packed, _LENGTH)
    subscriptions, counters = [*values[8:10], None, None][:2]
    if not isinstance(subscriptions, int) or not isinstance(counters, int) or subscriptions < 1 or counters < 0:
        raise ValueError(f"a state of {len(values)} values")
    slow_at = _HEAD + _SUBSCRIPTION * subscriptions
    limits_at = slow_at + _SLOW * counters
    hot_at = limits_at + _LIMITS
    shares_at = hot_at + _HOT * counters
    if len(values) < shares_at or (len(values) - shares_at) % _SHARE:
        raise ValueError(f"{len(values)} values, with {subscriptions} subscriptions and {counters} counters")
    slow, hot = _rows(values[slow_at:limits_at], _SLOW), _rows(values[hot_at:shares_at], _HOT)
    return StateValues(
        terms=values[:8],
        subscriptions=_rows(values[_HEAD:slow_at], _SUBSCRIPTION),
        counters=[[*one, *other] for one, other in zip(slow, hot, strict=True)],
        limits=values[limits_at:hot_at],
        shares=_rows(values[shares_at:], _SHARE),
    )


def unpack_values(packed: bytes, at: int = 0, *, raw: bool = False) -> list[Any]:
    """msgpack values one after another, from byte ``at`` to the end. ``raw``: texts stay bytes.

    Raises:
        ValueError: it is none, or the last one is cut off.
    """
    reader = msgpack.Unpacker(raw=raw, strict_map_key=False, max_buffer_size=len(packed) + 1)
    # A value that is cut off swallows the nil behind it; asking where each value ends takes twice the time.
    reader.feed(packed[at:] + _NIL)
    try:
        values = list(reader)
    except (ValueError, msgpack.UnpackException) as error:
        raise ValueError(f"{packed[:16]!r} is no msgpack: {error!r}") from None
    if not values or values[-1] is not None or reader.tell() != len(packed) - at + 1:
        raise ValueError(f"it ends within value {len(values) + 1}")
    values.pop()
    return values


def _rows(values: list[Any], width: int) -> list[list[Any]]:
    return [values[at : at + width] for at in range(0, len(values), width)]


def _pack(values: Sequence[Any]) -> bytes:
    # cmsgpack does not know the bin type.
    return b"".join(msgpack.packb(value, use_bin_type=False) for value in values)
