"""A call happens whole or not at all: whatever a script asks of the server may fail, and nothing has changed then."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.ledger.gateway import Gateway, Op
from tests.integration.ledger.invariants import assert_hours, assert_no_hold_is_lost
from tests.integration.ledger.strategies import (
    ACCOUNTS,
    DAY_MS,
    GATEWAYS,
    KNOWS_NOT,
    LENGTH_MS,
    PERIODS,
    START_MS,
    TABLES,
    changes,
    compose_load,
    ops,
)
from tests.reference.ledger import Ledger
from tests.reference.messages import LedgerError, Load
from tests.support.ledger_driver import HOME, RealLedger

FAILS_AT, TRACE = "test:fails_at", "test:trace"
WRITES = {b"HSET", b"HDEL", b"HINCRBY", b"HPEXPIRE", b"XADD", b"ZADD", b"ZREM", b"PEXPIRE", b"SET", b"MSET"}
OF_ANY_TYPE = {b"PEXPIRE", b"SET", b"MSET"}
MAY_REFUSE_A_VALUE = {b"HINCRBY"}
"""It must be the first that writes: that a key was read says nothing about the number in it."""

TRACED = f"""
local calls_made, fails_at
local function begin_trace()
  calls_made, fails_at = 0, tonumber(redis.call('GET', '{FAILS_AT}'))
end
local function traced_call(...)
  local command, key = ...
  calls_made = calls_made + 1
  redis.call('RPUSH', '{TRACE}', command, key)
  if calls_made == fails_at then
    error({{err = 'INJECTED at ' .. command}})
  end
  return redis.call(...)
