"""The loader: new funds, new prices, new periods, and why none of them gives anything back by mistake."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.ledger.desk import CENT, END_MS, LENGTH_MS, START_MS, Desk
from tests.reference.messages import Code, Conflict, LedgerError, Load, Loaded, MetricState, Outcome
from tests.reference.pricing import MAX_INT, Table
from tests.support.ledger_driver import RealLedger

# Versions


def test_every_load_is_a_new_version_and_the_info_says_so(desk: Desk) -> None:
    assert desk.load(info='{"version":0,"mode":"prepaid"}') == Loaded(1)
    assert desk.load(info='{"version":0,"mode":"prepaid"}') == Loaded(2)
    assert desk.account().info == '{"version":2,"mode":"prepaid"}'


def test_a_gateway_is_told_the_info_only_when_it_knows_another_version(desk: Desk) -> None:
    desk.load()
    assert desk.ask(1, known=0).info == '{"version":1,"currency":"EUR"}'
    assert desk.ask(1, known=1).info is None
    desk.load()
    assert desk.ask(1, known=1).info == '{"version":2,"currency":"EUR"}'


@pytest.mark.parametrize(
    "stale", [{"expected_version": 0}, {"expected_version": 2}, {"expected_digits": 3, "digits": 3}]
)
def test_who_read_something_else_than_is_stored_must_read_again(desk: Desk, stale: dict[str, Any]) -> None:
    desk.load()
    before = desk.account()
    assert desk.load(ceiling=5, **stale) == Conflict(1, 2)
    assert desk.account() == before


def test_who_expects_a_version_of_a_new_account_must_read_again(desk: Desk) -> None:
    assert desk.load(expected_version=1) == Conflict(0, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"period_end_ms": START_MS}, "INVALID the period of account tpp does not end after its start"),
        ({"digits": 1}, "INVALID account tpp has 2 decimals, which can only grow, not 1"),
        ({"digits": 12, "expected_digits": 2}, "OVERFLOW the older cost of account tpp cannot be represented with 12"),
    ],
)
def test_what_cannot_be_taken_is_refused_by_name_and_changes_nothing(
    real_desk: Desk, change: dict[str, Any], message: str
) -> None:
    """Not even a rollover that was due: half of one would be worse than none."""
    real_desk.load(prices={"api_calls": ["s", 10**6]}, ceiling=MAX_INT, older_cost=10**6, periods=(END_MS + 5000,))
    real_desk.spend(3)
    real_desk.wait_until_ms(END_MS)
    before = real_desk.account()
    with pytest.raises(LedgerError, match=message):
        real_desk.load(**change)
    assert real_desk.account() == before
    real_desk.spend(1)
    assert (real_desk.account().end_ms, real_desk.account().older_cost) == (END_MS + 5000, 4 * 10**6)


def test_a_former_price_that_more_decimals_would_drive_too_far_is_refused_by_name(real_desk: Desk) -> None:
    real_desk.load(prices={"api_calls": ["s", 10**7]})
    before = real_desk.account()
    with pytest.raises(LedgerError, match="OVERFLOW the former price of api_calls of account tpp cannot"):
        real_desk.load(digits=12, expected_digits=2, prices={"payments": ["s", 1]})
    assert real_desk.account() == before


# Funds


def test_new_money_is_available_at_once_and_costs_stay(desk: Desk) -> None:
    desk.load(ceiling=5)
    desk.spend(4)
    desk.hold(1)
    desk.load(ceiling=8)
    assert desk.hold(4) == Outcome(Code.CREDIT, 3, 4)
    assert desk.hold(3) == Outcome(Code.GRANTED, 0, 3)


def test_funds_that_shrink_below_what_is_used_refuse_everything(desk: Desk) -> None:
    desk.load(ceiling=10)
    desk.spend(6)
    desk.hold(2)
    desk.load(ceiling=5)
    assert desk.hold(1) == Outcome(Code.CREDIT, -3, 1)
    desk.settle(2)
    assert (desk.n(), desk.h()) == (8, 0)


def test_a_reload_gives_no_used_or_held_unit_back(desk: Desk) -> None:
    desk.load()
    desk.spend(6)
    desk.hold(3)
    desk.load()
    assert desk.account().metrics == {"api_calls": MetricState(6, 3)}


# Prices


def test_a_new_price_rates_the_whole_period_anew(desk: Desk) -> None:
    desk.load(ceiling=100)
    desk.spend(10)
    desk.load(prices={"api_calls": ["s", 7]})
    assert desk.hold(1) == Outcome(Code.GRANTED, 23, 7)


def test_a_metric_that_leaves_the_plan_stays_paid_for_and_takes_no_new_holds(desk: Desk) -> None:
    desk.load(ceiling=30, prices={"api_calls": ["s", 1], "payments": ["s", 10]})
    desk.spend(1, metric="payments")
    desk.hold(1, metric="payments")
    desk.load(prices={"api_calls": ["s", 1]})
    for _ in range(2):  # a second time, since the first may have looked its price up
        assert desk.hold(11) == Outcome(Code.CREDIT, 10, 11)
        assert desk.hold(1, metric="payments") == Outcome(Code.UNPRICED)
    desk.settle(1, metric="payments")
    assert desk.n(metric="payments") == 2
    desk.load()
    assert desk.hold(11) == Outcome(Code.CREDIT, 10, 11), "a further load does not forget it"


def test_a_metric_that_comes_back_takes_holds_again(desk: Desk) -> None:
    desk.load(ceiling=100, prices={"api_calls": ["s", 1], "payments": ["s", 10]})
    desk.spend(2, metric="payments")
    desk.load(prices={"api_calls": ["s", 1]})
    desk.load(prices={"payments": ["s", 20], "api_calls": ["s", 1]})
    assert desk.hold(1, metric="payments") == Outcome(Code.GRANTED, 40, 20)
    assert desk.account().gone == {}


def test_more_decimals_keep_every_amount_what_it_was(desk: Desk) -> None:
    tables: dict[str, Table] = {
        "standard": ["s", 3],
        "graduated": ["g", 10, 2, 25, MAX_INT, 4, 1],
        "volume": ["v", 10, 2, 25, MAX_INT, 4, 1],
        "package": ["p", 5, 2, 7],
    }
    desk.load(ceiling=500, older_cost=11, prices=tables | CENT)
    costs = sum(desk.spend(12, metric=metric).y for metric in tables)
    assert desk.hold(10**6).x == 500 - 11 - costs - 25 - 25, "the first tiers' flat fees were due before"
    desk.load(ceiling=500_000, digits=5, prices={"api_calls": ["s", 1000]})
    state = desk.account()
    assert state.gone == {
        "standard": ["s", 3000],
        "graduated": ["g", 10, 2000, 25_000, MAX_INT, 4000, 1000],
        "volume": ["v", 10, 2000, 25_000, MAX_INT, 4000, 1000],
        "package": ["p", 5, 2, 7000],
    }
    assert (state.older_cost, state.digits) == (11_000, 5)
    assert desk.hold(10**6).x == 1000 * (500 - 11 - costs - 25 - 25)


# Periods, and K


def test_an_upgrade_closes_the_period_at_once_by_the_old_prices(desk: Desk) -> None:
    desk.load(ceiling=100)
    desk.spend(6)
    desk.hold(2)
    desk.wait_ms(5000)
    now_ms = desk.now_us // 1000
    desk.load(prices={"api_calls": ["s", 10]}, period_start_ms=now_ms, period_end_ms=now_ms + LENGTH_MS)
    state = desk.account()
    assert state.closed == {(START_MS, "api_calls"): (6, 6)}
    assert (state.start_ms, state.end_ms, state.older_cost) == (now_ms, now_ms + LENGTH_MS, 6)
    assert state.metrics == {"api_calls": MetricState(0, 2)}
    assert desk.hold(1) == Outcome(Code.GRANTED, 100 - 6 - 30, 10)


def test_a_load_after_the_end_rolls_over_by_the_old_prices_first(desk: Desk) -> None:
    desk.load(ceiling=100)
    desk.spend(6)
    desk.wait_until_ms(END_MS)
    desk.load(prices={"api_calls": ["s", 10]}, period_start_ms=END_MS, period_end_ms=END_MS + 5000)
    state = desk.account()
    assert state.closed == {(START_MS, "api_calls"): (6, 6)}
    assert (state.start_ms, state.end_ms, state.older_cost) == (END_MS, END_MS + 5000, 6)


def test_a_loader_that_looked_before_a_rollover_does_not_reopen_the_period(desk: Desk) -> None:
    desk.load(ceiling=100)
    desk.spend(6)
    desk.wait_until_ms(END_MS)
    desk.load(period_start_ms=START_MS, period_end_ms=END_MS)
    assert (desk.account().start_ms, desk.account().end_ms, desk.n()) == (END_MS, END_MS + LENGTH_MS, 0)


@pytest.mark.parametrize("rolled_before", [True, False])
def test_k_that_was_computed_before_a_rollover_gives_nothing_back(desk: Desk, rolled_before: bool) -> None:
    """The loader read an open period that had cost 6; K is of the periods before it, and would swallow these 6."""
    desk.load(ceiling=10)
    desk.spend(6)
    desk.wait_until_ms(END_MS)
    if rolled_before:
        desk.hold(1)
    held = 1 if rolled_before else 0
    answer = desk.load(period_start_ms=START_MS, period_end_ms=END_MS, older_cost=0, expected_start_ms=START_MS)
    assert answer == Conflict(1, 2), "with the start that it had read, it is told to read again"
    assert desk.account().start_ms == END_MS, "and finds the new period when it does"
    assert isinstance(desk.load(period_start_ms=START_MS, period_end_ms=END_MS, older_cost=0), Loaded)
    assert desk.account().older_cost == 6, "without one, its K is ignored"
    assert desk.hold(5) == Outcome(Code.CREDIT, 4 - held, 5)


def test_k_of_who_read_after_the_rollover_is_taken(desk: Desk) -> None:
    """An invoice was finalised: Lago has debited the wallet, and what it covers no longer waits."""
    desk.load(ceiling=10)
    desk.spend(6)
    desk.wait_until_ms(END_MS)
    desk.spend(1)
    desk.load(ceiling=4, older_cost=0, expected_start_ms=END_MS)
    assert desk.hold(4) == Outcome(Code.CREDIT, 3, 4)


def test_k_of_who_knows_the_stored_period_is_taken_though_lago_still_names_the_old_one(desk: Desk) -> None:
    desk.load(ceiling=10)
    desk.spend(6)
    desk.wait_until_ms(END_MS)
    desk.spend(1)
    desk.load(older_cost=9, expected_start_ms=END_MS, period_start_ms=START_MS, period_end_ms=END_MS)
    assert (desk.account().older_cost, desk.account().start_ms) == (9, END_MS)


def test_k_given_with_an_upgrade_is_joined_by_what_the_upgrade_closes(desk: Desk) -> None:
    """Units settled between the loader's look and its load are in N; only the script can count them."""
    desk.load(ceiling=1000, older_cost=5)
    desk.spend(6)
    now_ms = desk.now_us // 1000
    desk.load(
        older_cost=300, digits=3, expected_start_ms=START_MS, prices={"api_calls": ["s", 10]},
        period_start_ms=now_ms, period_end_ms=now_ms + LENGTH_MS,
    )  # fmt: skip
    assert desk.account().older_cost == 300 + 60


