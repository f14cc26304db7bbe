"""Instances: who is alive, what comes back from the dead, and why a zombie does no harm."""

from __future__ import annotations

import pytest

from tests.integration.ledger.ledger_fixture import LedgerFixture
from tests.reference.messages import SETTLE, Code, Group, LedgerError, Outcome, Single
from tests.support.ledger_driver import HOME, RealLedger

HOUR_MS = 3_600_000


def test_holds_of_a_dead_gateway_come_back(ledger: LedgerFixture) -> None:
    ledger.load(ceiling=10)
    ledger.load("other", ceiling=10)
    ledger.hold(6, by="dead")
    ledger.hold(5, "other", by="dead")
    ledger.hold(2, by="alive")
    assert ledger.reap("dead") == 0
    assert (ledger.held_units("tpp"), ledger.held_units("other")) == (2, 0)
    assert ledger.instance("dead").shares == {}
    assert ledger.hold(8, by="alive").code == Code.GRANTED


@pytest.mark.parametrize(("age_ms", "answer"), [(0, -1), (4999, -1), (5000, 0)])
def test_a_gateway_is_dead_when_its_heartbeat_is_as_old_as_the_limit(
    ledger: LedgerFixture, age_ms: int, answer: int
) -> None:
    ledger.load()
    ledger.hold(6)
    assert ledger.backend.heartbeat("gw", ledger.epochs["gw"], now_us=ledger.now_us) == 1
    ledger.wait_ms(age_ms)
    assert ledger.reap("gw", ttl_ms=5000) == answer
    assert ledger.held_units() == (0 if answer == 0 else 6)


