"""The data plane of one process: what all connections share, listening, sweeping, draining."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import Final, Protocol, cast

import orjson

from sidecar.basics.listening import listening_sockets
from sidecar.basics.logger import get_logger
from sidecar.gateway import errors
from sidecar.gateway.connection import ClientConnection
from sidecar.gateway.counters import ProxyCounters
from sidecar.gateway.destinations import Destinations
from sidecar.gateway.errors import ErrorWriter, Refusal
from sidecar.gateway.exchange.exchange import IDEMPOTENCY_KEYS, INTERACTION_ID, METHODS, TRACEPARENT, Exchange
from sidecar.gateway.http1.framing import HeadParser, ProtocolError
from sidecar.gateway.parameters import OriginalDestinations, ProxySettings, UpstreamTarget
from sidecar.gateway.routes import Route, RouteTable
from sidecar.identity.chain import IdentityChain
from sidecar.identity.types import Peer
from sidecar.ledger.client.ledger_client import LedgerClient
from sidecar.ledger.client.outcomes import Code, Event, Hold
from sidecar.ledger.client.unknown_accounts import Sight

log = get_logger("sidecar.gateway")

_GRANTED: Final = int(Code.GRANTED)
_FORWARDED: Final = (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host")


class Spool(Protocol):
    """Where charges go while the ledger is away (`on_ledger_failure: open`)."""

    def admit(self, account: str, units: int) -> bool: ...
    def charge(self, hold: Hold, event: Event) -> None: ...
    def give_back(self, account: str, units: int) -> None: ...


class Arrivals(Protocol):
    """Where accounts are asked for that the ledger does not know (``sidecar.ledger.client.unknown_accounts``)."""

    def ask(self, account: str, done: Callable[[Sight], None]) -> None: ...


class Gateway:
    """Serves connections with one ledger client, one identity chain, and the pools of the APIs behind it."""

    def __init__(
        self,
        *,
        settings: ProxySettings,
        routes: RouteTable,
        identity: IdentityChain,
        ledger: LedgerClient,
        trusts: Callable[[str], bool],
        spool: Spool | None = None,
        first_sight: Arrivals | None = None,
        access_log: Callable[[bytes], None] | None = None,
    ) -> None:
        self.settings = settings
        self.routes = routes
        self.identity = identity
        self.ledger = ledger
        self.trusts = trusts
        self.spool = spool
        self.first_sight = first_sight
        self.loop = asyncio.get_running_loop()
        self.counters = ProxyCounters()
        self.errors = ErrorWriter(settings.error_format, settings.error_documentation_url)
        self.destinations = Destinations(settings, self.counters)
        self.no_route = Route("-", free=True)
        self.unknown_peer = Peer("", False)
        self.connections: set[ClientConnection] = set()
        self.detached: set[Exchange] = set()
        self.draining = False
        """No connection is kept for another request."""
        self._accepting = True
        self._hurried = asyncio.Event()
        self._access_log = access_log
        self._wanted: OriginalDestinations | None = None
        self._servers: list[asyncio.AbstractServer] = []
        self._sweeper: asyncio.Task[None] | None = None
        self._upstream_warned = 0.0
        interesting = {INTERACTION_ID, TRACEPARENT, *IDEMPOTENCY_KEYS} | identity.reads
        drop = identity.consumes | identity.spoofable | (set(_FORWARDED) if settings.forwarded_headers else set())
        self._restored = identity.spoofable - identity.consumes
        self.request_parser = HeadParser(interesting, drop, settings.limits)
        self.response_parser = HeadParser((), (), settings.limits)
        self.via = tuple(b"Via: 1.%d %b\r\n" % (minor, settings.via) if settings.via else b"" for minor in (0, 1))
        """Field lines for a message that was received in HTTP/1.0, and in HTTP/1.1 (RFC 9110 section 7.6.3)."""
        self._overloaded = self.errors.response(Refusal(errors.OVERLOADED), keep_alive=False)

    def __repr__(self) -> str:
        return f"<Gateway connections={len(self.connections)} {self.destinations!r} draining={self.draining}>"

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
            pool = self.destinations.fixed(upstream)
        for sock in sockets:
            server = await self.loop.create_server(
                lambda: cast(asyncio.Protocol, ClientConnection(self, pool)), sock=sock, ssl=tls, backlog=backlog
            )
            self._servers.append(server)
        if self._sweeper is None:
            self._sweeper = self.loop.create_task(self._sweep())
        return bound

    async def drain(self, timeout_s: float, delay_s: float = 0.0) -> bool:
        """Ends in order: connections close with their next answer, and after ``delay_s``, in which new ones are still
        served, no more are accepted and idle ones end. Then requests end and settle what they hold. False if some had
        to be cut off."""
        self.draining = True
        if delay_s > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurried.wait(), delay_s)
        self._accepting = False
        for server in self._servers:
            server.close()
        for connection in list(self.connections):
            connection.close_if_idle()
        deadline = monotonic() + timeout_s
        while (self.connections or self.detached) and monotonic() < deadline:
            await asyncio.sleep(0.02)
        clean = not self.connections and not self.detached
        for connection in list(self.connections):
            connection.abort()
        if not clean:
            for _ in range(4):  # an aborted connection hears of it in the next turn, one with TLS in the turn after
                await asyncio.sleep(0)
            for exchange in list(self.detached):
                exchange.timed_out()
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self.destinations.close()
        return clean

    def hurry(self) -> None:
        """A drain waits no longer for clients that may still come."""
        self._hurried.set()

    async def _sweep(self) -> None:
        settings = self.settings
        shortest = min(
            settings.header_timeout_s, settings.idle_timeout_s, settings.body_timeout_s, settings.response_timeout_s,
            settings.upstream_idle_timeout_s, settings.write_timeout_s, settings.tunnel_idle_timeout_s,
        )  # fmt: skip
        period = min(0.5, max(0.02, shortest / 4))
        while True:
            await asyncio.sleep(period)
            now = monotonic()
            for connection in list(self.connections):
                self._check(connection.sweep, now)
            for exchange in list(self.detached):
                self._check(exchange.sweep, now)
            self.destinations.sweep(now)

    @staticmethod
    def _check(sweep: Callable[[float], None], now: float) -> None:
        try:
            sweep(now)
        except Exception:  # a fault in one connection must not take the time limits from all others
            log.exception("a time limit could not be kept")

    # connections

    def admit(self, connection: ClientConnection) -> bool:
        """Counts a new connection in, unless the limit is reached, the gateway stops, or it leads nowhere."""
        if not self._accepting or len(self.connections) >= self.settings.connections_max:
            self.counters.connections_refused += 1
            connection.transport.write(self._overloaded)
            connection.transport.close()
            return False
        if connection.pool is None:
            assert self._wanted is not None
            connection.pool = self.destinations.of(connection.transport.get_extra_info("socket"), self._wanted)
            if connection.pool is None:
                self.counters.connections_refused += 1
                self.note_upstream_failure(
                    "a client was on its way to a port that is not served, or came here directly"
                )
                connection.abort()
                return False
        connection.pool.clients += 1
        self.counters.connections_accepted += 1
        self.connections.add(connection)
        return True

    def dismiss(self, connection: ClientConnection) -> None:
        """Counts a connection out that has ended."""
        if connection in self.connections:
            self.connections.remove(connection)
            assert connection.pool is not None
            connection.pool.clients -= 1

    def detach(self, exchange: Exchange) -> None:
        """An exchange goes on without its client, until the API's answer decides whether it is charged."""
        self.detached.add(exchange)

    def forwarded_prefix(self, peer: Peer, *, secure: bool) -> bytes:
        """X-Forwarded-* of every request of an untrusted peer, but for the host."""
        if not self.settings.forwarded_headers:
            return b""
        address = peer.address.encode() or b"unknown"
        scheme = b"https" if secure else b"http"
        return b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\n" % (address, scheme)

    def forwarded_by_trusted(self, peer: Peer, fields: dict[bytes, bytes], *, secure: bool) -> bytes:
        """The same for a trusted peer, whose own fields are believed and extended, with the identity it vouches for."""
        lines = b""
        if self.settings.forwarded_headers:
            address = peer.address.encode() or b"unknown"
            before = fields.get(b"x-forwarded-for")
            chain = before + b", " + address if before else address
            scheme = fields.get(b"x-forwarded-proto") or (b"https" if secure else b"http")
            lines = b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\n" % (chain, scheme)
            if b"x-forwarded-host" in fields:
                lines += b"X-Forwarded-Host: %b\r\n" % fields[b"x-forwarded-host"]
        for name in self._restored:
            if name in fields:
                lines += b"%b: %b\r\n" % (name, fields[name])
        return lines

    # what has happened

    def finished(self, exchange: Exchange, status: int, now: float, *, refused: bool, reason: str = "") -> None:
        """Counts and logs a request that is over. ``now``: the monotonic clock's time."""
        counters = self.counters
        elapsed = now - exchange.started
        method = exchange.head.method
        endpoint = exchange.route.name
        hold = exchange.hold
        account = exchange.account
        counters.latency.observe(elapsed)
        label = counters.label(account) if account else "-"
        counters.count(label, METHODS.get(method) or "OTHER", endpoint, status)
        if hold is not None and hold.code == _GRANTED and hold.x >= 0 and hold.view is not None and label is account:
            counters.remaining[label] = (hold.x, hold.view.digits)
        if self._access_log is not None and (self.settings.access_log == "all" or status >= 500 or refused):
            fields = exchange.head.fields
            interaction_id, traceparent = fields.get(INTERACTION_ID), fields.get(TRACEPARENT)
            connection = exchange.connection
            self._access_log(
                orjson.dumps(
                    {
                        "event": "request",
                        "method": method.decode("latin-1"),
                        "endpoint": endpoint,
                        "path": exchange.head.path[:512].decode("latin-1"),
                        "status": status,
                        "account": account or None,
                        "reason": reason or None,
                        "duration_ms": round(elapsed * 1000, 3),
                        "units": exchange.charged_units,
                        "client": connection.peer.address if connection is not None else None,
                        "interaction_id": interaction_id[:128].decode("latin-1") if interaction_id else None,
                        "traceparent": traceparent[:128].decode("latin-1") if traceparent else None,
                    }
                )
            )

    def refused_head(self, connection: ClientConnection, error: ProtocolError) -> None:
        """Counts and logs bytes that are no request."""
        self.counters.count("-", "OTHER", "-", error.status)
        if self._access_log is not None:
            self._access_log(
                orjson.dumps(
                    {
                        "event": "refused",
                        "status": error.status,
                        "reason": error.reason,
                        "client": connection.peer.address,
                    }
                )
            )

    def note_upstream_failure(self, message: str) -> None:
        """Logs it, at most once a second."""
        now = monotonic()
        if now - self._upstream_warned > 1.0:
            self._upstream_warned = now
            log.warning("upstream failed", error=message)
