"""Findings for people, made while Lago and the ledger are compared. None stops the work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

AlertKind = Literal[
    "identity",  # Lago's own figures contradict each other
    "plan",  # a charge that cannot be enforced
    "wallet",  # a wallet that is not counted, a metric that none pays for
    "subscription",  # subscriptions that one account cannot have together
    "policy",  # metadata or a plan policy that cannot be used
    "amount",  # a price or balance that cannot be represented
    "foreign",  # Lago has usage that the ledger has not
    "short",  # a final invoice lacks usage
    "unsettled",  # a period that is over for long without a final invoice
    "raise",  # more became available without new money or a final invoice
    "unstable",  # invoices kept changing while the account was read
    "missing",  # Lago no longer knows the customer
]


@dataclass(frozen=True, slots=True)
class Alert:
    """``message`` names the account's plan, wallet, invoice or metric, and what to do where there is something."""

    kind: AlertKind
    account: str
    message: str


class BillingRefused(Exception):
    """Lago's data of an account cannot be brought into the ledger; what the ledger has stays in force.

    The message names what is wrong.
    """

    def __init__(self, kind: AlertKind, message: str) -> None:
        super().__init__(message)
        self.kind: AlertKind = kind


class Alerts:
    """The alerts of one account, as they are found."""

    def __init__(self, account: str) -> None:
        self.account = account
        self.rows: list[Alert] = []

    def add(self, kind: AlertKind, message: str) -> None:
        self.rows.append(Alert(kind, self.account, message))
