"""Lago's own client, side by side: both read the same answers, and must read the same values from them.

The official one waits without giving way to others, so it runs in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
from lago_python_client.client import Client
from lago_python_client.exceptions import LagoApiError
from lago_python_client.models import BatchEvent
from lago_python_client.models import Event as AnyEvent

from sidecar.billing.lago.client import LagoClient
from sidecar.billing.lago.errors import LagoRejected
from sidecar.billing.lago.models import Event, Subscription
from sidecar.sandbox.server import Server
from tests.integration.billing.lago_client.kit import KEY, Reply, Request, ScriptedLago, SkippingClock, settings
from tests.unit.billing.lago import samples

ANSWERS: dict[str, dict[str, Any]] = {
    "/customers/tpp-1": {"customer": samples.customer()},
    "/customers/tpp-1/current_usage": {"customer_usage": samples.current_usage()},
    "/wallets": samples.page("wallets", samples.wallet(), samples.wallet("w2", status="terminated", priority=3)),
    "/wallets/w1": {"wallet": samples.wallet()},
    "/wallets/w1/wallet_transactions": samples.page(
        "wallet_transactions", samples.wallet_transaction(), samples.wallet_transaction("t2", settled_at=None)
    ),
    "/subscriptions": samples.page("subscriptions", samples.subscription()),
    "/subscriptions/sub-1": {"subscription": samples.subscription(plan=samples.plan())},
    "/plans/pro": {"plan": samples.plan(trial_period=7.5)},
    "/billable_metrics/api_calls": {"billable_metric": samples.metric()},
    "/invoices/i2": {"invoice": samples.invoice(is_whole=True, customer=samples.customer())},
    "/taxes": samples.page("taxes", samples.tax("a", 8.875), samples.tax("b", 20, applied_to_organization=True)),
    "/webhook_endpoints": samples.page("webhook_endpoints", samples.webhook_endpoint()),
    "/events/om:1": {"event": samples.event()},
    "/webhooks/json_public_key": {
        "webhook": {"public_key": "LS0tLS1CRUdJTiBQVUJMSUMgS0VZLS0tLS0KQUFB\nLS0tLS1FTkQgUFVCTElDIEtFWS0tLS0tCg==\n"}
    },
}

# Its annotations want every field, though pydantic fills them in.
OfficialEvent: Any = AnyEvent


def ms(text: str | None) -> int | None:
    return None if text is None else round(datetime.fromisoformat(text).timestamp() * 1000)


def same(ours: Any, theirs: Any, pairs: dict[str, str]) -> None:
    """Attributes of ours by those of theirs; texts of numbers and of times are compared by what they mean."""
    for mine, other in pairs.items():
        found, wanted = getattr(ours, mine), getattr(theirs, other)
        if mine.endswith("_ms"):
            wanted = ms(wanted)
        elif isinstance(found, Decimal):
            wanted = Decimal(str(wanted))
        assert found == wanted, (mine, other)


async def both(
    ours: Callable[[LagoClient], Any], theirs: Callable[[Any], Any], answers: dict[str, Any] | None = None
) -> tuple[Any, Any, ScriptedLago]:
    def script(request: Request) -> Reply:
        return 200, (answers or ANSWERS)[request.path.replace("%3A", ":")]

    lago = ScriptedLago(script)
    async with Server(lago.app()) as server, LagoClient(settings(server.url), clock=SkippingClock()) as client:
        official = Client(api_key=KEY, api_url=f"{server.url}/")
        return await ours(client), await asyncio.to_thread(theirs, official), lago


async def test_a_customer() -> None:
    mine, other, lago = await both(lambda c: c.customer("tpp-1"), lambda c: c.customers.find("tpp-1"))
    same(mine, other, {"lago_id": "lago_id", "external_id": "external_id", "currency": "currency",
                       "timezone": "applicable_timezone"})  # fmt: skip
    assert mine.metadata == {each.key: each.value for each in other.metadata.__root__}
    assert [tax.rate for tax in mine.taxes] == [Decimal(str(each.rate)) for each in other.taxes.__root__]
    assert lago.requests[0].path == lago.requests[1].path
    assert lago.requests[0].headers["authorization"] == lago.requests[1].headers["authorization"]


WALLET = {
    "lago_id": "lago_id", "customer": "external_customer_id", "status": "status", "currency": "currency",
    "balance_cents": "balance_cents", "credits_balance": "credits_balance", "consumed_credits": "consumed_credits",
    "rate_amount": "rate_amount", "priority": "priority", "created_at_ms": "created_at", "name": "name",
    "expires_at_ms": "expiration_at", "terminated_at_ms": "terminated_at", "code": "code",
}  # fmt: skip


async def test_wallets() -> None:
    mine, other, lago = await both(
        lambda c: c.wallets("tpp-1"), lambda c: c.wallets.find_all({"external_customer_id": "tpp-1"})["wallets"]
    )
    assert len(mine) == len(other) == 2
    for ours, theirs in zip(mine, other, strict=True):
        same(ours, theirs, WALLET)
        assert list(ours.fee_types) == theirs.applies_to.fee_types
        assert list(ours.metric_codes) == theirs.applies_to.billable_metric_codes
    assert lago.requests[0].query[0] == lago.requests[1].query[0]


async def test_wallet_transactions() -> None:
    mine, other, _ = await both(
        lambda c: c.wallet_transactions("w1"),
        lambda c: c.wallet_transactions.find_all("w1")["wallet_transactions"],
    )
    for ours, theirs in zip(mine, other, strict=True):
        same(ours, theirs, {
            "lago_id": "lago_id", "wallet_id": "lago_wallet_id", "status": "status", "type": "transaction_type",
            "kind": "transaction_status", "amount": "amount", "created_at_ms": "created_at",
            "settled_at_ms": "settled_at", "invoice_id": "lago_invoice_id",
            "voided_invoice_id": "lago_voided_invoice_id",
        })  # fmt: skip


SUBSCRIPTION = {
    "lago_id": "lago_id", "external_id": "external_id", "customer": "external_customer_id", "plan_code": "plan_code",
    "status": "status", "billing_time": "billing_time", "started_at_ms": "started_at",
    "terminated_at_ms": "terminated_at", "previous_plan_code": "previous_plan_code",
    "next_plan_code": "next_plan_code", "period_start_ms": "current_billing_period_started_at",
}  # fmt: skip


async def test_subscriptions() -> None:
    mine, other, lago = await both(
        lambda c: c.subscriptions("tpp-1", statuses=("active", "pending")),
        lambda c: c.subscriptions.find_all({"external_customer_id": "tpp-1", "status[]": ["active", "pending"]}),
    )
    (ours,), (theirs,) = mine, other["subscriptions"]
    same(ours, theirs, SUBSCRIPTION)
    assert lago.requests[0].query[:3] == lago.requests[1].query


async def test_a_subscription() -> None:
    mine, other, _ = await both(lambda c: c.subscription("sub-1"), lambda c: c.subscriptions.find("sub-1"))
    assert isinstance(mine, Subscription)
    same(mine, other, SUBSCRIPTION)
    assert mine.period_end_ms == (ms(other.current_billing_period_ending_at) or 0) + 1000


async def test_a_plan_and_its_charges() -> None:
    mine, other, _ = await both(lambda c: c.plan("pro"), lambda c: c.plans.find("pro"))
    same(mine, other, {
        "lago_id": "lago_id", "code": "code", "name": "name", "interval": "interval", "amount_cents": "amount_cents",
        "currency": "amount_currency", "pay_in_advance": "pay_in_advance", "trial_days": "trial_period",
    })  # fmt: skip
    (ours,), (theirs,) = mine.charges, other.charges.__root__
    same(ours, theirs, {
        "lago_id": "lago_id", "metric_code": "billable_metric_code", "model": "charge_model", "prorated": "prorated",
        "pay_in_advance": "pay_in_advance", "min_amount_cents": "min_amount_cents", "invoiceable": "invoiceable",
    })  # fmt: skip
    assert ours.properties["amount"] == theirs.properties["amount"]


async def test_a_metric() -> None:
    mine, other, _ = await both(lambda c: c.metric("api_calls"), lambda c: c.billable_metrics.find("api_calls"))
    same(mine, other, {
        "lago_id": "lago_id", "code": "code", "name": "name", "aggregation": "aggregation_type",
        "field_name": "field_name", "recurring": "recurring", "rounding": "rounding_function",
    })  # fmt: skip


async def test_a_whole_invoice() -> None:
    mine, other, _ = await both(lambda c: c.invoice("i2"), lambda c: c.invoices.find("i2"))
    same(mine, other, {
        "lago_id": "lago_id", "number": "number", "type": "invoice_type", "status": "status",
        "payment_status": "payment_status", "currency": "currency", "fees_cents": "fees_amount_cents",
        "taxes_cents": "taxes_amount_cents", "prepaid_cents": "prepaid_credit_amount_cents",
        "total_cents": "total_amount_cents", "due_cents": "total_due_amount_cents", "issuing_date": "issuing_date",
        "voided_at_ms": "voided_at",
    })  # fmt: skip
    (period,), (their_period,) = mine.periods, other.billing_periods.__root__
    same(period, their_period, {
        "subscription_id": "lago_subscription_id", "external_subscription_id": "external_subscription_id",
        "from_ms": "charges_from_datetime", "reason": "invoicing_reason",
    })  # fmt: skip
    assert period.to_ms == (ms(their_period.charges_to_datetime) or 0) + 1000
    (fee,), (their_fee,) = mine.fees, other.fees.__root__
    same(fee, their_fee, {
        "lago_id": "lago_id", "amount_cents": "amount_cents", "taxes_cents": "taxes_amount_cents", "units": "units",
        "from_ms": "from_date",
    })  # fmt: skip
    assert (fee.kind, fee.metric_code) == (their_fee.item.type, their_fee.item.code)


async def test_current_usage() -> None:
    mine, other, lago = await both(
        lambda c: c.current_usage("tpp-1", "sub-1"),
        lambda c: c.customers.current_usage("tpp-1", "sub-1", apply_taxes="true"),
    )
    same(mine, other, {"from_ms": "from_datetime", "amount_cents": "amount_cents", "taxes_cents": "taxes_amount_cents",
                       "total_cents": "total_amount_cents"})  # fmt: skip
    (ours,), (theirs,) = mine.charges, other.charges_usage
    same(ours, theirs, {"units": "units", "amount_cents": "amount_cents", "events_count": "events_count"})
    assert (ours.metric_code, ours.charge_id) == (theirs.billable_metric.code, theirs.charge.lago_id)
    assert lago.requests[0].query == lago.requests[1].query


async def test_taxes_and_webhook_endpoints() -> None:
    mine, other, _ = await both(lambda c: c.taxes(), lambda c: c.taxes.find_all()["taxes"])
    for ours, theirs in zip(mine, other, strict=True):
        same(ours, theirs, {"code": "code", "rate": "rate", "is_default": "applied_to_organization"})
    mine, other, _ = await both(
        lambda c: c.webhook_endpoints(), lambda c: c.webhook_endpoints.find_all()["webhook_endpoints"]
    )
    same(mine[0], other[0], {"lago_id": "lago_id", "url": "webhook_url", "signature": "signature_algo"})


async def test_the_public_key() -> None:
    mine, other, _ = await both(lambda c: c.public_key(), lambda c: c.webhooks.public_key())
    assert mine == other


async def test_events_read_and_written() -> None:
    mine, other, _ = await both(lambda c: c.event("om:1"), lambda c: c.events.find("om:1"))
    same(mine, other, {"transaction_id": "transaction_id", "code": "code",
                       "external_subscription_id": "external_subscription_id"})  # fmt: skip
    assert int(mine.timestamp * 1000) == ms(other.timestamp)
    assert {name: str(value) for name, value in mine.properties.items()} == {
        name: str(value) for name, value in other.properties.items()
    }
    event = Event("om:1", "sub-1", "api_calls", Decimal("1785543009.5"), {"calls": Decimal(12)})
    theirs = OfficialEvent(
        transaction_id="om:1", external_subscription_id="sub-1", code="api_calls", timestamp="1785543009.5",
        properties={"calls": 12},
    )  # fmt: skip
    taken = {"/events/batch": {"events": [samples.event()]}}
    _, _, lago = await both(
        lambda c: c.send_events([event]), lambda c: c.events.batch_create(BatchEvent(events=[theirs])), taken
    )
    ours_sent, theirs_sent = lago.requests
    assert (ours_sent.method, ours_sent.path) == (theirs_sent.method, theirs_sent.path)
    assert ours_sent.body["events"][0].items() <= theirs_sent.body["events"][0].items()


async def test_a_refusal_has_the_same_reasons() -> None:
    details = {"0": {"transaction_id": ["value_already_exist"]}}
    body = {"status": 422, "error": "Unprocessable Entity", "code": "validation_errors", "error_details": details}
    lago = ScriptedLago([(422, body)])
    async with Server(lago.app()) as server, LagoClient(settings(server.url)) as client:
        official = Client(api_key=KEY, api_url=f"{server.url}/")
        batch = BatchEvent(events=[OfficialEvent(transaction_id="a", external_subscription_id="b", code="c")])
        with pytest.raises(LagoApiError) as theirs:
            await asyncio.to_thread(official.events.batch_create, batch)
        with pytest.raises(LagoRejected) as ours:
            await client.send_events([Event("a", "b", "c", Decimal(1), {})])
    assert ours.value.status == theirs.value.status_code
    assert {
        str(at): {name: list(codes) for name, codes in found.items()} for at, found in ours.value.events.items()
    } == (theirs.value.response["error_details"])
