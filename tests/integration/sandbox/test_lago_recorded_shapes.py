"""The stand-in's answers and webhooks have the keys, types and text formats of a real Lago's."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.integration.sandbox.lago_kit import Client, config, running, standard
from tests.real_lago import recorded
from tests.real_lago.shapes import differences, shape_of

# By the last part of a place: columns that may be null in Lago, and were not in what was recorded.
NULLABLE = {
    "last_balance_sync_at": "no credits have come or gone yet",
    "last_consumed_credit_at": "nothing was consumed yet",
    "settled_at": "the payment is pending",
    "remaining_amount_cents": "what goes out of a wallet leaves nothing over",
    "remaining_credit_amount": "what goes out of a wallet leaves nothing over",
    "prepaid_granted_credit_amount_cents": "no wallet has paid",
    "next_plan_code": "it ended without a successor",
    "description": "the metric has none",
}
NOT_SENT = {
    "alert.triggered", "credit_note.generated", "customer.checkout_url_generated",
    "customer.payment_provider_error", "customer.vies_check", "fee.created", "invoice.deleted", "invoice.generated",
    "invoice.one_off_created", "invoice.payment_dispute_lost", "invoice.payment_overdue", "invoice.resynced",
    "payment_request.created", "payment_request.payment_failure", "payment_request.payment_status_updated",
    "subscription.canceled", "subscription.incomplete", "subscription.termination_alert",
    "subscription.usage_threshold_reached",
}  # fmt: skip
"""Recorded types of what the stand-in lacks: alerts, payment providers, documents, one-off invoices,
payment requests, thresholds, overdue payments, charges billed in advance."""


def of_kind(kind: str) -> list[Any]:
    return [json.loads(each.text) for each in recorded.answers() if each.name.partition("_")[0] == kind]


def webhooks_by_type() -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = defaultdict(list)
    for body in recorded.webhooks():
        webhook = json.loads(body)
        found[webhook["webhook_type"]].append(
            {"object_type": webhook["object_type"], **webhook[webhook["object_type"]]}
        )
    return found


SUBSCRIPTIONS = (("tpp", "sub"), ("other", "other-sub"))


async def seeded(client: Client) -> None:
    """A customer of everything, over the end of a month."""
    await client.post(
        "/webhook_endpoints", {"webhook_endpoint": {"webhook_url": "http://127.0.0.1:9/", "signature_algo": "hmac"}}
    )
    await client.post("/taxes", {"tax": {"name": "VAT", "code": "vat", "rate": "20"}})
    calls, payments = await client.metric(description="Calls"), await client.metric("payments")
    charges = [standard(calls, "0.05"), standard(payments, "0.333")]
    await client.plan(charges=charges, amount_cents=1000)
    await client.plan("max", charges=charges, amount_cents=2000, trial_period=10)
    await client.plan("min", charges=charges)
    metadata = [{"key": "quota_mode", "value": "prepaid", "display_in_invoice": False}]
    await client.customer(tax_codes=["vat"], metadata=metadata, name="TPP")
    await client.customer(name="The TPP")
    await client.customer("other", name="Other", billing_configuration={"invoice_grace_period": 3})
    await client.subscribe(name="TPP")
    await client.post(
        "/subscriptions",
        {
            "subscription": {
                "external_customer_id": "other",
                "plan_code": "basic",
                "external_id": "other-sub",
                "name": "",
            }
        },
    )
    wallet = await client.wallet(name="w", granted_credits="5", paid_credits="3")
    await client.top_up(wallet, granted_credits="2.5")
    second = await client.wallet(name="second", expiration_at="2025-06-20T00:00:00Z")
    await client.put(f"/wallets/{second['lago_id']}", {"wallet": {"name": "third"}})
    half = {"code": "half", "name": "Half", "coupon_type": "percentage", "percentage_rate": "50", "frequency": "once",
            "expiration": "no_expiration"}  # fmt: skip
    await client.post("/coupons", {"coupon": half})
    await client.post("/applied_coupons", {"applied_coupon": {"external_customer_id": "tpp", "coupon_code": "half"}})
    await client.use(7, "2025-06-10 13:00")
    await client.use(5, "2025-06-10 13:00", code="payments")
    await client.use(1, "2025-06-10 13:00", code="unknown")
    client.advance("2025-07-01 01:00")
    await client.subscribe("max", "other-sub", external_customer_id="other", name="Other")
    await client.subscribe("min", name="TPP")
    client.advance("2025-08-01 01:00")
    newest = (await client.invoices("invoice_type=subscription&status=finalized"))[-1]
    credit = {"invoice_id": newest["lago_id"], "credit_amount_cents": 1, "reason": "other"}
    await client.post("/credit_notes", {"credit_note": credit})
    await client.post(f"/invoices/{newest['lago_id']}/void")
    await client.post("/sandbox/payments", {"mode": "fail"})
    await client.top_up(wallet, paid_credits="3")
    await client.delete(f"/wallets/{wallet['lago_id']}")
    await client.put("/plans/basic", {"plan": {"name": "Basic"}})
    await client.put("/billable_metrics/payments", {"billable_metric": {"name": "Payments"}})
    await client.plan("gone")
    await client.delete("/plans/gone")
    await client.metric("extra", description="Extra")
    await client.delete("/billable_metrics/extra")


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with running(config(webhook_retry_waits_s=())) as made:
        await seeded(made)
        yield made


def unlike(real: list[Any], ours: list[Any]) -> list[str]:
    assert real
    assert ours
    found = differences(shape_of(real), shape_of(ours))
    return [
        each for each in found if not (": null instead of" in each and each.split(":")[0].rsplit(".", 1)[1] in NULLABLE)
    ]


ANSWERS = {
    "customer": ("/customers/tpp", "/customers/other"),
    "sub": ("/subscriptions/sub", "/subscriptions/other-sub"),
    "subs": ("/subscriptions?status[]=active&status[]=pending&status[]=terminated",),
    "wallets": ("/wallets?external_customer_id=tpp",),
    "invoices": ("/invoices?invoice_type=subscription",),
    "usage": tuple(f"/customers/{who}/current_usage?external_subscription_id={sub}" for who, sub in SUBSCRIPTIONS),
    "taxes": ("/taxes",),
    "plans": ("/plans",),
    "metrics": ("/billable_metrics",),
    "endpoints": ("/webhook_endpoints",),
}


async def test_answers_have_the_recorded_keys_types_and_formats(client: Client) -> None:
    wrong = {kind: unlike(of_kind(kind), [await client.get(path) for path in paths]) for kind, paths in ANSWERS.items()}
    wrong["invoice"] = unlike(of_kind("invoice"), [{"invoice": each} for each in await client.invoices()])
    # A customer in a list has fewer parts than one alone, and no list of customers was recorded (lago-api
    # ``customers_controller.rb``: taxes and integration_customers).
    (first, *_) = (await client.get("/customers"))["customers"]
    (alone,) = of_kind("customer")[:1]
    assert alone["customer"].keys() - first.keys() == {"applicable_invoice_custom_sections", "error_details"}
    assert {kind: found for kind, found in wrong.items() if found} == {}
    assert ANSWERS.keys() | {"invoice"} == {each.name.partition("_")[0] for each in recorded.answers()}


async def test_webhooks_have_the_recorded_keys_types_and_formats(client: Client) -> None:
    sent: dict[str, list[Any]] = defaultdict(list)
    for each in client.lago.webhooks.log:
        sent[each.notice.type].append({"object_type": each.notice.object_type, **each.notice.view()})
    real = webhooks_by_type()
    wrong = {type_: unlike(real[type_], found) for type_, found in sent.items()}
    assert {type_: found for type_, found in wrong.items() if found} == {}
    assert real.keys() - sent.keys() == NOT_SENT


def test_what_differs_is_found_in_keys_types_and_formats() -> None:
    real = [{"at": "2026-01-01T00:00:00Z", "n": 1, "list": [{"x": "1.0"}], "always": None}]
    same = [{"at": "2027-02-03T04:05:06Z", "n": 2, "list": [], "always": "text"}]
    assert not unlike(real, same)
    ours = [{"at": "2026-01-01T00:00:00+00:00", "n": "1", "list": [{"x": "1", "y": 1}]}]
    assert unlike(real, ours) == [
        ".always: is missing",
        ".at: instant with an offset instead of instant",
        ".list[].y: is not in Lago's",
        ".list[].x: integer in text instead of decimal",
        ".n: integer in text instead of integer",
    ]
