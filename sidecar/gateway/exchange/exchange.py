"""One request from its head to the last byte of its answer. The request path reads top to bottom:

    begin ─ charge ─ granted ─ send ─ (1xx) ─ respond ─ stream ─ complete

Why in this order: the route comes first, since it says whether there is anything to charge; identity before the hold,
since it says whose hold it is; the hold before a connection to the API is taken, so that nothing reaches the API that
is not paid for; and the charge is decided when the API has answered, since only then is it known whether it did the
work. ``charging`` holds what concerns money, this module what concerns bytes; ``tunnel`` takes over after a 101.

Each step is a callback of the one before; a request costs no task and no future. A step that fails ends in ``refuse``
while nothing of a response was written, in ``cut`` or ``client_gone`` after that, by whose fault it was. However a
request ends, its hold ends with it, once.
"""

from __future__ import annotations

from time import monotonic
from typing import Final

from sidecar.gateway import errors
from sidecar.gateway.client import Client
from sidecar.gateway.context import INTERACTION_ID, GatewayContext
from sidecar.gateway.errors import Refusal
from sidecar.gateway.exchange.access_log import record
from sidecar.gateway.exchange.charging import ChargedRelay
from sidecar.gateway.exchange.messages import request_head, status_line, status_lines, write_pieces
from sidecar.gateway.exchange.tunnel import Tunnel
from sidecar.gateway.http1.body import Body, BodyKind, Piece, open_body
from sidecar.gateway.http1.fields import list_elements
from sidecar.gateway.http1.framing import ProtocolError
from sidecar.gateway.http1.heads import RequestHead, ResponseHead
from sidecar.gateway.upstream import UpstreamConnection, UpstreamError

CLIENT_CLOSED: Final = 499
"""Status in events and metrics of a request whose client went away (nginx's number for it)."""
# A look into an enumeration takes as long as a method call, one at a name that may be bound anew half as long.
_NONE: Final = BodyKind.NONE
_LENGTH: Final = BodyKind.LENGTH
_CHUNKED: Final = BodyKind.CHUNKED
_UNTIL_CLOSE: Final = BodyKind.UNTIL_CLOSE
_clock: Final = monotonic
_IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"})  # RFC 9110 section 9.2.2
_CLOSING: Final = (400, 408, 413)
"""Refusals after which it is not known where the next request begins."""


