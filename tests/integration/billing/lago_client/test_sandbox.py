"""The client against the sandbox's Lago: a plan is set up, a customer uses it, a month passes, an invoice comes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import pytest

from sidecar.billing.lago.client import LagoClient
from sidecar.billing.lago.errors import LagoRejected, LagoUnauthorized
from sidecar.billing.lago.models import Event, Tax
from sidecar.billing.reconcile.plan_prices import plan_prices
from sidecar.ledger.pricing.price_tables import Graduated, PriceTable, Tier, amounts, decimals, pack
from sidecar.ledger.pricing.rating import cost
from sidecar.sandbox.lago.lago_server import Lago, LagoConfig
from sidecar.sandbox.server import Server
from tests.integration.billing.lago_client.kit import settings

START = datetime(2026, 8, 1, tzinfo=UTC)
RANGES = {
    "graduated_ranges": [
        {"from_value": 0, "to_value": 100, "per_unit_amount": "0", "flat_amount": "0"},
        {"from_value": 101, "to_value": None, "per_unit_amount": "0.0333", "flat_amount": "1"},
    ]
}


def seconds(moment: datetime) -> Decimal:
    return Decimal(int(moment.timestamp()))


def usage(number: int, calls: int) -> Event:
    return Event(f"om:{number}", "sub/1", "api_calls", seconds(START + timedelta(hours=number)), {"calls": calls})


def price(table: PriceTable, units: int) -> Decimal:
    digits = max(map(decimals, amounts(table)))
    return Decimal(cost(pack(table, digits, "it"), units)).scaleb(-digits)


@pytest.fixture
def lago() -> Lago:
    return Lago(LagoConfig(now=lambda: START.timestamp(), seed=5))


@pytest.fixture
async def client(lago: Lago) -> AsyncIterator[LagoClient]:
    async with Server(lago.app()) as server:
        how = settings(server.url, api_key=lago.config.api_key)
        async with LagoClient(how) as client:
            yield client


async def set_up(client: LagoClient) -> None:
    """A plan with a tax, and a customer who has 50 EUR, of which the plan's fee takes nothing."""
    await client.create_tax({"name": "VAT", "code": "vat", "rate": "20", "applied_to_organization": True})
    metric = await client.create_metric(
        {"name": "Calls", "code": "api_calls", "aggregation_type": "sum_agg", "field_name": "calls"}
    )
    charge: dict[str, Any] = {
        "billable_metric_id": metric.lago_id, "charge_model": "graduated", "properties": RANGES, "code": "calls",
    }  # fmt: skip
    await client.create_plan(
        {"name": "Pro", "code": "pro", "interval": "monthly", "amount_cents": 0, "amount_currency": "EUR",
         "pay_in_advance": False, "charges": [charge]}
    )  # fmt: skip
    await client.create_customer({"external_id": "tpp/1", "name": "A TPP", "currency": "EUR"})
    await client.create_wallet(
        {"external_customer_id": "tpp/1", "rate_amount": "1", "currency": "EUR", "name": "w", "granted_credits": "50",
         "applies_to": {"fee_types": ["charge"]}}
    )  # fmt: skip
    await client.create_subscription(
        {"external_customer_id": "tpp/1", "external_id": "sub/1", "plan_code": "pro", "billing_time": "calendar"}
    )


async def test_what_is_set_up_can_be_read(client: LagoClient) -> None:
    await set_up(client)
    customer = await client.customer("tpp/1")
    assert customer is not None
    assert (customer.external_id, customer.currency, customer.timezone) == ("tpp/1", "EUR", "UTC")
    (wallet,) = await client.wallets("tpp/1")
    assert (wallet.balance_cents, wallet.is_active, wallet.fee_types) == (5000, True, ("charge",))
    assert await client.wallet(wallet.lago_id) == wallet
    (granted,) = await client.wallet_transactions(wallet.lago_id)
    assert (granted.kind, granted.amount, granted.status) == ("granted", Decimal(50), "settled")
    assert await client.taxes() == (Tax("vat", Decimal(20), is_default=True, billing_entities=("default",)),)
    (listed,) = await client.subscriptions("tpp/1")
    whole = await client.subscription("sub/1")
    assert whole is not None
    assert whole.plan is not None
    assert listed.lago_id == whole.lago_id
    assert (whole.period_start_ms, whole.period_end_ms) == (
        int(START.timestamp() * 1000),
        int(datetime(2026, 9, 1, tzinfo=UTC).timestamp() * 1000),
    )
    found = plan_prices(whole.plan, customer, await client.taxes())
    assert found.prices == {
        "api_calls": Graduated((Tier(100, Decimal(0)), Tier(None, Decimal("0.03996"), Decimal("1.2"))))
    }
    everybody = await client.customers()
    assert ([each.external_id for each in everybody.items], everybody.total_count) == (["tpp/1"], 1)
    assert [plan.code for plan in (await client.plans_page()).items] == ["pro"]
    assert [metric.code for metric in await client.billable_metrics()] == ["api_calls"]
    assert (await client.subscriptions_page(plan_code="pro")).total_count == 1


async def test_what_is_not_there_is_none(client: LagoClient) -> None:
    assert await client.customer("nobody") is None
    assert await client.subscription("none") is None
    assert await client.plan("none") is None
    assert await client.metric("none") is None
    assert await client.wallet("00000000-0000-0000-0000-000000000000") is None
    assert await client.invoice("00000000-0000-0000-0000-000000000000") is None
    assert await client.event("none") is None
    assert await client.wallets("nobody") == ()
    assert await client.subscriptions("nobody") == ()
    assert await client.invoices("nobody") == ()
    assert await client.current_usage("nobody", "none") is None
    await client.create_customer({"external_id": "idle", "currency": "EUR"})
    assert await client.current_usage("idle", "none") is None


