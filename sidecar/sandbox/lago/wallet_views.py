"""Wallets of the Lago stand-in and their transactions as JSON. Source: lago-api ``app/serializers/v1/``."""

from __future__ import annotations

from sidecar.sandbox.lago.lago_wire import Json, iso, iso_ms, iso_or_none
from sidecar.sandbox.lago.money import decimal_text, from_cents
from sidecar.sandbox.lago.records import Transaction, Wallet
from sidecar.sandbox.lago.views import BILLING_ENTITY, PAYMENT_METHOD


def wallet_view(wallet: Wallet, *, full: bool = False, rules: bool = True) -> Json:
    """``full`` adds the scope, which webhooks lack. ``rules``: those of recurring top-ups, which some webhooks lack."""

    def credits(cents: int) -> str:
        return decimal_text(round(from_cents(cents, wallet.currency) / wallet.rate, 5))

    view: Json = {
        "lago_id": wallet.id,
        "lago_customer_id": wallet.customer.id,
        "external_customer_id": wallet.customer.external_id,
        "billing_entity_code": BILLING_ENTITY,
        "status": wallet.status,
        "currency": wallet.currency,
        "name": wallet.name,
        "code": wallet.code,
        "purchase_order_number": None,
        "rate_amount": decimal_text(wallet.rate),
        "credits_balance": decimal_text(wallet.credits),
        "credits_ongoing_balance": credits(wallet.ongoing_cents),
        "credits_ongoing_usage_balance": credits(wallet.ongoing_usage_cents),
        "balance_cents": wallet.balance_cents,
        "ongoing_balance_cents": wallet.ongoing_cents,
        "ongoing_usage_balance_cents": wallet.ongoing_usage_cents,
        "consumed_credits": decimal_text(wallet.consumed),
        "created_at": iso(wallet.created),
        "expiration_at": iso_or_none(wallet.expiration_at),
        "last_balance_sync_at": iso_or_none(wallet.synced_at),
        "last_consumed_credit_at": iso_or_none(wallet.consumed_at),
        "terminated_at": iso_ms(wallet.terminated_at) if wallet.terminated_at else None,
        "invoice_requires_successful_payment": wallet.needs_payment,
        "paid_top_up_min_amount_cents": wallet.min_top_up_cents,
        "paid_top_up_max_amount_cents": wallet.max_top_up_cents,
        "priority": wallet.priority,
        "payment_method": dict(PAYMENT_METHOD),
    }
    if rules:
        view["recurring_transaction_rules"] = []
    if full:
        codes = [metric.code for metric in wallet.metrics]
        view["applies_to"] = {"fee_types": list(wallet.fee_types), "billable_metric_codes": codes}
        view["applied_invoice_custom_sections"] = []
    if wallet.metadata:
        view["metadata"] = wallet.metadata
    return view


def transaction_view(transaction: Transaction, *, with_wallet: bool = False) -> Json:
    wallet, remaining = transaction.wallet, transaction.remaining_cents
    left = None
    if remaining is not None:
        left = decimal_text(round(from_cents(remaining, wallet.currency) / wallet.rate, 5))
    view: Json = {
        "lago_id": transaction.id,
        "lago_wallet_id": wallet.id,
        "lago_invoice_id": transaction.invoice.id if transaction.invoice else None,
        "lago_credit_note_id": None,
        "lago_voided_invoice_id": transaction.voided_invoice.id if transaction.voided_invoice else None,
        "billing_entity_code": BILLING_ENTITY,
        "status": transaction.status,
        "source": "manual",
        "transaction_status": transaction.kind,
        "transaction_type": transaction.type,
        "amount": decimal_text(from_cents(transaction.amount_cents, wallet.currency)),
        "credit_amount": decimal_text(transaction.credits),
        "remaining_amount_cents": remaining,
        "remaining_credit_amount": left,
        "priority": transaction.label.priority,
        "purchase_order_number": None,
        "settled_at": iso_or_none(transaction.settled_at),
        "failed_at": iso_or_none(transaction.failed_at),
        "created_at": iso(transaction.created),
        "invoice_requires_successful_payment": wallet.needs_payment,
        "metadata": list(transaction.label.metadata),
        "name": transaction.label.name,
        "payment_method": dict(PAYMENT_METHOD),
    }
    if with_wallet:
        view["wallet"] = wallet_view(wallet, rules=False)
    return view
