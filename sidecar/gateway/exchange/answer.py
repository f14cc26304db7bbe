"""The API's answer on its way to the client: interim responses, the head, the body, the end."""

from __future__ import annotations

import re
from math import inf
from time import monotonic
from typing import Final

from sidecar.gateway import errors
from sidecar.gateway.context import KEEP_ALIVE
from sidecar.gateway.counters import SHED_STREAMS
from sidecar.gateway.errors import Refusal
from sidecar.gateway.exchange.access_log import record
from sidecar.gateway.exchange.messages import status_line, status_lines, write_pieces
from sidecar.gateway.exchange.request import LAG_S, RequestRelay
from sidecar.gateway.exchange.tunnel import Tunnel
from sidecar.gateway.http1.body import Body, BodyKind, open_body
from sidecar.gateway.http1.fields import list_elements, without
from sidecar.gateway.http1.framing import ProtocolError
from sidecar.gateway.http1.heads import ResponseHead
from sidecar.gateway.interaction_id import LINE_ENDS, WHOLE
from sidecar.gateway.routes import is_charged
from sidecar.gateway.untaken import untaken

LEFT_STREAM_S: Final = 5.0
"""How long nothing may move on a stream of events whose client has closed its side."""
_STREAM_TYPE: Final = re.compile(
    rb"(?im)^content-type:[ \t]*(?:text/event-stream|application/(?:x-)?(?:ndjson|stream\+json|json-seq)"
    rb"|multipart/x-mixed-replace)[ \t]*(?:;|\r)"
)
CLIENT_LEFT: Final = "client-left"
"""Reason in the access log."""
CLIENT_CLOSED: Final = 499
"""Status in events and metrics of a request whose client went away (nginx's number for it)."""
# A look into an enumeration takes as long as a method call, one at a name that may be bound anew half as long.
_NONE: Final = BodyKind.NONE
_LENGTH: Final = BodyKind.LENGTH
_CHUNKED: Final = BodyKind.CHUNKED
_UNTIL_CLOSE: Final = BodyKind.UNTIL_CLOSE
_clock: Final = monotonic


