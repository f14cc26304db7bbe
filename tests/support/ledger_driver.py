"""The real scripts on a real Valkey, spoken to in the model's words (tests/reference/messages.py).

The clock can be moved: of the shipped text only lib/time.lua, which asks Valkey's TIME, is replaced by one that reads a
key. What the ledger makes of that time, lib/clock.lua, is the shipped one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import redis

from sidecar.ledger.keys import Keys, idempotency_digest
from sidecar.ledger.ledger_format import open_arguments, partition_format
from sidecar.valkey.scripts import as_function, composed, function, script
from sidecar.valkey.topology import Client
from tests.reference.messages import (
    RELEASE,
    SETTLE,
    AccountState,
    Batch,
    Code,
    Conflict,
    Entry,
    Event,
    Fenced,
    Group,
    HomeState,
    Inexact,
    InstanceState,
    LedgerError,
    Load,
    LoadAnswer,
    Loaded,
    Outcome,
    Reply,
    Single,
    State,
    Summary,
)
from tests.support.ledger_state import account_state, entry_of, fingerprint, home_state, instance_state, pack, unpack

CLOCK_KEY = "test:clock_us"
IDEMPOTENCY_TTL_MS = 86_400_000
HOME = 0
GROUPS_PACKED = 100
"""Groups in one argument of a batch."""

GENERATION = "tests:0"

_TIME_FILE = Path(__file__).parents[2] / "lua" / "lib" / "time.lua"
_MOVABLE_TIME = f"""
local function server_time_us()
  return number(call('GET', '{CLOCK_KEY}'))
