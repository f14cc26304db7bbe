"""One request from its head to the last byte of its answer.

The steps, in their order, and the class that has each; every class extends the one before it:

    begin                        Exchange       this module: the route, and everything that goes wrong
    charge, identified           ChargedRelay   ``charging``: whose request it is
    gather                       RequestRelay   ``request``: the body, or the beginning of a long one
    take_hold, granted           ChargedRelay   the hold
    send                         RequestRelay   a connection to the API, the head, the body
    (1xx), respond, stream       AnswerRelay    ``answer``: the head and the body to the client
    complete, settle or release  AnswerRelay    the charge, then the next request

Why in this order: the route says whether there is anything to charge, so it comes first. Identity says whose hold it
is, so it comes before the hold; and before the body, which a stranger need not send. The body comes before the hold,
so that nothing is held for who sends slowly. The hold comes before a connection to the API, so that no request reaches
the API unpaid. The charge comes last, because only the answer tells whether the API did the work. After a 101 a
``tunnel`` takes over.

Each step is a callback of the one before it; a request costs no task and no future. A step that fails ends in
``refuse`` while nothing of a response was written, and in ``cut`` or ``client_gone`` after that. However a request
ends, its hold ends with it, once.
"""

from __future__ import annotations

from time import monotonic
from typing import Final

from sidecar.gateway import errors
from sidecar.gateway.admission.free_rates import FreeRates
from sidecar.gateway.client import Client
from sidecar.gateway.counters import SHED_BODIES, SHED_FREE, SHED_PLACES
from sidecar.gateway.errors import Refusal
from sidecar.gateway.exchange.access_log import record
from sidecar.gateway.exchange.answer import CLIENT_CLOSED, CLIENT_LEFT, AnswerRelay
from sidecar.gateway.exchange.marks import ends_here, given_interaction_id, read_marks
from sidecar.gateway.half_close import half_close
from sidecar.gateway.http1.body import BodyKind
from sidecar.gateway.http1.framing import ProtocolError
from sidecar.gateway.http1.heads import ResponseHead
from sidecar.gateway.interaction_id import FAPI_INTERACTION_ID, LINE_ENDS, is_interaction_id
from sidecar.gateway.routes import SAFE_METHODS
from sidecar.gateway.untaken import untaken
from sidecar.gateway.upstream import UpstreamConnection

_UNTIL_CLOSE: Final = BodyKind.UNTIL_CLOSE
_clock: Final = monotonic
_IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"})  # RFC 9110 section 9.2.2
_ALLOW: Final = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_CLOSING: Final = (400, 408, 413)
"""Refusals after which it is not known where the next request begins."""


