"""One request from its head to the last byte of its answer. The request path reads top to bottom:

    begin ─ identify ─ hold ─ connect ─ send ─ (1xx) ─ respond ─ stream ─ complete

Each step is a callback of the one before; a request costs no task and no future. A step that fails ends in ``refuse``
while nothing of a response was written, in ``cut`` or ``client_gone`` after that, by whose fault it was. However a
request ends, its hold ends with it, once: settled when the API did the work, given back when it did not.

This module is long because the steps share one state and are understood together.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Final

from sidecar.gateway import errors
from sidecar.gateway.errors import Refusal
from sidecar.gateway.exchange.credit_fields import granted_fields, refusal_of
from sidecar.gateway.http1.body import Body, BodyKind, Piece, open_body
from sidecar.gateway.http1.fields import list_elements
from sidecar.gateway.http1.framing import ProtocolError, RequestHead, ResponseHead
from sidecar.gateway.routes import Route
from sidecar.gateway.upstream import UpstreamConnection, UpstreamError
from sidecar.identity.types import Identity, IdentityUnavailable, Outcome, Unidentified
from sidecar.ledger.client.outcomes import Code, Event, Hold
from sidecar.ledger.client.unknown_accounts import Sight

if TYPE_CHECKING:
    from sidecar.gateway.connection import ClientConnection
    from sidecar.gateway.gateway import Gateway

CLIENT_CLOSED: Final = 499
"""Status in events and metrics of a request whose client went away (nginx's number for it)."""
INTERACTION_ID: Final = b"x-fapi-interaction-id"
TRACEPARENT: Final = b"traceparent"
IDEMPOTENCY_KEYS: Final = (b"x-idempotency-key", b"idempotency-key")
IDEMPOTENCY_KEY_BYTES_MAX: Final = 255
# A look into an enumeration takes as long as a method call, one at a name that may be bound anew half as long.
_NONE: Final = BodyKind.NONE
_LENGTH: Final = BodyKind.LENGTH
_CHUNKED: Final = BodyKind.CHUNKED
_UNTIL_CLOSE: Final = BodyKind.UNTIL_CLOSE
_GRANTED: Final = int(Code.GRANTED)
_REPEAT: Final = int(Code.REPEAT)
_clock: Final = monotonic
_IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"})  # RFC 9110 section 9.2.2
_JOIN_BYTES_MAX: Final = 65_536
METHODS: Final[dict[bytes, str]] = {m.encode(): m for m in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}
_status_lines: Final[dict[tuple[int, bytes], bytes]] = {}


def status_line(status: int, reason: bytes) -> bytes:
    key = (status, reason)
    line = _status_lines.get(key)
    if line is None:
        line = b"HTTP/1.1 %d %b\r\n" % (status, reason)
        if len(_status_lines) < 256:
            _status_lines[key] = line
    return line


class Exchange:
    """See the module. ``connection`` is None once the client has gone."""

    # What most exchanges never change stands in the class, not in each of them: an object is made for every request.
    account = ""
    hold: Hold | None = None
    asked = False
    spooled = False
    charged_units = 0
    body: Body | None = None
    queued: list[Piece] | None = None
    queued_bytes = 0
    upstream: UpstreamConnection | None = None
    upstream_spoke = False
    upstream_ended = False
    continued = False
    sent = False
    retried = False
    response: ResponseHead | None = None
    response_buffer = b""
    response_searched = 0
    decoder: Body | None = None
    tunnel = False
    finished = False

    def __init__(self, gateway: Gateway, connection: ClientConnection, head: RequestHead, started: float) -> None:
        self.gateway = gateway
        self.connection: ClientConnection | None = connection
        assert connection.pool is not None
        self.pool = connection.pool
        self.head = head
        self.started = started
        self.deadline = started + gateway.settings.response_timeout_s
        self.route: Route = gateway.no_route
        if head.body is not _NONE:
            self.body = open_body(head.body, head.length, gateway.request_parser.request_rules, chunked=True)

    def __repr__(self) -> str:
        stage = (
            "finished" if self.finished else "tunnel" if self.tunnel else "response" if self.response
            else "sent" if self.sent else "waiting"
        )  # fmt: skip
        return f"<Exchange {self.head.method.decode()} {self.route.name} {stage}>"

    @property
    def body_done(self) -> bool:
        return self.body is None or self.body.done

    # begin, identify, hold

    def begin(self) -> None:
        head, gateway = self.head, self.gateway
        try:
            self.route = route = gateway.routes.find(head.method, head.path)
        except ProtocolError as error:
            self.refuse(Refusal(errors.BAD_REQUEST, error.reason, error.status))
            return
        if route.deny:
            self.refuse(Refusal(errors.NOT_FOUND, f"No route leads to {head.path[:200].decode('latin-1')}."))
        elif route.free:
            self._connect()
        else:
            assert self.connection is not None
            outcome = gateway.identity.identify(head.fields, self.connection.peer)
            if isinstance(outcome, Identity):
                self.account = outcome.account
                self._take_hold()
            elif isinstance(outcome, Unidentified):
                self._unidentified(outcome)
            else:
                outcome.add_done_callback(self._identified_later)

    def _identified_later(self, future: asyncio.Future[Outcome]) -> None:
        if self.finished:
            if not future.cancelled():
                future.exception()  # looked at, so that it is not reported as lost
            return
        try:
            outcome = future.result()
        except IdentityUnavailable as error:
            self.refuse(Refusal(errors.IDENTITY_UNAVAILABLE, str(error), headers=(("Retry-After", "1"),)))
        except asyncio.CancelledError:
            self.refuse(Refusal(errors.IDENTITY_UNAVAILABLE, headers=(("Retry-After", "1"),)))
        else:
            if isinstance(outcome, Identity):
                self.account = outcome.account
                self._take_hold()
            else:
                self._unidentified(outcome)

    def _unidentified(self, outcome: Unidentified) -> None:
        headers = (("WWW-Authenticate", outcome.challenge),) if outcome.challenge else ()
        self.refuse(Refusal(errors.UNIDENTIFIED, outcome.reason, headers=headers))

    def _take_hold(self) -> None:
        route = self.route
        scope = self._idempotency_scope()
        hold = self.gateway.ledger.hold(self.account, route.metric, route.units, self._held, scope)
        if self.hold is None:  # else it was decided at once, and _held has it
            self.hold = hold

    def _idempotency_scope(self) -> bytes | None:
        """What makes two requests one logical call. Method and target are in it, so that one key cannot make every call
        free."""
        head = self.head
        if head.method not in self.route.idempotent_methods:
            return None
        for name in IDEMPOTENCY_KEYS:
            key = head.fields.get(name)
            if key and len(key) <= IDEMPOTENCY_KEY_BYTES_MAX:
                return head.method + b" " + head.target + b"\0" + key
        return None

    def _held(self, hold: Hold) -> None:
        self.hold = hold
        gateway = self.gateway
        now = _clock()
        gateway.counters.hold.observe(now - self.started)
        code = hold.code
        if code in (_GRANTED, _REPEAT):
            self._connect(now)
        elif code == Code.UNAVAILABLE and gateway.spool is not None and gateway.spool.admit(self.account, hold.units):
            self.spooled = True
            self._connect()
        elif code == Code.UNKNOWN and gateway.first_sight is not None and not self.asked:
            self.asked = True
            gateway.first_sight.ask(self.account, self._sighted)
        else:
            self.refuse(refusal_of(hold))

    def _sighted(self, sight: Sight) -> None:
        """The account was not in the ledger; whoever knows it was asked to bring it."""
        hold = self.hold
        if self.finished or hold is None:
            return
        if sight is Sight.KNOWN:
            self.hold = None
            self._take_hold()
        elif sight is Sight.ABSENT:
            self.refuse(refusal_of(hold))
        else:
            self.refuse(
                Refusal(errors.LEDGER_UNAVAILABLE, "The account is being looked up.", headers=(("Retry-After", "1"),))
            )

    # connect, send

    def _connect(self, now: float = 0.0) -> None:
        """``now``: the clock's time if it was just read."""
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
                self.gateway.note_upstream_failure(str(upstream))
                self.refuse(Refusal(kind))
            return
        if self.finished:
            self.pool.release(upstream)
        else:
            self._send(upstream)

    def _send(self, upstream: UpstreamConnection, now: float = 0.0) -> None:
        self.upstream = upstream
        upstream.user = self
        self.sent = True
        request = self._request_head()
        if self.queued:
            if not self.body_done and self.connection is not None:
                self.connection.resume_reading()  # before the write, which may find the API slow and pause it again
            pieces = [request, *self.queued]
            self.queued = None
            self.queued_bytes = 0
            self._write_pieces(upstream.transport, pieces)
        else:
            upstream.transport.write(request)
        if self.body is None:
            self.deadline = (now or _clock()) + self.gateway.settings.response_timeout_s
        else:
            self._await_response()

    def _await_response(self) -> None:
        settings = self.gateway.settings
        waits_for_upstream = self.body_done or self._awaits_continue
        limit = settings.response_timeout_s if waits_for_upstream else settings.body_timeout_s
        self.deadline = _clock() + limit

    @property
    def _awaits_continue(self) -> bool:
        """The client may rightly wait for 100 before it sends its body (RFC 9110 section 10.1.1)."""
        return self.head.expect_continue and not self.continued and self.body is not None and not self.body.received

    def _request_head(self) -> bytes:
        head, connection = self.head, self.connection
        assert connection is not None
        tail = connection.forwarded_lines(head)
        if head.body is _CHUNKED:
            tail += b"Transfer-Encoding: chunked\r\n"
        if head.upgrade is not None:
            tail += b"Connection: Upgrade\r\nUpgrade: " + head.upgrade + b"\r\n"
        elif head.te_trailers:
            tail += b"Connection: TE\r\nTE: trailers\r\n"
        if not head.version_minor and b"host" not in head.fields:
            tail += b"Host: " + (head.host or self.pool.target.authority) + b"\r\n"
        return b"%b %b HTTP/1.1\r\n%b%b\r\n" % (head.method, head.origin_target, head.block, tail)

    def client_data(self, data: bytes) -> None:
        """A piece of the request's body, or of a tunnel."""
        if self.tunnel:
            assert self.upstream is not None
            self.deadline = _clock() + self.gateway.settings.tunnel_idle_timeout_s
            self.upstream.transport.write(data)
            return
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
            self._write_pieces(self.upstream.transport, pieces)
            if self.response is None:
                self._await_response()
            else:
                self._touch()
        elif not self.finished:
            self.queued = [*(self.queued or ()), *pieces]
            self.queued_bytes += len(data)
            if self.queued_bytes >= self.gateway.settings.buffer_bytes_high and not body.done:
                connection.pause_reading()

    def client_eof(self) -> None:
        """The client will send nothing more."""
        if self.tunnel:
            assert self.upstream is not None
            if self.upstream_ended or not self.upstream.transport.can_write_eof():
                self._end_tunnel()
            else:
                self.upstream.transport.write_eof()
        elif not self.body_done:
            self.client_gone()  # the request can never be completed

    @staticmethod
    def _write_pieces(transport: asyncio.Transport, pieces: list[Piece]) -> None:
        if len(pieces) == 1:
            transport.write(pieces[0])
        elif sum(map(len, pieces)) <= _JOIN_BYTES_MAX:
            transport.write(b"".join(pieces))
        else:
            transport.writelines(pieces)

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
                found = self.gateway.response_parser.response(data, self.head.method, at, self.response_searched)
            except ProtocolError as error:
                self.gateway.note_upstream_failure(f"{self.pool.target} answered nonsense: {error.reason}")
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
                self._begin_tunnel(response, data[at:])
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
        tail = self.gateway.via[response.version_minor]
        if self.hold is not None:
            tail = self._credit_fields(self.hold) + tail
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
        line = _status_lines.get((response.status, response.reason)) or status_line(response.status, response.reason)
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
            self.decoder = open_body(
                kind, response.length, self.gateway.response_parser.response_rules, chunked=not is_1_0
            )
            if rest:
                self._stream(rest, out)
            else:
                connection.transport.write(out)
                self._touch()

    def _credit_fields(self, hold: Hold) -> bytes:
        settings = self.gateway.settings
        if not (hold.open or hold.code == _REPEAT):
            return b""
        return granted_fields(hold, credits=settings.credit_headers, rate_limit=settings.rate_limit_headers)

    def _stream(self, data: bytes, before: bytes = b"") -> None:
        connection, decoder = self.connection, self.decoder
        if self.tunnel:
            assert connection is not None
            self._touch()
            connection.transport.write(data)
            return
        assert connection is not None
        assert decoder is not None
        try:
            pieces = decoder.feed(data)
        except ProtocolError as error:
            self.gateway.note_upstream_failure(f"{self.pool.target}: {error.reason}")
            if before:
                connection.transport.write(before)
            self.cut()
            return
        if before:
            pieces.insert(0, before)
        if pieces:
            self._write_pieces(connection.transport, pieces)
        if decoder.done:
            self._complete(clean=not decoder.leftover)
        else:
            self._touch()

    def _touch(self) -> None:
        settings = self.gateway.settings
        if self.tunnel:
            self.deadline = _clock() + settings.tunnel_idle_timeout_s
            return
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
        self._end_hold(response.status, response.status, now)
        if upstream is not None:
            self.upstream = None
            # One that answered before it took the whole request may never take the rest.
            took_all = self.body is None or (self.body.done and not upstream.transport.get_write_buffer_size())
            if clean and response.keep_alive and took_all:
                self.pool.release(upstream, now)
            else:
                upstream.close()
        self.gateway.finished(self, response.status, now, refused=False)
        connection.exchange_done(now, unread_body=not self.body_done)

    def _end_hold(self, decisive_status: int, reported_status: int, now: float) -> None:
        """Settles or gives back. ``decisive_status`` is the API's answer; the event carries ``reported_status``."""
        hold = self.hold
        if hold is None:
            return
        gateway, route = self.gateway, self.route
        charged = decisive_status in route.charged
        if hold.open:
            if not charged:
                gateway.counters.released += 1
                gateway.ledger.release(hold)
                return
            gateway.ledger.settle(hold, self._event(reported_status, now))
            self.charged_units = hold.units
            charged_units = gateway.counters.charged_units
            charged_units[hold.metric] = charged_units.get(hold.metric, 0) + hold.units
        elif self.spooled and gateway.spool is not None:
            self.spooled = False
            if charged:
                gateway.spool.charge(hold, self._event(reported_status, now))
                self.charged_units = hold.units
            else:
                gateway.spool.give_back(self.account, hold.units)
        hold.callback = None

    def _event(self, status: int, now: float) -> Event:
        fields = self.head.fields
        interaction_id = fields.get(INTERACTION_ID)
        traceparent = fields.get(TRACEPARENT)
        elapsed_ms = int((now - self.started) * 1_000_000) / 1000  # round() to digits takes ten times as long
        hold = self.hold
        assert hold is not None
        method = self.head.method
        return (
            hold.account, hold.metric, hold.units, self.route.name, METHODS.get(method) or method.decode(), status,
            elapsed_ms,
            interaction_id[:128].decode("latin-1") if interaction_id else None,
            traceparent[:128].decode("latin-1") if traceparent else None,
        )  # fmt: skip

    def _give_back(self) -> None:
        """Ends the hold without a charge: the request never reached the API, or the API failed."""
        hold = self.hold
        if hold is None:
            return
        hold.callback = None
        if hold.open:
            self.gateway.counters.released += 1
            self.gateway.ledger.release(hold)
        elif self.spooled and self.gateway.spool is not None:
            self.spooled = False
            self.gateway.spool.give_back(self.account, hold.units)

    # what goes wrong

    def refuse(self, refusal: Refusal) -> None:
        """Answers with an error. Only while nothing of another response was written."""
        if self.finished:
            return
        self.finished = True
        self.gateway.detached.discard(self)
        self._give_back()
        if self.sent:
            self._drop_upstream()
        else:
            self.pool.cancel(self._connected)
        status = refusal.status or refusal.kind.status
        self.gateway.counters.refuse(refusal.kind.name)
        now = _clock()
        self.gateway.finished(self, status, now, refused=True, reason=refusal.kind.name)
        connection = self.connection
        if connection is None:
            return
        keep = self.head.keep_alive and self.body_done and connection.may_go_on and status not in (400, 408, 413)
        interaction_id = self.head.fields.get(INTERACTION_ID)
        connection.keep = keep
        connection.transport.write(
            self.gateway.errors.response(
                refusal,
                keep_alive=keep,
                head_only=self.head.method == b"HEAD",
                interaction_id=interaction_id.decode("latin-1") if interaction_id else None,
                version_minor=self.head.version_minor,
            )
        )
        connection.exchange_done(now, unread_body=not self.body_done)

    def cut(self) -> None:
        """The response cannot be completed: both ends are closed, so that nobody takes it for whole. Not charged."""
        if self.finished:
            return
        self.finished = True
        self.gateway.counters.upstream_aborts += 1
        self._give_back()
        self._drop_upstream()
        self.gateway.finished(self, 502, _clock(), refused=True, reason="upstream-cut")
        if self.connection is not None:
            self.connection.reset()

    def _drop_upstream(self) -> None:
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.close()

    def client_gone(self) -> None:
        """The client's connection is lost."""
        if self.finished:
            return
        connection, self.connection = self.connection, None
        self.gateway.counters.client_aborts += 1
        if self.tunnel:
            self._end_tunnel()
        elif self.response is not None:
            # The API did the work.
            self.finished = True
            now = _clock()
            self._end_hold(self.response.status, CLIENT_CLOSED, now)
            self._drop_upstream()
            self.gateway.finished(self, CLIENT_CLOSED, now, refused=False)
        elif self.sent and self.body_done:
            # It may be doing the work: its status decides.
            self.gateway.detach(self)
        else:
            self.finished = True
            self._give_back()
            self.pool.cancel(self._connected)
            self._drop_upstream()
            self.gateway.finished(self, CLIENT_CLOSED, _clock(), refused=False)
        if connection is not None:
            connection.reset()

    def _complete_without_client(self, status: int) -> None:
        self.finished = True
        self.gateway.detached.discard(self)
        now = _clock()
        self._end_hold(status, CLIENT_CLOSED, now)
        self._drop_upstream()
        self.gateway.finished(self, CLIENT_CLOSED, now, refused=False)

    def timed_out(self) -> None:
        """``deadline`` has passed. Whose fault it is decides what follows, and who pays."""
        connection, upstream = self.connection, self.upstream
        if self.finished:
            return
        if self.tunnel:
            self._end_tunnel()
        elif any(end is not None and end.still_taking() for end in (connection, upstream)):
            # Slow is not dead: some of what waits to be written went out since the limit was set.
            self.deadline = _clock() + self.gateway.settings.write_timeout_s
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
            self.gateway.note_upstream_failure(f"{self.pool.target} did not answer in time")
            self.refuse(Refusal(errors.UPSTREAM_TIMEOUT))

    def sweep(self, now: float) -> None:
        """For an exchange that goes on without its client."""
        if self.deadline < now:
            self.timed_out()

    def _client_is_late(self) -> bool:
        """Whether it is the client that does not take its response, or does not send its body although it may."""
        connection = self.connection
        if connection is None:
            return False
        return connection.writing_paused or not (self.body_done or connection.reading_paused or self._awaits_continue)

    def upstream_eof(self) -> bool:
        """The API will send nothing more. True keeps its connection for what the client still has to say."""
        decoder = self.decoder
        if self.tunnel:
            self.upstream_ended = True
            connection = self.connection
            if connection is None or connection.eof or not connection.transport.can_write_eof():
                self._end_tunnel()
                return False
            connection.transport.write_eof()
            return True
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
        if self.tunnel:
            self._end_tunnel()
        elif self.response is not None:
            if self.response.body is _UNTIL_CLOSE and exc is None:
                self.upstream_eof()
            else:
                self.cut()
        elif self._may_repeat(upstream):
            self.retried = True
            self.sent = False
            self.gateway.counters.upstream_retries += 1
            self.pool.acquire(self._connected, fresh=True)
        else:
            self.gateway.note_upstream_failure(f"{self.pool.target} closed the connection without an answer")
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

    # tunnels

    def _begin_tunnel(self, response: ResponseHead, rest: bytes) -> None:
        connection = self.connection
        asked, chosen = self.head.upgrade, response.upgrade
        # RFC 9110 section 7.8: a server must not switch to a protocol that the client did not name.
        if connection is None or asked is None or chosen is None or chosen.lower() not in list_elements(asked):
            self.gateway.note_upstream_failure(f"{self.pool.target} switched protocols unasked")
            self.refuse(Refusal(errors.UPSTREAM_FAILED))
            return
        self.response = response
        self.tunnel = True
        self.gateway.counters.tunnels += 1
        lines = (
            response.block
            + (self._credit_fields(self.hold) if self.hold is not None else b"")
            + self.gateway.via[response.version_minor]
            + b"Connection: Upgrade\r\nUpgrade: "
            + chosen
            + b"\r\n"
        )
        connection.transport.write(status_line(101, response.reason) + lines + b"\r\n" + rest)
        self._end_hold(101, 101, _clock())
        self._touch()
        connection.tunnel_begun()

    def _end_tunnel(self) -> None:
        self.finished = True
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.end()
        self.gateway.finished(self, 101, _clock(), refused=False)
        if self.connection is not None:
            self.connection.end()
