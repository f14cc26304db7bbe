"""From Lago's objects to values: customers, money, plans, subscriptions (lago-api ``app/serializers/v1/``).

Fields that are not named here are ignored, words that are not known are kept as they are: Lago may grow both.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any, TypeVar

from sidecar.billing.lago.json_fields import Fields
from sidecar.billing.lago.models import (
    BillableMetric,
    Charge,
    ChargeFilter,
    Commitment,
    Customer,
    Event,
    FixedCharge,
    Page,
    Plan,
    Subscription,
    Tax,
    Wallet,
    WalletTransaction,
    WebhookEndpoint,
)

T = TypeVar("T")

_MS = Decimal(1000)
_PRIORITY = 50
"""Lago's default for wallets; answers of older versions do not say it."""


def page_of(answer: Fields, name: str, parse: Callable[[Fields], T], page: int) -> Page[T]:
    """One page of the list ``name``. Raises ``LagoMalformed``, also where the next page is not a later one."""
    rows = answer.listed(name)
    meta = answer.row("meta")
    following = meta.whole_or_none("next_page")
    if following is not None and following <= page:
        meta.refuse("next_page", f"a page after page {page}", following)
    return Page(tuple(map(parse, rows)), following, meta.whole("total_count"))


def tax(row: Fields) -> Tax:
    entities = row.texts_or_none("applied_to_billing_entities_codes") or ()
    return Tax(row.text("code"), row.number("rate"), row.flag("applied_to_organization"), entities)


def taxes(row: Fields) -> tuple[Tax, ...]:
    return tuple(map(tax, row.rows("taxes")))


def customer(row: Fields) -> Customer:
    return Customer(
        lago_id=row.text("lago_id"),
        external_id=row.text("external_id"),
        currency=row.text_or_none("currency"),
        timezone=row.text_or_none("applicable_timezone") or row.text_or_none("timezone") or "UTC",
        metadata={each.text("key"): each.text_or_none("value") or "" for each in row.rows("metadata")},
        taxes=taxes(row) if row.has("taxes") else None,
        billing_entity=row.text_or_none("billing_entity_code"),
    )


def wallet(row: Fields) -> Wallet:
    scope = row.row_or_none("applies_to")
    priority = row.whole_or_none("priority")
    return Wallet(
        lago_id=row.text("lago_id"),
        customer=row.text("external_customer_id"),
        status=row.text("status"),
        currency=row.text("currency"),
        balance_cents=row.whole("balance_cents"),
        credits_balance=row.number("credits_balance"),
        consumed_credits=row.number("consumed_credits"),
        rate_amount=row.number("rate_amount"),
        priority=_PRIORITY if priority is None else priority,
        created_at_ms=row.instant_ms("created_at"),
        expires_at_ms=row.instant_ms_or_none("expiration_at"),
        terminated_at_ms=row.instant_ms_or_none("terminated_at"),
        name=row.text_or_none("name"),
        code=row.text_or_none("code"),
        fee_types=scope.texts("fee_types") if scope else (),
        metric_codes=scope.texts("billable_metric_codes") if scope else (),
    )


def wallet_transaction(row: Fields) -> WalletTransaction:
    return WalletTransaction(
        lago_id=row.text("lago_id"),
        wallet_id=row.text("lago_wallet_id"),
        status=row.text("status"),
        type=row.text("transaction_type"),
        kind=row.text("transaction_status"),
        amount=row.number("amount"),
        created_at_ms=row.instant_ms("created_at"),
        settled_at_ms=row.instant_ms_or_none("settled_at"),
        invoice_id=row.text_or_none("lago_invoice_id"),
        voided_invoice_id=row.text_or_none("lago_voided_invoice_id"),
    )


def metric(row: Fields) -> BillableMetric:
    return BillableMetric(
        lago_id=row.text("lago_id"),
        code=row.text("code"),
        name=row.text("name"),
        aggregation=row.text("aggregation_type"),
        field_name=row.text_or_none("field_name"),
        recurring=row.flag("recurring"),
        has_expression=bool(row.text_or_none("expression")),
        rounding=row.text_or_none("rounding_function"),
        rounding_precision=row.whole_or_none("rounding_precision") or 0,
        filters={each.text("key"): each.texts("values") for each in row.rows("filters")},
    )


def charge_filter(row: Fields) -> ChargeFilter:
    values = row.row("values")
    return ChargeFilter({name: values.texts(name) for name in values.values}, row.properties("properties"))


def charge(row: Fields) -> Charge:
    return Charge(
        lago_id=row.text("lago_id"),
        metric_code=row.text("billable_metric_code"),
        model=row.text("charge_model"),
        properties=row.properties("properties"),
        pay_in_advance=row.flag("pay_in_advance"),
        prorated=row.flag("prorated"),
        invoiceable=row.flag("invoiceable", default=True),
        min_amount_cents=row.whole_or_none("min_amount_cents") or 0,
        # Before there were filters there were groups, with prices of their own too.
        has_filters=bool(row.rows("filters") or row.rows("group_properties")),
        has_pricing_unit=row.row_or_none("applied_pricing_unit") is not None,
        taxes=taxes(row),
        code=row.text_or_none("code"),
        filters=tuple(map(charge_filter, row.rows("filters"))),
    )


