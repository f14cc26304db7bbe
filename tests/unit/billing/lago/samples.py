"""Objects as Lago's serializers make them (lago-api ``app/serializers/v1/``), to be changed by tests."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def page(name: str, *rows: Row, next_page: int | None = None, total: int | None = None, current: int = 1) -> Row:
    meta = {
        "current_page": current,
        "next_page": next_page,
        "prev_page": None,
        "total_pages": 1,
        "total_count": len(rows) if total is None else total,
    }
    return {name: list(rows), "meta": meta}


def tax(code: str = "vat", rate: Any = 20.0, **changes: Any) -> Row:
    row: Row = {
        "lago_id": f"id-{code}",
        "name": code.upper(),
        "code": code,
        "rate": rate,
        "description": None,
        "applied_to_organization": False,
        "created_at": "2026-07-01T08:59:51Z",
    }
    return row | changes


def customer(external_id: str = "tpp-1", **changes: Any) -> Row:
    row: Row = {
        "lago_id": f"c-{external_id}",
        "sequential_id": 1,
        "slug": "BANK-0001-001",
        "external_id": external_id,
        "applicable_timezone": "Europe/Paris",
        "currency": "EUR",
        "timezone": None,
        "created_at": "2026-07-01T08:59:51Z",
        "updated_at": "2026-07-01T08:59:51Z",
        "billing_configuration": {},
        "metadata": [
            {"lago_id": "m1", "key": "quota_mode", "value": "prepaid", "display_in_invoice": False,
             "created_at": "2026-07-01T08:59:51Z"},
        ],
        "taxes": [tax()],
    }  # fmt: skip
    return row | changes


def wallet(lago_id: str = "w1", **changes: Any) -> Row:
    row: Row = {
        "lago_id": lago_id,
        "lago_customer_id": "c-tpp-1",
        "external_customer_id": "tpp-1",
        "status": "active",
        "currency": "EUR",
        "name": "Prepaid",
        "code": "default",
        "rate_amount": "1.0",
        "credits_balance": "90.0",
        "credits_ongoing_balance": "80.0",
        "credits_ongoing_usage_balance": "10.0",
        "balance_cents": 9000,
        "ongoing_balance_cents": 8000,
        "ongoing_usage_balance_cents": 1000,
        "consumed_credits": "10.0",
        "created_at": "2026-07-01T08:59:51Z",
        "expiration_at": None,
        "last_balance_sync_at": "2026-08-01T00:10:09Z",
        "terminated_at": None,
        "priority": 10,
        "recurring_transaction_rules": [],
        "applies_to": {"fee_types": ["charge"], "billable_metric_codes": ["api_calls"]},
    }
    return row | changes


def wallet_transaction(lago_id: str = "t1", **changes: Any) -> Row:
    row: Row = {
        "lago_id": lago_id,
        "lago_wallet_id": "w1",
        "lago_invoice_id": "i1",
        "lago_credit_note_id": None,
        "lago_voided_invoice_id": None,
        "status": "settled",
        "source": "manual",
        "transaction_status": "purchased",
        "transaction_type": "inbound",
        "amount": "50.0",
        "credit_amount": "50.0",
        "remaining_amount_cents": 5000,
        "priority": 50,
        "settled_at": "2026-08-01T10:00:00Z",
        "failed_at": None,
        "created_at": "2026-08-01T09:59:00Z",
        "invoice_requires_successful_payment": False,
        "metadata": [],
        "name": None,
    }
    return row | changes


def charge(metric: str = "api_calls", model: str = "standard", **changes: Any) -> Row:
    row: Row = {
        "lago_id": f"ch-{metric}",
        "lago_billable_metric_id": f"bm-{metric}",
        "code": f"{metric}_charge",
        "invoice_display_name": None,
        "billable_metric_code": metric,
        "created_at": "2026-07-01T08:59:51Z",
        "charge_model": model,
        "invoiceable": True,
        "regroup_paid_fees": None,
        "pay_in_advance": False,
        "prorated": False,
        "min_amount_cents": 0,
        "properties": {"amount": "0.05"},
        "applied_pricing_unit": None,
        "lago_parent_id": None,
        "filters": [],
        "taxes": [],
    }
    return row | changes


def plan(code: str = "pro", **changes: Any) -> Row:
    row: Row = {
        "lago_id": f"p-{code}",
        "name": code.title(),
        "invoice_display_name": None,
        "created_at": "2026-07-01T08:59:51Z",
        "code": code,
        "interval": "monthly",
        "description": None,
        "amount_cents": 10000,
        "amount_currency": "EUR",
        "trial_period": 0.0,
        "pay_in_advance": False,
        "bill_charges_monthly": None,
        "charges": [charge()],
        "usage_thresholds": [],
        "taxes": [],
    }
    return row | changes


def subscription(external_id: str = "sub-1", **changes: Any) -> Row:
    row: Row = {
        "lago_id": f"s-{external_id}",
        "external_id": external_id,
        "lago_customer_id": "c-tpp-1",
        "external_customer_id": "tpp-1",
        "name": None,
        "plan_code": "pro",
        "status": "active",
        "billing_time": "calendar",
        "subscription_at": "2026-08-15T09:00:00Z",
        "started_at": "2026-08-15T09:00:00.123Z",
        "trial_ended_at": None,
        "ending_at": None,
        "terminated_at": None,
        "canceled_at": None,
        "created_at": "2026-08-15T09:00:00Z",
        "previous_plan_code": "basic",
        "next_plan_code": None,
        "downgrade_plan_date": None,
        "current_billing_period_started_at": "2026-08-15T09:00:00Z",
        "current_billing_period_ending_at": "2026-08-31T23:59:59Z",
        "on_termination_credit_note": None,
        "on_termination_invoice": "generate",
    }
    return row | changes


def metric(code: str = "api_calls", **changes: Any) -> Row:
    row: Row = {
        "lago_id": f"bm-{code}",
        "name": code,
        "code": code,
        "description": "",
        "aggregation_type": "sum_agg",
        "weighted_interval": None,
        "recurring": False,
        "rounding_function": None,
        "rounding_precision": None,
        "created_at": "2026-07-01T08:59:51Z",
        "field_name": "calls",
        "expression": None,
        "filters": [],
    }
    return row | changes


def fee(**changes: Any) -> Row:
    row: Row = {
        "lago_id": "f1",
        "lago_subscription_id": "s-sub-1",
        "item": {"type": "charge", "code": "api_calls", "name": "Calls", "lago_item_id": "bm1",
                 "item_type": "BillableMetric"},
        "pay_in_advance": False,
        "invoiceable": True,
        "amount_cents": 1000,
        "amount_currency": "EUR",
        "precise_amount": 10.0012,
        "precise_total_amount": 12.00144,
        "taxes_amount_cents": 200,
        "taxes_precise_amount": 2.00024,
        "taxes_rate": 20.0,
        "total_aggregated_units": "200.0",
        "total_amount_cents": 1200,
        "total_amount_currency": "EUR",
        "units": "200.0",
        "precise_unit_amount": "0.05",
        "events_count": 3,
        "payment_status": "pending",
        "from_date": "2026-07-01T00:00:00+00:00",
        "to_date": "2026-07-31T23:59:59+00:00",
    }  # fmt: skip
    return row | changes


def invoice(lago_id: str = "i2", *, is_whole: bool = False, **changes: Any) -> Row:
    """``is_whole``: with what only ``GET /invoices/{id}`` has."""
    row: Row = {
        "lago_id": lago_id,
        "number": "BANK-0001-001-002",
        "issuing_date": "2026-08-01",
        "payment_due_date": "2026-08-01",
        "payment_overdue": False,
        "net_payment_term": 0,
        "invoice_type": "subscription",
        "version_number": 4,
        "status": "finalized",
        "payment_status": "pending",
        "currency": "EUR",
        "fees_amount_cents": 1000,
        "coupons_amount_cents": 0,
        "taxes_amount_cents": 200,
        "credit_notes_amount_cents": 0,
        "progressive_billing_credit_amount_cents": 0,
        "sub_total_excluding_taxes_amount_cents": 1000,
        "sub_total_including_taxes_amount_cents": 1200,
        "total_amount_cents": 300,
        "total_due_amount_cents": 250,
        "total_paid_amount_cents": 50,
        "prepaid_credit_amount_cents": 900,
        "created_at": "2026-08-01T00:10:09Z",
        "updated_at": "2026-08-01T00:10:10Z",
        "voided_at": None,
        "customer": customer() | {"taxes": None},
    }
    if is_whole:
        row |= {
            "billing_periods": [
                {
                    "lago_subscription_id": "s-sub-1",
                    "external_subscription_id": "sub-1",
                    "lago_plan_id": "p-pro",
                    "subscription_from_datetime": "2026-08-01T00:00:00Z",
                    "subscription_to_datetime": "2026-08-31T23:59:59Z",
                    "charges_from_datetime": "2026-07-01T00:00:00Z",
                    "charges_to_datetime": "2026-07-31T23:59:59Z",
                    "invoicing_reason": "subscription_periodic",
                }
            ],
            "subscriptions": [subscription()],
            "fees": [fee()],
            "credits": [],
        }
    return row | changes


def current_usage(**changes: Any) -> Row:
    row: Row = {
        "from_datetime": "2026-08-01T00:00:00Z",
        "to_datetime": "2026-08-31T23:59:59Z",
        "issuing_date": "2026-09-01",
        "currency": "EUR",
        "amount_cents": 123,
        "total_amount_cents": 148,
        "taxes_amount_cents": 25,
        "lago_invoice_id": None,
        "charges_usage": [
            {
                "units": "24.6",
                "total_aggregated_units": "24.6",
                "events_count": 10,
                "amount_cents": 123,
                "amount_currency": "EUR",
                "charge": {"lago_id": "ch-api_calls", "charge_model": "standard", "invoice_display_name": None},
                "billable_metric": {"lago_id": "bm1", "name": "Calls", "code": "api_calls",
                                    "aggregation_type": "sum_agg"},
                "filters": [],
                "grouped_usage": [],
            }
        ],
    }  # fmt: skip
    return row | changes


def event(transaction_id: str = "om:1", **changes: Any) -> Row:
    row: Row = {
        "lago_id": "e1",
        "transaction_id": transaction_id,
        "lago_customer_id": "c-tpp-1",
        "code": "api_calls",
        "timestamp": "2026-08-01T10:00:00.123Z",
        "precise_total_amount_cents": None,
        "properties": {"calls": 12, "ratio": 0.5, "note": "x"},
        "lago_subscription_id": "s-sub-1",
        "external_subscription_id": "sub-1",
        "created_at": "2026-08-01T10:00:01Z",
    }
    return row | changes


def webhook_endpoint(**changes: Any) -> Row:
    row: Row = {
        "lago_id": "we1",
        "lago_organization_id": "o1",
        "webhook_url": "https://quota.bank.example/webhooks/lago",
        "signature_algo": "hmac",
        "name": "quota",
        "event_types": ["wallet.updated", "invoice.created"],
        "created_at": "2026-07-01T08:59:51Z",
    }
    return row | changes


def applied_coupon(lago_id: str = "ac1", **changes: Any) -> Row:
    row: Row = {
        "lago_id": lago_id,
        "lago_coupon_id": "c1",
        "coupon_code": "start",
        "coupon_name": "Start",
        "lago_customer_id": "c-tpp-1",
        "external_customer_id": "tpp-1",
        "status": "active",
        "amount_cents": 500,
        "amount_cents_remaining": 300,
        "amount_currency": "EUR",
        "percentage_rate": None,
        "frequency": "once",
        "frequency_duration": None,
        "frequency_duration_remaining": None,
        "expiration_at": "2027-01-01T00:00:00Z",
        "created_at": "2026-07-01T08:59:51Z",
        "terminated_at": None,
        "credits": [],
    }
    return row | changes


def coupon(code: str = "start", **changes: Any) -> Row:
    row: Row = {
        "lago_id": "c1",
        "name": "Start",
        "code": code,
        "coupon_type": "fixed_amount",
        "amount_cents": 500,
        "amount_currency": "EUR",
        "frequency": "once",
        "limited_plans": False,
        "limited_billable_metrics": False,
        "plan_codes": [],
        "billable_metric_codes": [],
    }
    return row | changes


def credit_note(lago_id: str = "cn1", **changes: Any) -> Row:
    row: Row = {
        "lago_id": lago_id,
        "number": "BANK-0001-001-CN001",
        "credit_status": "available",
        "refund_status": None,
        "currency": "EUR",
        "total_amount_cents": 200,
        "balance_amount_cents": 150,
        "credit_amount_cents": 200,
        "customer": {"lago_id": "c-tpp-1", "external_id": "tpp-1"},
        "created_at": "2026-07-01T08:59:51Z",
    }
    return row | changes
