"""Periods: when one ends, what it leaves behind, and which period an event belongs to."""

from __future__ import annotations

import pytest

from tests.integration.ledger.ledger_fixture import END_MS, LENGTH_MS, START_MS, LedgerFixture
from tests.reference.messages import Code, MetricState, Outcome
from tests.reference.pricing import MAX_INT, Table

FLAT: Table = ["g", 10, 1, 25, MAX_INT, 4, 0]
"""25 at once, then one each up to ten, four each beyond."""


@pytest.mark.parametrize(("at_ms", "n", "unsettled"), [(END_MS - 1, 7, 0), (END_MS, 3, 4), (END_MS + 1, 3, 4)])
def test_a_period_ends_on_the_millisecond(ledger: LedgerFixture, at_ms: int, n: int, unsettled: int) -> None:
    ledger.load()
    ledger.spend(4)
    ledger.wait_until_ms(at_ms)
    ledger.spend(3)
    assert (ledger.settled_units(), ledger.account().unsettled) == (n, unsettled)


def test_the_last_microsecond_belongs_to_the_old_period(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.now_us = END_MS * 1000 - 1
    ledger.charge_late(4)
    assert (ledger.settled_units(), ledger.entries()[0].t_ms) == (4, END_MS - 1)


def test_what_a_period_used_and_cost_is_kept(ledger: LedgerFixture) -> None:
    ledger.load(prices={"api_calls": FLAT, "payments": ["s", 9]})
    ledger.spend(12)
    ledger.wait_until_ms(END_MS)
    ledger.hold(1)
    state = ledger.account()
    assert state.records == {(START_MS, "api_calls"): (12, 25 + 10 + 2 * 4)}
    assert (state.start_ms, state.end_ms, state.unsettled) == (END_MS, END_MS + LENGTH_MS, 43)


def test_a_period_that_was_not_used_is_recorded_if_it_costs_something(ledger: LedgerFixture) -> None:
    ledger.load(prices={"api_calls": FLAT, "payments": ["s", 9]})
    ledger.wait_until_ms(END_MS)
    ledger.hold(1)
    assert ledger.account().records == {(START_MS, "api_calls"): (0, 25)}


def test_a_hold_across_the_end_is_settled_into_the_new_period(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.hold(4)
    ledger.wait_until_ms(END_MS)
    ledger.settle(4)
    state = ledger.account()
    assert state.metrics == {"api_calls": MetricState(4, 0)}
    assert (state.records, state.unsettled) == ({}, 0)
    assert ledger.entries()[0].t_ms == END_MS, "the event's time lies in the same period"


def test_a_prepaid_account_pays_for_the_old_period_in_the_new_one(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=10)
    ledger.spend(8)
    ledger.wait_until_ms(END_MS)
    assert ledger.hold(3) == Outcome(Code.CREDIT, 2, 3)


def test_an_overage_cap_is_whole_again_in_the_new_period(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=10, counts_unsettled=False)
    ledger.spend(8)
    ledger.wait_until_ms(END_MS)
    assert ledger.hold(3) == Outcome(Code.GRANTED, 7, 3)


def test_the_ends_that_the_loader_gave_come_first_and_then_the_last_length_repeats(ledger: LedgerFixture) -> None:
    february, march = END_MS + 28 * 86_400_000, END_MS + 59 * 86_400_000
    ledger.load(following=(february, march))
    bounds = []
    for at_ms in (END_MS, february, march, march + (march - february)):
        ledger.wait_until_ms(at_ms)
        ledger.spend(1)
        bounds.append((ledger.account().start_ms, ledger.account().end_ms))
    length = march - february
    assert bounds == [
        (END_MS, february),
        (february, march),
        (march, march + length),
        (march + length, march + 2 * length),
    ]
    assert [units for units, _cost in ledger.account().records.values()] == [1, 1, 1]


@pytest.mark.parametrize("late_ms", [0, 1, LENGTH_MS - 1])
@pytest.mark.parametrize("missed", [0, 1, 2, 100])
def test_an_account_that_slept_wakes_in_the_right_period(ledger: LedgerFixture, missed: int, late_ms: int) -> None:
    ledger.load(prices={"api_calls": FLAT}, ceiling=10**6)
    ledger.spend(4)
    ledger.wait_until_ms(END_MS + missed * LENGTH_MS + late_ms)
    ledger.spend(1)
    state = ledger.account()
    assert state.start_ms == END_MS + missed * LENGTH_MS
    skipped = {(END_MS, "api_calls"): (0, 25 * missed)} if missed else {}
    assert state.records == {(START_MS, "api_calls"): (4, 29)} | skipped
    assert state.unsettled == 29 + 25 * missed


def test_ends_that_passed_in_sleep_are_closed_one_by_one(ledger: LedgerFixture) -> None:
    second, third = END_MS + 1000, END_MS + 3000
    ledger.load(prices={"api_calls": FLAT}, following=(second, third))
    ledger.wait_until_ms(third + 2000 + 1999)
    ledger.charge_late(1)
    state = ledger.account()
    assert state.records == {
        (START_MS, "api_calls"): (0, 25),
        (END_MS, "api_calls"): (0, 25),
        (second, "api_calls"): (0, 25),
        (third, "api_calls"): (0, 25),
    }
    assert (state.start_ms, state.end_ms) == (third + 2000, third + 4000)


def test_a_rollover_needs_no_hold_that_is_granted(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.spend(4)
    ledger.load(status=1)
    ledger.wait_until_ms(END_MS)
    assert ledger.hold(1).code == Code.SUSPENDED
    assert (ledger.account().start_ms, ledger.account().unsettled) == (END_MS, 4)


def test_a_rollover_can_overdraw_by_the_flat_fee_and_then_grants_nothing(ledger: LedgerFixture) -> None:
    ledger.load(prices={"api_calls": FLAT}, ceiling=40)
    ledger.hold(5)
    ledger.wait_until_ms(END_MS)
    assert ledger.hold(1) == Outcome(Code.CREDIT, 40 - 25 - 30, 1)


def test_a_metric_that_left_the_plan_is_dropped_with_its_last_hold(ledger: LedgerFixture) -> None:
    ledger.load(prices={"api_calls": ["s", 1], "payments": ["s", 9]})
    ledger.hold(2, metric="payments")
    ledger.load(prices={"api_calls": ["s", 1]})
    ledger.wait_until_ms(END_MS)
    ledger.settle(2, metric="payments")
    assert ledger.account().gone == {"payments": ["s", 9]}, "it was held across the end, and costs what it did"
    ledger.wait_until_ms(END_MS + LENGTH_MS)
    ledger.hold(1)
    state = ledger.account()
    assert state.records == {(END_MS, "payments"): (2, 18)}
    assert (state.gone, state.unsettled) == ({}, 18)


def test_an_account_without_terms_has_one_period_without_end(ledger: LedgerFixture) -> None:
    ledger.charge_late(3, "other")
    ledger.wait_until_ms(END_MS + 500 * LENGTH_MS)
    ledger.charge_late(4, "other")
    assert (ledger.settled_units("other"), ledger.account("other").records) == (7, {})
