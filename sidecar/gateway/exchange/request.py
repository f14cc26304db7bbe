"""The request's way to the API: the body's beginning, a connection, the head, the rest of the body.

A body is gathered before the call is charged and a connection to the API is taken: all of a short one, the first
``request_buffer_bytes`` of a longer one. Until then the API has heard nothing, so a client that sends slowly takes
nobody's place, and one that breaks off has got nothing. From then on the API may have done the work.
"""

from __future__ import annotations

from time import monotonic
from typing import Final

from sidecar.gateway import errors
from sidecar.gateway.admission.places import ANONYMOUS
from sidecar.gateway.client import Client
from sidecar.gateway.context import EXPECT, GatewayContext
from sidecar.gateway.counters import (
    SHED_BODIES,
    SHED_PLACES,
    SHED_QUEUE,
    SHED_SHARE,
    SHED_STREAMS,
    SHED_UNIDENTIFIED,
)
from sidecar.gateway.errors import Refusal
from sidecar.gateway.exchange.charging import RETRY, ChargedRelay
from sidecar.gateway.exchange.messages import request_head, write_pieces
from sidecar.gateway.http1.body import Body, BodyKind, Piece, open_body
from sidecar.gateway.http1.fields import without
from sidecar.gateway.http1.framing import ProtocolError
from sidecar.gateway.http1.heads import RequestHead, ResponseHead
from sidecar.gateway.idempotency import content_of
from sidecar.gateway.interaction_id import LINE_ENDS
from sidecar.gateway.upstream import UpstreamConnection, UpstreamError

# A look into an enumeration takes as long as a method call, one at a name that may be bound anew half as long.
_NONE: Final = BodyKind.NONE
_CHUNKED: Final = BodyKind.CHUNKED
_SHED_DETAILS: Final = {
    SHED_PLACES: "Too many calls are under way.",
    SHED_QUEUE: "Too many calls wait.",
    SHED_STREAMS: "Too many of the caller's connections stay open.",
    SHED_BODIES: "Too many requests are being received.",
    SHED_UNIDENTIFIED: "Too many connections are open.",
    SHED_SHARE: "Too many connections are open.",
}
"""What the caller reads."""
_EXPECT: Final = frozenset({EXPECT})
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
PIECES_MAX: Final = 64
"""Of a gathered body. More become one: small ones take many times the memory of their bytes."""
LAG_S: Final = 1.0
"""A client that has left an answer waiting for so long, in all, or the API for the next piece of a body, is why an API
gives up."""
_clock: Final = monotonic


