"""A client's connection: cuts its bytes into requests, one exchange at a time, and keeps its time limits."""

from __future__ import annotations

import asyncio
import socket
import struct
from time import monotonic
from typing import Any, Final

from sidecar.basics.listening import plain_address
from sidecar.gateway import errors
from sidecar.gateway.admission.peer_keys import forwarded_key, peer_key
from sidecar.gateway.admission.shedding import Standing
from sidecar.gateway.client import Client
from sidecar.gateway.context import GatewayContext
from sidecar.gateway.counters import SHED_HEADS
from sidecar.gateway.errors import Refusal
from sidecar.gateway.exchange.access_log import record_refused_head
from sidecar.gateway.exchange.exchange import Exchange
from sidecar.gateway.half_close import half_close
from sidecar.gateway.http1.framing import ProtocolError, RequestHead
from sidecar.gateway.interaction_id import is_interaction_id
from sidecar.gateway.methods import OTHER_METHOD
from sidecar.gateway.relay import Relay
from sidecar.gateway.untaken import untaken
from sidecar.gateway.upstream import UpstreamPool
from sidecar.identity.types import Identity, Peer

_clock: Final = monotonic
FORWARDED_FOR: Final = b"x-forwarded-for"
_NO_LINGER: Final = struct.pack("ii", 1, 0)
LINGER_S: Final = 2.0
"""How long a connection that was refused with unread data is still read, so that the refusal is not lost in a reset
(RFC 9112 section 9.6)."""
LINGER_BYTES_MAX: Final = 16_777_216
"""What is read and thrown away meanwhile: more than the default limit of bodies, so that who sends a little too much
sees the 413."""


PIPELINED_BYTES: Final = 4_096
"""Reading stops when so much of the next requests is there before the one under way has its answer."""
SHED_LINGER_S: Final = 0.25
"""How long a connection that gives way may take to close."""


