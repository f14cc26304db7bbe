"""Several publishers, some of which die in the middle of their work."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
from redis.asyncio import Redis

from sidecar.ledger.keys import Keys
from sidecar.metering.outbox.outbox import GROUP
from sidecar.metering.outbox.outbox_status import dead_letters
from sidecar.metering.publisher.ingest_responses import ResponseClass
from sidecar.metering.publisher.publisher import Publisher
from sidecar.metering.settings import MeteringSettings
from sidecar.sandbox.openmeter.openmeter_faults import OpenMeterFault
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter
from tests.integration.metering.kit import (
    TIMEOUT_S,
    Valkey,
    fill,
    outbox_is_empty,
    publishing,
    settings,
    stored_ids,
    until,
)

ROOT = Path(__file__).parents[3]


async def start_process(valkey: Valkey, keys: Keys, how: MeteringSettings) -> Process:
    where = valkey.connection_pool.connection_kwargs
    arguments = [where["host"], str(where["port"]), str(keys.partitions), how.model_dump_json()]
    module = "tests.integration.metering.runner"
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, cwd=ROOT, stdout=DEVNULL, stderr=DEVNULL
    )


def owed(valkey: Valkey, keys: Keys, process: Process) -> int | None:
    """How many entries a process has read and not finished; None before it has read anything."""
    found = [
        int(row["pending"])
        for partition in range(keys.partitions)
        if valkey.exists(keys.outbox(partition))
        for row in valkey.xinfo_consumers(keys.outbox(partition), GROUP)
        if f"-{process.pid}-".encode() in row["name"]
    ]
    return sum(found) if found else None


def has_accepted(meter: OpenMeter, events: int) -> bool:
    return meter.counts.accepted > events


async def test_publishers_killed_in_the_middle_of_their_batches_lose_and_double_nothing(
    valkey: Valkey, keys: Keys, meter: OpenMeter, url: str, client: Redis
) -> None:
    ids = fill(valkey, keys, 1_500, lambda number: number % 5)
    for partition in range(keys.partitions):
        valkey.xgroup_create(keys.outbox(partition), GROUP, "0")
    meter.faults.always(OpenMeterFault(status=503))
    how = settings(url, batch_events_max=15, requests_in_flight_max=2, buffer_bytes_max=65_536, claim_idle_ms=1_000)
    processes = [await start_process(valkey, keys, how) for _ in range(4)]
    try:
        await until(lambda: all(owed(valkey, keys, process) for process in processes))
        meter.faults.clear()
        meter.faults.chance(0.1, OpenMeterFault(drop="after"))
        meter.faults.chance(0.1, OpenMeterFault(status=500, kept=2))
        meter.faults.chance(0.8, OpenMeterFault(delay_ms=10))
        for number, process in enumerate(processes[:3]):
            await until(partial(has_accepted, meter, 200 * (number + 1)))
            process.kill()
            assert await process.wait() == -signal.SIGKILL
            assert owed(valkey, keys, process)
        await until(lambda: outbox_is_empty(valkey, keys))
        processes[3].terminate()
        assert await processes[3].wait() == 0
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert stored_ids(meter) == dict.fromkeys(ids, 1)
    assert meter.counts.duplicates > 0
    assert await dead_letters(client, keys) == []


async def test_two_publishers_at_once_deliver_everything_and_nothing_twice(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str
) -> None:
    ids = fill(valkey, keys, 400)
    how = settings(url, batch_events_max=20, buffer_bytes_max=65_536, claim_idle_ms=60_000)
    async with AsyncExitStack() as stack:
        both = [await stack.enter_async_context(publishing(client, keys, how)) for _ in range(2)]
        await until(lambda: outbox_is_empty(valkey, keys))
    assert stored_ids(meter) == dict.fromkeys(ids, 1)
    assert meter.counts.duplicates == 0
    delivered = [publisher.metrics.events_delivered for publisher in both]
    assert sum(delivered) == len(ids)
    assert all(delivered)


async def test_a_publisher_that_lives_but_cannot_deliver_keeps_its_entries(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str
) -> None:
    ids = fill(valkey, keys, 12)
    meter.faults.always(OpenMeterFault(status=503))
    idle_ms: dict[bytes, int] = {}
    renewed = 0

    def look() -> bool:
        nonlocal renewed
        for row in valkey.xpending_range(keys.outbox(1), GROUP, "-", "+", 10):
            assert row["times_delivered"] == 1  # a takeover would count, even one by itself
            renewed += row["time_since_delivered"] < idle_ms.get(row["message_id"], 0)
            idle_ms[row["message_id"]] = row["time_since_delivered"]
        return renewed > 5

    async with publishing(client, keys, settings(url, claim_idle_ms=100)) as publisher:
        await until(lambda: publisher.metrics.events_in_progress == len(ids))
        await until(look)
        meter.faults.clear()
        await until(lambda: outbox_is_empty(valkey, keys))
    assert publisher.metrics.entries_claimed == 0
    assert stored_ids(meter) == dict.fromkeys(ids, 1)


async def test_what_a_stopping_publisher_cannot_deliver_the_next_one_takes_at_once(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str
) -> None:
    ids = fill(valkey, keys, 60)
    meter.faults.always(OpenMeterFault(status=503))
    patient = settings(url, claim_idle_ms=3_600_000)
    async with publishing(client, keys, patient) as publisher:
        await until(lambda: publisher.metrics.requests[ResponseClass.RETRY] > 3)
    meter.faults.clear()
    async with publishing(client, keys, patient) as publisher:
        await until(lambda: outbox_is_empty(valkey, keys))
    assert publisher.metrics.entries_claimed == 60
    assert stored_ids(meter) == dict.fromkeys(ids, 1)


async def test_a_stop_delivers_what_has_been_read_and_reads_nothing_more(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str
) -> None:
    fill(valkey, keys, 600, lambda number: 10)
    how = settings(url, batch_events_max=10, requests_in_flight_max=2, buffer_bytes_max=65_536)
    async with publishing(client, keys, how) as publisher:
        await until(lambda: meter.counts.accepted)
    left = sum(valkey.xlen(keys.outbox(partition)) for partition in range(keys.partitions))
    assert left == 600 - publisher.metrics.entries_read > 0
    assert publisher.metrics.events_delivered == publisher.metrics.events_read == meter.counts.accepted


async def test_a_stop_waits_no_longer_than_its_grace_for_a_server_that_hangs(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str
) -> None:
    ids = fill(valkey, keys, 20)
    meter.faults.always(OpenMeterFault(hang=True))
    async with publishing(client, keys, settings(url, timeout_ms=60_000, stop_grace_ms=50)):
        await until(lambda: meter.counts.requests)
    meter.faults.clear()
    async with publishing(client, keys, settings(url)):
        await until(lambda: outbox_is_empty(valkey, keys))
    assert stored_ids(meter) == dict.fromkeys(ids, 1)


async def test_a_publisher_that_is_cancelled_loses_nothing(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str
) -> None:
    ids = fill(valkey, keys, 200)
    publisher = Publisher(client, keys, settings(url, batch_events_max=5))
    task = asyncio.create_task(publisher.run())
    await until(lambda: meter.counts.accepted)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, TIMEOUT_S)
    async with publishing(client, keys, settings(url)):
        await until(lambda: outbox_is_empty(valkey, keys))
    assert stored_ids(meter) == dict.fromkeys(ids, 1)