class Exchange(AnswerRelay):
    """See the module. ``connection`` is None once the client has gone."""

    retried = False

    def __repr__(self) -> str:
        stage = "finished" if self.finished else "response" if self.response else "sent" if self.sent else "waiting"
        return f"<Exchange {self.head.method.decode()} {self.route.name} {stage}>"

    # begin

    def begin(self, rest: bytes = b"") -> None:
        """``rest``: what came with the head."""
        head, context = self.head, self.context
        if head.marked:
            if not self._take_marks():
                return
        else:
            ids = context.interaction_ids
            self.id_number = ids.make()
            self.id_block = ids.block
            self.id_is_new = True
        try:
            self.route = route = context.routes.find_for(head)
        except ProtocolError as error:
            self.refuse(Refusal(errors.BAD_REQUEST, error.reason, error.status))
            return
        if self.body is not None and rest:
            self.client_data(rest)
            if self.finished:
                return
        if route.deny and route.allow:
            detail = f"The resource has other methods: {', '.join(route.allow)}."
            self.refuse(Refusal(errors.METHOD_NOT_ALLOWED, detail, headers=(("Allow", ", ".join(route.allow)),)))
        elif route.deny:
            self.refuse(Refusal(errors.NOT_FOUND, f"No route matches {head.path[:200].decode('latin-1')}."))
        elif route.free:
            rates = context.free_rates
            if rates is None or self._is_in_time(rates):
                self.granted()
        else:
            self.charge()

    def _is_in_time(self, rates: FreeRates) -> bool:
        """Counts a request to a free route. False: its peer makes too many, and it has its answer."""
        connection = self.connection
        assert connection is not None
        peer = connection.share_key()
        wait = rates.take(peer, self.started) if peer is not None else 0.0
        if not wait:
            return True
        self.shed_for = SHED_FREE
        self.context.shed(SHED_FREE, connection.peer.address, connection.account)
        retry = (("Retry-After", str(int(wait) + 1)),)
        self.refuse(Refusal(errors.TOO_FAST, "There are too many requests from this address.", headers=retry))
        return False

    def gives_way(self) -> bool:
        return not (self.sent or self.retried or self.finished)

    def give_way(self, reason: str) -> None:
        self.head.keep_alive = False
        self.shed(reason)

    def _take_marks(self) -> bool:
        """Takes the interaction id, or makes one, and looks at what else a request says of its way. False: it has its
        answer."""
        head, context = self.head, self.context
        ids = context.interaction_ids
        given = given_interaction_id(context, head)
        if given:
            self.id_block = ids.given(given)
        else:
            self.id_number = ids.make()
            self.id_block = ids.block
            self.id_is_new = True
        refusal = read_marks(context, head)
        if refusal is not None:
            self.refuse(refusal)
        elif ends_here(head):
            self._answer_as_last()
        else:
            return True
        return False

    def _answer_as_last(self) -> None:
        """Answers OPTIONS whose Max-Forwards is used up: the gateway is whom the caller wanted to hear. No charge."""
        self.finished = True
        head, connection = self.head, self.connection
        assert connection is not None
        now = _clock()
        record(self, 200, now, refused=False)
        keep = head.keep_alive and self.body_done and connection.may_go_on
        connection.keep = keep
        lines = b"Content-Length: 0\r\n" + self.id_block.line + LINE_ENDS[self.id_number]
        if not keep:
            lines += b"Connection: close\r\n"
        elif not head.version_minor:
            lines += b"Connection: keep-alive\r\n"
        connection.transport.write(b"HTTP/1.1 200 OK\r\nAllow: " + _ALLOW + b"\r\n" + lines + b"\r\n")
        connection.exchange_done(now, unread_body=not self.body_done)

    # what goes wrong

    def refuse(self, refusal: Refusal) -> None:
        if self.finished:
            return
        if self.broken:
            self.complete_without_client(0)
            return
        self.finished = True
        context = self.context
        context.detached.discard(self)
        self.release(reached=self.sent)
        if self.sent:
            self.drop_upstream()
        else:
            self.pool.cancel(self.connected, self.place)
            self.drop_gathered()
        status = refusal.status or refusal.kind.status
        context.counters.refuse(refusal.kind.name)
        self.policy = str(refusal.extra.get("policy", ""))
        now = _clock()
        connection = self.connection
        record(self, CLIENT_CLOSED if connection is None else status, now, refused=True, reason=refusal.kind.name)
        if connection is not None:
            self._answer_with(connection, refusal, status, now)

    def _answer_with(self, connection: Client, refusal: Refusal, status: int, now: float) -> None:
        head, context = self.head, self.context
        keep = head.keep_alive and self.body_done and connection.may_go_on and status not in _CLOSING
        played_back = b""
        if context.interaction_ids.name != FAPI_INTERACTION_ID:
            # The id of the dialect has another field; a FAPI client gets its own back too.
            other = head.fields.get(FAPI_INTERACTION_ID, b"")
            played_back = FAPI_INTERACTION_ID + b": " + other + b"\r\n" if is_interaction_id(other) else b""
        connection.keep = keep
        connection.transport.write(
            context.errors.response(
                refusal,
                keep_alive=keep,
                head_only=head.method == b"HEAD",
                interaction_id=self.interaction_id,
                version_minor=head.version_minor,
                field_lines=played_back + self.charged_fields(),
            )
        )
        connection.exchange_done(now, unread_body=not self.body_done)

    def fault_of_client(self, refusal: Refusal) -> None:
        connection = self.connection
        if not self.sent:
            self.refuse(refusal)
        elif self.body_done or connection is None:
            self.client_gone()  # it takes nothing of what there is for it; the call itself is whole
        else:
            self._broke_off()
            self._answer_with(connection, refusal, refusal.status or refusal.kind.status, _clock())

    def _broke_off(self) -> None:
        """The client left its body incomplete when the API had a part of it, and may have done the work. Its answer is
        waited for; only a failure of its own makes the call free."""
        self.connection = None
        self.broken = True
        self.context.detached.add(self)
        self.deadline = _clock() + self.context.settings.response_timeout_s
        upstream = self.upstream
        if upstream is None or upstream.transport.is_closing():
            self.complete_without_client(0)
            return
        upstream.resume_reading()  # the client may not have taken interim responses
        half_close(upstream.transport)  # over TLS the API hears of it only by its own time-out

    def cut(self) -> None:
        if self.finished:
            return
        self.finished = True
        self.context.counters.upstream_aborts += 1
        response, now = self.response, _clock()
        assert response is not None
        status, reason = errors.UPSTREAM_FAILED.status, "upstream-cut"
        if self.client_lagged() or self.owes_body():
            # An API gives up that cannot get rid of its answer, or waits for a body: that is the client's doing.
            status, reason = CLIENT_CLOSED, "client-lagged"
            self.settle_or_release(response.status, status, now)
        elif self._break_is_charged(response):
            self.settle_or_release(response.status, response.status, now)
        else:
            self.release(reached=True)
        self.drop_upstream()
        record(self, status, now, refused=True, reason=reason)
        if self.connection is not None:
            self.connection.reset()

    def _break_is_charged(self, response: ResponseHead) -> bool:
        """Whether an answer that the API broke off is charged although the client took all of it that came."""
        charged = self.route.broken_charged
        if charged is not None:
            return charged
        decoder = self.decoder
        return response.body is not BodyKind.LENGTH and decoder is not None and decoder.received > 0

    def client_gone(self) -> None:
        connection = self.connection
        if self.finished or connection is None:
            return
        self.context.counters.client_aborts += 1
        if self.response is None and self.sent and not self.body_done:
            self._broke_off()
            connection.reset()
            return
        self.connection = None
        if self.response is not None:
            # The API did the work.
            self.complete_without_client(self.response.status)
        elif self.sent and self.body_done:
            # It may be doing the work: its status decides.
            self.context.detached.add(self)
            if self.upstream is not None:
                self.upstream.resume_reading()  # the client may not have taken interim responses
        else:
            self.finished = True
            self.release()
            self.pool.cancel(self.connected, self.place)
            self.drop_gathered()
            self.drop_upstream()
            record(self, CLIENT_CLOSED, _clock(), refused=False, reason=CLIENT_LEFT)
        connection.reset()

    def stopped(self) -> None:
        """The gateway has to end before the call has. That is nobody's fault but its own, so it is free."""
        if self.finished:
            return
        if self.broken:
            self.complete_without_client(0)
            return
        self.finished = True
        self.context.detached.discard(self)
        self.release()
        self.pool.cancel(self.connected, self.place)
        self.drop_gathered()
        self.drop_upstream()
        record(self, errors.OVERLOADED.status, _clock(), refused=True, reason="stopped")

    def timed_out(self) -> None:
        """``deadline`` has passed. Whose fault it is decides what follows, and who pays."""
        connection, upstream = self.connection, self.upstream
        if self.finished:
            return
        if (connection is not None and connection.still_taking()) or (upstream is not None and upstream.still_taking()):
            # Slow is not dead: some of what waits to be written went out since the limit was set.
            self.deadline = self.take_deadline(_clock())
        else:
            self.given_up()

    def given_up(self) -> None:
        if self.finished:
            return
        if self.response is not None:
            if self._client_is_late() or self.client_left_stream():
                self.client_gone()
            elif not self.is_quiet_stream():
                self.cut()
        elif self.broken:
            self.complete_without_client(0)
        elif self._client_is_late():
            self.fault_of_client(Refusal(errors.TIMEOUT_CLIENT))
        elif not self.sent:
            self.shed(SHED_PLACES if self.gathered else SHED_BODIES)
        else:
            self.context.note_upstream_failure(f"{self.pool.target} did not answer in time")
            if self.route.timeout_charged and self.head.method not in SAFE_METHODS:
                left = self.connection is None
                self.settle(CLIENT_CLOSED if left else errors.UPSTREAM_TIMEOUT.status, _clock())
            self.refuse(Refusal(errors.UPSTREAM_TIMEOUT))

    def _client_is_late(self) -> bool:
        """Whether it is the client that does not take its response, or does not send its body although it may."""
        connection = self.connection
        if connection is None:
            return False
        if connection.writing_paused:
            return True
        # Before it was sent, the body is waited for only as far as it is gathered.
        waits = not self.body_done if self.sent else not self.gathered and (self.allowed or not self.asked_for_hold)
        return waits and not (connection.reading_paused or self.awaits_continue)

    def upstream_eof(self) -> bool:
        decoder = self.decoder
        if decoder is not None and self.response is not None and self.response.body is _UNTIL_CLOSE:
            assert self.connection is not None
            for piece in decoder.eof():
                self.connection.transport.write(piece)
            self.complete(clean=False)
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
            self.ask_for_place(fresh=True)
        elif self.broken:
            self.complete_without_client(0)
        else:
            self.context.note_upstream_failure(f"{self.pool.target} closed the connection without an answer")
            if self.owes_body():
                self.settle(CLIENT_CLOSED, _clock())
            detail = errors.INVALID_RESPONSE if self.upstream_spoke else errors.NO_ANSWER
            self.refuse(Refusal(errors.UPSTREAM_FAILED, detail))

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
        if self.response is None:
            self.deadline = _clock() + self.context.settings.response_timeout_s

    def upstream_resume(self) -> None:
        if self.connection is not None:
            self.connection.resume_reading()
        if self.response is None:
            self.restart_rate()
            if not self.broken:
                self.await_response()
        else:
            self.touch()

    def client_pause(self) -> None:
        if self.upstream is not None:
            self.upstream.pause_reading()
            if self.response is not None:
                self.paused_since = _clock()
                if self.connection is not None:
                    self.paused_bytes = untaken(self.connection.transport)
                self.touch()

    def client_resume(self) -> None:
        if self.upstream is not None:
            self.upstream.resume_reading()
            if self.response is not None:
                if self.paused_since:  # else it was behind with interim responses, before there was an answer
                    self.paused_s += _clock() - self.paused_since
                    self.paused_since = 0.0
                self.touch()
