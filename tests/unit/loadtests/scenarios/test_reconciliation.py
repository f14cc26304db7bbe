"""Answers, ledger, events and meters must agree to the unit; each of these tests breaks one of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loadtests.scenarios import reconciliation
from loadtests.scenarios.checks import Verdict, exit_status
from loadtests.scenarios.reconciliation import Counts, Events, RunCounts, judge
from tests.unit.loadtests.scenarios.kit import TPP, account, answers, events, run_counts


def failed(of: RunCounts) -> set[str]:
    return {check.name for check in judge(of) if check.verdict is Verdict.FAILED}


def unchecked(of: RunCounts) -> set[str]:
    return {check.name for check in judge(of) if check.verdict is Verdict.UNCHECKED}


def test_counts_that_agree_hold_and_use_before_the_run_does_not_count() -> None:
    checks = judge(run_counts())
    assert {check.verdict for check in checks} == {Verdict.HOLDS}
    assert exit_status(checks) == 0


@pytest.mark.parametrize("debited", [9, 11])
def test_a_wrong_figure_in_the_ledger_is_exit_status_1(debited: int) -> None:
    broken = run_counts(debited=debited, evented=debited, metered=debited)
    assert failed(broken) == {reconciliation.DEBITS}
    assert exit_status(judge(broken)) == 1


@pytest.mark.parametrize("evented", [9, 11])
def test_a_debit_without_its_event_and_an_event_without_a_debit_fail(evented: int) -> None:
    assert failed(run_counts(evented=evented)) == {reconciliation.EVENTS}


@pytest.mark.parametrize("metered", [9, 11])
def test_a_unit_that_openmeter_lacks_or_counts_twice_fails(metered: int) -> None:
    assert failed(run_counts(metered=metered)) == {reconciliation.METERED}


def test_units_left_held_fail() -> None:
    assert failed(run_counts(held=1)) == {reconciliation.HELD}


def test_an_event_id_that_occurs_twice_fails_even_if_the_sum_is_right() -> None:
    of = run_counts()
    twice = (*events(9), events(1)[0])
    broken = replace(of, after=replace(of.after, events=Events((), twice)))
    assert failed(broken) == {reconciliation.IDS}


@pytest.mark.parametrize("left", [Events(events(10)), Events((), events(10), dead=1)])
def test_events_that_were_not_delivered_fail(left: Events) -> None:
    of = run_counts()
    assert failed(replace(of, after=replace(of.after, events=left))) == {reconciliation.DELIVERED}


def test_an_account_below_zero_was_overspent() -> None:
    of = run_counts()
    broken = replace(of, after=replace(of.after, ledger={TPP: account(15, available="-0.01")}))
    assert failed(broken) == {reconciliation.OVERSPENT}


@pytest.mark.parametrize(("debited", "holds"), [(9, False), (10, True), (12, True), (13, False)])
def test_a_cut_request_may_be_charged_and_may_not(debited: int, holds: bool) -> None:
    of = run_counts(unsure=2, debited=debited, evented=debited, metered=debited)
    assert (failed(of) == set()) is holds


def test_what_is_not_given_is_not_checked_and_says_which_option_would() -> None:
    blind = RunCounts(Counts(), Counts(), answers(10))
    checks = judge(blind)
    assert {check.verdict for check in checks} == {Verdict.UNCHECKED}
    assert {check.found for check in checks} == {
        f"needs {option}"
        for option in (reconciliation.NEED_LEDGER, reconciliation.NEED_EVENTS, reconciliation.NEED_METERS)
    }
    assert exit_status(checks) == 2


def test_without_the_ledger_events_and_meters_are_held_against_the_answers() -> None:
    def blind(of: RunCounts) -> RunCounts:
        return replace(of, before=replace(of.before, ledger=None), after=replace(of.after, ledger=None))

    assert failed(blind(run_counts())) == set()
    assert failed(blind(run_counts(evented=9, metered=11))) == {reconciliation.EVENTS, reconciliation.METERED}


def test_a_period_that_ends_on_the_way_cannot_be_reckoned_with() -> None:
    of = run_counts()
    rolled = replace(of, after=replace(of.after, ledger={TPP: account(3, period=2)}))
    assert reconciliation.DEBITS in unchecked(rolled)
    assert reconciliation.DEBITS not in failed(rolled)
