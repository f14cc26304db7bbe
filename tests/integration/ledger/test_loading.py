"""The loader: new funds, new prices, new periods, and why none of them gives anything back by mistake."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.ledger.ledger_fixture import CENT, END_MS, LENGTH_MS, START_MS, LedgerFixture
from tests.reference.messages import Code, Conflict, LedgerError, Load, Loaded, MetricState, Outcome
from tests.reference.pricing import MAX_INT, Table
from tests.support.ledger_driver import RealLedger

# Versions


def test_every_load_is_a_new_version_and_the_info_says_so(ledger: LedgerFixture) -> None:
    assert ledger.load(info='{"version":0,"mode":"prepaid"}') == Loaded(1)
    assert ledger.load(info='{"version":0,"mode":"prepaid"}') == Loaded(2)
    assert ledger.account().info == '{"version":2,"mode":"prepaid"}'


def test_a_gateway_is_told_the_info_only_when_it_knows_another_version(ledger: LedgerFixture) -> None:
    ledger.load()
    assert ledger.ask(1, known=0).info == '{"version":1,"currency":"EUR"}'
    assert ledger.ask(1, known=1).info is None
    ledger.load()
    assert ledger.ask(1, known=1).info == '{"version":2,"currency":"EUR"}'


@pytest.mark.parametrize(
    "stale", [{"expected_version": 0}, {"expected_version": 2}, {"expected_digits": 3, "digits": 3}]
)
def test_who_read_something_else_than_is_stored_must_read_again(ledger: LedgerFixture, stale: dict[str, Any]) -> None:
    ledger.load()
    before = ledger.account()
    assert ledger.load(ceiling=5, **stale) == Conflict(1, 2)
    assert ledger.account() == before


def test_who_expects_a_version_of_a_new_account_must_read_again(ledger: LedgerFixture) -> None:
    assert ledger.load(expected_version=1) == Conflict(0, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"period_end_ms": START_MS}, "INVALID the period of account tpp does not end after its start"),
        ({"digits": 1}, "INVALID account tpp has 2 decimals, which can only grow, not 1"),
        (
            {"digits": 12, "expected_digits": 2},
            "OVERFLOW the unsettled cost of account tpp cannot be represented with 12",
        ),
    ],
)
def test_what_cannot_be_taken_is_refused_by_name_and_changes_nothing(
    real_ledger: LedgerFixture, change: dict[str, Any], message: str
) -> None:
    """Not even a rollover that was due: half of one would be worse than none."""
    real_ledger.load(prices={"api_calls": ["s", 10**6]}, ceiling=MAX_INT, unsettled=10**6, periods=(END_MS + 5000,))
    real_ledger.spend(3)
    real_ledger.wait_until_ms(END_MS)
    before = real_ledger.account()
    with pytest.raises(LedgerError, match=message):
        real_ledger.load(**change)
    assert real_ledger.account() == before
    real_ledger.spend(1)
    assert (real_ledger.account().end_ms, real_ledger.account().unsettled) == (END_MS + 5000, 4 * 10**6)


def test_a_former_price_that_more_decimals_would_drive_too_far_is_refused_by_name(real_ledger: LedgerFixture) -> None:
    real_ledger.load(prices={"api_calls": ["s", 10**7]})
    before = real_ledger.account()
    with pytest.raises(LedgerError, match="OVERFLOW the former price of api_calls of account tpp cannot"):
        real_ledger.load(digits=12, expected_digits=2, prices={"payments": ["s", 1]})
    assert real_ledger.account() == before


# Funds


def test_new_money_is_available_at_once_and_costs_stay(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=5)
    ledger.spend(4)
    ledger.hold(1)
    ledger.load(ceiling=8)
    assert ledger.hold(4) == Outcome(Code.CREDIT, 3, 4)
    assert ledger.hold(3) == Outcome(Code.GRANTED, 0, 3)


def test_funds_that_shrink_below_what_is_used_refuse_everything(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=10)
    ledger.spend(6)
    ledger.hold(2)
    ledger.load(ceiling=5)
    assert ledger.hold(1) == Outcome(Code.CREDIT, -3, 1)
    ledger.settle(2)
    assert (ledger.settled_units(), ledger.held_units()) == (8, 0)


def test_a_reload_gives_no_used_or_held_unit_back(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.spend(6)
    ledger.hold(3)
    ledger.load()
    assert ledger.account().metrics == {"api_calls": MetricState(6, 3)}


# Prices


def test_a_new_price_rates_the_whole_period_anew(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=100)
    ledger.spend(10)
    ledger.load(prices={"api_calls": ["s", 7]})
    assert ledger.hold(1) == Outcome(Code.GRANTED, 23, 7)


def test_a_metric_that_leaves_the_plan_stays_paid_for_and_takes_no_new_holds(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=30, prices={"api_calls": ["s", 1], "payments": ["s", 10]})
    ledger.spend(1, metric="payments")
    ledger.hold(1, metric="payments")
    ledger.load(prices={"api_calls": ["s", 1]})
    for _ in range(2):  # a second time, since the first may have looked its price up
        assert ledger.hold(11) == Outcome(Code.CREDIT, 10, 11)
        assert ledger.hold(1, metric="payments") == Outcome(Code.UNPRICED)
    ledger.settle(1, metric="payments")
    assert ledger.settled_units(metric="payments") == 2
    ledger.load()
    assert ledger.hold(11) == Outcome(Code.CREDIT, 10, 11), "a further load does not forget it"


def test_a_metric_that_comes_back_takes_holds_again(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=100, prices={"api_calls": ["s", 1], "payments": ["s", 10]})
    ledger.spend(2, metric="payments")
    ledger.load(prices={"api_calls": ["s", 1]})
    ledger.load(prices={"payments": ["s", 20], "api_calls": ["s", 1]})
    assert ledger.hold(1, metric="payments") == Outcome(Code.GRANTED, 40, 20)
    assert ledger.account().gone == {}


def test_more_decimals_keep_every_amount_what_it_was(ledger: LedgerFixture) -> None:
    tables: dict[str, Table] = {
        "standard": ["s", 3],
        "graduated": ["g", 10, 2, 25, MAX_INT, 4, 1],
        "volume": ["v", 10, 2, 25, MAX_INT, 4, 1],
        "package": ["p", 5, 2, 7],
    }
    ledger.load(ceiling=500, unsettled=11, prices=tables | CENT)
    costs = sum(ledger.spend(12, metric=metric).y for metric in tables)
    assert ledger.hold(10**6).x == 500 - 11 - costs - 25 - 25, "the first tiers' flat fees were due before"
    ledger.load(ceiling=500_000, digits=5, prices={"api_calls": ["s", 1000]})
    state = ledger.account()
    assert state.gone == {
        "standard": ["s", 3000],
        "graduated": ["g", 10, 2000, 25_000, MAX_INT, 4000, 1000],
        "volume": ["v", 10, 2000, 25_000, MAX_INT, 4000, 1000],
        "package": ["p", 5, 2, 7000],
    }
    assert (state.unsettled, state.digits) == (11_000, 5)
    assert ledger.hold(10**6).x == 1000 * (500 - 11 - costs - 25 - 25)


# Periods, and unsettled costs


def test_an_upgrade_closes_the_period_at_once_by_the_old_prices(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=100)
    ledger.spend(6)
    ledger.hold(2)
    ledger.wait_ms(5000)
    now_ms = ledger.now_us // 1000
    ledger.load(prices={"api_calls": ["s", 10]}, period_start_ms=now_ms, period_end_ms=now_ms + LENGTH_MS)
    state = ledger.account()
    assert state.closed == {(START_MS, "api_calls"): (6, 6)}
    assert (state.start_ms, state.end_ms, state.unsettled) == (now_ms, now_ms + LENGTH_MS, 6)
    assert state.metrics == {"api_calls": MetricState(0, 2)}
    assert ledger.hold(1) == Outcome(Code.GRANTED, 100 - 6 - 30, 10)


def test_a_load_after_the_end_rolls_over_by_the_old_prices_first(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=100)
    ledger.spend(6)
    ledger.wait_until_ms(END_MS)
    ledger.load(prices={"api_calls": ["s", 10]}, period_start_ms=END_MS, period_end_ms=END_MS + 5000)
    state = ledger.account()
    assert state.closed == {(START_MS, "api_calls"): (6, 6)}
    assert (state.start_ms, state.end_ms, state.unsettled) == (END_MS, END_MS + 5000, 6)


def test_a_loader_that_looked_before_a_rollover_does_not_reopen_the_period(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=100)
    ledger.spend(6)
    ledger.wait_until_ms(END_MS)
    ledger.load(period_start_ms=START_MS, period_end_ms=END_MS)
    assert (ledger.account().start_ms, ledger.account().end_ms, ledger.settled_units()) == (
        END_MS,
        END_MS + LENGTH_MS,
        0,
    )


@pytest.mark.parametrize("rolled_before", [True, False])
def test_k_that_was_computed_before_a_rollover_gives_nothing_back(ledger: LedgerFixture, rolled_before: bool) -> None:
    """The loader read an open period that had cost 6; the unsettled cost is that of the periods before it, and would
    swallow these 6."""
    ledger.load(ceiling=10)
    ledger.spend(6)
    ledger.wait_until_ms(END_MS)
    if rolled_before:
        ledger.hold(1)
    held = 1 if rolled_before else 0
    answer = ledger.load(period_start_ms=START_MS, period_end_ms=END_MS, unsettled=0, expected_start_ms=START_MS)
    assert answer == Conflict(1, 2), "with the start that it had read, it is told to read again"
    assert ledger.account().start_ms == END_MS, "and finds the new period when it does"
    assert isinstance(ledger.load(period_start_ms=START_MS, period_end_ms=END_MS, unsettled=0), Loaded)
    assert ledger.account().unsettled == 6, "without one, its unsettled cost is ignored"
    assert ledger.hold(5) == Outcome(Code.CREDIT, 4 - held, 5)


def test_k_of_who_read_after_the_rollover_is_taken(ledger: LedgerFixture) -> None:
    """An invoice was finalised: Lago has debited the wallet, and what it covers no longer waits."""
    ledger.load(ceiling=10)
    ledger.spend(6)
    ledger.wait_until_ms(END_MS)
    ledger.spend(1)
    ledger.load(ceiling=4, unsettled=0, expected_start_ms=END_MS)
    assert ledger.hold(4) == Outcome(Code.CREDIT, 3, 4)


def test_k_of_who_knows_the_stored_period_is_taken_though_lago_still_names_the_old_one(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=10)
    ledger.spend(6)
    ledger.wait_until_ms(END_MS)
    ledger.spend(1)
    ledger.load(unsettled=9, expected_start_ms=END_MS, period_start_ms=START_MS, period_end_ms=END_MS)
    assert (ledger.account().unsettled, ledger.account().start_ms) == (9, END_MS)


def test_the_unsettled_cost_given_with_an_upgrade_is_joined_by_what_the_upgrade_closes(ledger: LedgerFixture) -> None:
    """Units settled between the loader's look and its load are settled units; only the script can count them."""
    ledger.load(ceiling=1000, unsettled=5)
    ledger.spend(6)
    now_ms = ledger.now_us // 1000
    ledger.load(
        unsettled=300, digits=3, expected_start_ms=START_MS, prices={"api_calls": ["s", 10]},
        period_start_ms=now_ms, period_end_ms=now_ms + LENGTH_MS,
    )  # fmt: skip
    assert ledger.account().unsettled == 300 + 60


