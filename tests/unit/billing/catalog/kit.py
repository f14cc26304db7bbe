"""A small catalog and what Lago shows of it, to be varied by tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from sidecar.billing.catalog.changes import Change, Observed
from sidecar.billing.catalog.diff import diff
from sidecar.billing.catalog.document import load_catalog
from sidecar.billing.catalog.values import Catalog, meter_of
from sidecar.billing.lago.models import (
    BillableMetric,
    Charge,
    Customer,
    Plan,
    Subscription,
    Wallet,
)

NOW_MS = 1_780_000_000_000
EVENT_TYPE = "api.call"

STANDARD = {"amount": "0.01"}
GRADUATED: dict[str, Any] = {
    "graduated_ranges": [
        {"from_value": 0, "to_value": 10000, "per_unit_amount": "0", "flat_amount": "0"},
        {"from_value": 10001, "to_value": None, "per_unit_amount": "0.001", "flat_amount": "0"},
    ]
}

FILE = """
metrics:
  - code: api_calls
plans:
  - code: pro
    name: Pro
    amount: "99.00"
    currency: USD
    charges:
      - { metric: api_calls, model: standard, amount: "0.01" }
customers:
  - id: tpp-1
    plan: pro
    wallets:
      - { code: main, granted_credits: "10", applies_to: [api_calls] }
"""


def catalog(tmp_path: Path, text: str = FILE) -> Catalog:
    path = tmp_path / "catalog.yaml"
    path.write_text(text)
    return load_catalog(path)


def metric(**other: Any) -> BillableMetric:
    return replace(BillableMetric("m1", "api_calls", "api_calls", "sum_agg", "calls", False), **other)


def charge(properties: Mapping[str, Any] = STANDARD, model: str = "standard", **other: Any) -> Charge:
    return replace(Charge("ch1", "api_calls", model, properties), **other)


def plan(*charges: Charge, **other: Any) -> Plan:
    found = Plan("p1", "pro", "Pro", "monthly", 9900, "USD", False, charges or (charge(),))
    return replace(found, **other)


def subscription(**other: Any) -> Subscription:
    return replace(Subscription("s1", "tpp-1", "tpp-1", "pro", "active", "calendar", NOW_MS), **other)


def wallet(**other: Any) -> Wallet:
    found = Wallet(
        "w1", "tpp-1", "active", "USD", 1000, Decimal(10), Decimal(0), Decimal("1.0"), 50, NOW_MS, code="main",
        metric_codes=("api_calls",),
    )  # fmt: skip
    return replace(found, **other)


def observed(**other: Any) -> Observed:
    """Everything that ``FILE`` asks for is there."""
    found = Observed(
        metrics={"api_calls": metric()},
        plans={"pro": plan()},
        customers={"tpp-1": Customer("c1", "tpp-1", "USD", "UTC")},
        subscriptions={"tpp-1": (subscription(),)},
        wallets={"tpp-1": (wallet(),)},
        meters={"api_calls": meter_of("api_calls", EVENT_TYPE)},
    )
    return replace(found, **other)


def changes(wanted: Catalog, found: Observed) -> dict[str, Change]:
    """By kind and code, such as ``plan pro``."""
    return {f"{each.kind} {each.code}": each for each in diff(wanted, found, EVENT_TYPE, NOW_MS)}
