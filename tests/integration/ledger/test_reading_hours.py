"""Hours as they are read over all home partitions, page by page, and what is noted beside the counts."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import redis
from redis.asyncio import Redis

from sidecar.ledger.hours import KEPT_MS, Hours, HourTotal
from sidecar.ledger.keys import Keys

HOUR = 490_000
KEYS = Keys(prefix="a:account:b", partitions=4)


@pytest.fixture
async def hours(valkey: redis.Redis) -> AsyncIterator[Hours]:
    where = valkey.connection_pool.connection_kwargs
    async with Redis(host=where["host"], port=where["port"]) as client:
        yield Hours(client, KEYS)


def count(valkey: redis.Redis, home_partition: int, account: str, units: int, metric: str = "api_calls") -> None:
    valkey.hincrby(KEYS.hour(home_partition, HOUR), f"{KEYS.account(account)}\0{metric}", units)


async def test_an_hour_that_was_not_counted_has_no_counts(hours: Hours) -> None:
    assert await hours.total(HOUR) == HourTotal(0, 0)
    assert await hours.units(HOUR) == {}


async def test_the_counts_of_all_homes_are_added(valkey: redis.Redis, hours: Hours) -> None:
    count(valkey, 0, "tpp-1", 1)
    count(valkey, 3, "tpp-1", 2)
    count(valkey, 3, "tpp-1", 4, "payments")
    count(valkey, 1, "odd}:account:ö", 8)
    assert await hours.units(HOUR) == {
        ("tpp-1", "api_calls"): 3,
        ("tpp-1", "payments"): 4,
        ("odd}:account:ö", "api_calls"): 8,
    }
    assert await hours.total(HOUR) == HourTotal(4, 15)
    assert await hours.total(HOUR + 1) == HourTotal(0, 0)


async def test_an_hour_of_many_accounts_is_read_in_pages(valkey: redis.Redis, hours: Hours) -> None:
    fields = {f"{KEYS.account(f'tpp-{number}')}\0api_calls": number + 1 for number in range(5_000)}
    valkey.hset(KEYS.hour(2, HOUR), mapping=fields)  # type: ignore[arg-type]
    assert await hours.total(HOUR) == HourTotal(5_000, 5_000 * 5_001 // 2)
    found = await hours.units(HOUR)
    assert len(found) == 5_000
    assert found["tpp-4999", "api_calls"] == 5_000


async def test_large_sums_are_exact(valkey: redis.Redis, hours: Hours) -> None:
    count(valkey, 0, "tpp-1", 2**52 + 1)
    count(valkey, 1, "tpp-1", 2**52 + 2)
    assert await hours.total(HOUR) == HourTotal(2, 2**53 + 3)
    assert await hours.units(HOUR) == {("tpp-1", "api_calls"): 2**53 + 3}


async def test_notes_are_no_counts_and_end_with_them(valkey: redis.Redis, hours: Hours) -> None:
    count(valkey, 0, "tpp-1", 1)
    valkey.pexpire(KEYS.hour(0, HOUR), 1_000_000)
    await hours.note(HOUR, {"agreed": "1 1", "other": b"\xff"})
    assert await hours.notes(HOUR, "agreed", "other", "none") == [b"1 1", b"\xff", None]
    assert await hours.total(HOUR) == HourTotal(1, 1)
    assert await hours.units(HOUR) == {("tpp-1", "api_calls"): 1}
    assert 0 < valkey.pttl(KEYS.hour(0, HOUR)) <= 1_000_000


async def test_notes_where_the_first_home_counted_nothing_do_not_stay_for_ever(
    valkey: redis.Redis, hours: Hours
) -> None:
    count(valkey, 3, "tpp-1", 1)
    await hours.note(HOUR, {"agreed": "1 1"})
    assert KEPT_MS - 60_000 < valkey.pttl(KEYS.hour(0, HOUR)) <= KEPT_MS
    assert await hours.total(HOUR) == HourTotal(1, 1)
