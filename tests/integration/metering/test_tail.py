"""What is kept of accepted entries: moved out of the outbox in one step, once, for a while, within bounds."""

from __future__ import annotations

import time

import pytest
import redis
from redis.asyncio import Redis

from sidecar.ledger.keys import Keys
from sidecar.metering.outbox.outbox import GROUP, Outbox, Retention
from sidecar.metering.outbox.outbox_status import dead_letters, outbox_status, requeue_dead_letters
from sidecar.metering.publisher.batches import Entry
from sidecar.sandbox.openmeter.openmeter_faults import OpenMeterFault
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter
from sidecar.sandbox.server import Server
from tests.conftest import start_valkey
from tests.integration.metering.kit import (
    T_MS,
    RefusingProxy,
    Valkey,
    entry,
    event,
    fill,
    first_poisoned,
    outbox_is_empty,
    publishing,
    settings,
    until,
)

ROOM = 10_000_000
HOUR_MS = 3_600_000
LONG = Retention(HOUR_MS, 1_000_000)


@pytest.fixture
def keeping(client: Redis, keys: Keys) -> Outbox:
    return Outbox(client, keys, "first", LONG)


def stored(valkey: Valkey, stream: str) -> list[dict[bytes, bytes]]:
    return [fields for _, fields in valkey.xrange(stream)]


def everywhere(valkey: Valkey, keys: Keys) -> list[list[dict[bytes, bytes]]]:
    return [stored(valkey, keys.sent(partition)) for partition in range(keys.partitions)]


def kept(valkey: Valkey, keys: Keys) -> int:
    return sum(valkey.xlen(keys.sent(partition)) for partition in range(keys.partitions))


async def read_all(outbox: Outbox) -> list[Entry]:
    entries: list[Entry] = []
    while (reading := await outbox.read(ROOM)).more:
        entries += reading.entries
    return entries + reading.entries


async def test_accepted_entries_are_kept_as_they_were_in_the_order_of_their_acceptance(
    valkey: Valkey, client: Redis, keys: Keys, url: str
) -> None:
    fill(valkey, keys, 900)
    before = [stored(valkey, keys.outbox(partition)) for partition in range(keys.partitions)]
    began_ms = int(time.time() * 1000)
    async with publishing(client, keys, settings(url, requests_in_flight_max=1)):
        await until(lambda: outbox_is_empty(valkey, keys))
    assert everywhere(valkey, keys) == before
    [(first, _)] = valkey.xrange(keys.sent(0), count=1)
    assert began_ms <= int(first.split(b"-")[0]) <= time.time() * 1000
    assert (await outbox_status(client, keys)).sent_entries == 900


async def test_finishing_twice_or_by_two_keeps_each_entry_once(
    valkey: Valkey, client: Redis, keys: Keys, keeping: Outbox
) -> None:
    fill(valkey, keys, 700)
    entries = await read_all(keeping)
    assert await keeping.finish(entries[::-1]) == []
    await keeping.finish(entries)
    await Outbox(client, keys, "second", LONG).finish(entries)
    assert outbox_is_empty(valkey, keys)
    assert kept(valkey, keys) == 700
    assert {fields[b"o"] + fields[b"q"] for each in everywhere(valkey, keys) for fields in each} == {
        each.fields[b"o"] + each.fields[b"q"] for each in entries
    }


async def test_an_entry_that_others_have_come_between_is_found_all_the_same(
    valkey: Valkey, keys: Keys, keeping: Outbox
) -> None:
    fill(valkey, keys, 400)
    entries = [each for each in await read_all(keeping) if each.partition == 0]
    chosen = [entries[50], entries[3], entries[99], entries[4]]
    await keeping.finish(chosen)
    assert [fields[b"q"] for fields in stored(valkey, keys.sent(0))] == [each.fields[b"q"] for each in chosen]
    assert valkey.xlen(keys.outbox(0)) == 96


async def test_of_an_entry_with_dead_letters_the_rest_is_kept_and_says_what_is_not_part_of_it(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter
) -> None:
    rows = [event("tpp-1"), event("poison-1"), event("tpp-2"), event("poison-2"), event("tpp-1", units="1")]
    valkey.xadd(keys.outbox(0), entry("gw", 1, rows))
    valkey.xadd(keys.outbox(1), entry("gw", 2, [event("poison-3"), event("poison-4")]))
    valkey.xadd(keys.outbox(2), {"o": "unreadable"})
    gatekeeper = RefusingProxy(first_poisoned)
    async with Server(gatekeeper.app(meter)) as server, publishing(client, keys, settings(server.url)):
        await until(lambda: outbox_is_empty(valkey, keys))
        letters = await dead_letters(client, keys)
        [kept_entry] = stored(valkey, keys.sent(0))
        assert {int(number) for number in kept_entry.pop(b"x").split(b",")} == {1, 3, 4}
        assert kept_entry == {name.encode(): value for name, value in entry("gw", 1, rows).items()}
        assert kept(valkey, keys) == 1
        gatekeeper.refuse = lambda batch: None
        [chosen] = [letter for letter in letters if letter.fields.get(b"q") == b"1" and letter.fields[b"i"] == b"3"]
        await requeue_dead_letters(client, keys, [chosen.id])
        await until(lambda: outbox_is_empty(valkey, keys))
    assert stored(valkey, keys.sent(0))[1:] == [chosen.fields]


