"""What every hour counts, by metric of an account: the ledger's side of the comparison with OpenMeter."""

from __future__ import annotations

from typing import Any

from tests.integration.ledger.invariants import HOUR_MS
from tests.integration.ledger.ledger_fixture import LedgerFixture
from tests.reference.messages import Group, Single
from tests.support.ledger_driver import RealLedger

METRIC = "api_calls"


def hours(ledger: LedgerFixture) -> dict[tuple[int, str, str], int]:
    names = ("tpp", "other")
    backend = ledger.backend
    return (backend.state(names, []) if isinstance(backend, RealLedger) else backend.state()).hours


def this_hour(ledger: LedgerFixture) -> int:
    return ledger.now_us // 1000 // HOUR_MS


def test_every_kind_of_charge_is_counted_and_nothing_else_is(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.hold(50)
    assert hours(ledger) == {}
    ledger.settle(5, 7)
    ledger.release(20)
    ledger.charge_late(100)
    ledger.spend_once("key", units=3)
    ledger.spend_once("key", units=3)
    ledger.send("gw", Single.spooled("tpp", METRIC, 1000, "other key"))
    assert hours(ledger) == {(this_hour(ledger), "tpp", METRIC): 5 + 7 + 100 + 3 + 1000}
    assert ledger.settled_units() == ledger.charged_units() == 1115


def test_a_call_that_was_charged_already_is_not_counted_again(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.replay("record", units=3)
    ledger.replay("record", units=3)
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
        Single.spooled("tpp", METRIC, 10, "a"),
        Single.spooled("tpp", METRIC, 20, "b"),
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
    ledger.bury("gw")
    ledger.settle(5)
    assert hours(ledger) == {(this_hour(ledger), "tpp", METRIC): 5}


def test_a_settle_of_no_units_leaves_no_count(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.settle(0)
    ledger.replay("record", units=0)
    assert hours(ledger) == {}


def test_an_hour_that_is_over_is_kept_with_those_of_its_day(real_ledger: LedgerFixture) -> None:
    assert isinstance(real_ledger.backend, RealLedger)
    account = real_ledger.backend.keys.account("tpp")
    client: Any = real_ledger.backend.client
    real_ledger.load()
    first = this_hour(real_ledger)
    for at, hour in enumerate([first, first + 1, first + 1, first + 30, first + 31]):
        real_ledger.wait_until_ms(hour * HOUR_MS)
        real_ledger.settle(10**at)
    fields = sorted(field for field in client.hkeys(account) if field.startswith(b"h"))
    assert fields == [b"h%d" % (first // 24), b"h%d" % (first // 24 + 1)]
    assert {hour - first: units for (hour, _, _), units in hours(real_ledger).items()} == {
        0: 1, 1: 110, 30: 1000, 31: 10_000,
    }  # fmt: skip


def test_an_hour_that_the_clock_comes_back_to_counts_both_times(ledger: LedgerFixture) -> None:
    ledger.load()
    hour = this_hour(ledger)
    for at, then in enumerate([hour + 2, hour, hour + 2, hour]):
        ledger.wait_until_ms(then * HOUR_MS)
        ledger.settle(10**at)
    assert hours(ledger) == {(hour, "tpp", METRIC): 1010, (hour + 2, "tpp", METRIC): 101}


def test_a_metric_that_is_dropped_leaves_the_count_of_its_hour(ledger: LedgerFixture) -> None:
    ledger.load(prices={METRIC: ["s", 1], "payments": ["s", 2]})
    ledger.spend(3, metric="payments")
    hour = this_hour(ledger)
    ledger.load(prices={METRIC: ["s", 1]})
    ledger.load(start_ms=ledger.now_us // 1000)
    assert ledger.account().gone == {}
    assert hours(ledger) == {(hour, "tpp", "payments"): 3}


def test_a_rollover_takes_nothing_from_the_hour(ledger: LedgerFixture) -> None:
    ledger.load()
    ledger.settle(3)
    hour = this_hour(ledger)
    ledger.load(start_ms=ledger.now_us // 1000)
    ledger.settle(4)
    assert ledger.settled_units() == 4
    assert hours(ledger) == {(hour, "tpp", METRIC): 7}
