"""One logical call is charged once, however often it is sent."""

from __future__ import annotations

import pytest

from tests.integration.ledger.desk import Desk
from tests.reference.messages import HOLD, LATE_SETTLE, SETTLE, Code, Group, Outcome, Single
from tests.support.ledger_driver import IDEMPOTENCY_TTL_MS, RealLedger


def test_a_repeat_of_a_charged_call_is_neither_held_nor_charged(desk: Desk) -> None:
    desk.load(ceiling=10)
    assert desk.once("key", units=4) == Outcome(Code.GRANTED, 6, 4)
    assert desk.settle_once("key", units=4) == Outcome(Code.GRANTED)
    assert desk.once("key", units=4) == Outcome(Code.REPEAT, 6)
    assert (desk.n(), desk.h(), desk.charged_units()) == (4, 0, 4)


def test_a_repeat_passes_even_without_credit(desk: Desk) -> None:
    desk.load(ceiling=4)
    desk.once("key", units=4)
    desk.settle_once("key", units=4)
    assert desk.hold(1).code == Code.CREDIT
    assert desk.once("key", units=4) == Outcome(Code.REPEAT, 0)


def test_of_two_at_the_same_time_the_first_to_settle_is_charged_and_the_others_hold_comes_back(desk: Desk) -> None:
    desk.load()
    assert desk.once("key", units=3, by="gw-a").code == Code.GRANTED
    assert desk.once("key", units=3, by="gw-b").code == Code.GRANTED, "nothing is charged yet"
    assert desk.settle_once("key", units=3, by="gw-b").code == Code.GRANTED
    assert desk.settle_once("key", units=3, by="gw-a").code == Code.REPEAT
    assert (desk.n(), desk.h(), desk.charged_units()) == (3, 0, 3)


def test_a_key_that_was_only_released_can_be_charged_later(desk: Desk) -> None:
    desk.load()
    desk.once("key", units=3)
    desk.release(3)
    assert desk.once("key", units=3).code == Code.GRANTED
    assert desk.settle_once("key", units=3).code == Code.GRANTED
    assert (desk.n(), desk.h()) == (3, 0)


def test_one_batch_knows_what_it_has_just_charged(desk: Desk) -> None:
    desk.load()
    desk.once("key")
    kinds = (HOLD, SETTLE, HOLD, LATE_SETTLE)
    singles = [Single("tpp", "api_calls", 1, "key", kind) for kind in kinds]
    answers = desk.send("gw", *singles).singles
    codes = [answer.outcomes[0].code for answer in answers]
    assert codes == [Code.GRANTED, Code.GRANTED, Code.REPEAT, Code.REPEAT]
    assert (desk.n(), desk.h(), desk.charged_units()) == (1, 1, 1)


def test_a_hold_after_a_duplicates_settle_can_have_what_that_gave_back(desk: Desk) -> None:
    desk.load(ceiling=6)
    desk.once("key", units=3, by="gw")
    desk.once("key", units=3, by="gw")
    desk.settle_once("key", units=3)
    singles = [
        Single("tpp", "api_calls", 1, "another", HOLD),
        Single("tpp", "api_calls", 3, "key", SETTLE),
        Single("tpp", "api_calls", 1, "another", HOLD),
    ]
    answers = desk.send("gw", *singles).singles
    assert [answer.outcomes[0] for answer in answers] == [
        Outcome(Code.CREDIT, 0, 1),
        Outcome(Code.REPEAT),
        Outcome(Code.GRANTED, 2, 1),
    ]


def test_a_late_settle_is_charged_once_too(desk: Desk) -> None:
    """What a gateway spooled while the ledger was away, and sends again after a crash."""
    desk.load()
    assert desk.once("key", LATE_SETTLE, 2).code == Code.GRANTED
    assert desk.once("key", LATE_SETTLE, 2).code == Code.REPEAT
    assert (desk.n(), desk.h(), desk.charged_units()) == (2, 0, 2)


def test_keys_are_each_accounts_own(desk: Desk) -> None:
    desk.load("tpp")
    desk.load("other")
    desk.settle_once("key", account="tpp")
    assert desk.once("key", account="other").code == Code.GRANTED


@pytest.mark.parametrize(("status", "code"), [(1, Code.SUSPENDED), (2, Code.CLOSED)])
def test_a_repeat_is_no_way_around_a_suspension(desk: Desk, status: int, code: Code) -> None:
    desk.load()
    desk.once("key")
    desk.settle_once("key")
    desk.load(status=status)
    assert desk.once("key") == Outcome(code)


def test_a_repeat_of_an_overdrawn_account_never_looks_unlimited(desk: Desk) -> None:
    desk.load(ceiling=10)
    desk.once("key", units=5)
    desk.settle_once("key", units=5)
    desk.load(ceiling=4)
    assert desk.once("key") == Outcome(Code.REPEAT, 0), "not -1, which stands for no limit"
    desk.load(ceiling=None)
    assert desk.once("key") == Outcome(Code.REPEAT, -1)


def test_a_repeat_counts_towards_the_limits_though_it_costs_nothing(desk: Desk) -> None:
    desk.load(day_limit=3)
    desk.once("key")
    desk.settle_once("key")
    codes = [desk.once("key").code for _ in range(3)]
    assert codes == [Code.REPEAT, Code.REPEAT, Code.DAILY]


def test_events_of_groups_come_before_those_of_singles(desk: Desk) -> None:
    """The id of an event is its place in the entry, so the order is for ever."""
    desk.load()
    desk.send("gw", Single("tpp", "api_calls", 5, "key", LATE_SETTLE), Group.of("tpp", late=(1, 2)))
    assert [event[2] for event in desk.entries()[0].events] == [1, 2, 5]


def test_a_key_is_kept_for_as_long_as_the_caller_says(real_desk: Desk) -> None:
    assert isinstance(real_desk.ledger, RealLedger)
    client = real_desk.ledger.client
    key = real_desk.ledger.idempotency_key("tpp", "key")
    real_desk.load()
    real_desk.once("key")
    assert client.exists(key) == 0, "a hold keeps nothing"
    real_desk.settle_once("key")
    assert IDEMPOTENCY_TTL_MS - 60_000 < client.pttl(key) <= IDEMPOTENCY_TTL_MS
    client.pexpire(key, 3_600_000)
    real_desk.settle_once("key")
    assert client.pttl(key) <= 3_600_000, "a repeat does not prolong it"
