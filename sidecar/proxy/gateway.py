"""The data plane of one process: what all connections share, listening, sweeping, draining."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, Protocol, cast

import orjson

from sidecar.identity.chain import IdentityChain
from sidecar.identity.types import Peer
from sidecar.ledger.client import LedgerClient
from sidecar.ledger.first_sight import Sight
from sidecar.ledger.outcomes import Code, Event, Hold
from sidecar.logger import get_logger
from sidecar.proxy import errors
from sidecar.proxy.connection import ClientConnection
from sidecar.proxy.counters import ProxyCounters
from sidecar.proxy.errors import ErrorWriter, Refusal
from sidecar.proxy.exchange import IDEMPOTENCY_KEYS, INTERACTION_ID, METHODS, TRACEPARENT, Exchange
from sidecar.proxy.framing import HeadParser, ProtocolError
from sidecar.proxy.routes import Route, RouteTable
from sidecar.proxy.settings import ProxySettings, UpstreamTarget
from sidecar.proxy.upstream import UpstreamPool

log = get_logger("sidecar.proxy")

_GRANTED: Final = int(Code.GRANTED)
_FORWARDED: Final = (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host")


class Spool(Protocol):
    """Where charges go while the ledger is away (`on_ledger_failure: open`)."""

    def admit(self, account: str, units: int) -> bool: ...
    def charge(self, hold: Hold, event: Event) -> None: ...
    def give_back(self, account: str, units: int) -> None: ...


class Arrivals(Protocol):
    """Where accounts are asked for that the ledger does not know (``sidecar.ledger.first_sight``)."""

    def ask(self, account: str, done: Callable[[Sight], None]) -> None: ...


class Gateway:
    """Serves connections with one ledger client, one upstream pool, one identity chain."""

    def __init__(
        self,
        *,
        settings: ProxySettings,
        upstream: UpstreamTarget,
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
        self.pool = UpstreamPool(upstream, settings, self.counters)
        self.no_route = Route("-", free=True)
        self.unknown_peer = Peer("", False)
        self.connections: set[ClientConnection] = set()
        self.detached: set[Exchange] = set()
        self.draining = False
        self._access_log = access_log
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
        return f"<Gateway connections={len(self.connections)} {self.pool!r} draining={self.draining}>"

    # life

    async def listen(
        self, host: str, port: int, *, tls: ssl.SSLContext | None = None, backlog: int = 1024, reuse_port: bool = False
    ) -> int:
        """Accepts connections; returns the port.

        Raises:
            OSError: the address cannot be bound.
        """
        server = await self.loop.create_server(
            lambda: cast(asyncio.Protocol, ClientConnection(self)),
            host,
            port,
            ssl=tls,
            backlog=backlog,
            reuse_port=reuse_port or None,
        )
        self._servers.append(server)
        if self._sweeper is None:
            self._sweeper = self.loop.create_task(self._sweep())
        bound: int = cast(Any, server).sockets[0].getsockname()[1]  # uvloop has a list where asyncio has a tuple
        return bound

    async def drain(self, timeout_s: float) -> bool:
        """Stops accepting, lets requests end, settles what they hold. False if some had to be cut off."""
        self.draining = True
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
        await self.pool.close()
        return clean

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
            self.pool.sweep(now)

    @staticmethod
    def _check(sweep: Callable[[float], None], now: float) -> None:
        try:
            sweep(now)
        except Exception:  # a fault in one connection must not take the time limits from all others
            log.exception("a time limit could not be kept")

    # connections

    def admit(self, connection: ClientConnection) -> bool:
        """Counts a new connection in, unless the limit is reached or the gateway drains."""
        if self.draining or len(self.connections) >= self.settings.connections_max:
            self.counters.connections_refused += 1
            connection.transport.write(self._overloaded)
            connection.transport.close()
            return False
        self.counters.connections_accepted += 1
        self.connections.add(connection)
        return True

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
