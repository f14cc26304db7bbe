"""A catalog in Lago and OpenMeter: made once, made again without a change, changed in place, stopped and taken up."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from sidecar.billing.catalog.apply import ApplyOutcome, apply
from sidecar.billing.catalog.changes import Change, FieldChange
from sidecar.billing.lago.object_requests import PER_PAGE
from sidecar.metering.openmeter.meter_query import Meter
from sidecar.sandbox.lago.lago_server import LagoFault
from sidecar.sandbox.openmeter.openmeter_events import CloudEvent
from tests.integration.billing.catalog.conftest import World

EXAMPLE = (Path(__file__).parents[4] / "examples" / "catalog.yaml").read_text()

MINUTE_MS = 1_767_225_600_000

FILE = """
taxes: [{ code: vat, rate: "20" }]
metrics: [{ code: api_calls }]
plans:
  - code: pro
    amount: "99.00"
    currency: USD
    charges: [{ metric: api_calls, model: standard, amount: "0.01" }]
webhook_endpoint: { url: "https://gateway.example/webhooks/lago", event_types: [wallet.updated] }
customers:
  - id: tpp-1
    plan: pro
    metadata: { quota_mode: prepaid }
    wallets: [{ code: main, granted_credits: "10", applies_to: [api_calls] }]
"""


def names(changes: tuple[Change, ...]) -> list[str]:
    return [change.kind for change in changes]


async def raw(world: World, path: str, name: str) -> dict[str, Any]:
    """An object as Lago's REST shows it, for what the client does not read."""
    headers = {"Authorization": f"Bearer {world.lago.config.api_key}"}
    async with aiohttp.ClientSession(headers=headers) as session, session.get(f"{world.url}/api/v1{path}") as answer:
        found: dict[str, Any] = (await answer.json())[name]
        return found


async def test_the_shipped_example_is_applied_once_and_the_second_time_nothing_is_written(world: World) -> None:
    first = await world.apply(EXAMPLE)
    assert (first.failed, first.left, first.reason) == (None, (), "")
    assert len(first.done) == 16
    before = world.written()
    assert await world.actions(EXAMPLE) == {"keep"}
    second = await world.apply(EXAMPLE)
    assert second == ApplyOutcome(())
    assert world.written() == before


async def test_the_shipped_example_has_the_platform_pages_metric_plan_and_wallet(world: World) -> None:
    await world.apply(EXAMPLE)
    metric = await raw(world, "/billable_metrics/api_calls", "billable_metric")
    assert (metric["aggregation_type"], metric["field_name"], metric["recurring"]) == ("sum_agg", "calls", False)
    plan = await raw(world, "/plans/api_pro", "plan")
    assert (plan["name"], plan["amount_cents"], plan["amount_currency"]) == ("API Pro Plan", 9900, "USD")
    ranges = plan["charges"][0]["properties"]["graduated_ranges"]
    assert [(each["from_value"], each["to_value"], each["per_unit_amount"]) for each in ranges] == [
        (0, 10000, "0"), (10001, None, "0.001"),
    ]  # fmt: skip
    (wallet,) = await world.client.wallets("tpp-12345")
    assert wallet.balance_cents == 110_000
    assert wallet.metric_codes == ("api_calls", "payments")
    assert {each.plan_code for each in await world.client.subscriptions("tpp-pro")} == {"api_pro"}


async def test_names_and_descriptions_arrive(world: World) -> None:
    await world.apply(EXAMPLE)
    metric = await raw(world, "/billable_metrics/api_calls", "billable_metric")
    assert (metric["name"], metric["description"]) == ("API calls", "Number of API calls")
    assert (await raw(world, "/customers/tpp-pro", "customer"))["name"] == "TPP with a subscription"
    assert (await raw(world, "/taxes/vat_uk", "tax"))["name"] == "VAT, United Kingdom"


