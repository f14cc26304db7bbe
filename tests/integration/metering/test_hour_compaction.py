"""Hours become counts of whole days when no audit needs them any more, and days of long ago go."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from random import Random
from typing import Any

import msgpack
import pytest
import redis
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from sidecar.ledger.hours import DAY_MS, HOURS_OF_DAY, KEPT_DAYS, WHOLE_DAY, Hours, HourTotal, day_counts
from sidecar.ledger.keys import Keys
from sidecar.metering.audit import hour_compaction
from sidecar.metering.audit.audit_state import save_agreed
from sidecar.metering.audit.hour_compaction import HourCompaction
from sidecar.valkey.scripts import script
from tests.conftest import start_valkey
from tests.integration.metering.audit_kit import Audit, Charges, auditing, open_partitions, pack, state
from tests.integration.metering.kit import Valkey, until
from tests.integration.metering.kit import settings as metering_settings

LOOK_BACK_HOURS = 48


@pytest.fixture
def today(valkey: Valkey, keys: Keys) -> int:
    """The day by the server's clock, counted from 1970; the partitions are open."""
    open_partitions(valkey, keys)
    return int(valkey.time()[0]) * 1000 // DAY_MS


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hour_compaction, "PAUSE_S_MIN", 0.0)


def noon_ms(day: int) -> int:
    return day * DAY_MS + DAY_MS // 2


def day_field(*counts: tuple[int, str, str, int]) -> bytes:
    return b"".join(pack(*count) for count in counts)


def store(valkey: Valkey, keys: Keys, account: str, packed: bytes, days: dict[int, bytes]) -> None:
    valkey.set(keys.state(account), packed)
    valkey.hset(keys.account(account), mapping={f"h{day}": field for day, field in days.items()})
    valkey.zadd(keys.accounts(keys.partition(account)), {account: 0})


def stored(valkey: Valkey, keys: Keys, account: str) -> dict[int, list[tuple[int, bytes, bytes, int]]]:
    fields = valkey.hgetall(keys.account(account))
    return {int(name[1:]): day_counts(packed) for name, packed in fields.items() if name[:1] == b"h"}


def days_of(valkey: Valkey, keys: Keys, account: str) -> dict[int, bool]:
    """The days of an account, and whether each is one count of each counter."""
    found = stored(valkey, keys, account)
    return {day: all(hour == WHOLE_DAY for hour, *_ in counts) for day, counts in sorted(found.items())}


async def agree(client: Redis, keys: Keys, days: Iterable[int]) -> None:
    """As an audit that found everything in order."""
    hours = Hours(client, keys)
    numbers = [hour for day in days for hour in range(day * HOURS_OF_DAY, (day + 1) * HOURS_OF_DAY)]
    for hour, total in (await hours.totals(numbers)).items():
        await save_agreed(hours, hour, total)


def audited(client: Redis, keys: Keys) -> HourCompaction:
    return HourCompaction(client, keys, LOOK_BACK_HOURS, must_agree=True)


def unaudited(client: Redis, keys: Keys) -> HourCompaction:
    return HourCompaction(client, keys, LOOK_BACK_HOURS, must_agree=False)


TWO_HOURS = day_field((3, "s", "api_calls", 1), (4, "s", "api_calls", 2))


async def test_days_beyond_the_look_back_that_agreed_become_one_count_and_others_do_not(
    valkey: Valkey, client: Redis, keys: Keys, today: int
) -> None:
    running = (today - 3) * HOURS_OF_DAY + 23
    for number in range(250):
        days = {today - back: TWO_HOURS for back in range(1, 9)}
        store(valkey, keys, f"tpp-{number}", state([("api_calls", running, 5)]), days)
    await agree(client, keys, [today - back for back in (1, 2, 3, 5, 6, 7)])
    await Hours(client, keys).note((today - 6) * HOURS_OF_DAY + 4, {"agreed": "250 501"})  # it changed since
    counts = await audited(client, keys).compact(noon_ms(today))
    assert counts is not None
    assert (counts.accounts, counts.compacted, counts.dropped, counts.failed) == (250, 750, 0, 0)
    assert days_of(valkey, keys, "tpp-249") == {
        today - 8: False, today - 7: True, today - 6: False, today - 5: True, today - 4: False, today - 3: True,
        today - 2: False, today - 1: False,
    }  # fmt: skip
    assert stored(valkey, keys, "tpp-0")[today - 5] == [(WHOLE_DAY, b"s", b"api_calls", 3)]
    assert await audited(client, keys).compact(noon_ms(today)) is None, "nothing more to do today"
    assert days_of(valkey, keys, "tpp-0")[today - 4] is False


