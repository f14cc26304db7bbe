"""Status, request rate and daily cap: the order in which they are asked, and the exact time to wait."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.integration.ledger.ledger_fixture import CENT, DAY_MS, LedgerFixture
from tests.reference.messages import RELEASE, Batch, Code, Group, Outcome

DAY_US = DAY_MS * 1000
FOUR_A_SECOND: dict[str, Any] = {"rate_interval_us": 250_000, "burst": 3}


def test_a_burst_passes_and_then_one_call_every_interval(ledger: LedgerFixture) -> None:
    ledger.load(**FOUR_A_SECOND)
    assert [o.code for o in ledger.ask(1, 1, 1, 1).outcomes] == [Code.GRANTED] * 3 + [Code.RATE]
    assert ledger.hold(1) == Outcome(Code.RATE, 250_000)
    ledger.now_us += 249_999
    assert ledger.hold(1) == Outcome(Code.RATE, 1), "a microsecond too early"
    ledger.now_us += 1
    assert ledger.hold(1).code == Code.GRANTED
    assert ledger.hold(1) == Outcome(Code.RATE, 250_000)


def test_a_call_after_a_long_pause_starts_a_full_burst_and_no_more(ledger: LedgerFixture) -> None:
    ledger.load(**FOUR_A_SECOND)
    ledger.hold(1)
    ledger.wait_ms(60_000)
    answer = ledger.ask(1, 1, 1, 1)
    assert [o.code for o in answer.outcomes] == [Code.GRANTED] * 3 + [Code.RATE]


def test_what_is_refused_counts_against_no_limit(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=5, day_limit=2, **FOUR_A_SECOND)
    assert [o.code for o in ledger.ask(9, 9, 9, 9, 1, 9, 1).outcomes] == (
        [Code.CREDIT] * 4 + [Code.GRANTED, Code.CREDIT, Code.GRANTED]
    )
    assert (ledger.account().day_count, ledger.ask(1).rate_left) == (2, 1)


def test_calls_are_counted_and_not_units(ledger: LedgerFixture) -> None:
    ledger.load(day_limit=2, **FOUR_A_SECOND)
    assert ledger.ask(50, 60).day_left == 0


@pytest.mark.parametrize("before_midnight_us", [1, 999, 1_000, DAY_US - 1, DAY_US])
def test_the_daily_cap_ends_exactly_at_midnight_utc(ledger: LedgerFixture, before_midnight_us: int) -> None:
    ledger.load(day_limit=2)
    ledger.now_us = (ledger.now_us // DAY_US + 1) * DAY_US - before_midnight_us
    refused = ledger.ask(1, 1, 1).outcomes[2]
    assert refused == Outcome(Code.DAILY, before_midnight_us)
    ledger.now_us += before_midnight_us - 1
    assert ledger.hold(1) == Outcome(Code.DAILY, 1)
    ledger.now_us += 1
    assert [o.code for o in ledger.ask(1, 1, 1).outcomes] == [Code.GRANTED, Code.GRANTED, Code.DAILY]


def test_the_answer_says_how_many_calls_the_limits_leave(ledger: LedgerFixture) -> None:
    ledger.load(day_limit=10, **FOUR_A_SECOND)
    answers = []
    for wait_us in (0, 0, 0, 0, 249_999, 1, 10**9):
        ledger.now_us += wait_us
        answer = ledger.ask(1)
        answers.append((answer.outcomes[0].code == Code.GRANTED, answer.rate_left, answer.day_left))
    assert answers == [
        (True, 2, 9),
        (True, 1, 8),
        (True, 0, 7),
        (False, 0, 7),
        (False, 0, 7),
        (True, 0, 6),
        (True, 2, 5),
    ]


def test_without_limits_the_answer_says_minus_one(ledger: LedgerFixture) -> None:
    ledger.load()
    answer = ledger.ask(1)
    assert (answer.rate_left, answer.day_left) == (-1, -1)


def test_a_burst_that_shrinks_leaves_no_calls_rather_than_less_than_none(ledger: LedgerFixture) -> None:
    ledger.load(rate_interval_us=1_000_000, burst=8)
    ledger.ask(1, 1, 1, 1, 1)
    ledger.load(rate_interval_us=1_000_000, burst=1)
    answer = ledger.ask(1)
    assert (answer.outcomes[0], answer.rate_left) == (Outcome(Code.RATE, 1_000_000), 0), "-1 would say: no limit"
    ledger.now_us += 1_000_000
    assert ledger.hold(1).code == Code.GRANTED, "who waited as long as it was told passes"


def test_a_daily_cap_that_shrinks_leaves_no_calls_rather_than_less_than_none(ledger: LedgerFixture) -> None:
    ledger.load(day_limit=5)
    ledger.ask(1, 1, 1)
    ledger.load(day_limit=2)
    assert ledger.ask(1).day_left == 0


HARMLESS: dict[str, Any] = {"status": 0, "prices": CENT, "day_limit": 0, "rate_interval_us": 0, "ceiling": 100}
REFUSING: list[tuple[Code, str, Any]] = [
    (Code.CLOSED, "status", 2),
    (Code.UNPRICED, "prices", {"payments": ["s", 1]}),
    (Code.DAILY, "day_limit", 1),
    (Code.RATE, "rate_interval_us", 10**6),
    (Code.CREDIT, "ceiling", 0),
]


@pytest.mark.parametrize("at", range(len(REFUSING)), ids=[code.name for code, _, _ in REFUSING])
def test_of_several_reasons_to_refuse_the_first_is_told(ledger: LedgerFixture, at: int) -> None:
    ledger.load(ceiling=100, day_limit=1, rate_interval_us=10**6, burst=1)
    ledger.hold(1)
    ledger.load(**(HARMLESS | {field: value for _, field, value in REFUSING[at:]}))
    assert ledger.hold(1).code == REFUSING[at][0]


def test_an_account_that_nobody_loaded_is_unknown(ledger: LedgerFixture) -> None:
    answer = ledger.ask(1, account="other")
    assert (answer.outcomes, answer.view) == ((Outcome(Code.UNKNOWN),), None)
    assert (answer.rate_left, answer.day_left) == (-1, -1)


def test_a_suspended_account_still_settles_what_it_holds(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.hold(4)
    ledger.load(status=1)
    assert ledger.hold(1) == Outcome(Code.SUSPENDED)
    ledger.settle(4)
    assert (ledger.settled_units(), ledger.held_units()) == (4, 0)
    ledger.load(status=0)
    assert ledger.hold(1).code == Code.GRANTED


# Answers that cost nothing: 4 at once, and one in 250 ms (messages.Batch)


def test_calls_that_were_answered_and_not_charged_are_bounded(ledger: LedgerFixture) -> None:
    ledger.load()
    for _ in range(4):
        assert ledger.hold().code == Code.GRANTED
        ledger.release(1, answered=1)
    assert ledger.hold() == Outcome(Code.UNPAID, 250_000)
    ledger.now_us += 249_999
    assert ledger.hold() == Outcome(Code.UNPAID, 1)
    ledger.now_us += 1
    assert ledger.hold().code == Code.GRANTED
    assert ledger.hold().code == Code.GRANTED, "what is not known to cost nothing uses nothing up"


def test_what_is_given_back_without_an_answer_is_not_bounded(ledger: LedgerFixture) -> None:
    ledger.load()
    for _ in range(20):
        assert ledger.hold().code == Code.GRANTED
        ledger.release(1)
    assert ledger.account().unpaid_tat_us == 0


def test_answers_under_way_when_the_burst_is_used_up_are_waited_for(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.hold(104)
    ledger.release(104, answered=104)
    assert ledger.hold() == Outcome(Code.UNPAID, 101 * 250_000)
    ledger.now_us += 101 * 250_000
    assert ledger.hold().code == Code.GRANTED


def test_nobody_waits_for_a_minute_because_of_them(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.hold(1000)
    ledger.release(1000, answered=1000)
    assert ledger.hold() == Outcome(Code.UNPAID, 60_250_000)
    ledger.now_us += 60_250_000
    assert ledger.hold().code == Code.GRANTED, "who waited as long as it was told passes"


def test_they_do_not_wait_for_the_other_clock(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.now_us += 7_200_000_000
    ledger.hold(4)
    ledger.release(4, answered=4)
    ledger.now_us -= 7_200_000_000
    assert ledger.hold().code == Code.UNPAID
    ledger.now_us += 60_250_000
    assert ledger.hold().code == Code.GRANTED


def test_they_count_although_the_instance_was_reaped(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.hold(4, by="zombie")
    ledger.bury("zombie")
    ledger.send("zombie", unpaid=(("tpp", 4),))
    assert ledger.hold(by="alive").code == Code.UNPAID
    assert ledger.hold(account="tpp", by="alive").code == Code.UNPAID


def test_they_count_under_an_idempotency_key_and_for_repeats_too(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.spend_once("paid")
    ledger.once("key")
    mine = ledger.under_way["gw", "tpp", "key"]
    ledger.send("gw", replace(mine, kind=RELEASE), unpaid=(("tpp", 4),))
    assert ledger.once("paid").code == Code.UNPAID
    assert ledger.account().marks["paid"].repeats == 0


def test_an_account_that_the_ledger_does_not_have_counts_nothing(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.send("gw", unpaid=(("other", 4),))
    assert "other" not in ledger._known()


def test_without_an_interval_they_have_no_bound(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.hold(9)
    ledger.release(9, answered=9)
    batch = Batch(ledger.epochs["gw"], ledger.seqs["gw"] + 1, (Group.of("tpp", hold=(1,)),), unpaid_interval_us=0)
    [answer] = ledger.backend.batch("gw", batch, now_us=ledger.now_us).groups
    assert answer is not None
    assert answer.outcomes[0].code == Code.GRANTED
