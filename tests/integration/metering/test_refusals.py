"""An event becomes a dead letter if it is refused while others are accepted, and never if everything is refused."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import orjson
import pytest
from redis.asyncio import Redis

from sidecar.ledger.keys import Keys
from sidecar.metering.outbox.outbox_status import dead_letters
from sidecar.metering.publisher.delivery_pause import REFUSED_IN_A_ROW_MAX
from sidecar.metering.publisher.ingest_responses import ResponseClass
from sidecar.metering.publisher.publisher import Publisher
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
    poison,
    publishing,
    settings,
    stored_ids,
    until,
)

HOUR_MS = 3_600_000


async def letter_ids(client: Redis, keys: Keys) -> list[str]:
    return sorted(orjson.loads(letter.event or b"")["id"] for letter in await dead_letters(client, keys))


@pytest.mark.parametrize("hint", [True, False], ids=["blamed", "not blamed"])
@pytest.mark.parametrize("status", [400, 402, 403, 404, 405, 409, 412, 415, 422, 431, 451, 302])
async def test_a_server_that_refuses_everything_makes_no_dead_letter(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, status: int, hint: bool
) -> None:
    proxy = RefusingProxy(status=status, refuse_all=True, hint=hint)
    ids = fill(valkey, keys, 20)
    async with Server(proxy.app(meter)) as server, publishing(client, keys, settings(server.url)) as publisher:
        await until(lambda: publisher.metrics.paused)
        tries = len(proxy.requests)
        await until(lambda: len(proxy.requests) > tries + 10)
        proxy.refuse_all = False
        await until(lambda: outbox_is_empty(valkey, keys))
        await until(lambda: not publisher.metrics.paused and publisher.metrics.events_refused == 0)
    assert stored_ids(meter) == dict.fromkeys(ids, 1)
    assert await dead_letters(client, keys) == []


async def test_a_source_that_openmeter_cannot_read_makes_no_dead_letter(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str
) -> None:
    ids = fill(valkey, keys, 40, lambda number: 1)
    how = settings(url)
    async with publishing(client, keys, how.model_copy(update={"source": "100% bank"})) as publisher:
        await until(lambda: publisher.metrics.requests[ResponseClass.REFUSED] > 60)
    assert await dead_letters(client, keys) == []
    async with publishing(client, keys, how):
        await until(lambda: outbox_is_empty(valkey, keys))
    assert stored_ids(meter) == dict.fromkeys(ids, 1)


async def test_so_many_refusals_in_a_row_are_a_pause_whose_log_names_status_and_reason(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, capsys: pytest.CaptureFixture[str]
) -> None:
    proxy = RefusingProxy(status=402, refuse_all=True)
    ids = fill(valkey, keys, 20)
    async with Server(proxy.app(meter)) as server:
        how = settings(server.url, requests_in_flight_max=1, pause_ms=HOUR_MS, stop_grace_ms=200)
        async with publishing(client, keys, how) as publisher:
            await until(lambda: publisher.metrics.paused)
            refused = publisher.metrics.requests[ResponseClass.REFUSED]
    assert [events for events, _ in proxy.requests].count(1) == REFUSED_IN_A_ROW_MAX
    assert refused == len(proxy.requests)
    assert publisher.metrics.events_refused == len(ids)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "[error" in line]
    assert "reason='402 no such thing here'" in line
    assert "status=402" in line


async def test_a_bad_event_without_neighbours_waits_until_one_passes(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter
) -> None:
    bad = poison(valkey, keys, 1)
    async with (
        Server(RefusingProxy(first_poisoned).app(meter)) as server,
        publishing(client, keys, settings(server.url)) as publisher,
    ):
        await until(lambda: publisher.metrics.paused)
        assert publisher.metrics.events_refused == 1
        tries = publisher.metrics.requests[ResponseClass.REFUSED]
        await until(lambda: publisher.metrics.requests[ResponseClass.REFUSED] > tries + 10)
        assert await dead_letters(client, keys) == []
        valkey.xadd(keys.outbox(3), entry("gw.3", 1, [event()]))
        await until(lambda: outbox_is_empty(valkey, keys))
        await until(lambda: not publisher.metrics.paused and not publisher.metrics.events_refused)
    assert stored_ids(meter) == {"gw.3.1.0": 1}
    assert await letter_ids(client, keys) == sorted(bad)


@pytest.mark.parametrize("batch_events_max", [1, 500])
async def test_where_all_are_bad_they_wait_until_a_neighbour_passes(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, batch_events_max: int
) -> None:
    bad = poison(valkey, keys, 20)
    async with Server(RefusingProxy(first_poisoned, status=422).app(meter)) as server:
        how = settings(server.url, batch_events_max=batch_events_max, pause_ms=5)
        async with publishing(client, keys, how) as publisher:
            await until(lambda: publisher.metrics.requests[ResponseClass.REFUSED] > 60)
            assert await dead_letters(client, keys) == []
            valkey.xadd(keys.outbox(1), entry("gw.1", 1, [event()]))
            await until(lambda: outbox_is_empty(valkey, keys))
    assert stored_ids(meter) == {"gw.1.1.0": 1}
    assert await letter_ids(client, keys) == sorted(bad)


@pytest.mark.parametrize("before", [1, 7])
@pytest.mark.parametrize("status", [400, 402, 413])
async def test_a_bad_event_at_the_end_of_its_batch_is_judged_by_the_neighbours_before_it(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, before: int, status: int
) -> None:
    rows = [*(event() for _ in range(before)), event("poison-1")]
    valkey.xadd(keys.outbox(0), entry("gw.0", 1, rows))
    async with (
        Server(RefusingProxy(first_poisoned, status=status, hint=False).app(meter)) as server,
        publishing(client, keys, settings(server.url)),
    ):
        await until(lambda: outbox_is_empty(valkey, keys))
    assert len(stored_ids(meter)) == before
    assert await letter_ids(client, keys) == [f"gw.0.1.{before}"]


@pytest.mark.parametrize("hint", [True, False], ids=["blamed", "not blamed"])
async def test_events_behind_bad_ones_are_delivered_while_these_wait(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, hint: bool
) -> None:
    bad = poison(valkey, keys, 100)
    proxy = RefusingProxy(first_poisoned, hint=hint)
    async with Server(proxy.app(meter)) as server:
        how = settings(server.url, batch_events_max=25, requests_in_flight_max=1, pause_ms=1)
        async with publishing(client, keys, how) as publisher:
            await until(lambda: publisher.metrics.paused)
            ids = fill(valkey, keys, 8, lambda number: 1)
            await until(lambda: len(stored_ids(meter)) == len(ids))
            await until(lambda: outbox_is_empty(valkey, keys))
    assert stored_ids(meter) == dict.fromkeys(ids, 1)
    assert await letter_ids(client, keys) == sorted(bad)


async def test_a_buffer_full_of_refused_events_does_not_keep_those_behind_them_from_being_read(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter
) -> None:
    bad = {id for seq in range(40) for id in poison(valkey, keys, 20, seq % keys.partitions, seq)}
    ids = fill(valkey, keys, 8, lambda number: 1)
    async with Server(RefusingProxy(first_poisoned).app(meter)) as server:
        how = settings(server.url, buffer_bytes_max=65_536, batch_events_max=50, pause_ms=1)
        async with publishing(client, keys, how) as publisher:
            await until(lambda: len(stored_ids(meter)) == len(ids))
            assert publisher.metrics.entries_read < 48 + 40
    assert stored_ids(meter) == dict.fromkeys(ids, 1)
    assert set(await letter_ids(client, keys)) <= bad


async def test_a_server_that_stops_to_accept_within_a_batch_makes_no_dead_letter(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter
) -> None:
    proxy = RefusingProxy(status=402, accepts_events=10)
    rows = [event(f"tpp-{number}") for number in range(20)]
    valkey.xadd(keys.outbox(0), entry("gw.0", 1, rows))
    async with Server(proxy.app(meter)) as server, publishing(client, keys, settings(server.url)) as publisher:
        await until(lambda: publisher.metrics.paused)
        tries = len(proxy.requests)
        await until(lambda: len(proxy.requests) > tries + 20)
        assert meter.counts.accepted == 10
        proxy.accepts_events = None
        await until(lambda: outbox_is_empty(valkey, keys))
    assert len(stored_ids(meter)) == 20
    assert await dead_letters(client, keys) == []


@pytest.mark.parametrize("portion", [1, 2, 5])
async def test_a_server_that_accepts_a_few_events_now_and_then_makes_no_dead_letter(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, portion: int
) -> None:
    proxy = RefusingProxy(status=402, accepts_events=0)
    rows = [event(f"tpp-{number}") for number in range(20)]
    valkey.xadd(keys.outbox(0), entry("gw.0", 1, rows))
    async with (
        Server(proxy.app(meter)) as server,
        publishing(client, keys, settings(server.url, pause_ms=1)) as publisher,
    ):
        while not outbox_is_empty(valkey, keys):
            # By then each event has been refused by itself.
            refused = publisher.metrics.requests[ResponseClass.REFUSED] + 60
            await until(
                lambda refused=refused: (
                    publisher.metrics.requests[ResponseClass.REFUSED] > refused or outbox_is_empty(valkey, keys)
                )
            )
            proxy.accepts_events = portion
            await until(lambda: proxy.accepts_events == 0 or outbox_is_empty(valkey, keys))
    assert len(stored_ids(meter)) == 20
    assert await dead_letters(client, keys) == []


async def test_a_server_that_recovers_takes_the_good_and_the_bad_events_become_dead_letters(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter
) -> None:
    proxy = RefusingProxy(first_poisoned, refuse_all=True)
    ids = fill(valkey, keys, 12)
    bad = poison(valkey, keys, 3)
    ids |= fill(valkey, keys, 12, origin="behind")
    async with Server(proxy.app(meter)) as server, publishing(client, keys, settings(server.url)) as publisher:
        await until(lambda: publisher.metrics.paused)
        tries = len(proxy.requests)
        await until(lambda: len(proxy.requests) > tries + 10)
        proxy.refuse_all = False
        await until(lambda: len(stored_ids(meter)) == len(ids))
        ids |= fill(valkey, keys, 4, origin="later")
        await until(lambda: outbox_is_empty(valkey, keys))
    assert stored_ids(meter) == dict.fromkeys(ids, 1)
    assert await letter_ids(client, keys) == sorted(bad)


async def test_a_publisher_that_stops_while_events_wait_leaves_them_to_the_next(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter
) -> None:
    bad = poison(valkey, keys, 8)
    async with Server(RefusingProxy(first_poisoned).app(meter)) as server:
        patient = settings(server.url, claim_idle_ms=HOUR_MS, stop_grace_ms=60_000)
        for pause_ms in (HOUR_MS, 5):
            async with publishing(client, keys, patient.model_copy(update={"pause_ms": pause_ms})) as publisher:
                await until(lambda publisher=publisher: publisher.metrics.paused)
                assert publisher.metrics.events_refused == 8
        assert await dead_letters(client, keys) == []
        async with publishing(client, keys, patient) as publisher:
            await until(lambda: publisher.metrics.events_refused == 8)
            ids = fill(valkey, keys, 4)
            await until(lambda: outbox_is_empty(valkey, keys))
    assert stored_ids(meter) == dict.fromkeys(ids, 1)
    assert await letter_ids(client, keys) == sorted(bad)


async def test_a_publisher_that_is_cancelled_while_events_wait_leaves_them_to_another(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter
) -> None:
    bad = poison(valkey, keys, 8)
    async with Server(RefusingProxy(first_poisoned).app(meter)) as server:
        doomed = Publisher(client, keys, settings(server.url))
        task = asyncio.create_task(doomed.run())
        await until(lambda: doomed.metrics.paused)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with publishing(client, keys, settings(server.url)) as publisher:
            await until(lambda: publisher.metrics.events_refused == 8)
            ids = fill(valkey, keys, 4)
            await until(lambda: outbox_is_empty(valkey, keys))
    assert stored_ids(meter) == dict.fromkeys(ids, 1)
    assert await letter_ids(client, keys) == sorted(bad)


async def test_several_publishers_judge_alike(valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter) -> None:
    proxy = RefusingProxy(first_poisoned, refuse_all=True)
    bad = {id for partition in range(keys.partitions) for id in poison(valkey, keys, 4, partition)}
    ids = fill(valkey, keys, 40)
    async with Server(proxy.app(meter)) as server, AsyncExitStack() as stack:
        how = settings(server.url, batch_events_max=20, buffer_bytes_max=65_536)
        some = [await stack.enter_async_context(publishing(client, keys, how)) for _ in range(3)]
        await until(lambda: any(publisher.metrics.paused for publisher in some))
        assert await dead_letters(client, keys) == []
        proxy.refuse_all = False
        number = 0

        def more() -> bool:
            nonlocal number, ids
            number += 1
            ids |= fill(valkey, keys, 1, lambda _: 1, origin=f"later-{number}")
            return all(publisher.metrics.events_refused == 0 for publisher in some)

        await until(more)
        await until(lambda: outbox_is_empty(valkey, keys))
    assert stored_ids(meter) == dict.fromkeys(ids, 1)
    assert await letter_ids(client, keys) == sorted(bad)
