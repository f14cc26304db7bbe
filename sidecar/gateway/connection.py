"""A client's connection: cuts its bytes into requests, one exchange at a time, and keeps its time limits."""

from __future__ import annotations

import asyncio
import socket
import struct
from time import monotonic
from typing import Any, Final

from sidecar.basics.listening import plain_address
from sidecar.gateway import errors
from sidecar.gateway.client import Client
from sidecar.gateway.context import GatewayContext
from sidecar.gateway.errors import Refusal
from sidecar.gateway.exchange.access_log import record_refused_head
from sidecar.gateway.exchange.exchange import Exchange
from sidecar.gateway.http1.framing import ProtocolError, RequestHead
from sidecar.gateway.interaction_id import is_interaction_id
from sidecar.gateway.methods import OTHER_METHOD
from sidecar.gateway.relay import Relay
from sidecar.gateway.upstream import UpstreamPool
from sidecar.identity.types import Identity, Peer

_clock: Final = monotonic
_NO_LINGER: Final = struct.pack("ii", 1, 0)
LINGER_S: Final = 2.0
"""How long a connection that was refused with unread data is still read, so that the refusal is not lost in a reset
(RFC 9112 section 9.6)."""
LINGER_BYTES_MAX: Final = 16_777_216
"""What is read and thrown away meanwhile: more than the default limit of bodies, so that who sends a little too much
sees the 413."""


class Owner:
    """Who counts connections in and out (``gateway.Gateway``)."""

    def admit(self, connection: ClientConnection) -> bool:
        """False: it was refused, and is being closed."""
        raise NotImplementedError

    def dismiss(self, connection: ClientConnection) -> None:
        """It has ended."""
        raise NotImplementedError