async def test_usage_is_taken_all_or_nothing_and_a_duplicate_is_named(client: LagoClient) -> None:
    await set_up(client)
    await client.send_events([usage(1, 70), usage(2, 80)])
    with pytest.raises(LagoRejected) as refused:
        await client.send_events([usage(3, 5), usage(2, 80), usage(4, 5)])
    assert refused.value.events == {1: {"transaction_id": ("value_already_exist",)}}
    assert await client.event("om:3") is None
    stored = await client.event("om:2")
    assert stored is not None
    assert stored.timestamp == seconds(START + timedelta(hours=2))
    assert stored.properties["calls"] == 80
    with pytest.raises(LagoRejected, match="too_many_events"):
        await client.send_events([usage(10 + n, 1) for n in range(101)])


async def test_a_month_is_invoiced_at_the_price_that_was_read_before(client: LagoClient, lago: Lago) -> None:
    await set_up(client)
    await client.send_events([usage(1, 70), usage(2, 81)])
    customer, subscription = await client.customer("tpp/1"), await client.subscription("sub/1")
    assert customer is not None
    assert subscription is not None
    assert subscription.plan is not None
    table = plan_prices(subscription.plan, customer, await client.taxes()).prices["api_calls"]
    expected_cents = (price(table, 151) * 100).quantize(Decimal(1), ROUND_HALF_UP)
    lago.advance_to(START + timedelta(days=30))
    used = await client.current_usage("tpp/1", "sub/1")
    assert used is not None
    assert used.charges[0].units == 151
    assert used.to_ms == subscription.period_end_ms
    assert abs(used.total_cents - expected_cents) <= 1
    lago.advance_to(datetime(2026, 9, 1, 1, tzinfo=UTC))
    (row,) = await client.invoices("tpp/1")
    invoice = await client.invoice(row.lago_id)
    assert invoice is not None
    assert (row.status, row.fees, row.periods) == ("finalized", None, None)
    assert invoice.fees is not None
    (fee,) = [fee for fee in invoice.fees if fee.kind == "charge"]
    assert fee.metric_code == "api_calls"
    assert fee.units == 151
    assert abs(fee.amount_cents + fee.taxes_cents - expected_cents) <= 1
    assert invoice.periods is not None
    (period,) = invoice.periods
    assert (period.from_ms, period.to_ms) == (subscription.period_start_ms, subscription.period_end_ms)
    assert period.plan_code == "pro"
    (wallet,) = await client.wallets("tpp/1")
    assert wallet.balance_cents == 5000 - invoice.prepaid_cents
    assert invoice.prepaid_cents == fee.amount_cents + fee.taxes_cents
    (debit,) = await client.wallet_transactions(wallet.lago_id, transaction_status="invoiced")
    assert (debit.type, debit.invoice_id) == ("outbound", invoice.lago_id)
    assert debit.amount * 100 == invoice.prepaid_cents


async def test_a_top_up_reaches_the_wallet(client: LagoClient) -> None:
    await set_up(client)
    (wallet,) = await client.wallets("tpp/1")
    (made,) = await client.top_up({"wallet_id": wallet.lago_id, "granted_credits": "12.34"})
    assert (made.amount, made.kind) == (Decimal("12.34"), "granted")
    again = await client.wallet(wallet.lago_id)
    assert again is not None
    assert again.balance_cents == 6234


async def test_a_long_list_is_read_whole(client: LagoClient) -> None:
    await set_up(client)
    (wallet,) = await client.wallets("tpp/1")
    for _ in range(120):
        await client.top_up({"wallet_id": wallet.lago_id, "granted_credits": "0.01"})
    found = await client.wallet_transactions(wallet.lago_id)
    assert len(found) == len({each.lago_id for each in found}) == 121
    assert sum(each.amount for each in found) == Decimal("51.20")
    now = await client.wallet(wallet.lago_id)
    assert now is not None
    assert now.balance_cents == 5120


async def test_the_public_key_and_the_webhook_endpoints(client: LagoClient) -> None:
    assert (await client.public_key()).startswith(b"-----BEGIN PUBLIC KEY-----")
    made = await client.create_webhook_endpoint(
        {"webhook_url": "http://127.0.0.1:9/webhooks/lago", "signature_algo": "hmac", "event_types": ["wallet.updated"]}
    )
    assert await client.webhook_endpoints() == (made,)
    changed = await client.update_webhook_endpoint(
        made.lago_id, {"webhook_url": made.url, "signature_algo": "hmac", "name": "quota"}
    )
    assert changed.lago_id == made.lago_id


async def test_a_plan_can_be_changed(client: LagoClient) -> None:
    await set_up(client)
    plan = await client.plan("pro")
    assert plan is not None
    (charge,) = plan.charges
    metric = await client.metric("api_calls")
    assert metric is not None
    body = {"id": charge.lago_id, "billable_metric_id": metric.lago_id, "charge_model": "standard",
            "properties": {"amount": "0.02"}}  # fmt: skip
    changed = await client.update_plan("pro", {"name": "Pro 2", "charges": [body]})
    assert (changed.name, changed.charges[0].properties["amount"]) == ("Pro 2", "0.02")


async def test_a_wrong_key_is_said_to_be_one(lago: Lago) -> None:
    async with Server(lago.app()) as server, LagoClient(settings(server.url, api_key="wrong")) as client:
        with pytest.raises(LagoUnauthorized):
            await client.taxes()
