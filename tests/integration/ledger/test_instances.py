"""Instances: who is alive, what comes back from the dead, and why a zombie does no harm."""

from __future__ import annotations

import pytest

from tests.integration.ledger.desk import Desk
from tests.reference.messages import SETTLE, Code, Group, LedgerError, Outcome, Single
from tests.support.ledger_driver import HOME, RealLedger

HOUR_MS = 3_600_000


def test_holds_of_a_dead_gateway_come_back(desk: Desk) -> None:
    desk.load(ceiling=10)
    desk.load("other", ceiling=10)
    desk.hold(6, by="dead")
    desk.hold(5, "other", by="dead")
    desk.hold(2, by="alive")
    assert desk.reap("dead") == 0
    assert (desk.h("tpp"), desk.h("other")) == (2, 0)
    assert desk.instance("dead").shares == {}
    assert desk.hold(8, by="alive").code == Code.GRANTED


@pytest.mark.parametrize(("age_ms", "answer"), [(0, -1), (4999, -1), (5000, 0)])
def test_a_gateway_is_dead_when_its_heartbeat_is_as_old_as_the_limit(desk: Desk, age_ms: int, answer: int) -> None:
    desk.load()
    desk.hold(6)
    assert desk.ledger.heartbeat("gw", desk.epochs["gw"], now_us=desk.now_us) == 1
    desk.wait_ms(age_ms)
    assert desk.reap("gw", ttl_ms=5000) == answer
    assert desk.h() == (0 if answer == 0 else 6)


def test_a_gateway_that_leaves_is_reaped_at_any_age(desk: Desk) -> None:
    desk.load()
    desk.hold(6)
    assert desk.reap("gw", ttl_ms=-1) == 0
    assert (desk.h(), desk.instance("gw").heartbeat_ms) == (0, None)


def test_what_a_zombie_settles_is_charged_and_gives_nothing_back_a_second_time(desk: Desk) -> None:
    desk.load()
    desk.hold(6, by="zombie")
    desk.reap("zombie")
    desk.hold(4, by="alive")
    reply = desk.send("zombie", Group.of("tpp", settle=(6,)))
    assert not reply.registered
    assert (desk.n(), desk.h(), desk.charged_units()) == (6, 4, 6)


def test_what_a_zombie_releases_gives_nothing_back_a_second_time(desk: Desk) -> None:
    desk.load()
    desk.hold(6, by="zombie")
    desk.reap("zombie")
    desk.start("zombie")
    desk.hold(4, by="zombie")
    desk.epochs["zombie"] = 1
    desk.release(6, by="zombie")
    assert (desk.n(), desk.h()) == (0, 4)


def test_a_zombie_holds_nothing_until_it_registers_again(desk: Desk) -> None:
    desk.load()
    desk.hold(1, by="zombie")
    desk.reap("zombie")
    assert desk.hold(2, by="zombie") == Outcome(Code.UNREGISTERED)
    assert desk.once("key", by="zombie") == Outcome(Code.UNREGISTERED)
    assert desk.h() == 0
    desk.start("zombie")
    assert desk.hold(2, by="zombie").code == Code.GRANTED


def test_a_zombie_does_not_bring_itself_back_by_a_heartbeat(desk: Desk) -> None:
    desk.load()
    desk.hold(1, by="zombie")
    desk.reap("zombie")
    assert desk.ledger.heartbeat("zombie", desk.epochs["zombie"], now_us=desk.now_us) == 0
    assert desk.instance("zombie").heartbeat_ms is None


@pytest.mark.parametrize("epoch", [0, 1])
def test_who_never_registered_holds_nothing_whatever_epoch_it_names(desk: Desk, epoch: int) -> None:
    desk.load()
    desk.epochs["stranger"], desk.seqs["stranger"] = epoch, 0
    reply = desk.send("stranger", Group.of("tpp", hold=(1,), settle=(2,)), Single("tpp", "api_calls", 1, "k", SETTLE))
    assert not reply.registered
    assert reply.groups[0] is not None
    assert reply.groups[0].outcomes == (Outcome(Code.UNREGISTERED),)
    assert (desk.n(), desk.h()) == (3, 0)


def test_a_registration_tells_the_last_number_so_that_the_next_is_not_stale(desk: Desk) -> None:
    desk.load()
    for _ in range(3):
        desk.hold(1)
    desk.reap("gw")
    assert desk.ledger.register("gw", frozenset(), now_us=desk.now_us) == (3, 3)