async def test_a_day_in_the_look_back_stays_hour_by_hour_although_it_agreed(
    valkey: Valkey, client: Redis, keys: Keys, today: int
) -> None:
    store(valkey, keys, "tpp-1", state([]), {today - 2: TWO_HOURS, today - 3: TWO_HOURS})
    await agree(client, keys, [today - 2, today - 3])
    for hour, compacted in ((23, False), (24, True)):
        await audited(client, keys).compact((today - 1) * DAY_MS + hour * DAY_MS // HOURS_OF_DAY)
        assert days_of(valkey, keys, "tpp-1") == {today - 3: compacted, today - 2: False}


async def test_counters_and_subscriptions_stay_apart_and_hours_of_any_number_are_added(
    valkey: Valkey, client: Redis, keys: Keys, today: int
) -> None:
    random, sums = Random(3), dict[tuple[bytes, bytes], int]()
    counts = []
    for _ in range(4_500):
        subscription, counter, units = random.choice("st"), f"m{random.randrange(40)}", random.randrange(1, 10**9)
        counts.append((random.randrange(24), subscription, counter, units))
        key = subscription.encode(), counter.encode()
        sums[key] = sums.get(key, 0) + units
    store(valkey, keys, "tpp-1", state([]), {today - 4: day_field(*counts)})
    await unaudited(client, keys).compact(noon_ms(today))
    found = stored(valkey, keys, "tpp-1")[today - 4]
    assert {hour for hour, *_ in found} == {WHOLE_DAY}
    assert {(subscription, counter): units for _, subscription, counter, units in found} == sums


async def test_an_hour_that_came_later_is_part_of_the_day(
    valkey: Valkey, client: Redis, keys: Keys, today: int
) -> None:
    late = day_field((WHOLE_DAY, "s", "api_calls", 3), (23, "s", "api_calls", 4))
    store(valkey, keys, "tpp-1", state([]), {today - 4: late})
    assert await unaudited(client, keys).compact(noon_ms(today))
    assert stored(valkey, keys, "tpp-1")[today - 4] == [(WHOLE_DAY, b"s", b"api_calls", 7)]


async def test_a_sum_that_cannot_be_represented_leaves_the_hours(
    valkey: Valkey, client: Redis, keys: Keys, today: int
) -> None:
    counts = day_field((3, "s", "api_calls", 2**53 - 1), (4, "s", "api_calls", 1))
    store(valkey, keys, "tpp-1", state([]), {today - 4: counts})
    await unaudited(client, keys).compact(noon_ms(today))
    assert len(stored(valkey, keys, "tpp-1")[today - 4]) == 2


async def test_without_an_audit_two_days_stay(valkey: Valkey, client: Redis, keys: Keys, today: int) -> None:
    store(valkey, keys, "tpp-1", state([]), {today - back: TWO_HOURS for back in range(5)})
    assert await HourCompaction(client, keys, 1, must_agree=False).compact(noon_ms(today))
    expected = {today - 4: True, today - 3: True, today - 2: False, today - 1: False, today: False}
    assert days_of(valkey, keys, "tpp-1") == expected
    assert await unaudited(client, keys).compact(noon_ms(today)) is None
    assert await unaudited(client, keys).compact(noon_ms(today + 1)), "another day"
    assert days_of(valkey, keys, "tpp-1") == expected | {today - 2: True}


@pytest.mark.parametrize(("length", "kept"), [(2, 9), (30, 63), (365, 2_000)])
async def test_days_before_the_period_before_the_open_one_go(
    valkey: Valkey, client: Redis, keys: Keys, today: int, length: int, kept: int
) -> None:
    start = today - (29 if length == 30 else 1)
    packed = state([], start_ms=start * DAY_MS, end_ms=(start + length) * DAY_MS)
    days = [1, 9, 10, 59, 62, 63, 64, 400]
    store(valkey, keys, "tpp-1", packed, {today - back: TWO_HOURS for back in days})
    await unaudited(client, keys).compact(noon_ms(today))
    assert [today - day for day in days_of(valkey, keys, "tpp-1")] == [back for back in days[::-1] if back <= kept]


async def test_an_account_without_a_period_or_with_one_without_an_end_loses_nothing(
    valkey: Valkey, client: Redis, keys: Keys, today: int
) -> None:
    store(valkey, keys, "tpp-1", state([], start_ms=0, end_ms=2**53 - 1), {today - 400: TWO_HOURS})
    store(valkey, keys, "tpp-2", state([], start_ms=today * DAY_MS, end_ms=2**53 - 1), {today - 400: TWO_HOURS})
    await unaudited(client, keys).compact(noon_ms(today))
    assert list(days_of(valkey, keys, "tpp-1")) == list(days_of(valkey, keys, "tpp-2")) == [today - 400]


async def test_accounts_that_cannot_be_read_do_not_keep_others_from_it(
    valkey: Valkey, client: Redis, keys: Keys, today: int
) -> None:
    store(valkey, keys, "bad-1", b"junk", {today - 4: TWO_HOURS})
    store(valkey, keys, "bad-2", state([]), {today - 4: TWO_HOURS[:-1]})
    store(valkey, keys, "good", state([]), {today - 4: TWO_HOURS})
    valkey.set(keys.account("bad-3"), "x")
    valkey.rpush(keys.state("bad-4"), "x")
    for account in ("bad-3", "bad-4"):
        valkey.zadd(keys.accounts(keys.partition(account)), {account: 0})
    valkey.zadd(keys.accounts(keys.partition("gone")), {"gone": 0})
    counts = await unaudited(client, keys).compact(noon_ms(today))
    assert counts is not None
    assert (counts.accounts, counts.failed) == (1, 4)
    assert days_of(valkey, keys, "good") == {today - 4: True}
    assert not valkey.exists(keys.account("gone"))


async def test_an_account_with_many_idempotency_keys_is_read_whole(
    valkey: Valkey, client: Redis, keys: Keys, today: int
) -> None:
    valkey.hset(keys.account("tpp-1"), mapping={f"i{number:016d}": "1" for number in range(5_000)})
    store(valkey, keys, "tpp-1", state([]), {today - back: TWO_HOURS for back in range(3, 9)})
    await unaudited(client, keys).compact(noon_ms(today))
    assert all(days_of(valkey, keys, "tpp-1").values())


async def test_what_was_interrupted_is_done_later_though_the_hours_have_other_totals_by_then(
    valkey: Valkey, client: Redis, keys: Keys, today: int
) -> None:
    for number in range(600):
        store(valkey, keys, f"tpp-{number}", state([]), {today - 4: TWO_HOURS})
    await agree(client, keys, [today - 4])
    stop = asyncio.Event()
    stop.set()
    counts = await audited(client, keys).compact(noon_ms(today), stop)
    assert counts is not None
    assert 0 < counts.accounts < 600
    counts = await audited(client, keys).compact(noon_ms(today))
    assert counts is not None
    assert counts.accounts > 0
    assert all(days_of(valkey, keys, f"tpp-{number}")[today - 4] for number in range(600))


async def test_the_script_touches_no_day_that_is_running_or_young(valkey: Valkey, keys: Keys, today: int) -> None:
    store(valkey, keys, "tpp-1", state([]), {today: TWO_HOURS, today - 9: TWO_HOURS})
    before: Any = valkey.hgetall(keys.account("tpp-1"))
    names = [keys.account("tpp-1"), keys.clock(keys.partition("tpp-1"))]
    text = script("compact_hours").text
    for compact, drop in (([today - 9, today], []), ([today - 9], [today - KEPT_DAYS])):
        with pytest.raises(redis.exceptions.ResponseError, match="INVALID day"):
            valkey.eval(text, 2, *names, msgpack.packb(compact), msgpack.packb(drop))
    valkey.set(names[1], pack(3, 0))
    with pytest.raises(redis.exceptions.ResponseError, match="FORMAT 3, this release has 2"):
        valkey.eval(text, 2, *names, msgpack.packb([today - 9]), msgpack.packb([]))
    assert valkey.hgetall(keys.account("tpp-1")) == before


async def test_a_longer_look_back_leaves_out_days_that_are_one_count(
    valkey: Valkey, client: Redis, keys: Keys, url: str, today: int
) -> None:
    last = (today - 4) * HOURS_OF_DAY + 20
    store(valkey, keys, "tpp-1", state([("api_calls", last, 5)]), {today - 4: TWO_HOURS})
    await unaudited(client, keys).compact(noon_ms(today))
    async with auditing(client, keys, metering_settings(url), Audit(hours=168)) as audits:
        report = await audits.audit()
    assert (report.hours, report.agrees) == ((), True)
    assert await Hours(client, keys).totals([last]) == {last: HourTotal(1, 5)}


async def test_charges_after_a_compaction_count_on(valkey: Valkey, client: Redis, keys: Keys, today: int) -> None:
    charges = Charges(valkey, keys, opened=True)
    for hour in range(30):
        charges.now_ms = (today - 4) * DAY_MS + hour * DAY_MS // HOURS_OF_DAY
        charges.charge("tpp-1", 1)
    await unaudited(client, keys).compact(noon_ms(today))
    charges.now_ms = (today - 1) * DAY_MS
    charges.charge("tpp-1", 1)
    found = stored(valkey, keys, "tpp-1")
    assert {day: sum(units for *_, units in counts) for day, counts in found.items()} == {today - 4: 24, today - 3: 6}


async def test_a_cluster_is_compacted_as_a_single_server_is(keys: Keys) -> None:
    server = start_valkey(cluster_enabled="yes")
    try:
        with redis.Redis(port=server.port) as valkey:
            plain: Valkey = valkey
            plain.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            await until(lambda: b"cluster_state:ok" in plain.execute_command("CLUSTER", "INFO"))
            open_partitions(plain, keys)
            today = int(plain.time()[0]) * 1000 // DAY_MS
            for number in range(30):
                plain.hset(keys.account(f"tpp-{number}"), mapping={f"i{n:016d}": "1" for n in range(1_000)})
                store(plain, keys, f"tpp-{number}", state([]), {today - 4: TWO_HOURS})
            async with RedisCluster(host="127.0.0.1", port=server.port) as client:
                counts = await HourCompaction(client, keys, 1, must_agree=False).compact(noon_ms(today))
            assert counts is not None
            assert (counts.compacted, counts.failed) == (30, 0)
            assert days_of(plain, keys, "tpp-0") == {today - 4: True}
    finally:
        server.terminate()


async def test_the_loops_compact_and_outlive_a_valkey_that_is_away(
    valkey: Valkey, client: Redis, keys: Keys, today: int
) -> None:
    store(valkey, keys, "tpp-1", state([]), {today - 4: TWO_HOURS})
    stop = asyncio.Event()
    async with Redis(host="127.0.0.1", port=9, retry=Retry(NoBackoff(), 0)) as nowhere:
        loops = asyncio.gather(unaudited(client, keys).run(stop), unaudited(nowhere, keys).run(stop))
        await until(lambda: all(days_of(valkey, keys, "tpp-1").values()))
        assert not loops.done()
        stop.set()
        await asyncio.wait_for(loops, 10)
