"""The loader: new funds, new prices, new periods, and why none of them gives anything back by mistake."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.integration.ledger.ledger_fixture import CENT, END_MS, LENGTH_MS, START_MS, LedgerFixture
from tests.reference.messages import (
    Code,
    Conflict,
    Fenced,
    Group,
    Inexact,
    LedgerError,
    Load,
    Loaded,
    MetricState,
    Outcome,
    Plan,
    SubscriptionState,
)
from tests.reference.pricing import MAX_INT, Table
from tests.support.ledger_driver import RealLedger

# Versions


def test_every_load_is_a_new_version(ledger: LedgerFixture) -> None:
    assert ledger.load(view="first", about="more of it") == Loaded(1)
    assert ledger.load(view="second", about="other things") == Loaded(2)
    assert (ledger.account().view, ledger.account().about) == ("second", "other things")


def test_a_gateway_is_told_the_view_and_its_version_only_when_it_knows_another_version(ledger: LedgerFixture) -> None:
    ledger.load(view="first")
    answers = [ledger.ask(1, known=0), ledger.ask(1, known=1)]
    ledger.load(view="second", day_limit=9)
    answers += [ledger.ask(1, known=1), ledger.ask(1, known=2)]
    assert [(a.view, a.version) for a in answers] == [("first", 1), (None, 0), ("second", 2), (None, 2)]


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
        ({"end_ms": START_MS}, "INVALID the period of account tpp does not end after its start"),
        ({"plans": ()}, "INVALID account tpp has no subscription, or two of one name"),
        ({"plans": (Plan(CENT, START_MS, END_MS),) * 2}, "INVALID account tpp has no subscription, or two of one name"),
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
    real_ledger.load(prices={"api_calls": ["s", 10**6]}, ceiling=MAX_INT, unsettled=10**6, following=(END_MS + 5000,))
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


def test_fewer_decimals_keep_every_amount_what_it_was(ledger: LedgerFixture) -> None:
    ledger.load(
        ceiling=50_000, digits=4, unsettled=1100, prices={"api_calls": ["s", 100], "payments": ["p", 5, 2, 700]}
    )
    ledger.spend(12, metric="payments")
    ledger.load(start_ms=ledger.now_us // 1000)
    ledger.spend(3, metric="payments")
    ledger.load(ceiling=500, digits=2, prices=CENT)
    state = ledger.account()
    assert (state.digits, state.unsettled, state.gone) == (2, 11 + 14, {"payments": ["p", 5, 2, 7]})
    assert state.records == {(START_MS, "payments"): (12, 14)}
    assert ledger.hold(10**6).x == 500 - 11 - 14 - 7


INEXACT: dict[str, dict[str, Any]] = {
    "unsettled cost": {"unsettled": 1101},
    "a closed period": {"unsettled": 1100, "prices": {"api_calls": ["s", 1]}},
    "a former price": {"unsettled": 1100, "prices": {"api_calls": ["s", 100], "payments": ["s", 101]}},
}


@pytest.mark.parametrize("what", INEXACT)
def test_decimals_that_something_stored_needs_stay_and_nothing_changes(ledger: LedgerFixture, what: str) -> None:
    ledger.load(digits=4, ceiling=50_000, **INEXACT[what])
    ledger.spend(3)
    if what == "a closed period":
        ledger.load(start_ms=ledger.now_us // 1000)
    before = ledger.account()
    answer = ledger.load(digits=2, ceiling=500, prices=CENT)
    assert answer == Inexact(before.version, 4)
    assert ledger.account() == before


def test_an_unsettled_cost_that_is_given_need_not_be_told_by_the_decimals_of_the_former_one(
    ledger: LedgerFixture,
) -> None:
    ledger.load(digits=4, unsettled=1101)
    assert ledger.load(digits=2, unsettled=11) == Loaded(2)
    assert (ledger.account().unsettled, ledger.account().digits) == (11, 2)


# Loaders that overtake one another


def test_a_loader_with_an_older_token_is_told_the_newer_one(ledger: LedgerFixture) -> None:
    ledger.load(fence=7)
    before = ledger.account()
    assert ledger.load(fence=6, ceiling=5) == Fenced(7)
    assert ledger.account() == before
    assert ledger.load(fence=7) == Loaded(2)
    assert ledger.load() == Loaded(3), "an operator has no token"
    assert ledger.account().fence == 7


# Several subscriptions


DAY_MS = 86_400_000
SECOND_MS = START_MS + DAY_MS
TWO = (
    Plan({"api_calls": ["s", 2]}, START_MS, END_MS, name="base"),
    Plan({"payments": ["s", 10]}, SECOND_MS - 5000, SECOND_MS + 5000, name="extra"),
)


def test_subscriptions_share_the_funds_and_each_has_its_period(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=100, plans=TWO)
    ledger.spend(5)
    assert ledger.spend(3, metric="payments") == Outcome(Code.GRANTED, 60, 30)
    ledger.wait_until_ms(SECOND_MS + 5000)
    assert ledger.hold(10, metric="payments") == Outcome(Code.CREDIT, 60, 100), "the period that is over still costs"
    state = ledger.account()
    assert (state.of("base").start_ms, state.of("extra").start_ms) == (START_MS, SECOND_MS + 5000)
    assert state.of("base").metrics == {"api_calls": MetricState(5, 0)}
    assert (state.closed, state.unsettled) == ({(SECOND_MS - 5000, "extra", "payments"): (3, 30)}, 30)


def test_a_metric_of_two_subscriptions_is_counted_in_the_first(ledger: LedgerFixture) -> None:
    ledger.load(plans=(TWO[0], replace(TWO[1], prices={"api_calls": ["s", 9], "payments": ["s", 1]})))
    assert ledger.spend(4).y == 8
    assert ledger.account().of("extra").metrics == {}


def test_a_subscription_that_ends_is_paid_and_what_is_held_of_it_is_settled_where_the_metric_is_now(
    ledger: LedgerFixture,
) -> None:
    ledger.load(ceiling=100, plans=TWO)
    ledger.spend(3, metric="payments")
    ledger.hold(2, metric="payments")
    now_ms = ledger.now_us // 1000
    ledger.load(plans=(replace(TWO[0], prices={"api_calls": ["s", 2], "payments": ["s", 1]}),))
    state = ledger.account()
    assert state.closed == {(SECOND_MS - 5000, "extra", "payments"): (3, 30)}
    assert state.of("extra") == SubscriptionState(
        "extra", now_ms, MAX_INT, {"payments": MetricState(0, 2)}, {}, {"payments": ["s", 10]}, ()
    )
    assert ledger.hold(51, metric="payments") == Outcome(Code.CREDIT, 100 - 30 - 20, 51)
    ledger.settle(2, metric="payments")
    state = ledger.account()
    assert state.of("base").metrics == {"payments": MetricState(2, 0)}
    assert state.of("extra").metrics == {}
    ledger.load(plans=(state_plan(state.of("base")),))
    assert [of.name for of in ledger.account().subscriptions] == ["base"]


def state_plan(of: SubscriptionState) -> Plan:
    return Plan(of.live, of.start_ms, of.end_ms, of.following, name=of.name)


def test_what_is_used_of_a_former_subscription_costs_what_it_did_whatever_was_refused_before(
    ledger: LedgerFixture,
) -> None:
    """A refused hold must not leave a counter without a price where the charge would go."""
    ledger.load(ceiling=100, plans=TWO[:1])
    ledger.send("gw", Group.of("tpp", "payments", hold=(1,)), Group.of("tpp", hold=(1,)))
    ledger.load(plans=TWO)
    ledger.hold(3, metric="payments")
    ledger.load(plans=(TWO[0], replace(TWO[1], prices={"reports": ["s", 1]})))
    ledger.settle(3, metric="payments")
    assert ledger.account().of("extra").metrics == {"payments": MetricState(3, 0)}
    assert ledger.hold(1) == Outcome(Code.GRANTED, 100 - 2 - 30 - 2, 2)


def test_a_subscription_comes_and_the_counts_of_the_others_stay(ledger: LedgerFixture) -> None:
    ledger.load(plans=TWO[:1])
    ledger.spend(4)
    ledger.hold(1)
    ledger.load(plans=(TWO[1], TWO[0]))
    state = ledger.account()
    assert [of.name for of in state.subscriptions] == ["extra", "base"]
    assert state.of("base").metrics == {"api_calls": MetricState(4, 1)}
    ledger.settle(1)
    assert (ledger.settled_units(), ledger.account().shares) == (5, {})


@pytest.mark.parametrize("knows", [False, True])
def test_an_account_that_nobody_had_takes_over_what_was_counted_elsewhere(ledger: LedgerFixture, knows: bool) -> None:
    if knows:
        ledger.load()
    else:
        ledger.charge_late(2)
    ledger.load(counted={"api_calls": 5})
    assert ledger.settled_units() == (0 if knows else 5)


# Periods, and unsettled costs


def test_an_upgrade_closes_the_period_at_once_by_the_old_prices(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=100)
    ledger.spend(6)
    ledger.hold(2)
    ledger.wait_ms(5000)
    now_ms = ledger.now_us // 1000
    ledger.load(prices={"api_calls": ["s", 10]}, start_ms=now_ms, end_ms=now_ms + LENGTH_MS)
    state = ledger.account()
    assert state.records == {(START_MS, "api_calls"): (6, 6)}
    assert (state.start_ms, state.end_ms, state.unsettled) == (now_ms, now_ms + LENGTH_MS, 6)
    assert state.metrics == {"api_calls": MetricState(0, 2)}
    assert ledger.hold(1) == Outcome(Code.GRANTED, 100 - 6 - 30, 10)


def test_a_load_after_the_end_rolls_over_by_the_old_prices_first(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=100)
    ledger.spend(6)
    ledger.wait_until_ms(END_MS)
    ledger.load(prices={"api_calls": ["s", 10]}, start_ms=END_MS, end_ms=END_MS + 5000)
    state = ledger.account()
    assert state.records == {(START_MS, "api_calls"): (6, 6)}
    assert (state.start_ms, state.end_ms, state.unsettled) == (END_MS, END_MS + 5000, 6)


def test_a_loader_that_looked_before_a_rollover_does_not_reopen_the_period(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=100)
    ledger.spend(6)
    ledger.wait_until_ms(END_MS)
    ledger.load(start_ms=START_MS, end_ms=END_MS)
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
    answer = ledger.load(start_ms=START_MS, end_ms=END_MS, unsettled=0, expected_start_ms=START_MS)
    assert answer == Conflict(1, 2), "with the start that it had read, it is told to read again"
    assert ledger.account().start_ms == END_MS, "and finds the new period when it does"
    assert isinstance(ledger.load(start_ms=START_MS, end_ms=END_MS, unsettled=0), Loaded)
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
    ledger.load(unsettled=9, expected_start_ms=END_MS, start_ms=START_MS, end_ms=END_MS)
    assert (ledger.account().unsettled, ledger.account().start_ms) == (9, END_MS)


def test_the_unsettled_cost_given_with_an_upgrade_is_joined_by_what_the_upgrade_closes(ledger: LedgerFixture) -> None:
    """Units settled between the loader's look and its load are settled units; only the script can count them."""
    ledger.load(ceiling=1000, unsettled=5)
    ledger.spend(6)
    now_ms = ledger.now_us // 1000
    ledger.load(
        unsettled=300, digits=3, expected_start_ms=START_MS, prices={"api_calls": ["s", 10]},
        start_ms=now_ms, end_ms=now_ms + LENGTH_MS,
    )  # fmt: skip
    assert ledger.account().unsettled == 300 + 60


