"""The examples in Lago's OpenAPI document are read as they stand.

The document lies beside the repository, not in it: ``../shared/contracts/lago-openapi.yaml``. Where it is absent there
are no such tests.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.billing.lago import credit_requests, parsing, parsing_invoices
from sidecar.billing.lago.json_fields import Fields, instant_ms_of
from sidecar.billing.lago.models import Customer, Plan, Tax
from sidecar.billing.reconcile.plan_prices import plan_prices
from sidecar.ledger.pricing.price_tables import Graduated, Tier

DOCUMENT = Path(__file__).resolve().parents[5] / "shared" / "contracts" / "lago-openapi.yaml"

pytestmark = pytest.mark.skipif(not DOCUMENT.exists(), reason=f"there is no {DOCUMENT}")

LEVELS_MAX = 8

# By schema: what parses it, and what the value must be like.
SCHEMAS: dict[str, tuple[Callable[[Fields], Any], dict[str, Any]]] = {
    "CustomerObjectExtended": (
        parsing.customer,
        {
            "external_id": "5eb02857-a71e-4ea2-bcf9-57d3a41bc6ba",
            "currency": "USD",
            "timezone": "America/Los_Angeles",
            "taxes": (Tax("french_standard_vat", Decimal(20), is_default=True),),
        },
    ),
    "CustomerObject": (parsing.customer, {"taxes": None, "metadata": {"Purchase Order": "123456789"}}),
    "WalletObject": (
        parsing.wallet,
        {
            "customer": "hooli_1234",
            "status": "active",
            "currency": "USD",
            "balance_cents": 1000,
            "credits_balance": Decimal("28.0"),
            "consumed_credits": Decimal("2.0"),
            "rate_amount": Decimal("1.5"),
            "priority": 50,
            "fee_types": ("charge",),
            "metric_codes": ("bm1",),
            "terminated_at_ms": instant_ms_of("2022-09-14T16:35:31Z"),
        },
    ),
    "WalletTransactionObject": (
        parsing.wallet_transaction,
        {"status": "settled", "type": "inbound", "kind": "purchased", "amount": Decimal("10.0")},
    ),
    "SubscriptionObjectExtended": (
        parsing.subscription,
        {
            "external_id": "5eb02857-a71e-4ea2-bcf9-57d3a41bc6ba",
            "plan_code": "premium",
            "status": "active",
            "billing_time": "anniversary",
            "period_start_ms": instant_ms_of("2022-08-08T00:00:00Z"),
            "period_end_ms": instant_ms_of("2022-09-08T00:00:01Z"),
            "downgrade_date": "2022-04-30",
        },
    ),
    "SubscriptionObject": (parsing.subscription, {"plan": None}),
    "PlanObject": (
        parsing.plan,
        {
            "code": "startup",
            "interval": "monthly",
            "amount_cents": 10000,
            "currency": "USD",
            "trial_days": Decimal(5),
            "pay_in_advance": True,
            "has_minimum_commitment": True,
            "has_fixed_charges": True,
            "has_usage_thresholds": True,
        },
    ),
    "ChargeObject": (parsing.charge, {"metric_code": "requests", "min_amount_cents": 1200, "has_filters": True}),
    "InvoiceObject": (
        parsing_invoices.invoice,
        {
            "number": "LAG-1234-001-002",
            "type": "subscription",
            "status": "finalized",
            "payment_status": "succeeded",
            "fees_cents": 100,
            "taxes_cents": 20,
            "total_cents": 100,
            "due_cents": 0,
            "fees": None,
            "periods": None,
        },
    ),
    "InvoiceObjectExtended": (parsing_invoices.invoice, {"issuing_date": "2022-04-30"}),
    "CustomerUsageObject": (
        parsing_invoices.current_usage,
        {
            "from_ms": instant_ms_of("2022-07-01T00:00:00Z"),
            "to_ms": instant_ms_of("2022-08-01T00:00:00Z"),
            "amount_cents": 123,
            "taxes_cents": 200,
        },
    ),
    "AppliedCouponObject": (
        credit_requests.applied_coupon,
        {"coupon_code": "startup_deal", "status": "active", "frequency": "recurring", "currency": "USD"},
    ),
    "CouponObject": (credit_requests.coupon, {"code": "startup_deal", "is_limited": True}),
    "CreditNoteObject": (
        credit_requests.credit_note,
        {"credit_status": "available", "currency": "USD", "balance_cents": 100},
    ),
    "TaxObject": (parsing.tax, {"code": "french_standard_vat", "rate": Decimal(20), "is_default": True}),
    "EventObject": (
        parsing.event,
        {
            "transaction_id": "transaction_1234567890",
            "external_subscription_id": "sub_1234567890",
            "timestamp": Decimal("1651222791.123"),
            "properties": {"gb": Decimal(10)},
        },
    ),
    "BillableMetricObject": (
        parsing.metric,
        {"code": "storage", "aggregation": "sum_agg", "field_name": "gb", "rounding": "round", "has_expression": True},
    ),
    "WebhookEndpointObject": (
        parsing.webhook_endpoint,
        {"url": "https://foo.bar", "signature": "hmac", "event_types": ("invoice.voided", "customer.created")},
    ),
}


@cache
def document() -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: dict[str, Any] = yaml.load(DOCUMENT.read_bytes(), Loader=loader)
    return found


def example_of(schema: dict[str, Any], levels: int = LEVELS_MAX) -> Any:
    """The object that a schema's examples make together; those of whole lists and objects come first."""
    if "$ref" in schema:
        return example_of(document()["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]], levels)
    if "example" in schema:
        return schema["example"]
    if levels == 0:
        return None
    if "allOf" in schema:
        parts = [example_of(part, levels - 1) for part in schema["allOf"]]
        return {key: value for part in parts if isinstance(part, dict) for key, value in part.items()}
    for word in ("oneOf", "anyOf"):
        if word in schema:
            return example_of(schema[word][0], levels - 1)
    if "properties" in schema:
        return {name: example_of(below, levels - 1) for name, below in schema["properties"].items()}
    if "items" in schema:
        return [example_of(schema["items"], levels - 1)]
    return schema["enum"][0] if "enum" in schema else None


def read(schema: str) -> Any:
    """As it comes out of an answer's text."""
    example = example_of({"$ref": f"#/components/schemas/{schema}"})
    text = json.dumps(example, default=lambda moment: moment.isoformat())
    parse, _ = SCHEMAS[schema]
    return parse(Fields(json.loads(text, parse_float=Decimal), schema))


@pytest.mark.parametrize("schema", SCHEMAS)
def test_the_example_of_each_schema_is_read_as_it_stands(schema: str) -> None:
    found = read(schema)
    _, expected = SCHEMAS[schema]
    assert {name: getattr(found, name) for name in expected} == expected


def test_a_whole_invoice_has_its_periods_and_fees() -> None:
    found = read("InvoiceObjectExtended")
    assert found.periods[0].to_ms == instant_ms_of("2022-05-29T08:59:52Z")
    assert found.periods[0].reason == "subscription_starting"
    assert found.fees[0].units == Decimal("0.32")
    assert found.fees[0].precise_amount == Decimal("1.0001")


def test_a_plan_of_the_document_is_priced_as_far_as_it_can_be() -> None:
    plan: Plan = read("PlanObject")
    assert [charge.model for charge in plan.charges] == ["package", "graduated", "standard", "volume", "percentage"]
    assert plan_prices(plan, Customer("c", "x", "USD", "UTC"), ()).prices == {}, "it has usage thresholds"


def test_the_graduated_charge_of_the_document_has_two_tiers() -> None:
    plan: Plan = read("PlanObject")
    bare = Plan("p", "x", "X", "monthly", 0, "USD", False, plan.charges)
    found = plan_prices(bare, Customer("c", "x", "USD", "UTC"), ())
    assert found.prices["cpu"] == Graduated((Tier(10, Decimal("0.5"), Decimal(10)), Tier(None, Decimal("0.4"))))
    assert set(found.prices) == {"cpu", "storage"}
    assert [(error.metric_code, error.reason.split(":")[0]) for error in found.refused] == [
        ("requests", "it has a minimum amount, which is only known when the period has ended"),
        ("seats", "it is paid in advance, by an invoice for each event"),
        ("payments", "the model percentage cannot be enforced"),
    ]


def test_the_list_of_taxes_of_the_document_is_a_page() -> None:
    answers = document()["paths"]["/taxes"]["get"]["responses"]
    example = answers["200"]["content"]["application/json"]["example"]
    text = json.dumps(example, default=lambda moment: moment.isoformat())
    page = parsing.page_of(Fields(json.loads(text, parse_float=Decimal), "GET /taxes"), "taxes", parsing.tax, 1)
    assert (len(page.items), page.next_page, page.total_count) == (2, None, 2)
    assert page.items[1] == Tax("french_reduced_vat", Decimal(5), is_default=False)