def fixed_charge(row: Fields) -> FixedCharge:
    return FixedCharge(
        lago_id=row.text("lago_id"),
        code=row.text_or_none("code") or row.text_or_none("add_on_code") or "",
        model=row.text_or_none("charge_model") or "",
        properties=row.properties("properties"),
        units=row.number_or_none("units") or Decimal(0),
        pay_in_advance=row.flag("pay_in_advance"),
        taxes=taxes(row),
    )


def plan(row: Fields) -> Plan:
    least = row.row_or_none("minimum_commitment")
    return Plan(
        lago_id=row.text("lago_id"),
        code=row.text("code"),
        name=row.text("name"),
        interval=row.text_or_none("interval") or "",
        amount_cents=row.whole("amount_cents"),
        currency=row.text("amount_currency"),
        pay_in_advance=row.flag("pay_in_advance"),
        charges=tuple(map(charge, row.rows("charges"))),
        trial_days=row.number_or_none("trial_period") or Decimal(0),
        bill_charges_monthly=row.flag("bill_charges_monthly"),
        taxes=taxes(row),
        has_usage_thresholds=bool(row.rows("usage_thresholds") or row.rows("applicable_usage_thresholds")),
        has_minimum_commitment=least is not None,
        has_fixed_charges=bool(row.rows("fixed_charges")),
        commitment=Commitment(least.whole("amount_cents"), taxes(least)) if least else None,
        fixed_charges=tuple(map(fixed_charge, row.rows("fixed_charges"))) if row.has("fixed_charges") else None,
        bill_fixed_charges_monthly=row.flag("bill_fixed_charges_monthly"),
    )


def subscription(row: Fields) -> Subscription:
    inner = row.row_or_none("plan")
    effective = plan(inner) if inner else None
    if effective and row.has("applicable_usage_thresholds"):
        # It may have thresholds of its own, or none though its plan has (Subscription#applicable_usage_thresholds).
        effective = replace(effective, has_usage_thresholds=bool(row.rows("applicable_usage_thresholds")))
    status = row.text("status")
    is_active = status == "active"
    return Subscription(
        lago_id=row.text("lago_id"),
        external_id=row.text("external_id"),
        customer=row.text("external_customer_id"),
        plan_code=row.text("plan_code"),
        status=status,
        billing_time=row.text("billing_time"),
        created_at_ms=row.instant_ms("created_at"),
        subscription_at_ms=row.instant_ms_or_none("subscription_at"),
        started_at_ms=row.instant_ms_or_none("started_at"),
        ending_at_ms=row.instant_ms_or_none("ending_at"),
        terminated_at_ms=row.instant_ms_or_none("terminated_at"),
        trial_ended_at_ms=row.instant_ms_or_none("trial_ended_at"),
        period_start_ms=row.instant_ms_or_none("current_billing_period_started_at") if is_active else None,
        period_end_ms=row.end_ms_or_none("current_billing_period_ending_at") if is_active else None,
        previous_plan_code=row.text_or_none("previous_plan_code"),
        next_plan_code=row.text_or_none("next_plan_code"),
        downgrade_date=row.text_or_none("downgrade_plan_date"),
        plan=effective,
    )


def event(row: Fields) -> Event:
    return Event(
        transaction_id=row.text("transaction_id"),
        external_subscription_id=row.text_or_none("external_subscription_id") or "",
        code=row.text("code"),
        timestamp=row.instant_ms("timestamp") / _MS,
        properties=row.properties("properties"),
    )


def event_body(event: Event) -> dict[str, Any]:
    """As Lago takes it. The time is a text: BigDecimal reads it as it stands, and no float lies in between."""
    return {
        "transaction_id": event.transaction_id,
        "external_subscription_id": event.external_subscription_id,
        "code": event.code,
        "timestamp": f"{event.timestamp:f}",
        "properties": event.properties,
    }


def public_key(answer: Fields) -> bytes:
    """The key of Lago's ``jwt`` signatures: PEM, in base64 as MIME has it, in lines of 60 characters."""
    row = answer.row("webhook")
    text = "".join(row.text("public_key").split())
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:
        row.refuse("public_key", "base64", text)
    return key if key.startswith(b"-----BEGIN ") else row.refuse("public_key", "a key in PEM", text)


def webhook_endpoint(row: Fields) -> WebhookEndpoint:
    return WebhookEndpoint(
        lago_id=row.text("lago_id"),
        url=row.text("webhook_url"),
        signature=row.text_or_none("signature_algo") or "jwt",
        event_types=row.texts_or_none("event_types"),
        name=row.text_or_none("name"),
    )
