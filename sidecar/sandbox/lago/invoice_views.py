"""Invoices, fees and usage of the Lago stand-in as JSON. Source: lago-api ``app/serializers/v1/``."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from sidecar.sandbox.lago.charge_filters import ALL_VALUES
from sidecar.sandbox.lago.lago_store import Store
from sidecar.sandbox.lago.lago_wire import Json, iso, iso_offset, iso_or_none
from sidecar.sandbox.lago.money import decimal_text, from_cents, round_half_away
from sidecar.sandbox.lago.records import (
    AppliedCoupon,
    AppliedTax,
    Credit,
    CurrentUsage,
    Fee,
    Filter,
    Invoice,
    InvoicePeriod,
)
from sidecar.sandbox.lago.views import BILLING_ENTITY, customer_view, subscription_view

INVOICE_VERSION = 4
FRONT_URL = "http://localhost/sandbox"
#: What webhooks have besides customer and fees (lago-api ``app/services/webhooks/invoices/``).
_OF_USAGE = ("subscriptions", "billing_periods", "credits", "applied_taxes")
HOOK_PARTS = {
    "invoice.created": (*_OF_USAGE, "applied_invoice_custom_sections"),
    "invoice.drafted": (*_OF_USAGE, "error_details"),
    "invoice.ready_to_finalize": (*_OF_USAGE, "error_details"),
    "invoice.voided": _OF_USAGE,
    "invoice.paid_credit_added": ("applied_taxes", "applied_invoice_custom_sections"),
    "invoice.payment_status_updated": (),
}


def _invoice_view(invoice: Invoice, *customer_parts: str) -> Json:
    without_taxes = invoice.fees_cents - invoice.coupons_cents
    with_taxes = without_taxes + invoice.taxes_cents
    return {
        "lago_id": invoice.id,
        "billing_entity_code": BILLING_ENTITY,
        "sequential_id": invoice.sequential,
        "number": invoice.number,
        "purchase_order_number": None,
        "issuing_date": invoice.issuing_date.isoformat(),
        "payment_due_date": invoice.due_date.isoformat(),
        "net_payment_term": invoice.customer.net_payment_term or 0,
        "invoice_type": invoice.kind,
        "status": invoice.status,
        "payment_status": invoice.payment_status,
        "payment_dispute_lost_at": None,
        "payment_overdue": False,
        "currency": invoice.currency,
        "fees_amount_cents": invoice.fees_cents,
        "taxes_amount_cents": invoice.taxes_cents,
        "progressive_billing_credit_amount_cents": 0,
        "coupons_amount_cents": invoice.coupons_cents,
        "credit_notes_amount_cents": invoice.credit_notes_cents,
        "sub_total_excluding_taxes_amount_cents": without_taxes,
        "sub_total_including_taxes_amount_cents": with_taxes,
        "total_amount_cents": invoice.total_cents,
        "total_due_amount_cents": invoice.due_cents,
        "total_paid_amount_cents": invoice.paid_cents,
        "total_offsetted_credit_note_amount_cents": 0,
        "prepaid_credit_amount_cents": invoice.prepaid_cents,
        "prepaid_granted_credit_amount_cents": invoice.prepaid_granted_cents,
        "prepaid_purchased_credit_amount_cents": invoice.prepaid_purchased_cents,
        "file_url": None,
        "xml_url": None,
        "web_url": f"{FRONT_URL}/customer/{invoice.customer.id}/invoice/{invoice.id}/overview",
        "version_number": INVOICE_VERSION,
        "self_billed": False,
        "created_at": iso(invoice.created),
        "updated_at": iso(invoice.updated),
        "voided_at": iso_or_none(invoice.voided_at),
        "customer": customer_view(invoice.customer, *customer_parts),
    }


def invoice_view(invoice: Invoice) -> Json:
    """As in lists: without fees and billing periods."""
    view = _invoice_view(invoice, "integration_customers")
    return {**view, "metadata": _metadata(invoice), "applied_taxes": _applied_taxes(invoice)}


def full_invoice_view(store: Store, invoice: Invoice) -> Json:
    """As a single answer."""
    return {
        **_invoice_view(invoice, "integration_customers"),
        **_parts(store, invoice),
        "fees": [fee_view(fee) for fee in invoice.fees],
    }


def hook_view(store: Store, invoice: Invoice, type_: str) -> Json:
    """As in a webhook of that type."""
    parts = _parts(store, invoice)
    more = {part: parts[part] for part in HOOK_PARTS[type_]}
    return {**_invoice_view(invoice), "fees": [fee_view(fee) for fee in invoice.fees], **more}


def _parts(store: Store, invoice: Invoice) -> Json:
    return {
        "subscriptions": [subscription_view(store, period.subscription) for period in invoice.periods],
        "billing_periods": [_period_view(period) for period in invoice.periods],
        "credits": [_credit_view(credit, invoice) for credit in invoice.credits],
        "metadata": _metadata(invoice),
        "applied_taxes": _applied_taxes(invoice),
        "error_details": [],
        "applied_invoice_custom_sections": [],
    }


def _metadata(invoice: Invoice) -> list[Json]:
    return [
        {"lago_id": pair.id, "key": pair.key, "value": pair.value, "created_at": iso(pair.created)}
        for pair in invoice.metadata
    ]


def _applied_taxes(invoice: Invoice) -> list[Json]:
    return [
        {**_tax_view(tax, invoice.currency, iso(invoice.created)), "lago_invoice_id": invoice.id,
         "fees_amount_cents": tax.base_cents}
        for tax in invoice.taxes
    ]  # fmt: skip


def _period_view(period: InvoicePeriod) -> Json:
    subscription, fees, charges = period.subscription, period.fee_span, period.charges_span
    return {
        "lago_subscription_id": subscription.id,
        "external_subscription_id": subscription.external_id,
        "lago_plan_id": subscription.plan.id,
        "subscription_from_datetime": iso(fees.start),
        "subscription_to_datetime": iso(fees.shown_to),
        "charges_from_datetime": iso(charges.start),
        "charges_to_datetime": iso(charges.shown_to),
        "fixed_charges_from_datetime": iso(charges.start),
        "fixed_charges_to_datetime": iso(charges.shown_to),
        "invoicing_reason": period.reason,
    }


def _credit_view(credit: Credit, invoice: Invoice) -> Json:
    source = credit.source
    if isinstance(source, AppliedCoupon):
        kind, id, code, name = "coupon", source.coupon.id, source.coupon.code, source.coupon.name
    else:
        kind, id, code, name = "credit_note", source.id, f"CN-{source.seq}", f"Credit note CN-{source.seq}"
    return {
        "lago_id": credit.id,
        "amount_cents": credit.amount_cents,
        "amount_currency": invoice.currency,
        "before_taxes": isinstance(source, AppliedCoupon),
        "item": {"lago_item_id": id, "type": kind, "code": code, "name": name, "description": None},
        "invoice": {"lago_id": invoice.id, "payment_status": invoice.payment_status},
    }


def _tax_view(tax: AppliedTax, currency: str, created_at: str) -> Json:
    return {
        "lago_id": tax.id,
        "lago_tax_id": tax.tax_id,
        "tax_name": tax.name,
        "tax_code": tax.code,
        "tax_rate": float(tax.rate),
        "tax_description": tax.description,
        "amount_cents": tax.amount_cents,
        "amount_currency": currency,
        "created_at": created_at,
    }


def fee_view(fee: Fee, *, with_taxes: bool = False) -> Json:
    """``with_taxes``: as a single answer and in the list of fees."""
    subscription, charge, invoice = fee.subscription, fee.charge, fee.invoice
    customer = invoice.customer if invoice else subscription.customer if subscription else None
    precise_total = fee.precise_cents + fee.taxes_precise_cents
    is_paid = invoice is not None and invoice.payment_status == "succeeded"
    is_failed = invoice is not None and invoice.payment_status == "failed"
    view: Json = {
        "lago_id": fee.id,
        "lago_charge_id": charge.id if charge else None,
        "lago_charge_filter_id": fee.filter["lago_id"] if fee.filter else None,
        "lago_fixed_charge_id": fee.fixed_charge.id if fee.fixed_charge else None,
        "lago_invoice_id": invoice.id if invoice else None,
        "lago_true_up_fee_id": None,
        "lago_true_up_parent_fee_id": None,
        "lago_original_fee_id": None,
        "lago_subscription_id": subscription.id if subscription else None,
        "external_subscription_id": subscription.external_id if subscription else None,
        "lago_customer_id": customer.id if customer else None,
        "external_customer_id": customer.external_id if customer else None,
        "item": _item_view(fee),
        "pay_in_advance": bool(fee.kind == "subscription" and subscription and subscription.plan.pay_in_advance),
        "invoiceable": True,
        "amount_cents": fee.amount_cents,
        "amount_currency": fee.currency,
        "precise_amount": _units_text(fee.precise_cents, fee.currency),
        "precise_total_amount": _units_text(precise_total, fee.currency),
        "taxes_amount_cents": fee.taxes_cents,
        "taxes_precise_amount": _units_text(fee.taxes_precise_cents, fee.currency),
        "taxes_rate": float(fee.taxes_rate),
        "total_aggregated_units": decimal_text(fee.units),
        "total_amount_cents": fee.amount_cents + fee.taxes_cents,
        "total_amount_currency": fee.currency,
        "units": decimal_text(fee.units),
        "description": None,
        "precise_unit_amount": decimal_text(fee.unit_amount),
        "precise_coupons_amount_cents": decimal_text(fee.coupons_precise_cents),
        "sub_total_excluding_taxes_amount_cents": int(round_half_away(fee.net_cents)),
        "sub_total_excluding_taxes_precise_amount_cents": decimal_text(fee.precise_cents - fee.coupons_precise_cents),
        "events_count": fee.events_count,
        "payment_status": "succeeded" if is_paid else "failed" if is_failed else "pending",
        "created_at": iso(fee.created),
        "succeeded_at": iso(invoice.updated) if is_paid and invoice else None,
        "failed_at": iso(invoice.updated) if is_failed and invoice else None,
        "refunded_at": None,
        "amount_details": fee.details,
        "self_billed": False,
        "pricing_unit_details": None,
        "presentation_breakdowns": [],
    }
    if with_taxes:
        view["applied_taxes"] = [
            {**_tax_view(tax, fee.currency, iso(fee.created)), "lago_fee_id": fee.id} for tax in fee.taxes
        ]
    if fee.span is not None:
        view |= {"from_date": iso_offset(fee.span.start), "to_date": iso_offset(fee.span.shown_to)}
    return view


def _item_view(fee: Fee) -> Json:
    if fee.charge is not None:
        metric = fee.charge.metric
        code, name, description, item_id, type_ = (
            metric.code,
            metric.name,
            metric.description,
            metric.id,
            "BillableMetric",
        )
        shown = fee.charge.display_name or name
    elif fee.fixed_charge is not None:
        code = name = description = shown = fee.fixed_charge.code
        item_id, type_ = fee.fixed_charge.id, "AddOn"
    elif fee.transaction is not None:
        code, name, description, item_id, type_ = "credit", "credit", "credit", fee.transaction.id, "WalletTransaction"
        shown = fee.transaction.label.name or name
    else:
        assert fee.subscription is not None, "a fee is of a charge, a top-up or a subscription"
        plan = fee.subscription.plan
        code, name, description, item_id, type_ = (
            plan.code,
            plan.name,
            plan.description,
            fee.subscription.id,
            "Subscription",
        )
        shown = fee.subscription.name or plan.display_name or name
    return {
        "type": fee.kind,
        "code": code,
        "name": name,
        "description": description,
        "invoice_display_name": shown,
        "filters": fee.filter["values"] if fee.filter else None,
        "filter_invoice_display_name": _filter_name(fee.filter) if fee.filter else None,
        "lago_item_id": item_id,
        "item_type": type_,
        "grouped_by": fee.group,
    }


def _filter_name(filter_: Filter) -> str:
    """Its own name, or its values, and the names of properties of which it takes every value."""
    values: dict[str, list[str]] = filter_["values"]
    texts = [key if allowed == [ALL_VALUES] else ", ".join(allowed) for key, allowed in values.items()]
    name: str | None = filter_["invoice_display_name"]
    return name or ", ".join(texts)


def _units_text(cents: Decimal, currency: str) -> str:
    return decimal_text(from_cents(cents, currency))


def usage_view(usage: CurrentUsage) -> Json:
    by_charge: dict[str, list[Fee]] = {}
    for fee in usage.fees:
        assert fee.charge is not None, "usage is of charges"
        by_charge.setdefault(fee.charge.id, []).append(fee)
    return {
        "from_datetime": iso(usage.span.start),
        "to_datetime": iso(usage.span.shown_to),
        "issuing_date": usage.issuing_date.isoformat(),
        "currency": usage.currency,
        "amount_cents": usage.amount_cents,
        "total_amount_cents": usage.total_cents,
        "taxes_amount_cents": usage.taxes_cents,
        "lago_invoice_id": None,
        "charges_usage": [_charge_usage_view(fees) for fees in by_charge.values()],
    }


def _charge_usage_view(fees: Sequence[Fee]) -> Json:
    charge = fees[0].charge
    assert charge is not None, "usage is of charges"
    metric = charge.metric
    return {
        **_used(*fees),
        "amount_currency": fees[0].currency,
        "charge": {
            "lago_id": charge.id,
            "code": charge.code,
            "charge_model": charge.model,
            "invoice_display_name": charge.display_name,
        },
        "billable_metric": {
            "lago_id": metric.id,
            "name": metric.name,
            "code": metric.code,
            "aggregation_type": metric.aggregation,
        },
        "filters": _filter_usages(fees),
        "grouped_usage": _grouped_usages(fees),
        "presentation_breakdowns": [],
    }


def _filter_usages(fees: Sequence[Fee]) -> list[Json]:
    """One for each filter and one for the rest, with the usage of all of its groups; none without filters."""
    if fees[0].charge is None or not fees[0].charge.filters:
        return []
    by_filter: dict[str | None, list[Fee]] = {}
    for fee in fees:
        by_filter.setdefault(fee.filter["lago_id"] if fee.filter else None, []).append(fee)
    return [
        {
            **_used(*of_filter),
            "invoice_display_name": filter_["invoice_display_name"] if filter_ else None,
            "values": filter_["values"] if filter_ else None,
            "presentation_breakdowns": [],
        }
        for of_filter in by_filter.values()
        for filter_ in (of_filter[0].filter,)
    ]


def _grouped_usages(fees: Sequence[Fee]) -> list[Json]:
    if not any(fee.group for fee in fees):
        return []
    by_group: dict[tuple[tuple[str, str | None], ...], list[Fee]] = {}
    for fee in fees:
        by_group.setdefault(tuple(sorted(fee.group.items())), []).append(fee)
    return [
        {
            **_used(*of_group),
            "grouped_by": of_group[0].group,
            "filters": _filter_usages(of_group),
            "presentation_breakdowns": [],
        }
        for of_group in by_group.values()
    ]


def _used(*fees: Fee) -> Json:
    units = decimal_text(sum((fee.units for fee in fees), Decimal(0)))
    return {
        "units": units,
        "total_aggregated_units": units,
        "events_count": sum(fee.events_count or 0 for fee in fees),
        "amount_cents": sum(fee.amount_cents for fee in fees),
        "pricing_unit_details": None,
    }
