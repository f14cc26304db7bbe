"""What a run makes in Lago and OpenMeter: a metric, a meter, plans, customers, wallets, subscriptions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from sidecar.billing.lago.models import Subscription
from sidecar.billing.reconcile.charge_filters import ALL_VALUES
from sidecar.cli.verify_billing.names import OTHER_SCHEME, SCHEMES, Names
from sidecar.cli.verify_billing.own_lago import OwnLago
from sidecar.metering.openmeter.meter_query import Meter, MeterQuery

CURRENCY: Final = "EUR"
TAX_PER_CENT: Final = "20"

Price = Mapping[str, Any]
"""The charge model of a plan's charge and its properties, as Lago has them."""

Tier = tuple[int | None, str, str]
"""Up to how many units, the price of a unit, the flat fee."""


def standard(amount: str) -> Price:
    return {"charge_model": "standard", "properties": {"amount": amount}}


def package(amount: str, size: int, free: int) -> Price:
    properties = {"amount": amount, "package_size": size, "free_units": free}
    return {"charge_model": "package", "properties": properties}


def graduated(*tiers: Tier, group_keys: Sequence[str] = ()) -> Price:
    price = _tiered("graduated", tiers)
    return (
        {**price, "properties": {**price["properties"], "pricing_group_keys": list(group_keys)}}
        if group_keys
        else price
    )


def filtered(price: Price, **schemes: Price) -> Price:
    """A price, and those of payments of some schemes."""
    filters = [
        {"values": {"scheme": [scheme], "method": [ALL_VALUES]}, "properties": each["properties"]}
        for scheme, each in schemes.items()
    ]
    return {**price, "filters": filters}


def volume(*tiers: Tier) -> Price:
    return _tiered("volume", tiers)


def _tiered(model: str, tiers: tuple[Tier, ...]) -> Price:
    rows, low = [], 0
    for up_to, unit, flat in tiers:
        rows.append({"from_value": low, "to_value": up_to, "per_unit_amount": unit, "flat_amount": flat})
        low = (up_to or 0) + 1
    return {"charge_model": model, "properties": {f"{model}_ranges": rows}}


class Provisioning:
    """All methods raise `LagoError`; ``basis`` also `QueryError`."""

    def __init__(self, names: Names, lago: OwnLago, query: MeterQuery) -> None:
        self._names = names
        self._lago = lago
        self._query = query
        self._metric_id = ""
        self._filtered_id = ""
        self._making = asyncio.Lock()

    async def basis(self) -> None:
        """The metric in Lago and its meter in OpenMeter, and a tax of TAX_PER_CENT: before anything else."""
        names = self._names
        made = await self._lago.create_metric(
            {"code": names.metric, "name": names.metric, "aggregation_type": "sum_agg", "field_name": "calls"}
        )
        self._metric_id = made.lago_id
        groups = {"metric": "$.metric"}
        await self._query.create_meter(Meter(names.metric, "SUM", "$.units", names.event_type, groups))
        await self._lago.create_tax({"code": names.tax, "name": names.tax, "rate": TAX_PER_CENT})

    async def filtered_metric(self) -> str:
        """The billable metric that charges filter, with a meter for each metric of the gateway; its id. Made once,
        for all scenarios that begin together."""
        async with self._making:
            self._filtered_id = self._filtered_id or await self._make_filtered_metric()
        return self._filtered_id

    async def _make_filtered_metric(self) -> str:
        names = self._names
        filters = [{"key": "scheme", "values": list(SCHEMES)}, {"key": "method", "values": ["GET", "POST"]}]
        made = await self._lago.create_metric(
            {
                "code": names.filtered_code, "name": names.filtered_code, "aggregation_type": "sum_agg",
                "field_name": "calls", "filters": filters,
            }
        )  # fmt: skip
        for scheme in (*SCHEMES, OTHER_SCHEME):
            metric = names.filtered_metric(scheme)
            await self._query.create_meter(Meter(metric, "SUM", "$.units", names.event_type, {"metric": "$.metric"}))
        return made.lago_id

    async def plan(
        self, name: str, price: Price, amount_cents: int = 0, *, metric_id: str | None = None, interval: str = "monthly"
    ) -> str:
        """A plan with one charge, of the run's usual metric by default; its code."""
        code = self._names.of(name)
        await self._lago.create_plan(
            {
                "code": code, "name": code, "interval": interval, "amount_cents": amount_cents,
                "amount_currency": CURRENCY, "pay_in_advance": False,
                "charges": [{"billable_metric_id": metric_id or self._metric_id, **price}],
            }
        )  # fmt: skip
        return code

    async def customer(self, account: str, metadata: Mapping[str, str] | None = None, **values: Any) -> None:
        pairs = [{"key": key, "value": value, "display_in_invoice": False} for key, value in (metadata or {}).items()]
        await self._lago.create_customer(
            {"external_id": account, "name": account, "currency": CURRENCY, "metadata": pairs, **values}
        )

    async def wallet(self, account: str, credits: str, **values: Any) -> str:
        """A wallet in which a credit is worth 1; its id. The credits may come a little later."""
        made = await self._lago.create_wallet(
            {
                "external_customer_id": account, "name": account, "currency": CURRENCY, "rate_amount": "1",
                "paid_credits": "0", "granted_credits": credits, **values,
            }
        )  # fmt: skip
        return made.lago_id

    async def coupon(self, account: str, name: str, cents: int) -> None:
        """A coupon of an amount that is used once, applied to a customer."""
        code = self._names.of(name)
        values = {"name": code, "code": code, "coupon_type": "fixed_amount", "amount_cents": cents,
                  "amount_currency": CURRENCY, "frequency": "once", "expiration": "no_expiration"}  # fmt: skip
        await self._lago.create("/coupons", {"coupon": values})
        applied = {"external_customer_id": account, "coupon_code": code}
        await self._lago.create("/applied_coupons", {"applied_coupon": applied})

    async def credit_note(self, invoice_id: str, fee_id: str, cents: int) -> None:
        """A credit of a final invoice, by one of its fees."""
        values = {"invoice_id": invoice_id, "reason": "other", "credit_amount_cents": cents,
                  "refund_amount_cents": 0, "items": [{"fee_id": fee_id, "amount_cents": cents}]}  # fmt: skip
        await self._lago.create("/credit_notes", {"credit_note": values})

    async def top_up(self, wallet: str, credits: Decimal) -> None:
        await self._lago.top_up({"wallet_id": wallet, "granted_credits": str(credits)})

    async def subscribe(self, account: str, plan: str, **values: Any) -> Subscription:
        """A subscription to the plan, or another plan for the one that there is."""
        return await self._lago.create_subscription(
            {
                "external_customer_id": account, "external_id": self._names.subscription(account), "plan_code": plan,
                "billing_time": "calendar", **values,
            }
        )  # fmt: skip
