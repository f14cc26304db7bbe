"""What Valkey answers to a link's batches: outcomes, and errors (`server_answers`), which have changed nothing."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Final

from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.logger import get_logger
from sidecar.ledger.client.batch import HOLD, Batch, appended, decode, encode
from sidecar.ledger.client.batch_gathering import BatchGathering
from sidecar.ledger.client.link_settings import round_trip_bucket
from sidecar.ledger.client.outcomes import Code, Hold
from sidecar.ledger.client.sealed import chain_of
from sidecar.ledger.client.server_answers import Meaning, ServerAnswer, asked_server, server_answer
from sidecar.ledger.proof.chain import entry_value
from sidecar.valkey.command import encode_command
from sidecar.valkey.resp import LedgerConnectionError, Reply, ReplyError, RespConnection

log = get_logger("sidecar.ledger")

RETRY_S = 0.05
"""Pause before a batch is repeated that the server refused (loading, out of memory, a slot that moves)."""

_UNAVAILABLE: Final = int(Code.UNAVAILABLE)
_NO_SUMMARY: Final[list[Any]] = [False, -1, -1, 0]


class BatchReplies(BatchGathering):
    """The middle part of a link. A subclass registers the instance anew."""

    def _lose_epoch(self, epoch: int) -> None:
        """The instance has to register again."""
        raise NotImplementedError

    def _note_loss(self, number: int) -> None:
        """The server knows batches up to this number, and has confirmed later ones."""
        raise NotImplementedError

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
            # Out of step: what follows on this connection answers something else too.
            self._warn_limited("Valkey answers something else", type=type(reply).__name__)
            self._drop_connection()

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
        if batch.left_out is not None:
            answers, singles = [], _without_holds(batch, singles)
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

    def _note_done(self, batch: Batch, number: int) -> None:
        """The server did this batch before, and all up to ``number``, whoever else had lost them: a replica that took
        over has more than its primary had. What they charge is charged."""
        self._flight = None
        self._answered = True
        self._overdue = False  # the server answers
        settles = len(batch.settles())
        if settles:
            self._keep(batch, settles)
        self._confirmed = max(self._confirmed, batch.number)
        while self._sealed and self._sealed[0].number < number:
            done = self._sealed.popleft()
            self._confirmed = max(self._confirmed, done.number)
            self._window.add(done.home_partition, done.number, done.keys, done.arguments, done.settles, done.refusal)
        if self._chain_key:
            # What the next one was sent with is the value of the last one that was done.
            self._chain = (chain_of(self._sealed[0]) if self._sealed else b"") or self._chain_before_loss
        log.warning("the server has charges that another had lost", link=self.origin, number=number, batch=batch.number)
        if batch.refusal:
            self._finish_refusal(batch)
            return
        for single in batch.singles:
            if single.kind != HOLD and single.hold.callback is not None:
                self._decide(single.hold, Code.GRANTED)
        self._ask_again(batch)
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
            case Meaning.DONE:
                self._note_done(batch, answer.number)
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
        if now - self._refused_since > self.settings.no_reply_s:
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
            async with asyncio.timeout(self.settings.no_reply_s):
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


def _without_holds(batch: Batch, answers: list[Any]) -> list[Any]:
    """The answers to the singles of a batch that is offered again. The server may have done it as it was at first, with
    holds, of which it is not to hear again: their units come back with the next registration."""
    left_out = batch.left_out
    if left_out is None or len(answers) != len(batch.singles) + len(left_out):
        return answers
    return [answer for position, answer in enumerate(answers) if position not in left_out]
