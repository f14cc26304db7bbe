"""Settles that no account could take are charged later, once each, or dropped."""

from __future__ import annotations

import json
import time
from typing import Any

import msgpack
import pytest

from sidecar.ledger.accounts.idempotency_marks import mark_until_ms
from sidecar.ledger.keys import idempotency_digest
from sidecar.ledger.verification.refused_settles import (
    Reapplied,
    UnknownRefusedSettles,
    count_refused,
    drop,
    reapply,
    refused_settles,
)
from sidecar.metering.outbox.events import EventAttributes, decode_entry
from tests.integration.ledger_verification.conftest import HOME, METRIC, Broken
from tests.reference.messages import Single
from tests.support.ledger_driver import text_of

TTL_MS = 86_400_000
GARBAGE = b"\0\0\1garbage"


def event(account: str, units: int, metric: str = METRIC) -> list[Any]:
    return [account, metric, units, "/accounts", "GET", 200, 1.5, None, None]


def refuse(ledger: Broken, account: str, *events: list[Any], marks: tuple[str | None, ...] = ()) -> None:
    """As a gateway does it for an account that cannot be read. ``marks``: records of a spool that the events are."""
    keys = ledger.keys
    ledger.seqs["gw-1"] += 1
    scopes = marks or (None,) * len(events)
    digests = [scope and [idempotency_digest(account, scope.encode()).hex(), "", "", 0, 0] for scope in scopes]
    request = (
        ledger.epochs["gw-1"], ledger.seqs["gw-1"], f"gw-1.{HOME:02d}", account, "its state cannot be read",
        json.dumps(events), json.dumps(digests),
    )  # fmt: skip
    names = keys.instance(HOME, "gw-1"), keys.clock(HOME), keys.refused(HOME)
    ledger.sync.eval(text_of("refuse", False), len(names), *names, msgpack.packb(request, use_bin_type=False))


async def reapplied(ledger: Broken, **wanted: Any) -> list[Reapplied]:
    entries = await refused_settles(ledger.client, ledger.keys, **wanted)
    return [each async for each in reapply(ledger.client, ledger.keys, entries, TTL_MS)]


def settled(ledger: Broken, account: str) -> dict[str, int]:
    return {row[1]: row[8] for row in ledger.values(account).counters}


def ids_of_last(ledger: Broken, entries: int) -> list[str]:
    found = []
    for _, fields in ledger.sync.xrange(ledger.keys.outbox(HOME))[-entries:]:
        bodies = decode_entry(fields, EventAttributes("source", "type")).bodies
        found += [json.loads(body)["id"] for body in bodies]
    return found


async def test_they_are_listed_with_what_is_owed(ledger: Broken) -> None:
    refuse(ledger, "tpp-a", event("tpp-a", 3), event("tpp-a", 4, "payments"))
    refuse(ledger, "tpp-b", event("tpp-b", 1))
    first, second = await refused_settles(ledger.client, ledger.keys)
    assert (first.account, first.units, first.reason) == ("tpp-a", 7, "its state cannot be read")
    assert (second.account, second.units, len(second.events)) == ("tpp-b", 1, 1)
    assert abs(first.at_ms / 1000 - time.time()) < 60
    assert await refused_settles(ledger.client, ledger.keys, account="tpp-b") == [second]
    assert await refused_settles(ledger.client, ledger.keys, ids=[second.id]) == [second]
    assert await refused_settles(ledger.client, ledger.keys, limit=1) == [first]
    assert await count_refused(ledger.client, ledger.keys) == 2


async def test_they_are_charged_with_the_events_that_they_had(ledger: Broken) -> None:
    before = settled(ledger, "tpp-a")
    refuse(ledger, "tpp-a", event("tpp-a", 3), event("tpp-a", 4, "payments"), event("tpp-a", 2, "unpriced"))
    assert (await ledger.verify()).agrees, "what is refused is not charged"
    [done] = await reapplied(ledger)
    assert (done.units, done.events, done.skipped, done.problem) == (9, 3, 0, "")
    after = settled(ledger, "tpp-a")
    assert after == {METRIC: before[METRIC] + 3, "payments": before["payments"] + 4, "unpriced": 2}
    seq = ledger.seqs["gw-1"]
    assert ids_of_last(ledger, 1) == [f"gw-1.00.{seq}.{number}" for number in range(3)]
    assert await count_refused(ledger.client, ledger.keys) == 0
    assert await reapplied(ledger) == []
    report = await ledger.verify()
    assert report.agrees, report.differences


async def test_who_does_it_at_the_same_time_charges_nothing_twice(ledger: Broken) -> None:
    refuse(ledger, "tpp-a", event("tpp-a", 3))
    entries = await refused_settles(ledger.client, ledger.keys)
    both = [[each async for each in reapply(ledger.client, ledger.keys, entries, TTL_MS)] for _ in range(2)]
    assert [done.units for [done] in both] == [3, 0]
    assert both[1][0].problem == "it is not there any more"
    assert settled(ledger, "tpp-a")[METRIC] == 10


