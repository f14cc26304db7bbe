"""The real scripts on a real Valkey, spoken to in the model's words (tests/reference/messages.py).

The clock can be moved: of the shipped text only lib/clock.lua, which asks Valkey's TIME, is replaced by one that
reads a key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import redis

from sidecar.ledger.keys import Keys
from sidecar.valkey.scripts import as_function, composed, function
from sidecar.valkey.topology import Client
from tests.reference.messages import (
    AccountState,
    Batch,
    Code,
    Conflict,
    Entry,
    Event,
    InstanceState,
    LedgerError,
    Load,
    Loaded,
    Outcome,
    Reply,
    State,
    Summary,
)
from tests.support.ledger_state import account_state, entry_of, hour_units, instance_state, integer, pack, unpack

CLOCK_KEY = "test:clock_us"
IDEMPOTENCY_TTL_MS = 86_400_000
HOME = 0
GROUPS_PACKED = 100
"""Groups in one argument of a batch."""

_CLOCK_FILE = Path(__file__).parents[2] / "lua" / "lib" / "clock.lua"
_MOVABLE_CLOCK = f"""
local function clock()
  local us = number(call('GET', '{CLOCK_KEY}'))
  return us, floor(us / 1000)
end
"""

Edit = Callable[[str], str]


@cache
def text_of(name: str, movable_clock: bool) -> str:
    """A script as it is shipped, but for the clock."""
    text = composed(name)
    if not movable_clock:
        return text
    clock = _CLOCK_FILE.read_text()
    assert text.count(clock) == 1, "lib/clock.lua is not in the composed script as it is in the file"
    return text.replace(clock, _MOVABLE_CLOCK)


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
    head = epoch, seq, origin, 1, events, 1000, 1, [metric], []
    parts = 1, 0, 1, settled, released, late, -len(units), *units
    return [b"".join(map(pack, head)), b"".join(map(pack, parts))]


def one_answer(reply: bytes) -> list[Any]:
    """What such a batch answered: info, rate_left, day_left, code, x, y, …; empty without holds."""
    holds = unpack(reply)[2]
    return [*(holds[0] or (False, -1, -1)), *holds[1:]] if holds else []


class RealLedger:
    """The scripts. ``edit`` changes their text, for tests that must see a deliberate bug found."""

    def __init__(self, client: redis.Redis, *, movable_clock: bool = True, edit: Edit | None = None) -> None:
        self.client = client
        self.keys = Keys()
        self.last_raw_reply = b""
        self.last_sender = ""
        self._movable = movable_clock
        self._edit = edit
        self._now_us: int | None = None

    # Instances

    def register(self, name: str, accounts: Iterable[str] = (), now_us: int | None = None) -> tuple[int, int]:
        keys = [*self._instance_keys(name), *map(self.keys.account, sorted(accounts))]
        epoch, seq = self._run("register", keys, [name], now_us)
        return epoch, seq

    def heartbeat(self, name: str, epoch: int, now_us: int | None = None) -> int:
        return int(self._run("heartbeat", self._instance_keys(name), [name, epoch], now_us))

    def reap(self, name: str, ttl_ms: int, accounts: Iterable[str] = (), now_us: int | None = None) -> int:
        keys = [*self._instance_keys(name), *map(self.keys.account, sorted(accounts))]
        return int(self._run("reap", keys, [name, ttl_ms], now_us))

    def _instance_keys(self, name: str) -> list[str]:
        return [self.keys.instance(HOME, name), self.keys.alive(HOME)]

    # Loader

    def load(self, load: Load, now_us: int | None = None) -> Loaded | Conflict:
        request = [
            load.expected_version, load.account, load.status, False if load.ceiling is None else load.ceiling,
            int(load.counts_unsettled), load.rate_interval_us, load.burst, load.day_limit, dict(load.prices), load.info,
            load.period_start_ms, load.period_end_ms, load.periods,
            False if load.unsettled is None else load.unsettled, load.digits, load.expected_digits,
            False if load.expected_start_ms is None else load.expected_start_ms,
        ]  # fmt: skip
        account = load.account
        keys = [self.keys.account(account), self.keys.accounts(self.keys.partition(account))]
        word, *rest = self._run("load", keys, [pack(request)], now_us)
        return Loaded(*rest) if word == b"OK" else Conflict(*rest)

    # Batches

    def batch(self, name: str, batch: Batch, now_us: int | None = None) -> Reply:
        accounts = list(dict.fromkeys([g.account for g in batch.groups] + [s.account for s in batch.singles]))
        scopes = list(dict.fromkeys((s.account, s.scope) for s in batch.singles))
        events = b",".join(_json(event) for group in batch.groups for event in group.events)
        metrics = list(dict.fromkeys(g.metric for g in batch.groups))
        request = [
            batch.epoch, batch.seq, f"{name}.{HOME:02d}", len(accounts), events, IDEMPOTENCY_TTL_MS,
            len(batch.groups), metrics,
            [
                [
                    accounts.index(s.account) + 1, s.known_version, s.metric, s.units,
                    scopes.index((s.account, s.scope)) + 1, s.kind, _json(s.event) if s.event else b"",
                ]
                for s in batch.singles
            ],
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
            self.keys.outbox(HOME),
            *map(self.keys.account, accounts),
            *(self.idempotency_key(account, scope) for account, scope in scopes),
        ]
        self.last_raw_reply = self._run("batch", keys, [b"".join(map(pack, request)), *arguments], now_us)
        self.last_sender = name
        registered, now, holds, singles = unpack(self.last_raw_reply)
        groups: list[Summary | None] = []
        at = 0
        for g in batch.groups:
            end = at + 1 + 3 * len(g.holds)
            groups.append(_summary([*(holds[at] or (False, -1, -1)), *holds[at + 1 : end]]) if g.holds else None)
            at = end if g.holds else at
        assert at == len(holds)
        return Reply(
            bool(registered),
            now,
            tuple(groups),
            tuple(_summary(single) for single in singles),
        )

    def idempotency_key(self, account: str, scope: str) -> str:
        return self.keys.idempotency(account, scope.encode())

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
            word = str(error).split(" ", 1)[0]
            if word not in ("STALE", "LIMIT", "HELD", "INVALID", "OVERFLOW"):
                raise
            raise LedgerError(word, str(error)) from None

    # What is stored

    def state(self, accounts: Iterable[str], instances: Iterable[str]) -> State:
        """Everything about these accounts and instances, read raw, with the whole outbox and what every hour counts."""
        accounts, instances = list(accounts), list(instances)
        keys = self.keys
        pipe = self.client.pipeline(transaction=False)
        for account in accounts:
            pipe.hgetall(keys.account(account))
        for instance in instances:
            pipe.hgetall(keys.instance(HOME, instance))
            pipe.zscore(keys.alive(HOME), instance)
            pipe.pttl(keys.instance(HOME, instance))
        pipe.xrange(keys.outbox(HOME))
        raw = pipe.execute()
        names = {keys.account(account).encode(): account for account in accounts}
        hashes = raw[: len(accounts)]
        beats = raw[len(accounts) : -1]
        return State(
            {name: account_state(fields) for name, fields in zip(accounts, hashes, strict=True) if fields},
            {
                name: instance_state(beats[3 * at], beats[3 * at + 1], beats[3 * at + 2], names)
                for at, name in enumerate(instances)
                if beats[3 * at]
            },
            tuple(entry_of(fields) for _, fields in raw[-1]),
            self.hours(),
        )

    def hours(self) -> dict[tuple[int, str, str], int]:
        """(hour, account, metric) to the units settled in it, of all hours that are kept."""
        prefix = self.keys.hour(HOME, 0)[:-1].encode()
        found: dict[tuple[int, str, str], int] = {}
        stored: Any = self.client.keys(prefix + b"*")
        for key in stored:
            hour = integer(key.removeprefix(prefix))
            assert key.decode() == self.keys.hour(HOME, hour)
            fields: Any = self.client.hgetall(key)
            found |= hour_units(hour, fields, _AccountNames(self.keys))
        return found

    def account(self, account: str) -> AccountState:
        return self.state([account], []).accounts[account]

    def instance(self, instance: str, accounts: Iterable[str]) -> InstanceState:
        return self.state(accounts, [instance]).instances[instance]

    def entries(self) -> tuple[Entry, ...]:
        return self.state([], []).outbox


class _AccountNames(dict[bytes, str]):
    """An account's key to its id, whichever accounts there are."""

    def __init__(self, keys: Keys) -> None:
        super().__init__()
        self._keys = keys

    def __missing__(self, key: bytes) -> str:
        name = key.decode().split(":", 3)[3]
        assert self._keys.account(name).encode() == key
        return name


@cache
def _sha(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def _json(event: Event) -> bytes:
    return json.dumps(event.as_json(), separators=(",", ":")).encode()


def _summary(answer: list[Any]) -> Summary:
    info, rate_left, day_left, *outcomes = answer
    return Summary(
        info or None,
        rate_left,
        day_left,
        tuple(Outcome(Code(outcomes[at]), *outcomes[at + 1 : at + 3]) for at in range(0, len(outcomes), 3)),
    )
