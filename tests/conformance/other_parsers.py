"""What h11 and llhttp (httptools) make of the same bytes: a second and a third opinion.

Neither shares a line with the parser that is tested, nor with each other, and servers behind the gateway are built on
them or on code with the same quirks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import h11
import httptools

__all__ = ["Opinion", "h11_on_request", "h11_on_response", "llhttp_on_request", "llhttp_on_response"]


@dataclass
class Opinion:
    """A whole message as another parser sees it. ``start`` is (method, target) or (status, reason)."""

    start: tuple[object, bytes] = (b"", b"")
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)
    content: bytes = b""
    complete: bool = False
    keep_alive: bool = False
    goes_on: bool = False  # there are bytes that it takes for the beginning of another message
    error: str = ""


# Above what any case here needs, so that the limits that count are ours.
_H11_BYTES_MAX = 1 << 20


def h11_on_request(data: bytes) -> Opinion:
    return _h11(h11.Connection(h11.SERVER, max_incomplete_event_size=_H11_BYTES_MAX), data)


def h11_on_response(data: bytes, method: bytes) -> Opinion:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_H11_BYTES_MAX)
    connection.send(h11.Request(method=method, target=b"/", headers=[(b"host", b"a")]))
    connection.send(h11.EndOfMessage())
    return _h11(connection, data)


def _h11(connection: h11.Connection, data: bytes) -> Opinion:
    seen = Opinion()
    try:
        connection.receive_data(data)
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                seen.start = (event.method, event.target)
                seen.fields = list(event.headers)
            elif isinstance(event, h11.InformationalResponse | h11.Response):
                seen.start = (event.status_code, event.reason)
                seen.fields = list(event.headers)
                if isinstance(event, h11.InformationalResponse):
                    seen.complete = True
                    return seen
            elif isinstance(event, h11.Data):
                seen.content += event.data
            elif isinstance(event, h11.EndOfMessage):
                seen.complete = True
                seen.goes_on = connection.trailing_data[0] != b""
                seen.keep_alive = connection.their_state is h11.DONE
                return seen
            else:
                return seen
    except h11.RemoteProtocolError as error:
        seen.error = str(error)
        return seen


class _Callbacks:
    """What httptools calls. Stops at the end of the first message."""

    def __init__(self) -> None:
        self.seen = Opinion()
        self.parser: httptools.HttpRequestParser | httptools.HttpResponseParser

    def on_message_begin(self) -> None:
        self.seen.goes_on = self.seen.complete

    def on_url(self, url: bytes) -> None:
        if not self.seen.complete:
            self.seen.start = (b"", self.seen.start[1] + url)

    def on_status(self, reason: bytes) -> None:
        if not self.seen.complete:
            self.seen.start = (0, self.seen.start[1] + reason)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.seen.complete:
            self.seen.fields.append((name.lower(), value.strip(b" \t")))  # llhttp leaves OWS behind a value

    def on_headers_complete(self) -> None:
        if self.seen.complete:
            return
        if isinstance(self.parser, httptools.HttpRequestParser):
            self.seen.start = (self.parser.get_method(), self.seen.start[1])
        else:
            self.seen.start = (self.parser.get_status_code(), self.seen.start[1])
        self.seen.keep_alive = self.parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        if not self.seen.complete:
            self.seen.content += data

    def on_message_complete(self) -> None:
        self.seen.complete = True


def llhttp_on_request(data: bytes) -> Opinion:
    callbacks = _Callbacks()
    callbacks.parser = httptools.HttpRequestParser(callbacks)
    return _llhttp(callbacks, data)


def llhttp_on_response(data: bytes) -> Opinion:
    """A response to GET: llhttp cannot be told of another method."""
    callbacks = _Callbacks()
    callbacks.parser = httptools.HttpResponseParser(callbacks)
    return _llhttp(callbacks, data)


def _llhttp(callbacks: _Callbacks, data: bytes) -> Opinion:
    seen = callbacks.seen
    try:
        callbacks.parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        seen.complete = True
    except httptools.HttpParserError as error:
        if seen.complete:
            seen.goes_on = True
        else:
            seen.error = f"{type(error).__name__}: {error}"
    return seen
