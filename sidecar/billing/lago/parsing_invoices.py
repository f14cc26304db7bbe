"""From Lago's objects to values: invoices, fees, and usage not invoiced yet (lago-api ``app/serializers/v1/``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal

from sidecar.billing.lago.json_fields import Fields
from sidecar.billing.lago.models import (
    BillingPeriod,
    ChargeUsage,
    CurrentUsage,
    Fee,
    FeeUsage,
    FilterValues,
    GroupValues,
    Invoice,
)


def invoice(row: Fields) -> Invoice:
    who = row.row_or_none("customer")
    status, payment_status = row.text("status"), row.text("payment_status")
    return Invoice(
        lago_id=row.text("lago_id"),
        number=row.text_or_none("number") or "",
        type=row.text("invoice_type"),
        status=status,
        payment_status=payment_status,
        currency=row.text("currency"),
        fees_cents=row.whole("fees_amount_cents"),
        taxes_cents=row.whole("taxes_amount_cents"),
        prepaid_cents=row.whole_or_none("prepaid_credit_amount_cents") or 0,
        total_cents=row.whole("total_amount_cents"),
        due_cents=_due_cents(row, status, payment_status),
        issuing_date=row.text_or_none("issuing_date") or "",
        created_at_ms=row.instant_ms("created_at"),
        customer=who.text("external_id") if who else None,
        periods=_periods(row) if row.has("billing_periods") else None,
        fees=tuple(map(_fee, row.rows("fees"))) if row.has("fees") else None,
        voided_at_ms=row.instant_ms_or_none("voided_at"),
    )


def _due_cents(row: Fields, status: str, payment_status: str) -> int:
    """The amount that is still to be paid. Where an answer does not say it, the rest is put together as Lago does
    (Invoice#total_due_amount_cents).
    """
    due = row.whole_or_none("total_due_amount_cents")
    if due is not None:
        return due
    if status == "voided" or payment_status == "succeeded":
        return 0
    return row.whole("total_amount_cents") - (row.whole_or_none("total_paid_amount_cents") or 0)


def _periods(row: Fields) -> tuple[BillingPeriod, ...]:
    """The periods that cover usage: an invoice of a plan's fee alone may have none."""
    plans = {each.text("lago_id"): each for each in row.rows("subscriptions")}
    found = (_period(each, plans) for each in row.rows("billing_periods"))
    return tuple(period for period in found if period is not None)


def _period(row: Fields, subscriptions: Mapping[str, Fields]) -> BillingPeriod | None:
    from_ms, to_ms = row.instant_ms_or_none("charges_from_datetime"), row.end_ms_or_none("charges_to_datetime")
    if from_ms is None or to_ms is None:
        return None
    subscription_id = row.text("lago_subscription_id")
    subscription = subscriptions.get(subscription_id)
    external_id = row.text_or_none("external_subscription_id")
    return BillingPeriod(
        subscription_id=subscription_id,
        external_subscription_id=external_id or (subscription.text("external_id") if subscription else None),
        plan_code=subscription.text("plan_code") if subscription else None,
        from_ms=from_ms,
        to_ms=to_ms,
        reason=row.text_or_none("invoicing_reason"),
    )


def _fee(row: Fields) -> Fee:
    item = row.row("item")
    kind = item.text("type")
    return Fee(
        lago_id=row.text_or_none("lago_id"),
        kind=kind,
        metric_code=item.text_or_none("code") if kind == "charge" else None,
        subscription_id=row.text_or_none("lago_subscription_id"),
        units=row.number_or_none("units") or Decimal(0),
        amount_cents=row.whole("amount_cents"),
        taxes_cents=row.whole("taxes_amount_cents"),
        precise_amount=row.number_or_none("precise_amount"),
        from_ms=row.instant_ms_or_none("from_date"),
        to_ms=row.end_ms_or_none("to_date"),
        taxes_rate=row.number_or_none("taxes_rate") or Decimal(0),
        filter=_filter(item, "filters") if kind == "charge" else None,
        group=_group(item) if kind == "charge" else (),
    )


def _filter(row: Fields, name: str) -> FilterValues | None:
    """None: of events that no filter takes, or of a charge without filters."""
    values = row.row_or_none(name)
    found = ((key, tuple(sorted(values.texts(key)))) for key in values.values) if values else ()
    return tuple(sorted(found)) or None


def _group(row: Fields) -> GroupValues:
    values = row.row_or_none("grouped_by")
    return tuple(sorted((key, values.text_or_none(key)) for key in values.values)) if values else ()


def current_usage(row: Fields) -> CurrentUsage:
    return CurrentUsage(
        from_ms=row.instant_ms("from_datetime"),
        to_ms=row.end_ms("to_datetime"),
        amount_cents=row.whole("amount_cents"),
        taxes_cents=row.whole("taxes_amount_cents"),
        total_cents=row.whole("total_amount_cents"),
        charges=tuple(map(_charge_usage, row.listed("charges_usage"))),
    )


def _charge_usage(row: Fields) -> ChargeUsage:
    return ChargeUsage(
        metric_code=row.row("billable_metric").text("code"),
        charge_id=row.row("charge").text("lago_id"),
        units=row.number("units"),
        amount_cents=row.whole("amount_cents"),
        events_count=row.whole("events_count"),
        fees=tuple(_fee_usages(row)),
    )


def _fee_usages(row: Fields) -> Iterator[FeeUsage]:
    """What Lago makes a fee of. With groups, each group has the filters of its own (lago-api
    ``app/serializers/v1/customers/charge_usage_serializer.rb``)."""
    groups = row.rows("grouped_usage")
    if not groups:
        yield from (FeeUsage(_filter(each, "values"), (), each.number("units")) for each in row.rows("filters"))
    for group in groups:
        found = _group(group)
        filters = group.rows("filters")
        yield from (FeeUsage(_filter(each, "values"), found, each.number("units")) for each in filters)
        if not filters:
            yield FeeUsage(None, found, group.number("units"))