async def test_a_call_that_was_charged_meanwhile_is_not_charged_again(ledger: Broken) -> None:
    """Its idempotency key says so; the other events keep their numbers, and with them their ids."""
    events = [event("tpp-a", units) for units in (1, 10, 100, 1000)]
    refuse(ledger, "tpp-a", *events, marks=(None, "second", "third", None))
    ledger.send("gw-1", Single.spooled("tpp-a", METRIC, 10, "second"))
    [done] = await reapplied(ledger)
    assert (done.units, done.events, done.skipped) == (1101, 3, 1)
    seq = ledger.seqs["gw-1"] - 1
    assert ids_of_last(ledger, 2) == [f"gw-1.00.{seq}.{number}" for number in (0, 2, 3)]
    mark = b"i" + idempotency_digest("tpp-a", b"third")
    stored: Any = ledger.sync.hget(ledger.keys.account("tpp-a"), mark)
    assert (mark_until_ms(stored) or 0) > time.time() * 1000
    [ttl] = ledger.sync.execute_command("HPTTL", ledger.keys.account("tpp-a"), "FIELDS", 1, mark)
    assert TTL_MS - 60_000 < ttl <= TTL_MS
    ledger.send("gw-1", Single.spooled("tpp-a", METRIC, 100, "third"))
    assert settled(ledger, "tpp-a")[METRIC] == 7 + 10 + 1101
    assert (await ledger.verify()).agrees


async def test_one_key_twice_in_an_entry_is_charged_once(ledger: Broken) -> None:
    refuse(ledger, "tpp-a", event("tpp-a", 2), event("tpp-a", 2), marks=("same", "same"))
    [done] = await reapplied(ledger)
    assert (done.units, done.events, done.skipped) == (2, 1, 1)


async def test_all_of_an_entry_charged_already_makes_it_go_without_an_event(ledger: Broken) -> None:
    refuse(ledger, "tpp-a", event("tpp-a", 2), marks=("one",))
    ledger.send("gw-1", Single.spooled("tpp-a", METRIC, 2, "one"))
    length = ledger.sync.xlen(ledger.keys.outbox(HOME))
    [done] = await reapplied(ledger)
    assert (done.units, done.events, done.skipped, done.problem) == (0, 0, 1, "")
    assert ledger.sync.xlen(ledger.keys.outbox(HOME)) == length
    assert await count_refused(ledger.client, ledger.keys) == 0


@pytest.mark.parametrize("part", ["state", "hash"])
async def test_an_account_that_still_cannot_be_read_keeps_them(ledger: Broken, part: str) -> None:
    refuse(ledger, "tpp-a", event("tpp-a", 3))
    refuse(ledger, "tpp-b", event("tpp-b", 1))
    if part == "state":
        ledger.sync.set(ledger.keys.state("tpp-a"), GARBAGE)
    else:
        ledger.sync.delete(ledger.keys.account("tpp-a"))
        ledger.sync.set(ledger.keys.account("tpp-a"), "a text")
    before = {key: ledger.sync.dump(key) for key in ledger.sync.keys("*tpp-a")}
    first, second = await reapplied(ledger)
    assert (first.units, second.units, second.problem) == (0, 1, "")
    assert first.problem != ""
    assert {key: ledger.sync.dump(key) for key in ledger.sync.keys("*tpp-a")} == before
    [left] = await refused_settles(ledger.client, ledger.keys)
    assert left.account == "tpp-a"


async def test_units_beyond_what_can_be_counted_stay_refused(ledger: Broken) -> None:
    refuse(ledger, "tpp-a", event("tpp-a", 2**53 - 5))
    [done] = await reapplied(ledger)
    assert "2^53" in done.problem
    assert await count_refused(ledger.client, ledger.keys) == 1


async def test_a_server_without_memory_leaves_everything_as_it_is(ledger: Broken) -> None:
    refuse(ledger, "tpp-a", event("tpp-a", 3), marks=("key",))
    before = {key: ledger.sync.dump(key) for key in ledger.sync.keys("qs:*")}
    ledger.sync.config_set("maxmemory", 1)
    try:
        [done] = await reapplied(ledger)
    finally:
        ledger.sync.config_set("maxmemory", 0)
    assert done.problem
    assert {key: ledger.sync.dump(key) for key in ledger.sync.keys("qs:*")} == before


async def test_an_entry_that_cannot_be_read_is_listed_and_stays(ledger: Broken) -> None:
    ledger.sync.xadd(ledger.keys.refused(5), {"account": "tpp-a", "e": "[", "marks": "[]"})
    [entry] = await refused_settles(ledger.client, ledger.keys)
    assert entry.id.startswith("5/")
    assert entry.broken.startswith("the entry cannot be read")
    [done] = await reapplied(ledger)
    assert done.problem == entry.broken
    assert await drop(ledger.client, ledger.keys, [entry], "nobody can read it") == [entry]


async def test_what_is_dropped_is_never_charged(ledger: Broken) -> None:
    refuse(ledger, "tpp-a", event("tpp-a", 3))
    entries = await refused_settles(ledger.client, ledger.keys)
    assert await drop(ledger.client, ledger.keys, entries, "a test") == entries
    assert await drop(ledger.client, ledger.keys, entries, "a test") == []
    assert await reapplied(ledger) == []
    assert settled(ledger, "tpp-a")[METRIC] == 7


@pytest.mark.parametrize("text", ["x", "64/1-1", "1/1", "1-1"])
async def test_what_is_no_id_is_named(ledger: Broken, text: str) -> None:
    with pytest.raises(UnknownRefusedSettles, match=text):
        await refused_settles(ledger.client, ledger.keys, ids=[text])
