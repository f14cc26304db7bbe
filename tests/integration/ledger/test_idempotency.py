"""Idempotency keys: a repeat of a charged call is free, a few times. All else is charged, or refused on demand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import redis

from tests.integration.ledger.ledger_fixture import LedgerFixture
from tests.reference.messages import (
    HOLD,
    RELEASE,
    REPLAY,
    SETTLE,
    Code,
    Group,
    LedgerError,
    Mark,
    Outcome,
    Single,
)
from tests.support.ledger_driver import IDEMPOTENCY_TTL_MS, RealLedger


def marks(ledger: LedgerFixture) -> dict[str, Mark]:
    return dict(ledger.account().marks)


# Repeats


def test_a_repeat_of_a_charged_call_is_neither_held_nor_charged(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=10)
    assert ledger.once("key", units=4) == Outcome(Code.GRANTED, 6, 4)
    assert ledger.end_once("key") == Outcome(Code.GRANTED)
    assert ledger.once("key", units=4) == Outcome(Code.REPEAT, 6)
    assert (ledger.settled_units(), ledger.held_units(), ledger.charged_units()) == (4, 0, 4)


def test_after_so_many_repeats_a_call_is_charged_like_any(ledger: LedgerFixture) -> None:
    ledger.load()
    codes = [ledger.spend_once("key", repeats_max=2).code for _ in range(6)]
    assert codes == [Code.GRANTED, Code.REPEAT, Code.REPEAT, Code.GRANTED, Code.GRANTED, Code.GRANTED]
    assert (ledger.settled_units(), ledger.held_units(), ledger.charged_units()) == (4, 0, 4)
    assert marks(ledger)["key"].repeats == 2, "what is charged like any call leaves the mark of the first"


def test_where_no_repeat_is_free_every_call_is_charged(ledger: LedgerFixture) -> None:
    ledger.load()
    assert [ledger.spend_once("key", repeats_max=0).code for _ in range(3)] == [Code.GRANTED] * 3
    assert ledger.charged_units() == 3


def test_many_bodies_under_one_key_are_charged_each(ledger: LedgerFixture) -> None:
    """Seen on 0.2.0: 200 calls with 200 bodies, 1 was charged."""
    ledger.load()
    codes = {ledger.spend_once("key", body=str(number)).code for number in range(200)}
    assert codes == {Code.GRANTED}
    assert (ledger.settled_units(), ledger.charged_units()) == (200, 200)
    assert marks(ledger)["key"].body == "0"
    assert ledger.once("key", body="0").code == Code.REPEAT, "the first one is known all the same"


def test_an_account_with_nothing_left_gets_the_repeats_that_it_paid_for_and_no_more(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=4)
    ledger.spend_once("key", units=4)
    assert ledger.hold(1).code == Code.CREDIT
    assert [ledger.once("key", units=4).code for _ in range(5)] == [Code.REPEAT] * 3 + [Code.CREDIT] * 2
    assert ledger.once("key", units=4, body="another").code == Code.CREDIT


def test_many_at_once_under_one_key_are_charged_each(ledger: LedgerFixture) -> None:
    """Seen on 0.2.0: 40 at once, 1 was charged, and 40 answers said so."""
    ledger.load()
    answers = ledger.send("gw", *[Single("tpp", "api_calls", 1, "key")] * 40).singles
    assert [answer.outcomes[0].code for answer in answers] == [Code.GRANTED] * 40
    first, *others = [answer.token for answer in answers]
    assert first > 0
    assert set(others) == {0}, "one hold has the key"
    settle = Single("tpp", "api_calls", 1, "key", SETTLE, epoch=ledger.epochs["gw"], token=first)
    ledger.send("gw", settle, Group.of("tpp", settle=(1,) * 39))
    assert (ledger.settled_units(), ledger.held_units(), ledger.charged_units()) == (40, 0, 40)
    assert ledger.once("key").code == Code.REPEAT


def test_one_batch_knows_what_it_has_just_charged(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.once("key")
    mine = ledger.under_way["gw", "tpp", "key"]
    singles = [Single("tpp", "api_calls", 1, "key"), replace(mine, kind=SETTLE), Single("tpp", "api_calls", 1, "key")]
    answers = ledger.send("gw", *singles, replace(singles[2], repeats_max=1)).singles
    codes = [answer.outcomes[0].code for answer in answers]
    assert codes == [Code.GRANTED, Code.GRANTED, Code.REPEAT, Code.GRANTED]
    assert (ledger.settled_units(), ledger.held_units(), ledger.charged_units()) == (1, 2, 1)


def test_keys_are_each_accounts_own(ledger: LedgerFixture) -> None:
    ledger.load("tpp")
    ledger.load("other")
    ledger.spend_once("key", account="tpp")
    assert ledger.once("key", account="other").code == Code.GRANTED


@pytest.mark.parametrize(("status", "code"), [(1, Code.SUSPENDED), (2, Code.CLOSED)])
def test_a_repeat_is_no_way_around_a_suspension(ledger: LedgerFixture, status: int, code: Code) -> None:
    ledger.load()
    ledger.spend_once("key")
    ledger.load(status=status)
    assert ledger.once("key") == Outcome(code)
    assert marks(ledger)["key"].repeats == 0


def test_a_repeat_of_an_overdrawn_account_never_looks_unlimited(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=10)
    ledger.spend_once("key", units=5)
    ledger.load(ceiling=4)
    assert ledger.once("key") == Outcome(Code.REPEAT, 0), "not -1, which stands for no limit"
    ledger.load(ceiling=None)
    assert ledger.once("key") == Outcome(Code.REPEAT, -1)


def test_a_repeat_counts_towards_the_limits_though_it_costs_nothing(ledger: LedgerFixture) -> None:
    ledger.load(day_limit=3)
    ledger.spend_once("key")
    codes = [ledger.once("key").code for _ in range(3)]
    assert codes == [Code.REPEAT, Code.REPEAT, Code.DAILY]
    assert marks(ledger)["key"].repeats == 2, "a call that is refused is no repeat"


# Conflicts


def test_another_body_under_a_charged_key_is_refused_where_the_route_says_so(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.spend_once("key", body="a")
    assert ledger.once("key", body="b", refuses=True) == Outcome(Code.MISMATCH)
    assert ledger.once("key", body="a", refuses=True).code == Code.REPEAT
    assert (ledger.settled_units(), ledger.held_units()) == (1, 0)


def test_while_the_first_is_under_way_a_second_is_refused_where_the_route_says_so(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.once("key", by="gw-a")
    assert ledger.once("key", refuses=True, by="gw-a") == Outcome(Code.UNDER_WAY)
    assert ledger.once("key", refuses=True, by="gw-b") == Outcome(Code.UNDER_WAY)
    assert ledger.once("key", body="b", refuses=True, by="gw-b") == Outcome(Code.MISMATCH)
    assert ledger.held_units() == 1
    ledger.end_once("key", by="gw-a")
    assert ledger.once("key", refuses=True, by="gw-b").code == Code.REPEAT


def test_a_conflict_that_is_refused_uses_up_no_limit(ledger: LedgerFixture) -> None:
    ledger.load(rate_interval_us=1_000_000, burst=2, day_limit=2)
    ledger.once("key")
    assert [ledger.once("key", refuses=True).code for _ in range(5)] == [Code.UNDER_WAY] * 5
    assert ledger.hold(1).code == Code.GRANTED
    assert ledger.once("key", refuses=True).code == Code.DAILY, "limits come first"


# The mark of a call that is under way ends with its hold


def test_a_key_whose_call_was_released_is_free_for_another(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.once("key", units=3)
    ledger.end_once("key", RELEASE)
    assert marks(ledger) == {}
    assert ledger.held_units() == 0
    assert ledger.spend_once("key", units=3, refuses=True).code == Code.GRANTED
    assert (ledger.settled_units(), ledger.held_units()) == (3, 0)


def test_a_reaping_ends_the_mark_with_the_hold(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.once("key", by="dead")
    ledger.reap("dead")
    assert ledger.once("key", refuses=True, by="alive").code == Code.UNDER_WAY, "its units are still held"
    ledger.give_back()
    assert ledger.spend_once("key", refuses=True, by="alive").code == Code.GRANTED
    assert ledger.once("key", by="alive").code == Code.REPEAT


def test_a_release_after_a_reaping_leaves_the_key_of_who_has_it_now(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.once("key", by="zombie")
    ledger.bury("zombie")
    ledger.once("key", by="alive")
    before = marks(ledger)
    ledger.end_once("key", RELEASE, by="zombie")
    assert marks(ledger) == before
    assert ledger.held_units() == 1
    ledger.end_once("key", RELEASE, by="alive")
    assert marks(ledger) == {}


def test_a_settle_after_a_reaping_is_charged_and_leaves_the_key_of_who_has_it_now(ledger: LedgerFixture) -> None:
    """The API did the work of both."""
    ledger.load()
    ledger.once("key", by="zombie", body="a")
    ledger.bury("zombie")
    ledger.once("key", by="alive", body="b")
    assert ledger.end_once("key", by="zombie").code == Code.GRANTED
    assert (ledger.settled_units(), ledger.held_units()) == (1, 1)
    assert marks(ledger)["key"].epoch == ledger.epochs["alive"]
    ledger.end_once("key", by="alive")
    assert (ledger.settled_units(), ledger.held_units(), ledger.charged_units()) == (2, 0, 2)
    assert ledger.once("key", body="b").code == Code.REPEAT


@pytest.mark.parametrize("returns", [False, True])
def test_a_settle_after_a_reaping_charges_the_key_that_nobody_has(ledger: LedgerFixture, returns: bool) -> None:
    ledger.load()
    ledger.once("key", by="zombie")
    ledger.bury("zombie")
    if returns:
        ledger.start("zombie")
    assert ledger.end_once("key", by="zombie").code == Code.GRANTED
    assert (ledger.settled_units(), ledger.held_units(), ledger.charged_units()) == (1, 0, 1)
    assert ledger.once("key", by="alive").code == Code.REPEAT


def test_of_two_holds_of_one_instance_the_second_does_not_end_the_first_ones_mark(ledger: LedgerFixture) -> None:
    """The first one's mark was lost, so both had the key in turn."""
    ledger.load()
    ledger.once("key")
    first = ledger.under_way["gw", "tpp", "key"]
    ledger.wait_ms(IDEMPOTENCY_TTL_MS)
    ledger.once("key")
    ledger.send("gw", replace(first, kind=RELEASE))
    assert ledger.once("key", refuses=True).code == Code.UNDER_WAY
    ledger.end_once("key")
    assert (ledger.settled_units(), ledger.held_units()) == (1, 0)