def test_a_gateway_that_leaves_is_reaped_at_any_age(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.hold(6)
    assert ledger.reap("gw", ttl_ms=-1) == 0
    assert (ledger.held_units(), ledger.instance("gw").heartbeat_ms) == (0, None)


def test_what_a_zombie_settles_is_charged_and_gives_nothing_back_a_second_time(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.hold(6, by="zombie")
    ledger.reap("zombie")
    ledger.hold(4, by="alive")
    reply = ledger.send("zombie", Group.of("tpp", settle=(6,)))
    assert not reply.registered
    assert (ledger.settled_units(), ledger.held_units(), ledger.charged_units()) == (6, 4, 6)


def test_what_a_zombie_releases_gives_nothing_back_a_second_time(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.hold(6, by="zombie")
    ledger.reap("zombie")
    ledger.start("zombie")
    ledger.hold(4, by="zombie")
    ledger.epochs["zombie"] = 1
    ledger.release(6, by="zombie")
    assert (ledger.settled_units(), ledger.held_units()) == (0, 4)


def test_a_zombie_holds_nothing_until_it_registers_again(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.hold(1, by="zombie")
    ledger.reap("zombie")
    assert ledger.hold(2, by="zombie") == Outcome(Code.UNREGISTERED)
    assert ledger.once("key", by="zombie") == Outcome(Code.UNREGISTERED)
    assert ledger.held_units() == 0
    ledger.start("zombie")
    assert ledger.hold(2, by="zombie").code == Code.GRANTED


def test_a_zombie_does_not_bring_itself_back_by_a_heartbeat(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.hold(1, by="zombie")
    ledger.reap("zombie")
    assert ledger.backend.heartbeat("zombie", ledger.epochs["zombie"], now_us=ledger.now_us) == 0
    assert ledger.instance("zombie").heartbeat_ms is None


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
    ledger.reap("gw")
    assert ledger.backend.register("gw", frozenset(), now_us=ledger.now_us) == (3, 3)


def test_a_gateway_reaped_in_parts_is_a_zombie_from_the_first_part(ledger: LedgerFixture) -> None:
    """Else it would, between two calls of the reaper, settle what was given back against what it holds since."""
    ledger.load("tpp")
    ledger.load("other")
    ledger.hold(5, "tpp", by="zombie")
    ledger.hold(5, "other", by="zombie")
    assert ledger.reap("zombie", accounts=("tpp",)) == 1
    assert ledger.hold(3, "tpp", by="zombie") == Outcome(Code.UNREGISTERED)
    ledger.settle(5, account="tpp", by="zombie")
    assert (ledger.settled_units("tpp"), ledger.held_units("tpp"), ledger.held_units("other")) == (5, 0, 5)
    assert ledger.reap("zombie") == 0
    assert ledger.held_units("other") == 0


def test_a_restart_under_the_old_name_gives_back_what_it_held_before(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.hold(5)
    epoch, seq = ledger.backend.register("gw", frozenset({"tpp"}), now_us=ledger.now_us)
    assert (epoch, seq, ledger.held_units()) == (2, 1, 0)
    assert ledger.instance("gw").shares == {}


def test_a_restart_that_does_not_name_its_old_accounts_waits_for_the_reaper(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.hold(5)
    ledger.wait_ms(4000)
    with pytest.raises(LedgerError, match="HELD"):
        ledger.backend.register("gw", frozenset(), now_us=ledger.now_us)
    assert ledger.hold(1) == Outcome(Code.UNREGISTERED), "the process before the restart is a zombie at once"
    ledger.wait_ms(1000)
    assert ledger.reap("gw", ttl_ms=5000) == 0, "an attempt is no heartbeat"
    ledger.start("gw")
    assert (ledger.hold(1).code, ledger.held_units()) == (Code.GRANTED, 1)


def test_reaping_rolls_the_period_over_first(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.spend(3)
    ledger.hold(2)
    ledger.wait_until_ms(ledger.account().end_ms)
    ledger.reap("gw")
    assert (ledger.settled_units(), ledger.held_units(), ledger.account().unsettled) == (0, 0, 3)


def test_an_account_that_lost_its_data_never_holds_less_than_nothing(real_ledger: LedgerFixture) -> None:
    """Its instances still have their shares; negative held units would make every later hold cheaper than it is."""
    assert isinstance(real_ledger.backend, RealLedger)
    for ending in ("settle", "reap"):
        real_ledger.load()
        real_ledger.hold(5)
        real_ledger.backend.client.delete(real_ledger.backend.keys.account("tpp"))
        real_ledger.load()
        if ending == "settle":
            real_ledger.settle(5)
        else:
            real_ledger.reap("gw")
        assert real_ledger.held_units() == 0


# What is forgotten when


def instance_ttl_ms(ledger: LedgerFixture, name: str) -> int:
    assert isinstance(ledger.backend, RealLedger)
    ttl = ledger.backend.client.pttl(ledger.backend.keys.instance(HOME, name))
    assert isinstance(ttl, int)
    return ttl


def test_a_reaped_gateways_last_reply_is_kept_for_a_day_and_an_hour(real_ledger: LedgerFixture) -> None:
    real_ledger.load()
    real_ledger.hold(1)
    assert instance_ttl_ms(real_ledger, "gw") == -1, "a gateway that lives is never forgotten"
    real_ledger.reap("gw")
    assert 24 * HOUR_MS < instance_ttl_ms(real_ledger, "gw") <= 25 * HOUR_MS
    real_ledger.start("gw")
    assert instance_ttl_ms(real_ledger, "gw") == -1


def test_a_zombie_that_sends_is_remembered_a_day_longer(real_ledger: LedgerFixture) -> None:
    assert isinstance(real_ledger.backend, RealLedger)
    real_ledger.load()
    real_ledger.hold(1)
    real_ledger.reap("gw")
    real_ledger.backend.client.pexpire(real_ledger.backend.keys.instance(HOME, "gw"), HOUR_MS)
    real_ledger.charge_late(1)
    assert instance_ttl_ms(real_ledger, "gw") > 24 * HOUR_MS


def test_a_late_batch_of_an_older_epoch_does_not_make_a_living_gateway_forgotten(real_ledger: LedgerFixture) -> None:
    """Its hash holds its shares: if it expired, what they stand for would be held for ever."""
    real_ledger.load()
    real_ledger.start("gw")
    real_ledger.reap("gw")
    real_ledger.start("gw")
    real_ledger.hold(3)
    real_ledger.epochs["gw"] = 1
    assert not real_ledger.send("gw", Group.of("tpp", late=(1,))).registered
    assert instance_ttl_ms(real_ledger, "gw") == -1


def test_who_never_registered_is_forgotten(real_ledger: LedgerFixture) -> None:
    real_ledger.epochs["stranger"], real_ledger.seqs["stranger"] = 1, 0
    real_ledger.charge_late(1, by="stranger")
    assert 24 * HOUR_MS < instance_ttl_ms(real_ledger, "stranger") <= 25 * HOUR_MS
