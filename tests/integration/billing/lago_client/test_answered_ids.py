"""An answer is about what was asked for, or it is an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sidecar.billing.lago.client import LagoClient
from sidecar.billing.lago.errors import LagoMalformed
from sidecar.sandbox.lago.lago_server import Lago, LagoConfig
from sidecar.sandbox.server import Server
from tests.integration.billing.lago_client.kit import settings, talking
from tests.unit.billing.lago import samples

Ask = Callable[[LagoClient, str], Any]

# What is asked, the segment that must arrive, and somebody else's object in answer.
READS: dict[str, tuple[Ask, str, dict[str, Any]]] = {
    "customer": (lambda c, id_: c.customer(id_), "/customers/{}", {"customer": samples.customer("acme")}),
    "wallet": (lambda c, id_: c.wallet(id_), "/wallets/{}", {"wallet": samples.wallet("acme")}),
    "transactions": (
        lambda c, id_: c.wallet_transactions(id_),
        "/wallets/{}/wallet_transactions",
        samples.page("wallet_transactions", samples.wallet_transaction(lago_wallet_id="acme")),
    ),
    "subscription": (
        lambda c, id_: c.subscription(id_),
        "/subscriptions/{}",
        {"subscription": samples.subscription("acme", plan=samples.plan())},
    ),
    "plan": (lambda c, id_: c.plan(id_), "/plans/{}", {"plan": samples.plan("acme")}),
    "metric": (lambda c, id_: c.metric(id_), "/billable_metrics/{}", {"billable_metric": samples.metric("acme")}),
    "invoice": (lambda c, id_: c.invoice(id_), "/invoices/{}", {"invoice": samples.invoice("acme", is_whole=True)}),
    "event": (lambda c, id_: c.event(id_), "/events/{}", {"event": samples.event("acme")}),
}
WRITES: dict[str, tuple[Ask, str, dict[str, Any]]] = {
    "plan": (lambda c, id_: c.update_plan(id_, {}), "/plans/{}", {"plan": samples.plan("acme")}),
    "metric": (
        lambda c, id_: c.update_metric(id_, {}),
        "/billable_metrics/{}",
        {"billable_metric": samples.metric("acme")},
    ),
    "endpoint": (
        lambda c, id_: c.update_webhook_endpoint(id_, {}),
        "/webhook_endpoints/{}",
        {"webhook_endpoint": samples.webhook_endpoint(lago_id="acme")},
    ),
    "tax": (
        lambda c, id_: c.update(f"/taxes/{id_.replace('.', '%2E')}", {"tax": {}}),
        "/taxes/{}",
        {"tax": samples.tax("acme")},
    ),
    "wallet": (
        lambda c, id_: c.update(f"/wallets/{id_.replace('.', '%2E')}", {"wallet": {}}),
        "/wallets/{}",
        {"wallet": samples.wallet("acme")},
    ),
}
ALL = {f"GET {name}": row for name, row in READS.items()} | {f"PUT {name}": row for name, row in WRITES.items()}


@pytest.mark.parametrize(("ask", "path", "answer"), ALL.values(), ids=ALL)
async def test_somebody_else_s_object_is_an_error_and_nobody_s(ask: Ask, path: str, answer: dict[str, Any]) -> None:
    async with talking([(200, answer)]) as (client, lago):
        with pytest.raises(LagoMalformed, match=r"it answers '.*acme', not 'acme\.example'"):
            await ask(client, "acme.example")
        assert [each.path for each in lago.requests] == [path.format("acme%2Eexample")], "asked once, and whole"
        assert client.metrics.failures == {"malformed": 1}
        assert await ask(client, "acme") is not None


async def test_a_current_usage_is_asked_for_with_the_whole_id() -> None:
    async with talking([(200, {"customer_usage": samples.current_usage()})]) as (client, lago):
        await client.current_usage("acme.example", "sub.1")
    assert lago.requests[0].path == "/customers/acme%2Eexample/current_usage"
    assert lago.requests[0].query[0] == ("external_subscription_id", "sub.1")


async def test_what_a_put_renames_is_the_same_thing() -> None:
    async with talking([(200, {"plan": samples.plan("pro.2")})]) as (client, _):
        assert (await client.update_plan("pro.1", {"code": "pro.2"})).code == "pro.2"
        with pytest.raises(LagoMalformed):
            await client.update_plan("pro.1", {"code": "pro.3"})


@pytest.mark.parametrize("id_", ["acme.example", "a.b.c", ".acme", "acme.", "PSDDE-BAFIN-1.2", "acme.json"])
async def test_ids_with_dots_are_read_whole_where_a_dot_ends_an_id(id_: str) -> None:
    """The stand-in's paths are cut as Rails cuts them, so an id that is not encoded finds ``acme``, or nothing."""
    stand_in = Lago(LagoConfig())
    async with (
        Server(stand_in.app()) as server,
        LagoClient(settings(server.url, api_key=stand_in.config.api_key)) as client,
    ):
        metric = await client.create_metric(
            {"name": "m", "code": id_, "aggregation_type": "sum_agg", "field_name": "calls"}
        )
        charge = {"billable_metric_id": metric.lago_id, "charge_model": "standard", "properties": {"amount": "1"}}
        await client.create_plan(
            {"name": "p", "code": id_, "interval": "monthly", "amount_cents": 0, "amount_currency": "EUR",
             "pay_in_advance": False, "charges": [charge]}
        )  # fmt: skip
        for name in ("acme", id_):
            await client.create_customer({"external_id": name, "currency": "EUR"})
        await client.create_subscription(
            {"external_customer_id": id_, "external_id": id_, "plan_code": id_, "billing_time": "calendar"}
        )
        customer, subscription = await client.customer(id_), await client.subscription(id_)
        plan, found, usage = await client.plan(id_), await client.metric(id_), await client.current_usage(id_, id_)
    assert customer is not None
    assert customer.external_id == id_
    assert subscription is not None
    assert (subscription.external_id, subscription.customer) == (id_, id_)
    assert plan is not None
    assert found is not None
    assert (plan.code, found.code) == (id_, id_)
    assert usage is not None
    assert [charge.metric_code for charge in usage.charges] == [id_]
