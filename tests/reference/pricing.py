"""What a number of units costs, as docs/ledger.md ("Price tables") says it, without any thought of speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

MAX_INT = 2**53 - 1
BRUTE_FORCE_MAX = 200
"""Up to so many units, ``worst`` simply tries each count."""

Table = Sequence[str | int]


class Step(NamedTuple):
    """One tier: up to and including ``to`` units."""

    to: int
    unit: int
    flat: int


def steps(table: Table) -> list[Step]:
    """The tiers of a graduated or volume table."""
    numbers = [int(value) for value in table[1:]]
    return [Step(*numbers[at : at + 3]) for at in range(0, len(numbers), 3)]


def cost(table: Table, n: int) -> int:
    """Scaled money for ``n`` units of one period."""
    assert n >= 0, n
    model, *numbers = table
    match model:
        case "s":
            return n * int(numbers[0])
        case "g":
            return _graduated(steps(table), n)
        case "v":
            tier = next(tier for tier in steps(table) if tier.to >= n)
            return n * tier.unit + tier.flat
        case "p":
            size, free, amount = map(int, numbers)
            charged = max(0, n - free)
            packages = charged // size + (1 if charged % size else 0)
            return packages * amount
    raise AssertionError(f"no such model: {model}")


def scaled(table: Table, change: Callable[[int], int]) -> list[str | int]:
    """The table for an account with other decimals: its money, and nothing else, changed."""
    return [
        table[0],
        *(change(int(n)) if money else n for n, money in zip(table[1:], _is_money(table), strict=False)),
    ]


def money_of(table: Table) -> list[int]:
    """The amounts of a table."""
    return [int(n) for n, money in zip(table[1:], _is_money(table), strict=False) if money]


def _is_money(table: Table) -> list[bool]:
    return {"s": [True], "p": [False, False, True]}.get(str(table[0]), [False, True, True] * len(table))


def _graduated(tiers: list[Step], n: int) -> int:
    total = tiers[0].flat
    total += min(n, tiers[0].to) * tiers[0].unit
    for before, tier in pairwise(tiers):
        if n > before.to:
            total += tier.flat + (min(n, tier.to) - before.to) * tier.unit
    return total


def worst(table: Table, n: int, h: int) -> int:
    """The most that any count from ``n`` to ``n + h`` costs: what a hold must reserve."""
    if h <= BRUTE_FORCE_MAX:
        return max(cost(table, x) for x in range(n, n + h + 1))
    return max(cost(table, x) for x in corners(table, n, n + h))


def corners(table: Table, lo: int, hi: int) -> set[int]:
    """Counts between ``lo`` and ``hi`` among which the dearest is.

    Inside a tier, and inside a package, cost does not fall, so only ends of tiers can be dearer than what follows.
    """
    ends = {tier.to for tier in steps(table)} if table[0] in ("g", "v") else set()
    return {lo, hi} | {x for end in ends for x in (end, end + 1) if lo <= x <= hi}


def marginal_walk(table: Table, n: int) -> int:
    """``cost`` once more, unit by unit as on paper; for small ``n``, to hold ``cost`` itself to something."""
    model, *numbers = table
    match model:
        case "s":
            return sum(int(numbers[0]) for _ in range(n))
        case "g":
            tiers = steps(table)
            total, tier = tiers[0].flat, 0
            for unit in range(1, n + 1):
                if unit > tiers[tier].to:
                    tier += 1
                    total += tiers[tier].flat
                total += tiers[tier].unit
            return total
        case "p":
            size, free, amount = map(int, numbers)
            total, room = 0, free
            for _ in range(n):
                if room == 0:
                    total, room = total + amount, size
                room -= 1
            return total
        case "v":
            tiers = steps(table)
            at = 0
            for unit in range(1, n + 1):
                at += unit > tiers[at].to
            return sum(tiers[at].unit for _ in range(n)) + tiers[at].flat
    raise AssertionError(f"no such model: {model}")
