"""What is to be done about taxes, metrics, meters, plans and the webhook endpoint; in what order, and what not."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from sidecar.billing.catalog.changes import Change, FieldChange, Observed, Subscribers, counts
from sidecar.billing.catalog.compare import instant
from sidecar.billing.catalog.diff import diff
from sidecar.billing.catalog.values import Catalog, meter_of
from sidecar.billing.lago.models import BillableMetric, Charge, ChargeFilter, Plan, Tax, WebhookEndpoint
from sidecar.billing.metric_mapping import MetricMapping
from sidecar.billing.settings import BillableMetricSettings
from tests.unit.billing.catalog.kit import (
    EVENT_TYPE,
    FILE,
    GRADUATED,
    NOW_MS,
    catalog,
    changes,
    charge,
    metric,
    observed,
    plan,
)


@pytest.fixture
def wanted(tmp_path: Path) -> Catalog:
    return catalog(tmp_path)


def fields(change: Change) -> dict[str, tuple[str | None, str | None]]:
    return {each.name: (each.before, each.after) for each in change.fields}


def test_where_everything_is_as_it_should_be_nothing_is_to_be_done(wanted: Catalog) -> None:
    found = diff(wanted, observed(), EVENT_TYPE, NOW_MS)
    assert counts(found) == {"create": 0, "update": 0, "keep": 6, "refuse": 0}
    assert not any(each.fields or each.notes for each in found)


def test_in_an_empty_lago_everything_is_made_and_what_is_named_comes_before_what_names_it(tmp_path: Path) -> None:
    text = FILE + "taxes: [{code: vat, rate: '20'}]\nwebhook_endpoint: {url: 'https://x/h'}\n"
    found = diff(catalog(tmp_path, text), Observed(meters={}), EVENT_TYPE, NOW_MS)
    assert [(each.action, each.kind) for each in found] == [
        ("create", kind)
        for kind in ("tax", "metric", "meter", "plan", "webhook endpoint", "customer", "subscription", "wallet")
    ]
    assert all(each.wanted is not None for each in found)


def test_metrics_of_the_gateway_that_are_one_billable_metric_have_a_meter_each(wanted: Catalog) -> None:
    code = wanted.metrics[0].code
    mapping = MetricMapping(
        BillableMetricSettings(metric=f"{code}_{name}", code=of) for name, of in (("a", code), ("b", code), ("c", "x"))
    )
    found = diff(wanted, observed(), EVENT_TYPE, NOW_MS, mapping)
    made = [(each.code, each.wanted) for each in found if each.action == "create"]
    assert made == [(f"{code}_{name}", meter_of(f"{code}_{name}", EVENT_TYPE)) for name in ("a", "b")]


def test_what_the_file_refuses_comes_first_and_is_never_written(tmp_path: Path) -> None:
    text = "metrics: [{code: calls, aggregation_type: count_agg}]\ncustomers: [{id: t}]"
    found = diff(catalog(tmp_path, text), Observed(), EVENT_TYPE, NOW_MS)
    assert [each.action for each in found] == ["refuse", "create"]
    assert found[0].wanted is None
    assert any(note.startswith("instead: ") for note in found[0].notes)


def test_a_tax_with_another_rate_is_changed_and_that_goes_for_open_invoices(tmp_path: Path) -> None:
    text = "taxes: [{code: vat, rate: 20}]"
    found = changes(catalog(tmp_path, text), observed(taxes={"vat": Tax("vat", Decimal("17.50"))}))["tax vat"]
    assert (found.action, fields(found)) == ("update", {"rate": ("17.5 %", "20 %")})
    assert "usage so far" in found.notes[0]
    same = changes(catalog(tmp_path, text), observed(taxes={"vat": Tax("vat", Decimal("20.0"))}))["tax vat"]
    assert same.action == "keep"


METRICS = {
    "count_agg": (metric(aggregation="count_agg", field_name=None), "one unit"),
    "recurring": (metric(recurring=True), "recurring"),
    "another field": (metric(field_name="units"), "sum_agg of units"),
    "an expression": (metric(has_expression=True), "expression"),
}


@pytest.mark.parametrize(("there", "reason"), METRICS.values(), ids=METRICS.keys())
def test_a_metric_that_a_plan_uses_is_not_changed_but_refused(
    wanted: Catalog, there: BillableMetric, reason: str
) -> None:
    found = changes(wanted, observed(metrics={"api_calls": there}))["metric api_calls"]
    assert (found.action, found.wanted) == ("refuse", None)
    assert reason in found.notes[0]
    assert "(pro)" in found.notes[1]


@pytest.mark.parametrize(("there", "reason"), METRICS.values(), ids=METRICS.keys())
def test_a_metric_that_no_plan_uses_is_changed(wanted: Catalog, there: BillableMetric, reason: str) -> None:
    found = changes(wanted, observed(metrics={"api_calls": there}, plans={}))["metric api_calls"]
    assert (found.action, found.notes) == ("update", ())


def test_the_name_of_a_metric_is_changed_even_while_it_is_used_but_only_if_the_file_has_one(tmp_path: Path) -> None:
    there = observed(metrics={"api_calls": metric(name="Old")})
    assert changes(catalog(tmp_path), there)["metric api_calls"].action == "keep"
    named = catalog(tmp_path, FILE.replace("code: api_calls\n", "code: api_calls\n    name: New\n"))
    found = changes(named, there)["metric api_calls"]
    assert (found.action, fields(found)) == ("update", {"name": ("Old", "New")})


def test_a_metric_in_use_whose_name_is_not_all_that_differs_is_refused(tmp_path: Path) -> None:
    named = catalog(tmp_path, FILE.replace("code: api_calls\n", "code: api_calls\n    name: New\n"))
    there = observed(metrics={"api_calls": metric(name="Old", recurring=True)})
    assert changes(named, there)["metric api_calls"].action == "refuse"


def test_a_meter_of_another_definition_is_refused_with_what_to_do(wanted: Catalog) -> None:
    there = replace(meter_of("api_calls", EVENT_TYPE), aggregation="COUNT", value_property=None)
    found = changes(wanted, observed(meters={"api_calls": there}))["meter api_calls"]
    assert (found.action, fields(found)) == ("refuse", {"aggregation": ("COUNT", "SUM $.units")})
    assert "OpenMeter cannot change aggregation of a meter: delete it in OpenMeter and apply again" in found.notes[0]


@pytest.mark.parametrize(
    ("other", "field"),
    [
        ({"value_property": "$.data.units"}, {"aggregation": ("SUM $.data.units", "SUM $.units")}),
        ({"event_type": "other"}, {"event_type": ("other", EVENT_TYPE)}),
        ({"event_from_ms": NOW_MS + 1_000}, {"event_from": (instant(NOW_MS + 1_000), None)}),
    ],
)
def test_what_openmeter_cannot_change_of_a_meter_is_refused_with_the_field_even_beside_its_groups(
    wanted: Catalog, other: dict[str, Any], field: dict[str, Any]
) -> None:
    there = replace(meter_of("api_calls", EVENT_TYPE), **other)
    found = changes(wanted, observed(meters={"api_calls": there}))["meter api_calls"]
    assert (found.action, fields(found)) == ("refuse", field)
    grouped = replace(there, group_by={**there.group_by, "metric": "$.data.metric"})
    found = changes(wanted, observed(meters={"api_calls": grouped}))["meter api_calls"]
    group = {"group_by.metric": ("$.data.metric", "$.metric")}
    assert (found.action, fields(found)) == ("refuse", {**field, **group})
    assert f"cannot change {next(iter(field))} of" in found.notes[0]


def test_a_meter_that_has_begun_to_count_is_kept(wanted: Catalog) -> None:
    there = replace(meter_of("api_calls", EVENT_TYPE), event_from_ms=NOW_MS)
    assert changes(wanted, observed(meters={"api_calls": there}))["meter api_calls"].action == "keep"


def test_a_meter_may_tell_more_apart_than_is_needed_but_not_less(wanted: Catalog) -> None:
    more = replace(meter_of("api_calls", EVENT_TYPE), group_by={**meter_of("x", "y").group_by, "bank": "$.bank"})
    less = replace(more, group_by={"endpoint": "$.endpoint", "metric": "$.data.metric"})
    assert changes(wanted, observed(meters={"api_calls": more}))["meter api_calls"].action == "keep"
    found = changes(wanted, observed(meters={"api_calls": less}))["meter api_calls"]
    assert found.action == "update"
    assert fields(found) == {
        "group_by.metric": ("$.data.metric", "$.metric"),
        "group_by.method": (None, "$.method"),
        "group_by.status_code": (None, "$.status_code"),
    }


def test_without_openmeter_no_meters_are_compared(wanted: Catalog) -> None:
    assert "meter api_calls" not in changes(wanted, observed(meters=None))


def test_a_price_change_says_that_the_running_period_is_rated_anew(wanted: Catalog) -> None:
    there = observed(plans={"pro": plan(charge({"amount": "0.02"}))}, subscribers={"pro": Subscribers(3, 5)})
    found = changes(wanted, there)["plan pro"]
    assert (found.action, fields(found)) == (
        "update", {"charges.api_calls": ("standard: 0.02", "standard: 0.01")},
    )  # fmt: skip
    assert "3 active subscriptions" in found.notes[0]
    assert "the usage so far too" in found.notes[0]


def test_a_price_change_without_subscribers_needs_no_warning(wanted: Catalog) -> None:
    there = observed(plans={"pro": plan(charge({"amount": "0.02"}))}, subscribers={"pro": Subscribers(0, 5)})
    assert changes(wanted, there)["plan pro"].notes == ()


def test_a_change_of_the_fee_says_when_it_falls_due(wanted: Catalog) -> None:
    there = observed(plans={"pro": plan(amount_cents=4900)}, subscribers={"pro": Subscribers(1, 1)})
    found = changes(wanted, there)["plan pro"]
    assert (found.action, fields(found)) == ("update", {"amount": ("49.00", "99.00")})
    assert "1 active subscription:" in found.notes[0]


FIXED = {
    "interval": plan(interval="yearly"),
    "currency": plan(currency="EUR"),
    "pay_in_advance": plan(pay_in_advance=True),
    "trial_days": plan(trial_days=Decimal(30)),
    "the model or terms of charges.api_calls": plan(charge(GRADUATED, "graduated")),
}


@pytest.mark.parametrize(("name", "there"), FIXED.items(), ids=FIXED.keys())
def test_what_lago_keeps_of_a_plan_that_had_a_subscription_is_refused(wanted: Catalog, name: str, there: Plan) -> None:
    ended = changes(wanted, observed(plans={"pro": there}, subscribers={"pro": Subscribers(0, 1)}))["plan pro"]
    assert (ended.action, ended.wanted) == ("refuse", None)
    assert f"Lago does not change {name} of a plan" in ended.notes[0]
    unused = changes(wanted, observed(plans={"pro": there}, subscribers={"pro": Subscribers()}))["plan pro"]
    assert unused.action == "update"


ON_OTHER_TERMS = {
    "paid in advance": charge(pay_in_advance=True),
    "prorated": charge(prorated=True),
    "with a minimum": charge(min_amount_cents=100),
    "in a pricing unit": charge(has_pricing_unit=True),
}


@pytest.mark.parametrize("there", ON_OTHER_TERMS.values(), ids=ON_OTHER_TERMS.keys())
def test_a_charge_on_terms_that_cannot_be_enforced_is_changed_where_lago_does(wanted: Catalog, there: Charge) -> None:
    for ever, action in ((0, "update"), (1, "refuse")):
        at = observed(plans={"pro": plan(there)}, subscribers={"pro": Subscribers(ever, ever)})
        assert changes(wanted, at)["plan pro"].action == action


def test_filters_are_taken_off_a_charge_even_while_it_is_used(wanted: Catalog) -> None:
    there = observed(plans={"pro": plan(charge(has_filters=True))}, subscribers={"pro": Subscribers(1, 1)})
    assert changes(wanted, there)["plan pro"].action == "update"


def test_charges_that_cost_the_same_are_the_same_however_they_are_written(tmp_path: Path) -> None:
    text = FILE.replace(
        'model: standard, amount: "0.01"', 'model: graduated, tiers: [{up_to: 10000, unit: 0}, {unit: "0.001"}]'
    )
    first, last = GRADUATED["graduated_ranges"]
    overlapping = [first, {**last, "from_value": 10000, "per_unit_amount": Decimal("0.00100")}]
    there = observed(plans={"pro": plan(charge({"graduated_ranges": overlapping}, "graduated"))})
    assert changes(catalog(tmp_path, text), there)["plan pro"].action == "keep"


def test_a_charge_that_the_file_does_not_have_is_removed_and_said_so(wanted: Catalog) -> None:
    other = charge(lago_id="ch2", metric_code="payments")
    there = observed(plans={"pro": plan(charge(), other)}, subscribers={"pro": Subscribers(1, 1)})
    found = changes(wanted, there)["plan pro"]
    assert (found.action, fields(found)) == ("update", {"charges.payments": ("standard: 0.01", None)})
    assert "no longer billed" in found.notes[0]


def test_a_second_charge_of_a_metric_in_lago_is_removed(wanted: Catalog) -> None:
    there = observed(plans={"pro": plan(charge(), charge({"amount": "5"}, lago_id="ch2"))})
    assert fields(changes(wanted, there)["plan pro"]) == {"charges.api_calls": ("standard: 5", None)}


LEFT_IN_LAGO = {
    "usage thresholds": plan(has_usage_thresholds=True),
    "a minimum commitment": plan(has_minimum_commitment=True),
    "fixed charges": plan(has_fixed_charges=True),
}


@pytest.mark.parametrize(("what", "there"), LEFT_IN_LAGO.items(), ids=LEFT_IN_LAGO.keys())
def test_what_no_file_can_take_off_a_plan_is_refused(wanted: Catalog, what: str, there: Plan) -> None:
    found = changes(wanted, observed(plans={"pro": there}))["plan pro"]
    assert found.action == "refuse"
    assert f"Lago's plan has {what}" in found.notes[0]


def test_a_plan_without_name_keeps_the_one_that_it_has(tmp_path: Path) -> None:
    unnamed = catalog(tmp_path, FILE.replace("    name: Pro\n", ""))
    assert changes(unnamed, observed())["plan pro"].action == "keep"


def test_a_plan_on_a_metric_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    text = FILE.replace("  - code: api_calls", "  - code: other")
    assert changes(catalog(tmp_path, text), observed())["plan pro"].action == "keep"
    found = changes(catalog(tmp_path, text), observed(metrics={}))["plan pro"]
    assert found.action == "refuse"
    assert "no billable metric 'api_calls'" in found.notes[0]


def test_a_plan_on_a_metric_of_lago_that_counts_events_is_refused(tmp_path: Path) -> None:
    text = FILE.replace("  - code: api_calls", "  - code: other")
    there = observed(metrics={"api_calls": metric(aggregation="count_agg", field_name=None)})
    assert "count_agg" in changes(catalog(tmp_path, text), there)["plan pro"].notes[0]


def test_a_plan_on_a_metric_that_is_refused_is_refused_too(tmp_path: Path) -> None:
    text = FILE.replace("code: api_calls\n", "code: api_calls\n    aggregation_type: count_agg\n")
    found = changes(catalog(tmp_path, text), Observed())
    assert found["plan pro"].notes == ("its metric api_calls is refused",)
    assert found["wallet tpp-1/main"].action == "refuse"


def test_taxes_are_those_of_the_file_or_of_lago_and_others_are_refused(tmp_path: Path) -> None:
    text = FILE.replace("currency: USD", "currency: USD\n    taxes: [vat]")
    missing = changes(catalog(tmp_path, text), observed())["plan pro"]
    assert missing.action == "refuse"
    assert "no tax vat" in missing.notes[0]
    vat = Tax("vat", Decimal(20))
    found = changes(catalog(tmp_path, text), observed(taxes={"vat": vat}))["plan pro"]
    assert (found.action, fields(found)) == ("update", {"taxes": (None, "vat")})
    assert (
        changes(catalog(tmp_path, text), observed(taxes={"vat": vat}, plans={"pro": plan(taxes=(vat,))}))[
            "plan pro"
        ].action
        == "keep"
    )


def test_a_charge_with_taxes_of_its_own_differs_from_one_without(tmp_path: Path) -> None:
    text = FILE.replace('amount: "0.01"', 'amount: "0.01", taxes: [vat]')
    found = changes(catalog(tmp_path, text), observed(taxes={"vat": Tax("vat", Decimal(20))}))["plan pro"]
    assert fields(found) == {"charges.api_calls": ("standard: 0.01", "standard: 0.01, taxes vat")}


def test_a_price_that_cannot_be_represented_with_its_taxes_is_refused(tmp_path: Path) -> None:
    text = FILE.replace('amount: "0.01"', 'amount: "0.00000000001"')
    vat = Tax("vat", Decimal("7.7"), is_default=True)
    assert changes(catalog(tmp_path, text), observed())["plan pro"].action == "update"
    found = changes(catalog(tmp_path, text), observed(taxes={"vat": vat}))["plan pro"]
    assert found.action == "refuse"
    assert "decimals" in found.notes[0]
    of_others = observed(taxes={"vat": replace(vat, is_default=False)})
    assert changes(catalog(tmp_path, text), of_others)["plan pro"].action == "update"


ENDPOINT = "webhook_endpoint: {url: 'https://x/h', event_types: [wallet.updated, plan.updated]}"


def test_an_endpoint_of_another_url_is_none_of_ours(tmp_path: Path) -> None:
    there = Observed(endpoints=(WebhookEndpoint("e1", "https://y/h", "hmac", None),))
    found = changes(catalog(tmp_path, ENDPOINT), there)["webhook endpoint https://x/h"]
    assert (found.action, found.lago_id) == ("create", None)
    assert "lago.webhooks.hmac_key" in found.notes[0]


def test_an_endpoint_is_changed_where_signature_or_types_differ(tmp_path: Path) -> None:
    there = Observed(endpoints=(WebhookEndpoint("e1", "https://x/h", "jwt", ("plan.updated",)),))
    found = changes(catalog(tmp_path, ENDPOINT), there)["webhook endpoint https://x/h"]
    assert (found.action, found.lago_id) == ("update", "e1")
    assert found.fields == (
        FieldChange("signature", "jwt", "hmac"),
        FieldChange("event_types", "plan.updated", "plan.updated, wallet.updated"),
    )


@pytest.mark.parametrize("types", [None, ("*",), ("plan.updated", "wallet.updated")])
def test_an_endpoint_that_gets_everything_gets_what_is_wanted(tmp_path: Path, types: tuple[str, ...] | None) -> None:
    there = Observed(endpoints=(WebhookEndpoint("e1", "https://x/h", "hmac", types),))
    assert changes(catalog(tmp_path, ENDPOINT), there)["webhook endpoint https://x/h"].action == "keep"


FILTERED = FILE.replace(
    "  - code: api_calls", "  - code: api_calls\n    filters: [{key: region, values: [eu, us]}]"
).replace(
    'amount: "0.01" }',
    'amount: "0.01", filters: [{values: {region: [eu]}, properties: {amount: "0.05"}}] }',
)
EU = ChargeFilter({"region": ("eu",)}, {"amount": "0.050"})


def test_filters_that_cost_the_same_are_the_same_and_others_are_changed_in_place(tmp_path: Path) -> None:
    with_filters = metric(filters={"region": ("us", "eu")})
    there = observed(metrics={"api_calls": with_filters}, plans={"pro": plan(charge(has_filters=True, filters=(EU,)))})
    assert {each.action for each in changes(catalog(tmp_path, FILTERED), there).values()} == {"keep"}
    dearer = replace(EU, properties={"amount": "0.06"})
    found = changes(
        catalog(tmp_path, FILTERED),
        replace(there, plans={"pro": plan(charge(has_filters=True, filters=(dearer,)))}),
    )["plan pro"]
    assert found.action == "update"
    assert fields(found)["charges.api_calls"] == (
        "standard: 0.01; region=eu standard: 0.06", "standard: 0.01; region=eu standard: 0.05",
    )  # fmt: skip


def test_filters_of_a_metric_in_use_are_changed_and_those_that_the_file_omits_stay(tmp_path: Path) -> None:
    with_filters = metric(filters={"region": ("eu",)})
    found = changes(catalog(tmp_path, FILTERED), observed(metrics={"api_calls": with_filters}))["metric api_calls"]
    assert (found.action, fields(found)) == ("update", {"filters": ("region=eu", "region=eu|us")})
    assert (
        changes(catalog(tmp_path), observed(metrics={"api_calls": with_filters}))["metric api_calls"].action == "keep"
    )


@pytest.mark.parametrize(
    ("there", "says"),
    [
        ("[{key: tier, values: [eu]}]", "a filter has the property region, which the filters of the metric lack"),
        ("[{key: region, values: [us]}]", "a filter has region=eu, which the filters of the metric lack"),
    ],
)
def test_a_filter_of_values_that_the_metric_lacks_is_refused(tmp_path: Path, there: str, says: str) -> None:
    text = FILTERED.replace("[{key: region, values: [eu, us]}]", there)
    found = changes(catalog(tmp_path, text), observed(plans={}))["plan pro"]
    assert found.action == "refuse"
    assert found.notes == (f"api_calls: {says}",)
