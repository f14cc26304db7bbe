"""The server of one process: listening, counting connections, sweeping, draining."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import Final, cast

from sidecar.basics.listening import listening_sockets, plain_address
from sidecar.basics.logger import get_logger
from sidecar.gateway import errors
from sidecar.gateway.admission.acceptor import Acceptor, Arrival, Maker
from sidecar.gateway.admission.shedding import REASONS, Candidate, Handshakes, Standing, choose
from sidecar.gateway.connection import ClientConnection, Owner
from sidecar.gateway.context import GatewayContext
from sidecar.gateway.counters import SHED_CONNECTIONS
from sidecar.gateway.parameters import OriginalDestinations, UpstreamTarget
from sidecar.gateway.upstream import UpstreamPool

SHED_PAUSE: Final = 8.0
"""How many times as long as a look at all connections takes nobody looks again, if too few of them could give way."""
log = get_logger("sidecar.gateway")

SWEEP_S_MAX: Final = 0.001
"""How long time limits are looked at before requests have their turn."""


class Gateway(Owner):
    """Serves connections with the parts of a `GatewayContext`, and the pools of the APIs behind it."""

    def __init__(self, context: GatewayContext) -> None:
        self.context = context
        self.connections: set[ClientConnection] = set()
        most = context.settings.connections_max
        self.handshakes: Handshakes[Arrival] = Handshakes(min(context.settings.handshakes_max, max(1, most // 4)))
        self._crowded_at = -(-most * 4 // 5)
        self._leaving: set[ClientConnection] = set()
        self._shed_again = 0.0
        self._relieve_again = 0.0
        self._acceptors: list[Acceptor] = []
        self._accepting = True
        self._delay_skipped = asyncio.Event()
        self._wanted: OriginalDestinations | None = None
        self._servers: list[asyncio.AbstractServer] = []
        self._sweeper: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        context = self.context
        return f"<Gateway connections={self.taken} {context.destinations!r} draining={context.draining}>"

    # life

    async def listen(
        self,
        host: str,
        port: int,
        upstream: UpstreamTarget | OriginalDestinations,
        *,
        tls: ssl.SSLContext | None = None,
        proxy_protocol: bool = False,
        backlog: int = 1024,
        reuse_port: bool = False,
    ) -> int:
        """Accepts connections whose requests go to ``upstream``; returns the port. ``proxy_protocol``: each begins with
        a header of the PROXY protocol, version 2.

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
        if tls is not None or proxy_protocol:
            make = self._maker(pool)
            for sock in sockets:
                acceptor = Acceptor(self.context, self, make, sock, tls=tls, proxy_protocol=proxy_protocol)
                acceptor.start(backlog)
                self._acceptors.append(acceptor)
            sockets = []
        for sock in sockets:
            server = await self.context.loop.create_server(
                lambda: cast(asyncio.Protocol, ClientConnection(self.context, self, pool)),
                sock=sock,
                backlog=backlog,
            )
            self._servers.append(server)
        if self._sweeper is None:
            self._sweeper = self.context.loop.create_task(self._sweep())
        return bound

    def _maker(self, pool: UpstreamPool | None) -> Maker:
        def make(arrival: Arrival) -> asyncio.Protocol:
            connection = ClientConnection(self.context, self, pool, handshake=arrival, source=arrival.source)
            return cast(asyncio.Protocol, connection)

        return make

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
        for acceptor in self._acceptors:
            acceptor.close()
        for arrival in self.handshakes:
            arrival.drop()
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
                exchange.given_up()
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
            began = now
            for connection in list(self.connections):
                if connection in self.connections:
                    self._check(connection.sweep, now)
                if monotonic() - began > SWEEP_S_MAX:
                    await asyncio.sleep(0)  # thousands may end at once, and requests are not to wait for all of them
                    began = monotonic()
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

    @property
    def taken(self) -> int:
        """Client connections, with those whose handshake is under way."""
        return len(self.connections) + len(self.handshakes) + len(self.handshakes.dropped)

    def make_room(self) -> bool:
        """Whether there is room for one connection more. When it gets scarce others give way."""
        if self.taken - len(self._leaving) >= self._crowded_at:
            self._shed_connections()
        if self.taken < self.context.settings.connections_max:
            return True
        for connection in [*self._leaving]:
            connection.abort()  # there is room in the next turn
        return False

    def _shed_connections(self) -> None:
        """Some more than needed, so that the next few find room without a look at all connections."""
        now = monotonic()
        if now < self._shed_again:
            return
        needed = self.taken - len(self._leaving) - self._crowded_at + 1
        candidates = [Candidate(each, each.standing(), each.since(), each.share_key()) for each in self.connections]
        chosen = choose(candidates, needed + self.context.settings.connections_max // 16)
        for each in chosen:
            each.connection.give_way(REASONS[each.standing])
        if len(chosen) < needed:
            self._shed_again = _pause_after(now)

    def relieve_heads(self, connection: ClientConnection) -> None:
        now = monotonic()
        if now < self._relieve_again:
            return
        needed = self.context.head_bytes - self.context.settings.head_buffers_bytes // 10 * 7
        candidates = []
        for each in self.connections:
            if each.buffered and each is not connection:
                standing = Standing.KNOWN_PARTIAL_HEAD if each.account else Standing.PARTIAL_HEAD
                candidates.append(Candidate(each, standing, each.since(), each.share_key(), each.buffered))
        chosen = choose(candidates, needed)
        for candidate in chosen:
            candidate.connection.drop_heads()
        if sum(candidate.size for candidate in chosen) < needed:
            self._relieve_again = _pause_after(now)

    def leaves(self, connection: ClientConnection) -> None:
        if connection in self.connections:
            self._leaving.add(connection)

    def admit(self, connection: ClientConnection) -> bool:
        """Counts a new connection in, unless the limit is reached, the gateway stops, or it leads nowhere."""
        if isinstance(connection.handshake, Arrival):  # it has had its room since it was accepted
            self.handshakes.remove(connection.handshake)
            connection.handshake = None
            has_room = True
        else:
            has_room = self.make_room()
        if not self._accepting or not has_room:
            if self._accepting:
                self.note_refused(connection.transport.get_extra_info("peername"))
            else:
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

    def note_refused(self, name: object) -> None:
        """There was no room for a connection. ``name``: the peer's, as sockets have it."""
        self.context.counters.connections_refused += 1
        self.context.shed(SHED_CONNECTIONS, plain_address(name[0]) if isinstance(name, tuple) else "", "")

    def dismiss(self, connection: ClientConnection) -> None:
        """Counts a connection out that has ended."""
        if connection in self.connections:
            self.connections.remove(connection)
            self._leaving.discard(connection)
            assert connection.pool is not None
            connection.pool.clients -= 1


def _pause_after(began: float) -> float:
    now = monotonic()
    return now + SHED_PAUSE * (now - began)
