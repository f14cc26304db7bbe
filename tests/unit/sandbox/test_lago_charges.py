"""Lago's charge models, with the worked examples of its documentation."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.sandbox.lago.charges import Usage, cost, property_errors

Range = tuple[int, int | None, str, str]


def ranges(*given: Range) -> list[dict[str, Any]]:
    """From, to, price of a unit, flat amount."""
    names = ("from_value", "to_value", "per_unit_amount", "flat_amount")
    return [dict(zip(names, item, strict=True)) for item in given]


def amount(model: str, properties: dict[str, Any], units: object, events: Sequence[int] = ()) -> Decimal:
    usage = Usage(Decimal(str(units)), [Decimal(event) for event in events])
    assert property_errors(model, properties) == {}
    return cost(model, properties, usage).amount


#: https://getlago.com/docs/guide/plans/charges/charge-models/graduated
GRADUATED = {"graduated_ranges": ranges((0, 100, "1", "0"), (101, 200, "0.50", "0"), (201, None, "0.10", "0"))}
#: https://getlago.com/docs/guide/plans/charges/charge-models/package
PACKAGE = {"amount": "5", "package_size": 100, "free_units": 100}
#: https://getlago.com/docs/guide/plans/charges/charge-models/volume
VOLUME = {
    "volume_ranges": ranges(
        (0, 10_000, "0.0010", "10"),
        (10_001, 50_000, "0.0008", "10"),
        (50_001, 100_000, "0.0006", "10"),
        (100_001, None, "0.0004", "10"),
    )
}
#: The same prices in both ways of writing ranges.
FOLLOWING = {"graduated_ranges": ranges((0, 10, "10", "2"), (11, 20, "5", "1"), (21, None, "1", "0"))}
OVERLAPPING = {"graduated_ranges": ranges((0, 10, "10", "2"), (10, 20, "5", "1"), (20, None, "1", "0"))}


def test_a_standard_price_is_one_for_each_unit() -> None:
    """https://getlago.com/docs/guide/plans/charges/charge-models/standard: 1,000 calls at $0.05 are $50."""
    assert amount("standard", {"amount": "0.05"}, 1000) == 50


@pytest.mark.parametrize(
    ("units", "expected"), [(0, "0"), (1, "1"), (100, "100"), (101, "100.5"), (200, "150"), (250, "155")]
)
def test_graduated_units_cost_what_their_range_says(units: int, expected: str) -> None:
    assert amount("graduated", GRADUATED, units) == Decimal(expected)


@pytest.mark.parametrize(("units", "expected"), [(0, 0), (100, 0), (101, 5), (200, 5), (201, 10), ("200.01", 10)])
def test_a_package_counts_from_its_first_unit_after_the_free_ones(units: object, expected: int) -> None:
    assert amount("package", PACKAGE, units) == expected


@pytest.mark.parametrize(
    ("units", "expected"),
    [(0, "10"), (10_000, "20"), (10_001, "18.0008"), (65_000, "49"), (100_000, "70"), (100_001, "50.0004")],
)
def test_all_units_cost_what_the_volume_reached_says(units: int, expected: str) -> None:
    assert amount("volume", VOLUME, units) == Decimal(expected)


def test_no_usage_costs_the_first_range_its_flat_amount() -> None:
    assert amount("graduated", FOLLOWING, 0) == 2
    assert amount("volume", VOLUME, 0) == 10


@given(st.integers(0, 60))
def test_both_ways_of_writing_ranges_cost_the_same(units: int) -> None:
    assert amount("graduated", FOLLOWING, units) == amount("graduated", OVERLAPPING, units)


@given(st.integers(0, 60))
def test_graduated_is_the_sum_of_what_each_unit_and_each_entered_range_adds(units: int) -> None:
    prices = [10 if unit <= 10 else 5 if unit <= 20 else 1 for unit in range(1, units + 1)]
    assert amount("graduated", FOLLOWING, units) == sum(prices) + 2 + (units > 10)


def test_a_table_that_mixes_both_ways_bills_one_unit_too_many() -> None:
    """The trap in lago-api ``graduated_service.rb``: a range that overlaps counts its first unit a second time."""
    mixed = {"graduated_ranges": ranges((0, 10, "10", "0"), (10, 20, "5", "0"), (21, None, "1", "0"))}
    assert amount("graduated", mixed, 10) == 100
    assert amount("graduated", mixed, 11) == 110
    proper = {"graduated_ranges": ranges((0, 10, "10", "0"), (10, 20, "5", "0"), (20, None, "1", "0"))}
    assert amount("graduated", proper, 11) == 105


