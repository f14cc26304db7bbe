"""Numbers, money, dates and prices as people read them."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from sidecar.ledger.pricing.currencies import exponent
from sidecar.ledger.pricing.price_tables import Graduated, Package, PriceTable, Standard, Volume


def count(number: int, noun: str, plural: str = "") -> str:
    """``1 account``, ``2 accounts``, ``2 entries`` (``count(2, "entry", "entries")``)."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def plain(amount: Decimal) -> str:
    """Without zeros at the end, and without an exponent."""
    text = format(amount, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def money(amount: Decimal | None, currency: str) -> str:
    """``105.00 GBP``, with as many decimals as the currency has, or more if they are needed. None is no limit."""
    if amount is None:
        return "no limit"
    needed = len(plain(amount).partition(".")[2])
    try:
        usual = exponent(currency)
    except ValueError:
        usual = 0
    return f"{amount:,.{max(needed, usual)}f} {currency}".rstrip()


def instant(at_ms: int) -> str:
    """A time as RFC 3339 has it."""
    moment = _moment(at_ms)
    return str(at_ms) if moment is None else f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def date_and_time(at_ms: int) -> str:
    """``1 November 2026, 00:00 UTC``."""
    moment = _moment(at_ms)
    return "at no known time" if moment is None else f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def _moment(at_ms: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(at_ms / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return None


def price_text(table: PriceTable, currency: str = "") -> str:
    """A price in a line."""

    def amount_text(amount: Decimal) -> str:
        return money(amount, currency) if currency else plain(amount)

    match table:
        case Standard(amount):
            return f"{amount_text(amount)} each"
        case Package(amount, size, free):
            return f"{amount_text(amount)} per {size}" + (f" after {free} free" if free else "")
        case Graduated(tiers) | Volume(tiers):
            kind = "graduated" if isinstance(table, Graduated) else "volume"
            steps = [
                f"{'to ' + str(tier.up_to) if tier.up_to is not None else 'beyond'}: {amount_text(tier.unit)}"
                + (f" + {amount_text(tier.flat)}" if tier.flat else "")
                for tier in tiers
            ]
            return f"{kind} ({', '.join(steps)})"
