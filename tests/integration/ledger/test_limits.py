"""Status, request rate and daily cap: the order in which they are asked, and the exact time to wait."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.ledger.desk import CENT, DAY_MS, Desk
from tests.reference.messages import Code, Outcome

DAY_US = DAY_MS * 1000
FOUR_A_SECOND: dict[str, Any] = {"rate_interval_us": 250_000, "burst": 3}


def test_a_burst_passes_and_then_one_call_every_interval(desk: Desk) -> None:
    desk.load(**FOUR_A_SECOND)
    assert [o.code for o in desk.ask(1, 1, 1, 1).outcomes] == [Code.GRANTED] * 3 + [Code.RATE]
    assert desk.hold(1) == Outcome(Code.RATE, 250_000)
    desk.now_us += 249_999
    assert desk.hold(1) == Outcome(Code.RATE, 1), "a microsecond too early"
    desk.now_us += 1
    assert desk.hold(1).code == Code.GRANTED
    assert desk.hold(1) == Outcome(Code.RATE, 250_000)


def test_a_call_after_a_long_pause_starts_a_full_burst_and_no_more(desk: Desk) -> None:
    desk.load(**FOUR_A_SECOND)
    desk.hold(1)
    desk.wait_ms(60_000)
    answer = desk.ask(1, 1, 1, 1)
    assert [o.code for o in answer.outcomes] == [Code.GRANTED] * 3 + [Code.RATE]


def test_what_is_refused_counts_against_no_limit(desk: Desk) -> None:
    desk.load(ceiling=5, day_limit=2, **FOUR_A_SECOND)
    assert [o.code for o in desk.ask(9, 9, 9, 9, 1, 9, 1).outcomes] == (
        [Code.CREDIT] * 4 + [Code.GRANTED, Code.CREDIT, Code.GRANTED]
    )
    assert (desk.account().day_count, desk.ask(1).rate_left) == (2, 1)


def test_calls_are_counted_and_not_units(desk: Desk) -> None:
    desk.load(day_limit=2, **FOUR_A_SECOND)
    assert desk.ask(50, 60).day_left == 0


@pytest.mark.parametrize("before_midnight_us", [1, 999, 1_000, DAY_US - 1, DAY_US])
def test_the_daily_cap_ends_exactly_at_midnight_utc(desk: Desk, before_midnight_us: int) -> None:
    desk.load(day_limit=2)
    desk.now_us = (desk.now_us // DAY_US + 1) * DAY_US - before_midnight_us
    refused = desk.ask(1, 1, 1).outcomes[2]
    assert refused == Outcome(Code.DAILY, before_midnight_us)
    desk.now_us += before_midnight_us - 1
    assert desk.hold(1) == Outcome(Code.DAILY, 1)
    desk.now_us += 1
    assert [o.code for o in desk.ask(1, 1, 1).outcomes] == [Code.GRANTED, Code.GRANTED, Code.DAILY]


def test_the_answer_says_how_many_calls_the_limits_leave(desk: Desk) -> None:
    desk.load(day_limit=10, **FOUR_A_SECOND)
    answers = []
    for wait_us in (0, 0, 0, 0, 249_999, 1, 10**9):
        desk.now_us += wait_us
        answer = desk.ask(1)
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


def test_without_limits_the_answer_says_minus_one(desk: Desk) -> None:
    desk.load()
    answer = desk.ask(1)
    assert (answer.rate_left, answer.day_left) == (-1, -1)


def test_a_burst_that_shrinks_leaves_no_calls_rather_than_less_than_none(desk: Desk) -> None:
    desk.load(rate_interval_us=1_000_000, burst=8)
    desk.ask(1, 1, 1, 1, 1)
    desk.load(rate_interval_us=1_000_000, burst=1)
    answer = desk.ask(1)
    assert (answer.outcomes[0], answer.rate_left) == (Outcome(Code.RATE, 5_000_000), 0), "-1 would say: no limit"


def test_a_daily_cap_that_shrinks_leaves_no_calls_rather_than_less_than_none(desk: Desk) -> None:
    desk.load(day_limit=5)
    desk.ask(1, 1, 1)
    desk.load(day_limit=2)
    assert desk.ask(1).day_left == 0


HARMLESS: dict[str, Any] = {"status": 0, "prices": CENT, "day_limit": 0, "rate_interval_us": 0, "ceiling": 100}
REFUSING: list[tuple[Code, str, Any]] = [
    (Code.CLOSED, "status", 2),
    (Code.UNPRICED, "prices", {"payments": ["s", 1]}),
    (Code.DAILY, "day_limit", 1),
    (Code.RATE, "rate_interval_us", 10**6),
    (Code.CREDIT, "ceiling", 0),
]


@pytest.mark.parametrize("at", range(len(REFUSING)), ids=[code.name for code, _, _ in REFUSING])
def test_of_several_reasons_to_refuse_the_first_is_told(desk: Desk, at: int) -> None:
    desk.load(ceiling=100, day_limit=1, rate_interval_us=10**6, burst=1)
    desk.hold(1)
    desk.load(**(HARMLESS | {field: value for _, field, value in REFUSING[at:]}))
    assert desk.hold(1).code == REFUSING[at][0]


def test_an_account_that_nobody_loaded_is_unknown(desk: Desk) -> None:
    answer = desk.ask(1, account="other")
    assert (answer.outcomes, answer.info) == ((Outcome(Code.UNKNOWN),), None)
    assert (answer.rate_left, answer.day_left) == (-1, -1)


def test_a_suspended_account_still_settles_what_it_holds(desk: Desk) -> None:
    desk.load()
    desk.hold(4)
    desk.load(status=1)
    assert desk.hold(1) == Outcome(Code.SUSPENDED)
    desk.settle(4)
    assert (desk.n(), desk.h()) == (4, 0)
    desk.load(status=0)
    assert desk.hold(1).code == Code.GRANTED