async def test_what_has_no_name_is_called_by_its_code(world: World) -> None:
    await world.apply(FILE)
    assert (await raw(world, "/plans/pro", "plan"))["name"] == "pro"
    assert (await raw(world, "/billable_metrics/api_calls", "billable_metric"))["name"] == "api_calls"


async def test_the_meter_counts_the_units_of_the_gateways_events(world: World) -> None:
    await world.apply(FILE)
    meter = await world.query.meter("api_calls")
    assert meter is not None
    assert (meter.aggregation, meter.value_property, meter.event_type) == ("SUM", "$.units", "api.call")
    assert set(meter.group_by) == {"metric", "endpoint", "method", "status_code"}


async def test_a_meter_whose_groups_count_nothing_is_repaired_and_keeps_what_else_it_has(world: World) -> None:
    groups = {"metric": "$.data.metric", "endpoint": "$.endpoint", "bank": "$.bank"}
    there = Meter("api_calls", "SUM", "$.units", "api.call", groups, name="Calls", description="Of the API")
    await world.query.create_meter(there)
    data = b'{"units":3,"metric":"api_calls"}'
    world.openmeter.keep([CloudEvent("1", "bank", "api.call", "tpp-1", MINUTE_MS // 1000, data)])
    assert await world.query.usage("api_calls", MINUTE_MS, MINUTE_MS + 60_000, window=None) == ()
    outcome = await world.apply(FILE)
    assert outcome.failed is None
    wanted = {"metric": "$.metric", "endpoint": "$.endpoint", "method": "$.method", "status_code": "$.status_code"}
    assert await world.query.meter("api_calls") == replace(there, group_by={"bank": "$.bank", **wanted})
    (row,) = await world.query.usage("api_calls", MINUTE_MS, MINUTE_MS + 60_000, window=None)
    assert (row.subject, row.units) == ("tpp-1", 3)
    assert await world.actions(FILE) == {"keep"}


async def test_a_meter_that_would_need_to_be_another_is_refused_with_its_event_from(world: World) -> None:
    later = Meter("api_calls", "SUM", "$.units", "api.call", {"metric": "$.metric"}, 2**32 * 1000)
    await world.query.create_meter(later)
    (change,) = [each for each in await world.diff(world.catalog(FILE)) if each.kind == "meter"]
    assert change.action == "refuse"
    assert FieldChange("event_from", "2106-02-07T06:28:16Z", None) in change.fields


async def test_a_price_is_changed_in_the_charge_that_is_there(world: World) -> None:
    await world.apply(FILE)
    before = await world.client.plan("pro")
    outcome = await world.apply(FILE.replace('"0.01"', '"0.02"'))
    assert (names(outcome.done), outcome.failed) == (["plan"], None)
    after = await world.client.plan("pro")
    assert before is not None
    assert after is not None
    assert after.charges == (replace(before.charges[0], properties={"amount": "0.02"}),)
    assert await world.actions(FILE.replace('"0.01"', '"0.02"')) == {"keep"}


async def test_charges_come_and_go_with_the_file(world: World) -> None:
    await world.apply(FILE)
    other = "charges: [{ metric: payments, model: package, amount: '1', size: 10 }]"
    text = FILE.replace("[{ code: api_calls }]", "[{ code: api_calls }, { code: payments }]")
    text = "\n".join(f"    {other}" if line.strip().startswith("charges") else line for line in text.splitlines())
    outcome = await world.apply(text)
    assert (names(outcome.done), outcome.failed) == (["metric", "meter", "plan"], None)
    plan = await world.client.plan("pro")
    assert plan is not None
    assert [(each.metric_code, each.model) for each in plan.charges] == [("payments", "package")]


async def test_a_charge_that_lago_has_on_other_terms_is_put_right(world: World) -> None:
    made = await world.client.create_metric(
        {"code": "api_calls", "name": "c", "aggregation_type": "sum_agg", "field_name": "calls"}
    )
    price = {"amount": "0.01"}
    charge = {
        "billable_metric_id": made.lago_id, "charge_model": "standard", "properties": price, "min_amount_cents": 100,
        "pay_in_advance": True, "filters": [{"values": {"bank": ["a"]}, "properties": price}],
    }  # fmt: skip
    await world.client.create_plan(
        {"code": "pro", "name": "pro", "interval": "monthly", "amount_cents": 9900, "amount_currency": "USD",
         "pay_in_advance": False, "charges": [charge]}
    )  # fmt: skip
    assert (await world.apply(FILE)).failed is None
    plan = await world.client.plan("pro")
    assert plan is not None
    (found,) = plan.charges
    assert (found.has_filters, found.min_amount_cents, found.pay_in_advance) == (False, 0, False)


async def test_taxes_of_plans_and_charges_arrive_and_are_taken_off_again(world: World) -> None:
    taxed = FILE.replace("currency: USD", "currency: USD\n    taxes: [vat]").replace(
        'amount: "0.01"', 'amount: "0.01", taxes: [vat]'
    )
    assert (await world.apply(taxed)).failed is None
    plan = await world.client.plan("pro")
    assert plan is not None
    assert [tax.code for tax in (*plan.taxes, *plan.charges[0].taxes)] == ["vat", "vat"]
    assert (await world.apply(FILE)).failed is None
    plan = await world.client.plan("pro")
    assert plan is not None
    assert (*plan.taxes, *plan.charges[0].taxes) == ()


async def test_a_tax_a_metric_an_endpoint_and_a_wallet_are_changed_in_place(world: World) -> None:
    await world.client.create_metric({"code": "spare", "name": "spare", "aggregation_type": "count_agg"})
    await world.apply(FILE)
    text = FILE.replace('"20"', '"17.5"').replace("[wallet.updated]", "[wallet.updated, plan.updated]")
    text = text.replace("{ code: main,", "{ code: main, priority: 2,")
    text = text.replace("[{ code: api_calls }]", "[{ code: api_calls }, { code: spare }]")
    outcome = await world.apply(text)
    assert outcome.failed is None
    assert names(outcome.done) == ["tax", "metric", "meter", "webhook endpoint", "wallet"]
    assert [tax.rate for tax in await world.client.taxes()] == [Decimal("17.5")]
    (wallet,) = await world.client.wallets("tpp-1")
    assert (wallet.priority, wallet.balance_cents) == (2, 1000)
    spare = await world.client.metric("spare")
    assert spare is not None
    assert (spare.aggregation, spare.field_name) == ("sum_agg", "calls")
    assert len(await world.client.webhook_endpoints()) == 1


async def test_metadata_of_others_stays_as_it_is_shown_on_invoices_too(world: World) -> None:
    pairs = [{"key": "crm", "value": "7", "display_in_invoice": True}, {"key": "quota_mode", "value": "postpaid"}]
    await world.client.create_customer({"external_id": "tpp-1", "currency": "USD", "metadata": pairs})
    assert (await world.apply(FILE)).failed is None
    found = (await raw(world, "/customers/tpp-1", "customer"))["metadata"]
    assert {each["key"]: (each["value"], each["display_in_invoice"]) for each in found} == {
        "crm": ("7", True),
        "quota_mode": ("prepaid", False),
    }


async def test_an_upgrade_is_made_and_then_there_is_nothing_to_do(world: World) -> None:
    await world.apply(FILE)
    text = FILE.replace("plans:\n", "plans:\n  - { code: max, amount: '500', currency: USD }\n").replace(
        "    plan: pro", "    plan: max"
    )
    outcome = await world.apply(text)
    assert (names(outcome.done), outcome.failed) == (["plan", "subscription"], None)
    active = await world.client.subscription("tpp-1")
    assert active is not None
    assert active.plan_code == "max"
    assert await world.actions(text) == {"keep"}


async def test_a_downgrade_waits_and_is_not_asked_for_again(world: World) -> None:
    await world.apply(FILE)
    text = FILE.replace("plans:\n", "plans:\n  - { code: min, amount: '1', currency: USD }\n").replace(
        "    plan: pro", "    plan: min"
    )
    outcome = await world.apply(text)
    assert (names(outcome.done), outcome.failed) == (["plan", "subscription"], None)
    assert await world.actions(text) == {"keep"}
    active = await world.client.subscription("tpp-1")
    assert active is not None
    assert (active.plan_code, active.next_plan_code) == ("pro", "min")


async def test_a_metric_of_lago_that_counts_events_and_is_used_is_refused(world: World) -> None:
    made = await world.client.create_metric(
        {"code": "api_calls", "name": "api_calls", "aggregation_type": "count_agg", "field_name": "calls"}
    )
    charge = {"billable_metric_id": made.lago_id, "charge_model": "standard", "properties": {"amount": "1"}}
    await world.client.create_plan(
        {"code": "old", "name": "old", "interval": "monthly", "amount_cents": 0, "amount_currency": "USD",
         "pay_in_advance": False, "charges": [charge]}
    )  # fmt: skip
    refused = {change.kind for change in await world.diff(world.catalog(FILE)) if change.action == "refuse"}
    assert refused == {"metric"}


async def test_a_plan_that_had_a_subscription_keeps_its_interval(world: World) -> None:
    await world.apply(FILE)
    text = FILE.replace("code: pro\n", "code: pro\n    interval: yearly\n")
    refused = [change for change in await world.diff(world.catalog(text)) if change.action == "refuse"]
    assert [change.code for change in refused] == ["pro"]
    assert "(1)" in refused[0].notes[0]


async def test_a_plan_whose_only_subscription_has_ended_keeps_its_interval_too(world: World) -> None:
    await world.apply(FILE)
    headers = {"Authorization": f"Bearer {world.lago.config.api_key}"}
    url = f"{world.url}/api/v1/subscriptions/tpp-1"
    async with aiohttp.ClientSession(headers=headers) as session, session.delete(url) as answer:
        assert answer.status == 200
    text = FILE.replace("code: pro\n", "code: pro\n    interval: yearly\n")
    refused = [change for change in await world.diff(world.catalog(text)) if change.action == "refuse"]
    assert [change.code for change in refused] == ["pro"]
    assert (world.observed.subscribers["pro"].active, world.observed.subscribers["pro"].ever) == (0, 1)


async def test_a_plan_on_a_later_page_still_uses_its_metric(world: World) -> None:
    await world.apply("metrics: [{ code: c }]\nplans: [{ code: first, currency: GBP, charges: "
                      "[{ metric: c, model: standard, amount: '1' }] }]")  # fmt: skip
    await world.apply(f"plans: [{', '.join(f'{{code: p{n}, currency: GBP}}' for n in range(PER_PAGE))}]")
    (change, _) = await world.diff(world.catalog("metrics: [{ code: c, field_name: units }]"))
    assert (change.kind, change.action) == ("metric", "refuse")
    assert "(first)" in change.notes[1]


async def test_a_wallets_credits_are_worth_its_rate(world: World) -> None:
    wallet = "{ name: Half, rate: '0.5', granted_credits: '10' }"
    await world.apply(f"customers: [{{ id: t, currency: GBP, wallets: [{wallet}] }}]")
    (found,) = await world.client.wallets("t")
    assert (found.credits_balance, found.balance_cents, found.name) == (Decimal(10), 500, "Half")


async def test_what_lago_takes_and_does_not_do_is_a_failure_that_names_it(world: World) -> None:
    """Between the comparison and the writing somebody subscribes: from then on Lago drops the interval."""
    text = "plans: [{ code: pro, currency: USD, interval: yearly }]"
    await world.apply(text.replace("yearly", "monthly"))
    changes = await world.diff(world.catalog(text))
    await world.client.create_subscription({"external_id": "s", "external_customer_id": "t", "plan_code": "pro"})
    outcome = await apply(changes, world.observed, world.client, world.query)
    assert outcome.failed is not None
    assert (outcome.done, outcome.failed.code) == ((), "pro")
    assert outcome.reason == "Lago took the request and kept interval monthly instead of yearly"


async def test_a_failure_stops_it_and_the_next_run_goes_on_from_there(world: World) -> None:
    world.lago.faults.script(LagoFault(path="/api/v1/plans", method="POST", status=500))
    outcome = await world.apply(FILE)
    assert outcome.failed is not None
    assert names(outcome.done) == ["tax", "metric", "meter"]
    assert names(outcome.left) == ["plan", "webhook endpoint", "customer", "subscription", "wallet"]
    assert outcome.failed is outcome.left[0]
    assert "POST /plans" in outcome.reason
    again = await world.apply(FILE)
    assert (names(again.done), again.failed) == (names(outcome.left), None)
    assert await world.actions(FILE) == {"keep"}


async def test_what_lago_refuses_is_told_with_lagos_code(world: World) -> None:
    text = "customers: [{ id: t, currency: USD, wallets: [{ code: a }] }]"
    changes = await world.diff(world.catalog(text))
    outcome = await apply(changes[1:], world.observed, world.client, world.query)
    assert outcome.done == ()
    assert "customer_not_found" in outcome.reason


@pytest.mark.parametrize("path", ["/api/v1/wallets", "/api/v1/customers", "/api/v1/subscriptions", "/api/v1/plans"])
async def test_an_answer_that_is_lost_makes_nothing_twice(world: World, path: str) -> None:
    world.lago.faults.script(LagoFault(path=path, method="POST", drop="after"))
    outcome = await world.apply(FILE)
    assert outcome.failed is not None
    assert "may have been made" in outcome.reason
    again = await world.apply(FILE)
    assert again.failed is None
    (wallet,) = await world.client.wallets("tpp-1")
    assert wallet.balance_cents == 1000
    assert len(await world.client.subscriptions("tpp-1")) == 1


async def test_a_wallet_that_somebody_made_meanwhile_is_not_made_again(world: World) -> None:
    await world.apply(FILE.partition("    wallets")[0])
    changes = await world.diff(world.catalog(FILE))
    await apply(changes, world.observed, world.client, world.query)
    outcome = await apply(changes, world.observed, world.client, world.query)
    assert outcome.failed is None
    assert len(await world.client.wallets("tpp-1")) == 1


async def test_a_meter_that_somebody_made_meanwhile_stops_it_before_the_plans(world: World) -> None:
    changes = await world.diff(world.catalog(FILE))
    await world.query.create_meter(Meter("api_calls", "SUM", "$.units", "api.call", {}))
    outcome = await apply(changes, world.observed, world.client, world.query)
    assert outcome.failed is not None
    assert (outcome.failed.kind, names(outcome.done)) == ("meter", ["tax", "metric"])


async def test_charges_with_filters_are_made_once_and_changed_in_place(world: World) -> None:
    filters = '[{values: {region: [eu]}, properties: {amount: "0.05"}}]'
    text = FILE.replace(
        "{ code: api_calls }", "{ code: api_calls, filters: [{key: region, values: [eu, us]}] }"
    ).replace('amount: "0.01" }', f'amount: "0.01", filters: {filters} }}')
    first = await world.apply(text)
    assert (first.failed, first.reason) == (None, "")
    metric = await world.client.metric("api_calls")
    assert metric is not None
    assert metric.filters == {"region": ("eu", "us")}
    before = world.written()
    assert await world.actions(text) == {"keep"}
    assert world.written() == before
    changed = text.replace("values: {region: [eu]}", "values: {region: [__ALL_FILTER_VALUES__]}").replace(
        "0.05", "0.07"
    )
    assert (await world.apply(changed)).failed is None
    plan = await world.client.plan("pro")
    assert plan is not None
    assert [(each.values, each.properties["amount"]) for each in plan.charges[0].filters] == [
        ({"region": ("__ALL_FILTER_VALUES__",)}, "0.07")
    ]
    assert await world.actions(changed) == {"keep"}
