"""Metrics of one billable metric get the prices that Lago has for events with their properties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import combinations
from typing import Any, Final

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sidecar.billing.lago.models import Charge, ChargeFilter, Customer, Plan, Tax
from sidecar.billing.metric_mapping import BilledMetric, MetricMapping
from sidecar.billing.reconcile.charge_filters import UnknownFilter, counting_filters
from sidecar.billing.reconcile.plan_prices import PlanPrices, plan_prices
from sidecar.billing.settings import BillableMetricSettings
from sidecar.ledger.pricing.price_tables import (
    Graduated,
    Package,
    PriceTable,
    Standard,
    Tier,
    Volume,
    amounts,
    decimals,
    pack,
)
from sidecar.ledger.pricing.rating import cost

CUSTOMER = Customer("c", "tpp-1", "EUR", "UTC", taxes=())
LISTED = {"payments": {"scheme": ("sepa", "swift", "card"), "method": ("GET", "POST")}}
ALL = "__ALL_FILTER_VALUES__"


def amount(price: str, **more: Any) -> dict[str, Any]:
    return {"amount": price, **more}


def ranges(model: str, *rows: tuple[int, int | None, str, str]) -> dict[str, Any]:
    keys = ("from_value", "to_value", "per_unit_amount", "flat_amount")
    return {f"{model}_ranges": [dict(zip(keys, row, strict=True)) for row in rows]}


def filter_(properties: Mapping[str, Any], **values: str | tuple[str, ...]) -> ChargeFilter:
    lists = {name: (each,) if isinstance(each, str) else each for name, each in values.items()}
    return ChargeFilter(lists, properties)


def charge(properties: Mapping[str, Any], *filters: ChargeFilter, model: str = "standard", **more: Any) -> Charge:
    return Charge("ch", "payments", model, properties, has_filters=bool(filters), filters=filters, **more)


def mapping(**metrics: Mapping[str, str]) -> MetricMapping:
    return MetricMapping(
        BillableMetricSettings(metric=metric, code="payments", properties=dict(properties))
        for metric, properties in metrics.items()
    )


def priced(each: Charge, metrics: MetricMapping, customer: Customer = CUSTOMER) -> PlanPrices:
    plan = Plan("p", "pro", "Pro", "monthly", 0, "EUR", False, (each,))
    return plan_prices(plan, customer, (), frozenset(), metrics, LISTED)


def prices(each: Charge, **metrics: Mapping[str, str]) -> Mapping[str, PriceTable]:
    found = priced(each, mapping(**metrics))
    assert not found.refused, found.refused
    return found.prices


def refusals(each: Charge, **metrics: Mapping[str, str]) -> list[str]:
    return [str(error).removeprefix("plan pro: charge ch of payments: ") for error in
            priced(each, mapping(**metrics)).refused]  # fmt: skip


SEPA: Mapping[str, str] = {"scheme": "sepa", "method": "POST"}
SWIFT: Mapping[str, str] = {"scheme": "swift", "method": "POST"}


# Which price


def test_an_event_that_a_filter_takes_has_its_price_and_any_other_that_of_the_charge() -> None:
    each = charge(amount("1"), filter_(amount("0.20"), scheme="sepa"), filter_(amount("3"), scheme="swift"))
    assert prices(each, sepa=SEPA, swift=SWIFT, card={"scheme": "card"}) == {
        "sepa": Standard(Decimal("0.20")), "swift": Standard(Decimal(3)), "card": Standard(Decimal(1)),
        "payments": Standard(Decimal(1)),
    }  # fmt: skip


def test_a_metric_without_an_entry_has_no_properties_and_so_the_price_of_the_charge() -> None:
    each = charge(amount("1"), filter_(amount("0.20"), scheme="sepa"), filter_(amount("9"), scheme=(ALL,)))
    assert prices(each) == {"payments": Standard(Decimal(1))}


def test_a_missing_property_a_filter_needs_leads_to_the_price_of_the_charge() -> None:
    each = charge(amount("1"), filter_(amount("0.20"), scheme="sepa", method="POST"))
    assert prices(each, sepa={"scheme": "sepa"})["sepa"] == Standard(Decimal(1))


def test_of_two_filters_the_one_with_more_properties_takes_the_event() -> None:
    each = charge(
        amount("1"), filter_(amount("2"), scheme="sepa"), filter_(amount("3"), scheme=("sepa", "card"), method="POST")
    )
    found = prices(each, post=SEPA, get={"scheme": "sepa", "method": "GET"}, card={"scheme": "card", "method": "POST"})
    assert [found[name] for name in ("post", "get", "card")] == [Standard(Decimal(n)) for n in (3, 2, 3)]


def test_filters_with_the_same_properties_that_share_values_are_refused_where_they_matter() -> None:
    """Up to v1.51.0 Lago bills such events twice, a later one once (lago-api#5916)."""
    each = charge(
        amount("1"), filter_(amount("2"), scheme=("sepa", "swift")), filter_(amount("3"), scheme="sepa"),
        filter_(amount("4"), scheme="sepa", method="GET"),
    )  # fmt: skip
    found = priced(each, mapping(sepa=SEPA, swift=SWIFT, get={"scheme": "sepa", "method": "GET"}))
    assert found.prices == {"get": Standard(Decimal(4)), "payments": Standard(Decimal(1))}
    shared = "two filters with the same properties share values; Lago up to v1.51.0 bills their events twice or never"
    assert [error.reason for error in found.refused] == [f"metric sepa: {shared}", f"metric swift: {shared}"]


def test_all_values_are_those_that_the_billable_metric_lists() -> None:
    each = charge(amount("1"), filter_(amount("2"), scheme=(ALL,)), filter_(amount("3"), scheme="sepa", method="GET"))
    found = prices(each, sepa=SEPA, get={**SEPA, "method": "GET"}, odd={"scheme": "barter"})
    assert [found[name] for name in ("sepa", "get", "odd")] == [Standard(Decimal(n)) for n in (2, 3, 1)]


def test_a_filter_has_the_charges_model_and_properties_of_its_own() -> None:
    package = charge(
        amount("5", package_size=100), filter_(amount("1", package_size=10, free_units=5), scheme="sepa"),
        model="package",
    )  # fmt: skip
    assert prices(package, sepa=SEPA) == {"sepa": Package(Decimal(1), 10, 5), "payments": Package(Decimal(5), 100, 0)}
    for model, table in (("graduated", Graduated), ("volume", Volume)):
        tiered = charge(
            ranges(model, (0, None, "1", "0")),
            filter_(ranges(model, (0, 10, "2", "0"), (11, None, "1", "4")), scheme="sepa"),
            model=model,
        )
        assert prices(tiered, sepa=SEPA)["sepa"] == table((Tier(10, Decimal(2)), Tier(None, Decimal(1), Decimal(4))))


def test_taxes_are_on_the_price_of_a_filter() -> None:
    each = charge(amount("1"), filter_(amount("0.20"), scheme="sepa"))
    customer = Customer("c", "tpp-1", "EUR", "UTC", taxes=(Tax("vat", Decimal(20)),))
    assert priced(each, mapping(sepa=SEPA), customer).prices["sepa"] == Standard(Decimal("0.24"))


def test_a_metric_may_be_a_billable_metric_of_another_code_without_properties() -> None:
    each = charge(amount("1"))
    found = priced(each, mapping(transfers={}))
    assert found.prices == {"transfers": Standard(Decimal(1)), "payments": Standard(Decimal(1))}
    other = MetricMapping([BillableMetricSettings(metric="payments", code="old_payments")])
    assert priced(each, other).prices == {}, "the metric of that name is another billable metric"


def test_how_lago_bills_each_metric_is_told() -> None:
    each = charge(
        amount("1"), filter_(amount("2", pricing_group_keys=["method"]), scheme=("swift", "sepa"), method=(ALL,))
    )
    assert priced(each, mapping(sepa=SEPA)).billed == {
        "sepa": BilledMetric(
            "sepa", "payments", (("method", "POST"), ("scheme", "sepa")),
            (("method", (ALL,)), ("scheme", ("sepa", "swift"))), (("method", "POST"),),
        ),
        "payments": BilledMetric("payments", "payments"),
    }  # fmt: skip


# Groups


@pytest.mark.parametrize("key", ["pricing_group_keys", "grouped_by"])
def test_each_group_starts_at_the_first_price(key: str) -> None:
    each = charge({**ranges("graduated", (0, 10, "2", "0"), (11, None, "1", "0")), key: ["scheme"]}, model="graduated")
    table = Graduated((Tier(10, Decimal(2)), Tier(None, Decimal(1))))
    assert prices(each, sepa=SEPA, swift=SWIFT) == {"sepa": table, "swift": table, "payments": table}


def test_a_grouped_price_with_a_first_flat_amount_is_refused() -> None:
    each = charge(
        {**ranges("graduated", (0, None, "2", "5")), "pricing_group_keys": ["scheme"]}, model="graduated"
    )  # fmt: skip
    found = refusals(each, sepa=SEPA)
    assert len(found) == 2
    assert all("flat amount from the first unit on, which Lago bills once a group" in reason for reason in found)


def test_groups_that_are_no_names_are_refused() -> None:
    assert "no names" in refusals(charge(amount("1", pricing_group_keys=[{"a": 1}])))[0]


# Several metrics in one fee

STEPS = ranges("graduated", (0, 10, "2", "0"), (11, None, "1", "0"))


def test_metrics_of_one_fee_are_exact_if_each_unit_costs_the_same() -> None:
    each = charge(amount("1"), filter_(amount("2"), scheme=("sepa", "swift")))
    assert prices(each, sepa=SEPA, swift=SWIFT, also_sepa=SEPA)["also_sepa"] == Standard(Decimal(2))
    one_range = charge(STEPS, filter_(ranges("graduated", (0, None, "2", "0")), scheme="sepa"), model="graduated")
    assert set(prices(one_range, a=SEPA, b=SEPA)) == {"a", "b", "payments"}


@pytest.mark.parametrize("model", ["graduated", "volume", "package"])
def test_metrics_that_share_the_steps_of_a_price_are_refused_by_both_names(model: str) -> None:
    properties = (
        amount("1", package_size=10) if model == "package" else ranges(model, (0, 9, "2", "0"), (10, None, "1", "0"))
    )
    each = charge(properties, filter_(properties, scheme=("sepa", "swift")), model=model)
    found = priced(each, mapping(sepa=SEPA, swift=SWIFT, card={"scheme": "card"}))
    assert set(found.prices) == {"card"}, "and not that of the code's own name, which has no entry"
    reasons = [error.reason for error in found.refused]
    shared = "are one fee in Lago, whose price of a unit depends on the units of both"
    assert reasons == [
        f"metric sepa: sepa and swift {shared}", f"metric swift: sepa and swift {shared}",
        f"card and payments {shared}",
    ]  # fmt: skip


def test_groups_keep_metrics_of_one_filter_apart() -> None:
    each = charge(STEPS, filter_({**STEPS, "pricing_group_keys": ["method"]}, scheme="sepa"), model="graduated")
    assert set(prices(each, get={**SEPA, "method": "GET"}, post=SEPA)) == {"get", "post", "payments"}
    shared = priced(each, mapping(post=SEPA, again={**SEPA, "x": "y"}))
    assert set(shared.prices) == {"payments"}


# What cannot be known


def test_overlapping_filters_that_bill_an_event_twice_are_refused() -> None:
    each = charge(amount("1"), filter_(amount("2"), scheme="sepa"), filter_(amount("3"), method="POST"))
    found = priced(each, mapping(sepa=SEPA, get={"scheme": "sepa", "method": "GET"}))
    assert found.prices == {"get": Standard(Decimal(2)), "payments": Standard(Decimal(1))}
    assert [error.reason for error in found.refused] == [
        "metric sepa: Lago would bill its events 2 times, for filters that overlap"
    ]


def test_filters_with_equal_values_are_refused_where_they_matter() -> None:
    each = charge(amount("1"), filter_(amount("2"), scheme="sepa"), filter_(amount("3"), scheme="sepa"))
    found = priced(each, mapping(sepa=SEPA, swift=SWIFT))
    assert set(found.prices) == {"swift", "payments"}
    assert "two filters with the same properties" in found.refused[0].reason


def test_all_values_of_a_property_without_values_are_refused() -> None:
    assert "lists none" in refusals(charge(amount("1"), filter_(amount("2"), country=(ALL,))), sepa=SEPA)[0]


def test_a_flat_amount_of_a_filter_that_bills_no_metric_refuses_the_charge() -> None:
    flat = ranges("graduated", (0, None, "1", "5"))
    each = charge(STEPS, filter_(flat, scheme="sepa"), filter_(STEPS, scheme="swift"), model="graduated")
    assert "sepa" in prices(each, sepa=SEPA), "Lago bills it without usage, and so does the ledger"
    assert refusals(each, swift=SWIFT) == [
        "filter scheme=sepa costs a flat amount without usage, and no metric is billed by it"
    ]
    of_rest = charge(flat, filter_(STEPS, scheme="sepa"), model="graduated")
    moved = MetricMapping([BillableMetricSettings(metric="payments", code="payments", properties={"scheme": "sepa"})])
    assert [error.reason for error in priced(of_rest, moved).refused] == [
        "the price for what no filter takes costs a flat amount without usage, and no metric is billed by it"
    ]


def test_a_volume_price_from_1_on_that_bills_no_metric_refuses_the_charge() -> None:
    each = charge(
        ranges("volume", (0, None, "1", "0")), filter_(ranges("volume", (1, None, "1", "0")), scheme="sepa"),
        model="volume",
    )  # fmt: skip
    assert refusals(each) == ["filter scheme=sepa has ranges from 1 on, for which Lago makes no invoice without usage"]
    assert set(prices(each, sepa=SEPA)) == {"sepa", "payments"}


def test_a_bad_price_of_a_filter_refuses_the_metric_of_that_filter_alone() -> None:
    each = charge(amount("1"), filter_(amount("x"), scheme="sepa"))
    found = priced(each, mapping(sepa=SEPA))
    assert found.prices == {"payments": Standard(Decimal(1))}
    assert [error.reason for error in found.refused] == [
        "metric sepa: filter scheme=sepa: amount is not an amount of money"
    ]


def test_groups_of_versions_before_filters_are_refused() -> None:
    each = Charge("ch", "payments", "standard", amount("1"), has_filters=True)
    assert "before filters" in refusals(each)[0]


@pytest.mark.parametrize("change", [{"pay_in_advance": True}, {"prorated": True}, {"min_amount_cents": 1}])
def test_terms_of_the_charge_refuse_it_once(change: dict[str, Any]) -> None:
    each = charge(amount("1"), filter_(amount("2"), scheme="sepa"), **change)
    assert len(refusals(each, sepa=SEPA, swift=SWIFT)) == 1


# Against Lago's rating of events one by one

VALUES: Mapping[str, Sequence[str]] = {"a": ("1", "2", "3"), "b": ("x", "y")}


Fee = tuple[dict[tuple[str | None, ...], int], Mapping[str, Any]]
"""Units by group, and the price."""


def lagos_fees(each: Charge, events: Sequence[Mapping[str, str]], *, before_5916: bool = False) -> list[Fee]:
    """Each filter's events by group, and then those of the rest: ``Fees::ChargeService``, with the conditions that
    ``MatchingAndIgnoredService`` makes and ``PostgresStore#filters_scope`` puts to each event."""
    wanted = [
        {name: list(VALUES[name]) if values == (ALL,) else list(values) for name, values in one.values.items()}
        for one in each.filters
    ]
    scopes: list[tuple[dict[str, list[str]], list[dict[str, list[str]]], Mapping[str, Any]]] = []
    for at, matching in enumerate(wanted):
        ignored = []
        for other_at, other in enumerate(wanted):
            if other_at == at or not all(set(v) & set(other.get(k, [])) for k, v in matching.items()):
                continue
            kept = dict(other)
            if sorted(other) == sorted(matching) and before_5916:
                for name in other:
                    if each.filters[at].values[name] != (ALL,):
                        kept[name] = [v for v in other[name] if v not in matching[name]]
            elif sorted(other) == sorted(matching):
                if all(sorted(v) == sorted(matching[k]) for k, v in other.items()):
                    if other_at > at:
                        continue
                elif not all(set(v) <= set(matching[k]) for k, v in other.items()):
                    for name in other:
                        if each.filters[at].values[name] != (ALL,):
                            kept[name] = [v for v in other[name] if v not in matching[name]]
            ignored.append(kept)
        scopes.append((matching, ignored, each.filters[at].properties))
    scopes.append(({}, wanted, each.properties))
    fees = []
    for matching, ignored, properties in scopes:
        groups: dict[tuple[str | None, ...], int] = {}
        for event in events:
            taken = all(event.get(name) in values for name, values in matching.items())
            left = any(
                any(values for values in one.values())
                and all(event.get(name, "") in values for name, values in one.items() if values)
                for one in ignored
            )
            if taken and not left:
                key = tuple(event.get(name) for name in properties.get("pricing_group_keys", ()))
                groups[key] = groups.get(key, 0) + 1
        fees.append((groups or {(): 0}, properties))
    return fees


def lagos_cost(model: str, properties: Mapping[str, Any], units: int) -> Fraction:
    """``app/services/charge_models/``, for tables of ranges that begin one after the other."""
    if model == "standard":
        return units * Fraction(properties["amount"])
    if model == "package":
        return -(-max(0, units - properties["free_units"]) // properties["package_size"]) * Fraction(
            properties["amount"]
        )
    rows = properties[f"{model}_ranges"]
    if model == "volume":
        row = next(row for row in rows if row["to_value"] is None or units <= row["to_value"])
        return units * Fraction(row["per_unit_amount"]) + Fraction(row["flat_amount"])
    total = Fraction(0)
    for row in rows:
        end = units if row["to_value"] is None else min(units, row["to_value"])
        total += (end - max(row["from_value"], 1) + 1) * Fraction(row["per_unit_amount"]) + Fraction(row["flat_amount"])
        if row["to_value"] is None or row["to_value"] >= units:
            break
    return total


MONEY = st.integers(0, 500).map(lambda cents: str(Decimal(cents) / 100))


@st.composite
def model_properties(draw: st.DrawFn, model: str) -> dict[str, Any]:
    groups = draw(st.sampled_from([{}, {}, {"pricing_group_keys": ["b"]}, {"pricing_group_keys": ["a", "z"]}]))
    if model == "standard":
        return amount(draw(MONEY), **groups)
    if model == "package":
        return amount(draw(MONEY), package_size=draw(st.integers(1, 4)), free_units=draw(st.integers(0, 3)), **groups)
    first = draw(st.sampled_from(["0", "0", "1.50"]))
    end = draw(st.integers(1, 4))
    return {**ranges(model, (0, end, draw(MONEY), first), (end + 1, None, draw(MONEY), draw(MONEY))), **groups}


_one_property: Final = {
    name: st.one_of(st.just((ALL,)), st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True).map(tuple))
    for name, values in VALUES.items()
}
filter_values: Final = st.one_of(
    *(st.fixed_dictionaries({name: each}) for name, each in _one_property.items()),
    st.fixed_dictionaries(_one_property),
)


