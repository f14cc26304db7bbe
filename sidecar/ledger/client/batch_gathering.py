"""What waits for Valkey: holds, settles and releases gather in batches, and go one batch at a time.

A hold waits at most its budget. After that its caller is told UNAVAILABLE, and if Valkey grants it later it is given
back. While a batch is overdue, or Valkey has failed often in a row, new holds are told so at once: nobody queues up
behind a server that is gone.

Longer than other modules: what is in flight and who waits are one state, changed in one place.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from sidecar.basics.logger import get_logger
from sidecar.ledger.client.account_views import AccountViews
from sidecar.ledger.client.batch import PARTS_MAX, Batch, encode, encode_refusal
from sidecar.ledger.client.link_settings import LedgerCounters, LinkSettings
from sidecar.ledger.client.outcomes import Code, Event, Hold
from sidecar.ledger.client.registration import Registration
from sidecar.ledger.client.sealed import SealedBatch, SealedError, unseal
from sidecar.ledger.client.settled_window import SettledWindow
from sidecar.ledger.keys import Keys
from sidecar.ledger.proof.chain import beginning
from sidecar.valkey.command import bulk, encode_call, encode_command
from sidecar.valkey.resp import Reply, RespConnection, ServerAddress
from sidecar.valkey.scripts import function, script

log = get_logger("sidecar.ledger")

WARNING_INTERVAL_S = 10.0
"""Shortest time between two of a link's warnings."""

_UNAVAILABLE: Final = int(Code.UNAVAILABLE)

Connect = Callable[[], Awaitable[RespConnection]]
ConnectTo = Callable[[str, int], Awaitable[RespConnection]]


