"""What every hour counts, by account and metric: the ledger's side of the comparison with OpenMeter."""

from __future__ import annotations

from sidecar.ledger.keys import Keys
from sidecar.valkey.topology import keyslot
from tests.integration.ledger.invariants import HOUR_MS
from tests.integration.ledger.ledger_fixture import LedgerFixture
from tests.reference.messages import LATE_SETTLE, Group, Single
from tests.support.ledger_driver import HOME, RealLedger

DAY_MS = 24 * HOUR_MS
METRIC = "api_calls"


def hours(ledger: LedgerFixture) -> dict[tuple[int, str, str], int]:
    return ledger.backend.hours() if isinstance(ledger.backend, RealLedger) else dict(ledger.backend.state().hours)


def this_hour(ledger: LedgerFixture) -> int:
    return ledger.now_us // 1000 // HOUR_MS


def test_every_kind_of_charge_is_counted_and_nothing_else_is(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.hold(50)
    assert hours(ledger) == {}
    ledger.settle(5, 7)
    ledger.release(20)
    ledger.charge_late(100)
    ledger.once("key", units=3)
    ledger.settle_once("key", units=3)
    ledger.send("gw", Single("tpp", METRIC, 1000, "other key", LATE_SETTLE))
    assert hours(ledger) == {(this_hour(ledger), "tpp", METRIC): 5 + 7 + 100 + 3 + 1000}
    assert ledger.settled_units() == ledger.charged_units() == 1115


def test_a_call_that_was_charged_already_is_not_counted_again(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.settle_once("key", units=3)
    ledger.settle_once("key", units=3)
    ledger.send_again("gw")
    ledger.settle(4)
    ledger.send_again("gw")
    assert hours(ledger) == {(this_hour(ledger), "tpp", METRIC): 7}


def test_accounts_and_metrics_are_counted_apart_and_groups_and_singles_of_one_together(ledger: LedgerFixture) -> None:
    ledger.load(prices={METRIC: ["s", 1], "payments": ["s", 2]})
    ledger.load("other")
    ledger.send(
        "gw",
        Group.of("tpp", settle=(1,)),
        Group.of("tpp", "payments", settle=(2,), late=(3,)),
        Group.of("other", late=(4,)),
        Single("tpp", METRIC, 10, "a", LATE_SETTLE),
        Single("tpp", METRIC, 20, "b", LATE_SETTLE),
    )
    hour = this_hour(ledger)
    assert hours(ledger) == {
        (hour, "tpp", METRIC): 31,
        (hour, "tpp", "payments"): 5,
        (hour, "other", METRIC): 4,
    }


def test_an_hour_begins_with_its_first_millisecond(ledger: LedgerFixture) -> None:
    ledger.load()
    hour = this_hour(ledger) + 1
    ledger.wait_until_ms(hour * HOUR_MS - 1)
    ledger.settle(1)
    ledger.wait_ms(1)
    ledger.settle(2)
    assert hours(ledger) == {(hour - 1, "tpp", METRIC): 1, (hour, "tpp", METRIC): 2}
    assert [entry.t_ms // HOUR_MS for entry in ledger.entries()] == [hour - 1, hour]


def test_the_work_of_a_gateway_that_was_taken_for_dead_is_counted(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.hold(5)
    ledger.reap("gw")
    ledger.settle(5)
    assert hours(ledger) == {(this_hour(ledger), "tpp", METRIC): 5}


def test_a_settle_of_no_units_leaves_no_count(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.settle(0)
    ledger.settle_once("key", units=0)
    assert hours(ledger) == {}


def test_an_hour_is_kept_for_nine_days_after_its_last_new_account(real_ledger: LedgerFixture) -> None:
    real_ledger.load()
    real_ledger.load("other")
    assert isinstance(real_ledger.backend, RealLedger)
    client, key = real_ledger.backend.client, real_ledger.backend.keys.hour(HOME, this_hour(real_ledger))
    real_ledger.settle(1)
    assert 9 * DAY_MS - 60_000 < client.pttl(key) <= 9 * DAY_MS
    client.pexpire(key, 1_000_000)
    real_ledger.settle(1)
    assert client.pttl(key) <= 1_000_000, "a charge that adds to a count costs no second command"
    real_ledger.settle(1, account="other")
    assert client.pttl(key) > 8 * DAY_MS


def test_an_hour_of_many_accounts_is_kept_as_a_table_and_one_of_a_few_is_not(real_ledger: LedgerFixture) -> None:
    assert isinstance(real_ledger.backend, RealLedger)
    client, key = real_ledger.backend.client, real_ledger.backend.keys.hour(HOME, this_hour(real_ledger))
    real_ledger.send("gw", *[Group.of(f"tpp-{number}", late=(1,)) for number in range(31)])
    assert client.object("encoding", key) == b"listpack"
    real_ledger.send("gw", *[Group.of(f"tpp-{number}", late=(1,)) for number in range(100)])
    assert client.object("encoding", key) == b"hashtable"
    assert hours(real_ledger) == {
        (this_hour(real_ledger), f"tpp-{number}", METRIC): 2 if number < 31 else 1 for number in range(100)
    }


def test_an_hour_lies_in_the_slot_of_its_outbox() -> None:
    keys = Keys()
    assert keyslot(keys.hour(7, 500_000)) == keyslot(keys.outbox(7))
