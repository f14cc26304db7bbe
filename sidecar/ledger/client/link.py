"""A link: one instance's numbered batches to one home partition.

At most one batch is on its way at any time. While it is, the next one gathers; so batches grow with load, and a lost
reply leaves exactly one batch in doubt, which is sent again with its number until its reply is known.

A hold waits at most its budget. After that its caller is told UNAVAILABLE, and if Valkey grants it later it is given
back. While a batch is overdue, or Valkey has failed often in a row, new holds are told so at once: nobody queues up
behind a server that is gone.

Longer than other modules: what is in flight, who waits and what a reply means are one state, changed in one place.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.logger import get_logger
from sidecar.ledger.client.account_views import AccountViews
from sidecar.ledger.client.batch import HOLD, PARTS_MAX, Batch, appended, decode, encode, encode_refusal
from sidecar.ledger.client.link_settings import LedgerCounters, LinkSettings, round_trip_bucket
from sidecar.ledger.client.outcomes import Code, Event, Hold
from sidecar.ledger.client.registration import Registration
from sidecar.ledger.client.sealed import SealedBatch, SealedError, chain_before, unseal
from sidecar.ledger.client.server_answers import Meaning, ServerAnswer, asked_server, server_answer
from sidecar.ledger.client.settled_window import SettledWindow
from sidecar.ledger.keys import Keys
from sidecar.ledger.proof.chain import beginning, entry_value
from sidecar.valkey.command import bulk, encode_call, encode_command
from sidecar.valkey.resp import LedgerConnectionError, Reply, ReplyError, RespConnection, ServerAddress
from sidecar.valkey.role import require_primary
from sidecar.valkey.scripts import function, script

log = get_logger("sidecar.ledger")

RECONNECT_S_MIN, RECONNECT_S_MAX = 0.02, 1.0
RETRY_S = 0.05
"""Pause before a batch is repeated that the server refused (loading, out of memory, a slot that moves)."""
NO_REPLY_TIMEOUT_S = 2.0
"""A connection without a reply, or with nothing but refusals of the same batch, for so long is closed."""
WARNING_INTERVAL_S = 10.0
"""Shortest time between two of a link's warnings."""
FORGOTTEN_S = 2_500_000.0
"""Time without a server after which it may have forgotten the instance (FORGET_MS, 30 days), so that its number says
nothing of a loss."""

_UNAVAILABLE: Final = int(Code.UNAVAILABLE)
_NO_SUMMARY: Final[list[Any]] = [False, -1, -1, 0]


Connect = Callable[[], Awaitable[RespConnection]]
ConnectTo = Callable[[str, int], Awaitable[RespConnection]]


