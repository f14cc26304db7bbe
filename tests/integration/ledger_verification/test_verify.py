"""Every check sees the one thing that was broken, and nothing in a ledger that is whole."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from sidecar.ledger.accounts.loader import AccountLoader
from sidecar.ledger.client.reaper import reap
from sidecar.ledger.keys import PARTITIONS_MAX, Keys
from sidecar.ledger.ledger_format import FormatError
from sidecar.ledger.verification.verify import repair_orphans, verify_ledger
from sidecar.ledger.verification.verify_report import Check
from tests.integration.ledger_verification.conftest import HOME, METRIC, Broken, past, spec
from tests.reference.messages import Group
from tests.support.ledger_driver import open_partitions


async def test_a_ledger_that_is_whole_agrees(ledger: Broken) -> None:
    report = await ledger.verify(events=True)
    assert report.agrees, report.differences
    assert (report.accounts, report.epochs, report.epochs_moving, report.notes) == (2, 1, 0, ())


async def test_a_ledger_that_is_used_meanwhile_agrees(ledger: Broken) -> None:
    """What a gateway holds moves between the looks at its accounts."""
    reads = 0
    original = ledger.client.eval

    async def interfering(*args: Any) -> Any:
        nonlocal reads
        reads += 1
        if reads <= 40:
            ledger.send("gw-1", Group.of("tpp-a", hold=(3,)), Group.of("tpp-b", release=1))
            if reads == 2:
                ledger.send("gw-2", Group.of("tpp-b", hold=(1,)))
        return await original(*args)

    ledger.client.eval = interfering  # type: ignore[method-assign, assignment]
    report = await ledger.verify()
    assert report.agrees, report.differences
    assert reads > 2


# What cannot be read


def set_field(name: str | bytes, value: bytes | str) -> Callable[[Broken], Any]:
    return lambda of: of.sync.hset(of.keys.account("tpp-a"), name, value)  # type: ignore[arg-type]


def without_field(name: str) -> Callable[[Broken], Any]:
    return lambda of: of.sync.hdel(of.keys.account("tpp-a"), name)


def set_state(state: bytes) -> Callable[[Broken], Any]:
    return lambda of: of.sync.set(of.keys.state("tpp-a"), state)


def as_a_list(of: Broken) -> None:
    of.sync.delete(of.keys.state("tpp-a"))
    of.sync.lpush(of.keys.state("tpp-a"), "x")


def with_shares(*shares: tuple[int, int]) -> Callable[[Broken], Any]:
    """Counter and units of each."""
    return lambda of: of.change("tpp-a", shares=[[of.epochs["gw-1"], *each] for each in shares])


def with_settled(units: int) -> Callable[[Broken], Any]:
    return lambda of: of.change("tpp-a", counters=[[*row[:8], units, *row[9:]] for row in of.values("tpp-a").counters])


STATES: dict[str, Callable[[Broken], Any]] = {
    "garbage": set_state(b"\0\0\1garbage"),
    "another type": as_a_list,
    "a float": lambda of: of.change("tpp-a", limits=(1.5, 0, 0, 0)),
    "a negative count": with_settled(-1),
    "two shares": with_shares((1, 2), (1, 2)),
    "a share of nothing": with_shares((1, 4), (2, 0)),
    "counter 9": with_shares((9, 4)),
    "a period backwards": lambda of: of.change("tpp-a", subscriptions=[["", 9, 9]]),
    "no view": without_field("view"),
    "no about": without_field("about"),
    "no digits": without_field("digits"),
    "no price table": set_field("prices", msgpack.packb([{METRIC: ["s", 1, 2]}, {}])),
    "a broken hour": set_field("h20000", b"\x01\xa0"),
    "a mark without a time": set_field(b"i" + b"x" * 16, "soon"),
}


@pytest.mark.parametrize("how", STATES)
async def test_an_account_that_cannot_be_read_is_named(ledger: Broken, how: str) -> None:
    STATES[how](ledger)
    report = await ledger.verify()
    found = [each for each in report.differences if each.check is Check.READABLE]
    assert [each.place for each in found] == ["account tpp-a"], report.differences


async def test_the_length_of_the_first_part_is_looked_at(ledger: Broken) -> None:
    state = bytearray(ledger.sync.get(ledger.keys.state("tpp-a")))  # type: ignore[arg-type]
    state[2] += 1
    ledger.sync.set(ledger.keys.state("tpp-a"), bytes(state))
    assert "length" in (await ledger.one(Check.READABLE)).found


async def test_a_piece_of_a_price_that_is_another_is_named(ledger: Broken) -> None:
    """It decides holds, so a wrong one lets them through."""
    ledger.change("tpp-a", counters=[[*r[:3], 0, 100, 0, 0, *r[7:]] for r in ledger.values("tpp-a").counters])
    report = await ledger.verify()
    assert {each.check for each in report.differences} == {Check.READABLE}
    assert "another piece" in report.differences[0].found


# Shares


async def test_held_units_without_a_share_are_named(ledger: Broken) -> None:
    counters = [[*row[:9], row[9] + (3 if row[1] == METRIC else 0), row[10]] for row in ledger.values("tpp-a").counters]
    ledger.change("tpp-a", counters=counters)
    found = await ledger.one(Check.HELD)
    assert (found.place, found.expected, found.found) == ("account tpp-a, api_calls", "4", "7")


async def test_shares_of_which_the_process_knows_nothing_are_named(ledger: Broken) -> None:
    number, record = Keys().instance(HOME, "gw-1"), msgpack.packb
    epoch = ledger.epochs["gw-1"]
    ledger.sync.set(number, record(epoch) + record(ledger.seqs["gw-1"]) + record(5) + b"reply")
    found = await ledger.one(Check.EPOCHS)
    assert (found.expected, found.found) == ("5", "8")
    assert "gw-1" in found.place


async def test_what_a_departed_process_held_is_compared_too(ledger: Broken) -> None:
    ledger.backend.reap("gw-1", -1, time.time_ns() // 1000)
    assert (await ledger.verify()).agrees
    ledger.sync.hset(ledger.keys.meta(HOME), f"departed:{ledger.epochs['gw-1']}", 3)
    found = await ledger.one(Check.EPOCHS)
    assert (found.expected, found.found) == ("3", "8")


async def test_orphaned_shares_are_named_and_come_back_after_a_repair(ledger: Broken) -> None:
    epoch = ledger.epochs["gw-1"]
    ledger.sync.delete(ledger.keys.instance(HOME, "gw-1"))
    ledger.sync.zrem(ledger.keys.alive(HOME), "gw-1")
    found = await ledger.one(Check.ORPHANED_SHARES)
    assert (found.place, found.found) == (f"epoch {epoch}", "8")
    report = await ledger.verify()
    [orphan] = report.orphans
    assert (orphan.units, sorted(orphan.accounts)) == (8, ["tpp-a", "tpp-b"])

    assert await repair_orphans(ledger.client, ledger.keys, report.orphans) == {epoch: True}
    assert await repair_orphans(ledger.client, ledger.keys, report.orphans) == {epoch: False}
    assert (await ledger.verify()).agrees
    await reap(ledger.client, ledger.keys, 1000)
    assert (await ledger.verify()).agrees
    assert [row[9] for row in ledger.values("tpp-a").counters] == [0, 0]


async def test_a_process_that_lives_is_never_repaired_away(ledger: Broken) -> None:
    assert (await ledger.verify()).orphans == ()


# Counts


def charge(units: int, row: list[Any]) -> list[Any]:
    return [*row[:8], row[8] + (units if row[1] == METRIC else 0), *row[9:]]


@pytest.mark.parametrize("units", [-1, 1])
async def test_settled_units_that_no_hour_has_are_named(ledger: Broken, units: int) -> None:
    ledger.change("tpp-b", counters=[charge(units, row) for row in ledger.values("tpp-b").counters])
    found = await ledger.one(Check.HOURS)
    assert (found.place, found.expected, found.found) == ("account tpp-b, api_calls", "7", str(7 + units))


async def test_an_hour_that_is_lost_is_named(ledger: Broken) -> None:
    await ledger.load("tpp-c")
    ledger.use("tpp-c", past(5))
    ledger.use("tpp-c", past(1))
    [day] = [name for name in ledger.sync.hkeys(ledger.keys.account("tpp-c")) if name.startswith(b"h")]
    assert (await ledger.verify()).agrees
    ledger.sync.hdel(ledger.keys.account("tpp-c"), day)
    assert (await ledger.one(Check.HOURS)).place == "account tpp-c, api_calls"


async def test_units_that_came_with_a_load_have_no_hour(ledger: Broken) -> None:
    await AccountLoader(ledger.client, ledger.keys).load(spec("tpp-lost"), counted={METRIC: 40})
    ledger.use("tpp-lost")
    assert (await ledger.verify()).agrees
    assert [row[8] for row in ledger.values("tpp-lost").counters if row[1] == METRIC] == [47]


async def test_a_period_that_began_within_an_hour_has_bounds(ledger: Broken) -> None:
    await ledger.load("tpp-c")
    ledger.use("tpp-c", past(2))
    start, end = past(2) // 1000, ledger.values("tpp-c").subscriptions[0][2]
    ledger.change("tpp-c", subscriptions=[["", start, end]])
    assert (await ledger.verify()).agrees
    ledger.change("tpp-c", counters=[charge(1, row) for row in ledger.values("tpp-c").counters])
    assert (await ledger.one(Check.HOURS)).expected == "0 to 7"


# Events


@pytest.fixture
async def past_ledger(ledger: Broken) -> Broken:
    """Charges of two hours that are over; the stream says that nothing left it."""
    await ledger.load("tpp-c")
    outbox = ledger.keys.outbox(HOME)
    for hours in (4, 2):
        ledger.use("tpp-c", past(hours))
    for partition in range(ledger.keys.partitions):
        key = ledger.keys.outbox(partition)
        [last, added] = [ledger.sync.xinfo_stream(key)[name] for name in ("last-generated-id", "entries-added")]
        ledger.sync.execute_command("XSETID", key, last, "ENTRIESADDED", added, "MAXDELETEDID", "0-1")
    assert ledger.sync.xlen(outbox) == 4
    return ledger


async def test_hours_are_compared_with_their_events(past_ledger: Broken) -> None:
    report = await past_ledger.verify(events=True)
    assert report.agrees, report.differences
    assert report.hours > 5


async def test_an_event_that_is_lost_is_named(past_ledger: Broken) -> None:
    outbox = past_ledger.keys.outbox(HOME)
    gone, fields = past_ledger.sync.xrange(outbox)[-2]
    past_ledger.sync.xdel(outbox, gone)
    past_ledger.sync.execute_command("XSETID", outbox, "9999999999999-0", "ENTRIESADDED", 9, "MAXDELETEDID", "0-1")
    found = await past_ledger.one(Check.EVENTS, events=True)
    assert (found.expected, found.found) == ("0", "7")
    # Where an accepted entry and a dead letter are all that is left of it, nothing is lost.
    past_ledger.sync.xadd(past_ledger.keys.sent(HOME), {**fields, b"x": b"1"}, id="1-1")
    past_ledger.sync.xadd(past_ledger.keys.sent(HOME), {b"o": b"x"}, id=gone)
    letter = {**fields, b"i": b"1", b"e": json.dumps(json.loads(fields[b"e"])[1:])}
    past_ledger.sync.xadd(past_ledger.keys.dead_letters(HOME), letter)
    found = await past_ledger.one(Check.EVENTS, events=True)
    assert (found.expected, found.found) == ("2", "7"), "of the tail only what is as young as the hour is read"


async def test_an_event_that_the_account_does_not_have_is_named(past_ledger: Broken) -> None:
    [(_, fields)] = past_ledger.sync.xrange(past_ledger.keys.outbox(HOME), count=1)
    at = str(past(3) // 1000)
    past_ledger.sync.xadd(past_ledger.keys.outbox(HOME), {**fields, b"q": b"77", b"t": at})
    found = await past_ledger.one(Check.EVENTS, events=True)
    assert (found.expected, found.found) == ("7", "0")


async def test_hours_of_which_events_have_left_the_streams_are_not_compared(past_ledger: Broken) -> None:
    outbox = past_ledger.keys.outbox(HOME)
    past_ledger.sync.xdel(outbox, past_ledger.sync.xrange(outbox)[-2][0])
    report = await past_ledger.verify(events=True)
    assert (report.agrees, report.hours) == (True, 0)


# Keys


async def test_an_account_of_the_index_without_keys_is_named(ledger: Broken) -> None:
    ledger.sync.zadd(ledger.keys.accounts(ledger.keys.partition("tpp-x")), {"tpp-x": 0})
    assert "no keys" in (await ledger.one(Check.ACCOUNTS)).what


async def test_an_account_that_the_index_lacks_is_named(ledger: Broken) -> None:
    ledger.sync.zrem(ledger.keys.accounts(ledger.keys.partition("tpp-a")), "tpp-a")
    assert "not in the index" in (await ledger.one(Check.ACCOUNTS)).what


async def test_units_of_an_account_that_was_never_loaded_are_a_note(ledger: Broken) -> None:
    ledger.send("gw-1", Group.of("tpp-z", late=(3,)))
    report = await ledger.verify()
    assert report.agrees, report.differences
    assert report.notes == ("account tpp-z was never loaded, and has 3 settled units",)


@pytest.mark.parametrize("part", ["state", "account"])
async def test_half_an_account_is_named(ledger: Broken, part: str) -> None:
    ledger.sync.delete(ledger.keys.state("tpp-b") if part == "state" else ledger.keys.account("tpp-b"))
    report = await ledger.verify()
    assert any(each.place == "account tpp-b" for each in report.differences), report.differences


async def test_a_key_of_another_partition_is_named(ledger: Broken) -> None:
    ledger.sync.set("qs:v2:{p64}:clock", "x")
    assert (await ledger.one(Check.KEYS)).place == "partition 64"


async def test_an_account_in_the_wrong_partition_is_named(ledger: Broken) -> None:
    wrong = (ledger.keys.partition("tpp-a") + 1) % ledger.keys.partitions
    ledger.sync.set(f"qs:v2:{{p{wrong:02d}}}:state:tpp-a", "x")
    assert "another partition" in (await ledger.one(Check.KEYS)).what


async def test_an_api_key_of_nobody_is_named(ledger: Broken) -> None:
    sha256 = b"\7" * 32
    ledger.sync.hset(ledger.keys.api_keys(sha256), sha256, "tpp-nobody")  # type: ignore[arg-type]
    assert "does not exist" in (await ledger.one(Check.API_KEYS)).what
    ledger.sync.hset(ledger.keys.api_keys(sha256), sha256, "tpp-a")  # type: ignore[arg-type]
    assert "does not name it" in (await ledger.one(Check.API_KEYS)).what


async def test_an_api_key_that_names_another_account_is_named(ledger: Broken) -> None:
    hashes = ledger.sync.keys("qs:v2:*:apikeys:*")
    ledger.sync.delete(hashes[0])
    assert "the account names it" in (await ledger.one(Check.API_KEYS)).what


async def test_a_heartbeat_without_a_record_and_a_record_without_one_are_named(ledger: Broken) -> None:
    ledger.sync.zadd(ledger.keys.alive(3), {"gw-9": 1})
    assert "no record" in (await ledger.one(Check.INSTANCES)).what
    ledger.sync.delete(ledger.keys.alive(3))
    ledger.sync.zrem(ledger.keys.alive(HOME), "gw-1")
    assert "no heartbeat" in (await ledger.one(Check.INSTANCES)).what


# Partitions


async def test_a_partition_that_is_another_ledgers_is_named(ledger: Broken) -> None:
    ledger.sync.hset(ledger.keys.meta(9), "partitions", 16)
    assert (await ledger.one(Check.PARTITIONS)).place == "partition 9"
    ledger.sync.delete(ledger.keys.meta(9))
    assert (await ledger.one(Check.PARTITIONS)).what == "it has no data"


async def test_a_clock_that_is_ahead_is_named(ledger: Broken) -> None:
    seconds, micros = ledger.sync.time()
    pack = msgpack.packb
    ledger.sync.set(ledger.keys.clock(9), pack(2) + pack(seconds * 1_000_000 + micros + 60_000_000))
    assert "set back" in (await ledger.one(Check.PARTITIONS)).what
    ledger.sync.set(ledger.keys.clock(9), pack(3) + pack(1))
    assert "another format" in (await ledger.one(Check.PARTITIONS)).what
    ledger.sync.set(ledger.keys.clock(9), b"\xc1")
    assert "cannot be read" in (await ledger.one(Check.PARTITIONS)).what


async def test_partitions_that_were_made_anew_are_a_note(ledger: Broken) -> None:
    ledger.sync.hset(ledger.keys.meta(9), "generation", "other:0")
    report = await ledger.verify()
    assert report.agrees
    assert "2 generations" in report.notes[0]


async def test_where_there_is_no_such_ledger_nothing_can_be_verified(ledger: Broken) -> None:
    with pytest.raises(FormatError, match="there is no ledger"):
        await verify_ledger(ledger.client, Keys("other"))
    ledger.sync.hset(ledger.keys.meta(9), "format", "importing")
    with pytest.raises(FormatError, match="is being imported"):
        await ledger.verify()
    open_partitions(ledger.sync, Keys("other", 16))
    with pytest.raises(FormatError, match="16 partitions"):
        await verify_ledger(ledger.client, Keys("other"))


async def test_an_epoch_beyond_every_partition_is_not_repaired(ledger: Broken) -> None:
    epoch = PARTITIONS_MAX + 900
    ledger.change("tpp-a", shares=[*ledger.values("tpp-a").shares, [epoch, 2, 5]])
    ledger.change(
        "tpp-a", counters=[[*r[:9], r[9] + 5 * (n == 1), r[10]] for n, r in enumerate(ledger.values("tpp-a").counters)]
    )
    report = await ledger.verify()
    assert [each.check for each in report.differences] == [Check.ORPHANED_SHARES]
    assert await repair_orphans(ledger.client, ledger.keys, report.orphans) == {epoch: False}


async def test_a_record_that_cannot_be_read_is_named(ledger: Broken) -> None:
    ledger.sync.zadd(ledger.keys.alive(3), {"gw-9": 1})
    ledger.sync.set(ledger.keys.instance(3, "gw-9"), b"\xc1")
    assert "record" in (await ledger.one(Check.READABLE)).what
    ledger.sync.delete(ledger.keys.instance(3, "gw-9"))
    ledger.sync.lpush(ledger.keys.instance(3, "gw-9"), "x")
    assert "record" in (await ledger.one(Check.READABLE)).what