async def test_the_times_of_accounts_stay_with_what_is_kept_and_with_dead_letters(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter
) -> None:
    ahead = b'{"poison-1":1767232800000,"tpp-1":1767229200000}'
    rows = [event("tpp-1"), event("poison-1"), event("tpp-2")]
    odd = {f"odd-{number}": b"x" for number in range(10)}
    valkey.xadd(keys.outbox(0), {**entry("gw", 1, rows), "a": ahead})
    valkey.xadd(keys.outbox(1), {**odd, **entry("gw", 2, [event("tpp-1")]), "a": ahead})
    gatekeeper = RefusingProxy(first_poisoned)
    async with Server(gatekeeper.app(meter)) as server, publishing(client, keys, settings(server.url)):
        await until(lambda: outbox_is_empty(valkey, keys))
        assert [fields[b"a"] for partition in (0, 1) for fields in stored(valkey, keys.sent(partition))] == [ahead] * 2
        [letter] = await dead_letters(client, keys)
        assert letter.fields[b"a"] == b'{"poison-1":1767232800000}'
        gatekeeper.refuse = lambda batch: None
        await requeue_dead_letters(client, keys, [letter.id])
        await until(lambda: outbox_is_empty(valkey, keys))
    times = {each.id: each.time_s for each in meter.store.events()}
    assert times == {"gw.1.0": 1767229200, "gw.1.1": 1767232800, "gw.1.2": T_MS // 1000, "gw.2.0": 1767229200}


async def test_nothing_is_kept_of_what_was_not_accepted(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str
) -> None:
    fill(valkey, keys, 20)
    meter.faults.always(OpenMeterFault(status=503))
    async with publishing(client, keys, settings(url, stop_grace_ms=50)):
        await until(lambda: meter.counts.requests > 5)
    assert kept(valkey, keys) == 0


async def test_nothing_is_kept_where_nothing_is_to_be_and_what_was_goes(
    valkey: Valkey, client: Redis, keys: Keys, url: str
) -> None:
    valkey.xadd(keys.sent(3), {"o": "old"})
    fill(valkey, keys, 20)
    async with publishing(client, keys, settings(url, retain_s=0)):
        await until(lambda: outbox_is_empty(valkey, keys) and not valkey.exists(keys.sent(3)))
    assert kept(valkey, keys) == 0


async def test_what_is_old_goes_with_the_next_entry_or_with_time(
    valkey: Valkey, client: Redis, keys: Keys, keeping: Outbox
) -> None:
    now_ms = int(time.time() * 1000)
    for partition in (0, 1):
        for age_ms in range(300, 0, -1):
            valkey.xadd(keys.sent(partition), entry("old", 1, [event()]), id=f"{now_ms - HOUR_MS - 60_000 - age_ms}-0")
        for age_ms in range(300, 0, -1):
            valkey.xadd(keys.sent(partition), entry("new", 1, [event()]), id=f"{now_ms - HOUR_MS + 60_000 - age_ms}-0")
    fill(valkey, keys, 1)
    await keeping.finish(await read_all(keeping))
    slack = 100  # whole nodes of the stream go
    assert 301 <= valkey.xlen(keys.sent(0)) <= 301 + slack
    assert valkey.xlen(keys.sent(1)) == 600
    await keeping.trim()
    assert 300 <= valkey.xlen(keys.sent(1)) <= 300 + slack


async def test_no_more_entries_are_kept_than_allowed(valkey: Valkey, client: Redis, keys: Keys) -> None:
    outbox = Outbox(client, keys, "first", Retention(HOUR_MS, 150))
    fill(valkey, keys, 4_000, lambda number: 1)
    await outbox.finish(await read_all(outbox))
    lengths = [valkey.xlen(keys.sent(partition)) for partition in range(keys.partitions)]
    assert all(150 <= length <= 250 for length in lengths)
    assert stored(valkey, keys.sent(0))[-1][b"q"] == b"3996", "the youngest stay"


async def test_an_entry_with_odd_fields_leaves_the_outbox_and_only_what_is_known_is_kept(
    valkey: Valkey, keys: Keys, keeping: Outbox
) -> None:
    known = {name.encode(): value for name, value in entry("gw", 1, [event()]).items()}
    odd = {f"odd-{number}".encode(): b"x" for number in range(5_000)}
    valkey.xadd(keys.outbox(0), {**odd, **known})
    assert await keeping.finish(await read_all(keeping)) == []
    assert stored(valkey, keys.sent(0)) == [known]


async def test_a_valkey_without_memory_drops_what_is_kept_and_still_empties_its_outbox(keys: Keys) -> None:
    server = start_valkey(maxmemory_policy="noeviction")
    try:
        with redis.Redis(port=server.port) as valkey:
            fill(valkey, keys, 200)
            valkey.xadd(keys.sent(0), entry("gw", 1, [event()]))
            async with Redis(port=server.port) as client:
                outbox = Outbox(client, keys, "first", LONG)
                entries = await read_all(outbox)
                valkey.config_set("maxmemory", "1mb")
                with pytest.raises(redis.exceptions.OutOfMemoryError):
                    valkey.set("a", "b")
                assert await outbox.finish(entries) == []
            assert outbox.take_errors() == []
            assert sum(valkey.xlen(keys.outbox(partition)) for partition in range(keys.partitions)) == 0
            assert kept(valkey, keys) == 0
            assert valkey.xpending(keys.outbox(0), GROUP)["pending"] == 0
    finally:
        server.terminate()