class AnswerRelay(RequestRelay):
    """Passes the answer on and charges when it is complete. ``upstream_spoke``: some of it has arrived. ``pays``: its
    status is one that is charged.

    ``broken``: the client broke off its request when a part of it had gone to the API. ``paused_s``: how long the
    client has left the answer waiting in all, without the pause that began at ``paused_since`` (0: none is under way),
    when it had not taken ``paused_bytes``.
    """

    upstream_spoke = False
    pays = False
    broken = False
    paused_since = 0.0
    paused_bytes = 0
    paused_s = 0.0
    stream_waits = False
    answer_until = 0.0
    response_buffer = b""
    response_searched = 0
    decoder: Body | None = None

    def cut(self) -> None:
        """The response cannot be completed: both ends are closed, so that nobody takes it for whole."""
        raise NotImplementedError

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
                if self.owes_body():
                    self.settle(CLIENT_CLOSED, _clock())
                elif error.by_caller and self.broken:
                    self.complete_without_client(error.answered)
                    return
                elif error.by_caller:
                    # The API did what was asked, and repeats something of the request that cannot be passed on.
                    self.settle_or_release(error.answered, errors.UPSTREAM_FAILED.status, _clock())
                self.refuse(Refusal(errors.UPSTREAM_FAILED, errors.INVALID_RESPONSE))
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
            told_already = response.status == 100 and self.continued
            if self.connection is not None and self.head.version_minor and not told_already:
                # RFC 9110 section 15.2: a proxy forwards 1xx, except to those who cannot know them.
                interim = status_line(response.status, response.reason) + response.block + b"\r\n"
                self.connection.transport.write(interim)
            if response.status == 100 and not self.continued:
                self.continued = True
                self.await_response()
            self.response_buffer = b""
        self.response_buffer = b""
        self._respond(response, data[at:] if at < len(data) else b"")

    def _respond(self, response: ResponseHead, rest: bytes) -> None:
        self.response = response
        connection = self.connection
        line = end = b""
        if not response.marked or self.names_no_id(response):
            line, end = self.id_block.line, LINE_ENDS[self.id_number]
        if connection is None or self.broken:
            self.complete_without_client(response.status)
            return
        head = self.head
        kind = response.body
        if kind > _LENGTH and self._is_stream() and not self._may_stream():
            # The API did what was asked, and the caller has as many streams as it may have.
            self.settle_or_release(response.status, response.status, _clock())
            self.shed(SHED_STREAMS)
            return
        is_1_0 = head.version_minor == 0
        keep = head.keep_alive and (self.body is None or self.body.done) and connection.may_go_on
        tail = self.context.via[response.version_minor]
        if self.hold is not None:
            status, route = response.status, self.route
            self.pays = charged = status in route.charged or is_charged(route, head.method, status)
            tail = self.credit_fields(self.hold, charged=charged) + tail
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
        start = status_lines.get((response.status, response.reason)) or status_line(response.status, response.reason)
        if kind is _LENGTH and len(rest) == response.length:
            # The usual answer: head and body arrived together and leave together.
            connection.transport.write(b"%b%b%b%b%b\r\n%b" % (start, response.block, line, end, tail, rest))
            self.complete(clean=True)
            return
        out = b"%b%b%b%b%b\r\n" % (start, response.block, line, end, tail)
        if kind is _NONE:
            connection.transport.write(out)
            self.complete(clean=not rest)
        else:
            rules = self.context.response_parser.response_rules
            self.decoder = open_body(kind, response.length, rules, chunked=not is_1_0)
            if rest:
                self._stream(rest, out)
            else:
                connection.transport.write(out)
                self.touch()

    def names_no_id(self, response: ResponseHead) -> bool:
        """Whether the answer has no interaction id of its own. The API's is taken over."""
        ids = self.context.interaction_ids
        given = response.fields.get(ids.name)
        if given is None:
            return True
        if given and b"," not in given:
            self.id_block, self.id_number = ids.given(given), WHOLE
            return False
        response.block = without(response.block, frozenset({ids.name}))  # empty, or two
        return True

    def _switch_protocols(self, response: ResponseHead, rest: bytes) -> None:
        connection, upstream = self.connection, self.upstream
        asked, chosen = self.head.upgrade, response.upgrade
        # RFC 9110 section 7.8: a server must not switch to a protocol that the client did not name.
        named = asked is not None and chosen is not None and chosen.lower() in list_elements(asked)
        if connection is None and named:
            self.complete_without_client(101)
            return
        if connection is None or upstream is None or chosen is None or not named:
            self.context.note_upstream_failure(f"{self.pool.target} switched to a protocol that was not asked for")
            self.refuse(Refusal(errors.UPSTREAM_FAILED, errors.INVALID_RESPONSE))
            return
        self.response = response
        self.finished = True
        self.context.counters.tunnels += 1
        names_no_id = self.names_no_id(response)
        lines = (
            response.block
            + (self.id_block.line + LINE_ENDS[self.id_number] if names_no_id else b"")
            + (self.credit_fields(self.hold, charged=101 in self.route.charged) if self.hold is not None else b"")
            + self.context.via[response.version_minor]
            + b"Connection: Upgrade\r\nUpgrade: "
            + chosen
            + b"\r\n"
        )
        connection.transport.write(status_line(101, response.reason) + lines + b"\r\n" + rest)
        self.settle_or_release(101, 101, _clock())
        self.upstream = None
        self.pool.becomes_stream(upstream)
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
            self.complete(clean=not decoder.leftover)
        else:
            self.touch()

    def complete(self, *, clean: bool) -> None:
        """The whole response was written. ``clean``: nothing followed it, so its connection can be used again."""
        response, connection, upstream = self.response, self.connection, self.upstream
        assert response is not None
        assert connection is not None
        self.finished = True
        now = _clock()
        if response.status == 408 and self.owes_body():
            self.settle(CLIENT_CLOSED, now)
        elif self.pays:
            self.settle(response.status, now)
        else:
            self.release(reached=True)
        if upstream is not None:
            self.upstream = None
            # One that answered before it took the whole request may never take the rest.
            took_all = self.body is None or (self.body.done and not upstream.transport.get_write_buffer_size())
            if clean and response.keep_alive and took_all:
                if response.marked and KEEP_ALIVE in response.fields:
                    upstream.heed_keep_alive(response.fields[KEEP_ALIVE])
                self.pool.release(upstream, now)
            else:
                upstream.close()
        record(self, response.status, now, refused=False)
        connection.exchange_done(now, unread_body=not self.body_done)

    def complete_without_client(self, status: int) -> None:
        """The API has answered, and nobody is there to hear it. ``status`` 0: it gave no answer to a request that the
        client broke off."""
        self.finished = True
        self.context.detached.discard(self)
        now = _clock()
        if not self.broken:
            self.settle_or_release(status, CLIENT_CLOSED, now)
        elif status < 500:
            self.settle(CLIENT_CLOSED, now)  # whatever the API made of a part, it was given no chance to do more
        else:
            self.release(reached=True)
        self.drop_upstream()
        record(self, CLIENT_CLOSED, now, refused=False, reason=CLIENT_LEFT)

    # how long an answer may take

    def touch(self) -> None:
        """Sets the deadline anew while an answer is under way."""
        now, settings = _clock(), self.context.settings
        connection = self.connection
        self.stream_waits = False
        if not self.answer_until:
            self.answer_until = inf if self._is_stream() else now + settings.answer_deadline_s
        if connection is not None and connection.writing_paused:
            self.deadline = self.take_deadline(now)
        elif self.client_left_stream():
            self.deadline = now + LEFT_STREAM_S
        else:
            self.deadline = min(now + settings.upstream_idle_timeout_s, self.answer_until)

    def take_deadline(self, now: float) -> float:
        """When a client has taken too little of what waits for it, if it takes nothing more."""
        settings = self.context.settings
        deadline = now + settings.write_timeout_s
        if self.answer_until:
            deadline = min(deadline, self.answer_until)
        rate = settings.bytes_per_second_min
        if rate and self.paused_since and self.connection is not None:
            taken = max(0, self.paused_bytes - untaken(self.connection.transport))
            enough_until = (settings.buffer_bytes_high + taken) / rate
            deadline = min(deadline, self.paused_since + settings.write_timeout_s + enough_until)
        return deadline

    def client_lagged(self) -> bool:
        """Whether the client leaves the answer waiting, or did so for long."""
        return self.paused_since > 0.0 or self.paused_s >= LAG_S

    def _is_stream(self) -> bool:
        """Whether the answer is a stream of events, whose silence means nothing."""
        response = self.response
        return response is not None and response.body > _LENGTH and _STREAM_TYPE.search(response.block) is not None

    def _may_stream(self) -> bool:
        upstream = self.upstream
        assert upstream is not None
        if not self.pool.may_stream(self.place):
            return False
        self.pool.becomes_stream(upstream)
        return True

    def client_left_stream(self) -> bool:
        """Whether the client has closed its side of a stream of events. One that is gone and one that only listens look
        alike, and what the API does for the first would not end."""
        connection = self.connection
        return connection is not None and connection.eof and self._is_stream()

    def is_quiet_stream(self) -> bool:
        """A stream of events that is silent for the first time since its last byte: it may be so for longer."""
        if self.stream_waits or not self._is_stream():
            return False
        settings = self.context.settings
        self.stream_waits = True
        self.deadline += settings.stream_idle_timeout_s - settings.upstream_idle_timeout_s
        return self.deadline > _clock()
