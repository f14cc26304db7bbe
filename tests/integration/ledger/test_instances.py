"""Instances: who is alive, what comes back from the dead, and why a zombie does no harm."""

from __future__ import annotations

import pytest
import redis

from tests.integration.ledger.ledger_fixture import LedgerFixture
from tests.reference.messages import SETTLE, Code, Group, Outcome, Single
from tests.support.ledger_driver import HOME, RealLedger, account_keys

HOUR_MS = 3_600_000


def test_holds_of_a_dead_gateway_come_back(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=10)
    ledger.load("other", ceiling=10)
    ledger.hold(6, by="dead")
    ledger.hold(5, "other", by="dead")
    ledger.hold(2, by="alive")
    epoch = ledger.epochs["dead"]
    assert ledger.reap("dead") == 11
    assert (ledger.held_units("tpp"), ledger.held_units("other")) == (8, 5), "a departure is only noted"
    assert (ledger.instance("dead").held, ledger.home().departed) == (0, {epoch: 11})
    assert ledger.give_back() == 0
    assert (ledger.held_units("tpp"), ledger.held_units("other"), ledger.home().departed) == (2, 0, {})
    assert ledger.hold(8, by="alive").code == Code.GRANTED


def test_shares_come_back_from_the_accounts_that_are_named_and_the_rest_stays_noted(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.load("other")
    for name, units in (("dead", 5), ("too", 3)):
        ledger.hold(units, by=name)
        ledger.hold(10 * units, "other", by=name)
        ledger.reap(name)
    assert ledger.give_back("tpp") == 80
    assert ledger.home().departed == {ledger.epochs["dead"]: 50, ledger.epochs["too"]: 30}
    assert ledger.give_back("tpp") == 80
    assert ledger.give_back("other", "tpp") == 0


def test_no_two_registrations_have_the_same_epoch(ledger: LedgerFixture) -> None:
    epochs = []
    for name in ("gw", "other", "gw", "other", "third"):
        ledger.start(name)
        epochs.append(ledger.epochs[name])
    first = ledger.now_us // 1000
    assert epochs == [1024 * (first + n) for n in range(5)], "times, with room for the partition beside them"


def test_a_server_whose_data_went_back_gives_no_epoch_again(valkey: redis.Redis) -> None:
    ledger = LedgerFixture(RealLedger(valkey))
    ledger.start("gw")
    before = ledger.epochs["gw"]
    valkey.hdel(ledger.backend.keys.meta(HOME), "epochs")
    ledger.wait_ms(1)
    ledger.start("gw")
    assert ledger.epochs["gw"] > before


@pytest.mark.parametrize(("age_ms", "answer"), [(0, -1), (4999, -1), (5000, 6)])
def test_a_gateway_is_dead_when_its_heartbeat_is_as_old_as_the_limit(
    ledger: LedgerFixture, age_ms: int, answer: int
) -> None:
    ledger.load()
    ledger.hold(6)
    assert ledger.backend.heartbeat("gw", ledger.epochs["gw"], now_us=ledger.now_us) == 1
    ledger.wait_ms(age_ms)
    assert ledger.reap("gw", ttl_ms=5000) == answer
    ledger.give_back()
    assert ledger.held_units() == (6 if answer == -1 else 0)


def test_a_gateway_that_leaves_is_reaped_at_any_age(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.hold(6)
    assert ledger.reap("gw", ttl_ms=-1) == 6
    assert ledger.give_back() == 0
    assert (ledger.held_units(), ledger.instance("gw").heartbeat_ms) == (0, None)


def test_what_a_zombie_settles_is_charged_and_gives_nothing_back_a_second_time(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.hold(6, by="zombie")
    ledger.bury("zombie")
    ledger.hold(4, by="alive")
    reply = ledger.send("zombie", Group.of("tpp", settle=(6,)))
    assert not reply.registered
    assert (ledger.settled_units(), ledger.held_units(), ledger.charged_units()) == (6, 4, 6)


def test_what_a_zombie_releases_gives_nothing_back_a_second_time(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.hold(6, by="zombie")
    ledger.bury("zombie")
    former = ledger.epochs["zombie"]
    ledger.start("zombie")
    ledger.hold(4, by="zombie")
    ledger.epochs["zombie"] = former
    ledger.release(6, by="zombie")
    assert (ledger.settled_units(), ledger.held_units()) == (0, 4)


def test_a_zombie_holds_nothing_until_it_registers_again(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.hold(1, by="zombie")
    ledger.bury("zombie")
    assert ledger.hold(2, by="zombie") == Outcome(Code.UNREGISTERED)
    assert ledger.once("key", by="zombie") == Outcome(Code.UNREGISTERED)
    assert ledger.held_units() == 0
    ledger.start("zombie")
    assert ledger.hold(2, by="zombie").code == Code.GRANTED


def test_a_zombie_does_not_bring_itself_back_by_a_heartbeat(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.hold(1, by="zombie")
    ledger.reap("zombie")
    for epoch in (ledger.epochs["zombie"], 0):
        assert ledger.backend.heartbeat("zombie", epoch, now_us=ledger.now_us) == 0
    assert ledger.instance("zombie").heartbeat_ms is None


def test_who_names_no_epoch_is_not_registered_though_none_is_stored(ledger: LedgerFixture) -> None:
    """A process that has yet to register, under the name of one that departed."""
    ledger.load()
    ledger.hold(1)
    ledger.bury("gw")
    ledger.epochs["gw"] = 0
    assert ledger.hold(1) == Outcome(Code.UNREGISTERED)


@pytest.mark.parametrize("epoch", [0, 1])
def test_who_never_registered_holds_nothing_whatever_epoch_it_names(ledger: LedgerFixture, epoch: int) -> None:
    ledger.load()
    ledger.epochs["stranger"], ledger.seqs["stranger"] = epoch, 0
    reply = ledger.send("stranger", Group.of("tpp", hold=(1,), settle=(2,)), Single("tpp", "api_calls", 1, "k", SETTLE))
    assert not reply.registered
    assert reply.groups[0] is not None
    assert reply.groups[0].outcomes == (Outcome(Code.UNREGISTERED),)
    assert (ledger.settled_units(), ledger.held_units()) == (3, 0)


def test_a_registration_tells_the_last_number_so_that_the_next_is_not_stale(ledger: LedgerFixture) -> None:
    ledger.load()
    for _ in range(3):
        ledger.hold(1)
    former = ledger.epochs["gw"]
    ledger.reap("gw")
    epoch, number = ledger.backend.register("gw", now_us=ledger.now_us)
    assert (epoch > former, number) == (True, 3)


def test_a_gateway_is_a_zombie_before_the_first_share_is_taken_out(ledger: LedgerFixture) -> None:
    """Else it would, between two calls of the reaper, settle what was given back against what it holds since."""
    ledger.load("tpp")
    ledger.load("other")
    ledger.hold(5, "tpp", by="zombie")
    ledger.hold(5, "other", by="zombie")
    ledger.reap("zombie")
    assert ledger.hold(3, "tpp", by="zombie") == Outcome(Code.UNREGISTERED)
    ledger.settle(5, account="tpp", by="zombie")
    assert (ledger.settled_units("tpp"), ledger.held_units("tpp")) == (5, 5), "its share is the reaper's now"
    assert ledger.give_back("tpp") == 5
    assert (ledger.held_units("tpp"), ledger.held_units("other")) == (0, 5)


def test_a_restart_under_the_old_name_leaves_what_it_held_to_the_reaper(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.hold(5)
    former = ledger.epochs["gw"]
    ledger.start("gw")
    assert (ledger.epochs["gw"] > former, ledger.instance("gw").held) == (True, 0)
    assert (ledger.held_units(), ledger.home().departed) == (5, {former: 5})
    ledger.hold(2)
    ledger.settle(5)
    assert ledger.held_units() == 5, "in its new epoch it settles nothing of the former one"
    assert ledger.give_back() == 0
    assert (ledger.held_units(), ledger.settled_units()) == (0, 5)


def test_a_gateway_that_departs_twice_gives_back_what_it_held_each_time(ledger: LedgerFixture) -> None:
    ledger.load()
    for units in (5, 3):
        ledger.start("gw")
        ledger.hold(units)
        assert ledger.reap("gw") == units
        assert ledger.reap("gw") == 0
    assert sorted(ledger.home().departed.values()) == [3, 5]
    assert ledger.give_back() == 0
    assert ledger.held_units() == 0


def test_giving_back_rolls_the_period_over_first(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.spend(3)
    ledger.hold(2)
    ledger.wait_until_ms(ledger.account().end_ms)
    ledger.bury("gw")
    assert (ledger.settled_units(), ledger.held_units(), ledger.account().unsettled) == (0, 0, 3)


def test_an_account_that_lost_its_data_never_holds_less_than_nothing(real_ledger: LedgerFixture) -> None:
    """Negative held units would make every later hold cheaper than it is."""
    assert isinstance(real_ledger.backend, RealLedger)
    for ending in ("settle", "reap"):
        real_ledger.load()
        real_ledger.hold(5)
        real_ledger.backend.client.delete(*account_keys(real_ledger.backend.keys, "tpp"))
        real_ledger.load()
        if ending == "settle":
            real_ledger.settle(5)
        else:
            real_ledger.reap("gw")
            real_ledger.give_back()
        assert real_ledger.held_units() == 0


# What is forgotten when


def instance_ttl_ms(ledger: LedgerFixture, name: str) -> int:
    assert isinstance(ledger.backend, RealLedger)
    ttl = ledger.backend.client.pttl(ledger.backend.keys.instance(HOME, name))
    assert isinstance(ttl, int)
    return ttl


def test_a_reaped_gateways_last_reply_is_kept_for_thirty_days(real_ledger: LedgerFixture) -> None:
    real_ledger.load()
    real_ledger.hold(1)
    assert instance_ttl_ms(real_ledger, "gw") == -1, "a gateway that lives is never forgotten"
    real_ledger.reap("gw")
    assert 29 * 24 * HOUR_MS < instance_ttl_ms(real_ledger, "gw") <= 30 * 24 * HOUR_MS, "its spool may come late"
    real_ledger.start("gw")
    assert instance_ttl_ms(real_ledger, "gw") == -1


def test_a_zombie_that_sends_is_remembered_thirty_days_longer(real_ledger: LedgerFixture) -> None:
    assert isinstance(real_ledger.backend, RealLedger)
    real_ledger.load()
    real_ledger.hold(1)
    real_ledger.reap("gw")
    real_ledger.backend.client.pexpire(real_ledger.backend.keys.instance(HOME, "gw"), HOUR_MS)
    real_ledger.charge_late(1)
    assert instance_ttl_ms(real_ledger, "gw") > 29 * 24 * HOUR_MS


def test_a_late_batch_of_an_older_epoch_does_not_make_a_living_gateway_forgotten(real_ledger: LedgerFixture) -> None:
    """Its hash says what it holds: if it expired, that would be held for ever."""
    real_ledger.load()
    real_ledger.start("gw")
    real_ledger.reap("gw")
    former = real_ledger.epochs["gw"]
    real_ledger.start("gw")
    real_ledger.hold(3)
    real_ledger.epochs["gw"] = former
    assert not real_ledger.send("gw", Group.of("tpp", late=(1,))).registered
    assert instance_ttl_ms(real_ledger, "gw") == -1


def test_who_never_registered_is_forgotten(real_ledger: LedgerFixture) -> None:
    real_ledger.epochs["stranger"], real_ledger.seqs["stranger"] = 1, 0
    real_ledger.charge_late(1, by="stranger")
    assert 29 * 24 * HOUR_MS < instance_ttl_ms(real_ledger, "stranger") <= 30 * 24 * HOUR_MS
