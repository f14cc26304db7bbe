"""The official Lago client (PyPI ``lago-python-client``) finds nothing amiss with the stand-in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.sandbox.lago_kit import API_KEY, config, running, unix

client_module = pytest.importorskip("lago_python_client.client", reason="lago-python-client is not installed")
models = pytest.importorskip("lago_python_client.models", reason="lago-python-client is not installed")
exceptions = pytest.importorskip("lago_python_client.exceptions", reason="lago-python-client is not installed")


async def test_the_official_client_sells_meters_and_bills() -> None:
    async with running(config()) as stand_in:
        official = client_module.Client(api_key=API_KEY, api_url=stand_in.url)

        async def ask(call: Callable[..., Any], *arguments: object, **options: object) -> Any:
            """The client blocks, so it runs beside the server's loop."""
            return await asyncio.to_thread(call, *arguments, **options)

        customer = await ask(official.customers.create, models.Customer(external_id="tpp", currency="EUR", name="TPP"))
        assert customer.external_id == "tpp"
        metric = await ask(
            official.billable_metrics.create,
            models.BillableMetric(
                name="API calls", code="api_calls", aggregation_type="sum_agg", field_name="calls", recurring=False
            ),
        )
        charge = models.Charge(
            billable_metric_id=metric.lago_id, charge_model="standard", properties={"amount": "0.05"}
        )
        plan = await ask(
            official.plans.create,
            models.Plan(
                name="Basic", code="basic", interval="monthly", amount_cents=0, amount_currency="EUR",
                pay_in_advance=False, charges=models.Charges(__root__=[charge]),
            ),
        )  # fmt: skip
        assert plan.charges.__root__[0].properties["amount"] == "0.05"
        wallet = await ask(
            official.wallets.create,
            models.Wallet(
                external_customer_id="tpp", rate_amount="1", name="Main", currency="EUR", granted_credits="10"
            ),
        )
        await ask(
            official.wallet_transactions.create,
            models.WalletTransaction(wallet_id=wallet.lago_id, paid_credits="5.0", granted_credits="0.0"),
        )
        subscription = await ask(
            official.subscriptions.create,
            models.Subscription(external_customer_id="tpp", plan_code="basic", external_id="sub"),
        )
        assert subscription.status == "active"
        at = int(unix("2025-06-10 12:00"))
        events = [
            models.Event(
                transaction_id=f"t{number}", code="api_calls", external_subscription_id="sub", timestamp=at,
                properties={"calls": 20},
            )
            for number in range(3)
        ]  # fmt: skip
        await ask(official.events.batch_create, models.BatchEvent(events=events))
        usage = await ask(official.customers.current_usage, "tpp", "sub")
        assert (usage.amount_cents, usage.charges_usage[0].units) == (300, "60.0")
        with pytest.raises(exceptions.LagoApiError) as caught:
            await ask(official.events.batch_create, models.BatchEvent(events=events[:1]))
        assert caught.value.status_code == 422
        stand_in.advance("2025-07-01 00:10")
        listed = await ask(official.wallets.find_all, {"external_customer_id": "tpp"})
        assert [item.balance_cents for item in listed["wallets"]] == [1200]
        moved = await ask(official.wallet_transactions.find_all, wallet.lago_id)
        assert sorted(item.transaction_status for item in moved["wallet_transactions"]) == [
            "granted", "invoiced", "purchased",
        ]  # fmt: skip
        invoices = await ask(
            official.invoices.find_all, {"external_customer_id": "tpp", "invoice_type": "subscription"}
        )
        found = await ask(official.invoices.find, invoices["invoices"][0].lago_id)
        assert (found.fees_amount_cents, found.prepaid_credit_amount_cents, found.total_amount_cents) == (300, 300, 0)
        assert found.number == "LAG-1234-001-002"
        key = await ask(official.webhooks.public_key)
        assert key is not None
