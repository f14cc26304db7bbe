"""Price tables written as Lago's charges and as YAML are read back as the same tables."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from sidecar.billing.catalog.tables import describe, model_of, properties_of, snippet
from sidecar.billing.lago.models import Charge, Plan
from sidecar.billing.reconcile.charge_prices import price_table
from sidecar.ledger.pricing.price_tables import Graduated, Package, PriceTable, Standard, Tier, Volume, pack
from sidecar.ledger.pricing.rating import cost
from sidecar.sandbox.lago.charges import Usage, property_errors
from sidecar.sandbox.lago.charges import cost as lago_cost
from tests.unit.billing.catalog.kit import catalog

PLAN = Plan("", "p", "p", "monthly", 0, "USD", False, ())
AMOUNTS = st.decimals(0, 1000, places=4)


@st.composite
def tiers(draw: st.DrawFn) -> tuple[Tier, ...]:
    bounds: list[int | None] = sorted(draw(st.sets(st.integers(1, 12) | st.integers(1, 10_000), max_size=4)))  # type: ignore[assignment]
    return tuple(Tier(to, draw(AMOUNTS), draw(AMOUNTS)) for to in [*bounds, None])


TABLES: st.SearchStrategy[PriceTable] = st.one_of(
    st.builds(Standard, AMOUNTS),
    st.builds(Package, AMOUNTS, st.integers(1, 1000), st.integers(0, 1000)),
    tiers().map(Graduated),
    tiers().map(Volume),
)


@given(TABLES)
def test_a_charge_that_is_written_is_read_back_as_the_same_table(table: PriceTable) -> None:
    properties = properties_of(table)
    assert property_errors(model_of(table), properties) == {}
    assert price_table(Charge("", "c", model_of(table), properties), PLAN, ()) == table


@given(TABLES, st.integers(0, 20_000))
def test_a_charge_that_is_written_costs_in_lago_what_it_costs_here(table: PriceTable, units: int) -> None:
    found = lago_cost(model_of(table), properties_of(table), Usage(Decimal(units)))
    assert found.amount == Decimal(cost(pack(table, 4, ""), units)).scaleb(-4)


@given(TABLES)
def test_a_snippet_is_read_back_as_the_same_table(table: PriceTable) -> None:
    text = f"plans:\n  - code: p\n    currency: USD\n    charges:\n      - {snippet(table, 'c')}\n"
    with TemporaryDirectory() as directory:
        (charge,) = catalog(Path(directory), text).plans[0].plan.charges
    assert price_table(charge, PLAN, ()) == table


def test_ranges_begin_one_after_the_last_unless_a_tier_is_for_a_single_unit() -> None:
    def bounds(*ends: int) -> list[tuple[int, int | None]]:
        tiers = tuple(Tier(end, Decimal(1)) for end in [*ends, None])
        ranges = properties_of(Graduated(tiers))["graduated_ranges"]
        return [(each["from_value"], each["to_value"]) for each in ranges]

    assert bounds(10, 20) == [(0, 10), (11, 20), (21, None)]
    assert bounds(1, 3) == [(0, 1), (2, 3), (4, None)]
    assert bounds(10, 11, 20) == [(0, 10), (10, 11), (11, 20), (20, None)]
    assert bounds() == [(0, None)]


def test_a_table_is_described_in_one_line() -> None:
    tiers = (Tier(10, Decimal("0.50"), Decimal(1)), Tier(None, Decimal("1E-3")))
    assert describe(Graduated(tiers)) == "graduated: to 10 0.5 + 1 flat, then 0.001"
    assert describe(Package(Decimal(100), 10, 5)) == "package: 100 for 10 after 5 free"
    assert describe(Standard(Decimal("0.010"))) == "standard: 0.01"
