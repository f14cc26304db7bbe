"""A link: one instance's numbered batches to one home partition.

At most one batch is on its way at any time. While it is, the next one gathers; so batches grow with load, and a lost reply leaves
exactly one batch in doubt, which is sent again with its number until its reply is known.

A hold waits at most its budget. After that its caller is told UNAVAILABLE, and if Valkey grants it later it is given back. While a batch
is overdue, or Valkey has failed often in a row, new holds are told so at once: nobody queues up behind a server that is gone.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
import structlog

from sidecar.ledger.batch import HOLD, Batch, decode, encode
from sidecar.ledger.keys import Keys
from sidecar.ledger.outcomes import AccountView, Code, Event, Hold
from sidecar.ledger.resp import LedgerConnectionError, Reply, ReplyError, RespConnection, encode_command
from sidecar.ledger.scripts import script

log = structlog.get_logger("sidecar.ledger")

RECONNECT_S_MIN, RECONNECT_S_MAX = 0.02, 1.0
RETRY_S = 0.05
"""Pause before a batch is repeated that the server turned away (loading, out of memory, a slot that moves)."""
SILENCE_S = 2.0
"""A connection that answers nothing for so long is given up."""
VIEWS_MAX = 200_000
ROUND_TRIP_BOUNDS_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

# Replies after which nothing was done and the same batch can be sent again, perhaps elsewhere.
_TURNED_AWAY = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "LOADING", "READONLY", "MASTERDOWN", "OOM", "BUSY", "MISCONF", "NOREPLICAS", "NOAUTH", "NOPERM", "UNBLOCKED")  # fmt: skip


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """Times in seconds. ``operations_max``: operations in one batch, which bounds how long a script runs."""

    hold_budget_s: float = 0.25
    breaker_failures: int = 5
    breaker_open_s: float = 1.0
    operations_max: int = 512
    idempotency_ttl_ms: int = 86_400_000


@dataclass(slots=True)
class LedgerCounters:
    """Totals since the start, shared by an instance's links."""

    batches: int = 0
    operations: int = 0
    holds: int = 0
    settles: int = 0
    releases: int = 0
    timeouts: int = 0
    reconnects: int = 0
    resent: int = 0
    late_grants: int = 0
    registrations: int = 0
    script_errors: int = 0
    round_trip_s: float = 0.0
    round_trip_buckets: list[int] = field(default_factory=lambda: [0] * (len(ROUND_TRIP_BOUNDS_S) + 1))


Connect = Callable[[], Awaitable[RespConnection]]


