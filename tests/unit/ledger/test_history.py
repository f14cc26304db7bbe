"""Any single change of a chained history is found, and every honest history verifies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.ledger.proof.chain import adopted, beginning, entry_value, link_of
from sidecar.ledger.proof.entries import Entry
from sidecar.ledger.proof.history import End, OriginHistory, OriginReport

KEY = b"k" * 32
SEEDS = st.integers(0, 2**32 - 1)


def verify_origin(
    key: bytes, entries: Sequence[Entry], ends: Sequence[End] = (), *, may_fork: bool = True
) -> OriginReport:
    history = OriginHistory(key, "gw.03", may_fork=may_fork)
    for entry in entries:
        history.add(entry)
    return history.verify(ends)


@dataclass
class Origin:
    """An honest gateway and its ledger; ``archive`` also has what the ledger lost."""

    random: Random
    name: str = "gw.03"
    archive: list[Entry] = field(default_factory=list)
    ledger: list[Entry] = field(default_factory=list)
    sent: list[tuple[int, bytes, bytes]] = field(default_factory=list)
    number: int = 0
    now_ms: int = 1_796_000_000_000
    chain: bytes = b""
    stored: bytes = b""

    def append(self, number: int, events: bytes, chain: bytes, *, value: bytes | None = None) -> None:
        self.now_ms += self.random.randint(1, 5)
        entry = Entry(
            f"line {len(self.archive) + 1}", self.name, number, self.now_ms, events, chain, order=(self.now_ms, 0)
        )
        self.archive.append(entry)
        self.ledger.append(entry)
        self.stored = chain
        self.chain = value or entry_value(KEY, chain, self.name, number, self.now_ms, events)

    def charge(self) -> None:
        self.number += self.random.randint(1, 3)
        events = json.dumps([["tpp", "api_calls", self.random.randint(1, 9), str(self.random.random())]]).encode()
        chain = self.chain or beginning(KEY, self.name, self.number)
        self.sent.append((self.number, events, chain))
        self.append(self.number, events, chain)

    def beat(self) -> None:
        self.stored = self.chain

    def go_back(self) -> None:
        """The server loses some entries; they are offered again, after some time."""
        count = self.random.randint(1, min(4, len(self.ledger)))
        lost, self.ledger = self.ledger[-count:], self.ledger[:-count]
        self.now_ms += 1_000
        chain = lost[0].chain
        for entry in lost:
            self.append(entry.number, entry.events, chain)
            chain = self.chain

    def die_and_be_adopted(self) -> None:
        """What was left in the spool is appended by another; the process says nothing more."""
        if self.random.random() < 0.5:
            self.beat()
        for _ in range(self.random.randint(1, 3)):
            self.number += 1
            events = [json.dumps(["tpp", "api_calls", n, self.number], separators=(",", ":")).encode() for n in (1, 2)]
            some = self.random.random() < 0.5
            chain = adopted(KEY, self.stored, self.name, self.number, events, all_charged=not some)
            charged = events[1:] if some else events
            self.append(self.number, b"[" + b",".join(charged) + b"]", chain, value=link_of(chain))


def honest(seed: int, *, ends: bool = True, backs: bool = True) -> Origin:
    random = Random(seed)
    origin = Origin(random)
    for _ in range(random.randint(4, 12)):
        origin.charge()
        if random.random() < 0.3:
            origin.beat()
        if backs and random.random() < 0.2:
            origin.go_back()
    if ends:
        origin.beat()
    return origin


def verified(origin: Origin, entries: list[Entry] | None = None) -> OriginReport:
    entries = origin.archive if entries is None else entries
    return verify_origin(KEY, entries, [End(origin.stored, "the ledger")])


@settings(max_examples=1000, deadline=None)
@given(SEEDS)
def test_every_honest_history_verifies(seed: int) -> None:
    origin = honest(seed)
    if origin.random.random() < 0.3:
        origin.die_and_be_adopted()
    archive = list(origin.archive)
    for _ in range(origin.random.randint(0, 3)):  # a publisher that died before it had finished writes again
        archive.append(origin.random.choice(archive))
    origin.random.shuffle(archive)  # several requests are on their way at once
    report = verified(origin, archive)
    assert report.faults == []
    assert report.begins
    assert report.unproven == 0
    counted = [entry for at, entry in enumerate(archive) if at not in report.left]
    assert sorted(entry.number for entry in counted) == sorted({entry.number for entry in archive})
    ledger = verify_origin(KEY, origin.ledger, [End(origin.stored, "the ledger")], may_fork=False)
    assert ledger.faults == []


@settings(max_examples=300, deadline=None)
@given(SEEDS)
def test_what_was_kept_long_enough_may_go(seed: int) -> None:
    origin = honest(seed)
    report = verify_origin(KEY, origin.ledger[origin.random.randint(1, 3) :], [End(origin.stored, "")], may_fork=False)
    assert report.faults == []


@settings(max_examples=300, deadline=None)
@given(SEEDS)
def test_without_a_heartbeat_only_the_last_entry_is_unproven(seed: int) -> None:
    origin = honest(seed, ends=False, backs=False)
    origin.charge()
    report = verified(origin)
    assert (report.faults, report.unproven) == ([], 1)


def changed(entry: Entry, what: str, random: Random) -> Entry:
    match what:
        case "units":
            return replace(entry, events=entry.events.replace(b'"tpp"', b'"tqp"'))
        case "time":
            return replace(entry, at_ms=entry.at_ms + random.choice((-1, 1)) * random.randint(1, 10**6))
        case "number":
            return replace(entry, number=entry.number + random.randint(1, 5))
        case "chain":
            return replace(entry, chain=random.randbytes(32))
        case "chain of another":
            return replace(entry, chain=beginning(KEY, entry.origin, entry.number + 1))
    raise AssertionError(what)


@pytest.mark.parametrize("what", ["units", "time", "number", "chain", "chain of another"])
@settings(max_examples=250, deadline=None)
@given(seed=SEEDS)
def test_a_changed_entry_is_found_where_it_is(what: str, seed: int) -> None:
    origin = honest(seed, backs=False)
    at = origin.random.randrange(len(origin.archive))
    entries = list(origin.archive)
    entries[at] = changed(entries[at], what, origin.random)
    first = verified(origin, entries).faults[0]
    near = {entry.place for entry in entries[max(0, at - 1) : at + 2]}
    assert first.place in near, "it is named, or the one that goes on from it"


@settings(max_examples=500, deadline=None)
@given(SEEDS)
def test_a_cut_is_found_behind_the_last_entry_that_stands(seed: int) -> None:
    origin = honest(seed, backs=False)
    start = origin.random.randrange(1, len(origin.archive))
    end = origin.random.randrange(start, len(origin.archive)) + 1
    entries = origin.archive[:start] + origin.archive[end:]
    (fault,) = verified(origin, entries).faults
    after = origin.archive[end] if end < len(origin.archive) else origin.archive[start - 1]
    assert fault.place == after.place


@settings(max_examples=500, deadline=None)
@given(SEEDS)
def test_entries_that_changed_places_are_found(seed: int) -> None:
    origin = honest(seed, backs=False)
    a, b = sorted(origin.random.sample(range(len(origin.archive)), 2))
    entries = list(origin.archive)
    first, second = entries[a], entries[b]
    entries[a] = replace(second, place=first.place, order=first.order)
    entries[b] = replace(first, place=second.place, order=second.order)
    faults = verified(origin, entries).faults
    assert {fault.place for fault in faults} & {first.place, second.place, entries[min(a + 1, len(entries) - 1)].place}


@settings(max_examples=300, deadline=None)
@given(SEEDS)
def test_an_entry_that_stands_twice_is_found(seed: int) -> None:
    origin = honest(seed)
    copy = replace(origin.random.choice(origin.archive), place="the copy", order=(origin.now_ms + 1, 0))
    (fault, *_) = verified(origin, [*origin.archive, copy]).faults
    assert fault.place == "the copy"


@settings(max_examples=500, deadline=None)
@given(SEEDS)
def test_an_inserted_entry_is_found(seed: int) -> None:
    origin = honest(seed)
    random = origin.random
    at = random.randrange(len(origin.archive))
    seen = [entry.chain for entry in origin.archive] + [random.randbytes(32)]
    number = origin.archive[at].number + random.randint(0, 1)
    time_ms = origin.archive[at].at_ms
    false = Entry("false", "gw.03", number, time_ms, b'[["x"]]', random.choice(seen), order=(time_ms, 1))
    assert verified(origin, [*origin.archive, false]).faults


@settings(max_examples=300, deadline=None)
@given(SEEDS)
def test_an_entry_that_lost_its_chain_value_hides_no_cut(seed: int) -> None:
    origin = honest(seed, backs=False)
    at = origin.random.randrange(1, len(origin.archive))
    entries = list(origin.archive)
    entries[at] = replace(entries[at], chain=b"")
    report = verified(origin, entries)
    assert report.unchained == 1
    assert report.faults


@settings(max_examples=300, deadline=None)
@given(SEEDS)
def test_an_adopted_entry_has_no_event_that_was_not_offered(seed: int) -> None:
    origin = honest(seed)
    origin.die_and_be_adopted()
    entries = list(origin.archive)
    entries[-1] = replace(entries[-1], events=b'[["tpp","api_calls",7,7]]')
    assert verified(origin, entries).faults[-1].place == entries[-1].place


def test_charges_that_were_not_offered_again_under_a_fork_are_named() -> None:
    origin = honest(7, backs=False)
    origin.go_back()
    last = origin.archive[-1]
    entries = [replace(e, events=b"[]") if e is last else e for e in origin.archive]
    assert verified(origin, entries).faults


def test_another_key_proves_nothing() -> None:
    assert verify_origin(b"x" * 32, honest(1).archive).faults
