"""What a real Lago answered, through the parser of its kind. Figures are looked up in the answers by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from sidecar.billing.lago import parsing, parsing_invoices
from sidecar.billing.lago.json_fields import Fields
from sidecar.billing.lago.models import Customer, Invoice, Page, Subscription, Wallet
from sidecar.billing.lago.versions import check_invoice
from tests.real_lago import recorded
from tests.real_lago.recorded import RecordedAnswer

Parse = Callable[[Fields], Any]
# By the first part of a recording's name: where the object or the list lies, and what reads it.
ONE: dict[str, tuple[str, Parse]] = {
    "customer": ("customer", parsing.customer),
    "sub": ("subscription", parsing.subscription),
    "usage": ("customer_usage", parsing_invoices.current_usage),
    "invoice": ("invoice", parsing_invoices.invoice),
}
LISTS: dict[str, tuple[str, Parse]] = {
    "subs": ("subscriptions", parsing.subscription),
    "wallets": ("wallets", parsing.wallet),
    "invoices": ("invoices", parsing_invoices.invoice),
    "plans": ("plans", parsing.plan),
    "metrics": ("billable_metrics", parsing.metric),
    "taxes": ("taxes", parsing.tax),
    "endpoints": ("webhook_endpoints", parsing.webhook_endpoint),
}
# Objects in webhooks that are of a kind which is parsed. A failed payment has an object of its own.
HOOKS: dict[str, Parse] = {
    "wallet": parsing.wallet,
    "wallet_transaction": parsing.wallet_transaction,
    "customer": parsing.customer,
    "subscription": parsing.subscription,
    "invoice": parsing_invoices.invoice,
    "plan": parsing.plan,
    "billable_metric": parsing.metric,
}


def read(answer: RecordedAnswer) -> Any:
    fields = Fields(answer.body, f"GET {answer.path}")
    kind = answer.name.partition("_")[0]
    if kind in LISTS:
        name, parse = LISTS[kind]
        return parsing.page_of(fields, name, parse, 1)
    name, parse = ONE[kind]
    return parse(fields.row(name))


def named(name: str) -> Any:
    (found,) = (answer for answer in recorded.answers() if answer.name == name)
    return read(found)


@pytest.mark.parametrize("answer", recorded.answers(), ids=lambda answer: answer.name)
def test_every_answer_goes_through_the_parser_of_its_kind(answer: RecordedAnswer) -> None:
    found = read(answer)
    kind, _, who = answer.name.partition("_")
    match found:
        case Page():
            assert len(found.items) == found.total_count > 0
            assert found.next_page is None
        case Customer():
            assert found.external_id == who
            assert found.taxes is not None
        case Subscription():
            assert (found.customer, found.external_id) == (who, answer.path.rsplit("/", 1)[1])
            assert found.plan is not None
            assert found.plan.code == found.plan_code
            assert found.is_active
        case Invoice():
            check_invoice(answer.path, found)
            assert found.lago_id == answer.path.rsplit("/", 1)[1]
            assert found.fees is not None
            assert sum(fee.amount_cents for fee in found.fees) == found.fees_cents
            assert all(period.plan_code and period.external_subscription_id for period in found.periods or ())
    if kind in ("subs", "wallets", "invoices"):
        assert {each.customer for each in found.items} == {who}


@pytest.mark.parametrize("body", recorded.webhooks(), ids=lambda body: json.loads(body)["webhook_type"])
def test_every_object_in_a_webhook_goes_through_the_parser_of_its_kind(body: bytes) -> None:
    webhook = json.loads(body, parse_float=Decimal)
    kind = webhook["object_type"]
    rows = [(kind, webhook[kind])] + [(name, row) for name, row in webhook[kind].items() if isinstance(row, dict)]
    for name, row in rows:
        if name in HOOKS:
            assert HOOKS[name](Fields(row, webhook["webhook_type"], name)) is not None


def test_the_kinds_of_recordings_are_all_there() -> None:
    assert {answer.name.partition("_")[0] for answer in recorded.answers()} == ONE.keys() | LISTS.keys()


def test_a_limited_wallet_paid_an_invoice_with_its_tax() -> None:
    (wallet,) = named("wallets_lim2").items
    assert isinstance(wallet, Wallet)
    assert (wallet.balance_cents, wallet.consumed_credits, wallet.rate_amount) == (229, Decimal("7.71"), Decimal(1))
    invoice = named("invoice_lim2_1")
    assert (invoice.fees_cents, invoice.taxes_cents, invoice.prepaid_cents, invoice.due_cents) == (622, 149, 771, 0)
    charges = [
        (fee.metric_code, fee.units, fee.precise_amount, fee.taxes_rate) for fee in invoice.fees if fee.metric_code
    ]
    assert charges == [
        ("api_calls", Decimal(7), Decimal("2.331"), Decimal(24)),
        ("payments", Decimal(5), Decimal("3.885"), Decimal(24)),
    ]
    (period,) = invoice.periods
    assert (period.plan_code, period.reason) == ("d_sub", "subscription_periodic")
    assert (period.to_ms - period.from_ms) % 60_000 == 11_000, "it began at 00:07:49 and ends with the month"


def test_a_fixed_charge_is_a_fee_of_its_kind() -> None:
    kinds = [fee.kind for fee in named("invoice_fix1_1").fees]
    assert "fixed_charge" in kinds
    assert all(fee.metric_code is None for fee in named("invoice_fix1_1").fees if fee.kind == "fixed_charge")