def test_a_gateway_reaped_in_parts_is_a_zombie_from_the_first_part(desk: Desk) -> None:
    """Else it would, between two calls of the reaper, settle what was given back against what it holds since."""
    desk.load("tpp")
    desk.load("other")
    desk.hold(5, "tpp", by="zombie")
    desk.hold(5, "other", by="zombie")
    assert desk.reap("zombie", accounts=("tpp",)) == 1
    assert desk.hold(3, "tpp", by="zombie") == Outcome(Code.UNREGISTERED)
    desk.settle(5, account="tpp", by="zombie")
    assert (desk.n("tpp"), desk.h("tpp"), desk.h("other")) == (5, 0, 5)
    assert desk.reap("zombie") == 0
    assert desk.h("other") == 0


def test_a_restart_under_the_old_name_gives_back_what_it_held_before(desk: Desk) -> None:
    desk.load()
    desk.hold(5)
    epoch, seq = desk.ledger.register("gw", frozenset({"tpp"}), now_us=desk.now_us)
    assert (epoch, seq, desk.h()) == (2, 1, 0)
    assert desk.instance("gw").shares == {}


def test_a_restart_that_does_not_name_its_old_accounts_waits_for_the_reaper(desk: Desk) -> None:
    desk.load()
    desk.hold(5)
    desk.wait_ms(4000)
    with pytest.raises(LedgerError, match="HELD"):
        desk.ledger.register("gw", frozenset(), now_us=desk.now_us)
    assert desk.hold(1) == Outcome(Code.UNREGISTERED), "the process before the restart is a zombie at once"
    desk.wait_ms(1000)
    assert desk.reap("gw", ttl_ms=5000) == 0, "an attempt is no heartbeat"
    desk.start("gw")
    assert (desk.hold(1).code, desk.h()) == (Code.GRANTED, 1)


def test_reaping_rolls_the_period_over_first(desk: Desk) -> None:
    desk.load()
    desk.spend(3)
    desk.hold(2)
    desk.wait_until_ms(desk.account().end_ms)
    desk.reap("gw")
    assert (desk.n(), desk.h(), desk.account().older_cost) == (0, 0, 3)


def test_an_account_that_lost_its_data_never_holds_less_than_nothing(real_desk: Desk) -> None:
    """Its instances still have their shares; a negative H would make every later hold cheaper than it is."""
    assert isinstance(real_desk.ledger, RealLedger)
    for ending in ("settle", "reap"):
        real_desk.load()
        real_desk.hold(5)
        real_desk.ledger.client.delete(real_desk.ledger.keys.account("tpp"))
        real_desk.load()
        if ending == "settle":
            real_desk.settle(5)
        else:
            real_desk.reap("gw")
        assert real_desk.h() == 0


# What is forgotten when


def instance_ttl_ms(desk: Desk, name: str) -> int:
    assert isinstance(desk.ledger, RealLedger)
    ttl = desk.ledger.client.pttl(desk.ledger.keys.instance(HOME, name))
    assert isinstance(ttl, int)
    return ttl


def test_a_reaped_gateways_last_reply_is_kept_for_a_day_and_an_hour(real_desk: Desk) -> None:
    real_desk.load()
    real_desk.hold(1)
    assert instance_ttl_ms(real_desk, "gw") == -1, "a gateway that lives is never forgotten"
    real_desk.reap("gw")
    assert 24 * HOUR_MS < instance_ttl_ms(real_desk, "gw") <= 25 * HOUR_MS
    real_desk.start("gw")
    assert instance_ttl_ms(real_desk, "gw") == -1


def test_a_zombie_that_sends_is_remembered_a_day_longer(real_desk: Desk) -> None:
    assert isinstance(real_desk.ledger, RealLedger)
    real_desk.load()
    real_desk.hold(1)
    real_desk.reap("gw")
    real_desk.ledger.client.pexpire(real_desk.ledger.keys.instance(HOME, "gw"), HOUR_MS)
    real_desk.charge_late(1)
    assert instance_ttl_ms(real_desk, "gw") > 24 * HOUR_MS


def test_a_late_batch_of_an_older_epoch_does_not_make_a_living_gateway_forgotten(real_desk: Desk) -> None:
    """Its hash holds its shares: if it expired, what they stand for would be held for ever."""
    real_desk.load()
    real_desk.start("gw")
    real_desk.reap("gw")
    real_desk.start("gw")
    real_desk.hold(3)
    real_desk.epochs["gw"] = 1
    assert not real_desk.send("gw", Group.of("tpp", late=(1,))).registered
    assert instance_ttl_ms(real_desk, "gw") == -1


def test_who_never_registered_is_forgotten(real_desk: Desk) -> None:
    real_desk.epochs["stranger"], real_desk.seqs["stranger"] = 1, 0
    real_desk.charge_late(1, by="stranger")
    assert 24 * HOUR_MS < instance_ttl_ms(real_desk, "stranger") <= 25 * HOUR_MS
