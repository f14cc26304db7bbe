"""An invented bank of any size: who its accounts are and what they used, by number, so that nobody has to store it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

HOUR_S: Final = 3_600

CUSTOMER, SUBSCRIPTION, WALLET, INVOICE = "c0", "50", "a0", "10"
"""The last two digits of an id of Lago's say of what kind it is."""


def account_of(number: int) -> str:
    return f"tpp-{number:06d}"


def number_of(account: str) -> int:
    """The number of an account, or of a subscription's external id. Raises ValueError: it is none of the bank's."""
    return int(account.removesuffix("-sub").removeprefix("tpp-"))


def lago_id(number: int, kind: str) -> str:
    return f"{number:08x}-0000-4000-8000-0000000000{kind}"


@dataclass(frozen=True, slots=True)
class Bank:
    """``metrics``: that the one plan charges. ``used_max``: an account uses 1 to so many of them, by its number.
    ``from_s``: Unix seconds, a whole hour, in which the current period begins.
    """

    accounts: int
    metrics: int
    used_max: int
    from_s: int

    def metric(self, number: int) -> str:
        return f"calls_{number}"

    def metric_number(self, metric: str) -> int:
        return int(metric.removeprefix("calls_"))

    def used(self, number: int) -> Iterator[int]:
        """The metrics that an account uses."""
        return ((number + each) % self.metrics for each in range(1 + number % self.used_max))

    def uses(self, number: int, metric: int) -> bool:
        return (metric - number) % self.metrics < 1 + number % self.used_max

    def units(self, number: int, metric: int, hour: int) -> int:
        """Of a metric that is used, in an hour that is used, counted from 1970."""
        return 1 + (7 * number + 3 * metric + hour) % 50


@dataclass(frozen=True, slots=True)
class Moment:
    """What the stand-ins say at a moment. ``until_s``: the end of the first period. ``hours``: in which every account
    used its metrics, a range by hours since 1970. ``times``: by how much that usage is multiplied. ``is_over``: the
    period has ended, and Lago has made its invoices. ``raised_each``: every so manieth wallet has got more
    money. ``listed``: accounts that Lago's lists show, 0 for all.
    """

    until_s: int
    hours: tuple[int, int] = (0, 0)
    times: int = 1
    is_over: bool = False
    raised_each: int = 0
    listed: int = 0

    def total(self, bank: Bank, number: int, metric: int) -> int:
        """Units of a metric in the period."""
        if not bank.uses(number, metric):
            return 0
        return self.times * sum(bank.units(number, metric, hour) for hour in range(*self.hours))
