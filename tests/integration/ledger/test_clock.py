"""The server's clock goes back: what stands, what follows, and what never goes back with it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import redis

from sidecar.ledger.keys import Keys
from tests.integration.ledger.ledger_fixture import CENT, DAY_MS, LENGTH_MS, START_MS, LedgerFixture
from tests.reference.ledger import CLOCK_HOLDS_US
from tests.reference.messages import SETTLE, Code, Group, LedgerError, MetricState, Outcome, Plan, Single
from tests.reference.pricing import MAX_INT
from tests.support.ledger_driver import HOME, RealLedger
from tests.support.ledger_state import pack

HOUR_US = 3_600_000_000
BACK_US = 2 * HOUR_US


def client_of(ledger: LedgerFixture) -> Any:
    assert isinstance(ledger.backend, RealLedger)
    return ledger.backend.client


# The ledger's clock


@pytest.mark.parametrize("back_us", [1, 3_000_000, CLOCK_HOLDS_US])
def test_while_the_server_is_a_little_behind_the_clock_stands(ledger: LedgerFixture, back_us: int) -> None:
    ledger.load()
    ledger.settle(1)
    latest_us = ledger.now_us
    ledger.now_us -= back_us
    reply = ledger.send("gw", Group.of("tpp", settle=(1,)))
    assert (reply.now_us, reply.stepped) == (latest_us, None)
    assert [entry.t_ms for entry in ledger.entries()] == [latest_us // 1000] * 2
    assert (ledger.home().latest_us, ledger.home().stepped) == (latest_us, None)
    ledger.now_us += back_us + 7
    assert ledger.send("gw", Group.of("tpp", settle=(1,))).now_us == latest_us + 7


def test_further_back_the_clock_follows_and_reply_and_meta_tell_of_the_step(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.settle(1)
    latest_us = ledger.now_us
    ledger.now_us -= BACK_US
    step = (latest_us, ledger.now_us)
    reply = ledger.send("gw", Group.of("tpp", settle=(1,)))
    assert (reply.now_us, reply.stepped) == (ledger.now_us, step)
    assert (ledger.home().latest_us, ledger.home().stepped) == (ledger.now_us, step)
    ledger.now_us += 1
    assert ledger.send("gw", Group.of("tpp", settle=(1,))).stepped is None, "it is told once"
    assert ledger.home().stepped == step, "and stays noted"


def test_a_repeated_batch_tells_of_the_step_again(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.settle(1)
    ledger.now_us -= BACK_US
    reply = ledger.send("gw", Group.of("tpp", settle=(1,)))
    ledger.now_us += 1
    assert ledger.send_again("gw") == reply
    assert reply.stepped is not None


# Limits


def test_a_rate_limit_waits_for_one_interval_at_most(ledger: LedgerFixture) -> None:
    ledger.load(rate_interval_us=1_000_000, burst=1)
    ledger.hold()
    assert ledger.hold() == Outcome(Code.RATE, 1_000_000)
    ledger.now_us -= BACK_US
    assert ledger.hold() == Outcome(Code.RATE, 1_000_000), "not 7,201 s"
    ledger.now_us += 1_000_000
    assert ledger.hold().code == Code.GRANTED


def test_a_rate_limit_lets_no_second_burst_through(ledger: LedgerFixture) -> None:
    ledger.load(rate_interval_us=250_000, burst=3)
    ledger.ask(1, 1, 1)
    ledger.now_us -= BACK_US
    assert [o.code for o in ledger.ask(1, 1).outcomes] == [Code.RATE] * 2


def test_a_daily_limit_of_ten_grants_ten_in_all(ledger: LedgerFixture) -> None:
    ledger.load(day_limit=10)
    ledger.now_us = (START_MS + 2 * DAY_MS) * 1000 - HOUR_US
    assert ledger.ask(*[1] * 4).day_left == 6
    ledger.now_us += BACK_US
    assert ledger.ask(*[1] * 6).day_left == 4, "an hour after midnight another day counts"
    granted = 6
    for _ in range(4):
        ledger.now_us -= BACK_US
        granted += sum(o.code == Code.GRANTED for o in ledger.ask(1, 1).outcomes)
        ledger.now_us += BACK_US
        granted += sum(o.code == Code.GRANTED for o in ledger.ask(1, 1).outcomes)
    assert granted == 10
    ledger.now_us -= BACK_US
    assert ledger.hold() == Outcome(Code.DAILY, DAY_MS * 1000 + HOUR_US), "until the day that counts is over"


# Periods


def test_an_event_lies_in_the_period_that_it_is_charged_to(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.load("other")
    begins_ms = START_MS + DAY_MS
    ledger.wait_until_ms(begins_ms + 5000)
    ledger.load(start_ms=begins_ms, end_ms=begins_ms + LENGTH_MS)
    ledger.settle(1)
    ledger.now_us -= BACK_US
    ledger.send("gw", Group.of("tpp", settle=(2,)), Group.of("other", settle=(4,)))
    entry = ledger.entries()[-1]
    assert (entry.time_of("tpp"), entry.time_of("other")) == (begins_ms, ledger.now_us // 1000)
    assert (ledger.account().metrics, ledger.account().start_ms) == ({"api_calls": MetricState(3, 0)}, begins_ms)


def test_an_entry_names_only_accounts_that_were_charged(ledger: LedgerFixture) -> None:
    ledger.load(start_ms=START_MS + DAY_MS)
    ledger.load("other")
    ledger.hold(1)
    ledger.now_us -= BACK_US
    ledger.send("gw", Group.of("tpp", hold=(1,)), Group.of("other", settle=(4,)))
    assert ledger.entries()[-1].times == {}


def test_a_rollover_is_not_made_a_second_time(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.spend(3)
    end_ms = ledger.account().end_ms
    ledger.wait_until_ms(end_ms)
    ledger.spend(2)
    after = ledger.account()
    ledger.now_us -= BACK_US
    ledger.hold(1)
    ledger.wait_until_ms(end_ms)
    ledger.release(1)
    assert ledger.account() == after
    assert after.records == {(START_MS, "api_calls"): (3, 3)}


def test_of_two_subscriptions_the_later_period_is_the_instant_of_both(ledger: LedgerFixture) -> None:
    second_ms = START_MS + DAY_MS - 1000
    ledger.load(
        plans=(
            Plan({"api_calls": ["s", 1]}, START_MS, START_MS + LENGTH_MS, name="base"),
            Plan({"payments": ["s", 1]}, second_ms, second_ms + LENGTH_MS, name="extra"),
        )
    )
    ledger.hold(1)
    ledger.now_us -= BACK_US
    ledger.settle(1)
    assert ledger.entries()[-1].time_of("tpp") == second_ms


def test_names_in_the_times_of_an_entry_are_whole(valkey: redis.Redis) -> None:
    """A prefix and an id that look like the middle of a key."""
    account = 'a:account:b "é"'
    backend = RealLedger(valkey, keys=Keys(prefix="x:account:y"))
    ledger = LedgerFixture(backend, (account,))
    ledger.load(account, start_ms=START_MS + DAY_MS)
    ledger.hold(1, account)
    ledger.now_us -= BACK_US
    ledger.settle(1, account=account)
    assert dict(ledger.entries()[-1].times) == {account: START_MS + DAY_MS}


# Instances


@pytest.mark.parametrize("back_us", [3_000_000, BACK_US])
def test_the_holds_of_a_dead_gateway_come_back_within_a_ttl(ledger: LedgerFixture, back_us: int) -> None:
    ledger.load()
    ledger.hold(6)
    ledger.now_us -= back_us
    assert ledger.reap("gw", ttl_ms=5000) == -1, "its heartbeat is of the future, and counts as one of now"
    ledger.now_us += max(back_us if back_us <= CLOCK_HOLDS_US else 0, 0) + 5_000_000
    assert ledger.reap("gw", ttl_ms=5000) == 6
    assert (ledger.give_back(), ledger.held_units()) == (0, 0)


def test_a_gateway_that_beats_after_the_step_lives(ledger: LedgerFixture) -> None:
    ledger.start("gw")
    ledger.now_us -= BACK_US
    assert ledger.reap("gw", ttl_ms=5000) == -1
    ledger.wait_ms(4000)
    ledger.backend.heartbeat("gw", ledger.epochs["gw"], now_us=ledger.now_us)
    ledger.wait_ms(4000)
    assert ledger.reap("gw", ttl_ms=5000) == -1


# Keys that were charged


def test_a_key_is_not_charged_again_because_the_clock_went_back(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.replay("record")
    ledger.spend_once("key")
    ledger.now_us -= BACK_US
    assert ledger.replay("record").code == Code.REPEAT
    assert ledger.once("key").code == Code.REPEAT


# What one account cannot do to the others of its batch


def unreadable(ledger: LedgerFixture, account: str) -> None:
    assert isinstance(ledger.backend, RealLedger)
    client_of(ledger).set(ledger.backend.keys.state(account), "garbage")


def test_an_unreadable_account_costs_ten_good_calls_of_its_batch_nothing(real_ledger: LedgerFixture) -> None:
    """Calls with keys: were one of them marked as charged and not charged, its repetition would be free."""
    real_ledger.load()
    real_ledger.load("other")
    keys = [f"key {number}" for number in range(10)]
    for key in keys:
        real_ledger.once(key, units=3)
    unreadable(real_ledger, "other")
    good = [replace(real_ledger.under_way["gw", "tpp", key], kind=SETTLE) for key in keys]
    bad = Single.spooled("other", "api_calls", 1, "bad")
    before = real_ledger.backend.state(["tpp"], ["gw"])  # type: ignore[call-arg]
    with pytest.raises(LedgerError, match="ACCOUNT 2 "):
        real_ledger.send("gw", *good[:5], bad, *good[5:])
    assert real_ledger.backend.state(["tpp"], ["gw"]) == before  # type: ignore[call-arg]
    real_ledger.seqs["gw"] -= 1
    answers = real_ledger.send("gw", *good).singles
    assert [answer.outcomes[0].code for answer in answers] == [Code.GRANTED] * 10
    real_ledger._accounts = ("tpp",)
    assert (real_ledger.settled_units(), real_ledger.held_units(), real_ledger.charged_units()) == (30, 0, 30)


@pytest.mark.parametrize("part", ["group", "single"])
def test_units_beyond_2_to_the_53rd_are_refused_and_name_their_account(ledger: LedgerFixture, part: str) -> None:
    ledger.load(prices={"api_calls": ["s", 0]})
    ledger.load("other")
    ledger.charge_late(MAX_INT)
    before = ledger.account(), ledger.entries(), ledger.instance("gw")
    one_more = Group.of("tpp", late=(1,)) if part == "group" else Single.spooled("tpp", "api_calls", 1, "key")
    with pytest.raises(LedgerError) as caught:
        ledger.send("gw", Group.of("other", settle=(1,)), one_more)
    assert caught.value.word == "ACCOUNT 2"
    assert (ledger.account(), ledger.entries(), ledger.instance("gw")) == before
    assert ledger.settled_units("other") == 0
    ledger.seqs["gw"] -= 1
    ledger.settle(1, account="other")
    assert (ledger.settled_units(), ledger.settled_units("other")) == (MAX_INT, 1)


def test_an_hour_beyond_2_to_the_53rd_is_refused_too(ledger: LedgerFixture) -> None:
    """The period may have begun in the hour."""
    ledger.load(prices={"api_calls": ["s", 0]})
    ledger.charge_late(MAX_INT)
    ledger.wait_ms(1)
    ledger.load(start_ms=ledger.now_us // 1000)
    assert ledger.settled_units() == 0
    with pytest.raises(LedgerError) as caught:
        ledger.charge_late(1)
    assert caught.value.word == "ACCOUNT 1"
    ledger.seqs["gw"] -= 1
    ledger.now_us += HOUR_US
    ledger.charge_late(1)
    assert ledger.settled_units() == 1


# A partition that is not of this format


@pytest.mark.parametrize("clock", [b"", pack(3) + pack(0)])
def test_a_partition_of_another_format_or_of_none_is_not_touched(real_ledger: LedgerFixture, clock: bytes) -> None:
    real_ledger.load()
    real_ledger.hold(1)
    assert isinstance(real_ledger.backend, RealLedger)
    client, keys = client_of(real_ledger), real_ledger.backend.keys
    for partition in (HOME, keys.partition("tpp")):
        client.delete(keys.clock(partition))
        if clock:
            client.set(keys.clock(partition), clock)
    before = {key: client.dump(key) for key in client.keys("qs:*")}
    for call in (
        lambda: real_ledger.settle(1),
        lambda: real_ledger.start("new"),
        lambda: real_ledger.load(prices=CENT),
    ):
        with pytest.raises(LedgerError) as caught:
            call()
        assert caught.value.word == "FORMAT"
    assert {key: client.dump(key) for key in client.keys("qs:*")} == before
