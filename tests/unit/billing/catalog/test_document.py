"""Catalog files: what they come to, what is wrong in them, what is refused and what would do instead."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from sidecar.billing.catalog.sections import HANDLED_EVENT_TYPES
from sidecar.billing.catalog.values import Catalog
from sidecar.billing.lago.models import Tax
from sidecar.billing.webhooks.event_types import EVENT_TYPES
from sidecar.config.errors import ConfigError
from tests.unit.billing.catalog.kit import catalog

PAGE_METRIC = """
metrics:
  - { "name": "api_calls", "code": "api_calls", "description": "Number of API calls",
      "aggregation_type": "count_agg", "field_name": "calls" }
"""
PAGE_PLAN = """
plans:
  - {
      "name": "API Pro Plan", "code": "api_pro", "interval": "monthly", "amount_cents": 9900,
      "amount_currency": "USD",
      "charges": [
        {
          "billable_metric_code": "api_calls",
          "charge_model": "graduated",
          "graduated_ranges": [
            { "from_value": 0, "to_value": 10000, "per_unit_amount": "0.00" },
            { "from_value": 10001, "to_value": null, "per_unit_amount": "0.001" }
          ]
        }
      ]
    }
"""


def problems(tmp_path: Path, text: str) -> list[tuple[int | None, str, str]]:
    with pytest.raises(ConfigError) as caught:
        catalog(tmp_path, text)
    return [(each.origin.line, each.path, each.message) for each in caught.value.problems]


def one_plan(tmp_path: Path, charge: str, **keys: str) -> Catalog:
    more = "".join(f"    {key}: {value}\n" for key, value in keys.items())
    return catalog(tmp_path, f"plans:\n  - code: p\n    currency: GBP\n{more}    charges:\n      - {charge}\n")


def test_an_empty_file_asks_for_nothing(tmp_path: Path) -> None:
    assert catalog(tmp_path, "") == Catalog()


def test_a_metric_is_a_sum_over_calls_unless_it_says_otherwise(tmp_path: Path) -> None:
    plain, other = catalog(tmp_path, "metrics: [{code: api_calls}, {code: bytes, field_name: n, name: B}]").metrics
    assert (plain.field_name, plain.name) == ("calls", None)
    assert (other.field_name, other.name) == ("n", "B")


def test_the_platform_pages_metric_is_refused_with_one_that_counts_calls(tmp_path: Path) -> None:
    found = catalog(tmp_path, PAGE_METRIC)
    assert found.metrics == ()
    (refusal,) = found.refusals
    assert refusal.where.endswith("catalog.yaml:4: metrics[0].aggregation_type")
    assert "counts events, not calls" in refusal.reason
    instead = yaml.safe_load(refusal.instead)
    assert instead == {"code": "api_calls", "aggregation_type": "sum_agg", "field_name": "calls"}
    assert catalog(tmp_path, yaml.safe_dump({"metrics": [instead]})).refusals == ()


def test_a_recurring_metric_is_refused(tmp_path: Path) -> None:
    (refusal,) = catalog(tmp_path, "metrics: [{code: seats, recurring: true}]").refusals
    assert "never starts again at 0" in refusal.reason


def test_the_platform_pages_plan_is_read_as_lago_takes_it(tmp_path: Path) -> None:
    (wanted,) = catalog(tmp_path, PAGE_PLAN).plans
    assert (wanted.plan.code, wanted.plan.amount_cents, wanted.plan.currency) == ("api_pro", 9900, "USD")
    (charge,) = wanted.plan.charges
    assert (charge.metric_code, charge.model) == ("api_calls", "graduated")
    assert charge.properties == {
        "graduated_ranges": [
            {"from_value": 0, "to_value": 10000, "per_unit_amount": "0", "flat_amount": "0"},
            {"from_value": 10001, "to_value": None, "per_unit_amount": "0.001", "flat_amount": "0"},
        ]
    }


def test_tiers_and_ranges_of_either_style_come_to_the_same_charge(tmp_path: Path) -> None:
    tiers = "{metric: c, model: graduated, tiers: [{up_to: 10, unit: '1', flat: '2'}, {unit: '0.5'}]}"
    first = "{from_value: 0, to_value: 10, per_unit_amount: '1', flat_amount: '2'}"
    charges = [
        tiers,
        *(
            "{billable_metric_code: c, charge_model: graduated, properties: {graduated_ranges: "
            f"[{first}, {{from_value: {start}, to_value: null, per_unit_amount: '0.5'}}]}}}}"
            for start in (10, 11)
        ),
    ]
    found = [one_plan(tmp_path, charge).plans[0].plan.charges for charge in charges]
    assert found[0] == found[1] == found[2]


REFUSED = {
    "percentage": ("{metric: c, model: percentage, rate: '1.5', fixed_amount: '2'}", "percentage"),
    "percentage as Lago has it": (
        "{billable_metric_code: c, charge_model: percentage, properties: {rate: '1'}}",
        "perc",
    ),
    "graduated_percentage": ("{metric: c, model: graduated_percentage}", "percentage"),
    "dynamic": ("{billable_metric_code: c, charge_model: dynamic}", "come with each event"),
    "paid in advance": ("{metric: c, model: standard, amount: '1', pay_in_advance: true}", "paid in advance"),
    "prorated": ("{metric: c, model: standard, amount: '1', prorated: true}", "prorated"),
    "a minimum": ("{metric: c, model: standard, amount: '1', min_amount_cents: 5}", "minimum"),
    "filters": (
        "{metric: c, model: standard, amount: '1', filters: [{values: {a: [b]}, properties: {}}]}",
        "filter a=b: amount is missing",
    ),
    "equal filters": (
        "{metric: c, model: standard, amount: '1', filters: [{values: {a: [b, c]}, properties: {amount: '1'}},"
        "{values: {a: [c, b]}, properties: {amount: '2'}}]}",
        "two filters have the values a=b|c",
    ),
    "not invoiced": ("{metric: c, model: standard, amount: '1', invoiceable: false}", "would never bill"),
    "a pricing unit": ("{metric: c, model: standard, amount: '1', applied_pricing_unit: {code: x}}", "pricing unit"),
    "grouped": (
        "{billable_metric_code: c, charge_model: standard, properties: {amount: '1', pricing_group_keys: [r]}}",
        "grouped",
    ),
    "mixed ranges": (
        "{billable_metric_code: c, charge_model: graduated, graduated_ranges: ["
        "{from_value: 0, to_value: 10, per_unit_amount: '3'}, {from_value: 10, to_value: 20, per_unit_amount: '2'},"
        "{from_value: 21, to_value: null, per_unit_amount: '1'}]}",
        "Lago bills that wrong",
    ),
    "a model that is not known": ("{billable_metric_code: c, charge_model: magic}", "not known"),
    "no amount": ("{billable_metric_code: c, charge_model: standard}", "amount is missing"),
}


@pytest.mark.parametrize(("charge", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_enforced_is_refused_with_the_reason_and_never_planned(
    tmp_path: Path, charge: str, reason: str
) -> None:
    found = one_plan(tmp_path, charge)
    assert found.plans == ()
    (refusal,) = found.refusals
    assert (refusal.kind, refusal.code) == ("plan", "p")
    assert refusal.where.endswith("catalog.yaml:5: plans[0].charges[0]")
    assert reason in refusal.reason
    assert refusal.instead.startswith("{metric: c, model: ")


@pytest.mark.parametrize("name", ["paid in advance", "a minimum", "filters", "grouped", "mixed ranges"])
def test_the_charge_that_is_shown_instead_is_not_refused(tmp_path: Path, name: str) -> None:
    (refusal,) = one_plan(tmp_path, REFUSED[name][0]).refusals
    assert one_plan(tmp_path, refusal.instead).refusals == ()


def test_mixed_ranges_are_shown_as_tiers_by_where_they_end(tmp_path: Path) -> None:
    (refusal,) = one_plan(tmp_path, REFUSED["mixed ranges"][0]).refusals
    tiers = '[{up_to: 10, unit: "3"}, {up_to: 20, unit: "2"}, {unit: "1"}]'
    assert refusal.instead == f"{{metric: c, model: graduated, tiers: {tiers}}}"


@pytest.mark.parametrize(
    "key", ["minimum_commitment: {amount_cents: 5}", "usage_thresholds: [{}]", "fixed_charges: [{}]"]
)
def test_parts_of_plans_that_are_no_usage_are_refused_by_their_key(tmp_path: Path, key: str) -> None:
    (refusal,) = catalog(tmp_path, f"plans:\n  - code: p\n    currency: GBP\n    {key}\n").refusals
    assert refusal.where.endswith(f"catalog.yaml:4: plans[0].{key.partition(':')[0]}")


def test_filters_have_prices_of_the_charges_model(tmp_path: Path) -> None:
    found = one_plan(
        tmp_path,
        "{metric: c, model: graduated, tiers: [{unit: '2'}], filters: [{values: {a: [b]}, properties:"
        " {graduated_ranges: [{from_value: 0, to_value: 9, per_unit_amount: '1.0'},{from_value: 10, to_value: null,"
        " per_unit_amount: '0.5'}]}}]}",
    )
    (charge,) = found.plans[0].plan.charges
    assert charge.has_filters
    (filter_,) = charge.filters
    assert filter_.values == {"a": ("b",)}
    assert [row["flat_amount"] for row in filter_.properties["graduated_ranges"]] == ["0", "0"]


def test_a_second_charge_of_a_metric_is_refused(tmp_path: Path) -> None:
    charge = "{metric: c, model: standard, amount: '1'}"
    (refusal,) = one_plan(tmp_path, f"{charge}\n      - {charge}").refusals
    assert refusal.where.endswith("charges[1]")


def test_a_fee_is_kept_in_the_currencys_smallest_coin(tmp_path: Path) -> None:
    yen, dinar = "{code: a, amount: 99, currency: JPY}", "{code: b, amount: '0.005', currency: KWD}"
    plans = f"plans: [{yen}, {dinar}, {{code: c, currency: GBP}}]"
    assert [each.plan.amount_cents for each in catalog(tmp_path, plans).plans] == [99, 5, 0]


WRONG = {
    "an unknown key": ("metrics:\n  - code: a\n    filed_name: x\n", 3, "metrics[0].filed_name", "mean field_name"),
    "an unknown key of a charge": (
        "plans:\n  - code: a\n    currency: GBP\n    charges:\n"
        "      - {metric: c, model: standard, amount: '1', prorate: true}\n",
        5,
        "plans[0].charges[0].prorate",
        "mean prorated",
    ),
    "an unknown model": (
        "plans:\n  - code: a\n    currency: GBP\n    charges:\n      - {metric: c, model: linear, amount: '1'}\n",
        5,
        "plans[0].charges[0].model",
        "should be one of",
    ),
    "both spellings of a key": (
        "plans:\n  - code: a\n    currency: GBP\n    amount_currency: GBP\n",
        4,
        "plans[0].amount_currency",
        "not a known",
    ),
    "two fees": (
        "plans:\n  - {code: a, currency: GBP, amount: 1,\n     amount_cents: 1}\n",
        3,
        "plans[0].amount_cents",
        "too",
    ),
    "a part of a penny": (
        "plans:\n  - code: a\n    currency: GBP\n    amount: '1.005'\n",
        4,
        "plans[0].amount",
        "2 decimals",
    ),
    "an endless fee": ("plans:\n  - code: a\n    currency: GBP\n    amount: 1e900\n", 4, "plans[0].amount", "at most"),
    "a currency that is none": ("plans:\n  - code: a\n    currency: XXQ\n", 3, "plans[0].currency", "ISO 4217"),
    "a metric that can be no meter": ("metrics:\n  - code: API-Calls\n", 2, "metrics[0].code", "named like api_calls"),
    "a code of dots": ("plans:\n  - {code: '..', currency: GBP}\n", 2, "plans[0].code", "should be 1 to 128"),
    "two plans of one code": (
        "plans:\n  - {code: a, currency: GBP}\n  - {code: a, currency: GBP}\n",
        3,
        "plans[1].code",
        "plans[0] too",
    ),
    "charges billed monthly of a monthly plan": (
        "plans:\n  - {code: a, currency: GBP,\n     bill_charges_monthly: true}\n",
        3,
        "plans[0].bill_charges_monthly",
        "monthly",
    ),
    "ranges beside properties": (
        "plans:\n  - code: a\n    currency: GBP\n    charges:\n"
        "      - {billable_metric_code: c, charge_model: standard, amount: '1', properties: {amount: '2'}}\n",
        5,
        "plans[0].charges[0]",
        "both properties and amount",
    ),
    "a wallet without a name": (
        "customers:\n  - id: t\n    currency: GBP\n    wallets:\n      - granted_credits: '1'\n",
        5,
        "customers[0].wallets[0].code",
        "made anew each time",
    ),
    "two wallets of one name": (
        "customers:\n  - id: t\n    currency: GBP\n    wallets:\n      - name: a\n      - name: a\n",
        6,
        "customers[0].wallets[1].name",
        "wallets[0] too",
    ),
    "a wallet without currency": (
        "customers:\n  - id: t\n    wallets: [{code: a}]\n",
        3,
        "customers[0].wallets[0].currency",
        "missing",
    ),
    "two currencies": (
        "customers:\n  - id: t\n    currency: GBP\n    wallets:\n      - {code: a, currency: USD}\n",
        5,
        "customers[0].wallets[0].currency",
        "USD, but currency in GBP",
    ),
    "a plan in another currency": (
        "plans: [{code: p, currency: USD}]\ncustomers:\n  - id: t\n    currency: GBP\n    plan: p\n",
        5,
        "customers[0].plan",
        "USD",
    ),
    "a subscription without plan": (
        "customers:\n  - id: t\n    subscription: s\n",
        3,
        "customers[0].subscription",
        "without plan",
    ),
    "one subscription of two customers": (
        "customers:\n  - {id: t, plan: p}\n  - {id: u, plan: p,\n     subscription: t}\n",
        4,
        "customers[1].subscription",
        "customers[0]",
    ),
    "terms that are not known": (
        "customers:\n  - id: t\n    metadata: {quota_mod: prepaid}\n",
        3,
        "customers[0].metadata",
        "quota_mod: there is no",
    ),
    "terms that cannot be used": (
        "customers:\n  - id: t\n    metadata: {quota_mode: free}\n",
        3,
        "customers[0].metadata",
        "'free' cannot be used",
    ),
    "an expiration without offset": (
        "customers:\n  - id: t\n    currency: GBP\n    wallets: [{code: a, expiration_at: '2030-01-01T00:00:00'}]\n",
        4,
        "customers[0].wallets[0].expiration_at",
        "offset",
    ),
    "a webhook that Lago never sends": (
        "webhook_endpoint:\n  url: https://x/h\n  event_types:\n    - wallet.updated\n    - credit.exhausted\n",
        5,
        "webhook_endpoint.event_types[1]",
        "wallet.depleted_ongoing_balance",
    ),
    "a webhook with a password in it": (
        "webhook_endpoint:\n  url: https://u:hunter2@x/h\n",
        2,
        "webhook_endpoint.url",
        "password",
    ),
    "a time zone that is none": (
        "customers:\n  - {id: t, timezone: Mars/Olympus}\n",
        2,
        "customers[0].timezone",
        "not a time zone",
    ),
}


@pytest.mark.parametrize(("text", "line", "path", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_mistake_is_told_by_line_and_key(tmp_path: Path, text: str, line: int, path: str, message: str) -> None:
    (found,) = problems(tmp_path, text)
    assert found[:2] == (line, path)
    assert message in found[2]
    assert "hunter2" not in found[2]


def test_a_key_in_plain_text_where_a_digest_belongs_is_not_repeated(tmp_path: Path) -> None:
    ((_, path, message),) = problems(tmp_path, "customers:\n  - id: t\n    metadata: {quota_api_key: hunter2}\n")
    assert path == "customers[0].metadata"
    assert "quota_api_key" in message
    assert "hunter2" not in message


def test_a_wallet_has_the_currency_of_its_customer_or_of_the_plan(tmp_path: Path) -> None:
    plan, wallets = "plans: [{code: p, currency: USD}]\n", "wallets: [{code: a}, {code: b, currency: USD}]"
    for text in (f"{plan}customers: [{{id: t, plan: p, {wallets}}}]", f"customers: [{{id: t, {wallets}}}]"):
        found = catalog(tmp_path, text)
        assert [each.currency for each in found.wallets] == ["USD", "USD"]
        assert found.customers[0].currency == "USD"


def test_a_wallets_amounts_stay_decimals(tmp_path: Path) -> None:
    wallet = "{name: W, paid_credits: 1000.10, rate_amount: 0.1, expiration_at: '2030-12-31T23:59:59Z', priority: 3}"
    (found,) = catalog(tmp_path, f"customers: [{{id: t, currency: GBP, wallets: [{wallet}]}}]").wallets
    assert (found.paid_credits, found.rate) == (Decimal("1000.10"), Decimal("0.1"))
    assert (found.expires_at_ms, found.priority, found.label) == (1_924_991_999_000, 3, "t/W")


def test_a_customer_is_subscribed_under_its_own_id_unless_it_says_otherwise(tmp_path: Path) -> None:
    text = "customers: [{id: t, plan: p}, {id: u, plan: p, subscription: s, billing_time: anniversary}, {id: v}]"
    found = [(each.external_id, each.customer, each.billing_time) for each in catalog(tmp_path, text).subscriptions]
    assert found == [("t", "t", "calendar"), ("s", "u", "anniversary")]


def test_taxes_are_in_per_cent_and_apply_to_all_by_default_only_if_said(tmp_path: Path) -> None:
    text = "taxes: [{code: vat, rate: '20'}, {code: all, rate: 5.5, default: true}]"
    found = [each.tax for each in catalog(tmp_path, text).taxes]
    assert found == [Tax("vat", Decimal(20), False), Tax("all", Decimal("5.5"), True)]


def test_an_endpoint_gets_by_default_what_the_gateway_acts_on(tmp_path: Path) -> None:
    endpoint = catalog(tmp_path, "webhook_endpoint: {url: 'https://x/h'}").endpoint
    assert endpoint is not None
    assert endpoint.signature == "hmac"
    assert endpoint.event_types == HANDLED_EVENT_TYPES
    assert {"wallet.updated", "invoice.created", "subscription.started", "events.errors"} <= set(HANDLED_EVENT_TYPES)
    assert not {"invoice.generated", "credit.exhausted", "quote.created"} & set(HANDLED_EVENT_TYPES)
    assert set(HANDLED_EVENT_TYPES) <= set(EVENT_TYPES)
