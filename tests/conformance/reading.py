"""Reads messages as the proxy does: from pieces, until there is an outcome that can be compared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sidecar.gateway.http1.body import Body
from sidecar.gateway.http1.framing import HeadParser, ProtocolError, RequestHead, ResponseHead

__all__ = [
    "PENDING",
    "Content",
    "Outcome",
    "Read",
    "Refused",
    "is_request",
    "read_body",
    "read_request",
    "read_response",
]


@dataclass(frozen=True)
class Refused:
    status: int
    reason: str


@dataclass(frozen=True)
class Read:
    """A head, and the bytes behind it."""

    head: RequestHead | ResponseHead
    rest: bytes


@dataclass(frozen=True)
class Content:
    """What a body's decoder wrote, and the bytes behind the body."""

    written: bytes
    rest: bytes


def is_request(head: RequestHead | ResponseHead) -> bool:
    """By what it says: the compiled core has classes of its own."""
    return hasattr(head, "method")


PENDING = "pending"
Outcome = Refused | Read | Content | str


def _read_head(parser: HeadParser, pieces: Iterable[bytes], answered: bytes | None, start: int) -> Outcome:
    buf = b""
    search_from = 0
    outcome: Outcome = PENDING
    for piece in pieces:
        buf += piece
        if isinstance(outcome, Read):
            outcome = Read(outcome.head, outcome.rest + piece)
            continue
        try:
            found: tuple[RequestHead | ResponseHead, int] | None
            if answered is None:
                found = parser.request(buf, start, search_from)
            else:
                found = parser.response(buf, answered, start, search_from)
        except ProtocolError as error:
            return Refused(error.status, error.reason)
        if found is not None:
            outcome = Read(found[0], buf[found[1] :])
        search_from = len(buf)
    return outcome


def read_request(parser: HeadParser, pieces: Iterable[bytes], start: int = 0) -> Outcome:
    """``start`` bytes of the first piece belong to the message before."""
    return _read_head(parser, pieces, None, start)


def read_response(parser: HeadParser, pieces: Iterable[bytes], answered: bytes = b"GET") -> Outcome:
    return _read_head(parser, pieces, answered, 0)


def read_body(body: Body, pieces: Iterable[bytes]) -> Outcome:
    written = b""
    rest = b""
    for piece in pieces:
        if body.done:
            rest += piece
            continue
        try:
            written += b"".join(body.feed(piece))
        except ProtocolError as error:
            return Refused(error.status, error.reason)
    return Content(written, body.leftover + rest) if body.done else PENDING
