"""Customers, taxes, metrics, plans and webhook endpoints."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.sandbox.lago.lago_wire import Json
from tests.integration.sandbox.lago_kit import fees, metered, running, standard


async def test_a_customer_is_created_and_then_changed_by_what_is_given() -> None:
    async with running() as client:
        pairs = [{"key": "tier", "value": "gold", "display_in_invoice": True}]
        made: Any = await client.customer(
            name="TPP One", timezone="Europe/Paris", email="a@example.com", metadata=pairs
        )
        assert (made["name"], made["applicable_timezone"], made["currency"]) == ("TPP One", "Europe/Paris", "EUR")
        changed: Any = await client.customer(name="TPP 1", billing_configuration={"invoice_grace_period": 2})
        assert (changed["name"], changed["email"], changed["lago_id"]) == ("TPP 1", "a@example.com", made["lago_id"])
        assert changed["billing_configuration"]["invoice_grace_period"] == 2
        assert [(pair["key"], pair["value"]) for pair in changed["metadata"]] == [("tier", "gold")]
        emptied: Any = await client.customer(metadata=[])
        assert emptied["metadata"] == []
        assert (await client.get("/customers/tpp"))["customer"] == emptied
        await client.customer("other")
        assert [item["external_id"] for item in (await client.get("/customers"))["customers"]] == ["other", "tpp"]
        assert len((await client.get("/customers?search_term=TPP"))["customers"]) == 1


@pytest.mark.parametrize(
    ("given", "details"),
    [
        ({"external_id": ""}, {"external_id": ["value_is_mandatory"]}),
        ({"currency": "euro"}, {"currency": ["value_is_invalid"]}),
        ({"timezone": "Mars/Base"}, {"timezone": ["value_is_invalid"]}),
        ({"metadata": [{"key": str(n), "value": "v"} for n in range(6)]}, {"metadata": ["invalid_count"]}),
        ({"metadata": [{"key": "k" * 21, "value": "v"}]}, {"key": ["value_is_too_long"]}),
        ({"metadata": [{"key": "k", "value": "v" * 101}]}, {"value": ["value_is_too_long"]}),
        ({"metadata": [{"key": "k", "value": ""}]}, {"value": ["value_is_mandatory"]}),
        ({"metadata": [{"key": "k", "value": "v"}] * 2}, {"key": ["value_already_exist"]}),
        ({"finalize_zero_amount_invoice": "maybe"}, {"finalize_zero_amount_invoice": ["value_is_invalid"]}),
        ({"billing_configuration": {"invoice_grace_period": -1}}, {"invoice_grace_period": ["value_is_invalid"]}),
    ],
)
async def test_a_bad_customer_is_refused_and_changes_nothing(given: Json, details: Json) -> None:
    async with running() as client:
        before = await client.customer()
        body = {"customer": {"external_id": "tpp", "name": "changed", **given}}
        assert await client.refused("POST", "/customers", body) == (422, details)
        assert (await client.get("/customers/tpp"))["customer"] == before


async def test_an_unknown_tax_is_not_put_on_anyone() -> None:
    async with running() as client:
        body = {"customer": {"external_id": "tpp", "tax_codes": ["none"]}}
        assert await client.refused("POST", "/customers", body, checked=False) == (404, "tax_not_found")
        assert await client.refused("GET", "/customers/tpp") == (404, "customer_not_found")


async def test_taxes_can_be_made_changed_and_removed() -> None:
    async with running() as client:
        given = {"code": "vat", "name": "VAT", "rate": "20.0", "description": "Value added"}
        made = (await client.post("/taxes", {"tax": given}))["tax"]
        assert (made["rate"], made["applied_to_organization"]) == (20.0, False)
        twice = await client.refused("POST", "/taxes", {"tax": given})
        assert twice == (422, {"code": ["value_already_exist"]})
        changed = (await client.put("/taxes/vat", {"tax": {"rate": "19.6", "applied_to_organization": True}}))["tax"]
        assert (changed["rate"], changed["applied_to_organization"], changed["name"]) == (19.6, True, "VAT")
        assert (await client.get("/taxes"))["taxes"] == [changed]
        await client.customer(tax_codes=["vat"])
        await client.delete("/taxes/vat")
        assert (await client.get("/customers/tpp"))["customer"]["taxes"] == []
        assert await client.refused("GET", "/taxes/vat") == (404, "tax_not_found")
        assert await client.refused("POST", "/taxes", {"tax": {"code": "x", "name": "x"}}) == (
            422,
            {"rate": ["value_is_mandatory"]},
        )


@pytest.mark.parametrize(
    ("given", "details"),
    [
        ({"field_name": None}, {"field_name": ["value_is_mandatory"]}),
        ({"aggregation_type": "average"}, {"aggregation_type": ["value_is_invalid"]}),
        ({"aggregation_type": "max_agg", "recurring": True}, {"recurring": ["not_compatible_with_aggregation_type"]}),
        ({"rounding_function": "half"}, {"rounding_function": ["value_is_invalid"]}),
        ({"code": ""}, {"code": ["value_is_mandatory"]}),
        ({"code": "api_calls"}, {"code": ["value_already_exist"]}),
    ],
)
async def test_a_bad_metric_is_refused(given: Json, details: Json) -> None:
    async with running() as client:
        await client.metric()
        body = {"code": "new", "name": "new", "aggregation_type": "sum_agg", "field_name": "calls", **given}
        assert await client.refused("POST", "/billable_metrics", {"billable_metric": body}) == (422, details)
        assert len((await client.get("/billable_metrics"))["billable_metrics"]) == 1


async def test_a_metric_in_a_plan_keeps_its_code_and_aggregation() -> None:
    async with running() as client:
        metric = await client.metric()
        given = {"code": "calls", "name": "Calls", "aggregation_type": "max_agg"}
        changed = (await client.put("/billable_metrics/api_calls", {"billable_metric": given}))["billable_metric"]
        assert (changed["code"], changed["aggregation_type"], changed["lago_id"]) == ("calls", "max_agg", metric)
        await client.plan(charges=[standard(metric, "1")])
        back = {"code": "api_calls", "name": "Renamed", "aggregation_type": "sum_agg"}
        kept = (await client.put("/billable_metrics/calls", {"billable_metric": back}))["billable_metric"]
        assert (kept["code"], kept["name"], kept["aggregation_type"]) == ("calls", "Renamed", "max_agg")
        await client.delete("/billable_metrics/calls")
        assert (await client.get("/plans/basic"))["plan"]["charges"] == []
        assert await client.refused("GET", "/billable_metrics/calls") == (404, "billable_metric_not_found")


async def test_a_plan_is_kept_with_its_charges() -> None:
    async with running() as client:
        metric = await client.metric()
        ranges = [
            {"from_value": 0, "to_value": 10000, "per_unit_amount": "0.00", "flat_amount": "0"},
            {"from_value": 10001, "to_value": None, "per_unit_amount": "0.001", "flat_amount": "0"},
        ]
        charges: list[Json] = [
            {"billable_metric_id": metric, "charge_model": "graduated", "properties": {"graduated_ranges": ranges}},
            {"billable_metric_id": metric, "charge_model": "package", "invoice_display_name": "Packs",
             "properties": {"amount": "5", "package_size": 100, "free_units": 0}, "min_amount_cents": 100},
            {"billable_metric_id": metric, "charge_model": "percentage", "properties": {"rate": "1"}},
            {"billable_metric_id": metric, "charge_model": "volume", "properties": {"volume_ranges": ranges}},
        ]  # fmt: skip
        made: Any = await client.plan("api_pro", charges, amount_cents=9900, trial_period=14, interval="yearly")
        assert [charge["code"] for charge in made["charges"]] == [
            "api_calls", "api_calls_1", "api_calls_2", "api_calls_3",
        ]  # fmt: skip
        assert made["charges"][0]["properties"] == {"graduated_ranges": ranges}
        assert (made["trial_period"], made["bill_charges_monthly"]) == (14.0, False)
        assert (await client.get("/plans/api_pro"))["plan"] == made
        assert [plan["code"] for plan in (await client.get("/plans"))["plans"]] == ["api_pro"]


@pytest.mark.parametrize(
    ("given", "status", "details"),
    [
        ({"interval": "daily"}, 422, {"interval": ["value_is_invalid"]}),
        ({"amount_cents": -1}, 422, {"amount_cents": ["value_is_invalid"]}),
        ({"amount_cents": None}, 422, {"amount_cents": ["value_is_mandatory"]}),
        ({"pay_in_advance": None}, 422, {"pay_in_advance": ["value_is_invalid"]}),
        ({"code": "taken"}, 422, {"code": ["value_already_exist"]}),
        (
            {"charges": [{"billable_metric_code": "api_calls", "charge_model": "standard"}]},
            404,
            "billable_metrics_not_found",
        ),
        ({"tax_codes": ["none"]}, 404, "tax_not_found"),
    ],
)
async def test_a_bad_plan_is_refused(given: Json, status: int, details: object) -> None:
    async with running() as client:
        await client.plan("taken")
        body = {
            "code": "new", "name": "new", "interval": "monthly", "amount_cents": 0, "amount_currency": "EUR",
            "pay_in_advance": False, **given,
        }  # fmt: skip
        assert await client.refused("POST", "/plans", {"plan": body}) == (status, details)
        assert len((await client.get("/plans"))["plans"]) == 1


@pytest.mark.parametrize(
    ("given", "details"),
    [
        ({"charge_model": "custom"}, {"charge_model": ["value_is_invalid"]}),
        ({"properties": {"amount": 5}}, {"amount": ["invalid_amount"]}),
        ({"charge_model": "volume", "pay_in_advance": True,
          "properties": {"volume_ranges": [
              {"from_value": 0, "to_value": None, "per_unit_amount": "1", "flat_amount": "0"}]}},
         {"pay_in_advance": ["invalid_aggregation_type_or_charge_model"]}),
        ({"invoiceable": False}, {"invoiceable": ["must_be_true_unless_pay_in_advance"]}),
        ({"prorated": True}, {"prorated": ["invalid_billable_metric_or_charge_model"]}),
        ({"filters": [{"values": {}, "properties": {"amount": "1"}}]}, {"filters": ["value_is_invalid"]}),
        ({"filters": [{"values": {"a": ["b"]}, "properties": {}}]}, {"amount": ["invalid_amount"]}),
    ],
)  # fmt: skip
async def test_a_bad_charge_is_refused(given: Json, details: Json) -> None:
    async with running() as client:
        charge = {**standard(await client.metric(), "1"), **given}
        body = {
            "code": "new", "name": "new", "interval": "monthly", "amount_cents": 0, "amount_currency": "EUR",
            "pay_in_advance": False, "charges": [charge],
        }  # fmt: skip
        assert await client.refused("POST", "/plans", {"plan": body}) == (422, details)


async def test_a_plan_in_use_changes_its_prices_and_not_its_interval() -> None:
    async with metered() as client:
        await client.subscribe()
        metric = (await client.get("/billable_metrics/api_calls"))["billable_metric"]["lago_id"]
        given = {"interval": "yearly", "amount_cents": 700, "charges": [standard(metric, "0.25")]}
        changed = (await client.put("/plans/basic", {"plan": given}))["plan"]
        assert (changed["interval"], changed["amount_cents"]) == ("monthly", 700)
        assert [charge["properties"] for charge in changed["charges"]] == [{"amount": "0.25"}]
        await client.plan("unused")
        assert (await client.put("/plans/unused", {"plan": {"interval": "yearly"}}))["plan"]["interval"] == "yearly"


async def test_a_charge_paid_in_advance_is_kept_and_not_billed() -> None:
    async with running() as client:
        await client.customer()
        plan: Any = await client.plan(charges=[standard(await client.metric(), "1", pay_in_advance=True)])
        assert plan["charges"][0]["pay_in_advance"] is True
        await client.subscribe()
        await client.use(10, "2025-06-10 12:00")
        client.advance("2025-07-01 00:10")
        assert [fees(invoice) for invoice in await client.invoices()] == [[]]


async def test_webhook_endpoints_can_be_made_changed_and_removed() -> None:
    async with running() as client:
        given = {"webhook_url": "https://bank.example/hooks", "signature_algo": "hmac", "name": "control plane"}
        made = (await client.post("/webhook_endpoints", {"webhook_endpoint": given}))["webhook_endpoint"]
        assert (made["signature_algo"], made["event_types"]) == ("hmac", None)
        path = f"/webhook_endpoints/{made['lago_id']}"
        types = {"webhook_endpoint": {"event_types": ["wallet.updated", "invoice.created"]}}
        changed = (await client.put(path, types))["webhook_endpoint"]
        assert changed == made | {"event_types": ["wallet.updated", "invoice.created"]}
        every = (await client.put(path, {"webhook_endpoint": {"event_types": ["*"]}}))["webhook_endpoint"]
        assert every["event_types"] is None
        assert (await client.get("/webhook_endpoints"))["webhook_endpoints"] == [every]
        assert (await client.get(path))["webhook_endpoint"] == every
        await client.delete(path)
        assert await client.refused("GET", path) == (404, "webhook_endpoint_not_found")


@pytest.mark.parametrize(
    ("given", "details"),
    [
        ({}, {"webhook_url": ["value_is_mandatory"]}),
        ({"webhook_url": "ftp://bank.example"}, {"webhook_url": ["url_invalid"]}),
        ({"webhook_url": "http://[bad"}, {"webhook_url": ["url_invalid"]}),
        ({"webhook_url": "https://taken.example/"}, {"webhook_url": ["value_already_exist"]}),
        ({"webhook_url": "https://a.example/", "signature_algo": "none"}, {"signature_algo": ["value_is_invalid"]}),
        (
            {"webhook_url": "https://a.example/", "event_types": ["credit.exhausted"]},
            {"event_types": ["invalid_types"]},
        ),
        ({"webhook_url": "https://a.example/", "event_types": "all"}, {"event_types": ["must_be_array"]}),
    ],
)
async def test_a_bad_webhook_endpoint_is_refused(given: Json, details: Json) -> None:
    async with running() as client:
        taken = {"webhook_endpoint": {"webhook_url": "https://taken.example/"}}
        await client.post("/webhook_endpoints", taken)
        body = {"webhook_endpoint": {"name": "x", **given}}
        assert await client.refused("POST", "/webhook_endpoints", body) == (422, details)


async def test_there_are_at_most_ten_webhook_endpoints() -> None:
    async with running() as client:
        for number in range(10):
            url = f"https://bank.example/{number}"
            await client.post("/webhook_endpoints", {"webhook_endpoint": {"webhook_url": url}})
        body = {"webhook_endpoint": {"webhook_url": "https://bank.example/more"}}
        refused = await client.refused("POST", "/webhook_endpoints", body)
        assert refused == (422, {"base": ["exceeded_limit"]})