def test_events_of_groups_come_before_those_of_singles(ledger: LedgerFixture) -> None:
    """The id of an event is its place in the entry, so the order is for ever."""
    ledger.load()
    ledger.send("gw", Single("tpp", "api_calls", 5, kind=REPLAY, record="r"), Group.of("tpp", late=(1, 2)))
    assert [event[2] for event in ledger.entries()[0].events] == [1, 2, 5]


# The replay of a spool


def test_a_record_of_a_spool_is_charged_once(ledger: LedgerFixture) -> None:
    """What a gateway spooled while the ledger was away, and sends again after a crash."""
    ledger.load()
    assert ledger.replay("r", 2).code == Code.GRANTED
    assert ledger.replay("r", 2).code == Code.REPEAT
    assert (ledger.settled_units(), ledger.held_units(), ledger.charged_units()) == (2, 0, 2)


def test_records_under_one_key_are_one_call_and_its_repeats(ledger: LedgerFixture) -> None:
    ledger.load()
    codes = [ledger.replay(f"r{number}", scope="key", repeats_max=2).code for number in range(5)]
    assert codes == [Code.GRANTED, Code.REPEAT, Code.REPEAT, Code.GRANTED, Code.GRANTED]
    assert [ledger.replay(f"r{number}", scope="key", repeats_max=9).code for number in range(5)] == [Code.REPEAT] * 5
    assert marks(ledger)["key"].repeats == 2, "what was recorded once counts once"
    assert ledger.charged_units() == 3


