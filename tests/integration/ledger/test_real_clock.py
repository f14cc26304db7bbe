"""The scripts exactly as they are shipped, with Valkey's own clock, and with real concurrency."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import redis

from tests.reference.messages import SETTLE, Batch, Code, Group, Load, Loaded, Plan, Single
from tests.support.ledger_driver import RealLedger

HOUR_MS = 3_600_000
METRIC = "api_calls"


@pytest.fixture
def ledger(valkey: redis.Redis) -> RealLedger:
    return RealLedger(valkey, movable_clock=False)


def server_us(client: redis.Redis) -> int:
    seconds, micros = client.time()
    return int(seconds) * 1_000_000 + int(micros)


def load(ledger: RealLedger, ceiling: int) -> None:
    now_ms = server_us(ledger.client) // 1000
    plan = Plan({METRIC: ["s", 1]}, now_ms - HOUR_MS, now_ms + HOUR_MS)
    assert ledger.load(Load("tpp", (plan,), ceiling=ceiling)) == Loaded(1)


def test_the_replys_time_is_valkeys(ledger: RealLedger) -> None:
    load(ledger, 10)
    epoch, _ = ledger.register("gw")
    before = server_us(ledger.client)
    reply = ledger.batch("gw", Batch(epoch, 1, (Group.of("tpp", hold=(1,)),)))
    assert before <= reply.now_us <= server_us(ledger.client)


def test_an_event_carries_the_time_of_its_reply(ledger: RealLedger) -> None:
    load(ledger, 10)
    epoch, _ = ledger.register("gw")
    reply = ledger.batch("gw", Batch(epoch, 1, (Group.of("tpp", late=(1,)),)))
    assert ledger.entries()[0].t_ms == reply.now_us // 1000


def test_a_period_that_ends_while_it_is_used_rolls_over(ledger: RealLedger) -> None:
    now_ms = server_us(ledger.client) // 1000
    ledger.load(Load("tpp", (Plan({METRIC: ["s", 1]}, now_ms - HOUR_MS, now_ms + 30),), ceiling=10**6))
    epoch, _ = ledger.register("gw")
    units = {0: 0, 1: 0}
    for seq in range(1, 500):
        reply = ledger.batch("gw", Batch(epoch, seq, (Group.of("tpp", late=(1,)),)))
        units[0 if reply.now_us // 1000 < now_ms + 30 else 1] += 1
        if units[1] == 3:
            break
        time.sleep(0.001)
    state = ledger.account("tpp")
    assert [count for count, _cost in state.closed.values()] == ([units[0]] if units[0] else [])
    assert state.metrics[METRIC].settled == units[1] == 3


def test_a_heartbeat_is_the_time_at_which_it_was_heard(ledger: RealLedger) -> None:
    epoch, _ = ledger.register("gw")
    before_ms = server_us(ledger.client) // 1000
    ledger.heartbeat("gw", epoch)
    beat = ledger.instance("gw").heartbeat_ms
    assert beat is not None
    assert before_ms <= beat <= server_us(ledger.client) // 1000
    assert ledger.reap("gw", HOUR_MS) == -1


def test_of_gateways_that_race_for_the_last_credits_exactly_as_many_win_as_there_are(
    ledger: RealLedger, valkey: redis.Redis
) -> None:
    """Eight gateways on connections of their own ask for two hundred calls; thirty-seven are paid for."""
    load(ledger, 37)
    where = valkey.connection_pool.connection_kwargs

    def spend(name: str) -> int:
        with redis.Redis(host=where["host"], port=where["port"]) as client:
            mine = RealLedger(client, movable_clock=False)
            epoch, _ = mine.register(name)
            granted = 0
            for seq in range(1, 51, 2):
                [answer] = mine.batch(name, Batch(epoch, seq, (Group.of("tpp", hold=(1,)),))).groups
                assert answer is not None
                if answer.outcomes[0].code == Code.GRANTED:
                    granted += 1
                    mine.batch(name, Batch(epoch, seq + 1, (Group.of("tpp", settle=(1,)),)))
            return granted

    with ThreadPoolExecutor(8) as pool:
        granted = sum(pool.map(spend, [f"gw-{at}" for at in range(8)]))
    state = ledger.account("tpp")
    assert granted == 37
    assert (state.metrics[METRIC].settled, state.metrics[METRIC].held) == (37, 0)
    assert sum(event[2] for entry in ledger.entries() for event in entry.events) == 37


def test_of_gateways_that_race_with_one_idempotency_key_each_call_is_charged_or_a_repeat_or_refused(
    ledger: RealLedger, valkey: redis.Redis
) -> None:
    load(ledger, 1000)
    where = valkey.connection_pool.connection_kwargs

    def call(number: int) -> Code:
        name, refuses = f"gw-{number}", bool(number % 2)
        with redis.Redis(host=where["host"], port=where["port"]) as client:
            mine = RealLedger(client, movable_clock=False)
            epoch, _ = mine.register(name)
            single = Single("tpp", METRIC, 1, "key", refuses=refuses)
            [held] = mine.batch(name, Batch(epoch, 1, (), (single,))).singles
            code = held.outcomes[0].code
            if code == Code.GRANTED and held.token:
                own = replace(single, kind=SETTLE, epoch=epoch, token=held.token)
                mine.batch(name, Batch(epoch, 2, (), (own,)))
            elif code == Code.GRANTED:
                mine.batch(name, Batch(epoch, 2, (Group.of("tpp", settle=(1,)),)))
            return code

    with ThreadPoolExecutor(8) as pool:
        codes = Counter(pool.map(call, range(24)))
    state = ledger.account("tpp")
    assert codes[Code.GRANTED] == state.metrics[METRIC].settled >= 24 - 3 - codes[Code.UNDER_WAY]
    assert codes[Code.REPEAT] <= 3
    assert state.metrics[METRIC].held == 0