class Link:
    """``connect`` opens a connection to the server that holds ``home`` (and finds out anew which one that is)."""

    def __init__(
        self, *, instance: str, home: int, keys: Keys, connect: Connect, settings: LinkSettings,
        views: dict[str, AccountView], versions: dict[str, int], account_keys: Callable[[str], bytes], counters: LedgerCounters,
    ) -> None:  # fmt: skip
        self.instance = instance
        self.home = home
        self.epoch = 0
        self.settings = settings
        self.counters = counters
        self.origin = f"{instance}.{home:02d}"
        self._keys = keys
        self._connect = connect
        self._views = views
        self._versions = versions
        self._account_keys = account_keys
        self._instance_key = keys.instance(home, instance).encode()
        self._outbox_key = keys.outbox(home).encode()
        self._alive_key = keys.alive(home).encode()
        self._loop = asyncio.get_running_loop()
        self._connection: RespConnection | None = None
        self._number = 0
        self._pending = Batch(0, 0.0)
        self._flight: Batch | None = None
        self._flight_bytes: tuple[list[bytes], bytes] = ([], b"")
        self._flight_sent = 0.0
        self._scheduled = False
        self._failures = 0
        self._open_until = 0.0
        self._overdue = False
        self._watch: asyncio.TimerHandle | None = None
        self._maintainer: asyncio.Task[None] | None = None
        self._closing = False
        self._ready = asyncio.Event()
        self._registration: asyncio.Task[None] | None = None
        self._isolate: list[Batch] = []

    def __repr__(self) -> str:
        state = "up" if self.is_up else "down"
        return f"<Link {self.origin} {state} epoch={self.epoch} number={self._number} flight={self._flight!r} pending={self._pending!r}>"

    # What callers see

    @property
    def is_up(self) -> bool:
        """Connected, registered, and not overdue with an answer."""
        return self._connection is not None and not self._connection.closed and self.epoch > 0 and not self._overdue

    @property
    def backlog(self) -> int:
        """Operations that are not known to be done."""
        return self._pending.operations + (self._flight.operations if self._flight else 0)

    def hold(self, hold: Hold) -> None:
        """Asks for units. The hold's callback gets it back, decided, later in the loop (or at once if the ledger is known to be away)."""
        now = self._loop.time()
        if self._overdue or self._open_until > now or not self.epoch or self._closing:
            self.counters.timeouts += 1
            self._decide(hold, Code.UNAVAILABLE)
            return
        self.counters.holds += 1
        self._gather(now).add_hold(hold)
        if self._watch is None:
            self._watch = self._loop.call_later(self.settings.hold_budget_s, self._check_budgets)

    def settle(self, hold: Hold, event: Event) -> None:
        """Charges a granted hold and appends its usage event. Kept until Valkey has it, however long that takes."""
        assert hold.open, hold
        hold.open = False
        self.counters.settles += 1
        self._gather(self._loop.time()).add_settle(hold, event)

    def release(self, hold: Hold) -> None:
        """Gives a granted hold back."""
        assert hold.open, hold
        hold.open = False
        self.counters.releases += 1
        self._gather(self._loop.time()).add_release(hold)

    def settle_late(self, hold: Hold, event: Event) -> None:
        """Charges units for which no hold exists (a spool's); the hold's idempotency key makes a repetition harmless.

        The hold's callback is called when Valkey has the charge: GRANTED, or REPEAT if it had it already.
        """
        hold.epoch = -1
        self.counters.settles += 1
        self._gather(self._loop.time()).add_settle(hold, event)

    # Gathering and sending

    def _gather(self, now: float) -> Batch:
        batch = self._pending
        if not batch.operations:
            batch.epoch = self.epoch
            batch.created = now
        elif batch.epoch != self.epoch:
            batch.enter_epoch(self.epoch)
        if not self._scheduled and self._flight is None:
            self._scheduled = True
            self._loop.call_soon(self._flush)
        return batch

    def _flush(self) -> None:
        self._scheduled = False
        if self._flight is not None or self._connection is None or self._connection.closed or not self.epoch:
            return
        batch = self._next_batch()
        if batch is None:
            return
        batch.enter_epoch(self.epoch)
        self._number += 1
        batch.number = self._number
        keys, argument = encode(
            batch, self.origin, self.settings.idempotency_ttl_ms, self._versions, self._account_keys
        )
        self._flight = batch
        self._flight_bytes = (keys, argument)
        self.counters.batches += 1
        self.counters.operations += batch.operations
        self._send_flight()

    def _next_batch(self) -> Batch | None:
        if self._isolate:
            return self._isolate.pop()
        batch = self._pending
        if not batch.operations:
            return None
        if batch.operations > self.settings.operations_max:
            parts = _split(batch, self.settings.operations_max)
            self._isolate = parts[1:]
            batch = parts[0]
        self._pending = Batch(self.epoch, self._loop.time())
        return batch

    def _send_flight(self, *, whole_script: bool = False) -> None:
        assert self._connection is not None
        keys, argument = self._flight_bytes
        body = script("batch")
        head = (b"EVAL", body.text) if whole_script else (b"EVALSHA", body.sha)
        self._flight_sent = self._loop.time()
        self._connection.send(
            encode_command((*head, b"%d" % (len(keys) + 2), self._instance_key, self._outbox_key, *keys, argument)),
            self._on_reply,
        )

    # Replies

    def _on_reply(self, reply: Reply) -> None:
        batch = self._flight
        if batch is None:
            return
        if isinstance(reply, bytes):
            self._on_done(batch, reply)
        elif isinstance(reply, LedgerConnectionError):
            pass  # in doubt; the maintainer reconnects and sends it again
        elif isinstance(reply, ReplyError):
            self._on_refused(batch, str(reply))
        else:
            self._on_refused(batch, f"unexpected reply of type {type(reply).__name__}")

    def _on_done(self, batch: Batch, reply: bytes) -> None:
        elapsed = self._loop.time() - self._flight_sent
        counters = self.counters
        counters.round_trip_s += elapsed
        counters.round_trip_buckets[_bucket(elapsed)] += 1
        self._flight = None
        self._failures = 0
        self._overdue = False
        registered, _now_us, groups, singles = decode(reply)
        if not registered:
            self.epoch = 0
            if self._connection is not None:
                self._registration = self._loop.create_task(self._register_again(self._connection))
        for group, answer in zip(batch.groups.values(), groups, strict=True):
            if group.holds:
                self._deliver(group.holds, answer, batch.epoch)
        for single, answer in zip(batch.singles, singles, strict=True):
            if single.kind == HOLD:
                self._deliver((single.hold,), answer, batch.epoch)
            elif single.hold.callback is not None:
                self._decide(single.hold, answer[3])
        if self._pending.operations or self._isolate:
            self._flush()

    def _deliver(self, holds: Any, answer: list[Any], epoch: int) -> None:
        account = holds[0].account
        info = answer[0]
        if info:
            view = AccountView.from_info(orjson.loads(info))
            if account not in self._views and len(self._views) >= VIEWS_MAX:
                oldest = next(iter(self._views))
                del self._views[oldest], self._versions[oldest]
            self._views[account] = view
            self._versions[account] = view.version
        view_now = self._views.get(account)
        rate_left, day_left = answer[1], answer[2]
        at = 3
        for hold in holds:
            code = answer[at]
            hold.x, hold.y = answer[at + 1], answer[at + 2]
            at += 3
            if code == 0:
                hold.epoch = epoch
                hold.open = True
            elif code == 8 and hold.callback is not None and not self._closing:
                # Reaped while it waited: it is asked for again after the registration that is under way.
                self._gather(self._loop.time()).add_hold(hold)
                continue
            hold.rate_left = rate_left
            hold.day_left = day_left
            hold.view = view_now
            if hold.callback is None:
                if hold.open:
                    self.counters.late_grants += 1
                    self.release(hold)
                continue
            self._decide(hold, code)

    def _decide(self, hold: Hold, code: int) -> None:
        callback = hold.callback
        hold.callback = None
        hold.code = code  # type: ignore[assignment]
        if callback is not None:
            callback(hold)

    def _on_refused(self, batch: Batch, message: str) -> None:
        word = message.split(" ", 1)[0]
        if word == "NOSCRIPT" or message.startswith("NOSCRIPT"):
            self._send_flight(whole_script=True)
        elif word in _TURNED_AWAY:
            if word in ("MOVED", "ASK", "READONLY", "NOAUTH") and self._connection is not None:
                self._connection.close()  # another server has the partition now; the maintainer finds it
            else:
                self._loop.call_later(RETRY_S, self._resend)
        else:
            self._on_script_error(batch, message)

    def _resend(self) -> None:
        if self._flight is not None and self._connection is not None and not self._connection.closed:
            self.counters.resent += 1
            self._send_flight()

    def _on_script_error(self, batch: Batch, message: str) -> None:
        """The script itself failed, on data of some account. Each account is tried alone, so that one bad account costs the others nothing."""
        self.counters.script_errors += 1
        self._flight = None
        accounts = {group.account for group in batch.groups.values()} | {s.hold.account for s in batch.singles}
        if len(accounts) > 1:
            self._isolate += _by_account(batch)
        else:
            log.error("ledger script failed; these operations are not in the ledger", error=message[:300],
                      accounts=sorted(accounts), events=batch.events, singles=[s.event for s in batch.singles if s.event])  # fmt: skip
            for hold in batch.waiting():
                self._decide(hold, Code.UNAVAILABLE)
        self._flush()

    # Time limits

    def _check_budgets(self) -> None:
        self._watch = None
        now = self._loop.time()
        budget = self.settings.hold_budget_s
        waiting = False
        flight = self._flight
        if flight is not None:
            holds = flight.waiting()
            if holds and now - flight.created >= budget:
                self._overdue = True
                self._note_failure(now)
                self._give_up(holds)
            waiting = waiting or bool(holds)
        pending = self._pending
        if pending.operations:
            holds = pending.waiting()
            if holds and now - pending.created >= budget:
                self._give_up(pending.drop_holds())
                if flight is None:
                    self._note_failure(now)
            waiting = waiting or bool(pending.operations and pending.waiting())
        if waiting or self._isolate:
            self._watch = self._loop.call_later(budget / 4, self._check_budgets)

    def _give_up(self, holds: list[Hold]) -> None:
        self.counters.timeouts += len(holds)
        for hold in holds:
            self._decide(hold, Code.UNAVAILABLE)

    def _note_failure(self, now: float) -> None:
        self._failures += 1
        if self._failures >= self.settings.breaker_failures:
            self._open_until = now + self.settings.breaker_open_s

    # Connection, registration, heartbeat

    def start(self) -> None:
        """Begins to connect in the background and never stops trying."""
        self._maintainer = self._loop.create_task(self._maintain())

    async def wait_ready(self) -> None:
        """Until the instance is registered for the first time."""
        await self._ready.wait()

    async def _maintain(self) -> None:
        delay = RECONNECT_S_MIN
        while not self._closing:
            lost = asyncio.Event()
            try:
                connection = await self._connect()
                connection._on_lost = lost.set
                if connection.closed:
                    lost.set()
                await self._register(connection)
            except LedgerConnectionError as error:
                self._mark_down(str(error))
                await asyncio.sleep(delay * (0.5 + random.random()))  # noqa: S311  jitter, not a secret
                delay = min(delay * 2, RECONNECT_S_MAX)
                continue
            delay = RECONNECT_S_MIN
            self.counters.reconnects += 1
            self._connection = connection
            self._ready.set()
            if self._flight is not None:
                self.counters.resent += 1
                self._send_flight()
            else:
                self._flush()
            await lost.wait()
            if not self._closing:
                log.warning("connection to Valkey lost", server=str(connection.address), link=self.origin)

    def _mark_down(self, reason: str) -> None:
        if not self._overdue or self._flight is None:
            log.warning("Valkey is out of reach", error=reason, link=self.origin)
        self._overdue = True

    async def _register(self, connection: RespConnection) -> None:
        # An epoch that is still valid is kept: the reply to the batch in doubt may depend on it.
        if self.epoch and await self._heartbeat_on(connection):
            self._overdue = self._overdue and self._flight is not None
            return
        reply = await self._eval(connection, "register", self.instance.encode())
        if isinstance(reply, ReplyError):
            raise LedgerConnectionError(f"Valkey at {connection.address} refused to register this instance: {reply}")
        # A batch in doubt was packed for an older epoch; the script sees that and counts its settles as late.
        self.epoch, number = int(reply[0]), int(reply[1])
        self._number = max(self._number, number)
        self.counters.registrations += 1
        self._overdue = self._overdue and self._flight is not None

    async def _register_again(self, connection: RespConnection) -> None:
        try:
            await self._register(connection)
        except LedgerConnectionError:
            return  # the maintainer sees the loss and registers after it
        self._flush()

    async def heartbeat(self) -> None:
        """Tells Valkey that this instance lives; registers again if it was taken for dead."""
        connection = self._connection
        if connection is None or connection.closed or not self.epoch:
            return
        if self._flight is not None and self._loop.time() - self._flight_sent > SILENCE_S:
            connection.close()  # a server that hangs sends no reset; a new connection repeats the batch in doubt
            return
        try:
            if not await self._heartbeat_on(connection):
                self.epoch = 0
                await self._register_again(connection)
        except LedgerConnectionError:
            return  # the maintainer reconnects

    async def _heartbeat_on(self, connection: RespConnection) -> bool:
        reply = await self._eval(connection, "heartbeat", self.instance.encode(), b"%d" % self.epoch)
        if isinstance(reply, ReplyError):
            raise LedgerConnectionError(f"Valkey at {connection.address}: {reply}")
        return bool(reply == 1)

    async def _eval(self, connection: RespConnection, name: str, *arguments: bytes) -> Reply:
        body = script(name)
        tail = (b"2", self._instance_key, self._alive_key, *arguments)
        try:
            async with asyncio.timeout(SILENCE_S):
                reply = await connection.call(b"EVALSHA", body.sha, *tail)
                if isinstance(reply, ReplyError) and str(reply).startswith("NOSCRIPT"):
                    reply = await connection.call(b"EVAL", body.text, *tail)
                return reply
        except TimeoutError:
            connection.close()
            raise LedgerConnectionError(f"Valkey at {connection.address} does not answer") from None

    async def drain(self, timeout_s: float) -> bool:
        """Waits until every operation is known to be done. False if that took too long."""
        deadline = self._loop.time() + timeout_s
        while self.backlog or self._isolate:
            if self._loop.time() > deadline:
                return False
            await asyncio.sleep(0.005)
        return True

    async def leave(self) -> None:
        """Gives back what may still be held and takes this instance out of the living."""
        connection = self._connection
        if connection is None or connection.closed:
            return
        self._closing = True
        try:
            await self._eval(connection, "reap", self.instance.encode(), b"-1")
        except LedgerConnectionError:
            return  # the reaper does it after the heartbeat has aged

    async def close(self) -> None:
        """Stops. What is not done by then is lost to this process; :meth:`drain` first."""
        self._closing = True
        if self._registration is not None:
            self._registration.cancel()
        if self._watch is not None:
            self._watch.cancel()
        if self._maintainer is not None:
            self._maintainer.cancel()
            await asyncio.gather(self._maintainer, return_exceptions=True)
        for batch in (self._flight, self._pending):
            if batch is not None:
                self._give_up(batch.waiting())
        if self._connection is not None:
            self._connection.close()