class Link:
    """``connect`` finds out which server has ``home_partition`` and opens a connection to it; ``connect_to`` opens
    one to a server of the same cluster by host and port."""

    def __init__(
        self, *, instance: str, home_partition: int, keys: Keys, connect: Connect, connect_to: ConnectTo | None,
        settings: LinkSettings, views: AccountViews, account_keys: Callable[[str], bytes], counters: LedgerCounters,
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
        self._views = views
        self._versions = views.versions
        self._account_keys = account_keys
        self._registration = Registration(
            instance, home_partition, keys, answer_s=NO_REPLY_TIMEOUT_S, create=settings.create
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
        """Value of the last entry; b"" if there is none, or no key."""
        self._closing = False
        self._ready = asyncio.Event()

    def __repr__(self) -> str:
        state = "up" if self.is_up else "down"
        return (
            f"<Link {self.origin} {state} epoch={self.epoch} number={self._number} flight={self._flight!r} "
            f"queue={len(self._queue)} pending={self._pending!r}>"
        )

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

    # Replies

    def _on_reply(self, batch: Batch, reply: Reply) -> None:
        if batch is not self._flight:
            return
        if isinstance(reply, bytes):
            self._on_done(batch, reply)
        elif isinstance(reply, LedgerConnectionError):
            pass  # in doubt; the maintainer reconnects and sends it again
        elif isinstance(reply, ReplyError):
            self._on_refused(batch, server_answer(str(reply)))
        else:
            self._on_refused(batch, server_answer(f"unexpected reply of type {type(reply).__name__}"))

    def _on_done(self, batch: Batch, reply: bytes) -> None:
        now = self._loop.time()
        elapsed = now - self._flight_sent
        counters = self.counters
        counters.round_trip_s += elapsed
        counters.round_trip_buckets[round_trip_bucket(elapsed)] += 1
        self._flight = None
        self._answered = True
        if batch.asked and now - self._flight_began < self.settings.hold_budget_s:
            # Only holds answered in time close the breaker: what nobody waits for says nothing about the next hold.
            self._failures = 0
            self._open_until = 0.0
        self._overdue = False
        self._refused_since = 0.0
        self._confirmed = batch.number
        self._confirmed_at = now
        settles = len(batch.events)
        if batch.singles:
            settles += sum(single.event is not None for single in batch.singles)
        if settles:
            self._keep(batch, settles)
        registered, now_us, answers, singles, stepped = decode(reply)
        if stepped:
            self._note_clock_step(*stepped)
        if not registered:
            self._lose_epoch(batch.epoch)
        if batch.refusal:
            self._finish_refusal(batch)
            return
        if settles and self._chain_key:
            events = appended(batch, singles)
            if len(events) > 2:
                before = self._link_before(batch.number)
                self._chain = entry_value(self._chain_key, before, self.origin, batch.number, now_us // 1000, events)
        at = 0
        for group in batch.groups.values():
            if group.holds:
                self._deliver(group.holds, answers[at] or _NO_SUMMARY, answers, at + 1, batch)
                at += 1 + 3 * len(group.holds)
        if at != len(answers):
            raise ValueError(f"{len(answers)} values answer holds that have {at}")
        for single, answer in zip(batch.singles, singles, strict=True):
            if single.kind == HOLD:
                single.hold.mark = answer[7]
                self._deliver([single.hold], answer, answer, 4, batch)
            elif single.hold.callback is not None:
                self._decide(single.hold, answer[4])
        self._go_on()

    def _keep(self, batch: Batch, settles: int) -> None:
        """It is confirmed, and offered again should the server lose it."""
        keys, arguments = self._flight_keys, self._flight_arguments
        if batch.refusal:
            keys, arguments, _ = encode(batch, self.origin, self.settings, self._versions, self._account_keys)
        self._window.add(self.home_partition, batch.number, keys, arguments, settles, batch.refusal)

    def _go_on(self) -> None:
        if self._pending.asked or self._queue or self._sealed or not self.settings.settle_delay_s:
            self._flush()
        elif self._pending.operations:
            self._schedule_flush()

    def _deliver(self, holds: list[Hold], summary: list[Any], answers: list[Any], at: int, batch: Batch) -> None:
        """Holds of one account. ``summary``: its view, what the rate leaves, what the day leaves, its version.
        ``answers``: code, x and y of each, from ``at`` on."""
        account = holds[0].account
        if summary[0]:
            self._note_view(account, summary[3], summary[0])
        view_now = self._views.by_account.get(account)
        rate_left, day_left = summary[1], summary[2]
        for hold in holds:
            code: int = answers[at]
            hold.available = answers[at + 1]
            hold.price = answers[at + 2]
            at += 3
            if code == 0:
                hold.epoch = batch.epoch
                hold.open = True
            elif code == 8:
                if hold.callback is not None and not self._closing:
                    # Reaped while it waited: it is asked for again after the registration that is under way.
                    again = self._gather()
                    self._note_asked(again, batch.asked)
                    again.add_hold(hold)
                    continue
                code = _UNAVAILABLE
            hold.rate_left = rate_left
            hold.day_left = day_left
            hold.view = view_now
            if hold.callback is not None:
                self._decide(hold, code)
            elif hold.open:
                self.counters.late_grants += 1
                self.release(hold)
            else:
                self._on_late_refusal(hold.account, code)

    def _note_view(self, account: str, version: int, packed: bytes) -> None:
        try:
            self._views.note(account, version, packed)
        except (ValueError, LookupError, TypeError) as error:
            # Written by somebody else's loader. What it says is for headers; the hold stands without it.
            self._warn_limited("an account's view cannot be read", account=account, error=reason_of(error)[:200])

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

    def _note_clock_step(self, latest_us: int, server_us: int) -> None:
        self.counters.clock_steps += 1
        log.error("the clock of Valkey was set back", link=self.origin, latest_ms=latest_us // 1000,
                  server_ms=server_us // 1000, back_s=round((latest_us - server_us) / 1e6, 3))  # fmt: skip

    # Error replies. None of them has changed anything (server_answers.py).

    def _on_refused(self, batch: Batch, answer: ServerAnswer) -> None:
        if answer.meaning is not Meaning.NOT_LOADED:
            self.counters.refusals[answer.word] += 1
        match answer.meaning:
            case Meaning.NOT_LOADED:
                assert self._connection is not None
                self._connection.send(self._load_command(), partial(self._on_loaded, batch))
            case Meaning.ELSEWHERE:
                self._warn_limited("Valkey refused a batch", error=answer.reason)
                self._drop_connection()  # another server has the partition now; the maintainer finds it
            case Meaning.REGISTER:
                self._warn_limited("the partition is not what it was", error=answer.reason)
                self.epoch = 0
                self._drop_connection()  # the maintainer registers anew
            case Meaning.ASK:
                self._follow(batch, answer)
            case Meaning.LATER:
                self._send_later(answer)
            case Meaning.ACCOUNT:
                self._leave_out(batch, answer)
            case Meaning.LOST:
                self._note_loss(answer.number)
                self._lose_epoch(self.epoch)
            case Meaning.REFUSED:
                self._try_one_by_one(batch, answer)

    def _load_command(self) -> bytes:
        return encode_command([b"FUNCTION", b"LOAD", b"REPLACE", self._function.library])

    def _on_loaded(self, batch: Batch, reply: Reply) -> None:
        """The server has the function now, or does not take it."""
        if batch is not self._flight or isinstance(reply, LedgerConnectionError):
            return
        if isinstance(reply, ReplyError):
            answer = server_answer(str(reply))
            if answer.meaning in (Meaning.ELSEWHERE, Meaning.LATER):
                self._on_refused(batch, answer)
            else:
                self._send_later(answer)  # no fault of an operation: nothing of it may be given up
        else:
            self._send_flight()

    def _send_later(self, answer: ServerAnswer) -> None:
        now = self._loop.time()
        self._warn_limited("Valkey refused a batch", error=answer.reason)
        self._refused_since = self._refused_since or now
        if now - self._refused_since > NO_REPLY_TIMEOUT_S:
            self._drop_connection()
        elif self._retry is None:
            self._retry = self._loop.call_later(RETRY_S, self._resend)

    def _resend(self) -> None:
        self._retry = None
        if self._flight is not None and self._connection is not None and not self._connection.closed:
            self.counters.resent += 1
            self._send_flight()

    def _follow(self, batch: Batch, answer: ServerAnswer) -> None:
        """The keys have moved to another server, whose the slot is not yet: this batch alone goes there."""
        server = asked_server(answer.reason)
        if server is None or self._connect_to is None:
            self._send_later(answer)
        elif self._following is None:
            self._following = self._loop.create_task(self._ask(batch, *server))

    async def _ask(self, batch: Batch, host: str, port: int) -> None:
        assert self._connect_to is not None
        connection: RespConnection | None = None
        try:
            connection = await self._connect_to(host, port)
            async with asyncio.timeout(NO_REPLY_TIMEOUT_S):
                await connection.call(b"FUNCTION", b"LOAD", b"REPLACE", self._function.library)
                if batch is not self._flight:
                    return
                connection.send(encode_command([b"ASKING"]), lambda _reply: None)
                answered = self._loop.create_future()
                connection.send(self._flight_call, answered.set_result)
                reply = await answered
        except (LedgerConnectionError, TimeoutError) as error:
            self._warn_limited("cannot reach the server that a slot moves to", error=reason_of(error))
            reply = None
        finally:
            if connection is not None:
                connection.close()
            self._following = None
        if reply is None or isinstance(reply, ReplyError | LedgerConnectionError):
            self._send_later(server_answer(str(reply)))
        else:
            self._on_reply(batch, reply)

    def _leave_out(self, batch: Batch, answer: ServerAnswer) -> None:
        """One account cannot be read or charged. The others go on under the same number, since nothing was done."""
        self.counters.script_errors += 1
        account = next((name for name, number in self._flight_accounts.items() if number == answer.account), None)
        if account is None or batch.refusal:
            self._try_one_by_one(batch, answer)
            return
        others, mine = batch.without(account)
        self._refuse(account, mine, answer)
        if others.operations:
            self._fly(others, batch.number)
        else:
            self._flight = None
            self._flush()

    def _refuse(self, account: str, batch: Batch, answer: ServerAnswer) -> None:
        """``batch``: operations of this account alone. Its holds are unavailable; its settles were served, so they are
        kept in the ledger as refused."""
        log.error("an account cannot be read or charged; its settles are kept as refused", account=account,
                  reason=answer.reason, settles=len(batch.settles()))  # fmt: skip
        waiting = batch.drop_holds()
        if batch.settles():
            batch.refusal = answer.reason
            self._queue.append(batch)
        self._give_up([hold for hold in waiting if hold.callback is not None])

    def _try_one_by_one(self, batch: Batch, answer: ServerAnswer) -> None:
        """Nobody says whose fault it is. Each account is tried alone, so that one that is bad costs the others
        nothing."""
        self._flight = None
        self._overdue = False  # the server answers
        if batch.refusal:
            self.counters.lost_settles += len(batch.settles())
            log.error("settles cannot be kept as refused; they are only in this line", reason=answer.reason,
                      why=batch.refusal, settles=[event for event, _ in batch.settles()])  # fmt: skip
            self._end_settles(batch)
        else:
            if answer.meaning is not Meaning.ACCOUNT:
                self.counters.script_errors += 1
            parts = batch.by_account()
            if len(parts) > 1:
                self._queue += parts.values()
            else:
                for account, part in parts.items():
                    self._refuse(account, part, answer)
        self._flush()

    def _finish_refusal(self, batch: Batch) -> None:
        self.counters.refused_settles += len(batch.settles())
        self._end_settles(batch)
        self._go_on()

    def _end_settles(self, batch: Batch) -> None:
        """Tells who waits for a settle (a spool) that the ledger has it, if only as refused."""
        for single in batch.singles:
            if single.hold.callback is not None:
                self._decide(single.hold, Code.REFUSED)

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
            connection: RespConnection | None = None
            worked = False
            try:
                connection = await self._connect()
                await self._enter(connection)
            except LedgerConnectionError as error:
                self._mark_down(str(error))
            except Exception:
                # Nobody restarts a maintainer: whatever it is, the next attempt may do better.
                log.exception("cannot connect to Valkey", link=self.origin)
                self._overdue = True
            else:
                worked = await self._serve(connection)
            finally:
                if connection is not None:
                    connection.close()
            if worked:
                delay = RECONNECT_S_MIN
            elif not self._closing:
                await asyncio.sleep(delay * (0.5 + random.random()))  # noqa: S311  jitter, not a secret
                delay = min(delay * 2, RECONNECT_S_MAX)

    async def _serve(self, connection: RespConnection) -> bool:
        """Lets the link use the connection until it is lost. Whether it worked, so that it is replaced at once."""
        began = self._loop.time()
        self._answered = False
        self.counters.reconnects += 1
        self._connection = connection
        self._refused_since = 0.0
        self._ready.set()
        if self._flight is not None:
            self.counters.resent += 1
            self._send_flight()
        else:
            self._flush()
        await connection.lost.wait()
        if not self._closing:
            self._warn_limited("connection to Valkey lost", server=str(connection.address))
        return self._answered or self._loop.time() - began > RECONNECT_S_MAX

    def _mark_down(self, reason: str) -> None:
        self._warn_limited("Valkey is unreachable", error=reason)
        self._overdue = True

    def _warn_limited(self, what: str, **details: str) -> None:
        now = self._loop.time()
        if now - self._last_warning > WARNING_INTERVAL_S:
            self._last_warning = now
            log.warning(what, link=self.origin, **details)

    async def _enter(self, connection: RespConnection) -> None:
        async with self._entering:
            # An epoch that is still valid is kept: the reply to the batch in doubt may depend on it.
            if not self.epoch or not await self._beats(connection):
                # A batch in doubt was packed for an older epoch; the script sees that and counts its settles as late.
                known = bool(self._generation)
                create = self.settings.create_again if known else self.settings.create
                self.epoch, number, generation = await self._registration.register(connection, create=create)
                self.counters.registrations += 1
                self._note_generation(generation)
                if known and number < self._confirmed:
                    self._note_loss(number)
                self._number = max(self._number, number)
                self._confirmed = max(self._confirmed, number)
            self._overdue = self._overdue and self._flight is not None

    async def _beats(self, connection: RespConnection) -> bool:
        """A heartbeat. False: the instance was reaped, or the server's data went back or was replaced."""
        confirmed = self._confirmed  # what is confirmed while the reply is on its way it cannot know
        beat = await self._registration.heartbeat(connection, self.epoch, self._chain)
        return beat is None or (beat.alive and beat.number >= confirmed and beat.generation == self._generation)

    def _note_generation(self, generation: str) -> None:
        if self._generation not in ("", generation):
            self.counters.generations += 1
            log.error("the ledger is not the one it was: its data was lost or replaced", link=self.origin,
                      before=self._generation, now=generation)  # fmt: skip
        self._generation = generation

    def _note_loss(self, number: int) -> None:
        """The server knows batches up to this number, and has confirmed later ones: its data went back. What it lost
        goes again under the numbers that it had, so its events get the ids that they had."""
        self._seal_flight()
        confirmed, self._confirmed = self._confirmed, number
        offered, beyond = self._window.take_after(self.home_partition, number)
        charges = sum(sealed.settles for sealed in offered)
        if self._loop.time() - self._confirmed_at > FORGOTTEN_S:
            log.error("the server may have forgotten this process; its last charges are not offered again",
                      link=self.origin, number=number, confirmed=confirmed, charges=charges)  # fmt: skip
            return
        if self._chain_key:
            self._chain = chain_before(offered, self._chain, self._chain_key)
        self._sealed.extendleft(reversed(offered))
        self._answered_number = number  # a spool has to keep them again
        counters = self.counters
        counters.losses += 1
        counters.lost_operations += charges + beyond
        counters.unrecovered_operations += beyond
        log.error("the data of Valkey went back: charges that it had confirmed are offered to it again",
                  link=self.origin, number=number, confirmed=confirmed, charges=charges + beyond,
                  lost_for_good=beyond)  # fmt: skip
        self._on_loss()

    def _seal_flight(self) -> None:
        """Takes back the batch that is on its way: what it charges keeps its number, its holds are asked for again."""
        batch, self._flight = self._flight, None
        if batch is None:
            return
        if batch.settles():
            self._sealed.appendleft(self._sealed_of(batch))
        self._ask_again(batch)

    def _ask_again(self, batch: Batch) -> None:
        """Moves the holds that somebody waits for to the batch that gathers now."""
        asked = batch.asked
        waiting = [hold for hold in batch.drop_holds() if hold.callback is not None]
        if waiting:
            pending = self._gather()
            self._note_asked(pending, asked)
            for hold in waiting:
                pending.add_hold(hold)

    def _lose_epoch(self, epoch: int) -> None:
        """Valkey says that the instance was reaped: it registers again, once for all who hear so."""
        connection = self._connection
        if self.epoch != epoch or self._closing or connection is None:
            return
        self.epoch = 0
        self._entry = self._loop.create_task(self._enter_again(connection))

    async def _enter_again(self, connection: RespConnection) -> None:
        try:
            await self._enter(connection)
        except LedgerConnectionError as error:
            self._warn_limited("this instance was reaped and cannot register", error=str(error))
            connection.close()  # the maintainer tries again
        finally:
            self._entry = None
        self._flush()

    async def heartbeat(self) -> None:
        """Tells Valkey that this instance lives; registers again if it was taken for dead."""
        connection, epoch = self._connection, self.epoch
        if connection is None or connection.closed or not epoch:
            return
        if self._flight is not None and self._loop.time() - self._flight_sent > NO_REPLY_TIMEOUT_S:
            self._drop_connection()  # a server that hangs sends no reset; a new connection repeats the batch in doubt
            return
        try:
            await require_primary(connection, NO_REPLY_TIMEOUT_S)
            if not await self._beats(connection):
                self._lose_epoch(epoch)
        except LedgerConnectionError as error:
            self._warn_limited("no heartbeat", error=str(error))
            connection.close()  # the maintainer connects anew, perhaps to another server

    def leave_unless(self, is_current: Callable[[ServerAddress], bool]) -> None:
        """Leaves a server that is not the primary any more; the maintainer finds the one that is."""
        connection = self._connection
        if connection is not None and not connection.closed and not is_current(connection.address):
            log.warning("another server is the primary now", link=self.origin, left=str(connection.address))
            connection.close()

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()

    async def drain(self, timeout_s: float) -> bool:
        """Waits until every operation is known to be done. False if that took too long."""
        deadline = self._loop.time() + timeout_s
        while self.backlog:
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
            await self._registration.leave(connection, self._chain)
        except LedgerConnectionError:
            return  # the reaper does it after the heartbeat has aged

    async def close(self) -> None:
        """Stops. :meth:`drain` first. What is not done by then: :meth:`seal_waiting`."""
        self._closing = True
        tasks = [task for task in (self._entry, self._maintainer, self._following) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for timer in (self._watch, self._retry):
            if timer is not None:
                timer.cancel()
        for batch in (self._flight, *self._queue, self._pending):
            if batch is not None:
                self._give_up(batch.waiting())
        self._drop_connection()