def test_the_details_of_a_graduated_amount_stop_at_the_range_that_usage_reaches() -> None:
    details: Any = cost("graduated", FOLLOWING, Usage(Decimal(11))).details
    found = [
        (item["units"], item["flat_unit_amount"], item["total_with_flat_amount"])
        for item in details["graduated_ranges"]
    ]
    assert found == [("10.0", "2.0", "102.0"), ("1.0", "1.0", "6.0")]


def test_a_percentage_is_of_the_units_plus_an_amount_for_each_event() -> None:
    properties = {"rate": "1.5", "fixed_amount": "0.25"}
    assert amount("percentage", properties, 300, (100, 200)) == Decimal("5.00")
    assert amount("percentage", properties, 0) == 0


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        ({"free_units_per_events": 1}, "2.25"),
        ({"free_units_per_events": 5}, "0"),
        ({"free_units_per_total_aggregation": "250"}, "0.75"),
    ],
)
def test_a_percentage_may_leave_the_first_events_or_units_free(free: dict[str, Any], expected: str) -> None:
    properties = {"rate": "1", "fixed_amount": "0.25", **free}
    assert amount("percentage", properties, 300, (100, 200)) == Decimal(expected)


def test_usage_below_zero_costs_nothing() -> None:
    assert cost("standard", {"amount": "1"}, Usage(Decimal(-5))).amount == 0


def test_amounts_keep_all_their_decimals() -> None:
    assert amount("standard", {"amount": "0.00012"}, "12345678901.00001") == Decimal("1481481.4681200012")


@pytest.mark.parametrize(
    ("model", "properties", "wrong"),
    [
        ("standard", {}, {"amount": ["invalid_amount"]}),
        ("standard", {"amount": 5}, {"amount": ["invalid_amount"]}),
        ("standard", {"amount": "-1"}, {"amount": ["invalid_amount"]}),
        ("standard", {"amount": "Infinity"}, {"amount": ["invalid_amount"]}),
        ("package", {"amount": "1", "package_size": 0, "free_units": 0}, {"package_size": ["invalid_package_size"]}),
        ("package", {"amount": "1", "package_size": 10}, {"free_units": ["invalid_free_units"]}),
        ("graduated", {}, {"graduated_ranges": ["missing_graduated_ranges"]}),
        ("graduated", {"graduated_ranges": []}, {"graduated_ranges": ["missing_graduated_ranges"]}),
        ("volume", {"volume_ranges": ranges((0, 10, "1", "0"))}, {"volume_ranges": ["invalid_volume_ranges"]}),
        ("percentage", {"rate": "x"}, {"rate": ["invalid_rate"]}),
    ],
)
def test_properties_that_cannot_be_billed_are_refused(
    model: str, properties: dict[str, Any], wrong: dict[str, list[str]]
) -> None:
    assert property_errors(model, properties) == wrong


@pytest.mark.parametrize(
    "given",
    [
        [(2, None, "1", "0")],
        [(0, 10, "1", "0"), (12, None, "1", "0")],
        [(0, 10, "1", "0"), (9, None, "1", "0")],
        [(0, None, "1", "0"), (1, None, "1", "0")],
        [(0, 10, "1", "0"), (11, 10, "1", "0"), (11, None, "1", "0")],
        [(0, 10, "1", "0"), (11, 20, "1", "0")],
    ],
)
def test_ranges_with_gaps_overlaps_or_no_end_are_refused(given: list[Range]) -> None:
    wrong = property_errors("graduated", {"graduated_ranges": ranges(*given)})
    assert wrong == {"graduated_ranges": ["invalid_graduated_ranges"]}


@pytest.mark.parametrize("first", [0, 1])
def test_ranges_may_start_at_zero_or_one(first: int) -> None:
    properties = {"graduated_ranges": ranges((first, 10, "1", "0"), (11, None, "2", "0"))}
    assert amount("graduated", properties, 12) == 14


def test_a_range_needs_its_flat_amount_as_text() -> None:
    """The platform page's plan lacks them: Lago refuses it."""
    bare = [{"from_value": 0, "to_value": None, "per_unit_amount": "0.001"}]
    assert property_errors("graduated", {"graduated_ranges": bare}) == {"flat_amount": ["invalid_amount"]}
