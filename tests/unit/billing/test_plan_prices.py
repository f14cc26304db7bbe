"""Charges of Lago become price tables that cost what Lago bills; the others are refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.billing.lago.models import Charge, Customer, Plan, Tax
from sidecar.billing.reconcile.charge_prices import Unenforceable, price_table
from sidecar.billing.reconcile.plan_prices import PlanPrices, plan_prices
from sidecar.ledger.pricing.price_tables import (
    MAX_INT,
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

Range = tuple[int, int | None, str, str]
VAT = Tax("vat", Decimal(20))
CUSTOMER = Customer("c", "tpp-1", "EUR", "UTC", taxes=())


def charge(model: str, properties: dict[str, Any], metric: str = "api_calls", **changes: Any) -> Charge:
    return Charge(f"ch-{metric}", metric, model, properties, **changes)


def plan(*charges: Charge, **changes: Any) -> Plan:
    return Plan("p", "pro", "Pro", "monthly", 1000, "EUR", False, charges, **changes)


def ranges(name: str, rows: Sequence[Range]) -> dict[str, Any]:
    keys = ("from_value", "to_value", "per_unit_amount", "flat_amount")
    return {name: [dict(zip(keys, row, strict=True)) for row in rows]}


def graduated(*rows: Range) -> Charge:
    return charge("graduated", ranges("graduated_ranges", rows))


def volume(*rows: Range) -> Charge:
    return charge("volume", ranges("volume_ranges", rows))


def table_of(each: Charge, taxes: Sequence[Tax] = (), **changes: Any) -> PriceTable:
    return price_table(each, plan(each, **changes), taxes)


def price_of(each: Charge, units: int, taxes: Sequence[Tax] = ()) -> Decimal:
    """As the ledger computes it: on the packed table."""
    table = table_of(each, taxes)
    digits = max(map(decimals, amounts(table)))
    return Decimal(cost(pack(table, digits, "it"), units)).scaleb(-digits)


def refusal(each: Charge, **changes: Any) -> Unenforceable:
    with pytest.raises(Unenforceable) as refused:
        table_of(each, **changes)
    return refused.value


# Examples of Lago's documentation (getlago.com/docs/guide/plans/charges/charge-models/…)

PACKAGE = charge("package", {"amount": "5", "package_size": 100, "free_units": 100})
GRADUATED_NEW = graduated((0, 100, "1", "0"), (100, 200, "0.5", "0"), (200, None, "0.1", "0"))
GRADUATED_OLD = graduated((0, 100, "1", "0"), (101, 200, "0.5", "0"), (201, None, "0.1", "0"))
VOLUME = volume(
    (0, 10_000, "0.0010", "10"), (10_001, 50_000, "0.0008", "10"), (50_001, 100_000, "0.0006", "10"),
    (100_001, None, "0.0004", "10"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("each", "units", "price"),
    [
        # …/standard: "0.05 per API call", 1,000 calls cost 50.
        (charge("standard", {"amount": "0.05"}), 1_000, "50"),
        # …/package: 5 per 100 units, the first 100 free; 201 units cost 10.
        (PACKAGE, 201, "10"),
        (PACKAGE, 100, "0"),
        (PACKAGE, 101, "5"),
        (PACKAGE, 200, "5"),
        # …/volume: 65,000 calls cost 65,000 x 0.0006 + 10 = 49.
        (VOLUME, 65_000, "49"),
        (VOLUME, 10_000, "20"),
        (VOLUME, 10_001, "18.0008"),
        (VOLUME, 0, "10"),
        # …/graduated: 1 for the first 100 units, 0.50 for the next 100, 0.10 beyond, in both styles of ranges.
        *((each, units, price) for each in (GRADUATED_NEW, GRADUATED_OLD)
          for units, price in ((0, "0"), (100, "100"), (101, "100.5"), (200, "150"), (201, "150.1"), (250, "155"))),
    ],
)  # fmt: skip
def test_examples_of_lagos_documentation_cost_what_they_say(each: Charge, units: int, price: str) -> None:
    assert price_of(each, units) == Decimal(price)


def test_a_tier_that_is_entered_adds_its_flat_fee_and_the_first_is_always_entered() -> None:
    # lago-api spec/services/charge_models/graduated_service_spec.rb has tables like this one.
    tiers = graduated((0, 10, "10", "2"), (11, 20, "5", "3"), (21, None, "5", "3"))
    assert [price_of(tiers, units) for units in (0, 1, 10, 11, 12, 20, 21)] == [2, 12, 102, 110, 115, 155, 163]


# What Lago's own arithmetic says, ported line by line from the sources named, for any table and any number of units


def lago_graduated(rows: Sequence[Range], units: int) -> Decimal:
    """``graduated_service.rb`` and ``amount_details/range_graduated_service.rb``."""
    adjacent = len(rows) >= 2 and all(later[0] == earlier[1] for earlier, later in pairwise(rows))
    total = Decimal(0)
    for start, end, unit, flat in rows:
        effective = end if end is not None and units >= end else units
        inside = effective if start == 0 else effective - start + (0 if adjacent else 1)
        total += inside * Decimal(unit) + Decimal(flat)
        if end is None or end >= units:
            break
    return total


def lago_volume(rows: Sequence[Range], units: int) -> Decimal:
    """``volume_service.rb``."""
    _, _, unit, flat = next(row for row in rows if row[0] <= units and (row[1] is None or units <= row[1]))
    return units * Decimal(unit) + Decimal(flat)


@st.composite
def tables(draw: st.DrawFn) -> list[Range]:
    """Valid ranges of one style or the other, starting at 0."""
    widths = draw(st.lists(st.integers(2, 20), max_size=4))
    step = draw(st.sampled_from([0, 1]))
    money = st.decimals(min_value=0, max_value=100, places=4).map(str)
    rows: list[Range] = []
    start, end = 0, 0
    for width in widths:
        end += width
        rows.append((start, end, draw(money), draw(money)))
        start = end + step
    return [*rows, (start, None, draw(money), draw(money))]


@given(tables(), st.integers(0, 120))
def test_graduated_tables_of_both_styles_cost_what_lago_computes(rows: list[Range], units: int) -> None:
    assert price_of(graduated(*rows), units) == lago_graduated(rows, units)


@given(tables(), st.integers(0, 120))
def test_volume_tables_of_both_styles_cost_what_lago_computes(rows: list[Range], units: int) -> None:
    assert price_of(volume(*rows), units) == lago_volume(rows, units)


@given(st.integers(0, 500), st.integers(1, 60), st.integers(0, 100))
def test_packages_cost_what_lago_computes(units: int, size: int, free: int) -> None:
    each = charge("package", {"amount": "1.25", "package_size": size, "free_units": free})
    paid = units - free  # package_service.rb
    assert price_of(each, units) == (0 if paid < 0 else -(-paid // size) * Decimal("1.25"))


@given(tables(), st.integers(0, 60), st.decimals(min_value=0, max_value=40, places=3))
def test_taxes_are_in_every_price(rows: list[Range], units: int, rate: Decimal) -> None:
    taxes = (Tax("vat", rate),)
    for each in (graduated(*rows), volume(*rows)):
        assert price_of(each, units, taxes) == price_of(each, units) * (1 + rate / 100)


@pytest.mark.parametrize(
    ("rows", "at", "here", "in_lago"),
    [
        # Some ranges begin where the last one ended, one begins later: what would be billed once is billed twice.
        (((0, 10, "10", "0"), (11, 20, "5", "0"), (20, None, "5", "0")), 21, 155, 160),
        # From 1 on, with ranges that begin where the last one ended: the first unit is free.
        (((1, 10, "10", "0"), (10, None, "5", "0")), 5, 50, 40),
    ],
)
def test_the_tables_that_lago_bills_otherwise_are_refused(
    rows: tuple[Range, ...], at: int, here: int, in_lago: int
) -> None:
    def tiered(units: int) -> Decimal:
        total, below = Decimal(0), 0
        for _, end, unit, _ in rows:
            total += max(0, (units if end is None else min(units, end)) - below) * Decimal(unit)
            below = end or 0
        return total

    assert tiered(at) == here
    assert lago_graduated(rows, at) == in_lago
    assert "Lago bills that wrong" in refusal(graduated(*rows)).reason


# Shapes


def test_each_model_has_its_table() -> None:
    assert table_of(charge("standard", {"amount": "0.05"})) == Standard(Decimal("0.05"))
    assert table_of(PACKAGE) == Package(Decimal(5), 100, 100)
    expected = (Tier(100, Decimal(1)), Tier(200, Decimal("0.5")), Tier(None, Decimal("0.1")))
    assert table_of(GRADUATED_NEW) == table_of(GRADUATED_OLD) == Graduated(expected)
    assert table_of(volume((0, 5, "2", "1"), (5, None, "1", "0"))) == Volume(
        (Tier(5, Decimal(2), Decimal(1)), Tier(None, Decimal(1)))
    )


def test_prices_bear_the_taxes_that_are_given() -> None:
    assert table_of(charge("standard", {"amount": "0.05"}), [VAT]) == Standard(Decimal("0.06"))
    assert table_of(PACKAGE, [VAT]) == Package(Decimal(6), 100, 100)
    assert table_of(graduated((0, None, "1", "10")), [VAT]) == Graduated((Tier(None, Decimal("1.2"), Decimal(12)),))


@pytest.mark.parametrize("number", [100, Decimal(100), Decimal("100.0"), "100"])
def test_whole_numbers_may_be_written_in_any_way(number: Any) -> None:
    each = charge("package", {"amount": Decimal(5), "package_size": number, "free_units": number})
    assert table_of(each) == Package(Decimal(5), 100, 100)


def test_a_package_without_free_units_has_none() -> None:
    assert table_of(charge("package", {"amount": "5", "package_size": 10})) == Package(Decimal(5), 10, 0)


@pytest.mark.parametrize("start", [0, 1])
def test_a_table_of_one_range_may_start_at_0_or_1(start: int) -> None:
    assert table_of(graduated((start, None, "1", "0"))) == Graduated((Tier(None, Decimal(1)),))


def test_ranges_of_the_older_style_may_start_at_1() -> None:
    assert price_of(graduated((1, 10, "10", "0"), (11, None, "5", "0")), 11) == 105


# Refusals


@pytest.mark.parametrize("model", ["percentage", "graduated_percentage", "dynamic", "custom", "auction", ""])
def test_a_model_that_depends_on_more_than_a_count_is_refused(model: str) -> None:
    error = refusal(charge(model, {"amount": "1"}))
    assert f"the model {model}" in error.reason


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pay_in_advance": True}, "paid in advance"),
        ({"prorated": True}, "prorated"),
        ({"has_filters": True}, "filters"),
        ({"has_pricing_unit": True}, "pricing unit"),
        ({"min_amount_cents": 1}, "minimum amount"),
        ({"properties": {"amount": "1", "pricing_group_keys": ["region"]}}, "grouped"),
        ({"properties": {"amount": "1", "grouped_by": ["region"]}}, "grouped"),
    ],
)
def test_a_charge_that_needs_more_than_a_price_is_refused(changes: dict[str, Any], says: str) -> None:
    plain: dict[str, Any] = {"properties": {"amount": "1"}}
    table_of(charge("standard", **plain))
    assert says in refusal(charge("standard", **plain | changes)).reason


def test_groups_and_minimum_of_nothing_are_no_obstacle() -> None:
    empty: dict[str, Any] = {"amount": "1", "pricing_group_keys": [], "grouped_by": None}
    assert table_of(charge("standard", empty, min_amount_cents=0)) == Standard(Decimal(1))


def test_progressive_billing_is_refused() -> None:
    assert "usage thresholds" in refusal(charge("standard", {"amount": "1"}), has_usage_thresholds=True).reason


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([(2, None, "1", "0")], "range 1: it starts at 2 instead of 0 or 1"),
        ([(0, 10, "1", "0"), (12, None, "1", "0")], "range 2: it starts at 12, though the last one ends at 10"),
        ([(0, 10, "1", "0"), (9, None, "1", "0")], "range 2: it starts at 9, though the last one ends at 10"),
        ([(0, 10, "1", "0")], "the last range ends at 10"),
        ([(0, None, "1", "0"), (1, None, "1", "0")], "range 2: it follows one without an end"),
        ([(0, 0, "1", "0"), (0, None, "1", "0")], "range 1: it ends at 0, before it has begun"),
        ([(0, 10, "1", "0"), (11, 10, "1", "0"), (11, None, "1", "0")], "range 2: it ends at 10"),
        ([(0, 10, "1", "0"), (10, 10, "1", "0"), (10, None, "1", "0")], "upper bound 10 is not above 10"),
        ([(0, 10, "1", "0"), (10, 20, "1", "0"), (21, None, "1", "0")], "some one later"),
        ([(1, 10, "1", "0"), (10, None, "1", "0")], "must begin at 0"),
        ([(0, "10.5", "1", "0"), ("10.5", None, "1", "0")], "range 1: to_value is not a whole number"),
        ([(None, None, "1", "0")], "range 1: from_value is missing"),
        ([(0, MAX_INT + 1, "1", "0"), (MAX_INT + 1, None, "1", "0")], "range 1: to_value is not a whole number"),
        ([(0, None, None, "0")], "range 1: per_unit_amount is missing"),
        ([(0, None, "1", None)], "range 1: flat_amount is missing"),
        ([(0, None, "-1", "0")], "range 1: per_unit_amount is negative"),
        ([(0, None, "a", "0")], "range 1: per_unit_amount is not an amount of money"),
        ([], "is not a list of ranges"),
    ],
)  # fmt: skip
def test_ranges_that_make_no_sense_are_refused_by_number(rows: list[Any], says: str) -> None:
    for each, name in ((graduated(*rows), "graduated_ranges"), (volume(*rows), "volume_ranges")):
        reason = refusal(each).reason
        assert says in reason
        assert name in reason or "upper bound" in reason


@pytest.mark.parametrize("wrong", [None, "x", {}, [1], ["x"]])
def test_ranges_that_are_no_ranges_are_refused(wrong: object) -> None:
    assert "is not a list of ranges" in refusal(charge("volume", {"volume_ranges": wrong})).reason


@pytest.mark.parametrize(
    ("model", "properties", "says"),
    [
        ("standard", {}, "amount is missing"),
        ("standard", {"amount": "1,5"}, "amount is not an amount of money"),
        ("standard", {"amount": "-1"}, "amount is negative"),
        ("standard", {"amount": "0.0000000000001"}, "with taxes: 1.00E-13 has 13 decimals"),
        ("standard", {"amount": "99999999999999999"}, "does not fit below 2^53"),
        ("package", {"amount": "5"}, "package_size is missing"),
        ("package", {"amount": "5", "package_size": 0}, "package_size is not a whole number between 1"),
        ("package", {"amount": "5", "package_size": "2.5"}, "package_size is not a whole number"),
        ("package", {"amount": "5", "package_size": 5, "free_units": -1}, "free_units is not a whole number between 0"),
        ("package", {"package_size": 5}, "amount is missing"),
    ],
)
def test_an_amount_that_cannot_be_represented_is_refused(model: str, properties: dict[str, Any], says: str) -> None:
    assert says in refusal(charge(model, properties)).reason


def test_digits_that_only_taxes_add_are_refused_too() -> None:
    each = charge("standard", {"amount": "0.0000000001"})
    assert table_of(each) == Standard(Decimal("1E-10"))
    with pytest.raises(Unenforceable, match=r"with taxes: 1\.08875E-10 has 15 decimals"):
        table_of(each, [Tax("odd", Decimal("8.875"))])


def test_a_refusal_names_plan_charge_metric_and_reason() -> None:
    error = refusal(charge("dynamic", {}, code="calls_dynamic"))
    assert str(error) == (
        "plan pro: charge calls_dynamic of api_calls: the model dynamic cannot be enforced:"
        " dynamic prices come with each event"
    )
    assert (error.plan_code, error.metric_code, error.charge) == ("pro", "api_calls", "calls_dynamic")
    assert refusal(charge("dynamic", {})).charge == "ch-api_calls"


# Whole plans


def test_a_plan_prices_each_metric_with_the_taxes_that_apply_to_it() -> None:
    reduced = Tax("reduced", Decimal(10))
    charges = (
        charge("standard", {"amount": "1"}, "accounts"),
        charge("standard", {"amount": "1"}, "payments", taxes=(reduced,)),
    )
    customer = Customer("c", "tpp-1", "EUR", "UTC", taxes=(VAT,))
    found = plan_prices(plan(*charges), customer, ())
    expected = {"accounts": Standard(Decimal("1.2")), "payments": Standard(Decimal("1.1"))}
    assert (found.prices, found.refused) == (expected, ())


def test_the_organisations_default_is_for_customers_without_taxes() -> None:
    default = Tax("default", Decimal(20), is_default=True)
    found = plan_prices(plan(charge("standard", {"amount": "1"})), CUSTOMER, (default, Tax("other", Decimal(5))))
    assert found.prices == {"api_calls": Standard(Decimal("1.2"))}


def test_a_charge_that_is_refused_does_not_stop_the_others() -> None:
    found = plan_prices(plan(charge("dynamic", {}, "payments"), charge("standard", {"amount": "1"})), CUSTOMER, ())
    assert found.prices == {"api_calls": Standard(Decimal(1))}
    assert [error.metric_code for error in found.refused] == ["payments"]


def test_two_charges_for_one_metric_are_both_refused() -> None:
    found = plan_prices(
        plan(
            charge("standard", {"amount": "1"}),
            charge("standard", {"amount": "2"}),
            charge("standard", {"amount": "3"}, "payments"),
        ),
        CUSTOMER,
        (),
    )
    assert found.prices == {"payments": Standard(Decimal(3))}
    assert [error.reason for error in found.refused] == ["the metric has 2 charges; one is possible"] * 2


def test_a_plan_without_charges_has_no_prices() -> None:
    assert plan_prices(plan(), CUSTOMER, ()) == PlanPrices({}, ())


def test_a_metric_that_lago_rounds_to_tens_is_refused_alone() -> None:
    """Lago billed 100 units for 4 (rounding_precision -2, ceil)."""
    charges = charge("standard", {"amount": "1"}), charge("standard", {"amount": "1"}, "payments")
    found = plan_prices(plan(*charges), CUSTOMER, (), {"payments"})
    assert list(found.prices) == ["api_calls"]
    assert [(each.metric_code, "rounding_precision" in each.reason) for each in found.refused] == [("payments", True)]
