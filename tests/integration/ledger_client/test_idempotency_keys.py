"""Calls under idempotency keys, from the gateway's ledger client: who has a key, and when it is free again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgpack
import pytest
from redis.asyncio import Redis

from sidecar.ledger.client.batch import Batch
from sidecar.ledger.client.link_settings import LinkSettings
from sidecar.ledger.client.outcomes import Code, Event, Hold
from sidecar.ledger.client.reaper import reap
from sidecar.ledger.spool.known_keys import KnownKeys
from sidecar.ledger.spool.spool import Spool, SpoolSettings
from sidecar.ledger.spool.spool_file import Record, decode_record, encode_record
from sidecar.ledger.verification.refused_settles import reapply, refused_settles
from tests.integration.ledger_client.kit import (
    KEYS,
    METRIC,
    TIMEOUT_S,
    ask,
    at,
    call,
    client_of,
    crash,
    event_of,
    key_of,
    load,
    until,
)
from tests.support.fault_proxy import FaultProxy
from tests.support.ledger_totals import read_totals

SCOPE = b"POST /payments 7"
EVENT: Event = ("tpp", METRIC, 1, "/accounts", "POST", 201, 1.5, None, None)


async def settled(control: Redis) -> int:
    totals = await read_totals(control, KEYS, ["tpp"])
    totals.check()
    return totals.settled.get("tpp", 0)


async def test_forty_at_once_under_one_key_are_charged_each_and_a_later_one_is_a_repeat(
    control: Redis, proxy: FaultProxy
) -> None:
    await load(control, {"tpp": 50})
    async with client_of(at(proxy.listening_port)) as client:
        holds = await asyncio.gather(*(ask(client, "tpp", scope=SCOPE) for _ in range(40)))
        assert {hold.code for hold in holds} == {Code.GRANTED}
        assert sum(hold.mark > 0 for hold in holds) == 1
        for hold in holds:
            client.settle(hold, event_of(hold))
        assert await call(client, "tpp", scope=SCOPE) == Code.REPEAT
    assert await settled(control) == 40


@pytest.mark.parametrize("faults", [[], ["drop after", "drop before", "drop after", "split"]])
async def test_a_key_is_free_again_when_its_call_failed(control: Redis, proxy: FaultProxy, faults: list[str]) -> None:
    await load(control, {"tpp": 50})
    async with client_of(at(proxy.listening_port)) as client:
        proxy.faults = [*faults]
        for _ in range(3):
            assert await call(client, "tpp", scope=SCOPE, refuse_conflicts=True, released=True) == Code.GRANTED
        first = await ask(client, "tpp", scope=SCOPE)
        assert await call(client, "tpp", scope=SCOPE, refuse_conflicts=True) == Code.UNDER_WAY
        assert await call(client, "tpp", scope=SCOPE, body=b"x", refuse_conflicts=True) == Code.MISMATCH
        client.settle(first, event_of(first))
        assert await call(client, "tpp", scope=SCOPE, body=b"x", refuse_conflicts=True) == Code.MISMATCH
        assert await call(client, "tpp", scope=SCOPE, refuse_conflicts=True) == Code.REPEAT
    assert await settled(control) == 1


async def test_a_key_that_was_granted_when_nobody_waited_any_more_is_free_again(
    control: Redis, proxy: FaultProxy
) -> None:
    await load(control, {"tpp": 50})
    async with client_of(at(proxy.listening_port)) as client:
        proxy.stall()
        hold = client.hold("tpp", METRIC, 1, lambda _: None, key_of("tpp", SCOPE))
        await until(lambda: client.counters.batches == 1, client)
        hold.callback = None
        proxy.flow()
        await until(lambda: client.counters.late_grants == 1, client)
        assert await call(client, "tpp", scope=SCOPE, refuse_conflicts=True) == Code.GRANTED
    assert await settled(control) == 1


async def test_the_key_of_a_process_that_died_is_free_once_it_is_reaped(control: Redis, proxy: FaultProxy) -> None:
    await load(control, {"tpp": 50})
    topology = at(proxy.listening_port)
    async with client_of(topology, leave=False) as dead, client_of(topology) as alive:
        hold = await ask(dead, "tpp", scope=SCOPE)
        await crash(dead)
        assert await call(alive, "tpp", scope=SCOPE, refuse_conflicts=True) == Code.UNDER_WAY
        await reap_all(control)
        assert await call(alive, "tpp", scope=SCOPE, refuse_conflicts=True) == Code.GRANTED
        assert hold.open
    assert await settled(control) == 1


async def reap_all(control: Redis) -> None:
    """Takes every process for dead, and gives back what it held."""
    await asyncio.sleep(0.002)  # a heartbeat of this very millisecond is younger than any age
    await reap(control, KEYS, 0)


async def test_who_was_reaped_in_between_is_charged_all_the_same(control: Redis, proxy: FaultProxy) -> None:
    await load(control, {"tpp": 50})
    async with client_of(at(proxy.listening_port)) as client:
        served, failed = await ask(client, "tpp", scope=SCOPE), await ask(client, "tpp", scope=b"another")
        await reap_all(control)
        client.settle(served, event_of(served))
        client.release(failed)
        assert await call(client, "tpp", scope=SCOPE) == Code.REPEAT
        assert await call(client, "tpp", scope=b"another", refuse_conflicts=True) == Code.GRANTED
        assert client.counters.registrations == 2
    assert await settled(control) == 2


async def test_what_costs_nothing_is_bounded_however_it_ends(control: Redis, proxy: FaultProxy) -> None:
    await load(control, {"tpp": 50, "other": 50})
    how = LinkSettings(hold_budget_s=TIMEOUT_S, unpaid_per_second=0.01, unpaid_burst=6)
    async with client_of(at(proxy.listening_port), how) as client:
        assert await call(client, "tpp", released=True) == Code.GRANTED
        assert await call(client, "tpp", unpaid=True) == Code.GRANTED
        assert await call(client, "tpp", unpaid=True, scope=SCOPE) == Code.GRANTED
        reaped = await ask(client, "tpp")
        await reap_all(control)
        client.release(reaped, unpaid=True)
        assert await call(client, "other") == Code.GRANTED
        for _ in range(3):
            assert await call(client, "tpp", unpaid=True) == Code.GRANTED
        hold = await ask(client, "tpp")
        assert hold.code == Code.UNPAID
        assert 99_000_000 < hold.retry_us <= 100_000_000
        assert await call(client, "tpp", scope=SCOPE) == Code.UNPAID
        assert await call(client, "other") == Code.GRANTED
    totals = await read_totals(control, KEYS, ["tpp", "other"])
    totals.check()
    assert totals.settled == {"other": 2}


@pytest.mark.parametrize(("rate", "interval_us"), [(50.0, 20_000), (0.0, 0), (3_000_000.0, 1), (0.5, 2_000_000)])
def test_the_interval_is_the_rate_s(rate: float, interval_us: int) -> None:
    assert LinkSettings(unpaid_per_second=rate).unpaid_interval_us == interval_us


def test_what_was_answered_and_not_charged_stays_with_its_account() -> None:
    batch = Batch(7)
    for account, epoch in (("a", 7), ("b", 6), ("a", 6)):
        hold = Hold(account, METRIC, 1, None, lambda _: None)
        hold.epoch = epoch
        batch.add_release(hold, unpaid=True)
    batch.enter_epoch(8)
    parts = batch.split(1)
    assert [(part.unpaid, part.operations) for part in parts] == [({"a": 2}, 1), ({"b": 1}, 1)]
    others, mine = batch.without("a")
    assert (others.unpaid, mine.unpaid) == ({"b": 1}, {"a": 2})


# While the ledger is away


def test_a_key_is_known_for_a_while_and_for_so_many_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("sidecar.ledger.spool.known_keys.monotonic", lambda: now)
    known = KnownKeys(ttl_s=60.0, keys_max=2)
    one, two, three = (key_of("tpp", scope, b"a", repeats_max=2) for scope in (b"1", b"2", b"3"))
    assert not known.take_repeat(one), "nobody was charged"
    known.charged(one)
    assert not known.take_repeat(key_of("tpp", b"1", b"another body"))
    assert [known.take_repeat(one) for _ in range(3)] == [True, True, False]
    known.charged(one)
    assert not known.take_repeat(one), "the first call counts"
    now += 60.0
    known.charged(two)
    known.repeated(two)
    assert [known.take_repeat(two) for _ in range(2)] == [True, False]
    known.charged(one)
    assert known.take_repeat(one)
    known.charged(three)
    assert len(known) == 2
    assert known.take_repeat(three)
    assert not known.take_repeat(two), "it was driven out"


@pytest.mark.parametrize("key", [None, key_of("tpp", SCOPE, repeats_max=2)])
def test_a_record_has_its_key(key: object) -> None:
    record = Record("spool:gw:1", "tpp", METRIC, 1, EVENT, key)  # type: ignore[arg-type]
    assert decode_record(encode_record(record)) == record


async def test_what_two_processes_recorded_under_one_key_is_charged_as_one_call_and_its_repeat(
    control: Redis, proxy: FaultProxy, tmp_path: Path
) -> None:
    await load(control, {"tpp": 50})
    key, other = key_of("tpp", SCOPE, b"a"), key_of("tpp", SCOPE, b"b")
    for name, of in (("one", key), ("two", key), ("three", other), ("four", None)):
        record = encode_record(Record(f"spool:{name}:1", "tpp", METRIC, 1, EVENT, of))
        (tmp_path / f"spool-{name}.log").touch(0o600)
        (tmp_path / f"spool-{name}.log").write_bytes(record * 2)
    async with client_of(at(proxy.listening_port)) as client:
        spool = Spool(SpoolSettings(tmp_path), client)
        spool.start()
        await until(lambda: len(list(tmp_path.iterdir())) == 1, "the files are replayed")
        # Which of the two bodies came first is the names' order.
        codes = [await call(client, "tpp", scope=SCOPE, body=body) for body in (b"a", b"b")]
        await spool.close()
    assert codes == [Code.REPEAT, Code.GRANTED]
    assert await settled(control) == 3 + 1


async def test_what_is_charged_while_the_ledger_is_away_is_known_when_it_is_back(
    control: Redis, proxy: FaultProxy, tmp_path: Path
) -> None:
    await load(control, {"tpp": 50})
    async with client_of(at(proxy.listening_port)) as client:
        spool = Spool(SpoolSettings(tmp_path), client)
        spool.start()
        hold = Hold("tpp", METRIC, 1, key_of("tpp", SCOPE), lambda _: None)
        assert not spool.take_repeat(hold)
        spool.charge(hold, EVENT)
        assert spool.take_repeat(hold)
        await until(lambda: spool.replayed == 1, spool)
        assert await call(client, "tpp", scope=SCOPE) == Code.REPEAT
        await spool.close()
    assert await settled(control) == 1


async def test_what_an_account_cannot_take_is_kept_with_its_key(control: Redis, proxy: FaultProxy) -> None:
    await load(control, {"tpp": 50})
    async with client_of(at(proxy.listening_port)) as client:
        hold = await ask(client, "tpp", scope=SCOPE)
        stored = await control.get(KEYS.state("tpp"))
        await control.set(KEYS.state("tpp"), "garbage")
        client.settle(hold, event_of(hold))
        await until(lambda: client.counters.refused_settles == 1, client)
        await control.set(KEYS.state("tpp"), stored)
    entries = await refused_settles(control, KEYS)
    [done] = [each async for each in reapply(control, KEYS, entries, 60_000)]
    assert (done.units, done.problem) == (1, "")
    [value] = [v for field, v in (await control.hgetall(KEYS.account("tpp"))).items() if field[:1] == b"i"]
    reader = msgpack.Unpacker(raw=True)
    reader.feed(value)
    _, epoch, repeats, fingerprint = list(reader)
    assert (epoch, repeats, fingerprint) == (0, 0, key_of("tpp", SCOPE).fingerprint)