class RequestRelay(ChargedRelay):
    """Sends the request once it is `granted`. ``response``: the head of the API's answer, once it has arrived.

    ``continued``: the client was told to send its body. ``allowed``: the call may go to the API when its body is there.
    ``body_at``: when something of the body last came, or could come again, after its beginning had gone to the API.
    """

    # What most exchanges never change stands in the class, not in each of them: an object is made for every request.
    body: Body | None = None
    queued: list[Piece] | None = None
    queued_bytes = 0
    upstream: UpstreamConnection | None = None
    continued = False
    allowed = False
    sent = False
    waits_for_room = False
    favoured = False
    counted_for = ""
    rate_began = 0.0
    rate_received = 0
    body_began = 0.0
    body_at = 0.0
    body_is_slow = False
    window_began = 0.0
    window_received = 0
    response: ResponseHead | None = None

    def __init__(self, context: GatewayContext, connection: Client, head: RequestHead, started: float) -> None:
        super().__init__(context, connection, head, started)
        assert connection.pool is not None
        self.pool = connection.pool
        self.deadline = started + context.settings.response_timeout_s
        if head.body is not _NONE:
            self.body = open_body(head.body, head.length, context.request_parser.request_rules, chunked=True)

    @property
    def body_done(self) -> bool:
        return self.body is None or self.body.done

    @property
    def gathered(self) -> bool:
        """Whether as much of the body is there as the API has to wait for. Its content counts, not its framing, and one
        in chunks that may end just here is waited for: how it is cut must not tell whether it is whole."""
        body = self.body
        if body is None or body.done or not self.route.buffered:
            return True
        beyond = body.received - self.context.settings.request_buffer_bytes
        return beyond > 0 or (beyond == 0 and self.head.body is not _CHUNKED)

    # gather

    def content(self) -> bytes | None:
        body = self.body
        if body is None:
            return b""
        if not body.done or body.received > self.context.settings.request_buffer_bytes:
            return None
        return content_of(
            self.queued or (), self.context.request_parser.request_rules, chunked=self.head.body is _CHUNKED
        )

    def identified(self) -> None:
        if self.connection is not None:
            self.connection.account = self.account
        if self.body is None:
            self.take_hold()
            return
        if self.queued_bytes:
            self.context.bodies.move(self.counted_for, self.account, self.queued_bytes)
        self.counted_for = self.account
        # Who was refused a moment ago is asked about at once, so that the refusal need not wait for a long body. So is
        # a client that waits to hear whether it should send one. Under an idempotency key the body counts too.
        asks_at_once = self.awaits_continue or self.account in self.context.refused_accounts
        if self.gathered or (asks_at_once and self.caller_key is None):
            self.take_hold()
        else:
            self._await_body()

    def _await_body(self) -> None:
        """Waits for as much of the body as is gathered, and asks the client for it if that is what it waits for."""
        connection = self.connection
        assert connection is not None
        if self.awaits_continue:
            self.continued = True
            connection.transport.write(_CONTINUE)
        self._heed_room()
        if not self.waits_for_room:
            connection.resume_reading()  # it may have stopped until it was known whose body it is
        self.deadline = self._body_deadline(_clock())

    def _heed_room(self) -> None:
        """Stops reading if all bodies together, or the account's, take too much memory."""
        bodies, account = self.context.bodies, self.counted_for
        if self.waits_for_room or self.favoured or bodies.has_room(account):
            return
        if bodies.wait(account, self._room_again):
            self.waits_for_room = True
            assert self.connection is not None
            self.connection.pause_reading()
        else:
            self.favoured = True

    def _room_again(self, favoured: bool) -> None:
        self.waits_for_room = False
        self.favoured = favoured
        if self.connection is not None and not self.finished:
            self.restart_rate()
            self.deadline = self._body_deadline(_clock())
            self.connection.resume_reading()

    def _gather(self, pieces: list[Piece], size: int) -> None:
        """Keeps what came of the body while the API is not there to take it."""
        connection, context, body = self.connection, self.context, self.body
        assert connection is not None
        assert body is not None
        queued = self.queued
        if queued is None:
            queued = self.queued = pieces
        else:
            queued += pieces
        if len(queued) > PIECES_MAX:
            self.queued = [b"".join(queued)]
        self.queued_bytes += size
        context.bodies.add(self.counted_for, size)
        if self.gathered:
            if not body.done and (self.route.buffered or self.queued_bytes >= context.settings.buffer_bytes_high):
                connection.pause_reading()
            self.deadline = _clock() + context.settings.response_timeout_s
            if self.allowed:
                self.granted()
            elif self.account and not self.asked_for_hold:
                self.take_hold()
        else:
            self.deadline = self._body_deadline(_clock())
            if self.account or self.allowed:
                self._heed_room()
            elif self.queued_bytes >= context.settings.request_buffer_bytes:
                connection.pause_reading()  # it is soon known whose room it takes

    def drop_gathered(self) -> None:
        """What was gathered has gone to the API, or nowhere."""
        if self.waits_for_room:
            self.waits_for_room = False
            self.context.bodies.forget(self.counted_for, self._room_again)
        size, self.queued_bytes = self.queued_bytes, 0
        self.queued = None
        if size or self.favoured:
            self.context.bodies.free(self.counted_for, size, favoured=self.favoured)
            self.favoured = False

    # send

    def granted(self, now: float = 0.0) -> None:
        if self.body is not None and not self.gathered:
            self.allowed = True
            self._await_body()
            return
        pool = self.pool
        upstream = pool.take_idle(self.place)
        if upstream is not None:
            self._send(upstream, now)
        else:
            self.ask_for_place()

    @property
    def place(self) -> str:
        """Whose share of the connections to the API it takes."""
        return ANONYMOUS if self.route.free else self.account

    def ask_for_place(self, *, fresh: bool = False) -> None:
        """Asks for a connection to the API; how long it waits for others is limited."""
        if self.head.upgrade is not None and not self.pool.may_stream(self.place):
            self.shed(SHED_STREAMS)
        elif self.pool.acquire(self.connected, self.place, fresh=fresh):
            self.deadline = _clock() + self.context.settings.admission_timeout_s

    def shed(self, reason: str) -> None:
        """Refuses what there is no room for."""
        self.shed_for = reason
        peer = self.connection.peer.address if self.connection is not None else ""
        self.context.shed(reason, peer, self.account)
        self.refuse(Refusal(errors.OVERLOADED, _SHED_DETAILS[reason], headers=RETRY))

    def connected(self, upstream: UpstreamConnection | UpstreamError) -> None:
        """A connection to the API, or why there is none."""
        if isinstance(upstream, UpstreamError):
            if not self.finished:
                kind, detail = errors.UPSTREAM_FAILED, errors.CANNOT_CONNECT
                if upstream.overloaded:
                    self.shed(SHED_QUEUE)
                    return
                if upstream.timed_out:
                    kind = errors.UPSTREAM_TIMEOUT
                self.context.note_upstream_failure(str(upstream))
                self.refuse(Refusal(kind, detail))
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
        head = self.head
        if head.marked and self.route.buffered and EXPECT in head.fields:
            head.block = without(head.block, _EXPECT)  # the gateway has met it
        forwarded = connection.forwarded_lines(head, self.identity)
        if self.id_is_new:
            line, end = self.id_block.line, LINE_ENDS[self.id_number]
            request = request_head(head, forwarded, self.pool.target, line, end)
        else:
            request = request_head(head, forwarded, self.pool.target)
        if self.queued:
            if not self.body_done:
                connection.resume_reading()  # before the write, which may find the API slow and pause it again
            pieces = [request, *self.queued]
            self.drop_gathered()
            write_pieces(upstream.transport, pieces)
        else:
            upstream.transport.write(request)
        if self.body is None:
            self.deadline = (now or _clock()) + self.context.settings.response_timeout_s
        else:
            self.restart_rate()
            self.await_response()

    def await_response(self) -> None:
        """Sets the deadline while the API, or the rest of the request, is waited for."""
        now = _clock()
        connection = self.connection
        if self.body_done or self.awaits_continue or connection is None or connection.reading_paused:
            self.deadline = now + self.context.settings.response_timeout_s
        else:
            self.deadline = self._body_deadline(now)

    def _body_deadline(self, now: float) -> float:
        """When the body has taken too long, if nothing more of it comes: since its last byte, in all, or at its
        rate."""
        body, settings = self.body, self.context.settings
        assert body is not None
        if not self.body_began:
            self.body_began = self.rate_began = now
        deadline = min(now + settings.body_timeout_s, self.body_began + settings.body_deadline_s)
        rate = settings.bytes_per_second_min
        if rate:
            grace = self.rate_began + settings.body_timeout_s
            deadline = min(deadline, grace + (body.received - self.rate_received) / rate)
        return deadline

    def restart_rate(self) -> None:
        """The client could not send for a while: its rate counts from now on."""
        if self.body is not None:
            self.rate_began = self.body_at = self.window_began = _clock()
            self.rate_received = self.window_received = self.body.received
            self.body_is_slow = False

    def owes_body(self) -> bool:
        """Whether the client has kept the API waiting for the rest of a body, or sends it slower than it has to. An
        API that gives it up is not at fault, and may have worked on what it had."""
        connection, body = self.connection, self.body
        if not self.sent or connection is None or body is None or body.done:
            return False
        if connection.reading_paused or self.awaits_continue:
            return False
        return self.body_is_slow or _clock() - self.body_at >= LAG_S

    def _note_piece(self, body: Body) -> None:
        """Something of the body came and goes to the API. About once a second, whether it is enough."""
        self.body_at = now = _clock()
        since = now - self.window_began
        if since >= LAG_S:
            enough = self.context.settings.bytes_per_second_min * since
            self.body_is_slow = body.received - self.window_received < enough
            self.window_began = now
            self.window_received = body.received

    @property
    def awaits_continue(self) -> bool:
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
            if self.response is not None:
                self.client_gone()  # the API has answered; it is the client's fault that the rest is cut off
            else:
                self.fault_of_client(Refusal(errors.BAD_REQUEST, error.reason, error.status))
            return
        if body.done:
            connection.take_leftover(body.leftover)
        if self.upstream is not None:
            self._note_piece(body)
            write_pieces(self.upstream.transport, pieces)
            if self.response is None:
                self.await_response()
            else:
                self.touch()
        elif not self.finished:
            self._gather(pieces, len(data))

    def fault_of_client(self, refusal: Refusal) -> None:
        """The client did not send a body as it should. Answers it, while nothing of another response was written."""
        raise NotImplementedError

    def client_eof(self) -> None:
        if not self.body_done:
            self.client_gone()  # the request can never be completed
        elif self.response is not None:
            self.touch()

    def drop_upstream(self) -> None:
        """Closes the connection to the API; it tells nothing more."""
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.close()

    def touch(self) -> None:
        """Sets the deadline anew while an answer is under way."""
        raise NotImplementedError
