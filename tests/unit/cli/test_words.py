"""Numbers, money, dates and prices as people read them."""

from __future__ import annotations

from decimal import Decimal

import pytest

from sidecar.cli.words import count, date_and_time, instant, money, price_text
from sidecar.ledger.pricing.price_tables import Graduated, Package, PriceTable, Standard, Tier, Volume


@pytest.mark.parametrize(
    ("number", "noun", "plural", "text"),
    [
        (0, "account", "", "0 accounts"),
        (1, "account", "", "1 account"),
        (2, "account", "", "2 accounts"),
        (1, "entry", "entries", "1 entry"),
        (1_234_567, "entry", "entries", "1,234,567 entries"),
    ],
)
def test_one_is_singular_and_all_others_are_plural(number: int, noun: str, plural: str, text: str) -> None:
    assert count(number, noun, plural) == text


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [
        ("105", "GBP", "105.00 GBP"),
        ("500.000", "USD", "500.00 USD"),
        ("0.015", "GBP", "0.015 GBP"),
        ("5000", "JPY", "5,000 JPY"),
        ("12.345", "KWD", "12.345 KWD"),
        ("-3.5", "EUR", "-3.50 EUR"),
        ("1", "", "1"),
    ],
)
def test_money_has_the_decimals_of_its_currency_and_more_only_if_they_say_something(
    amount: str, currency: str, text: str
) -> None:
    assert money(Decimal(amount), currency) == text


def test_no_limit_is_said_in_words() -> None:
    assert money(None, "GBP") == "no limit"


def test_a_time_is_a_date() -> None:
    assert date_and_time(1_793_491_200_000) == "1 November 2026, 00:00 UTC"
    assert instant(1_793_491_200_000) == "2026-11-01T00:00:00Z"
    assert date_and_time(10**30) == "at no known time"


@pytest.mark.parametrize(
    ("table", "text"),
    [
        (Standard(Decimal("0.010")), "0.01 GBP each"),
        (Package(Decimal("1.00"), 10, 5), "1.00 GBP per 10 after 5 free"),
        (
            Graduated((Tier(100, Decimal(0)), Tier(None, Decimal("0.001"), Decimal(10)))),
            "graduated (to 100: 0.00 GBP, beyond: 0.001 GBP + 10.00 GBP)",
        ),
        (Volume((Tier(None, Decimal("0.1")),)), "volume (beyond: 0.10 GBP)"),
    ],
)
def test_a_price_is_a_line(table: PriceTable, text: str) -> None:
    assert price_text(table, "GBP") == text
