"""Records of the Lago stand-in as JSON, but for invoices and wallets. Source: lago-api ``app/serializers/v1/``."""

from __future__ import annotations

from uuid import UUID, uuid5

from sidecar.sandbox.lago.charge_filters import group_keys
from sidecar.sandbox.lago.clock import instant_us
from sidecar.sandbox.lago.lago_store import Store
from sidecar.sandbox.lago.lago_wire import Json, iso, iso_ms, iso_or_none
from sidecar.sandbox.lago.money import decimal_text
from sidecar.sandbox.lago.records import (
    Charge,
    Customer,
    Endpoint,
    Event,
    FixedCharge,
    MetadataPair,
    Metric,
    Plan,
    Subscription,
    Tax,
)

BILLING_ENTITY = "default"
PAYMENT_METHOD: Json = {"payment_method_id": None, "payment_method_type": "provider"}
CUSTOMER_PARTS = ("taxes", "integration_customers", "applicable_invoice_custom_sections", "error_details")
PLAN_PARTS = ("fixed_charges", "applicable_usage_thresholds", "entitlements")
SUBSCRIPTION_PARTS = (
    "customer", "entitlements", "plan", "applicable_usage_thresholds", "applied_invoice_custom_sections",
)  # fmt: skip
#: A customer's plain attributes, in the order of the serializer.
CUSTOMER_TEXTS = (
    "name", "firstname", "lastname", "customer_type", "country", "address_line1", "address_line2", "state", "zipcode",
    "email", "city", "url", "phone", "logo_url", "legal_name", "legal_number", "tax_identification_number",
    "external_salesforce_id",
)  # fmt: skip


def tax_view(tax: Tax, *, entities: bool = False) -> Json:
    """``entities``: with the billing entities that it is a default of, as answers about taxes have them."""
    view: Json = {
        "lago_id": tax.id,
        "name": tax.name,
        "code": tax.code,
        "rate": float(tax.rate),
        "description": tax.description,
        "applied_to_organization": tax.is_default,
        "add_ons_count": 0,
        "customers_count": 0,
        "plans_count": 0,
        "charges_count": 0,
        "commitments_count": 0,
        "created_at": iso(tax.created),
    }
    if entities:
        view["applied_to_billing_entities_codes"] = [BILLING_ENTITY] if tax.is_default else []
    return view


def metadata_view(pair: MetadataPair) -> Json:
    return {
        "lago_id": pair.id,
        "key": pair.key,
        "value": pair.value,
        "display_in_invoice": pair.shown,
        "created_at": iso(pair.created),
    }


def customer_view(customer: Customer, *parts: str) -> Json:
    """``parts``: which of ``CUSTOMER_PARTS`` are in it, as the serializer's ``includes`` say."""
    view: Json = {
        "lago_id": customer.id,
        "billing_entity_code": BILLING_ENTITY,
        "external_id": customer.external_id,
        "account_type": "customer",
        "sequential_id": customer.sequential,
        "slug": f"LAG-1234-{customer.sequential:03d}",
        "created_at": iso(customer.created),
        "updated_at": iso(customer.updated),
        **{name: customer.texts.get(name) for name in CUSTOMER_TEXTS},
        "currency": customer.currency,
        "timezone": customer.timezone,
        "applicable_timezone": customer.timezone or customer.default_timezone,
        "net_payment_term": customer.net_payment_term,
        "finalize_zero_amount_invoice": customer.finalize_zero,
        "billing_configuration": {
            "invoice_grace_period": customer.grace_days,
            "payment_provider": customer.payment_provider,
            "payment_provider_code": None,
            "document_locale": None,
            "subscription_invoice_issuing_date_anchor": None,
            "subscription_invoice_issuing_date_adjustment": None,
        },
        "shipping_address": dict.fromkeys(("address_line1", "address_line2", "city", "zipcode", "state", "country")),
        "skip_invoice_custom_sections": False,
        "metadata": [metadata_view(pair) for pair in customer.metadata],
    }
    assert set(parts) <= set(CUSTOMER_PARTS), parts
    return view | {part: [tax_view(tax) for tax in customer.taxes] if part == "taxes" else [] for part in parts}