class Exchange(ChargedRelay):
    """See the module. ``connection`` is None once the client has gone."""

    # What most exchanges never change stands in the class, not in each of them: an object is made for every request.
    body: Body | None = None
    queued: list[Piece] | None = None
    queued_bytes = 0
    upstream: UpstreamConnection | None = None
    upstream_spoke = False
    continued = False
    sent = False
    retried = False
    response: ResponseHead | None = None
    response_buffer = b""
    response_searched = 0
    decoder: Body | None = None

    def __init__(self, context: GatewayContext, connection: Client, head: RequestHead, started: float) -> None:
        super().__init__(context, connection, head, started)
        assert connection.pool is not None
        self.pool = connection.pool
        self.deadline = started + context.settings.response_timeout_s
        if head.body is not _NONE:
            self.body = open_body(head.body, head.length, context.request_parser.request_rules, chunked=True)

    def __repr__(self) -> str:
        stage = "finished" if self.finished else "response" if self.response else "sent" if self.sent else "waiting"
        return f"<Exchange {self.head.method.decode()} {self.route.name} {stage}>"

    @property
    def body_done(self) -> bool:
        return self.body is None or self.body.done

    # begin

    def begin(self) -> None:
        head, context = self.head, self.context
        try:
            self.route = route = context.routes.find(head.method, head.path)
        except ProtocolError as error:
            self.refuse(Refusal(errors.BAD_REQUEST, error.reason, error.status))
            return
        if route.deny:
            self.refuse(Refusal(errors.NOT_FOUND, f"No route leads to {head.path[:200].decode('latin-1')}."))
        elif route.free:
            self.granted()
        else:
            self.charge()

    # granted, send

    def granted(self, now: float = 0.0) -> None:
        pool = self.pool
        upstream = pool.take_idle()
        if upstream is not None:
            self._send(upstream, now)
        else:
            pool.acquire(self._connected)

    def _connected(self, upstream: UpstreamConnection | UpstreamError) -> None:
        if isinstance(upstream, UpstreamError):
            if not self.finished:
                kind = errors.UPSTREAM_FAILED
                if upstream.overloaded:
                    kind = errors.OVERLOADED
                elif upstream.timed_out:
                    kind = errors.UPSTREAM_TIMEOUT
                self.context.note_upstream_failure(str(upstream))
                self.refuse(Refusal(kind))
            return
        if self.finished:
            self.pool.release(upstream)
        else:
            self._send(upstream)

    def _send(self, upstream: UpstreamConnection, now: float = 0.0) -> None:
        connection = self.connection
        assert connection is not None
        self.upstream = upstream
        upstream.user = self
        self.sent = True
        request = request_head(self.head, connection.forwarded_lines(self.head), self.pool.target)
        if self.queued:
            if not self.body_done:
                connection.resume_reading()  # before the write, which may find the API slow and pause it again
            pieces = [request, *self.queued]
            self.queued = None
            self.queued_bytes = 0
            write_pieces(upstream.transport, pieces)
        else:
            upstream.transport.write(request)
        if self.body is None:
            self.deadline = (now or _clock()) + self.context.settings.response_timeout_s
        else:
            self._await_response()

    def _await_response(self) -> None:
        settings = self.context.settings
        waits_for_upstream = self.body_done or self._awaits_continue
        limit = settings.response_timeout_s if waits_for_upstream else settings.body_timeout_s
        self.deadline = _clock() + limit

    @property
    def _awaits_continue(self) -> bool:
        """The client may rightly wait for 100 before it sends its body (RFC 9110 section 10.1.1)."""
        return self.head.expect_continue and not self.continued and self.body is not None and not self.body.received

    def wants_data(self) -> bool:
        return self.body is not None and not self.body.done

    def client_data(self, data: bytes) -> None:
        """A piece of the request's body."""
        body, connection = self.body, self.connection
        assert body is not None
        assert connection is not None
        try:
            pieces = body.feed(data)
        except ProtocolError as error:
            if self.response is None:
                self.refuse(Refusal(errors.BAD_REQUEST, error.reason, error.status))
            else:
                self.client_gone()  # the API has answered; it is the client's fault that the rest is cut off
            return
        if body.done:
            connection.take_leftover(body.leftover)
        if self.upstream is not None:
            write_pieces(self.upstream.transport, pieces)
            if self.response is None:
                self._await_response()
            else:
                self._touch()
        elif not self.finished:
            self.queued = [*(self.queued or ()), *pieces]
            self.queued_bytes += len(data)
            if self.queued_bytes >= self.context.settings.buffer_bytes_high and not body.done:
                connection.pause_reading()

    def client_eof(self) -> None:
        if not self.body_done:
            self.client_gone()  # the request can never be completed

    # respond, stream

    def upstream_data(self, data: bytes) -> None:
        if self.response is not None:
            self._stream(data)
            return
        self.upstream_spoke = True
        if self.response_buffer:
            data = self.response_buffer + data
        at = 0
        while True:
            try:
                found = self.context.response_parser.response(data, self.head.method, at, self.response_searched)
            except ProtocolError as error:
                self.context.note_upstream_failure(f"{self.pool.target}: invalid response: {error.reason}")
                self.refuse(Refusal(errors.UPSTREAM_FAILED))
                return
            if found is None:
                self.response_buffer = data[at:] if at else data
                self.response_searched = len(self.response_buffer)
                return
            response, at = found
            self.response_searched = 0
            if response.status >= 200:
                break
            if response.status == 101:
                self._switch_protocols(response, data[at:])
                return
            if self.connection is not None and self.head.version_minor:
                # RFC 9110 section 15.2: a proxy forwards 1xx, except to those who cannot know them.
                interim = status_line(response.status, response.reason) + response.block + b"\r\n"
                self.connection.transport.write(interim)
            if response.status == 100 and not self.continued:
                self.continued = True
                self._await_response()
            self.response_buffer = b""
        self.response_buffer = b""
        self._respond(response, data[at:] if at < len(data) else b"")

    def _respond(self, response: ResponseHead, rest: bytes) -> None:
        self.response = response
        connection = self.connection
        if connection is None:
            self._complete_without_client(response.status)
            return
        head = self.head
        kind = response.body
        is_1_0 = head.version_minor == 0
        keep = head.keep_alive and (self.body is None or self.body.done) and connection.may_go_on
        tail = self.context.via[response.version_minor]
        if self.hold is not None:
            tail = self.credit_fields(self.hold) + tail
        if kind is _CHUNKED or kind is _UNTIL_CLOSE:
            if is_1_0:
                keep = False
            else:
                tail += b"Transfer-Encoding: chunked\r\n"
        if not keep:
            tail += b"Connection: close\r\n"
        elif is_1_0:
            tail += b"Connection: keep-alive\r\n"
        connection.keep = keep
        line = status_lines.get((response.status, response.reason)) or status_line(response.status, response.reason)
        if kind is _LENGTH and len(rest) == response.length:
            # The usual answer: head and body arrived together and leave together.
            connection.transport.write(b"%b%b%b\r\n%b" % (line, response.block, tail, rest))
            self._complete(clean=True)
            return
        out = b"%b%b%b\r\n" % (line, response.block, tail)
        if kind is _NONE:
            connection.transport.write(out)
            self._complete(clean=not rest)
        else:
            rules = self.context.response_parser.response_rules
            self.decoder = open_body(kind, response.length, rules, chunked=not is_1_0)
            if rest:
                self._stream(rest, out)
            else:
                connection.transport.write(out)
                self._touch()

    def _switch_protocols(self, response: ResponseHead, rest: bytes) -> None:
        connection, upstream = self.connection, self.upstream
        asked, chosen = self.head.upgrade, response.upgrade
        # RFC 9110 section 7.8: a server must not switch to a protocol that the client did not name.
        named = asked is not None and chosen is not None and chosen.lower() in list_elements(asked)
        if connection is None or upstream is None or chosen is None or not named:
            self.context.note_upstream_failure(f"{self.pool.target} switched to a protocol that was not asked for")
            self.refuse(Refusal(errors.UPSTREAM_FAILED))
            return
        self.response = response
        self.finished = True
        self.context.counters.tunnels += 1
        lines = (
            response.block
            + (self.credit_fields(self.hold) if self.hold is not None else b"")
            + self.context.via[response.version_minor]
            + b"Connection: Upgrade\r\nUpgrade: "
            + chosen
            + b"\r\n"
        )
        connection.transport.write(status_line(101, response.reason) + lines + b"\r\n" + rest)
        self.settle_or_release(101, 101, _clock())
        self.upstream = None
        connection.become_tunnel(Tunnel(self.context, self, connection, upstream))

    def _stream(self, data: bytes, before: bytes = b"") -> None:
        connection, decoder = self.connection, self.decoder
        assert connection is not None
        assert decoder is not None
        try:
            pieces = decoder.feed(data)
        except ProtocolError as error:
            self.context.note_upstream_failure(f"{self.pool.target}: {error.reason}")
            if before:
                connection.transport.write(before)
            self.cut()
            return
        if before:
            pieces.insert(0, before)
        if pieces:
            write_pieces(connection.transport, pieces)
        if decoder.done:
            self._complete(clean=not decoder.leftover)
        else:
            self._touch()

    def _touch(self) -> None:
        settings = self.context.settings
        paused = self.connection is not None and self.connection.writing_paused
        limit = settings.write_timeout_s if paused else settings.upstream_idle_timeout_s
        self.deadline = _clock() + limit

    # complete

    def _complete(self, *, clean: bool) -> None:
        """The whole response was written. ``clean``: nothing followed it, so its connection can be used again."""
        response, connection, upstream = self.response, self.connection, self.upstream
        assert response is not None
        assert connection is not None
        self.finished = True
        now = _clock()
        self.settle_or_release(response.status, response.status, now)
        if upstream is not None:
            self.upstream = None
            # One that answered before it took the whole request may never take the rest.
            took_all = self.body is None or (self.body.done and not upstream.transport.get_write_buffer_size())
            if clean and response.keep_alive and took_all:
                self.pool.release(upstream, now)
            else:
                upstream.close()
        record(self, response.status, now, refused=False)
        connection.exchange_done(now, unread_body=not self.body_done)

    def _complete_without_client(self, status: int) -> None:
        self.finished = True
        self.context.detached.discard(self)
        now = _clock()
        self.settle_or_release(status, CLIENT_CLOSED, now)
        self._drop_upstream()
        record(self, CLIENT_CLOSED, now, refused=False)

    # what goes wrong

    def refuse(self, refusal: Refusal) -> None:
        if self.finished:
            return
        self.finished = True
        context, head = self.context, self.head
        context.detached.discard(self)
        self.release()
        if self.sent:
            self._drop_upstream()
        else:
            self.pool.cancel(self._connected)
        status = refusal.status or refusal.kind.status
        context.counters.refuse(refusal.kind.name)
        now = _clock()
        record(self, status, now, refused=True, reason=refusal.kind.name)
        connection = self.connection
        if connection is None:
            return
        keep = head.keep_alive and self.body_done and connection.may_go_on and status not in _CLOSING
        interaction_id = head.fields.get(INTERACTION_ID)
        connection.keep = keep
        connection.transport.write(
            context.errors.response(
                refusal,
                keep_alive=keep,
                head_only=head.method == b"HEAD",
                interaction_id=interaction_id.decode("latin-1") if interaction_id else None,
                version_minor=head.version_minor,
            )
        )
        connection.exchange_done(now, unread_body=not self.body_done)

    def cut(self) -> None:
        """The response cannot be completed: both ends are closed, so that nobody takes it for whole. Not charged."""
        if self.finished:
            return
        self.finished = True
        self.context.counters.upstream_aborts += 1
        self.release()
        self._drop_upstream()
        record(self, errors.UPSTREAM_FAILED.status, _clock(), refused=True, reason="upstream-cut")
        if self.connection is not None:
            self.connection.reset()

    def client_gone(self) -> None:
        if self.finished:
            return
        connection, self.connection = self.connection, None
        self.context.counters.client_aborts += 1
        if self.response is not None:
            # The API did the work.
            self._complete_without_client(self.response.status)
        elif self.sent and self.body_done:
            # It may be doing the work: its status decides.
            self.context.detached.add(self)
        else:
            self.finished = True
            self.release()
            self.pool.cancel(self._connected)
            self._drop_upstream()
            record(self, CLIENT_CLOSED, _clock(), refused=False)
        if connection is not None:
            connection.reset()

    def _drop_upstream(self) -> None:
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.close()

    def timed_out(self) -> None:
        """``deadline`` has passed. Whose fault it is decides what follows, and who pays."""
        connection, upstream = self.connection, self.upstream
        if self.finished:
            return
        if (connection is not None and connection.still_taking()) or (upstream is not None and upstream.still_taking()):
            # Slow is not dead: some of what waits to be written went out since the limit was set.
            self.deadline = _clock() + self.context.settings.write_timeout_s
        elif self.response is not None:
            if self._client_is_late():
                self.client_gone()
            else:
                self.cut()
        elif not self.sent:
            self.refuse(Refusal(errors.OVERLOADED, headers=(("Retry-After", "1"),)))
        elif self._client_is_late():
            self.refuse(Refusal(errors.TIMEOUT_CLIENT))
        else:
            self.context.note_upstream_failure(f"{self.pool.target} did not answer in time")
            self.refuse(Refusal(errors.UPSTREAM_TIMEOUT))

    def _client_is_late(self) -> bool:
        """Whether it is the client that does not take its response, or does not send its body although it may."""
        connection = self.connection
        if connection is None:
            return False
        return connection.writing_paused or not (self.body_done or connection.reading_paused or self._awaits_continue)

    def upstream_eof(self) -> bool:
        decoder = self.decoder
        if decoder is not None and self.response is not None and self.response.body is _UNTIL_CLOSE:
            assert self.connection is not None
            for piece in decoder.eof():
                self.connection.transport.write(piece)
            self._complete(clean=False)
        return False

    def upstream_lost(self, exc: Exception | None) -> None:
        upstream, self.upstream = self.upstream, None
        if self.finished:
            return
        if self.response is not None:
            if self.response.body is _UNTIL_CLOSE and exc is None:
                self.upstream_eof()
            else:
                self.cut()
        elif self._may_repeat(upstream):
            self.retried = True
            self.sent = False
            self.context.counters.upstream_retries += 1
            self.pool.acquire(self._connected, fresh=True)
        else:
            self.context.note_upstream_failure(f"{self.pool.target} closed the connection without an answer")
            self.refuse(Refusal(errors.UPSTREAM_FAILED))

    def _may_repeat(self, upstream: UpstreamConnection | None) -> bool:
        """A pooled connection that the server had closed meanwhile (RFC 9112 section 9.3.1): only what may be done
        twice is sent again."""
        return (
            upstream is not None and not upstream.fresh and not self.retried and not self.upstream_spoke
            and self.connection is not None and self.body is None and self.head.method in _IDEMPOTENT
        )  # fmt: skip

    # back-pressure

    def upstream_pause(self) -> None:
        if self.connection is not None:
            self.connection.pause_reading()

    def upstream_resume(self) -> None:
        if self.connection is not None:
            self.connection.resume_reading()
        if self.response is None:
            self._await_response()
        else:
            self._touch()

    def client_pause(self) -> None:
        if self.upstream is not None:
            self.upstream.pause_reading()
            if self.response is not None:
                self._touch()

    def client_resume(self) -> None:
        if self.upstream is not None:
            self.upstream.resume_reading()
            if self.response is not None:
                self._touch()