def test_the_end_of_the_period_at_hand_can_be_moved(desk: Desk) -> None:
    desk.load()
    desk.spend(6)
    desk.load(period_end_ms=END_MS - 5000)
    desk.wait_until_ms(END_MS - 5000)
    desk.spend(1)
    assert (desk.n(), desk.account().start_ms) == (1, END_MS - 5000)


def test_an_account_that_was_charged_before_it_was_loaded_keeps_its_units(desk: Desk) -> None:
    """It lost its data, or a gateway's spool came before the loader."""
    desk.charge_late(7)
    desk.load(ceiling=10)
    assert (desk.n(), desk.account().start_ms) == (7, START_MS)
    assert desk.hold(4) == Outcome(Code.CREDIT, 3, 4)


def test_loaded_accounts_are_listed_by_partition(real_desk: Desk) -> None:
    assert isinstance(real_desk.ledger, RealLedger)
    ledger = real_desk.ledger
    real_desk.charge_late(1, "other")
    real_desk.load("tpp")
    listed = [ledger.client.zrange(ledger.keys.accounts(p), 0, -1) for p in range(ledger.keys.partitions)]
    assert [names for names in listed if names] == [[b"tpp"]]


def test_a_load_says_all_that_is_read_back(real_desk: Desk) -> None:
    """The order of the seventeen values of the request, held to names."""
    load = Load(
        "tpp", {"api_calls": ["s", 1]}, START_MS, END_MS, ceiling=-5, status=2, count_k=False, rate_interval_us=7,
        burst=8, day_limit=9, periods=(END_MS + 1,), older_cost=10, digits=3, info='{"version":0}',
    )  # fmt: skip
    real_desk.ledger.load(load, now_us=real_desk.now_us)
    state = real_desk.account()
    assert state.terms == (1, 2, -5, 0, 7, 8, 9)
    assert (state.live, state.gone, state.periods) == ({"api_calls": ["s", 1]}, {}, (END_MS + 1,))
    assert (state.start_ms, state.end_ms, state.older_cost) == (START_MS, END_MS, 10)
    assert (state.digits, state.info) == (3, '{"version":1}')
