"""The server of one process: listening, counting connections, sweeping, draining."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import cast

from sidecar.basics.listening import listening_sockets
from sidecar.basics.logger import get_logger
from sidecar.gateway import errors
from sidecar.gateway.connection import ClientConnection, Owner
from sidecar.gateway.context import GatewayContext
from sidecar.gateway.parameters import OriginalDestinations, UpstreamTarget

log = get_logger("sidecar.gateway")


class Gateway(Owner):
    """Serves connections with the parts of a `GatewayContext`, and the pools of the APIs behind it."""

    def __init__(self, context: GatewayContext) -> None:
        self.context = context
        self.connections: set[ClientConnection] = set()
        self._accepting = True
        self._delay_skipped = asyncio.Event()
        self._wanted: OriginalDestinations | None = None
        self._servers: list[asyncio.AbstractServer] = []
        self._sweeper: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        context = self.context
        return f"<Gateway connections={len(self.connections)} {context.destinations!r} draining={context.draining}>"

    # life

    async def listen(
        self,
        host: str,
        port: int,
        upstream: UpstreamTarget | OriginalDestinations,
        *,
        tls: ssl.SSLContext | None = None,
        backlog: int = 1024,
        reuse_port: bool = False,
    ) -> int:
        """Accepts connections whose requests go to ``upstream``; returns the port.

        Raises:
            OSError: the address cannot be bound.
        """
        sockets = listening_sockets(host, port, reuse_port=reuse_port)
        bound: int = sockets[0].getsockname()[1]
        if isinstance(upstream, OriginalDestinations):
            pool = None
            self._wanted = replace(upstream, own_ports=upstream.own_ports | {bound})
        else:
            pool = self.context.destinations.fixed(upstream)
        for sock in sockets:
            server = await self.context.loop.create_server(
                lambda: cast(asyncio.Protocol, ClientConnection(self.context, self, pool)),
                sock=sock,
                ssl=tls,
                backlog=backlog,
            )
            self._servers.append(server)
        if self._sweeper is None:
            self._sweeper = self.context.loop.create_task(self._sweep())
        return bound

    async def drain(self, timeout_s: float, delay_s: float = 0.0) -> bool:
        """Ends in order: connections close with their next answer, and after ``delay_s``, in which new ones are still
        served, no more are accepted and idle ones end. Then requests end and settle what they hold. False if some had
        to be cut off."""
        self.context.draining = True
        if delay_s > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._delay_skipped.wait(), delay_s)
        self._accepting = False
        for server in self._servers:
            server.close()
        for connection in list(self.connections):
            connection.close_if_idle()
        deadline = monotonic() + timeout_s
        while (self.connections or self.context.detached) and monotonic() < deadline:
            await asyncio.sleep(0.02)
        clean = not self.connections and not self.context.detached
        for connection in list(self.connections):
            if connection.relay is not None:
                connection.relay.stopped()
            connection.abort()
        if not clean:
            for exchange in list(self.context.detached):
                exchange.timed_out()
            for _ in range(4):  # an aborted connection hears of it in the next turn, one with TLS in the turn after
                await asyncio.sleep(0)
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self.context.destinations.close()
        return clean

    def skip_drain_delay(self) -> None:
        """Ends the delay of a drain, in which new connections are still served."""
        self._delay_skipped.set()

    async def _sweep(self) -> None:
        settings = self.context.settings
        shortest = min(
            settings.header_timeout_s, settings.idle_timeout_s, settings.body_timeout_s, settings.response_timeout_s,
            settings.upstream_idle_timeout_s, settings.write_timeout_s, settings.stream_idle_timeout_s,
        )  # fmt: skip
        period = min(0.5, max(0.02, shortest / 4))
        while True:
            await asyncio.sleep(period)
            now = monotonic()
            for connection in list(self.connections):
                self._check(connection.sweep, now)
            for exchange in list(self.context.detached):
                self._check(exchange.sweep, now)
            self.context.destinations.sweep(now)

    @staticmethod
    def _check(sweep: Callable[[float], None], now: float) -> None:
        try:
            sweep(now)
        except Exception:  # a fault in one connection must not take the time limits from all others
            log.exception("checking time limits failed")

    # connections

    def admit(self, connection: ClientConnection) -> bool:
        """Counts a new connection in, unless the limit is reached, the gateway stops, or it leads nowhere."""
        if not self._accepting or len(self.connections) >= self.context.settings.connections_max:
            self.context.counters.connections_refused += 1
            connection.transport.write(self.context.refuse_unread(errors.OVERLOADED))
            connection.transport.close()
            return False
        if connection.pool is None:
            assert self._wanted is not None
            connection.pool = self.context.destinations.of(connection.transport.get_extra_info("socket"), self._wanted)
            if connection.pool is None:
                self.context.counters.connections_refused += 1
                self.context.note_upstream_failure(
                    "a client was on its way to a port that is not served, or came here directly"
                )
                connection.abort()
                return False
        connection.pool.clients += 1
        self.context.counters.connections_accepted += 1
        self.connections.add(connection)
        return True

    def dismiss(self, connection: ClientConnection) -> None:
        """Counts a connection out that has ended."""
        if connection in self.connections:
            self.connections.remove(connection)
            assert connection.pool is not None
            connection.pool.clients -= 1
