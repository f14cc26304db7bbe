"""Periods: when one ends, what it leaves behind, and which period an event belongs to."""

from __future__ import annotations

import pytest

from tests.integration.ledger.desk import END_MS, LENGTH_MS, START_MS, Desk
from tests.reference.messages import Code, MetricState, Outcome
from tests.reference.pricing import MAX_INT, Table

FLAT: Table = ["g", 10, 1, 25, MAX_INT, 4, 0]
"""25 at once, then one each up to ten, four each beyond."""


@pytest.mark.parametrize(("at_ms", "n", "older_cost"), [(END_MS - 1, 7, 0), (END_MS, 3, 4), (END_MS + 1, 3, 4)])
def test_a_period_ends_on_the_millisecond(desk: Desk, at_ms: int, n: int, older_cost: int) -> None:
    desk.load()
    desk.spend(4)
    desk.wait_until_ms(at_ms)
    desk.spend(3)
    assert (desk.n(), desk.account().older_cost) == (n, older_cost)


def test_the_last_microsecond_belongs_to_the_old_period(desk: Desk) -> None:
    desk.load()
    desk.now_us = END_MS * 1000 - 1
    desk.charge_late(4)
    assert (desk.n(), desk.entries()[0].t_ms) == (4, END_MS - 1)


def test_what_a_period_used_and_cost_is_kept(desk: Desk) -> None:
    desk.load(prices={"api_calls": FLAT, "payments": ["s", 9]})
    desk.spend(12)
    desk.wait_until_ms(END_MS)
    desk.hold(1)
    state = desk.account()
    assert state.closed == {(START_MS, "api_calls"): (12, 25 + 10 + 2 * 4)}
    assert (state.start_ms, state.end_ms, state.older_cost) == (END_MS, END_MS + LENGTH_MS, 43)


def test_a_period_that_was_not_used_is_recorded_if_it_costs_something(desk: Desk) -> None:
    desk.load(prices={"api_calls": FLAT, "payments": ["s", 9]})
    desk.wait_until_ms(END_MS)
    desk.hold(1)
    assert desk.account().closed == {(START_MS, "api_calls"): (0, 25)}


def test_a_hold_across_the_end_is_settled_into_the_new_period(desk: Desk) -> None:
    desk.load()
    desk.hold(4)
    desk.wait_until_ms(END_MS)
    desk.settle(4)
    state = desk.account()
    assert state.metrics == {"api_calls": MetricState(4, 0)}
    assert (state.closed, state.older_cost) == ({}, 0)
    assert desk.entries()[0].t_ms == END_MS, "the event's time lies in the same period"


def test_a_prepaid_account_pays_for_the_old_period_in_the_new_one(desk: Desk) -> None:
    desk.load(ceiling=10)
    desk.spend(8)
    desk.wait_until_ms(END_MS)
    assert desk.hold(3) == Outcome(Code.CREDIT, 2, 3)


def test_an_overage_cap_is_whole_again_in_the_new_period(desk: Desk) -> None:
    desk.load(ceiling=10, count_k=False)
    desk.spend(8)
    desk.wait_until_ms(END_MS)
    assert desk.hold(3) == Outcome(Code.GRANTED, 7, 3)


def test_the_ends_that_the_loader_gave_come_first_and_then_the_last_length_repeats(desk: Desk) -> None:
    february, march = END_MS + 28 * 86_400_000, END_MS + 59 * 86_400_000
    desk.load(periods=(february, march))
    bounds = []
    for at_ms in (END_MS, february, march, march + (march - february)):
        desk.wait_until_ms(at_ms)
        desk.spend(1)
        bounds.append((desk.account().start_ms, desk.account().end_ms))
    length = march - february
    assert bounds == [
        (END_MS, february),
        (february, march),
        (march, march + length),
        (march + length, march + 2 * length),
    ]
    assert [units for units, _cost in desk.account().closed.values()] == [1, 1, 1]


@pytest.mark.parametrize("late_ms", [0, 1, LENGTH_MS - 1])
@pytest.mark.parametrize("missed", [0, 1, 2, 100])
def test_an_account_that_slept_wakes_in_the_right_period(desk: Desk, missed: int, late_ms: int) -> None:
    desk.load(prices={"api_calls": FLAT}, ceiling=10**6)
    desk.spend(4)
    desk.wait_until_ms(END_MS + missed * LENGTH_MS + late_ms)
    desk.spend(1)
    state = desk.account()
    assert state.start_ms == END_MS + missed * LENGTH_MS
    skipped = {(END_MS, "api_calls"): (0, 25 * missed)} if missed else {}
    assert state.closed == {(START_MS, "api_calls"): (4, 29)} | skipped
    assert state.older_cost == 29 + 25 * missed


def test_ends_that_passed_in_sleep_are_closed_one_by_one(desk: Desk) -> None:
    second, third = END_MS + 1000, END_MS + 3000
    desk.load(prices={"api_calls": FLAT}, periods=(second, third))
    desk.wait_until_ms(third + 2000 + 1999)
    desk.charge_late(1)
    state = desk.account()
    assert state.closed == {
        (START_MS, "api_calls"): (0, 25),
        (END_MS, "api_calls"): (0, 25),
        (second, "api_calls"): (0, 25),
        (third, "api_calls"): (0, 25),
    }
    assert (state.start_ms, state.end_ms) == (third + 2000, third + 4000)


def test_a_rollover_needs_no_hold_that_is_granted(desk: Desk) -> None:
    desk.load()
    desk.spend(4)
    desk.load(status=1)
    desk.wait_until_ms(END_MS)
    assert desk.hold(1).code == Code.SUSPENDED
    assert (desk.account().start_ms, desk.account().older_cost) == (END_MS, 4)


def test_a_rollover_can_overdraw_by_the_flat_fee_and_then_grants_nothing(desk: Desk) -> None:
    desk.load(prices={"api_calls": FLAT}, ceiling=40)
    desk.hold(5)
    desk.wait_until_ms(END_MS)
    assert desk.hold(1) == Outcome(Code.CREDIT, 40 - 25 - 30, 1)


def test_a_metric_that_left_the_plan_is_dropped_with_its_last_hold(desk: Desk) -> None:
    desk.load(prices={"api_calls": ["s", 1], "payments": ["s", 9]})
    desk.hold(2, metric="payments")
    desk.load(prices={"api_calls": ["s", 1]})
    desk.wait_until_ms(END_MS)
    desk.settle(2, metric="payments")
    assert desk.account().gone == {"payments": ["s", 9]}, "it was held across the end, and costs what it did"
    desk.wait_until_ms(END_MS + LENGTH_MS)
    desk.hold(1)
    state = desk.account()
    assert state.closed == {(END_MS, "payments"): (2, 18)}
    assert (state.gone, state.older_cost) == ({}, 18)


def test_an_account_without_terms_has_one_period_without_end(desk: Desk) -> None:
    desk.charge_late(3, "other")
    desk.wait_until_ms(END_MS + 500 * LENGTH_MS)
    desk.charge_late(4, "other")
    assert (desk.n("other"), desk.account("other").closed) == (7, {})
