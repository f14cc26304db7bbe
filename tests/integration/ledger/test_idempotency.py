"""One logical call is charged once, however often it is sent."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from tests.integration.ledger.ledger_fixture import LedgerFixture
from tests.reference.messages import HOLD, LATE_SETTLE, SETTLE, Code, Group, LedgerError, Outcome, Single
from tests.support.ledger_driver import IDEMPOTENCY_TTL_MS, RealLedger


def test_a_repeat_of_a_charged_call_is_neither_held_nor_charged(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=10)
    assert ledger.once("key", units=4) == Outcome(Code.GRANTED, 6, 4)
    assert ledger.settle_once("key", units=4) == Outcome(Code.GRANTED)
    assert ledger.once("key", units=4) == Outcome(Code.REPEAT, 6)
    assert (ledger.settled_units(), ledger.held_units(), ledger.charged_units()) == (4, 0, 4)


def test_a_repeat_passes_even_without_credit(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=4)
    ledger.once("key", units=4)
    ledger.settle_once("key", units=4)
    assert ledger.hold(1).code == Code.CREDIT
    assert ledger.once("key", units=4) == Outcome(Code.REPEAT, 0)


def test_of_two_at_the_same_time_the_first_to_settle_is_charged_and_the_others_hold_comes_back(
    ledger: LedgerFixture,
) -> None:
    ledger.load()
    assert ledger.once("key", units=3, by="gw-a").code == Code.GRANTED
    assert ledger.once("key", units=3, by="gw-b").code == Code.GRANTED, "nothing is charged yet"
    assert ledger.settle_once("key", units=3, by="gw-b").code == Code.GRANTED
    assert ledger.settle_once("key", units=3, by="gw-a").code == Code.REPEAT
    assert (ledger.settled_units(), ledger.held_units(), ledger.charged_units()) == (3, 0, 3)


def test_a_key_that_was_only_released_can_be_charged_later(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.once("key", units=3)
    ledger.release(3)
    assert ledger.once("key", units=3).code == Code.GRANTED
    assert ledger.settle_once("key", units=3).code == Code.GRANTED
    assert (ledger.settled_units(), ledger.held_units()) == (3, 0)


def test_one_batch_knows_what_it_has_just_charged(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.once("key")
    kinds = (HOLD, SETTLE, HOLD, LATE_SETTLE)
    singles = [Single("tpp", "api_calls", 1, "key", kind) for kind in kinds]
    answers = ledger.send("gw", *singles).singles
    codes = [answer.outcomes[0].code for answer in answers]
    assert codes == [Code.GRANTED, Code.GRANTED, Code.REPEAT, Code.REPEAT]
    assert (ledger.settled_units(), ledger.held_units(), ledger.charged_units()) == (1, 1, 1)


def test_a_hold_after_a_duplicates_settle_can_have_what_that_gave_back(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=6)
    ledger.once("key", units=3, by="gw")
    ledger.once("key", units=3, by="gw")
    ledger.settle_once("key", units=3)
    singles = [
        Single("tpp", "api_calls", 1, "another", HOLD),
        Single("tpp", "api_calls", 3, "key", SETTLE),
        Single("tpp", "api_calls", 1, "another", HOLD),
    ]
    answers = ledger.send("gw", *singles).singles
    assert [answer.outcomes[0] for answer in answers] == [
        Outcome(Code.CREDIT, 0, 1),
        Outcome(Code.REPEAT),
        Outcome(Code.GRANTED, 2, 1),
    ]


def test_a_late_settle_is_charged_once_too(ledger: LedgerFixture) -> None:
    """What a gateway spooled while the ledger was away, and sends again after a crash."""
    ledger.load()
    assert ledger.once("key", LATE_SETTLE, 2).code == Code.GRANTED
    assert ledger.once("key", LATE_SETTLE, 2).code == Code.REPEAT
    assert (ledger.settled_units(), ledger.held_units(), ledger.charged_units()) == (2, 0, 2)


def test_keys_are_each_accounts_own(ledger: LedgerFixture) -> None:
    ledger.load("tpp")
    ledger.load("other")
    ledger.settle_once("key", account="tpp")
    assert ledger.once("key", account="other").code == Code.GRANTED


@pytest.mark.parametrize(("status", "code"), [(1, Code.SUSPENDED), (2, Code.CLOSED)])
def test_a_repeat_is_no_way_around_a_suspension(ledger: LedgerFixture, status: int, code: Code) -> None:
    ledger.load()
    ledger.once("key")
    ledger.settle_once("key")
    ledger.load(status=status)
    assert ledger.once("key") == Outcome(code)


def test_a_repeat_of_an_overdrawn_account_never_looks_unlimited(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=10)
    ledger.once("key", units=5)
    ledger.settle_once("key", units=5)
    ledger.load(ceiling=4)
    assert ledger.once("key") == Outcome(Code.REPEAT, 0), "not -1, which stands for no limit"
    ledger.load(ceiling=None)
    assert ledger.once("key") == Outcome(Code.REPEAT, -1)


def test_a_repeat_counts_towards_the_limits_though_it_costs_nothing(ledger: LedgerFixture) -> None:
    ledger.load(day_limit=3)
    ledger.once("key")
    ledger.settle_once("key")
    codes = [ledger.once("key").code for _ in range(3)]
    assert codes == [Code.REPEAT, Code.REPEAT, Code.DAILY]


def test_events_of_groups_come_before_those_of_singles(ledger: LedgerFixture) -> None:
    """The id of an event is its place in the entry, so the order is for ever."""
    ledger.load()
    ledger.send("gw", Single("tpp", "api_calls", 5, "key", LATE_SETTLE), Group.of("tpp", late=(1, 2)))
    assert [event[2] for event in ledger.entries()[0].events] == [1, 2, 5]


@pytest.mark.parametrize(
    ("age_ms", "code"), [(IDEMPOTENCY_TTL_MS - 1, Code.REPEAT), (IDEMPOTENCY_TTL_MS, Code.GRANTED)]
)
def test_a_key_counts_for_as_long_as_the_caller_says_by_the_ledgers_clock(
    ledger: LedgerFixture, age_ms: int, code: Code
) -> None:
    ledger.load()
    ledger.settle_once("key")
    ledger.wait_ms(1000)
    ledger.settle_once("key")
    ledger.wait_ms(age_ms - 1000)
    assert ledger.settle_once("key").code == code, "a repeat does not prolong it"


def test_a_hold_keeps_no_key(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.once("key")
    assert ledger.account().marks == {}


def test_a_key_that_was_charged_goes_by_itself(real_ledger: LedgerFixture) -> None:
    assert isinstance(real_ledger.backend, RealLedger)
    account = real_ledger.backend.keys.account("tpp")
    client: Any = real_ledger.backend.client
    real_ledger.load()
    real_ledger.settle_once("key")
    mark = "FIELDS", 1, real_ledger.backend.mark("tpp", "key")
    [ttl] = client.execute_command("HPTTL", account, *mark)
    assert IDEMPOTENCY_TTL_MS - 60_000 < ttl <= IDEMPOTENCY_TTL_MS
    client.execute_command("HPEXPIRE", account, 60_000, *mark)
    real_ledger.spend(1)
    real_ledger.settle_once("another")
    real_ledger.spend(1)
    [ttl] = client.execute_command("HPTTL", account, *mark)
    assert ttl <= 60_000, "other calls do not prolong it"


@pytest.mark.parametrize("ttl_ms", [0, -1])
def test_keys_that_would_be_kept_for_no_time_are_refused_and_change_nothing(
    real_ledger: LedgerFixture, monkeypatch: pytest.MonkeyPatch, ttl_ms: int
) -> None:
    real_ledger.load()
    real_ledger.once("key")
    before = real_ledger.backend.state(["tpp"], ["gw"])  # type: ignore[call-arg]
    monkeypatch.setattr("tests.support.ledger_driver.IDEMPOTENCY_TTL_MS", ttl_ms)
    with pytest.raises(LedgerError, match="LIMIT"):
        real_ledger.settle_once("key")
    assert real_ledger.backend.state(["tpp"], ["gw"]) == before  # type: ignore[call-arg]


MARKS_MAX = 10_000


def test_an_account_of_very_many_keys_forgets_an_old_one_for_each_new_one(real_ledger: LedgerFixture) -> None:
    assert isinstance(real_ledger.backend, RealLedger)
    account = real_ledger.backend.keys.account("tpp")
    client: Any = real_ledger.backend.client
    real_ledger.load()
    old = {b"i" + number.to_bytes(16, "big"): number + 1 for number in range(MARKS_MAX)}
    client.hset(account, mapping=old)
    fields = client.hlen(account)
    real_ledger.send("gw", *(Single("tpp", "api_calls", 1, f"key {number}", SETTLE) for number in range(20)))
    left = client.hlen(account)
    assert fields <= left < fields + 20
    assert [real_ledger.settle_once(f"key {number}").code for number in range(20)] == [Code.REPEAT] * 20


EXPIRES = "expires_fields = "


def test_where_fields_do_not_expire_a_new_key_takes_the_place_of_one_that_is_over(valkey: redis.Redis) -> None:
    backend = RealLedger(valkey, edit=lambda text: text.replace(EXPIRES, EXPIRES + "false and "))
    ledger = LedgerFixture(backend)
    ledger.load()
    for number in range(30):
        ledger.settle_once(f"first {number}")
    ledger.wait_ms(IDEMPOTENCY_TTL_MS + 1)
    for number in range(60):
        ledger.settle_once(f"second {number}")
    kept = set(ledger.account().marks)
    assert {f"second {number}" for number in range(60)} <= kept
    assert len(kept) < 90
