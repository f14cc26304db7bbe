"""A client's connection: cuts its bytes into requests, one exchange at a time, and keeps its time limits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sidecar.identity.types import Peer
from sidecar.proxy import errors
from sidecar.proxy.errors import Refusal
from sidecar.proxy.exchange import Exchange
from sidecar.proxy.framing import ProtocolError, RequestHead

if TYPE_CHECKING:
    from sidecar.proxy.gateway import Gateway

LINGER_S = 2.0
"""How long a connection that was refused with unread data is still read, so that the refusal is not lost in a reset (RFC 9112 section 9.6)."""
LINGER_BYTES_MAX = 1_048_576


class ClientConnection(asyncio.Protocol):
    """``deadline`` (loop time) ends it unless an exchange is under way, which has its own. ``keep``: it may carry another request."""

    __slots__ = (
        "_buffer", "_forwarded", "_lingered", "_paused", "_pausers", "_searched", "deadline", "eof", "exchange", "gateway", "keep", "lingering",
        "peer", "requests", "secure", "transport", "writing_paused",
    )  # fmt: skip

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # set before anything else happens
        self.peer: Peer = gateway.unknown_peer
        self.secure = False
        self.exchange: Exchange | None = None
        self.keep = True
        self.eof = False
        self.lingering = False
        self.writing_paused = False
        self.requests = 0
        self.deadline = 0.0
        self._buffer = b""
        self._searched = 0
        self._lingered = 0
        self._paused = False
        self._pausers = 0
        self._forwarded = b""

    def __repr__(self) -> str:
        return f"<ClientConnection {self.peer.address} requests={self.requests} {self.exchange!r}>"

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        gateway = self.gateway
        if not gateway.admit(self):
            self.transport.abort()
            return
        settings = gateway.settings
        self.transport.set_write_buffer_limits(settings.buffer_bytes_high, settings.buffer_bytes_low)
        name = transport.get_extra_info("peername")
        address = name[0] if isinstance(name, tuple) else ""
        tls = transport.get_extra_info("ssl_object")
        self.secure = tls is not None
        certificate = tls.getpeercert(binary_form=True) if tls is not None else None
        self.peer = Peer(address, gateway.trusts(address), certificate)
        self._forwarded = gateway.forwarded_suffix(self.peer, secure=self.secure)
        self.deadline = gateway.loop.time() + gateway.settings.header_timeout_s

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            if self.lingering:
                self._lingered += len(data)
                if self._lingered > LINGER_BYTES_MAX:
                    self.abort()
                return
            self._read_head(self._buffer + data if self._buffer else data)
        elif exchange.tunnel or (exchange.body is not None and not exchange.body.done):
            exchange.client_data(data)
        else:
            # The next request, sent before this one's answer (pipelining). It waits; too much of it waits in the kernel.
            self._buffer += data
            if len(self._buffer) > self.gateway.settings.limits.head_bytes_max:
                self._pause()

    def eof_received(self) -> bool:
        self.eof = True
        if self.exchange is None:
            return False
        self.exchange.client_eof()
        return not self.secure  # half-closed: the answer still goes out; TLS has no half-close here

    def connection_lost(self, exc: Exception | None) -> None:
        self.gateway.connections.discard(self)
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_gone()

    def pause_writing(self) -> None:
        self.writing_paused = True
        if self.exchange is not None:
            self.exchange.client_pause()

    def resume_writing(self) -> None:
        self.writing_paused = False
        if self.exchange is not None:
            self.exchange.client_resume()

    # requests

    @property
    def may_go_on(self) -> bool:
        """Whether another request may follow on this connection."""
        most = self.gateway.settings.requests_per_connection_max
        return not self.gateway.draining and not self.eof and (not most or self.requests < most)

    def _read_head(self, buffer: bytes) -> None:
        gateway = self.gateway
        try:
            found = gateway.request_parser.request(buffer, 0, self._searched)
        except ProtocolError as error:
            self._refuse_head(error)
            return
        now = gateway.loop.time()
        if found is None:
            if not self._buffer:
                self.deadline = now + gateway.settings.header_timeout_s
            self._buffer = buffer
            self._searched = len(buffer)
            return
        head, end = found
        self._searched = 0
        self.requests += 1
        exchange = self.exchange = Exchange(gateway, self, head, now)
        exchange.deadline = now + gateway.settings.response_timeout_s
        if exchange.body is None:
            self._buffer = buffer[end:] if end < len(buffer) else b""
            exchange.begin()
        else:
            self._buffer = b""
            rest = buffer[end:]
            exchange.begin()
            if rest and self.exchange is exchange and not exchange.finished:
                exchange.client_data(rest)

    def _refuse_head(self, error: ProtocolError) -> None:
        """What is no request gets its answer and the end of the connection: where the next one would begin is not known."""
        self.gateway.counters.refuse(errors.BAD_REQUEST.name)
        self.gateway.refused_head(self, error)
        refusal = Refusal(errors.BAD_REQUEST, error.reason, error.status)
        self.transport.write(self.gateway.errors.response(refusal, keep_alive=False))
        self._linger()

    def exchange_done(self, *, unread_body: bool = False) -> None:
        """The answer was written. Goes on with the next request, or ends."""
        self.exchange = None
        if not self.keep:
            if unread_body:
                self._linger()
            else:
                self.transport.close()
            return
        self.deadline = self.gateway.loop.time() + self.gateway.settings.idle_timeout_s
        if self._paused:
            self._pausers = 0
            self._paused = False
            self.transport.resume_reading()
        if self._buffer:
            self.gateway.loop.call_soon(self._pump)
        elif self.eof or self.gateway.draining:
            self.transport.close()

    def _pump(self) -> None:
        if self.exchange is None and self._buffer and not self.transport.is_closing():
            buffer, self._buffer, self._searched = self._buffer, b"", 0
            self._read_head(buffer)
            if self.exchange is None and self.eof:
                self.transport.close()

    def take_leftover(self, data: bytes) -> None:
        """Bytes after the end of a request's body: the next request."""
        self._buffer += data

    def _linger(self) -> None:
        self._buffer = b""
        self.exchange = None
        if self.eof:
            self.transport.close()
            return
        self.lingering = True
        self.deadline = self.gateway.loop.time() + LINGER_S
        if self._paused:
            self._paused = False
            self.transport.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def abort(self) -> None:
        self.transport.abort()

    def tunnel_begun(self) -> None:
        """What came after the request's head belongs to the tunnel."""
        buffer, self._buffer = self._buffer, b""
        if buffer and self.exchange is not None:
            self.exchange.client_data(buffer)

    def sweep(self, now: float) -> None:
        """Ends what has taken too long."""
        exchange = self.exchange
        if exchange is not None:
            if exchange.deadline < now:
                exchange.timed_out()
        elif self.deadline < now:
            if self._buffer and not self.lingering:
                self.gateway.counters.refuse(errors.TIMEOUT_CLIENT.name)
                self.transport.write(self.gateway.errors.response(Refusal(errors.TIMEOUT_CLIENT), keep_alive=False))
                self.transport.close()
            else:
                self.abort() if self.lingering else self.transport.close()

    def close_if_idle(self) -> None:
        """For a drain: a connection that carries nothing ends now, the others after their answer."""
        if self.exchange is None:
            self.transport.close()

    # back-pressure

    def _pause(self) -> None:
        if not self._paused and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def pause_reading(self) -> None:
        self._pause()

    def resume_reading(self) -> None:
        if self._paused and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()

    # what is added to a forwarded request

    def forwarded_lines(self, head: RequestHead) -> bytes:
        """X-Forwarded-*, Via, and identity fields that a trusted peer may set, each with its CRLF."""
        lines = self._forwarded
        fields = head.fields
        if self.gateway.settings.forwarded_headers:
            if self.peer.trusted:
                lines = self.gateway.forwarded_by_trusted(self.peer, fields, secure=self.secure)
            if head.host and not (self.peer.trusted and b"x-forwarded-host" in fields):
                lines = b"%bX-Forwarded-Host: %b\r\n" % (lines, head.host)
        return lines