def metric_view(metric: Metric, *, counts: bool = True) -> Json:
    """``counts``: those of an answer, which webhooks lack."""
    view: Json = {
        "lago_id": metric.id,
        "name": metric.name,
        "code": metric.code,
        "description": metric.description,
        "aggregation_type": metric.aggregation,
        "weighted_interval": None,
        "recurring": metric.recurring,
        "rounding_function": metric.rounding,
        "rounding_precision": metric.rounding_places,
        "created_at": iso(metric.created),
        "field_name": metric.field_name,
        "expression": metric.expression,
        "filters": metric.filters,
    }
    if counts:
        view |= dict.fromkeys(("active_subscriptions_count", "draft_invoices_count", "plans_count"), 0)
    return view


def charge_view(charge: Charge) -> Json:
    return {
        "lago_id": charge.id,
        "lago_billable_metric_id": charge.metric.id,
        "code": charge.code,
        "invoice_display_name": charge.display_name,
        "billable_metric_code": charge.metric.code,
        "created_at": iso(charge.created),
        "charge_model": charge.model,
        "invoiceable": charge.invoiceable,
        "regroup_paid_fees": None,
        "pay_in_advance": charge.pay_in_advance,
        "prorated": charge.prorated,
        "min_amount_cents": charge.min_amount_cents,
        "accepts_target_wallet": False,
        "properties": _with_both_names(charge.properties),
        "applied_pricing_unit": None,
        "lago_parent_id": charge.parent_id,
        "filters": [
            {**each, "charge_code": charge.code, "properties": _with_both_names(each["properties"])}
            for each in charge.filters
        ],
        "taxes": [tax_view(tax) for tax in charge.taxes],
    }


def _with_both_names(properties: Json) -> Json:
    """``grouped_by`` is the former name of ``pricing_group_keys``; answers have both."""
    keys = group_keys(properties)
    return {**properties, "pricing_group_keys": keys, "grouped_by": keys} if keys else properties


def fixed_charge_view(charge: FixedCharge) -> Json:
    return {
        "lago_id": charge.id,
        "lago_add_on_id": charge.id,
        "code": charge.code,
        "invoice_display_name": charge.code,
        "add_on_code": charge.code,
        "created_at": iso(charge.created),
        "charge_model": "standard",
        "pay_in_advance": False,
        "prorated": False,
        "properties": {"amount": decimal_text(charge.amount)},
        "units": float(charge.units),
        "lago_parent_id": None,
        "taxes": [],
    }


def plan_view(plan: Plan, *parts: str) -> Json:
    """``parts``: which of ``PLAN_PARTS`` are in it, as the serializer's ``includes`` say."""
    assert set(parts) <= set(PLAN_PARTS), parts
    view: Json = {
        "lago_id": plan.id,
        "name": plan.name,
        "invoice_display_name": plan.display_name,
        "created_at": iso(plan.created),
        "code": plan.code,
        "interval": plan.interval,
        "description": plan.description,
        "amount_cents": plan.amount_cents,
        "amount_currency": plan.currency,
        "trial_period": float(plan.trial_days),
        "pay_in_advance": plan.pay_in_advance,
        "bill_charges_monthly": plan.charges_monthly,
        "bill_fixed_charges_monthly": None,
        "customers_count": 0,
        "active_subscriptions_count": 0,
        "draft_invoices_count": 0,
        "parent_id": plan.parent.id if plan.parent else None,
        "pending_deletion": plan.deleted,
        "charges": [charge_view(charge) for charge in plan.charges],
        "usage_thresholds": [],
        "taxes": [tax_view(tax) for tax in plan.taxes],
    }
    if plan.commitment_cents:
        view["minimum_commitment"] = _commitment_view(plan)
    more: Json = {part: [] for part in parts}
    if "fixed_charges" in parts:
        more["fixed_charges"] = [fixed_charge_view(charge) for charge in plan.fixed_charges]
    return view | more