class Owner:
    """Who counts connections in and out (``gateway.Gateway``)."""

    def leaves(self, connection: ClientConnection) -> None:
        """It gives way, and will end soon."""
        raise NotImplementedError

    def relieve_heads(self, connection: ClientConnection) -> None:
        """``context.head_bytes`` is high, and ``connection`` has brought the last of them: others give way."""
        raise NotImplementedError

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
        "_buffer", "_chain", "_forgone", "_forwarded", "_lines", "_lines_host", "_lines_identity", "_lingered",
        "_parser", "_pumping", "_searched", "_source", "_unsent", "context", "deadline", "ending", "handshake",
        "leaving", "lingering", "owner", "relay", "requests", "secure",
    )  # fmt: skip

    def __init__(
        self,
        context: GatewayContext,
        owner: Owner,
        pool: UpstreamPool | None,
        *,
        handshake: object = None,
        source: str | None = None,
    ) -> None:
        """``handshake``: what `owner` counted it as until now. ``source``: the client's address, if the peer has said
        it (PROXY protocol)."""
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
        self.account = ""
        self.handshake = handshake
        self.leaving = False
        """It gives way to others."""
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
        self._source = source
        self._chain = b""
        """X-Forwarded-For of the latest request, if the peer is trusted."""
        self._forgone = False
        """What it had sent of further requests was dropped."""
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
        address = self._source
        if address is None:
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
                self.pause_reading()
                self._keep(data)  # no answer can be written; see resume_writing
                return
            self._read_head(self._take_buffer() + data if self._buffer else data)
        elif relay.wants_data():
            relay.client_data(data)
        else:
            # The next request, sent before this one's answer (pipelining). It waits, too much of it in the kernel.
            self.take_leftover(data)

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
        if self._buffer:
            self._take_buffer()
        if relay is not None:
            relay.client_gone()

    def pause_writing(self) -> None:
        self.writing_paused = True
        self._unsent = untaken(self.transport)
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
        before, self._unsent = self._unsent, untaken(self.transport)
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
            if not self._searched:
                self.deadline = now + context.settings.header_timeout_s
            self._searched = len(buffer)
            self._keep(buffer)
            return
        head, end = found
        self._searched = 0
        self.requests += 1
        if self.peer.trusted:
            self._chain = head.fields.get(FORWARDED_FOR, b"")
        exchange = Exchange(context, self, head, now)
        self.relay = exchange
        if exchange.body is None:
            if end < len(buffer):
                self.take_leftover(buffer[end:])
            exchange.begin()
        else:
            exchange.begin(buffer[end:])

    # What was read and is no whole request yet. The usual request, which comes whole, has nothing to do with it.

    def _keep(self, data: bytes) -> None:
        context = self.context
        self._buffer += data
        context.head_bytes += len(data)
        if context.head_bytes >= context.head_bytes_high:
            self.owner.relieve_heads(self)
            if context.head_bytes > context.settings.head_buffers_bytes:
                self.drop_heads()

    def _take_buffer(self) -> bytes:
        buffer, self._buffer = self._buffer, b""
        self.context.head_bytes -= len(buffer)
        return buffer

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
        self._searched = 0
        if self._buffer:
            self._read_head(self._take_buffer())
            if self.eof:
                self._tell_end()
        if self._is_idle() and (self.eof or self.context.draining):
            self.end()

    # It looks anew at what a call may have changed: a type checker, and what it compiles, remembers the look before.

    def _tell_end(self) -> None:
        """The client had closed its side before what is under way began. It is not told again."""
        if self.relay is not None:
            self.relay.client_eof()

    def _is_idle(self) -> bool:
        return self.relay is None and not self.lingering and not self._pumping

    def take_leftover(self, data: bytes) -> None:
        """Bytes after the end of a request's body: the next request."""
        if self._forgone:
            return
        if len(self._buffer) + len(data) > PIPELINED_BYTES:
            self.pause_reading()
        if data:
            self._keep(data)

    def _linger(self) -> None:
        if self._buffer:
            self._take_buffer()
        self.relay = None
        if self.eof:
            self.end()
            return
        self.lingering = True
        self.deadline = monotonic() + LINGER_S
        self.resume_reading()
        half_close(self.transport)

    def end(self) -> None:
        """Closes when what was written has gone out. The sweep cuts it off if the client does not take that."""
        self.relay = None
        self.lingering = self.ending = True
        if self._buffer:
            self._take_buffer()
        self._unsent = untaken(self.transport)
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
        if self._forgone:
            self.abort()  # a part of what it sent is lost
            return
        self.resume_reading()
        if self._buffer:
            tunnel.client_data(self._take_buffer())
        if self.eof:
            tunnel.client_eof()

    def sweep(self, now: float) -> None:
        """Ends what has taken too long."""
        relay = self.relay
        if relay is not None:
            relay.sweep(now)
        elif self.deadline < now:
            if self.ending or self.writing_paused:
                if not self.leaving and self.still_taking():
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

    # giving way

    def share_key(self) -> str | None:
        """Of a trusted peer the client that it names in X-Forwarded-For. An address from the PROXY protocol is a
        client's own."""
        peer = self.peer
        if not peer.trusted:
            return peer_key(peer.address)
        key = forwarded_key(self._chain) if self._chain else None
        return key if key is not None or self._source is None else peer_key(peer.address)

    @property
    def buffered(self) -> int:
        """Bytes that it has in ``context.head_bytes``."""
        return len(self._buffer)

    def standing(self) -> Standing:
        """What it does, as far as that matters to who gives way."""
        known = self.account != ""
        if self.leaving:
            return Standing.STAYS
        if self.relay is not None:
            if not self.relay.gives_way():
                return Standing.STAYS
            return Standing.UNSENT if known else Standing.UNIDENTIFIED
        if self._pumping:
            return Standing.STAYS  # in the next turn it has a request
        if self.ending or self.writing_paused:  # there is an answer that it has not taken
            return Standing.STAYS if known else Standing.UNIDENTIFIED
        if self._buffer:
            return Standing.KNOWN_PARTIAL_HEAD if known else Standing.PARTIAL_HEAD
        return Standing.KNOWN_IDLE if known else Standing.IDLE

    def since(self) -> float:
        """When it began to do that, by the monotonic clock."""
        settings = self.context.settings
        if self.relay is not None:
            return self.relay.started
        if self.lingering:
            return self.deadline - LINGER_S
        if self._buffer or not self.requests:
            return self.deadline - settings.header_timeout_s
        return self.deadline - settings.idle_timeout_s

    def give_way(self, reason: str) -> None:
        """Ends, so that there is room. A request that has not gone to the API, or is not complete, gets a 503. Not for
        one whose `standing` is that it stays."""
        relay = self.relay
        self.leaving = True
        self.owner.leaves(self)
        if relay is not None:
            relay.give_way(reason)
        else:
            self.context.shed(reason, self.peer.address, self.account)
        if relay is None and (self.ending or self.lingering or self.writing_paused):
            self.abort()
            return
        if self._buffer:
            self.context.counters.refuse(errors.OVERLOADED.name)
            self.context.counters.count("-", OTHER_METHOD, "-", errors.OVERLOADED.status)
            self.transport.write(self.context.refuse_unread(errors.OVERLOADED))
        if not self.ending:
            self.end()
        self.deadline = monotonic() + SHED_LINGER_S

    def drop_heads(self) -> None:
        """Gives back its bytes of ``context.head_bytes``. Behind a request under way the connection ends after its
        answer, and the client knows what has none (RFC 9112 section 9.3.2)."""
        if self.relay is None:
            self.give_way(SHED_HEADS)
            return
        self.context.shed(SHED_HEADS, self.peer.address, self.account)
        self._take_buffer()
        self._forgone = self.eof = True
        self.pause_reading()

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
