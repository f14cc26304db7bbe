"""A link: one instance's numbered batches to one home partition, over a connection that it keeps.

At most one batch is on its way at any time. While it is, the next one gathers (`batch_gathering`); so batches grow with
load, and a lost reply leaves exactly one batch in doubt, which is sent again with its number until its reply is known
(`batch_replies`).
"""

from __future__ import annotations

import asyncio
import random

from sidecar.basics.logger import get_logger
from sidecar.ledger.client.batch_replies import BatchReplies
from sidecar.ledger.client.sealed import chain_before
from sidecar.valkey.resp import LedgerConnectionError, RespConnection
from sidecar.valkey.role import require_primary

log = get_logger("sidecar.ledger")

RECONNECT_S_MIN, RECONNECT_S_MAX = 0.02, 1.0
FORGOTTEN_S = 2_500_000.0
"""Time without a server after which it may have forgotten the instance (FORGET_MS, 30 days), so that its number says
nothing of a loss."""


class Link(BatchReplies):
    """``connect`` finds out which server has ``home_partition`` and opens a connection to it; ``connect_to`` opens
    one to a server of the same cluster by host and port. ``is_current``: whether a server is the primary of
    ``home_partition``, as far as is known."""

    def __repr__(self) -> str:
        state = "up" if self.is_up else "down"
        return (
            f"<Link {self.origin} {state} epoch={self.epoch} number={self._number} flight={self._flight!r} "
            f"queue={len(self._queue)} pending={self._pending!r}>"
        )

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
        if not self._is_current(connection.address):
            # The primary has changed while this connection was made, when there was none to leave.
            return False
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
        """A heartbeat. False: the instance was reaped, or the server's data went back, was replaced, or has more than
        was asked of it."""
        confirmed = self._confirmed  # what is confirmed while the reply is on its way it cannot know
        beat = await self._registration.heartbeat(connection, self.epoch, self._chain)
        if beat is None:
            return True
        sent = self._confirmed if self._flight is None else max(self._confirmed, self._flight.number)
        return beat.alive and confirmed <= beat.number <= sent and beat.generation == self._generation

    def _note_generation(self, generation: str) -> None:
        if self._generation not in ("", generation):
            self.counters.generations += 1
            log.error("the ledger is not the one it was: its data was lost or replaced", link=self.origin,
                      before=self._generation, now=generation)  # fmt: skip
        self._generation = generation

    def _note_loss(self, number: int) -> None:
        """The server knows batches up to this number, and has confirmed later ones: its data went back. What it lost
        goes again under the numbers that it had, so its events get the ids that they had."""
        is_offering = bool(self._sealed)
        self._seal_flight()
        confirmed, self._confirmed = self._confirmed, number
        offered, beyond = self._window.take_after(self.home_partition, number)
        charges = sum(sealed.settles for sealed in offered)
        if self._loop.time() - self._confirmed_at > FORGOTTEN_S:
            log.error("the server may have forgotten this process; its last charges are not offered again",
                      link=self.origin, number=number, confirmed=confirmed, charges=charges)  # fmt: skip
            return
        if self._chain_key:
            if not is_offering:
                self._chain_before_loss = self._chain
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
        if self._flight is not None and self._loop.time() - self._flight_sent > self.settings.no_reply_s:
            self._drop_connection()  # a server that hangs sends no reset; a new connection repeats the batch in doubt
            return
        try:
            await require_primary(connection, self.settings.no_reply_s)
            if not await self._beats(connection):
                self._lose_epoch(epoch)
        except LedgerConnectionError as error:
            self._warn_limited("no heartbeat", error=str(error))
            connection.close()  # the maintainer connects anew, perhaps to another server

    async def check(self) -> None:
        """Looks whether the server still has what it confirmed. If not, that waits to be offered again."""
        await self.heartbeat()
        if self._entry is not None:
            await asyncio.gather(self._entry, return_exceptions=True)

    def leave_former_primary(self) -> None:
        """Leaves a server that is not the primary any more; the maintainer finds the one that is."""
        connection = self._connection
        if connection is not None and not connection.closed and not self._is_current(connection.address):
            log.warning("another server is the primary now", link=self.origin, left=str(connection.address))
            connection.close()

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
        self.has_left = True

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