class BatchGathering:
    """The lower part of a link. A subclass reads replies (`_on_reply`) and keeps the connection."""

    def __init__(
        self, *, instance: str, home_partition: int, keys: Keys, connect: Connect, connect_to: ConnectTo | None,
        is_current: Callable[[ServerAddress], bool], settings: LinkSettings, views: AccountViews,
        account_keys: Callable[[str], bytes], counters: LedgerCounters,
        window: SettledWindow, on_loss: Callable[[], None], on_late_refusal: Callable[[str, int], None],
    ) -> None:  # fmt: skip
        self.instance = instance
        self.home_partition = home_partition
        self.epoch = 0
        self.settings = settings
        self.counters = counters
        self.origin = f"{instance}.{home_partition:02d}"
        self._connect = connect
        self._connect_to = connect_to
        self._is_current = is_current
        self._views = views
        self._versions = views.versions
        self._account_keys = account_keys
        self._registration = Registration(
            instance, home_partition, keys, answer_s=settings.no_reply_s, create=settings.create
        )
        self._function = function("batch")
        self._first_keys = [
            bulk(self._registration.instance_key),
            bulk(self._registration.clock_key),
            bulk(keys.outbox(home_partition).encode()),
        ]
        self._refused_key = keys.refused(home_partition).encode()
        self._operations_max = min(settings.operations_max, PARTS_MAX)
        self._loop = asyncio.get_running_loop()
        self._connection: RespConnection | None = None
        self._window = window
        self._on_loss = on_loss
        self._on_late_refusal = on_late_refusal
        self._number = 0
        self._confirmed = 0
        self._confirmed_at = self._loop.time()
        self._answered_number = 0
        """Up to which `seal_waiting` has answered."""
        self._pending = Batch(0)
        self._queue: deque[Batch] = deque()
        self._sealed: deque[SealedBatch] = deque()
        """Numbered batches that go before everything else, in the order of their numbers."""
        self._flight: Batch | None = None
        self._flight_call = b""
        self._flight_accounts: dict[str, int] = {}
        self._flight_keys: list[bytes] = []
        self._flight_arguments: list[bytes] = []
        self._flight_sent = 0.0
        self._flight_began = 0.0
        self._refused_since = 0.0
        self._answered = False
        self._scheduled = False
        self._flush_scheduled = False
        self._failures = 0
        self._open_until = 0.0
        self._overdue = False
        self._last_warning = float("-inf")
        self._watch: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._maintainer: asyncio.Task[None] | None = None
        self._entering = asyncio.Lock()
        self._entry: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None
        self._generation = ""
        self._chain_key = settings.chain_key
        self._chain = b""
        self._chain_before_loss = b""
        """Value of the last entry; b"" if there is none, or no key."""
        self._closing = False
        self.has_left = False
        """It left a server that had all that it had confirmed."""
        self._ready = asyncio.Event()

    def _on_reply(self, batch: Batch, reply: Reply) -> None:
        """Valkey has answered a batch, or the connection has ended."""
        raise NotImplementedError

    # What callers see

    @property
    def is_up(self) -> bool:
        """Connected, registered, and not overdue with an answer."""
        return self.is_connected and self.epoch > 0 and not self._overdue

    @property
    def is_connected(self) -> bool:
        return self._connection is not None and not self._connection.closed

    @property
    def backlog(self) -> int:
        """Operations that are not known to be done."""
        waiting = self._pending.operations + sum(batch.operations for batch in self._queue)
        waiting += sum(sealed.settles for sealed in self._sealed)
        return waiting + (self._flight.operations if self._flight else 0)

    def hold(self, hold: Hold) -> None:
        """Asks for units. The hold's callback gets it back, decided, later in the loop (or at once if the ledger is
        known to be away)."""
        if self._overdue or self._closing or not (self.epoch or self._entry) or self._breaker_is_open():
            self.counters.timeouts += 1
            self._decide(hold, Code.UNAVAILABLE)
            return
        self.counters.holds += 1
        batch = self._gather()
        if not batch.asked:
            self._note_asked(batch, self._loop.time())
        batch.add_hold(hold)

    def _note_asked(self, batch: Batch, asked: float) -> None:
        if not batch.asked or asked < batch.asked:
            batch.asked = asked
        if self._watch is None:
            self._watch = self._loop.call_later(self.settings.hold_budget_s, self._check_budgets)

    def _breaker_is_open(self) -> bool:
        return self._open_until > 0.0 and self._open_until > self._loop.time()

    def settle(self, hold: Hold, event: Event) -> None:
        """Charges a granted hold and appends its usage event. Kept until Valkey has it, however long that takes."""
        assert hold.open, hold
        hold.open = False
        self.counters.settles += 1
        self._pending_with_delay().add_settle(hold, event)

    def release(self, hold: Hold, unpaid: bool = False) -> None:
        """Gives a granted hold back. ``unpaid``: of a request that the API answered."""
        assert hold.open, hold
        hold.open = False
        self.counters.releases += 1
        self._pending_with_delay().add_release(hold, unpaid)

    def settle_late(self, hold: Hold, event: Event) -> None:
        """Charges units for which no hold exists, unless it is a free repeat under the hold's idempotency key."""
        hold.epoch = -1
        if hold.key is not None:
            hold.record = b""
        self.counters.settles += 1
        self._gather().add_settle(hold, event)

    # What waits

    @property
    def confirmed(self) -> int:
        """Number of the last batch that has a reply."""
        return self._confirmed

    @property
    def number(self) -> int:
        """Number of the last batch that was sent or sealed."""
        return self._number

    def is_stuck(self, after_s: float) -> bool:
        """Whether charges wait for a server that is away, or has not done a batch for so long."""
        if self._flight is not None:
            return self._loop.time() - self._flight_began >= after_s
        return bool(self.backlog) and not (self.is_connected and self.epoch)

    def seal_waiting(self) -> list[SealedBatch]:
        """Gives every charge that waits a number that it keeps, and answers those that were not answered before; the
        batch that is on its way too: it may be done, and does nothing a second time."""
        flight = self._flight
        found: list[SealedBatch] = []
        if flight is not None and flight.number > self._answered_number and flight.settles():
            found.append(self._sealed_of(flight))
        waiting = [*self._queue, self._pending]
        self._queue.clear()
        self._pending = Batch(self.epoch)
        for batch in waiting:
            self._ask_again(batch)
            whole = batch.operations <= self._operations_max or bool(batch.refusal)
            for part in [batch] if whole else batch.split(self._operations_max):
                if part.settles():
                    part.number = self._number = self._number + 1
                    self._sealed.append(self._sealed_of(part, anew=True))
                elif part.operations:
                    self._queue.append(part)
        found += [sealed for sealed in self._sealed if sealed.number > self._answered_number]
        if found:
            self._answered_number = found[-1].number
        if self._flight is None and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)
        return found

    def _sealed_of(self, batch: Batch, *, anew: bool = False) -> SealedBatch:
        """What it charges. ``anew``: it is not the one that was encoded last."""
        settles = len(batch.settles())
        keys, arguments = self._flight_keys, self._flight_arguments
        if anew or batch.refusal:
            keys, arguments, _ = encode(batch, self.origin, self.settings, self._versions, self._account_keys)
        now_ms = int(time.time() * 1000)
        return SealedBatch(self.home_partition, batch.number, keys, arguments, settles, now_ms, batch.refusal)

    # Gathering and sending

    def _gather(self) -> Batch:
        batch = self._pending
        if batch.epoch != self.epoch:
            batch.enter_epoch(self.epoch)
        if not self._scheduled and self._flight is None:
            self._scheduled = True
            self._loop.call_soon(self._flush)
        return batch

    def _pending_with_delay(self) -> Batch:
        """For operations without a waiting caller: they go with the next hold, or after ``settle_delay_s``."""
        if not self.settings.settle_delay_s:
            return self._gather()
        batch = self._pending
        if batch.epoch != self.epoch:
            batch.enter_epoch(self.epoch)
        if not self._scheduled and self._flight is None:
            self._schedule_flush()
        return batch

    def _schedule_flush(self) -> None:
        # The timer is never cancelled: at worst it flushes early what was gathered after another flush.
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_later(self.settings.settle_delay_s, self._delayed_flush)

    def _delayed_flush(self) -> None:
        self._flush_scheduled = False
        self._flush()

    def _flush(self) -> None:
        self._scheduled = False
        if self._flight is not None or self._connection is None or self._connection.closed or not self.epoch:
            return
        batch = self._next_batch()
        if batch is None:
            return
        batch.enter_epoch(self.epoch)
        number = batch.number
        if not number:
            number = self._number = self._number + 1
        self._flight_began = self._loop.time()
        self.counters.batches += 1
        self.counters.operations += batch.operations
        self._fly(batch, number)

    def _fly(self, batch: Batch, number: int) -> None:
        """Makes this the batch on its way, under a number that no batch has that may have been done."""
        batch.number = number
        self._flight = batch
        if batch.refusal:
            argument = encode_refusal(batch, self.origin, self._confirmed)
            names = (self._registration.instance_key, self._registration.clock_key, self._refused_key)
            self._flight_call = encode_command([b"EVAL", script("refuse").text, b"3", *names, argument])
        else:
            keys, arguments, self._flight_accounts = encode(
                batch,
                self.origin,
                self.settings,
                self._versions,
                self._account_keys,
                self._confirmed,
                self._link_before(number),
            )
            self._flight_keys, self._flight_arguments = keys, arguments
            count = len(self._first_keys) + 2 * len(keys)
            self._flight_call = encode_call(self._function.name, count, [*self._first_keys, *keys], arguments)
        self._send_flight()

    def _link_before(self, number: int) -> bytes:
        """What an entry of this batch carries."""
        if self._chain or not self._chain_key:
            return self._chain
        return beginning(self._chain_key, self.origin, number)

    def _next_batch(self) -> Batch | None:
        while self._sealed:
            sealed = self._sealed.popleft()
            try:
                return unseal(sealed)
            except SealedError as error:
                self.counters.lost_settles += sealed.settles
                log.error("a sealed batch cannot be read, its charges are lost", link=self.origin,
                          number=sealed.number, charges=sealed.settles, error=str(error))  # fmt: skip
        if self._queue:
            return self._queue.popleft()
        batch = self._pending
        if not batch.operations:
            return None
        self._pending = Batch(self.epoch)
        if batch.operations > self._operations_max:
            self._queue += batch.split(self._operations_max)
            batch = self._queue.popleft()
        return batch

    def _send_flight(self) -> None:
        batch = self._flight
        assert self._connection is not None
        assert batch is not None
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._flight_sent = self._loop.time()
        # The reply is taken for this batch alone: one that was sent twice is answered twice.
        self._connection.send(self._flight_call, partial(self._on_reply, batch))

    def _ask_again(self, batch: Batch) -> None:
        """Moves the holds that somebody waits for to the batch that gathers now."""
        asked = batch.asked
        waiting = [hold for hold in batch.drop_holds() if hold.callback is not None]
        if waiting:
            pending = self._gather()
            self._note_asked(pending, asked)
            for hold in waiting:
                pending.add_hold(hold)

    def _seal_flight(self) -> None:
        """Takes back the batch that is on its way: what it charges keeps its number, its holds are asked for again."""
        batch, self._flight = self._flight, None
        if batch is None:
            return
        if batch.settles():
            self._sealed.appendleft(self._sealed_of(batch))
        self._ask_again(batch)

    def _decide(self, hold: Hold, code: int) -> None:
        callback = hold.callback
        hold.callback = None
        hold.code = code
        if callback is not None:
            try:
                callback(hold)
            except Exception:
                # One caller's fault must not cost the others of the batch their answer.
                log.exception("the callback of a hold failed", hold=repr(hold))

    # Time limits

    def _check_budgets(self) -> None:
        self._watch = None
        now = self._loop.time()
        too_old = now - self.settings.hold_budget_s
        given_up: list[Hold] = []
        flight = self._flight
        if flight is not None and flight.asked and flight.asked <= too_old:
            given_up += flight.waiting()
        for batch in (*self._queue, self._pending):
            if batch.asked and batch.asked <= too_old:
                given_up += batch.drop_holds()
        if given_up:
            if flight is not None and self._flight_began <= too_old:
                self._overdue = True
            self._note_failure(now)
        oldest = min(
            (b.asked for b in (flight, *self._queue, self._pending) if b is not None and b.asked > too_old), default=0.0
        )
        if oldest:
            self._watch = self._loop.call_later(max(0.001, oldest - too_old), self._check_budgets)
        self._give_up(given_up)  # last, since whoever is told may ask again

    def _give_up(self, holds: list[Hold]) -> None:
        self.counters.timeouts += len(holds)
        for hold in holds:
            self._decide(hold, Code.UNAVAILABLE)

    def _note_failure(self, now: float) -> None:
        self._failures += 1
        if self._failures >= self.settings.breaker_failures:
            self._open_until = now + self.settings.breaker_open_s

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _warn_limited(self, what: str, **details: str) -> None:
        now = self._loop.time()
        if now - self._last_warning > WARNING_INTERVAL_S:
            self._last_warning = now
            log.warning(what, link=self.origin, **details)
