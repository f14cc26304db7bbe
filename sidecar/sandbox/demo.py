"""The whole system on loopback, for ``sidecar demo``: Valkey, sample API, OpenMeter stand-in, three accounts,
gateway, publisher.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from decimal import Decimal

from sidecar.ledger.account_spec import AccountSpec, RateLimits
from sidecar.ledger.api_keys import digest_of
from sidecar.ledger.periods import CalendarPeriods, EqualPeriods
from sidecar.ledger.pricing import Graduated, Standard, Tier

CURRENCY = "GBP"
PREPAID_FUNDS = Decimal("1.00")
PREPAID_PRICE = Decimal("0.10")


@dataclass(frozen=True, slots=True)
class DemoAccount:
    """An account of the demo, and the key that is shown for it."""

    spec: AccountSpec
    api_key: str
    about: str


def demo_accounts(period_s: int | None) -> tuple[DemoAccount, ...]:
    """The three billing models, each with one account. Keys are new for every start."""
    period = EqualPeriods(period_s * 1000) if period_s else CalendarPeriods("month")

    def make(name: str, about: str, **options: object) -> DemoAccount:
        key = f"demo-{name}-{secrets.token_hex(8)}"
        spec = AccountSpec(
            id=f"tpp-{name}", mode=name, currency=CURRENCY, period=period, api_keys=(digest_of(key),), **options,  # type: ignore[arg-type]
        )  # fmt: skip
        return DemoAccount(spec, key, about)

    half = Decimal("0.05")
    return (
        make(
            "prepaid", f"{PREPAID_FUNDS} {CURRENCY} bought up front, {PREPAID_PRICE} a call: ten calls, then 402",
            funds=PREPAID_FUNDS, prices={"api_calls": Standard(PREPAID_PRICE), "payments": Standard(2 * PREPAID_PRICE)},
        ),
        make(
            "overage", "20 calls included, then 0.05 each up to a cap of 1.00 a period; 5 requests/s, 10 at once",
            spending_cap=Decimal("1.00"),
            prices={"api_calls": Graduated((Tier(20, Decimal(0)), Tier(None, half))), "payments": Standard(half)},
            limits=RateLimits(Decimal(5), 10),
        ),
        make(
            "postpaid", "everything passes and is billed, up to a credit limit of 1000.00",
            credit_limit=Decimal(1000), prices={"api_calls": Standard(half), "payments": Standard(half)},
        ),
    )  # fmt: skip


def demo_settings(valkey: str, upstream: str, openmeter: str, proxy_port: int, admin_port: int) -> dict[str, object]:
    """The demo's configuration, as a configuration file would have it."""
    api = "/open-banking/v3.1"
    calls = ("accounts", "accounts/{AccountId}", "accounts/{AccountId}/balances", "accounts/{AccountId}/transactions")
    payments = (
        "domestic-payment-consents", "domestic-payment-consents/{ConsentId}",
        "domestic-payments", "domestic-payments/{DomesticPaymentId}",
    )  # fmt: skip
    routes: list[dict[str, object]] = [{"path": "/open-banking/health", "free": True}]
    routes += [{"path": f"{api}/aisp/{path}", "metric": "api_calls"} for path in calls]
    routes += [{"path": f"{api}/pisp/{path}", "metric": "payments"} for path in payments]
    return {
        "listen": {"host": "127.0.0.1", "port": proxy_port},
        "upstream": {"url": upstream},
        "valkey": valkey,
        "identity": [{"type": "api_key"}],
        "routes": routes,
        "metering": {"url": openmeter},
        "admin": {"host": "127.0.0.1", "port": admin_port},
        "log": {"level": "warning", "format": "console", "access": "off"},
    }
