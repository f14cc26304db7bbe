"""Computes the cost of units by a packed price table, as lua/lib/pricing.lua does; in integers without a limit."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from sidecar.ledger.pricing.price_tables import (
    MAX_INT,
    Graduated,
    Package,
    PackedTable,
    PriceTable,
    Standard,
    Tier,
    Volume,
)


def cost(table: PackedTable, units: int) -> int:
    """Scaled money for ``units`` of a period (docs/ledger.md, "Price tables")."""
    assert units >= 0, "units are counted"
    model, *rest = table
    numbers = [int(each) for each in rest]
    if model == "s":
        return units * numbers[0]
    if model == "p":
        size, free, amount = numbers
        return -(-max(0, units - free) // size) * amount
    if model == "g":
        total, below = 0, 0
        for to, unit, flat in _tiers(numbers):
            total += (min(units, to) - below) * unit + flat
            if units <= to:
                break
            below = to
        return total
    assert model == "v", f"a price table of the model {model!r}"
    return next(units * unit + flat for to, unit, flat in _tiers(numbers) if units <= to)


def worst(table: PackedTable, settled: int, held: int) -> int:
    """The most that any count from ``settled`` to ``settled + held`` costs: what a hold reserves."""
    top = settled + held
    peaks = [top]
    if table[0] == "v":  # only a volume price falls, and only where a tier ends
        peaks += [to for to, _, _ in _tiers([int(each) for each in table[1:]]) if settled <= to < top]
    return max(cost(table, units) for units in peaks)


def unpacked(table: PackedTable, digits: int) -> PriceTable:
    """A packed table as decimals, the opposite of ``pricing.pack``."""
    model, *rest = table
    numbers = [int(each) for each in rest]

    def money(scaled: int) -> Decimal:
        return Decimal(scaled).scaleb(-digits)

    if model == "s":
        return Standard(money(numbers[0]))
    if model == "p":
        size, free, amount = numbers
        return Package(money(amount), size, free)
    tiers = tuple(Tier(None if to == MAX_INT else to, money(unit), money(flat)) for to, unit, flat in _tiers(numbers))
    return Graduated(tiers) if model == "g" else Volume(tiers)


def bounded(money: int) -> int:
    """Money as the ledger keeps it: what late settles drive beyond 2^53 stays at the bound."""
    return min(money, MAX_INT)


def _tiers(numbers: list[int]) -> Iterator[tuple[int, int, int]]:
    for at in range(0, len(numbers), 3):
        yield numbers[at], numbers[at + 1], numbers[at + 2]