end
"""

Edit = Callable[[str], str]


@cache
def text_of(name: str, movable_clock: bool) -> str:
    """A script as it is shipped, but for the clock."""
    text = composed(name)
    if not movable_clock:
        return text
    shipped = _TIME_FILE.read_text()
    assert text.count(shipped) == 1, "lib/time.lua is not in the composed script as it is in the file"
    return text.replace(shipped, _MOVABLE_TIME)


def call_batch(client: redis.Redis, text: str, keys: list[str], *argv: Any) -> Any:
    """Calls the function whose text this is, and loads it where the server does not have it, as a link does."""
    batch = as_function("batch", text)
    name = batch.name.decode()
    try:
        return client.fcall(name, len(keys), *keys, *argv)
    except redis.exceptions.ResponseError as error:
        if "Function not found" not in str(error):
            raise
    client.function_load(batch.library.decode(), replace=True)
    return client.fcall(name, len(keys), *keys, *argv)


async def acall_batch(client: Client, keys: list[str], arguments: list[bytes]) -> Any:
    """Calls the shipped function; loads it where the server does not have it."""
    batch = function("batch")
    call = batch.name.decode(), len(keys), *keys, *arguments
    try:
        return await client.fcall(*call)
    except redis.exceptions.ResponseError as error:
        if "Function not found" not in str(error):
            raise
    await client.function_load(batch.library.decode(), replace=True)
    return await client.fcall(*call)


def one_group(epoch: int, seq: int, origin: str, events: str, group: Sequence[Any]) -> list[bytes]:
    """Arguments of a batch of one group of one account: metric, settled, released, late, [units, …]."""
    metric, settled, released, late, units = group
    head: tuple[Any, ...] = epoch, seq, origin, events, 1000, 1, [metric], []
    parts = 1, 0, 1, settled, released, late, -len(units), *units
    return [b"".join(map(pack, head)), b"".join(map(pack, parts))]


def one_answer(reply: bytes) -> list[Any]:
    """What such a batch answered: view, rate_left, day_left, code, x, y, …; empty without holds."""
    holds = unpack(reply)[2]
    return [*(holds[0] or (False, -1, -1))[:3], *holds[1:]] if holds else []


class RealLedger:
    """The scripts. ``edit`` changes their text, for tests that must see a deliberate bug found."""

    def __init__(
        self, client: redis.Redis, *, movable_clock: bool = True, edit: Edit | None = None, keys: Keys | None = None
    ) -> None:
        self.client = client
        self.keys = keys or Keys()
        self.last_raw_reply = b""
        self.last_sender = ""
        self._movable = movable_clock
        self._edit = edit
        self._now_us: int | None = None
        self._scopes: dict[bytes, str] = {}
        open_partitions(client, self.keys)

    # Instances

    def register(self, name: str, now_us: int | None = None) -> tuple[int, int]:
        epoch, seq, generation = self._run("register", self._instance_keys(name), [name, HOME], now_us)
        assert generation.decode() == GENERATION
        return epoch, seq

    def heartbeat(self, name: str, epoch: int, now_us: int | None = None) -> int:
        alive, _seq, generation = self._run("heartbeat", self._instance_keys(name), [name, epoch, ""], now_us)
        assert generation.decode() == GENERATION
        return int(alive)

    def reap(self, name: str, ttl_ms: int, now_us: int | None = None) -> int:
        return int(self._run("reap", self._instance_keys(name), [name, ttl_ms], now_us))

    def give_back(self, accounts: Iterable[str], now_us: int | None = None) -> int:
        keys = [self.keys.meta(HOME), self.keys.clock(HOME)]
        for account in sorted(accounts):
            keys += account_keys(self.keys, account)
        return int(self._run("give_back", keys, [], now_us))

    def _instance_keys(self, name: str) -> list[str]:
        keys = self.keys
        return [keys.instance(HOME, name), keys.clock(HOME), keys.alive(HOME), keys.meta(HOME)]

    # Loader

    def load(self, load: Load, now_us: int | None = None) -> LoadAnswer:
        request = [
            load.expected_version, load.account, load.status, _or_false(load.ceiling), int(load.counts_unsettled),
            load.rate_interval_us, load.burst, load.day_limit, load.view, load.about, _or_false(load.unsettled),
            load.digits, load.expected_digits, _or_false(load.fence),
            [
                [
                    plan.name, plan.start_ms, plan.end_ms, plan.following, dict(plan.prices),
                    _or_false(plan.expected_start_ms), dict(plan.counted),
                ]
                for plan in load.plans
            ],
        ]  # fmt: skip
        partition = self.keys.partition(load.account)
        keys = [
            *account_keys(self.keys, load.account), self.keys.accounts(partition), self.keys.clock(partition)
        ]  # fmt: skip
        word, *rest = self._run("load", keys, [pack(request)], now_us)
        answers: dict[bytes, Callable[..., LoadAnswer]] = {
            b"OK": Loaded, b"CONFLICT": Conflict, b"INEXACT": Inexact, b"FENCED": Fenced,
        }  # fmt: skip
        return answers[word](*rest)

    # Batches

    def batch(self, name: str, batch: Batch, now_us: int | None = None) -> Reply:
        parts_of: list[Group | Single] = [*batch.groups, *batch.singles]
        accounts = list(dict.fromkeys([*(part.account for part in parts_of), *(name for name, _ in batch.unpaid)]))
        events = b",".join(_json(event) for group in batch.groups for event in group.events)
        metrics = list(dict.fromkeys(g.metric for g in batch.groups))
        request = [
            batch.epoch, batch.seq, f"{name}.{HOME:02d}", events, IDEMPOTENCY_TTL_MS,
            len(batch.groups), metrics,
            [
                [accounts.index(s.account) + 1, s.known_version, s.metric, s.units, s.kind, *self._key_parts(s)]
                for s in batch.singles
            ],
            batch.unpaid_interval_us, batch.unpaid_burst,
            [number for account, count in batch.unpaid for number in (accounts.index(account) + 1, count)],
        ]  # fmt: skip
        parts: list[bytes] = []
        for g in batch.groups:
            # Holds of the same units in their short form, others in the long one.
            many = (len(g.holds), g.holds[0]) if len(set(g.holds)) == 1 else (-len(g.holds), *g.holds)
            numbers = g.known_version, metrics.index(g.metric) + 1, g.settled, g.released, g.late
            parts.append(b"".join(map(pack, (accounts.index(g.account) + 1, *numbers, *many))))
        arguments = [b"".join(parts[at : at + GROUPS_PACKED]) for at in range(0, len(parts), GROUPS_PACKED)]
        keys = [
            self.keys.instance(HOME, name),
            self.keys.clock(HOME),
            self.keys.outbox(HOME),
            *(key for account in accounts for key in account_keys(self.keys, account)),
        ]
        self.last_raw_reply = self._run("batch", keys, [b"".join(map(pack, request)), *arguments], now_us)
        self.last_sender = name
        registered, now, holds, singles, stepped = unpack(self.last_raw_reply)
        groups: list[Summary | None] = []
        at = 0
        for g in batch.groups:
            end = at + 1 + 3 * len(g.holds)
            groups.append(_summary(holds[at], holds[at + 1 : end]) if g.holds else None)
            at = end if g.holds else at
        assert at == len(holds)
        return Reply(
            bool(registered),
            now,
            tuple(groups),
            tuple(replace(_summary(single[:4], single[4:7]), token=single[7]) for single in singles),
            (stepped[0], stepped[1]) if stepped else None,
        )

    def mark(self, account: str, scope: str) -> bytes:
        """The field of an idempotency key."""
        return b"i" + self._digest(account, scope)

    def _key_parts(self, single: Single) -> list[Any]:
        """digest, fingerprint, p, q, event, record."""
        p, q = single.repeats_max, int(single.refuses)
        if single.kind in (SETTLE, RELEASE):
            p, q = single.epoch, single.token
        event = _json(single.event) if single.event else b""
        digest = self._digest(single.account, single.scope) if single.scope else b""
        record = self._digest(single.account, single.record) if single.record else b""
        return [digest, fingerprint(single.body), p, q, event, record]

    def _digest(self, account: str, scope: str) -> bytes:
        digest = idempotency_digest(account, scope.encode())
        self._scopes[digest] = scope
        return digest

    def _run(self, name: str, keys: list[str], argv: list[Any], now_us: int | None) -> Any:
        if self._movable and now_us != self._now_us:
            assert now_us is not None, "with a movable clock every call says what time it is"
            self.client.set(CLOCK_KEY, now_us)
            self._now_us = now_us
        text = text_of(name, self._movable)
        if self._edit is not None:
            text = self._edit(text)
        try:
            if name == "batch":
                return call_batch(self.client, text, keys, *argv)
            try:
                return self.client.evalsha(_sha(text), len(keys), *keys, *argv)
            except redis.exceptions.NoScriptError:
                return self.client.eval(text, len(keys), *keys, *argv)
        except redis.exceptions.ResponseError as error:
            word, *rest = str(error).split(" ")
            if word not in ("STALE", "LIMIT", "INVALID", "OVERFLOW", "FORMAT", "ACCOUNT"):
                raise
            raise LedgerError(f"{word} {rest[0]}" if word == "ACCOUNT" else word, str(error)) from None

    # What is stored

    def state(self, accounts: Iterable[str], instances: Iterable[str]) -> State:
        """Everything about these accounts and instances, read raw, with the whole outbox."""
        accounts, instances = list(accounts), list(instances)
        keys = self.keys
        pipe = self.client.pipeline(transaction=False)
        for account in accounts:
            pipe.get(keys.state(account))
            pipe.hgetall(keys.account(account))
        for instance in instances:
            pipe.get(keys.instance(HOME, instance))
            pipe.zscore(keys.alive(HOME), instance)
            pipe.pttl(keys.instance(HOME, instance))
        pipe.xrange(keys.outbox(HOME))
        pipe.get(keys.clock(HOME))
        pipe.hgetall(keys.meta(HOME))
        *raw, outbox, clock, meta = pipe.execute()
        of_instances = raw[2 * len(accounts) :]
        return State(
            {
                name: account_state(raw[2 * at], raw[2 * at + 1], self._scopes)
                for at, name in enumerate(accounts)
                if raw[2 * at] or raw[2 * at + 1]
            },
            {
                name: instance_state(*of_instances[3 * at : 3 * at + 3])
                for at, name in enumerate(instances)
                if of_instances[3 * at]
            },
            tuple(entry_of(fields) for _, fields in outbox),
            home_state(clock, meta),
        )

    def account(self, account: str) -> AccountState:
        return self.state([account], []).accounts[account]

    def instance(self, instance: str) -> InstanceState:
        return self.state([], [instance]).instances[instance]

    def home(self) -> HomeState:
        return self.state([], []).home

    def entries(self) -> tuple[Entry, ...]:
        return self.state([], []).outbox


def account_keys(keys: Keys, account: str) -> tuple[str, str]:
    """Of its state and of its hash, as scripts take them."""
    return keys.state(account), keys.account(account)


def open_partitions(client: redis.Redis, keys: Keys) -> None:
    """Makes a ledger where there is none."""
    text = script("open").text.decode()
    pipe = client.pipeline(transaction=False)
    for partition in range(keys.partitions):
        names, arguments = open_arguments(keys, partition, GENERATION)
        pipe.eval(text, len(names), *names, *arguments)
    for reply in pipe.execute():
        partition_format(reply)


def _or_false(value: int | None) -> int | bool:
    return False if value is None else value


@cache
def _sha(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def _json(event: Event) -> bytes:
    return json.dumps(event.as_json(), separators=(",", ":")).encode()


def _summary(head: Any, answers: list[int]) -> Summary:
    view, rate_left, day_left, version = head or (None, -1, -1, 0)
    return Summary(
        view or None,
        rate_left,
        day_left,
        tuple(Outcome(Code(answers[at]), *answers[at + 1 : at + 3]) for at in range(0, len(answers), 3)),
        version,
    )