def test_a_record_of_another_body_is_charged(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.spend_once("key", body="a")
    assert ledger.replay("r1", scope="key", body="b", refuses=True).code == Code.GRANTED
    assert ledger.replay("r2", scope="key", body="a").code == Code.REPEAT
    assert ledger.charged_units() == 2


def test_a_record_of_a_call_that_is_under_way_is_charged(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.once("key")
    assert ledger.replay("r", scope="key").code == Code.GRANTED
    assert ledger.end_once("key").code == Code.GRANTED
    assert (ledger.settled_units(), ledger.held_units()) == (2, 0)


# How long


@pytest.mark.parametrize(
    ("age_ms", "code"), [(IDEMPOTENCY_TTL_MS - 1, Code.REPEAT), (IDEMPOTENCY_TTL_MS, Code.GRANTED)]
)
def test_a_key_counts_for_as_long_as_the_caller_says_by_the_ledgers_clock(
    ledger: LedgerFixture, age_ms: int, code: Code
) -> None:
    ledger.load()
    ledger.spend_once("key")
    ledger.wait_ms(1000)
    assert ledger.once("key").code == Code.REPEAT
    ledger.wait_ms(age_ms - 1000)
    assert ledger.once("key").code == code, "a repeat does not prolong it"


def test_a_key_that_was_charged_goes_by_itself(real_ledger: LedgerFixture) -> None:
    assert isinstance(real_ledger.backend, RealLedger)
    account = real_ledger.backend.keys.account("tpp")
    client: Any = real_ledger.backend.client
    real_ledger.load()
    mark = "FIELDS", 1, real_ledger.backend.mark("tpp", "key")
    for act in (lambda: real_ledger.once("key"), lambda: real_ledger.end_once("key")):
        act()
        [ttl] = client.execute_command("HPTTL", account, *mark)
        assert IDEMPOTENCY_TTL_MS - 60_000 < ttl <= IDEMPOTENCY_TTL_MS
    client.execute_command("HPEXPIRE", account, 60_000, *mark)
    real_ledger.spend(1)
    real_ledger.spend_once("another")
    real_ledger.spend(1)
    [ttl] = client.execute_command("HPTTL", account, *mark)
    assert ttl <= 60_000, "other calls do not prolong it"
    real_ledger.wait_ms(IDEMPOTENCY_TTL_MS - 5_000)
    assert real_ledger.once("key").code == Code.REPEAT
    [ttl] = client.execute_command("HPTTL", account, *mark)
    assert 0 < ttl <= 5_000, "a repeat does not prolong it"


@pytest.mark.parametrize("ttl_ms", [0, -1])
def test_keys_that_would_be_kept_for_no_time_are_refused_and_change_nothing(
    real_ledger: LedgerFixture, monkeypatch: pytest.MonkeyPatch, ttl_ms: int
) -> None:
    real_ledger.load()
    real_ledger.once("key")
    before = real_ledger.backend.state(["tpp"], ["gw"])  # type: ignore[call-arg]
    monkeypatch.setattr("tests.support.ledger_driver.IDEMPOTENCY_TTL_MS", ttl_ms)
    with pytest.raises(LedgerError, match="LIMIT"):
        real_ledger.end_once("key")
    assert real_ledger.backend.state(["tpp"], ["gw"]) == before  # type: ignore[call-arg]


@pytest.mark.parametrize("stored", [b"soon", b"", b"1800000000000", b"\xcf" * 5, b"\xcf" * 12, b"\xcf" + b"\0" * 8])
def test_a_key_that_cannot_be_read_counts_for_nothing(real_ledger: LedgerFixture, stored: bytes) -> None:
    assert isinstance(real_ledger.backend, RealLedger)
    real_ledger.load()
    field = real_ledger.backend.mark("tpp", "key")
    real_ledger.backend.client.hset(real_ledger.backend.keys.account("tpp"), field, stored)  # type: ignore[arg-type]
    assert real_ledger.spend_once("key", refuses=True).code == Code.GRANTED
    assert real_ledger.once("key").code == Code.REPEAT


# How many

MARKS_MAX = 10_000


def test_an_account_of_very_many_keys_forgets_an_old_one_for_each_new_one(real_ledger: LedgerFixture) -> None:
    assert isinstance(real_ledger.backend, RealLedger)
    account = real_ledger.backend.keys.account("tpp")
    client: Any = real_ledger.backend.client
    real_ledger.load()
    old = {
        b"i" + number.to_bytes(16, "big"): b"\xcf" + (2**40 + number).to_bytes(8, "big") for number in range(MARKS_MAX)
    }
    client.hset(account, mapping=old)
    fields = client.hlen(account)
    for number in range(20):
        real_ledger.spend_once(f"key {number}")
    left = client.hlen(account)
    assert fields <= left < fields + 20
    assert [real_ledger.once(f"key {number}").code for number in range(20)] == [Code.REPEAT] * 20


def test_a_mark_that_was_driven_out_costs_a_charge_and_no_more(real_ledger: LedgerFixture) -> None:
    assert isinstance(real_ledger.backend, RealLedger)
    real_ledger.load()
    field = real_ledger.backend.mark("tpp", "key")
    for _ in range(3):
        real_ledger.once("key")
        real_ledger.backend.client.hdel(real_ledger.backend.keys.account("tpp"), field)  # type: ignore[arg-type]
        assert real_ledger.end_once("key").code == Code.GRANTED
        real_ledger.backend.client.hdel(real_ledger.backend.keys.account("tpp"), field)  # type: ignore[arg-type]
    assert (real_ledger.settled_units(), real_ledger.held_units(), real_ledger.charged_units()) == (3, 0, 3)


EXPIRES = "expires_fields = "


def test_where_fields_do_not_expire_a_new_key_takes_the_place_of_one_that_is_over(valkey: redis.Redis) -> None:
    backend = RealLedger(valkey, edit=lambda text: text.replace(EXPIRES, EXPIRES + "false and "))
    ledger = LedgerFixture(backend)
    ledger.load()
    for number in range(30):
        ledger.spend_once(f"first {number}")
    ledger.wait_ms(IDEMPOTENCY_TTL_MS + 1)
    for number in range(60):
        ledger.spend_once(f"second {number}")
    kept = set(ledger.account().marks)
    assert {f"second {number}" for number in range(60)} <= kept
    assert len(kept) < 90


# A call happens once, though its reply is lost


@pytest.mark.parametrize("kind", [HOLD, SETTLE, RELEASE])
def test_a_repeated_batch_changes_no_mark(ledger: LedgerFixture, kind: int) -> None:
    ledger.load()
    ledger.once("key")
    if kind != HOLD:
        ledger.end_once("key", kind)
    before, reply = ledger.account(), ledger.send_again("gw")
    assert ledger.account() == before
    assert ledger.send_again("gw") == reply
