"""The package's own rating against the independent one in tests/reference."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.ledger.pricing.price_tables import (
    MAX_INT,
    Graduated,
    Package,
    PackedTable,
    PriceTable,
    Standard,
    Tier,
    Volume,
    pack,
)
from sidecar.ledger.pricing.rating import bounded, cost, unpacked, worst
from tests.reference import pricing as reference

AMOUNTS = st.integers(0, 5_000).map(lambda cents: Decimal(cents).scaleb(-2))


@st.composite
def tiers(draw: st.DrawFn) -> tuple[Tier, ...]:
    ends = sorted(draw(st.sets(st.integers(1, 60), max_size=4)))
    return tuple(Tier(end, draw(AMOUNTS), draw(AMOUNTS)) for end in [*ends, None])


TABLES: st.SearchStrategy[PriceTable] = st.one_of(
    st.builds(Standard, AMOUNTS),
    st.builds(Graduated, tiers()),
    st.builds(Volume, tiers()),
    st.builds(Package, AMOUNTS, st.integers(1, 12), st.integers(0, 12)),
)
PACKED: st.SearchStrategy[PackedTable] = TABLES.map(lambda table: pack(table, 2, "t"))


@given(PACKED, st.integers(0, 100))
def test_units_cost_what_the_reference_says(table: PackedTable, units: int) -> None:
    assert cost(table, units) == reference.cost(table, units)


@given(PACKED, st.integers(0, 80), st.integers(0, 40))
def test_a_hold_reserves_what_the_reference_says(table: PackedTable, settled: int, held: int) -> None:
    assert worst(table, settled, held) == reference.worst(table, settled, held)


@given(TABLES)
def test_a_table_comes_back_from_being_packed(table: PriceTable) -> None:
    assert unpacked(pack(table, 4, "t"), 4) == table


@pytest.mark.parametrize(("money", "kept"), [(0, 0), (MAX_INT, MAX_INT), (MAX_INT + 1, MAX_INT), (10**30, MAX_INT)])
def test_money_beyond_what_the_ledger_can_keep_stays_at_the_bound(money: int, kept: int) -> None:
    assert bounded(money) == kept


@pytest.mark.parametrize(("settled", "held", "reserved"), [(4, 3, 50), (5, 1, 50), (5, 0, 50), (6, 1, 7), (0, 5, 50)])
def test_a_hold_into_a_cheaper_tier_reserves_the_peak_before_it(settled: int, held: int, reserved: int) -> None:
    table = pack(Volume((Tier(5, Decimal(10)), Tier(None, Decimal(1)))), 0, "t")

    assert worst(table, settled, held) == reserved
