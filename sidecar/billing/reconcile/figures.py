"""How the funds of an account came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal


@dataclass(frozen=True, slots=True)
class Figures:
    """How the funds came about, money in units of ``currency``. ``credit``: coupons and credit notes. ``held_back``:
    by scoped wallets, as not every metric may use it. ``low``: what the wallets have left of metrics that
    are not served for that.
    """

    currency: str
    balance: Decimal = Decimal(0)
    plan_fee: Decimal = Decimal(0)
    margin: Decimal = Decimal(0)
    foreign: Decimal = Decimal(0)
    credit: Decimal = Decimal(0)
    held_back: Decimal = Decimal(0)
    unpaid: Decimal = Decimal(0)
    unsettled: Decimal = Decimal(0)
    funds: Decimal = Decimal(0)
    low: Mapping[str, Decimal] = field(default_factory=dict)