def test_the_end_of_the_period_at_hand_can_be_moved(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.spend(6)
    ledger.load(period_end_ms=END_MS - 5000)
    ledger.wait_until_ms(END_MS - 5000)
    ledger.spend(1)
    assert (ledger.settled_units(), ledger.account().start_ms) == (1, END_MS - 5000)


def test_an_account_that_was_charged_before_it_was_loaded_keeps_its_units(ledger: LedgerFixture) -> None:
    """It lost its data, or a gateway's spool came before the loader."""
    ledger.charge_late(7)
    ledger.load(ceiling=10)
    assert (ledger.settled_units(), ledger.account().start_ms) == (7, START_MS)
    assert ledger.hold(4) == Outcome(Code.CREDIT, 3, 4)


def test_loaded_accounts_are_listed_by_partition(real_ledger: LedgerFixture) -> None:
    assert isinstance(real_ledger.backend, RealLedger)
    ledger = real_ledger.backend
    real_ledger.charge_late(1, "other")
    real_ledger.load("tpp")
    listed = [ledger.client.zrange(ledger.keys.accounts(p), 0, -1) for p in range(ledger.keys.partitions)]
    assert [names for names in listed if names] == [[b"tpp"]]


def test_a_load_says_all_that_is_read_back(real_ledger: LedgerFixture) -> None:
    """The order of the seventeen values of the request, held to names."""
    load = Load(
        "tpp", {"api_calls": ["s", 1]}, START_MS, END_MS, ceiling=-5, status=2, counts_unsettled=False,
        rate_interval_us=7, burst=8, day_limit=9, periods=(END_MS + 1,), unsettled=10, digits=3, info='{"version":0}',
    )  # fmt: skip
    real_ledger.backend.load(load, now_us=real_ledger.now_us)
    state = real_ledger.account()
    assert state.policy == (1, 2, -5, 0, 7, 8, 9)
    assert (state.live, state.gone, state.periods) == ({"api_calls": ["s", 1]}, {}, (END_MS + 1,))
    assert (state.start_ms, state.end_ms, state.unsettled) == (START_MS, END_MS, 10)
    assert (state.digits, state.info) == (3, '{"version":1}')
