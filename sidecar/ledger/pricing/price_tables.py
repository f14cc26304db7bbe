"""Price tables: what a plan charges for a metric, as decimals, and packed for the scripts as scaled integers.

The models and their arithmetic are Lago's (lago-api ``app/services/charge_models/``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

MAX_INT = 2**53 - 1
"""Largest integer that Valkey's Lua (IEEE 754 doubles) holds exactly; also the bound of a price table's last tier."""

DIGITS_MAX = 12
"""No price or amount may have more decimals: 10^-12 of a currency unit leaves 9,007 units of money below 2^53."""

MAGNITUDE_MAX = 15
"""Order of magnitude of 2^53: an integer of 10^16 or more lies above it."""

TIERS_MAX = 100


class PriceError(ValueError):
    """A price or an amount that cannot be represented or enforced. The message names it."""


@dataclass(frozen=True, slots=True)
class Standard:
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Tier:
    """``up_to`` is inclusive; None in the last tier."""

    up_to: int | None
    unit: Decimal
    flat: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True)
class Graduated:
    tiers: tuple[Tier, ...]


@dataclass(frozen=True, slots=True)
class Volume:
    tiers: tuple[Tier, ...]


@dataclass(frozen=True, slots=True)
class Package:
    amount: Decimal
    size: int
    free: int = 0


PriceTable = Standard | Graduated | Volume | Package
PackedTable = list[str | int]


def amounts(table: PriceTable) -> Iterable[Decimal]:
    """Every amount of money in a table."""
    match table:
        case Standard(amount) | Package(amount):
            yield amount
        case Graduated(tiers) | Volume(tiers):
            for tier in tiers:
                yield tier.unit
                yield tier.flat


def _reduced(value: Decimal) -> tuple[int, str, int]:
    """Sign, digits without trailing zeros, and exponent of a finite value. (normalize() would round to the context.)"""
    sign, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    text = "".join(map(str, digits)).lstrip("0")
    significant = text.rstrip("0")
    return sign, significant, exponent + len(text) - len(significant)


def decimals(value: Decimal) -> int:
    """How many decimals ``value`` needs: 2 for 1.50 as for 1.5 it is 1, 0 for 300.

    Raises:
        PriceError: not finite, or more than DIGITS_MAX.
    """
    if not value.is_finite():
        raise PriceError(f"{value} is not a finite amount")
    _, significant, exponent = _reduced(value)
    digits = max(0, -exponent) if significant else 0
    if digits > DIGITS_MAX:
        raise PriceError(f"{value} has {digits} decimals; at most {DIGITS_MAX} can be represented")
    return digits


def scale(value: Decimal, digits: int, what: str) -> int:
    """``value`` as an integer of 10^-digits.

    Raises:
        PriceError: it is not finite, needs more digits, or its magnitude reaches 2^53.
    """
    try:
        needed = decimals(value)
    except PriceError as error:
        raise PriceError(f"{what}: {error}") from None
    if needed > digits:
        raise PriceError(f"{what}: {value} needs more than {digits} decimals")
    sign, significant, exponent = _reduced(value)
    if not significant:
        return 0
    # The order of magnitude first: 1E+999999999 written out would fill the memory.
    magnitude = len(significant) + exponent + digits - 1
    scaled = int(significant) * 10 ** (exponent + digits) if magnitude <= MAGNITUDE_MAX else MAX_INT + 1
    if scaled > MAX_INT:
        raise PriceError(f"{what}: {value} with {digits} decimals does not fit below 2^53")
    return -scaled if sign else scaled


def pack(table: PriceTable, digits: int, what: str) -> PackedTable:
    """The table as the scripts read it (docs/ledger.md, "Price tables").

    Raises:
        PriceError: negative or infinite amounts, bounds that do not rise, or a constant that does not fit below 2^53.
    """
    for amount in amounts(table):
        if not amount.is_finite():
            raise PriceError(f"{what}: {amount} is not a finite amount")
        if amount < 0:
            raise PriceError(f"{what}: negative amount {amount}")
    match table:
        case Standard(amount):
            return ["s", scale(amount, digits, what)]
        case Package(amount, size, free):
            if not 1 <= size <= MAX_INT:
                raise PriceError(f"{what}: package size {size} is not between 1 and 2^53-1")
            if not 0 <= free <= MAX_INT:
                raise PriceError(f"{what}: free units {free} are not between 0 and 2^53-1")
            return ["p", size, free, scale(amount, digits, what)]
        case Graduated(tiers):
            return ["g", *_pack_tiers(tiers, digits, what, cumulative=True)]
        case Volume(tiers):
            return ["v", *_pack_tiers(tiers, digits, what, cumulative=False)]


def _pack_tiers(tiers: tuple[Tier, ...], digits: int, what: str, *, cumulative: bool) -> Iterable[int]:
    if not tiers:
        raise PriceError(f"{what}: no tiers")
    if len(tiers) > TIERS_MAX:
        raise PriceError(f"{what}: {len(tiers)} tiers; at most {TIERS_MAX}")
    below, cost = 0, 0
    packed: list[int] = []
    for number, tier in enumerate(tiers, start=1):
        where = f"{what}, tier {number}"
        last = number == len(tiers)
        if (tier.up_to is None) != last:
            raise PriceError(f"{where}: the last tier, and only it, is without an upper bound")
        to = MAX_INT if tier.up_to is None else tier.up_to
        if not below < to <= MAX_INT:
            raise PriceError(f"{where}: upper bound {to} is not above {below}")
        unit, flat = scale(tier.unit, digits, where), scale(tier.flat, digits, where)
        # A tier whose first unit cannot be paid for in exact money can never be used.
        first = cost + unit if cumulative else (below + 1) * unit
        if first + flat > MAX_INT:
            raise PriceError(f"{where}: the price of its first unit does not fit below 2^53 with {digits} decimals")
        cost += (to - below) * unit + flat
        packed += (to, unit, flat)
        below = to
    return packed
