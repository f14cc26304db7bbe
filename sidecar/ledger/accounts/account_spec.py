"""An account as it shall be, from an accounts file or from the reconciler."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import IntEnum
from typing import Final, Literal

from sidecar.ledger.accounts.periods import PeriodRule
from sidecar.ledger.pricing.currencies import exponent
from sidecar.ledger.pricing.price_tables import PackedTable, PriceError, PriceTable, amounts, decimals, pack, scale

Mode = Literal["prepaid", "overage", "postpaid"]

AMOUNTS_OF: Final[Mapping[Mode, tuple[str, ...]]] = {
    "prepaid": ("funds", "overdraft"),
    "overage": ("spending_cap",),
    "postpaid": ("funds", "credit_limit"),
}
"""Amounts that mean something in each mode."""

METRICS_MAX: Final = 32
"""Metrics of one subscription. Each is eleven values that every request of the account reads and writes."""

API_KEYS_MAX: Final = 100

RATE_MIN: Final = Decimal("0.001")
RATE_MAX: Final = Decimal(1_000_000)
BURST_MAX: Final = 1_000_000
DAY_LIMIT_MAX: Final = 10**12


class Status(IntEnum):
    """Whether an account may call; the numbers are the scripts' (lua/lib/account.lua)."""

    ACTIVE = 0
    SUSPENDED = 1
    CLOSED = 2

    @property
    def word(self) -> str:
        """The status as it is written in files and answers."""
        return self.name.lower()

    @classmethod
    def of(cls, word: str) -> Status:
        """The status that a word names; raises ``KeyError``."""
        return cls[word.upper()]


@dataclass(frozen=True, slots=True)
class RateLimits:
    """Requests that pass: ``per_second`` on average with ``burst`` at once, and ``per_day`` (UTC). 0: no limit."""

    per_second: Decimal = Decimal(0)
    burst: int = 0
    per_day: int = 0

    @property
    def interval_us(self) -> int:
        """Microseconds between two requests at the full rate, rounded up so that the rate is never exceeded."""
        return math.ceil(1_000_000 / self.per_second) if self.per_second else 0

    @property
    def burst_allowed(self) -> int:
        """The burst; by default what one second lets pass."""
        return self.burst or max(1, int(self.per_second))


@dataclass(frozen=True, slots=True)
class SubscriptionSpec:
    """Periods and prices of their own within an account. ``name`` tells it from the account's others."""

    name: str
    period: PeriodRule
    prices: Mapping[str, PriceTable]


@dataclass(frozen=True, slots=True)
class AccountSpec:
    """Everything that a load writes. Money is in units of ``currency``.

    ``period`` and ``prices`` are the first subscription's, whose name is ``subscription``; most accounts have no other.
    ``funds`` is what prepaid accounts may spend in all; ``overdraft`` adds to it.
    ``spending_cap`` bounds a period of an overage account, ``credit_limit`` a postpaid one; None is no bound.
    ``unsettled`` is what the periods before the current one still owe; None leaves what the ledger has.
    ``api_keys`` are SHA-256 in lower-case hexadecimal; None leaves the ledger's.
    """

    id: str
    mode: Mode
    currency: str
    period: PeriodRule
    prices: Mapping[str, PriceTable]
    status: Status = Status.ACTIVE
    funds: Decimal = Decimal(0)
    overdraft: Decimal = Decimal(0)
    spending_cap: Decimal | None = None
    credit_limit: Decimal | None = None
    unsettled: Decimal | None = None
    limits: RateLimits = field(default_factory=RateLimits)
    api_keys: tuple[str, ...] | None = None
    subscription: str = ""
    further_subscriptions: tuple[SubscriptionSpec, ...] = ()

    def __post_init__(self) -> None:
        names = [each.name for each in self.subscriptions]
        assert len(set(names)) == len(names), f"subscriptions of account {self.id} with the same name: {names}"

    @property
    def subscriptions(self) -> tuple[SubscriptionSpec, ...]:
        """All of them, the first one first."""
        return (SubscriptionSpec(self.subscription, self.period, self.prices), *self.further_subscriptions)

    @property
    def ceiling(self) -> Decimal | None:
        """The most that the account may cost in all; None is no bound."""
        match self.mode:
            case "prepaid":
                return self.funds + self.overdraft
            case "overage":
                return self.spending_cap
            case "postpaid":
                return None if self.credit_limit is None else self.funds + self.credit_limit

    @property
    def counts_unsettled(self) -> bool:
        """Whether what earlier periods owe counts against the ceiling: a spending cap is for one period."""
        return self.mode != "overage"

    def digits_needed(self) -> int:
        """The fewest decimals in which every price and amount is exact, and no fewer than the currency has (0.90).

        Raises:
            PriceError: one of them cannot be exact; the message names it.
        """
        return max(exponent(self.currency), *(_decimals(value, what) for what, value in self._money()))

    def _money(self) -> Iterator[tuple[str, Decimal]]:
        for name in ("funds", "overdraft", "spending_cap", "credit_limit", "unsettled"):
            value = getattr(self, name)
            if value is not None:
                yield name, value
        for subscription in self.subscriptions:
            for metric, table in subscription.prices.items():
                for amount in amounts(table):
                    yield f"prices.{metric}", amount

    def scaled_ceiling(self, digits: int) -> int | None:
        """The ceiling in units of 10^-digits. Raises ``PriceError``."""
        return (
            None if self.ceiling is None else scale(self.ceiling, digits, f"account {self.id}, {self._ceiling_name()}")
        )

    def _ceiling_name(self) -> str:
        return {"prepaid": "funds", "overage": "spending_cap", "postpaid": "credit_limit"}[self.mode]

    def scaled_unsettled(self, digits: int) -> int | None:
        """The unsettled cost in units of 10^-digits. Raises ``PriceError``."""
        return None if self.unsettled is None else scale(self.unsettled, digits, f"account {self.id}, unsettled")

    def packed_prices(self, digits: int) -> tuple[dict[str, PackedTable], ...]:
        """The price tables of each subscription as the scripts read them. Raises ``PriceError``."""
        return tuple(
            {metric: pack(table, digits, f"account {self.id}, {metric}") for metric, table in each.prices.items()}
            for each in self.subscriptions
        )

    def check(self) -> None:
        """Find out whether the ledger can hold all of this.

        Raises:
            PriceError: an amount needs too many decimals, or does not fit below 2^53 with those that the others need.
        """
        digits = self.digits_needed()
        self.scaled_ceiling(digits)
        self.scaled_unsettled(digits)
        self.packed_prices(digits)


def _decimals(value: Decimal, what: str) -> int:
    try:
        return decimals(value)
    except PriceError as error:
        raise PriceError(f"{what}: {error}") from None