class ClientConnection(Client):
    """An ``asyncio.Protocol`` by its methods. ``deadline`` ends it (time of the monotonic clock) unless an exchange is
    under way, which has its own. ``keep``: it may carry another request."""

    __slots__ = (
        "_buffer", "_forwarded", "_lines", "_lines_host", "_lines_identity", "_lingered", "_parser", "_pumping",
        "_searched", "_unsent", "context", "deadline", "ending", "lingering", "owner", "relay", "requests", "secure",
    )  # fmt: skip

    def __init__(self, context: GatewayContext, owner: Owner, pool: UpstreamPool | None) -> None:
        self.context = context
        self.owner = owner
        self.pool = pool
        """Where its requests go; not yet known for one that the kernel redirected, until it is made."""
        self.transport: Any = None  # an asyncio.Transport or what uvloop has for one; set before anything else happens
        self.peer: Peer = context.unknown_peer
        self._parser = context.request_parser
        self.secure = False
        self.relay: Relay | None = None
        """What is under way; None between requests."""
        self.keep = True
        self.eof = False
        self.lingering = False
        """What arrives is read and thrown away."""
        self.ending = False
        self.reading_paused = False
        self.writing_paused = False
        self.requests = 0
        self.deadline = 0.0
        self._buffer = b""
        self._searched = 0
        self._lingered = 0
        self._pumping = False
        self._unsent = 0
        self._forwarded = b""
        self._lines = b""
        self._lines_host: bytes | None = None
        self._lines_identity: Identity | None = None

    def __repr__(self) -> str:
        return f"<ClientConnection {self.peer.address} requests={self.requests} {self.relay!r}>"

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        context = self.context
        if not self.owner.admit(self):
            self.lingering = self.ending = True
            return
        settings = context.settings
        self.transport.set_write_buffer_limits(settings.buffer_bytes_high, settings.buffer_bytes_low)
        name = transport.get_extra_info("peername")
        address = plain_address(name[0]) if isinstance(name, tuple) else ""
        tls = transport.get_extra_info("ssl_object")
        self.secure = tls is not None
        certificate = tls.getpeercert(binary_form=True) if tls is not None else None
        self.peer = Peer(address, context.trusts(address), certificate)
        self._parser = context.parser_for(self.peer, secure=self.secure)
        self._forwarded = context.forwarded_prefix(self.peer, secure=self.secure)
        self.deadline = monotonic() + settings.header_timeout_s

    def data_received(self, data: bytes) -> None:
        relay = self.relay
        if relay is None:
            if self.lingering:
                self._lingered += len(data)
                if self._lingered > LINGER_BYTES_MAX:
                    self.abort()
                return
            if self.writing_paused:
                self._buffer += data  # no answer can be written; see resume_writing
                self.pause_reading()
                return
            self._read_head(self._buffer + data if self._buffer else data)
        elif relay.wants_data():
            relay.client_data(data)
        else:
            # The next request, sent before this one's answer (pipelining). It waits, too much of it in the kernel.
            self._buffer += data
            if len(self._buffer) > self.context.settings.limits.head_bytes_max:
                self.pause_reading()

    def eof_received(self) -> bool:
        """Half-closed, the client still gets the answers to what it sent (RFC 9112 section 9.6), but over TLS, which
        has no half-close here."""
        self.eof = True
        if self.relay is not None:
            self.relay.client_eof()
        elif not self._pumping and not self.writing_paused:
            return False
        return not self.secure

    def connection_lost(self, exc: Exception | None) -> None:
        self.owner.dismiss(self)
        relay, self.relay = self.relay, None
        if relay is not None:
            relay.client_gone()

    def pause_writing(self) -> None:
        self.writing_paused = True
        self._unsent = self.transport.get_write_buffer_size()
        if self.relay is not None:
            self.relay.client_pause()

    def resume_writing(self) -> None:
        self.writing_paused = False
        if self.relay is not None:
            self.relay.client_resume()
        elif not self.lingering:
            self.deadline = monotonic() + self.context.settings.idle_timeout_s
            self._next()

    def still_taking(self) -> bool:
        """Whether the client took some of what waits for it since it was last asked, or since more came to wait."""
        before, self._unsent = self._unsent, self.transport.get_write_buffer_size()
        return self._unsent < before

    # requests

    @property
    def may_go_on(self) -> bool:
        """Whether another request may follow on this connection."""
        most = self.context.settings.requests_per_connection_max
        ended = self.eof and not self._buffer
        return not self.context.draining and not ended and (not most or self.requests < most)

    def _read_head(self, buffer: bytes) -> None:
        context = self.context
        try:
            found = self._parser.request(buffer, 0, self._searched)
        except ProtocolError as error:
            self._refuse_head(error)
            return
        now = _clock()
        if found is None:
            if not self._buffer:
                self.deadline = now + context.settings.header_timeout_s
            self._buffer = buffer
            self._searched = len(buffer)
            return
        head, end = found
        self._searched = 0
        self.requests += 1
        exchange = Exchange(context, self, head, now)
        self.relay = exchange
        if exchange.body is None:
            self._buffer = buffer[end:] if end < len(buffer) else b""
            exchange.begin()
        else:
            self._buffer = b""
            exchange.begin(buffer[end:])

    def _refuse_head(self, error: ProtocolError) -> None:
        """What is no request gets its answer and the end of the connection: where the next one begins is not known."""
        context = self.context
        context.counters.refuse(errors.BAD_REQUEST.name)
        ids = context.interaction_ids
        given = error.fields.get(ids.name) if error.fields is not None else None
        interaction_id = given.decode() if given and is_interaction_id(given) else ids.make_text()
        record_refused_head(context, self, error, interaction_id)
        refusal = Refusal(errors.BAD_REQUEST, error.reason, error.status)
        self.transport.write(context.errors.response(refusal, keep_alive=False, interaction_id=interaction_id))
        self._linger()

    def exchange_done(self, now: float, *, unread_body: bool = False) -> None:
        """The answer was written, at ``now``. Goes on with the next request, or ends."""
        self.relay = None
        if not self.keep:
            if unread_body:
                self._linger()
            else:
                self.end()
            return
        settings = self.context.settings
        if self.writing_paused:
            # The client does not take its answers: it gets no more of them until it does.
            self.deadline = now + settings.write_timeout_s
            return
        self.deadline = now + settings.idle_timeout_s
        if self._buffer or self.reading_paused or self.eof or self.context.draining:
            self._next()

    def _next(self) -> None:
        """Goes on with what was sent ahead, or waits for the next request."""
        self.resume_reading()
        if self._buffer:
            if not self._pumping:
                self._pumping = True
                self.context.loop.call_soon(self._pump)
        elif self.eof or self.context.draining:
            self.end()

    def _pump(self) -> None:
        self._pumping = False
        if self.relay is not None or self.lingering or self.writing_paused or self.transport.is_closing():
            return
        buffer, self._buffer, self._searched = self._buffer, b"", 0
        if buffer:
            self._read_head(buffer)
        if self._is_idle() and (self.eof or self.context.draining):
            self.end()

    # It looks anew at what a call may have changed: a type checker, and what it compiles, remembers the look before.

    def _is_idle(self) -> bool:
        return self.relay is None and not self.lingering and not self._pumping

    def take_leftover(self, data: bytes) -> None:
        """Bytes after the end of a request's body: the next request."""
        self._buffer += data

    def _linger(self) -> None:
        self._buffer = b""
        self.relay = None
        if self.eof:
            self.end()
            return
        self.lingering = True
        self.deadline = monotonic() + LINGER_S
        self.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def end(self) -> None:
        """Closes when what was written has gone out. The sweep cuts it off if the client does not take that."""
        self.relay = None
        self.lingering = self.ending = True
        self._buffer = b""
        self._unsent = self.transport.get_write_buffer_size()
        self.deadline = monotonic() + self.context.settings.write_timeout_s
        self.transport.close()

    def abort(self) -> None:
        """Closes at once."""
        self.transport.abort()

    def reset(self) -> None:
        """Closes at once, with a reset: where the end of the connection is the end of a body, a plain close would let a
        part pass for the whole."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and not self.transport.is_closing():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.transport.abort()

    def become_tunnel(self, tunnel: Relay) -> None:
        """What came after the request's head belongs to the tunnel, as all that follows."""
        self.relay = tunnel
        self.resume_reading()
        buffer, self._buffer = self._buffer, b""
        if buffer:
            tunnel.client_data(buffer)

    def sweep(self, now: float) -> None:
        """Ends what has taken too long."""
        relay = self.relay
        if relay is not None:
            relay.sweep(now)
        elif self.deadline < now:
            if self.ending or self.writing_paused:
                if self.still_taking():
                    self.deadline = now + self.context.settings.write_timeout_s
                else:
                    self.abort()
            elif self._buffer and not self.lingering:
                self.context.counters.refuse(errors.TIMEOUT_CLIENT.name)
                self.context.counters.count("-", OTHER_METHOD, "-", errors.TIMEOUT_CLIENT.status)
                self.transport.write(self.context.refuse_unread(errors.TIMEOUT_CLIENT))
                self.end()
            else:
                self.end()

    def close_if_idle(self) -> None:
        """For a drain: a connection that carries nothing ends now, the others after their answer."""
        if self._is_idle():
            self.end()

    # back-pressure

    def pause_reading(self) -> None:
        if not self.reading_paused and not self.transport.is_closing():
            self.reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self.reading_paused:
            self.reading_paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    # what is added to a forwarded request

    def forwarded_lines(self, head: RequestHead, identity: Identity | None) -> bytes:
        """X-Forwarded-*, Via, what finds loops, and who calls, each line with its CRLF."""
        context, peer, host = self.context, self.peer, head.host
        lines = self._forwarded
        if peer.trusted:
            lines = context.forwarded_by_trusted(peer, head.fields, secure=self.secure)
            if b"x-forwarded-host" in head.fields:
                host = b""
        elif host is self._lines_host and identity is self._lines_identity and head.version_minor:
            return self._lines  # the usual request on a connection asks the same host as the one before, for the same
        if host and context.settings.forwarded_headers:
            lines = b"%bX-Forwarded-Host: %b\r\n" % (lines, host)
        made = lines + context.request_via[head.version_minor] + context.hop_line
        if identity is not None and context.settings.forward_identity:
            made += identity.lines
        if not peer.trusted and head.version_minor:
            self._lines_host, self._lines_identity, self._lines = host, identity, made
        return made
