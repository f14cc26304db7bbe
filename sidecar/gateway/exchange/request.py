"""The request's way to the API: a connection, the head, the body."""

from __future__ import annotations

from time import monotonic
from typing import Final

from sidecar.gateway import errors
from sidecar.gateway.client import Client
from sidecar.gateway.context import GatewayContext
from sidecar.gateway.errors import Refusal
from sidecar.gateway.exchange.charging import ChargedRelay
from sidecar.gateway.exchange.messages import request_head, write_pieces
from sidecar.gateway.http1.body import Body, BodyKind, Piece, open_body
from sidecar.gateway.http1.framing import ProtocolError
from sidecar.gateway.http1.heads import RequestHead, ResponseHead
from sidecar.gateway.interaction_id import LINE_ENDS
from sidecar.gateway.upstream import UpstreamConnection, UpstreamError

# A look into an enumeration takes as long as a method call, one at a name that may be bound anew half as long.
_NONE: Final = BodyKind.NONE
_clock: Final = monotonic


class RequestRelay(ChargedRelay):
    """Sends the request once it is `granted`. ``response``: the head of the API's answer, once it has arrived."""

    # What most exchanges never change stands in the class, not in each of them: an object is made for every request.
    body: Body | None = None
    queued: list[Piece] | None = None
    queued_bytes = 0
    upstream: UpstreamConnection | None = None
    continued = False
    sent = False
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

    def granted(self, now: float = 0.0) -> None:
        pool = self.pool
        upstream = pool.take_idle()
        if upstream is not None:
            self._send(upstream, now)
        else:
            pool.acquire(self.connected)

    def connected(self, upstream: UpstreamConnection | UpstreamError) -> None:
        """A connection to the API, or why there is none."""
        if isinstance(upstream, UpstreamError):
            if not self.finished:
                kind, detail = errors.UPSTREAM_FAILED, errors.CANNOT_CONNECT
                if upstream.overloaded:
                    kind, detail = errors.OVERLOADED, ""
                elif upstream.timed_out:
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
        head, forwarded = self.head, connection.forwarded_lines(self.head, self.identity)
        if self.id_is_new:
            line, end = self.id_block.line, LINE_ENDS[self.id_number]
            request = request_head(head, forwarded, self.pool.target, line, end)
        else:
            request = request_head(head, forwarded, self.pool.target)
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
            self.await_response()

    def await_response(self) -> None:
        """Sets the deadline while the API, or the rest of the request, is waited for."""
        settings = self.context.settings
        waits_for_upstream = self.body_done or self.awaits_continue
        limit = settings.response_timeout_s if waits_for_upstream else settings.body_timeout_s
        self.deadline = _clock() + limit

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
                self.await_response()
            else:
                self.touch()
        elif not self.finished:
            self.queued = [*(self.queued or ()), *pieces]
            self.queued_bytes += len(data)
            if self.queued_bytes >= self.context.settings.buffer_bytes_high and not body.done:
                connection.pause_reading()

    def client_eof(self) -> None:
        if not self.body_done:
            self.client_gone()  # the request can never be completed

    def drop_upstream(self) -> None:
        """Closes the connection to the API; it tells nothing more."""
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.close()

    def touch(self) -> None:
        """Sets the deadline anew while an answer is under way."""
        settings = self.context.settings
        paused = self.connection is not None and self.connection.writing_paused
        limit = settings.write_timeout_s if paused else settings.upstream_idle_timeout_s
        self.deadline = _clock() + limit
