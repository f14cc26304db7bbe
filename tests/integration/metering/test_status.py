"""What people see of the outbox, and what they can do with dead letters."""

from __future__ import annotations

import orjson
import pytest
from redis.asyncio import Redis

from sidecar.ledger.keys import Keys
from sidecar.metering.outbox.outbox import Outbox
from sidecar.metering.outbox.outbox_status import (
    UnknownDeadLetter,
    dead_letters,
    drop_dead_letters,
    outbox_status,
    requeue_dead_letters,
)
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter
from sidecar.sandbox.server import Server
from tests.integration.metering.kit import (
    RefusingProxy,
    Valkey,
    entry,
    event,
    fill,
    first_poisoned,
    outbox_is_empty,
    publishing,
    settings,
    stored_ids,
    until,
)


async def make_dead_letters(valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, events: int) -> None:
    """Leaves as many dead letters."""
    for number in range(events):
        rows = [event("tpp-1"), event(f"poison-{number}", units=number)]
        valkey.xadd(keys.outbox(number % keys.partitions), entry("bad", number, rows))
    async with (
        Server(RefusingProxy(first_poisoned).app(meter)) as server,
        publishing(client, keys, settings(server.url)),
    ):
        await until(lambda: outbox_is_empty(valkey, keys))


async def test_an_empty_outbox_is_shown_as_empty(client: Redis, keys: Keys, valkey: Valkey) -> None:
    status = await outbox_status(client, keys)
    assert (status.entries, status.events, status.lag, status.pending, status.dead_letters) == (0, 0, 0, 0, 0)
    assert (status.oldest_s, status.consumers, len(status.partitions)) == (0.0, (), keys.partitions)
    assert await dead_letters(client, keys) == []


async def test_what_waits_and_what_is_with_a_publisher_are_told_apart(
    client: Redis, keys: Keys, valkey: Valkey
) -> None:
    fill(valkey, keys, 12, lambda number: 5)
    reader = Outbox(client, keys, "publisher-1")
    await reader.read(1)  # makes the groups
    reading = await reader.read(1)  # one entry of each partition
    assert len(reading.entries) == keys.partitions
    status = await outbox_status(client, keys)
    assert (status.entries, status.events, status.pending, status.lag) == (12, 60, 4, 8)
    assert status.consumers == ("publisher-1",)
    assert status.oldest_s >= 0
    partition = status.partitions[2]
    assert (partition.partition, partition.entries, partition.pending, partition.lag) == (2, 3, 1, 2)
    assert [(each.name, each.pending) for each in partition.consumers] == [("publisher-1", 1)]


async def test_dead_letters_are_shown_oldest_first_up_to_the_limit(
    client: Redis, keys: Keys, valkey: Valkey, meter: OpenMeter
) -> None:
    await make_dead_letters(valkey, client, keys, meter, 9)
    letters = await dead_letters(client, keys)
    assert {orjson.loads(letter.event or b"")["id"] for letter in letters} == {f"bad.{n}.1" for n in range(9)}
    assert [letter.at_ms for letter in letters] == sorted(letter.at_ms for letter in letters)
    assert await dead_letters(client, keys, limit=4) == letters[:4]
    assert (await outbox_status(client, keys)).dead_letters == 9


async def test_a_requeued_event_is_delivered_under_its_own_id(
    client: Redis, keys: Keys, valkey: Valkey, meter: OpenMeter, url: str
) -> None:
    await make_dead_letters(valkey, client, keys, meter, 6)
    letters = await dead_letters(client, keys)
    assert await requeue_dead_letters(client, keys, [letter.id for letter in letters[:4]]) == 4
    assert await requeue_dead_letters(client, keys, [letter.id for letter in letters[:4]]) == 0
    assert (await outbox_status(client, keys)).entries == 4
    async with publishing(client, keys, settings(url)):
        await until(lambda: outbox_is_empty(valkey, keys))
    back = [orjson.loads(letter.event or b"")["id"] for letter in letters[:4]]
    assert stored_ids(meter) == dict.fromkeys([*back, *(f"bad.{n}.0" for n in range(6))], 1)
    units = {stored.id: orjson.loads(stored.data)["units"] for stored in meter.store.events()}
    assert all(units[id_] == int(id_.split(".")[1]) for id_ in back)
    assert await dead_letters(client, keys) == letters[4:]


async def test_dropped_letters_are_gone(client: Redis, keys: Keys, valkey: Valkey, meter: OpenMeter) -> None:
    await make_dead_letters(valkey, client, keys, meter, 5)
    letters = await dead_letters(client, keys)
    assert await drop_dead_letters(client, keys, [letters[0].id, letters[3].id, "1/1-1"]) == 2
    assert await dead_letters(client, keys) == [letters[1], letters[2], letters[4]]
    assert outbox_is_empty(valkey, keys)


@pytest.mark.parametrize("id_", ["", "1", "1/", "1/x", "-1/1-0", "4/1-0", "1/1-0 ", "1/" + "9" * 30 + "-0"])
async def test_what_is_no_id_is_named_and_nothing_is_touched(
    client: Redis, keys: Keys, valkey: Valkey, id_: str
) -> None:
    valkey.xadd(keys.dead_letters(1), {"o": "x"}, id="1-0")
    for action in (requeue_dead_letters, drop_dead_letters):
        with pytest.raises(UnknownDeadLetter, match="is not the id of a dead letter"):
            await action(client, keys, ["1/1-0", id_])
    assert valkey.xlen(keys.dead_letters(1)) == 1