def _commitment_view(plan: Plan) -> Json:
    return {
        "lago_id": str(uuid5(UUID(plan.id), "minimum_commitment")),
        "plan_code": plan.code,
        "invoice_display_name": None,
        "amount_cents": plan.commitment_cents,
        "interval": plan.interval,
        "created_at": iso(plan.created),
        "updated_at": iso(plan.created),
        "taxes": [],
    }


def subscription_view(store: Store, subscription: Subscription, *parts: str) -> Json:
    """``parts``: which of ``SUBSCRIPTION_PARTS`` are in it, as the serializer's ``includes`` say. ``plan`` is the
    effective one, without its fixed charges and entitlements.
    """
    assert set(parts) <= set(SUBSCRIPTION_PARTS), parts
    plan, period = subscription.plan, None
    if subscription.started_at is not None:
        reference = max(store.now(), subscription.started_at)
        period = store.charge_periods(subscription).containing(reference).from_start(subscription.started_at)
        if subscription.terminated_at is not None:
            period = period.cut(subscription.terminated_at, included=True)
    view: Json = {
        "lago_id": subscription.id,
        "external_id": subscription.external_id,
        "lago_customer_id": subscription.customer.id,
        "external_customer_id": subscription.customer.external_id,
        "name": subscription.name,
        "plan_code": plan.code,
        "plan_amount_cents": plan.amount_cents,
        "plan_amount_currency": plan.currency,
        "status": subscription.status,
        "billing_time": subscription.billing_time,
        "subscription_at": iso(subscription.subscription_at),
        "started_at": iso_ms(subscription.started_at) if subscription.started_at else None,
        "trial_ended_at": iso_or_none(subscription.trial_ended_at),
        "ending_at": iso_or_none(subscription.ending_at),
        "terminated_at": iso_or_none(subscription.terminated_at),
        "canceled_at": iso_or_none(subscription.canceled_at),
        "created_at": iso(subscription.created),
        "previous_plan_code": subscription.previous.plan.code if subscription.previous else None,
        "next_plan_code": subscription.next.plan.code if subscription.next else None,
        "downgrade_plan_date": _downgrade_date(store, subscription),
        "current_billing_period_started_at": iso(period.start) if period else None,
        "current_billing_period_ending_at": iso(period.shown_to) if period else None,
        "on_termination_credit_note": subscription.on_termination_credit_note,
        "on_termination_invoice": subscription.on_termination_invoice,
        "progressive_billing_disabled": False,
        "consolidate_invoice": True,
        "purchase_order_number": None,
        "cancellation_reason": None,
        "activated_at": iso_or_none(subscription.started_at),
        "payment_method": dict(PAYMENT_METHOD),
        "activation_rules": [],
    }
    for part in parts:
        if part == "plan":
            view[part] = plan_view(plan, "applicable_usage_thresholds")
        else:
            view[part] = customer_view(subscription.customer) if part == "customer" else []
    return view


def _downgrade_date(store: Store, subscription: Subscription) -> str | None:
    following = subscription.next
    if following is None:
        return None
    zone = subscription.customer.zone
    if following.status == "pending":
        end = store.fee_periods(subscription).containing(store.now()).until
        return end.astimezone(zone).date().isoformat()
    if following.status == "active" and not subscription.is_upgraded and following.started_at:
        return following.started_at.astimezone(zone).date().isoformat()
    return None


def event_view(event: Event) -> Json:
    return {
        "lago_id": event.id,
        "transaction_id": event.transaction_id,
        "lago_customer_id": event.subscription.customer.id if event.subscription else None,
        "code": event.code,
        "timestamp": iso_ms(instant_us(event.at_us)),
        "precise_total_amount_cents": event.precise_cents,
        "properties": event.properties,
        "lago_subscription_id": event.subscription.id if event.subscription else None,
        "external_subscription_id": event.external_subscription_id,
        "created_at": iso(event.created),
    }


def endpoint_view(endpoint: Endpoint, organization_id: str) -> Json:
    return {
        "lago_id": endpoint.id,
        "lago_organization_id": organization_id,
        "webhook_url": endpoint.url,
        "signature_algo": endpoint.algorithm,
        "name": endpoint.name,
        "event_types": None if endpoint.event_types is None else list(endpoint.event_types),
        "created_at": iso(endpoint.created),
    }