def test_the_end_of_the_period_at_hand_can_be_moved(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.spend(6)
    ledger.load(end_ms=END_MS - 5000)
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
    """The order of the values of the request, held to names."""
    plans = (
        Plan({"api_calls": ["s", 1]}, START_MS, END_MS, (END_MS + 1,), name="one"),
        Plan({"payments": ["s", 2]}, START_MS - 5, END_MS + 5, name="two", counted={"payments": 7, "reports": 1}),
    )
    load = Load(
        "tpp", plans, ceiling=-5, status=2, counts_unsettled=False, rate_interval_us=6, burst=8, day_limit=9,
        unsettled=10, digits=3, fence=4, view="seen", about="known",
    )  # fmt: skip
    real_ledger.backend.load(load, now_us=real_ledger.now_us)
    state = real_ledger.account()
    assert (state.version, state.policy, state.unsettled) == (1, (2, -5, 0, 6, 8, 9), 10)
    assert state.subscriptions == (
        SubscriptionState("one", START_MS, END_MS, {}, {"api_calls": ["s", 1]}, {}, (END_MS + 1,)),
        SubscriptionState(
            "two", START_MS - 5, END_MS + 5, {"payments": MetricState(7, 0), "reports": MetricState(1, 0)},
            {"payments": ["s", 2]}, {}, (),
        ),
    )  # fmt: skip
    assert (state.digits, state.view, state.about, state.fence) == (3, "seen", "known", 4)