@st.composite
def charges(draw: st.DrawFn) -> Charge:
    model = draw(st.sampled_from(["standard", "package", "graduated", "volume"]))
    filters = [ChargeFilter(each, draw(model_properties(model))) for each in draw(st.lists(filter_values, max_size=4))]
    return charge(draw(model_properties(model)), *filters, model=model)


event_properties = st.fixed_dictionaries(
    {},
    optional={"a": st.sampled_from(("1", "2", "3", "odd")), "b": st.sampled_from(("x", "y", "odd")), "z": st.just("q")},
)


EVENTS: Final = [
    {name: value for name, value in (("a", a), ("b", b)) if value is not None}
    for a in ("1", "2", "3", "odd", None)
    for b in ("x", "y", "odd", None)
]


@given(st.lists(filter_values, min_size=1, max_size=4))
def test_the_fees_that_count_an_event_are_those_of_lago(values: list[dict[str, tuple[str, ...]]]) -> None:
    each = charge(amount("1"), *(ChargeFilter(one, amount("1")) for one in values))
    expanded = [{name: set(VALUES[name] if v == (ALL,) else v) for name, v in one.items()} for one in values]
    share = any(
        one.keys() == other.keys() and all(allowed & other[name] for name, allowed in one.items())
        for one, other in combinations(expanded, 2)
    )
    for event in EVENTS:
        of_versions = [lagos_fees(each, [event], before_5916=before) for before in (False, True)]
        fees = [[at for at, (groups, _) in enumerate(found) if sum(groups.values())] for found in of_versions]
        try:
            found = counting_filters(each.filters, VALUES, event)
        except UnknownFilter:
            assert share
        else:
            ours = [len(values) if place is None else place for place in found]
            assert fees == [ours, ours], "of both versions of Lago"


