"""The scripts' price arithmetic against the reference, on every kind of table that the loader lets through."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgpack
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.ledger.pricing.price_tables import (
    MAX_INT,
    Graduated,
    Package,
    PriceError,
    PriceTable,
    Standard,
    Tier,
    Volume,
    pack,
)
from tests.reference import pricing as reference
from tests.reference.pricing import Table
from tests.support.ledger_state import pack as packb

LIBRARY = "".join(
    (Path(__file__).parents[3] / "lua" / "lib" / f"{part}.lua").read_text() for part in ("names", "pricing")
)

# ARGV[1]: {table, {{n, h}, ...}, {x, ...}}. Every x that lies in the piece of some n is rated by that piece, too.
ASK = (
    LIBRARY
    + """
local tbl, questions, xs = unpack(cmsgpack.unpack(ARGV[1]))
local answers = {}
for q = 1, #questions do
  local n, h = questions[q][1], questions[q][2]
  local lo, hi, a, b = price_piece(tbl, n)
  local on_piece = {lo, a, hi, a + b * (hi - lo)}
  for i = 1, #xs do
    if xs[i] >= lo and xs[i] <= hi then
      on_piece[#on_piece + 1] = xs[i]
      on_piece[#on_piece + 1] = a + b * (xs[i] - lo)
    end
  end
  answers[q] = {price_cost(tbl, n), price_worst(tbl, n, h), lo, hi, on_piece}
end
return cmsgpack.pack(answers)
"""
)


@dataclass(frozen=True)
class Answer:
    cost: float
    worst: float
    lo: int
    hi: int
    on_piece: list[tuple[int, float]]


def ask(client: redis.Redis, table: Table, questions: list[tuple[int, int]], xs: Iterable[int] = ()) -> list[Answer]:
    """Everything the Lua says about a table, in one call."""
    raw = client.eval(ASK, 0, packb([table, questions, sorted(xs)]))
    return [
        Answer(cost, worst, lo, hi, list(zip(piece[::2], piece[1::2], strict=True)))
        for cost, worst, lo, hi, piece in msgpack.unpackb(raw)
    ]


def assert_same_money(lua: Any, exact: int, what: str) -> None:
    """Below 2^53 to the last digit; a sum that does not fit must not look as if it did."""
    if exact <= MAX_INT:
        assert lua == exact, f"{what}: {lua} instead of {exact}"
    else:
        assert lua > MAX_INT, f"{what}: {lua} instead of {exact}"


# Tables

amounts_scaled = st.one_of(st.just(0), st.integers(0, 200), st.integers(0, 10**9), st.integers(0, MAX_INT))
digits_of_account = st.integers(0, 12)


def money(scaled: int, digits: int) -> Decimal:
    return Decimal(scaled).scaleb(-digits)


@st.composite
def tiers(draw: st.DrawFn, digits: int, cumulative: bool) -> tuple[Tier, ...]:
    """Up to fifty tiers, each as dear as it likes as long as its first unit can be paid for below 2^53."""
    largest = draw(st.sampled_from([60, 10**4, 10**9, MAX_INT - 1]))
    bounds = sorted(draw(st.sets(st.integers(1, largest), max_size=49)))
    made, below, spent = [], 0, 0
    for to in [*bounds, None]:
        until = below + 1 if to is None else to
        units = until - below if cumulative else until
        room = MAX_INT - spent if cumulative else MAX_INT
        flat = min(draw(amounts_scaled), room)
        dearest = (room - flat) // units
        unit = draw(st.sampled_from([0, min(1, dearest), min(7, dearest), dearest // 3, dearest]))
        spent += unit * units + flat
        made.append(Tier(to, money(unit, digits), money(flat, digits)))
        below = until
    return tuple(made)


@st.composite
def packed_tables(draw: st.DrawFn) -> Table:
    digits = draw(digits_of_account)
    model = draw(st.sampled_from("sgvp"))
    table: PriceTable
    match model:
        case "s":
            table = Standard(money(draw(amounts_scaled), digits))
        case "g":
            table = Graduated(draw(tiers(digits, cumulative=True)))
        case "v":
            table = Volume(draw(tiers(digits, cumulative=False)))
        case _:
            size = draw(st.one_of(st.integers(1, 50), st.integers(1, MAX_INT)))
            free = draw(st.one_of(st.integers(0, 50), st.integers(0, MAX_INT)))
            table = Package(money(draw(amounts_scaled), digits), size, free)
    return pack(table, digits, "generated")


def interesting(table: Table) -> st.SearchStrategy[int]:
    """Counts of units, mostly where a table bends."""
    bends = {0, 1, 2}
    if table[0] in ("g", "v"):
        bends |= {tier.to for tier in reference.steps(table)}
    if table[0] == "p":
        size, free, _amount = map(int, table[1:])
        bends |= {free + size * k for k in range(4)}
    near = st.builds(lambda bend, off: bend + off, st.sampled_from(sorted(bends)), st.integers(-2, 2))
    counts = st.one_of(near, st.integers(0, 300), st.integers(0, 10**7), st.integers(0, MAX_INT))
    return counts.map(lambda n: max(0, min(n, MAX_INT)))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_lua_and_reference_agree_on_cost_worst_case_and_pieces(valkey: redis.Redis, data: st.DataObject) -> None:
    table = data.draw(packed_tables())
    counts = data.draw(st.lists(interesting(table), min_size=4, max_size=10))
    questions = [(n, min(h, MAX_INT - n)) for n, h in zip(counts, [*counts[1:], 3], strict=True)]
    for (n, h), answer in zip(questions, ask(valkey, table, questions, counts), strict=True):
        assert_same_money(answer.cost, reference.cost(table, n), f"cost({table}, {n})")
        assert_same_money(answer.worst, reference.worst(table, n, h), f"worst({table}, {n}, {h})")
        assert 0 <= answer.lo <= n <= answer.hi <= MAX_INT
        for x, rated in answer.on_piece:
            assert_same_money(rated, reference.cost(table, x), f"the piece of {n} in {table} at {x}")


@given(data=st.data())
def test_the_reference_agrees_with_a_walk_unit_by_unit(data: st.DataObject) -> None:
    table = data.draw(packed_tables())
    n = data.draw(st.integers(0, 150))
    assert reference.cost(table, n) == reference.marginal_walk(table, n)


@given(data=st.data())
def test_the_dearest_count_is_a_corner(data: st.DataObject) -> None:
    """The reference tries every count for small holds and only corners for large ones; both must say the same."""
    table = data.draw(packed_tables())
    n, h = data.draw(st.integers(0, 150)), data.draw(st.integers(0, reference.BRUTE_FORCE_MAX))
    assert reference.worst(table, n, h) == max(reference.cost(table, x) for x in reference.corners(table, n, n + h))


# What Lago itself says

D = Decimal
SPEC_GRADUATED = Graduated((Tier(10, D(10), D(2)), Tier(20, D(5), D(3)), Tier(None, D(5), D(3))))
SPEC_VOLUME = Volume((Tier(100, D(2), D(10)), Tier(200, D(1)), Tier(None, D("0.5"), D(50))))
DOCS_GRADUATED = Graduated((Tier(100, D(1)), Tier(200, D("0.50")), Tier(None, D("0.10"))))
DOCS_VOLUME = Volume(
    (
        Tier(10_000, D("0.0010"), D(10)),
        Tier(50_000, D("0.0008"), D(10)),
        Tier(100_000, D("0.0006"), D(10)),
        Tier(None, D("0.0004"), D(10)),
    )
)

WORKED_EXAMPLES: list[tuple[str, PriceTable, int, str]] = [
    # getlago.com/docs/guide/plans/charges/charge-models/standard
    ("standard, docs", Standard(D("0.05")), 1000, "50"),
    # getlago.com/docs/guide/plans/charges/charge-models/graduated: $1 to 100, $0.50 to 200, then $0.10
    ("graduated, docs, first tier", DOCS_GRADUATED, 100, "100"),
    ("graduated, docs, second tier", DOCS_GRADUATED, 200, "150"),
    ("graduated, docs, beyond", DOCS_GRADUATED, 250, "155"),
    # lago-api spec/services/charge_models/graduated_service_spec.rb
    ("graduated, spec, 0", SPEC_GRADUATED, 0, "2"),
    ("graduated, spec, 1", SPEC_GRADUATED, 1, "12"),
    ("graduated, spec, 10", SPEC_GRADUATED, 10, "102"),
    ("graduated, spec, 11", SPEC_GRADUATED, 11, "110"),
    ("graduated, spec, 12", SPEC_GRADUATED, 12, "115"),
    ("graduated, spec, 21", SPEC_GRADUATED, 21, "163"),
    # getlago.com/docs/guide/plans/charges/charge-models/package: $5 per 100 units, 100 free
    ("package, docs, 201", Package(D(5), 100, 100), 201, "10"),
    ("package, docs, all free", Package(D(5), 100, 100), 100, "0"),
    # lago-api spec/services/charge_models/package_service_spec.rb
    ("package, spec", Package(D(100), 10), 121, "1300"),
    ("package, spec, free units", Package(D(100), 10, 10), 121, "1200"),
    ("package, spec, only free units", Package(D(100), 10, 200), 121, "0"),
    # getlago.com/docs/guide/plans/charges/charge-models/volume
    ("volume, docs, 65,000", DOCS_VOLUME, 65_000, "49"),
    # lago-api spec/services/charge_models/volume_service_spec.rb
    ("volume, spec, 0", SPEC_VOLUME, 0, "10"),
    ("volume, spec, 1", SPEC_VOLUME, 1, "12"),
    ("volume, spec, 100", SPEC_VOLUME, 100, "210"),
    ("volume, spec, 101", SPEC_VOLUME, 101, "101"),
    ("volume, spec, 200", SPEC_VOLUME, 200, "200"),
    ("volume, spec, 210", SPEC_VOLUME, 210, "155"),
    ("volume, spec, 300", SPEC_VOLUME, 300, "200"),
]


@pytest.mark.parametrize(
    ("table", "n", "amount"), [e[1:] for e in WORKED_EXAMPLES], ids=[e[0] for e in WORKED_EXAMPLES]
)
def test_a_worked_example_of_lago_costs_what_lago_says(
    valkey: redis.Redis, table: PriceTable, n: int, amount: str
) -> None:
    packed = pack(table, 4, "example")
    exact = int(D(amount) * 10**4)
    assert reference.cost(packed, n) == exact
    assert [answer.cost for answer in ask(valkey, packed, [(n, 0)])] == [exact]


def test_a_hold_across_the_end_of_a_volume_tier_is_rated_at_its_peak(valkey: redis.Redis) -> None:
    packed = pack(SPEC_VOLUME, 2, "example")
    [across, beyond] = ask(valkey, packed, [(90, 30), (101, 19)])
    assert (across.cost, across.worst) == (190_00, 210_00), "100 units cost 210, 120 only 120"
    assert beyond.worst == 120_00, "once the peak is passed it is not reserved any more"


def test_a_graduated_price_is_exact_where_units_times_price_alone_would_pass_2_to_the_53rd(valkey: redis.Redis) -> None:
    # Counted from zero, 5,003 units at this price are beyond 2^53; what they cost, of which 5,000 are free, is not.
    unit = MAX_INT // 3
    packed = pack(Graduated((Tier(5000, D(0)), Tier(None, D(unit)))), 0, "example")
    assert [answer.cost for answer in ask(valkey, packed, [(5003, 0)])] == [3 * unit]


# What is refused


def tiers_of(*bounds: int | None) -> tuple[Tier, ...]:
    return tuple(Tier(bound, D(1)) for bound in bounds)


REFUSED: list[tuple[str, PriceTable, int, str]] = [
    ("negative amount", Standard(D("-0.01")), 2, "plan gold, charge calls: negative amount -0.01"),
    ("negative flat fee", Volume((Tier(None, D(1), D(-2)),)), 2, "plan gold, charge calls: negative amount -2"),
    ("too many decimals for the account", Standard(D("0.125")), 2, "plan gold, charge calls: 0.125 needs more than 2"),
    (
        "too many decimals for anyone",
        Standard(D("0.1234567890123")),
        12,
        "plan gold, charge calls: 0.1234567890123 has 13 decimals; at most 12",
    ),
    (
        "more decimals than a decimal context keeps",
        Standard(D("1.00000000000000000000000000000000001")),
        2,
        "plan gold, charge calls: 1.00000000000000000000000000000000001 has 35 decimals",
    ),
    ("no number", Standard(D("NaN")), 2, "plan gold, charge calls: NaN is not a finite amount"),
    ("infinite", Graduated((Tier(None, D("Infinity")),)), 2, "plan gold, charge calls: Infinity is not a finite"),
    ("beyond 2^53", Standard(D(2**53)), 0, "plan gold, charge calls: 9007199254740992 with 0 decimals does not fit"),
    ("beyond 2^53 once scaled", Standard(D(10**14)), 2, "plan gold, charge calls: 100000000000000 with 2 decimals"),
    ("astronomic", Standard(D("1E+999999")), 2, "plan gold, charge calls: 1E+999999 with 2 decimals does not fit"),
    ("astronomic and negative", Package(D("-1E+999999"), 1), 2, "plan gold, charge calls: negative amount"),
    ("no tiers", Graduated(()), 2, "plan gold, charge calls: no tiers"),
    ("too many tiers", Volume(tiers_of(*range(1, 101), None)), 2, "plan gold, charge calls: 101 tiers; at most 100"),
    ("bounds that fall", Graduated(tiers_of(20, 10, None)), 2, "plan gold, charge calls, tier 2: upper bound 10 is"),
    ("bounds that stand still", Volume(tiers_of(10, 10, None)), 2, "plan gold, charge calls, tier 2: upper bound 10"),
    ("an empty first tier", Graduated(tiers_of(0, None)), 2, "plan gold, charge calls, tier 1: upper bound 0 is not"),
    ("an open tier before the last", Volume(tiers_of(None, None)), 2, "plan gold, charge calls, tier 1: the last tier"),
    ("a closed last tier", Volume(tiers_of(10, 20)), 2, "plan gold, charge calls, tier 2: the last tier, and only it"),
    ("a tier's amount with too many decimals", Graduated((Tier(5, D("0.5")), Tier(None, D("0.001")))), 2,
     "plan gold, charge calls, tier 2: 0.001 needs more than 2 decimals"),
    ("a tier that nobody can reach in exact money", Graduated((Tier(2**50, D(16)), Tier(None, D(1)))), 0,
     "plan gold, charge calls, tier 2: the price of its first unit does not fit below 2^53"),
    ("a volume tier that nobody can reach", Volume((Tier(2**50, D(1)), Tier(None, D(16)))), 0,
     "plan gold, charge calls, tier 2: the price of its first unit does not fit below 2^53"),
    ("a package of nothing", Package(D(1), 0), 2, "plan gold, charge calls: package size 0 is not between"),
    ("negative free units", Package(D(1), 10, -1), 2, "plan gold, charge calls: free units -1 are not between"),
]  # fmt: skip


@pytest.mark.parametrize(("table", "digits", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_a_table_that_cannot_be_enforced_is_refused_by_name(table: PriceTable, digits: int, message: str) -> None:
    with pytest.raises(PriceError, match=re.escape(message)):
        pack(table, digits, "plan gold, charge calls")


@pytest.mark.parametrize(
    ("table", "digits", "packed"),
    [
        (Standard(D("1.50")), 2, ["s", 150]),
        (Standard(D("1." + "0" * 5000)), 0, ["s", 1]),
        (Standard(D("0E-9999")), 0, ["s", 0]),
        (Standard(D(MAX_INT)), 0, ["s", MAX_INT]),
        (Package(D("0.001"), 100), 3, ["p", 100, 0, 1]),
        (Volume((Tier(10, D(1)), Tier(None, D("0.5"), D(2)))), 1, ["v", 10, 10, 0, MAX_INT, 5, 20]),
    ],
)
def test_a_table_is_packed_as_scaled_integers(table: PriceTable, digits: int, packed: list[str | int]) -> None:
    assert pack(table, digits, "example") == packed