def _bucket(elapsed_s: float) -> int:
    for index, bound in enumerate(ROUND_TRIP_BOUNDS_S):
        if elapsed_s <= bound:
            return index
    return len(ROUND_TRIP_BOUNDS_S)


def _by_account(batch: Batch) -> list[Batch]:
    """The same operations, a batch for each account."""
    parts: dict[str, Batch] = {}

    def part(account: str) -> Batch:
        if account not in parts:
            parts[account] = Batch(batch.epoch, batch.created)
        return parts[account]

    for key, group in batch.groups.items():
        mine = part(group.account)
        mine.groups[key] = group
        mine.operations += 1 + len(group.holds)
    for single in batch.singles:
        mine = part(single.hold.account)
        mine.singles.append(single)
        mine.operations += 1
    for event in batch.events:
        part(event[0]).events.append(event)
    return list(parts.values())


def _split(batch: Batch, operations_max: int) -> list[Batch]:
    """The same operations in batches of about ``operations_max``; one account stays in one batch unless it alone is larger."""
    out: list[Batch] = []
    for part in _by_account(batch):
        if out and out[-1].operations + part.operations <= operations_max:
            last = out[-1]
            last.groups.update(part.groups)
            last.singles += part.singles
            last.events += part.events
            last.operations += part.operations
        else:
            out.append(part)
    return out
