"""Holds, settles and releases: lost replies, and what is granted for which money."""

from __future__ import annotations

from dataclasses import replace

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.ledger.ledger_fixture import CENT, START_MS, LedgerFixture
from tests.reference.messages import Code, Group, LedgerError, Outcome, Single
from tests.reference.pricing import MAX_INT, Table, worst
from tests.support.ledger_driver import RealLedger

PEAK: Table = ["v", 10, 10, 0, MAX_INT, 2, 0]
"""Ten units cost 100, the eleventh makes it 22."""


# A lost reply


def test_a_batch_sent_again_gets_the_first_reply_and_debits_nothing(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.hold(5)
    first = ledger.send("gw", Group.of("tpp", hold=(2, 3), settle=(5,)), Single("tpp", "api_calls", 1, "key"))
    ledger.wait_ms(60_000)
    assert ledger.send_again("gw") == first
    assert (ledger.settled_units(), ledger.held_units(), ledger.charged_units()) == (5, 6, 5)


def test_the_repeated_reply_is_the_same_to_the_byte(real_ledger: LedgerFixture) -> None:
    real_ledger.load()
    real_ledger.hold(5)
    assert isinstance(real_ledger.backend, RealLedger)
    first = real_ledger.backend.last_raw_reply
    real_ledger.wait_ms(1)
    real_ledger.send_again("gw")
    assert real_ledger.backend.last_raw_reply == first


def test_a_reply_is_repeated_even_after_the_instance_was_reaped(ledger: LedgerFixture) -> None:
    ledger.load()
    reply = ledger.send("gw", Group.of("tpp", hold=(2,)))
    ledger.bury("gw")
    assert ledger.send_again("gw") == reply
    assert ledger.held_units() == 0, "the reaper gave the hold back, and the repetition does not take it again"


def test_a_number_older_than_the_last_is_refused_as_stale(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.hold(1)
    first = ledger.last["gw"]
    ledger.hold(1)
    with pytest.raises(LedgerError, match="STALE"):
        ledger.backend.batch("gw", first, now_us=ledger.now_us)
    assert ledger.held_units() == 2


def test_numbers_may_leave_gaps(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.start("gw")
    ledger.seqs["gw"] += 10
    assert ledger.hold(1).code == Code.GRANTED


# What a batch does


def test_a_settle_and_its_event_are_one_step(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.hold(3)
    ledger.send("gw", Group.of("tpp", settle=(1, 2)))
    [entry] = ledger.entries()
    assert (entry.origin, entry.seq, entry.t_ms) == ("gw.00", 2, ledger.now_us // 1000)
    assert [event[:3] for event in entry.events] == [("tpp", "api_calls", 1), ("tpp", "api_calls", 2)]
    assert (ledger.settled_units(), ledger.held_units()) == (3, 0)


def test_a_batch_without_settles_appends_nothing(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.hold(3)
    ledger.release(3)
    assert ledger.entries() == ()
    assert (ledger.settled_units(), ledger.held_units()) == (0, 0)


def test_what_one_batch_frees_its_later_holds_can_have(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=5)
    ledger.hold(5)
    [answer] = ledger.send("gw", Group.of("tpp", release=2, hold=(2, 1))).groups
    assert answer is not None
    assert [outcome.code for outcome in answer.outcomes] == [Code.GRANTED, Code.CREDIT]


def test_what_one_hold_of_a_batch_takes_the_next_cannot_have(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=5)
    assert ledger.ask(3, 3, 2, 1).outcomes == (
        Outcome(Code.GRANTED, 2, 3),
        Outcome(Code.CREDIT, 2, 3),
        Outcome(Code.GRANTED, 0, 2),
        Outcome(Code.CREDIT, 0, 1),
    )


def test_a_group_sees_what_an_earlier_group_charged_late(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=10)
    groups = Group.of("tpp", hold=(4,)), Group.of("tpp", "api_calls", late=(5,)), Group.of("tpp", hold=(2, 1))
    answers = ledger.send("gw", *groups).groups
    assert answers[0] is not None
    assert answers[2] is not None
    assert answers[2].outcomes == (Outcome(Code.CREDIT, 1, 2), Outcome(Code.GRANTED, 0, 1))


def test_settling_more_than_is_held_takes_nothing_from_other_gateways(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.hold(5, by="gw")
    ledger.hold(7, by="other-gw")
    ledger.settle(9, by="gw")
    assert (ledger.settled_units(), ledger.held_units()) == (9, 7)


def test_a_batch_of_three_thousand_parts_is_taken_and_a_larger_one_leaves_no_trace(real_ledger: LedgerFixture) -> None:
    real_ledger.load(ceiling=None)
    parts = [Group.of("tpp", f"metric {at}", hold=(1,), late=(1,)) for at in range(2999)]
    single = Single("tpp", "api_calls", 1, "key")
    real_ledger.send("gw", *parts, single)
    before = real_ledger.backend.state(["tpp"], ["gw"])  # type: ignore[call-arg]
    assert before.accounts["tpp"].metrics["metric 2998"].settled == 1
    with pytest.raises(LedgerError, match="LIMIT a batch of 3001 groups and singles"):
        real_ledger.send("gw", *parts, single, single)
    assert real_ledger.backend.state(["tpp"], ["gw"]) == before  # type: ignore[call-arg]


def test_three_thousand_keys_of_one_account_are_charged_in_one_batch(real_ledger: LedgerFixture) -> None:
    real_ledger.load()
    singles = [Single.spooled("tpp", "api_calls", 1, f"key {at}") for at in range(3000)]
    for code in (Code.GRANTED, Code.REPEAT):
        answers = real_ledger.send("gw", *singles).singles
        assert {answer.outcomes[0].code for answer in answers} == {code}
    assert real_ledger.settled_units() == real_ledger.charged_units() == 3000


def test_three_thousand_records_of_a_spool_with_a_key_each_are_charged_in_one_batch(real_ledger: LedgerFixture) -> None:
    real_ledger.load()
    singles = [replace(Single.spooled("tpp", "api_calls", 1, f"r{at}"), scope=f"key {at}") for at in range(3000)]
    for code in (Code.GRANTED, Code.REPEAT):
        answers = real_ledger.send("gw", *singles).singles
        assert {answer.outcomes[0].code for answer in answers} == {code}
    assert len(real_ledger.account().marks) == 6000
    assert {real_ledger.once(f"key {at}").code for at in range(0, 3000, 100)} == {Code.REPEAT}


def test_three_thousand_shares_can_change_in_one_batch(real_ledger: LedgerFixture) -> None:
    prices: dict[str, Table] = {f"metric {at}": ["s", 0] for at in range(3000)}
    real_ledger.load(prices=prices)
    for part in ({"hold": (1,)}, {"settle": (1,)}):
        real_ledger.send("gw", *[Group.of("tpp", metric, **part) for metric in prices])  # type: ignore[arg-type]
    assert real_ledger.charged_units() == 3000
    assert (real_ledger.instance("gw").held, real_ledger.account().shares) == (0, {})


# Money


def test_a_prepaid_account_can_spend_its_last_cent_and_not_one_more(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=3)
    assert [ledger.spend(1) for _ in range(4)] == [
        Outcome(Code.GRANTED, 2, 1),
        Outcome(Code.GRANTED, 1, 1),
        Outcome(Code.GRANTED, 0, 1),
        Outcome(Code.CREDIT, 0, 1),
    ]


def test_a_refusal_says_what_is_available_and_what_was_needed(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=10)
    ledger.hold(7)
    assert ledger.hold(5) == Outcome(Code.CREDIT, 3, 5)


def test_holds_of_all_gateways_count(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=5)
    assert ledger.hold(3, by="gw-a").code == Code.GRANTED
    assert ledger.hold(3, by="gw-b") == Outcome(Code.CREDIT, 2, 3)
    assert ledger.hold(2, by="gw-b").code == Code.GRANTED


def test_older_unsettled_cost_counts_against_prepaid_and_postpaid_but_not_against_an_overage_cap(
    ledger: LedgerFixture,
) -> None:
    ledger.load("tpp", ceiling=10, unsettled=8)
    ledger.load("other", ceiling=10, unsettled=8, counts_unsettled=False)
    assert ledger.hold(3, "tpp") == Outcome(Code.CREDIT, 2, 3)
    assert ledger.hold(3, "other") == Outcome(Code.GRANTED, 7, 3)


def test_without_a_limit_everything_passes(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=None)
    assert ledger.hold(10**9) == Outcome(Code.GRANTED, -1, 10**9)


def test_without_a_limit_nothing_passes_that_cannot_be_represented(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=None)
    assert ledger.hold(MAX_INT) == Outcome(Code.GRANTED, -1, MAX_INT)
    assert ledger.hold(1) == Outcome(Code.CREDIT, 0, 1)


def test_metrics_of_one_account_share_its_funds(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=20, prices={"api_calls": ["s", 2], "payments": ["p", 3, 0, 10]})
    assert ledger.hold(5) == Outcome(Code.GRANTED, 10, 10)
    assert ledger.hold(1, metric="payments") == Outcome(Code.GRANTED, 0, 10)
    assert ledger.hold(2, metric="payments") == Outcome(Code.GRANTED, 0, 0), "the package is paid for"
    assert ledger.hold(1) == Outcome(Code.CREDIT, 0, 2)


def test_the_flat_fee_of_the_first_tier_is_due_before_the_first_call(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=30, prices={"api_calls": ["g", 10, 1, 25, MAX_INT, 4, 0]})
    assert ledger.hold(5) == Outcome(Code.GRANTED, 0, 5)


def test_a_hold_reserves_the_peak_on_its_way_and_a_settle_beyond_it_frees_the_rest(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=100, prices={"api_calls": PEAK})
    assert ledger.hold(9) == Outcome(Code.GRANTED, 10, 90)
    assert ledger.hold(3) == Outcome(Code.GRANTED, 0, 10), "12 cost 24, but one by one the tenth makes it 100"
    ledger.settle(9)
    assert ledger.hold(1) == Outcome(Code.GRANTED, 0, 0), "nine are settled, the peak still lies ahead"
    ledger.settle(3)
    assert ledger.hold(1) == Outcome(Code.GRANTED, 72, 2), "twelve are settled, the peak lies behind"


def test_a_hold_that_cannot_pay_for_the_peak_is_refused_though_its_end_is_cheap(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=99, prices={"api_calls": PEAK})
    assert ledger.hold(12) == Outcome(Code.CREDIT, 99, 100)


def test_late_settles_are_charged_without_asking_and_then_nothing_is_granted(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=5)
    ledger.charge_late(8)
    assert ledger.hold(1) == Outcome(Code.CREDIT, -3, 1)
    assert (ledger.settled_units(), ledger.charged_units()) == (8, 8)


MONOTONE: list[Table] = [["s", 7], ["g", 5, 0, 3, 20, 7, 10, MAX_INT, 2, 0], ["p", 4, 3, 11]]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=st.sampled_from(MONOTONE), units=st.lists(st.integers(1, 6), min_size=1, max_size=12))
def test_remaining_credit_never_rises_by_holding_and_settling(
    valkey: redis.Redis, table: Table, units: list[int]
) -> None:
    valkey.flushall()
    ledger = LedgerFixture(RealLedger(valkey))
    ledger.load(ceiling=10_000, prices={"api_calls": table})
    left = [ledger.spend(count).x for count in units]
    assert left == sorted(left, reverse=True)
    assert left[-1] == 10_000 - worst(table, sum(units), 0)


# Numbers


def test_large_numbers_are_stored_to_the_last_digit_and_never_as_floating_point_text(
    real_ledger: LedgerFixture,
) -> None:
    """Lua writes 1e+15 where it is not told otherwise; the driver refuses to read such text."""
    large = 10**15 + 1
    real_ledger.load(ceiling=None, prices={"api_calls": ["s", 8]})
    real_ledger.hold(large)
    assert real_ledger.account().shares == {(real_ledger.epochs["gw"], "main", "api_calls"): large}
    assert real_ledger.instance("gw").held == large
    real_ledger.settle(large)
    real_ledger.wait_until_ms(real_ledger.account().end_ms)
    real_ledger.hold(1)
    state = real_ledger.account()
    assert (state.unsettled, *state.records.values()) == (8 * large, (large, 8 * large))


def test_cost_that_late_settles_drive_beyond_2_to_the_53rd_stays_at_the_bound(ledger: LedgerFixture) -> None:
    ledger.load(prices={"api_calls": ["s", MAX_INT]})
    ledger.charge_late(3)
    assert ledger.hold(1).code == Code.CREDIT
    ledger.wait_until_ms(ledger.account().end_ms)
    ledger.charge_late(1)
    assert ledger.account().unsettled == MAX_INT
    assert ledger.hold(1).code == Code.CREDIT


def test_names_may_hold_colons_spaces_and_any_letters(valkey: redis.Redis) -> None:
    account, metric = "PSDGB-FCA:123 é", "api:calls é"
    ledger = LedgerFixture(RealLedger(valkey), (account,))
    ledger.load(account, prices={metric: CENT["api_calls"]})
    ledger.spend(2, account, metric)
    ledger.wait_until_ms(ledger.account(account).end_ms)
    ledger.hold(1, account, metric)
    assert ledger.account(account).records == {(START_MS, metric): (2, 2)}
    ledger.bury("gw")
    assert ledger.held_units(account, metric) == 0