end
"""
BIND = "  call = redis.call\n"
BATCH_BEGINS = "  if not call then\n    bind()\n  end\n"
SCRIPT_BEGINS = "\nbind()\n"


def traced(text: str) -> str:
    """The script with its commands counted and noted; the one whose number is in a key fails."""
    assert text.count(BIND) == 1
    assert text.count(BATCH_BEGINS) + text.count(SCRIPT_BEGINS) == 1
    text = text.replace(BIND, "  call = traced_call\n")
    text = text.replace(BATCH_BEGINS, BATCH_BEGINS + "  begin_trace()\n")
    return TRACED + text.replace(SCRIPT_BEGINS, SCRIPT_BEGINS + "begin_trace()\n")


class Harness:
    """The scripts and the model, and calls that fail on the way."""

    def __init__(self, client: Any) -> None:
        client.flushall()
        self.client = client
        self.real = RealLedger(client, edit=traced)
        self.model = Ledger()
        self.now_us = (START_MS + DAY_MS) * 1000
        self.gateways = {name: Gateway(name) for name in GATEWAYS}
        self.fail_at(0)
        two = {"payments": TABLES[3], "reports": TABLES[1]}
        for name, change in {
            "prepaid": {"ceiling": 400, "prices": {"api_calls": TABLES[2], "payments": TABLES[6]}},
            "overage": {"ceiling": 300, "counts_unsettled": False, "prices": {"api_calls": TABLES[4]}, "extra": two},
            "limited": {"ceiling": 10**6, "rate": (250_000, 3), "day_limit": 7},
        }.items():
            self.load(compose_load(name, None, self.now_us // 1000, change, "as stored", [0, 1], None))
        for name in GATEWAYS[:2]:
            self.register(name)

    def both(self, call: Callable[[Any], Any]) -> Any:
        answers = [self._answer(call, ledger) for ledger in (self.real, self.model)]
        assert answers[0] == answers[1]
        return answers[0]

    @staticmethod
    def _answer(call: Callable[[Any], Any], ledger: RealLedger | Ledger) -> Any:
        try:
            return call(ledger)
        except LedgerError as error:
            return error.word

    def load(self, load: Load) -> None:
        self.both(lambda ledger: ledger.load(load, now_us=self.now_us))

    def register(self, name: str) -> None:
        self.gateways[name].epoch, _ = self.both(lambda ledger: ledger.register(name, now_us=self.now_us))

    def depart(self, name: str) -> None:
        self.both(lambda ledger: ledger.reap(name, -1, now_us=self.now_us))

    def send(self, name: str, ops: list[Op]) -> None:
        gateway = self.gateways[name]
        batch = gateway.compose(ops, merge=True, versions={})
        gateway.take(batch, self.both(lambda ledger: ledger.batch(name, batch, now_us=self.now_us)))

    # Failures

    def fail_at(self, number: int) -> None:
        self.client.set(FAILS_AT, number)
        self.client.delete(TRACE)

    def trace(self) -> list[tuple[bytes, bytes]]:
        """Commands with their first key."""
        flat: list[bytes] = self.client.lrange(TRACE, 0, -1)
        return list(zip(flat[::2], flat[1::2], strict=True))

    def stored(self) -> dict[bytes, tuple[Any, int]]:
        """Every key with its contents and its end. The dump of a hash whose fields have ends is in no order."""
        dumps = self.dumps()
        pipe = self.client.pipeline(transaction=False)
        for key in dumps:
            pipe.type(key)
        hashes = [key for key, kind in zip(dumps, pipe.execute(), strict=True) if kind == b"hash"]
        for key in hashes:
            fields = sorted(self.client.hgetall(key).items())
            names = [name for name, _ in fields]
            ends = self.client.execute_command("HPEXPIRETIME", key, "FIELDS", len(names), *names)
            dumps[key] = [*zip(fields, ends, strict=True)], dumps[key][1]
        return dumps

    def dumps(self) -> dict[bytes, tuple[Any, int]]:
        keys = sorted(key for key in self.client.keys("*") if not key.startswith(b"test:"))
        pipe = self.client.pipeline(transaction=False)
        for key in keys:
            pipe.dump(key)
            pipe.pexpiretime(key)
        replies = pipe.execute()
        return {key: (replies[2 * at], replies[2 * at + 1]) for at, key in enumerate(keys)}

    def prove(self, call: Callable[[Any], Any]) -> None:
        """The call fails at each of its commands up to the first that writes, and for each of its keys that has another
        type. Then it succeeds, and what it does after the first write cannot fail."""
        before = self.stored()
        for number in count(1):
            self.fail_at(number)
            try:
                self._answer(call, self.real)
            except redis.ResponseError as error:
                if not str(error).startswith("INJECTED"):
                    raise
            else:
                # It ended by itself, before it wrote anything.
                break
            assert self.stored() == before, f"{self.trace()[-1]} failed, and something has changed"
            if self.trace()[-1][0] in WRITES:
                self._prove_types(call, before, {key for _, key in self.trace() if not key.startswith(b"test:")})
                break
        # What wrote nothing may be repeated.
        self.fail_at(0)
        self.both(call)
        assert_cannot_fail_after_its_first_write(self.trace())
        state = self.real.state(ACCOUNTS, GATEWAYS)
        assert state == self.model.state()
        assert_no_hold_is_lost(state)
        assert_hours(state)

    def _prove_types(self, call: Callable[[Any], Any], before: dict[bytes, tuple[Any, int]], keys: set[bytes]) -> None:
        self.fail_at(0)
        dumps = self.dumps()
        strings = {key for key in keys if any(name in key for name in (b":instance:", b":state:", b":clock"))}
        for key in keys:
            self.client.delete(key)
            if key in strings:
                self.client.hset(key, "a", "text")
            else:
                self.client.set(key, "a text")
            wrong = self.stored()
            with pytest.raises((redis.ResponseError, LedgerError)):
                call(self.real)
            assert self.stored() == wrong, f"{key!r} had another type, and something has changed"
            self.client.delete(key)
            if key in dumps:
                contents, end = dumps[key]
                self.client.restore(key, max(0, end), contents, absttl=True)
        assert self.stored() == before


def assert_cannot_fail_after_its_first_write(trace: list[tuple[bytes, bytes]]) -> None:
    read: set[tuple[bytes, bytes]] = set()
    has_written = False
    for command, key in trace:
        if command not in WRITES:
            assert not has_written, f"{command!r} reads after something was written"
            read.add((key, command[:1]))
            continue
        if has_written:
            assert command not in MAY_REFUSE_A_VALUE, f"{command!r} may fail after something was written"
            types = {type_ for of, type_ in read if of == key}
            assert command in OF_ANY_TYPE or command[:1] in types, f"nothing proves the type of {key!r}"
        read.add((key, command[:1]))
        has_written = True


some = settings(max_examples=25, suppress_health_check=list(HealthCheck))


@some
@given(
    lives=st.lists(st.tuples(st.sampled_from(GATEWAYS[:2]), st.lists(ops, max_size=5)), max_size=3),
    last=st.lists(ops, min_size=1, max_size=6),
    name=st.sampled_from(GATEWAYS),
    wait_ms=st.sampled_from([0, 3_600_000, LENGTH_MS, -60_000]),
)
def test_a_batch_that_fails_has_changed_nothing(
    valkey: redis.Redis, lives: list[tuple[str, list[Op]]], last: list[Op], name: str, wait_ms: int
) -> None:
    harness = Harness(valkey)
    for sender, lived in lives:
        harness.send(sender, lived)
    harness.now_us += wait_ms * 1000
    batch = harness.gateways[name].compose(last, merge=True, versions={})
    harness.prove(lambda ledger: ledger.batch(name, batch, now_us=harness.now_us))


@some
@given(
    lived=st.lists(ops, max_size=5),
    account=st.sampled_from(ACCOUNTS),
    change=changes,
    period=st.sampled_from(["as stored"] * 4 + PERIODS),
    knows=st.sampled_from(["all"] * 3 + KNOWS_NOT),
    wait_ms=st.sampled_from([0, 3_600_000, LENGTH_MS, -60_000]),
)
def test_a_load_that_fails_has_changed_nothing(
    valkey: redis.Redis,
    lived: list[Op],
    account: str,
    change: dict[str, Any],
    period: str,
    knows: str,
    wait_ms: int,
) -> None:
    harness = Harness(valkey)
    harness.send(GATEWAYS[0], lived)
    harness.now_us += wait_ms * 1000
    stored = harness.model.accounts.get(account)
    load = compose_load(account, stored, harness.now_us // 1000, change, period, [0], knows)
    harness.prove(lambda ledger: ledger.load(load, now_us=harness.now_us))


@pytest.fixture
def harness(valkey: redis.Redis) -> Harness:
    """Two gateways hold something of three accounts."""
    made = Harness(valkey)
    for name in GATEWAYS[:2]:
        made.send(name, [Op("hold", account, "api_calls", 2) for account in ("prepaid", "overage", "limited")])
    return made


WAITS_MS = [0, 4 * LENGTH_MS, -60_000]


@pytest.mark.parametrize("wait_ms", WAITS_MS)
@pytest.mark.parametrize("name", GATEWAYS)
def test_a_registration_that_fails_has_changed_nothing(harness: Harness, name: str, wait_ms: int) -> None:
    harness.now_us += wait_ms * 1000
    harness.prove(lambda ledger: ledger.register(name, now_us=harness.now_us))


def test_a_registration_where_the_epochs_are_no_number_has_changed_nothing(harness: Harness) -> None:
    harness.client.hset(harness.real.keys.meta(HOME), "epochs", "a text")
    before = harness.stored()
    with pytest.raises(redis.ResponseError, match="not an integer"):
        harness.real.register("new", now_us=harness.now_us)
    assert harness.stored() == before


@pytest.mark.parametrize("wait_ms", WAITS_MS)
@pytest.mark.parametrize("name", GATEWAYS)
def test_a_heartbeat_that_fails_has_changed_nothing(harness: Harness, name: str, wait_ms: int) -> None:
    harness.now_us += wait_ms * 1000
    epoch = harness.gateways[name].epoch
    harness.prove(lambda ledger: ledger.heartbeat(name, epoch, now_us=harness.now_us))


@pytest.mark.parametrize("ttl_ms", [-1, 1000])
@pytest.mark.parametrize("wait_ms", WAITS_MS)
@pytest.mark.parametrize("name", GATEWAYS)
def test_a_departure_that_fails_has_changed_nothing(harness: Harness, name: str, wait_ms: int, ttl_ms: int) -> None:
    harness.now_us += wait_ms * 1000
    harness.prove(lambda ledger: ledger.reap(name, ttl_ms, now_us=harness.now_us))


@pytest.mark.parametrize("wait_ms", WAITS_MS)
@pytest.mark.parametrize("accounts", [ACCOUNTS, ACCOUNTS[:2], ()])
def test_giving_back_that_fails_has_changed_nothing(harness: Harness, accounts: tuple[str, ...], wait_ms: int) -> None:
    for name in GATEWAYS[:2]:
        harness.depart(name)
    harness.now_us += wait_ms * 1000
    harness.prove(lambda ledger: ledger.give_back(accounts, now_us=harness.now_us))


KEYED = [
    [Op("hold once", "prepaid", "api_calls", 1, scope="new")],
    [Op("hold once", "prepaid", "api_calls", 1, scope="charged"), Op("hold", "overage", "api_calls", 1)],
    [Op("settle once", "", "", 0)],
    [Op("release", "", "", 0, pick=-1, answered=True)],
    [Op("replay", "prepaid", "api_calls", 1, pick=1, scope="charged", record="r1")],
    [Op("replay", "prepaid", "api_calls", 1, pick=1, scope="new", record="r2")],
]
"""Of each kind, what writes a mark: under way, one more repeat, charged, gone, and those of a spool."""


@pytest.mark.parametrize("wait_ms", WAITS_MS)
@pytest.mark.parametrize("at", range(len(KEYED)))
def test_a_call_under_an_idempotency_key_that_fails_has_changed_nothing(
    harness: Harness, at: int, wait_ms: int
) -> None:
    harness.send("gw-a", [Op("hold once", "prepaid", "api_calls", 1, scope="charged")])
    harness.send("gw-a", [Op("settle once", "", "", 0)])
    harness.send("gw-a", [Op("hold once", "prepaid", "api_calls", 1, scope="under way")])
    harness.now_us += wait_ms * 1000
    batch = harness.gateways["gw-a"].compose(KEYED[at], merge=True, versions={})
    assert batch.singles
    harness.prove(lambda ledger: ledger.batch("gw-a", batch, now_us=harness.now_us))


def test_a_server_without_memory_refuses_a_call_whole(harness: Harness) -> None:
    batch = harness.gateways["gw-a"].compose(
        [
            Op("settle", "", "", 0),
            Op("replay", "overage", "payments", 3, pick=1, scope="k", record="r"),
            Op("late", "new", "reports", 1),
        ],
        merge=True,
        versions={},
    )
    plan = compose_load("postpaid", None, harness.now_us // 1000, {}, "as stored", [], None)
    calls: list[Callable[[Any], Any]] = [
        lambda ledger: ledger.batch("gw-a", batch, now_us=harness.now_us),
        lambda ledger: ledger.load(plan, now_us=harness.now_us),
        lambda ledger: ledger.register("gw-c", now_us=harness.now_us),
        lambda ledger: ledger.heartbeat("gw-b", harness.gateways["gw-b"].epoch, now_us=harness.now_us),
    ]
    for call in calls:
        before = harness.stored()
        harness.client.config_set("maxmemory", 1)
        try:
            with pytest.raises(redis.exceptions.OutOfMemoryError):
                call(harness.real)
        finally:
            harness.client.config_set("maxmemory", 0)
        assert harness.stored() == before
        harness.both(call)
