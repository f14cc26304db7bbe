"""Rounding, coins and decimals as Lago has them."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest

from sidecar.sandbox.lago.money import (
    coins_per_unit,
    decimal_text,
    floor_places,
    from_cents,
    round_fraction,
    round_half_away,
    to_cents,
)


@pytest.mark.parametrize(("given", "expected"), [("0.5", 1), ("1.5", 2), ("2.5", 3), ("-2.5", -3), ("2.4999", 2)])
def test_a_half_is_rounded_away_from_zero(given: str, expected: int) -> None:
    assert round_half_away(Decimal(given)) == expected


@pytest.mark.parametrize(
    ("amount", "currency", "cents"),
    [("1.005", "EUR", 101), ("1.004", "EUR", 100), ("1.5", "JPY", 2), ("1.0005", "KWD", 1001)],
)
def test_an_amount_is_rounded_to_the_coin_of_its_currency(amount: str, currency: str, cents: int) -> None:
    assert to_cents(Decimal(amount), currency) == cents


@pytest.mark.parametrize(("currency", "coins"), [("EUR", 100), ("JPY", 1), ("KWD", 1000)])
def test_coins_and_units_of_a_currency(currency: str, coins: int) -> None:
    assert coins_per_unit(currency) == coins
    assert from_cents(coins, currency) == 1


@pytest.mark.parametrize(("given", "expected"), [((5, 2), 3), ((7, 3), 2), ((0, 1), 0), ((49, 100), 0)])
def test_fractions_are_rounded_half_up(given: tuple[int, int], expected: int) -> None:
    assert round_fraction(Fraction(*given)) == expected


@pytest.mark.parametrize(
    ("value", "text"), [("10", "10.0"), ("0.050", "0.05"), ("1E+3", "1000.0"), ("1E-7", "0.0000001"), ("-2", "-2.0")]
)
def test_decimals_have_at_least_one_place_and_no_exponent(value: str, text: str) -> None:
    assert decimal_text(Decimal(value)) == text


def test_credits_are_cut_and_not_rounded() -> None:
    assert floor_places(Decimal("1.999999"), 5) == Decimal("1.99999")
