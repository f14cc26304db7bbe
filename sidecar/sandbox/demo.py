"""What the demo has in its Lago: three billing models, each with one customer; and the gateway's configuration."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sidecar.billing.lago.client import LagoClient
from sidecar.sandbox.lago.config import LagoConfig
from sidecar.sandbox.openmeter.meters import Meter

CURRENCY: Final = "GBP"
PREPAID_FUNDS: Final = "1.00"
PREPAID_PRICE: Final = "0.10"
METRICS: Final = (("api_calls", "API calls"), ("payments", "Payments"))
LAGO_KEY_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class DemoAccount:
    """A customer with a subscription, and the API key that is shown for it."""

    id: str
    mode: str
    plan: str
    about: str
    api_key: str = field(repr=False)
    wallet: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()

    @property
    def subscription(self) -> str:
        """Its external id in Lago."""
        return f"{self.id}-sub"

    def customer(self) -> dict[str, Any]:
        digest = hashlib.sha256(self.api_key.encode()).hexdigest()
        pairs = (("quota_api_key", digest), *self.metadata)
        return {
            "external_id": self.id,
            "name": self.id,
            "currency": CURRENCY,
            "metadata": [{"key": key, "value": value, "display_in_invoice": False} for key, value in pairs],
        }


def demo_accounts() -> tuple[DemoAccount, ...]:
    """Keys are new for every start."""

    def key(name: str) -> str:
        return f"demo-{name}-{secrets.token_hex(8)}"

    return (
        DemoAccount(
            "tpp-prepaid", "prepaid", "api_prepaid",
            f"{PREPAID_FUNDS} {CURRENCY} in a wallet, {PREPAID_PRICE} a call: ten calls, then 402",
            key("prepaid"), wallet=PREPAID_FUNDS,
        ),
        DemoAccount(
            "tpp-overage", "overage", "api_pro",
            "20 calls included, then 0.05 each up to a cap of 1.00 a period; 5 requests/s, 10 at once",
            key("overage"),
            metadata=(
                ("quota_mode", "overage"), ("quota_spending_cap", "1.00"), ("quota_rate", "5"), ("quota_burst", "10"),
            ),
        ),
        DemoAccount(
            "tpp-postpaid", "postpaid", "api_postpaid",
            "everything passes and is billed, up to a credit limit of 1000.00",
            key("postpaid"), metadata=(("quota_mode", "postpaid"), ("quota_credit_limit", "1000")),
        ),
    )  # fmt: skip


def _plans() -> list[dict[str, Any]]:
    def standard(amount: str) -> dict[str, Any]:
        return {"charge_model": "standard", "properties": {"amount": amount}}

    half = "0.05"
    included = {
        "charge_model": "graduated",
        "properties": {
            "graduated_ranges": [
                {"from_value": 0, "to_value": 20, "per_unit_amount": "0", "flat_amount": "0"},
                {"from_value": 21, "to_value": None, "per_unit_amount": half, "flat_amount": "0"},
            ]
        },
    }
    offers = (
        ("api_prepaid", "Prepaid credits", 0, standard(PREPAID_PRICE), standard("0.20")),
        ("api_pro", "Subscription with calls included", 900, included, standard(half)),
        ("api_postpaid", "Pay as you go", 0, standard(half), standard(half)),
    )
    return [
        {
            "name": name, "code": code, "interval": "monthly", "amount_cents": fee, "amount_currency": CURRENCY,
            "pay_in_advance": False, "_charges": (("api_calls", calls), ("payments", payments)),
        }
        for code, name, fee, calls, payments in offers
    ]  # fmt: skip


async def seed_lago(lago: LagoClient, accounts: Sequence[DemoAccount]) -> None:
    """Make metrics, plans, customers, wallets and subscriptions, as an operator would.

    Raises:
        LagoError: Lago refuses something.
    """
    metrics = {}
    for code, name in METRICS:
        made = await lago.create_metric(
            {"code": code, "name": name, "aggregation_type": "sum_agg", "field_name": "calls", "recurring": False}
        )
        metrics[code] = made.lago_id
    for plan in _plans():
        charges = [{"billable_metric_id": metrics[code], **charge} for code, charge in plan.pop("_charges")]
        await lago.create_plan({**plan, "charges": charges})
    for account in accounts:
        await lago.create_customer(account.customer())
        if account.wallet is not None:
            await lago.create_wallet(
                {
                    "external_customer_id": account.id, "name": "credits", "currency": CURRENCY, "rate_amount": "1.0",
                    "paid_credits": "0", "granted_credits": account.wallet,
                }
            )  # fmt: skip
        await lago.create_subscription(
            {
                "external_customer_id": account.id, "plan_code": account.plan, "external_id": account.subscription,
                "billing_time": "calendar",
            }
        )  # fmt: skip


def demo_lago(api_key: str, hmac_key: str, period_s: int | None) -> LagoConfig:
    """How the demo's Lago behaves: it bills by itself, in periods of ``period_s`` if given."""
    # Time for the usage of the last seconds to arrive, as in Lago's ten minutes.
    delay_s = min(10, (period_s or 1) // 2)
    return LagoConfig(
        api_key=api_key, hmac_key=hmac_key, period_s=period_s, period_delay_s=delay_s if period_s else 0, auto_bill=True
    )


def demo_meters() -> tuple[Meter, ...]:
    """The demo's meters: one for each metric, and one that counts requests."""
    groups = {name: f"$.{name}" for name in ("endpoint", "method", "status_code", "metric")}
    units = tuple(
        Meter(slug=code, event_type="api.call", aggregation="SUM", value_property="$.units", group_by=groups)
        for code, _ in METRICS
    )
    return (*units, Meter(slug="api_requests", event_type="api.call", aggregation="COUNT", group_by=groups))


def demo_settings(
    valkey: str,
    upstream: str,
    openmeter: str,
    lago: str,
    lago_api_key: str,
    webhook_hmac_key: str,
    proxy_port: int,
    admin_port: int,
) -> dict[str, object]:
    """The demo's configuration, as a configuration file would have it."""
    api = "/open-banking/v3.1"
    calls = ("accounts", "accounts/{AccountId}", "accounts/{AccountId}/balances", "accounts/{AccountId}/transactions")
    payments = (
        "domestic-payment-consents", "domestic-payment-consents/{ConsentId}",
        "domestic-payments", "domestic-payments/{DomesticPaymentId}",
    )  # fmt: skip
    routes: list[dict[str, object]] = [{"path": "/open-banking/health", "free": True}]
    routes += [{"path": f"{api}/aisp/{path}", "metric": "api_calls"} for path in calls]
    once = {"header": "x-idempotency-key", "on_conflict": "refuse"}
    routes += [{"path": f"{api}/pisp/{path}", "metric": "payments", "idempotency": once} for path in payments]
    return {
        "listen": {"host": "127.0.0.1", "port": proxy_port},
        "upstream": {"url": upstream},
        "valkey": valkey,
        "identity": [{"type": "api_key"}],
        "routes": routes,
        "metering": {"url": openmeter},
        "lago": {
            "url": lago,
            "api_key": lago_api_key,
            "requests_per_second": 500,
            "default_mode": "prepaid",
            "webhooks": {"hmac_key": webhook_hmac_key},
            "reconcile": {"interval_s": 30},
            # Faster than in earnest, so that there is something to see.
            "sync": {"interval_s": 3, "settle_s": 1, "final_flush_s": 2_678_400},
            "audit": {"interval_s": 15, "settle_s": 5},
        },
        "admin": {"host": "127.0.0.1", "port": admin_port},
        "log": {"level": "warning", "format": "console", "access": "off"},
    }
