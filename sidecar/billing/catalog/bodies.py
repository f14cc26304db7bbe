"""Makes the bodies of Lago's requests (lago-api ``app/controllers/api/v1/``). Amounts are texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sidecar.billing.catalog.compare import by_metric, instant
from sidecar.billing.catalog.tables import text_of
from sidecar.billing.catalog.values import (
    WantedCustomer,
    WantedEndpoint,
    WantedMetric,
    WantedPlan,
    WantedSubscription,
    WantedTax,
    WantedWallet,
)
from sidecar.billing.lago.json_fields import Fields
from sidecar.billing.lago.models import Plan


def tax_body(wanted: WantedTax, *, new: bool) -> dict[str, Any]:
    body: dict[str, Any] = {
        "code": wanted.tax.code,
        "rate": text_of(wanted.tax.rate),
        "applied_to_organization": wanted.tax.is_default,
    }
    return _described(body, wanted.tax.code if new else None, wanted.name, wanted.description)


def metric_body(wanted: WantedMetric, *, new: bool) -> dict[str, Any]:
    body: dict[str, Any] = {
        "code": wanted.code,
        "aggregation_type": "sum_agg",
        "field_name": wanted.field_name,
        "recurring": False,
        "expression": None,
    }
    if wanted.filters is not None:
        body["filters"] = [{"key": name, "values": list(values)} for name, values in wanted.filters.items()]
    return _described(body, wanted.code if new else None, wanted.name, wanted.description)


def plan_body(wanted: WantedPlan, metric_ids: Mapping[str, str], found: Plan | None) -> dict[str, Any]:
    """``metric_ids`` are Lago's by code. Charges that ``found`` has keep their ids; what is not named is removed."""
    plan = wanted.plan
    known = {metric: charges[0] for metric, charges in by_metric(found.charges if found else ()).items()}
    charges = []
    for charge in plan.charges:
        row: dict[str, Any] = {
            "billable_metric_id": metric_ids[charge.metric_code],
            "charge_model": charge.model,
            "properties": charge.properties,
            "pay_in_advance": False,
            "prorated": False,
            "invoiceable": True,
            "min_amount_cents": 0,
            "filters": [
                {"values": {name: list(values) for name, values in each.values.items()}, "properties": each.properties}
                for each in charge.filters
            ],
            "tax_codes": [tax.code for tax in charge.taxes],
        }
        if charge.metric_code in known:
            row["id"] = known[charge.metric_code].lago_id
        charges.append(row)
    body: dict[str, Any] = {
        "code": plan.code,
        "interval": plan.interval,
        "amount_cents": plan.amount_cents,
        "amount_currency": plan.currency,
        "pay_in_advance": plan.pay_in_advance,
        "trial_period": int(plan.trial_days),
        "bill_charges_monthly": plan.bill_charges_monthly,
        "tax_codes": [tax.code for tax in plan.taxes],
        "charges": charges,
    }
    return _described(body, plan.code if found is None else None, plan.name or None, wanted.description)


def endpoint_body(wanted: WantedEndpoint) -> dict[str, Any]:
    body: dict[str, Any] = {
        "webhook_url": wanted.url,
        "signature_algo": wanted.signature,
        "event_types": list(wanted.event_types),
    }
    return body if wanted.name is None else {**body, "name": wanted.name}


def customer_body(wanted: WantedCustomer) -> dict[str, Any]:
    """All but metadata."""
    texts = {"name": wanted.name, "currency": wanted.currency, "timezone": wanted.timezone}
    return {"external_id": wanted.id, **{name: text for name, text in texts.items() if text is not None}}


def metadata_body(wanted: WantedCustomer, rows: Iterable[Fields]) -> list[dict[str, Any]]:
    """All pairs that the customer shall have. ``rows`` are those that it has: Lago removes pairs that are not sent, and
    takes a pair without its id for a second one of that key (lago-api ``app/services/customers/metadata``).
    """
    pairs: dict[str, dict[str, Any]] = {}
    for row in rows:
        key = row.text("key")
        pairs[key] = {
            "id": row.text("lago_id"),
            "key": key,
            "value": row.text_or_none("value") or "",
            "display_in_invoice": row.flag("display_in_invoice"),
        }
    for key, value in wanted.metadata.items():
        pairs[key] = {"key": key, "display_in_invoice": False, **pairs.get(key, {}), "value": value}
    return list(pairs.values())


def subscription_body(wanted: WantedSubscription) -> dict[str, Any]:
    return {
        "external_id": wanted.external_id,
        "external_customer_id": wanted.customer,
        "plan_code": wanted.plan_code,
        "billing_time": wanted.billing_time,
    }


def wallet_body(wanted: WantedWallet) -> dict[str, Any]:
    body: dict[str, Any] = {
        "external_customer_id": wanted.customer,
        "currency": wanted.currency,
        "rate_amount": text_of(wanted.rate),
        "paid_credits": text_of(wanted.paid_credits),
        "granted_credits": text_of(wanted.granted_credits),
        **wallet_changes(wanted, ("name", "priority", "expiration_at", "applies_to")),
    }
    return body if wanted.code is None else {**body, "code": wanted.code}


def wallet_changes(wanted: WantedWallet, names: Iterable[str]) -> dict[str, Any]:
    """The fields that are set. An unchanged expiration is not sent again: one that has passed is refused."""
    values: dict[str, Any] = {
        "name": wanted.name,
        "priority": wanted.priority,
        "expiration_at": instant(wanted.expires_at_ms),
        "applies_to": {"billable_metric_codes": list(wanted.metric_codes), "fee_types": []},
    }
    return {name: values[name] for name in names if values[name] is not None}


def _described(body: dict[str, Any], new_name: str | None, name: str | None, description: str | None) -> dict[str, Any]:
    """With name and description where there are any; what is new has to have a name."""
    texts = {"name": name or new_name, "description": description}
    return {**body, **{key: text for key, text in texts.items() if text is not None}}
