"""What every hour counts, by account and metric: the ledger's side of the comparison with OpenMeter."""

from __future__ import annotations

from sidecar.ledger.keys import Keys
from sidecar.valkey.topology import keyslot
from tests.integration.ledger.desk import Desk
from tests.integration.ledger.invariants import HOUR_MS
from tests.reference.messages import LATE_SETTLE, Group, Single
from tests.support.ledger_driver import HOME, RealLedger

DAY_MS = 24 * HOUR_MS
METRIC = "api_calls"


def hours(desk: Desk) -> dict[tuple[int, str, str], int]:
    return desk.ledger.hours() if isinstance(desk.ledger, RealLedger) else dict(desk.ledger.state().hours)


def this_hour(desk: Desk) -> int:
    return desk.now_us // 1000 // HOUR_MS


def test_every_kind_of_charge_is_counted_and_nothing_else_is(desk: Desk) -> None:
    desk.load()
    desk.hold(50)
    assert hours(desk) == {}
    desk.settle(5, 7)
    desk.release(20)
    desk.charge_late(100)
    desk.once("key", units=3)
    desk.settle_once("key", units=3)
    desk.send("gw", Single("tpp", METRIC, 1000, "other key", LATE_SETTLE))
    assert hours(desk) == {(this_hour(desk), "tpp", METRIC): 5 + 7 + 100 + 3 + 1000}
    assert desk.n() == desk.charged_units() == 1115


def test_a_call_that_was_charged_already_is_not_counted_again(desk: Desk) -> None:
    desk.load()
    desk.settle_once("key", units=3)
    desk.settle_once("key", units=3)
    desk.send_again("gw")
    desk.settle(4)
    desk.send_again("gw")
    assert hours(desk) == {(this_hour(desk), "tpp", METRIC): 7}


def test_accounts_and_metrics_are_counted_apart_and_groups_and_singles_of_one_together(desk: Desk) -> None:
    desk.load(prices={METRIC: ["s", 1], "payments": ["s", 2]})
    desk.load("other")
    desk.send(
        "gw",
        Group.of("tpp", settle=(1,)),
        Group.of("tpp", "payments", settle=(2,), late=(3,)),
        Group.of("other", late=(4,)),
        Single("tpp", METRIC, 10, "a", LATE_SETTLE),
        Single("tpp", METRIC, 20, "b", LATE_SETTLE),
    )
    hour = this_hour(desk)
    assert hours(desk) == {
        (hour, "tpp", METRIC): 31,
        (hour, "tpp", "payments"): 5,
        (hour, "other", METRIC): 4,
    }


def test_an_hour_begins_with_its_first_millisecond(desk: Desk) -> None:
    desk.load()
    hour = this_hour(desk) + 1
    desk.wait_until_ms(hour * HOUR_MS - 1)
    desk.settle(1)
    desk.wait_ms(1)
    desk.settle(2)
    assert hours(desk) == {(hour - 1, "tpp", METRIC): 1, (hour, "tpp", METRIC): 2}
    assert [entry.t_ms // HOUR_MS for entry in desk.entries()] == [hour - 1, hour]


def test_the_work_of_a_gateway_that_was_taken_for_dead_is_counted(desk: Desk) -> None:
    desk.load()
    desk.hold(5)
    desk.reap("gw")
    desk.settle(5)
    assert hours(desk) == {(this_hour(desk), "tpp", METRIC): 5}


def test_a_settle_of_no_units_leaves_no_count(desk: Desk) -> None:
    desk.load()
    desk.settle(0)
    desk.settle_once("key", units=0)
    assert hours(desk) == {}


def test_an_hour_is_kept_for_nine_days_after_its_last_new_account(real_desk: Desk) -> None:
    real_desk.load()
    real_desk.load("other")
    assert isinstance(real_desk.ledger, RealLedger)
    client, key = real_desk.ledger.client, real_desk.ledger.keys.hour(HOME, this_hour(real_desk))
    real_desk.settle(1)
    assert 9 * DAY_MS - 60_000 < client.pttl(key) <= 9 * DAY_MS
    client.pexpire(key, 1_000_000)
    real_desk.settle(1)
    assert client.pttl(key) <= 1_000_000, "a charge that adds to a count costs no second command"
    real_desk.settle(1, account="other")
    assert client.pttl(key) > 8 * DAY_MS


def test_an_hour_of_many_accounts_is_kept_as_a_table_and_one_of_a_few_is_not(real_desk: Desk) -> None:
    assert isinstance(real_desk.ledger, RealLedger)
    client, key = real_desk.ledger.client, real_desk.ledger.keys.hour(HOME, this_hour(real_desk))
    real_desk.send("gw", *[Group.of(f"tpp-{number}", late=(1,)) for number in range(31)])
    assert client.object("encoding", key) == b"listpack"
    real_desk.send("gw", *[Group.of(f"tpp-{number}", late=(1,)) for number in range(100)])
    assert client.object("encoding", key) == b"hashtable"
    assert hours(real_desk) == {
        (this_hour(real_desk), f"tpp-{number}", METRIC): 2 if number < 31 else 1 for number in range(100)
    }


def test_an_hour_lies_in_the_slot_of_its_outbox() -> None:
    keys = Keys()
    assert keyslot(keys.hour(7, 500_000)) == keyslot(keys.outbox(7))
