"""Connections to the API: a protocol for one, and the pool that keeps them.

The pool's state changes only in synchronous functions; nothing awaits in the middle of a change. A connection belongs
either to the pool's idle list, or to exactly one exchange; then its account has one of the `Places`.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, cast

from sidecar.basics.fault_reasons import reason_of
from sidecar.gateway.addresses import Address, Addresses
from sidecar.gateway.admission.places import Places
from sidecar.gateway.counters import ProxyCounters
from sidecar.gateway.parameters import ProxySettings, UpstreamTarget
from sidecar.gateway.relay import Relay
from sidecar.gateway.untaken import untaken

KEEP_ALIVE_MARGIN_S: Final = 1.0
_KEEP_ALIVE: Final = re.compile(rb"(?i)(?:^|[,;\s])timeout=\"?([0-9]{1,9})")


class UpstreamError(Exception):
    """The upstream cannot be reached. ``timed_out`` tells slow from refused; the message names the address."""

    def __init__(self, message: str, *, timed_out: bool = False, overloaded: bool = False) -> None:
        super().__init__(message)
        self.timed_out = timed_out
        self.overloaded = overloaded


class UpstreamConnection:
    """One connection; an ``asyncio.Protocol`` by its methods. Everything that arrives goes to its user; what arrives
    without one ends it. ``account`` has its place, None while it is idle; ``stream``: as a tunnel or a stream.
    ``keep_s``: how long the API keeps it without a request."""

    __slots__ = (
        "_unsent", "account", "address", "closed", "fresh", "idle_since", "keep_s", "made_at", "paused", "pool",
        "stream", "transport", "user",
    )  # fmt: skip

    def __init__(self, pool: UpstreamPool) -> None:
        self.pool = pool
        self.transport: Any = None  # an asyncio.Transport or what uvloop has for one; None until connected
        self.user: Relay | None = None
        self.account: str | None = None
        self.stream = False
        self.closed = False
        self.fresh = True
        self.paused = False
        self.address: Address | None = None
        self.made_at = monotonic()
        self.keep_s = pool.settings.keepalive_s
        self.idle_since = 0.0
        self._unsent = 0

    def __repr__(self) -> str:
        state = "closed" if self.closed else "busy" if self.user else "idle"
        return f"<UpstreamConnection {state}>"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        settings = self.pool.settings
        self.transport.set_write_buffer_limits(settings.buffer_bytes_high, settings.buffer_bytes_low)

    def data_received(self, data: bytes) -> None:
        if self.user is not None:
            self.user.upstream_data(data)
        else:
            self.close()  # bytes that answer no request: the next answer could not be trusted

    def eof_received(self) -> bool:
        return self.user is not None and self.user.upstream_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.pool.forget(self)
        user, self.user = self.user, None
        if user is not None:
            user.upstream_lost(exc)

    def pause_writing(self) -> None:
        self._unsent = untaken(self.transport)
        if self.user is not None:
            self.user.upstream_pause()

    def resume_writing(self) -> None:
        if self.user is not None:
            self.user.upstream_resume()

    def pause_reading(self) -> None:
        if not self.paused and not self.transport.is_closing():
            self.paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self.paused:
            self.paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def heed_keep_alive(self, value: bytes) -> None:
        """The API's ``Keep-Alive: timeout=5``: after so many seconds without a request it closes (RFC 2068 section
        19.7.1.1). A request that is sent just then would be lost, so the gateway is a little earlier."""
        match = _KEEP_ALIVE.search(value)
        if match is not None:
            timeout_s = int(match[1])
            self.keep_s = min(
                self.pool.settings.keepalive_s, max(0.0, timeout_s - KEEP_ALIVE_MARGIN_S, timeout_s * 0.5)
            )

    def still_taking(self) -> bool:
        """Whether the API took some of what waits for it since it was last asked, or since more came to wait."""
        before, self._unsent = self._unsent, untaken(self.transport)
        return self._unsent < before

    def end(self) -> None:
        """Ends it when what was written has gone out, after a while in any case; its user hears nothing more."""
        self.user = None
        self.transport.close()
        self.pool.abort_later(self)

    def close(self) -> None:
        """Ends it at once; its user hears nothing more."""
        self.user = None
        self.closed = True
        if self.transport is not None:
            self.transport.abort()


Waiter = Callable[[UpstreamConnection | UpstreamError], None]


class UpstreamPool:
    """Keeps connections to one target. ``acquire`` answers at once if one is idle, else when one opens or is back."""

    def __init__(self, target: UpstreamTarget, settings: ProxySettings, counters: ProxyCounters) -> None:
        self.target = target
        self.settings = settings
        self.clients = 0
        """Client connections that send their requests here."""
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._idle: list[UpstreamConnection] = []
        self._size = 0
        self._all: set[UpstreamConnection] = set()
        self._places: Places[Waiter] = Places(
            settings.upstream_connections_max, settings.upstream_waiting_max, self._holders
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._addresses = Addresses(target.host, target.port)

    def __repr__(self) -> str:
        return f"<UpstreamPool {self.target} size={self._size} idle={len(self._idle)} {self._places!r}>"

    @property
    def size(self) -> int:
        return self._size

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def waiting(self) -> int:
        return self._places.waiting

    def take_idle(self, account: str) -> UpstreamConnection | None:
        """An idle connection, the one used last (the least likely to have been closed by the other side), with a place
        for ``account``; None if there is none of either."""
        if not self._idle or not self._places.take(account):
            return None
        connection = self._pop_idle()
        if connection is None:
            self._places.give_back(account)
        else:
            connection.account = account
        return connection

    def _holders(self) -> list[str]:
        return [connection.account for connection in self._all if connection.account is not None]

    def _pop_idle(self) -> UpstreamConnection | None:
        idle = self._idle
        while idle:
            connection = idle.pop()
            if not connection.closed and not connection.transport.is_closing():
                return connection
        return None

    def acquire(self, waiter: Waiter, account: str, *, fresh: bool = False) -> bool:
        """Hands ``waiter`` a connection or an error, perhaps before this returns. ``fresh``: one not used before.

        Returns:
            whether it has to wait for others to give one back.
        """
        if not fresh:
            connection = self.take_idle(account)
            if connection is not None:
                waiter(connection)
                return False
        if self._closed:
            waiter(UpstreamError("the gateway is stopping", overloaded=True))
        elif self._size < self.settings.upstream_connections_max and self._places.take(account):
            self._open(waiter, account)
        elif self._places.wait(account, waiter):
            return True
        else:
            waiter(UpstreamError(f"all connections to {self.target} are in use", overloaded=True))
        return False

    def cancel(self, waiter: Waiter, account: str) -> None:
        """A waiter that waits in the queue no longer does."""
        self._places.forget(account, waiter)

    def may_stream(self, account: str) -> bool:
        """Whether another connection of the account may become a tunnel or a stream, which last."""
        return self._places.may_stream(account)

    def becomes_stream(self, connection: UpstreamConnection) -> None:
        """A connection is a tunnel or a stream until it ends."""
        if connection.account is not None and not connection.stream:
            connection.stream = True
            self._places.add_stream(connection.account)

    def _leave_place(self, connection: UpstreamConnection) -> None:
        account, connection.account = connection.account, None
        if account is not None:
            self._places.give_back(account, stream=connection.stream)
            connection.stream = False

    def release(self, connection: UpstreamConnection, now: float = 0.0) -> None:
        """A connection that may carry another request comes back. ``now``: the clock's time if it was just read."""
        connection.user = None
        connection.fresh = False
        now = now or monotonic()
        self._leave_place(connection)
        if connection.paused:
            connection.resume_reading()  # its last reader was slow; who comes next must not wait for that
        old = now - connection.made_at > self.settings.upstream_age_s
        if old or self._closed or connection.closed or connection.transport.is_closing():
            connection.close()
        else:
            connection.idle_since = now
            self._idle.append(connection)
            if self._places.waiting:
                self._feed_waiting()

    def forget(self, connection: UpstreamConnection) -> None:
        """A connection is gone (called once for each, when its transport is)."""
        self._size -= 1
        self._all.discard(connection)
        self._leave_place(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._feed_waiting()

    def _feed_waiting(self) -> None:
        """Gives what is free to those who wait, in turn."""
        while self._places.waiting and not self._closed:
            room = self._size < self.settings.upstream_connections_max
            connection = self._pop_idle()
            if connection is None and not room:
                return
            turn = self._places.next()
            if turn is None:
                if connection is not None:
                    self._idle.append(connection)
                return
            account, waiter = turn
            if connection is None:
                self._open(waiter, account)
            else:
                connection.account = account
                waiter(connection)

    def abort_later(self, connection: UpstreamConnection) -> None:
        """A server that takes nothing more must not keep a connection for ever."""
        self._loop.call_later(self.settings.write_timeout_s, connection.close)

    def _open(self, waiter: Waiter, account: str) -> None:
        self._size += 1
        connection = UpstreamConnection(self)
        connection.account = account
        self._all.add(connection)
        task = self._loop.create_task(self._connect(waiter, connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, waiter: Waiter, connection: UpstreamConnection) -> None:
        target, timeout_s = self.target, self.settings.connect_timeout_s
        protocol = cast(asyncio.Protocol, connection)
        try:
            async with asyncio.timeout(timeout_s):
                if target.path is not None:
                    await self._loop.create_unix_connection(lambda: protocol, target.path)
                else:
                    sock, connection.address = await self._addresses.connect()
                    connection.made_at = monotonic()
                    try:
                        await self._loop.create_connection(
                            lambda: protocol,
                            sock=sock,
                            ssl=target.tls,
                            server_hostname=target.server_hostname if target.tls else None,
                        )
                    except BaseException:
                        sock.close()
                        raise
        except TimeoutError:
            message = f"{target} did not accept a connection within {timeout_s:g} s"
            self._failed(waiter, connection, UpstreamError(message, timed_out=True))
        except (OSError, ssl.SSLError) as error:
            self._failed(waiter, connection, UpstreamError(f"{target}: {reason_of(error)}"))
        except asyncio.CancelledError:
            self._give_up(connection)
            raise
        else:
            self._counters.upstream_connects += 1
            if connection.closed or connection.transport.is_closing():
                self._failed(waiter, connection, UpstreamError(f"{target} closed a new connection at once"))
            else:
                waiter(connection)

    def _give_up(self, connection: UpstreamConnection) -> None:
        if connection.transport is None:
            self._size -= 1
            self._all.discard(connection)
            self._leave_place(connection)
        else:
            connection.close()  # it was made after all; when it is lost it is counted out

    def _failed(self, waiter: Waiter, connection: UpstreamConnection, error: UpstreamError) -> None:
        self._give_up(connection)
        waiter(error)
        self._feed_waiting()

    def sweep(self, now: float) -> None:
        """Closes connections that were idle for too long, that are too old, or whose address is the API's no more."""
        if self._size and self.target.path is None:
            self._addresses.refresh()
        oldest = now - self.settings.upstream_age_s
        stale = [
            connection
            for connection in self._idle
            if connection.idle_since < now - connection.keep_s
            or connection.made_at < oldest
            or not self._addresses.has(connection.address)
        ]
        for connection in stale:
            self._idle.remove(connection)
            connection.close()

    async def close(self) -> None:
        """Closes idle connections, refuses waiters, and stops connecting."""
        self._closed = True
        for waiter in self._places.take_all():
            waiter(UpstreamError("the gateway is stopping", overloaded=True))
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._addresses.close()