@given(charges(), st.lists(event_properties, min_size=1, max_size=4), st.lists(st.integers(0, 4), max_size=12))
def test_what_metrics_cost_together_is_what_lago_bills_for_their_events(
    each: Charge, entries: list[dict[str, str]], calls: list[int]
) -> None:
    mapped = MetricMapping(
        [BillableMetricSettings(metric=f"m{at}", code="payments", properties=one) for at, one in enumerate(entries)]
    )
    plan = Plan("p", "pro", "Pro", "monthly", 0, "EUR", False, (each,))
    found = plan_prices(plan, CUSTOMER, (), frozenset(), mapped, {"payments": VALUES})
    # Calls of a metric without a price are refused, so they make no events.
    properties_of = {f"m{at}": one for at, one in enumerate(entries)} | {"payments": {}}
    served = [name for name in (f"m{at}" if at < len(entries) else "payments" for at in calls) if name in found.prices]
    assume(found.prices)
    units = {name: served.count(name) for name in found.prices}
    ours = sum((_cost(table, units[name]) for name, table in found.prices.items()), Fraction(0))
    fees = lagos_fees(each, [properties_of[name] for name in served])
    theirs = sum(
        (lagos_cost(each.model, properties, n) for groups, properties in fees for n in groups.values()), Fraction(0)
    )
    assert ours == theirs


def _cost(table: PriceTable, units: int) -> Fraction:
    digits = max(map(decimals, amounts(table)))
    return Fraction(cost(pack(table, digits, "it"), units)) / 10**digits
