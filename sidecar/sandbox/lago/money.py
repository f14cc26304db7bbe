"""Money in the Lago stand-in: coins of a currency, rounding half away from zero, decimals as Lago writes them."""

from __future__ import annotations

from decimal import ROUND_DOWN, ROUND_HALF_UP, Context, Decimal, localcontext
from fractions import Fraction

#: ISO 4217 minor units other than 2.
_EXPONENTS = {
    **dict.fromkeys(
        (
            "BIF",
            "CLP",
            "DJF",
            "GNF",
            "ISK",
            "JPY",
            "KMF",
            "KRW",
            "PYG",
            "RWF",
            "UGX",
            "VND",
            "VUV",
            "XAF",
            "XOF",
            "XPF",
        ),
        0,
    ),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
}
#: Wide enough for units times price, whatever is accepted of both.
WIDE = Context(prec=60, rounding=ROUND_HALF_UP)


def exponent(currency: str) -> int:
    """How many decimals the currency has."""
    return _EXPONENTS.get(currency, 2)


def coins_per_unit(currency: str) -> int:
    return int(10 ** exponent(currency))


def round_half_away(value: Decimal, places: int = 0) -> Decimal:
    with localcontext(WIDE):
        return value.quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP)


def floor_places(value: Decimal, places: int) -> Decimal:
    """Cuts decimals off; ``value`` is not negative."""
    with localcontext(WIDE):
        return value.quantize(Decimal(1).scaleb(-places), ROUND_DOWN)


def round_fraction(value: Fraction) -> int:
    """A fraction that is not negative, rounded half up."""
    return int((value * 2 + 1) // 2)


def fraction_decimal(value: Fraction, places: int = 15) -> Decimal:
    with localcontext(WIDE):
        return (Decimal(value.numerator) / Decimal(value.denominator)).quantize(Decimal(1).scaleb(-places))


def to_cents(amount: Decimal, currency: str) -> int:
    """An amount rounded once to the currency's coin, in coins."""
    return int(round_half_away(amount, exponent(currency)).scaleb(exponent(currency)))


def from_cents(cents: int | Decimal, currency: str) -> Decimal:
    with localcontext(WIDE):
        return Decimal(cents).scaleb(-exponent(currency))


def decimal_text(value: Decimal) -> str:
    """As Ruby writes a BigDecimal: no exponent, at least one decimal, no zeros behind it."""
    text = f"{value:f}"
    whole, _, decimals = text.partition(".")
    return f"{whole}.{decimals.rstrip('0') or '0'}"
