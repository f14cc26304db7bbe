"""The outbox streams under several consumers. How long an entry was idle is set, not waited for."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from sidecar.ledger.keys import Keys
from sidecar.metering.outbox.outbox import GROUP, Outbox, Retention
from sidecar.metering.publisher.batches import Entry
from tests.integration.metering.kit import Valkey, fill, outbox_is_empty

ROOM = 10_000_000
IDLE_MS = 60_000


@pytest.fixture
def first(client: Redis, keys: Keys) -> Outbox:
    return Outbox(client, keys, "first")


@pytest.fixture
def second(client: Redis, keys: Keys) -> Outbox:
    return Outbox(client, keys, "second")


async def read_all(outbox: Outbox, room_bytes: int = ROOM) -> list[Entry]:
    entries: list[Entry] = []
    more = True
    while more:
        reading = await outbox.read(room_bytes)
        assert outbox.take_errors() == []
        entries += reading.entries
        more = reading.more
    return entries


def names(entries: list[Entry]) -> set[tuple[int, bytes]]:
    assert len({(entry.partition, entry.id) for entry in entries}) == len(entries)
    return {(entry.partition, entry.id) for entry in entries}


def let_idle(valkey: Valkey, keys: Keys, consumer: str, entries: list[Entry]) -> None:
    """As if the consumer had not touched these entries for longer than allowed."""
    for entry in entries:
        valkey.xclaim(keys.outbox(entry.partition), GROUP, consumer, 0, [entry.id], idle=IDLE_MS + 1, justid=True)


def owners(valkey: Valkey, keys: Keys) -> dict[str, int]:
    found: dict[str, int] = {}
    for partition in range(keys.partitions):
        for row in valkey.xpending_range(keys.outbox(partition), GROUP, "-", "+", 1_000):
            name = row["consumer"].decode()
            found[name] = found.get(name, 0) + 1
    return found


async def test_two_readers_share_the_entries_and_read_none_twice(
    valkey: Valkey, keys: Keys, first: Outbox, second: Outbox
) -> None:
    fill(valkey, keys, 100)
    one = (await first.read(ROOM)).entries + (await first.read(ROOM)).entries
    other = await read_all(second)
    rest = await read_all(first)
    assert len(names(one + other + rest)) == 100
    assert other


async def test_a_group_that_vanished_is_made_anew_and_delivers_what_is_still_there(
    valkey: Valkey, keys: Keys, first: Outbox
) -> None:
    fill(valkey, keys, 20)
    before = names(await read_all(first))
    for partition in range(keys.partitions):
        valkey.xgroup_destroy(keys.outbox(partition), GROUP)
    assert names(await read_all(first)) == before
    valkey.flushall()
    assert await read_all(first) == []
    fill(valkey, keys, 20)
    assert len(await read_all(first)) == 20


@pytest.mark.parametrize("room_bytes", [1, 2_000, 20_000])
async def test_one_reading_takes_about_as_much_as_there_is_room(
    valkey: Valkey, keys: Keys, first: Outbox, room_bytes: int
) -> None:
    fill(valkey, keys, 800, lambda number: 10)
    await first.read(room_bytes)  # makes the groups
    await first.read(room_bytes)  # learns how large entries are
    sizes = [entry.size_bytes for entry in (await first.read(room_bytes)).entries]
    assert sizes
    assert sum(sizes) <= max(room_bytes, keys.partitions * max(sizes))


async def test_entries_of_a_silent_consumer_are_taken_over(
    valkey: Valkey, keys: Keys, first: Outbox, second: Outbox
) -> None:
    fill(valkey, keys, 300)
    entries = await read_all(first)
    let_idle(valkey, keys, "first", entries[:200])
    taken = await second.claim(IDLE_MS, ROOM)
    assert names(taken) == names(entries[:200])
    assert owners(valkey, keys) == {"first": 100, "second": 200}
    by_name = {(entry.partition, entry.id): entry.fields for entry in entries}
    assert all(entry.fields == by_name[entry.partition, entry.id] for entry in taken)


async def test_a_consumer_that_is_still_at_work_keeps_its_entries_however_long_it_takes(
    valkey: Valkey, keys: Keys, first: Outbox, second: Outbox
) -> None:
    fill(valkey, keys, 1_100)
    entries = await read_all(first)
    let_idle(valkey, keys, "first", entries)
    await first.keep(entries)
    assert await second.claim(IDLE_MS, ROOM) == []
    assert owners(valkey, keys) == {"first": 1_100}


async def test_a_consumer_does_not_take_back_what_another_has_taken_over(
    valkey: Valkey, keys: Keys, first: Outbox, second: Outbox
) -> None:
    fill(valkey, keys, 20)
    entries = await read_all(first)
    let_idle(valkey, keys, "first", entries)
    await second.claim(IDLE_MS, ROOM)
    await first.keep(entries)
    assert owners(valkey, keys) == {"second": 20}


async def test_a_consumer_recovers_entries_of_which_it_never_heard(valkey: Valkey, keys: Keys, first: Outbox) -> None:
    fill(valkey, keys, 20)
    lost = await read_all(first)  # as if the reply had been lost on its way
    let_idle(valkey, keys, "first", lost)
    assert names(await first.claim(IDLE_MS, ROOM)) == names(lost)


async def test_a_claim_stops_when_there_is_no_more_room(
    valkey: Valkey, keys: Keys, first: Outbox, second: Outbox
) -> None:
    fill(valkey, keys, 400)
    entries = await read_all(first)
    let_idle(valkey, keys, "first", entries)
    assert await second.claim(IDLE_MS, 0) == []
    assert 0 < len(await second.claim(IDLE_MS, 1)) < 400


async def test_finishing_twice_or_by_two_writes_each_dead_letter_once(
    valkey: Valkey, keys: Keys, first: Outbox, second: Outbox
) -> None:
    fill(valkey, keys, 600)
    entries = await read_all(first)
    let_idle(valkey, keys, "first", entries)
    taken = await second.claim(IDLE_MS, ROOM)
    for some in (entries, taken):
        for entry in some[:10]:
            entry.dead_letters += [{b"o": b"gw", b"dead-reason": b"no"}, {b"o": b"gw", b"dead-reason": b"nor this"}]
    chosen = names(entries[:10]) | names(taken[:10])
    await first.finish(entries)
    await first.finish(entries)
    await second.finish(taken)
    assert outbox_is_empty(valkey, keys)
    letters = [letter for p in range(keys.partitions) for letter in valkey.xrange(keys.dead_letters(p))]
    assert len(letters) == 2 * len(names(entries[:10]))
    assert {fields[b"dead-entry"] for _, fields in letters} <= {id_ for _, id_ in chosen}


async def test_an_entry_whose_dead_letters_cannot_be_written_stays_where_it_is(
    valkey: Valkey, keys: Keys, first: Outbox
) -> None:
    fill(valkey, keys, 4)
    valkey.set(keys.dead_letters(1), "not a stream")
    entries = await read_all(first)
    for each in entries:
        each.dead_letters.append({b"o": b"gw", b"dead-reason": b"no"})
    left = await first.finish(entries)
    assert [each.partition for each in left] == [1]
    assert [valkey.xlen(keys.outbox(partition)) for partition in range(4)] == [0, 1, 0, 0]
    assert "WRONGTYPE" in str(first.take_errors()[0])
    assert not first.all_partitions_available
    assert await first.finish(left) == left  # the partition rests
    assert first.take_errors() == []


@pytest.mark.parametrize("retain_ms", [0, 60_000])
@pytest.mark.parametrize("with_letters", [False, True])
async def test_another_entry_that_has_the_id_by_now_is_not_finished(
    valkey: Valkey, keys: Keys, client: Redis, retain_ms: int, with_letters: bool
) -> None:
    """A server whose data and clock went back gives ids again. Who delivered the former entry has not delivered it."""
    first = Outbox(client, keys, "first", Retention(retain_ms))
    fill(valkey, keys, 8)
    entries = await read_all(first)
    mine = [entry for entry in entries if entry.partition == 1]
    [id_], [fields] = [mine[0].id], [mine[0].fields]
    valkey.xdel(keys.outbox(1), id_)
    other = {**fields, b"q": b"4711"}
    valkey.delete(keys.outbox(1))
    valkey.xadd(keys.outbox(1), other, id=id_)
    if with_letters:
        for entry in entries:
            entry.dead_letters.append({b"o": b"gw", b"dead-reason": b"no"})
    await first.finish(entries)
    assert [valkey.xlen(keys.outbox(partition)) for partition in range(4)] == [0, 1, 0, 0]
    assert valkey.xrange(keys.outbox(1)) == [(id_, other)]
    assert valkey.xlen(keys.sent(1)) == 0


async def test_an_entry_is_finished_even_if_its_group_has_vanished(valkey: Valkey, keys: Keys, first: Outbox) -> None:
    fill(valkey, keys, 4)
    entries = await read_all(first)
    for partition in range(keys.partitions):
        valkey.xgroup_destroy(keys.outbox(partition), GROUP)
    await first.finish(entries)
    assert outbox_is_empty(valkey, keys)


async def test_only_silent_consumers_that_owe_nothing_are_forgotten(
    valkey: Valkey, keys: Keys, first: Outbox, second: Outbox
) -> None:
    fill(valkey, keys, 4)
    entries = await read_all(first)
    await read_all(second)
    owing = [entry for entry in entries if entry.partition == 0]
    await first.finish([entry for entry in entries if entry.partition != 0])
    await second.forget(IDLE_MS)
    assert consumers(valkey, keys, 1) == {"first", "second"}
    await second.forget(0)
    assert owing
    assert consumers(valkey, keys, 0) == {"first", "second"}
    assert consumers(valkey, keys, 1) == {"second"}


async def test_who_leaves_lets_others_take_over_at_once(
    valkey: Valkey, keys: Keys, first: Outbox, second: Outbox
) -> None:
    fill(valkey, keys, 2_200)
    entries = await read_all(first)
    done = [entry for entry in entries if entry.partition == 3]
    await first.finish(done)
    await first.leave()
    assert consumers(valkey, keys, 3) == set()
    assert names(await second.claim(IDLE_MS, ROOM)) == names(entries) - names(done)


async def test_what_is_in_the_streams_is_measured(valkey: Valkey, keys: Keys, client: Redis, first: Outbox) -> None:
    measure = await first.measure()
    assert (measure.entries, measure.oldest_s, measure.dead_letters) == (0, 0.0, 0)
    fill(valkey, keys, 10)
    seconds, _ = valkey.time()
    valkey.xadd(keys.dead_letters(1), {"o": "x"})
    valkey.xadd(keys.refused(2), {"o": "x"})
    old = Keys(partitions=keys.partitions, prefix="old")
    valkey.xadd(old.outbox(2), {"o": "x"}, id=f"{(seconds - 100) * 1000}-0")
    measure = await first.measure()
    assert (measure.entries, measure.dead_letters, measure.refused_entries) == (10, 1, 1)
    aged = await Outbox(client, old, "first").measure()
    assert 100 <= aged.oldest_s < 200


def consumers(valkey: Valkey, keys: Keys, partition: int) -> set[str]:
    return {row["name"].decode() for row in valkey.xinfo_consumers(keys.outbox(partition), GROUP)}
