"""Message bodies (RFC 9112 sections 6 and 7): where one ends, and the bytes to pass on.

A body is fed whatever arrives, in any pieces, and answers with pieces to write. They are those that came in wherever
possible: a megabyte inside a chunk passes without being copied.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol

from sidecar.gateway.http1.body_rules import BodyRules, Piece
from sidecar.gateway.http1.chunked import ChunkedDecoder
from sidecar.gateway.http1.grammar import ProtocolError

__all__ = ["Body", "BodyKind", "BodyRules", "ChunkedDecoder", "LengthBody", "Piece", "UntilCloseBody", "open_body"]


class BodyKind(IntEnum):
    """How the end of a message is found (RFC 9112 section 6.3). A length of 0 is NONE."""

    NONE = 0
    LENGTH = 1
    CHUNKED = 2
    UNTIL_CLOSE = 3


class Body(Protocol):
    """What the three kinds have in common."""

    #: The body is complete; nothing more may be fed.
    done: bool
    #: Bytes that came after the end: the next message.
    leftover: bytes
    #: Bytes of content so far, without framing.
    received: int

    def feed(self, data: bytes) -> list[Piece]:
        """Take what arrived, return what is to be written.

        Raises:
            ProtocolError: the framing is broken or a limit is passed.
        """
        ...

    def eof(self) -> list[Piece]:
        """The sender closed its side.

        Raises:
            ProtocolError: the body was not complete.
        """
        ...


class LengthBody:
    """A body of ``length`` bytes, Content-Length (RFC 9112 section 6.2)."""

    __slots__ = ("_left", "_refuse_with", "done", "leftover", "received")

    def __init__(self, length: int, refuse_with: int = 400) -> None:
        self._left = length
        self._refuse_with = refuse_with
        self.done = length == 0
        self.leftover = b""
        self.received = 0

    def __repr__(self) -> str:
        return f"LengthBody(received={self.received}, left={self._left})"

    def feed(self, data: bytes) -> list[Piece]:
        assert not self.done, "a complete body was fed"
        left = self._left
        size = len(data)
        if size > left:
            self.leftover = data[left:]
            data = data[:left]
            size = left
        self.received += size
        self._left = left - size
        self.done = size == left
        return [data]

    def eof(self) -> list[Piece]:
        if not self.done:
            raise ProtocolError(self._refuse_with, "The body is shorter than its Content-Length.")
        return []


class UntilCloseBody:
    """A response body that ends with its connection (RFC 9112 section 6.3, rule 8).

    With ``chunked`` it is written in chunks, so that the client sees whether it was cut short.
    """

    __slots__ = ("_chunked", "done", "leftover", "received")

    def __init__(self, *, chunked: bool = False) -> None:
        self._chunked = chunked
        self.done = False
        self.leftover = b""
        self.received = 0

    def __repr__(self) -> str:
        return f"UntilCloseBody(received={self.received}, done={self.done})"

    def feed(self, data: bytes) -> list[Piece]:
        assert not self.done, "a complete body was fed"
        self.received += len(data)
        if not self._chunked:
            return [data]
        # A chunk of no bytes would end the body.
        return [b"%x\r\n" % len(data), data, b"\r\n"] if data else []

    def eof(self) -> list[Piece]:
        self.done = True
        return [b"0\r\n\r\n"] if self._chunked else []


def open_body(kind: BodyKind, length: int, rules: BodyRules, *, chunked: bool) -> Body:
    """The decoder for a message's body.

    ``chunked`` says what the receiver was told: Transfer-Encoding: chunked, or not (an HTTP/1.0 receiver, whose
    response then ends with the connection). A body with a length is written as it is in either case.
    """
    if kind is BodyKind.CHUNKED:
        return ChunkedDecoder(rules, plain=not chunked)
    if kind is BodyKind.UNTIL_CLOSE:
        return UntilCloseBody(chunked=chunked)
    return LengthBody(length, rules.refuse_with)
