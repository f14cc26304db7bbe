"""The heads that an exchange writes: the request's to the API, and the answer's to the client."""

from __future__ import annotations

import asyncio
from typing import Final

from sidecar.gateway.http1.body import BodyKind, Piece
from sidecar.gateway.http1.heads import RequestHead
from sidecar.gateway.parameters import UpstreamTarget

JOIN_BYTES_MAX: Final = 65_536
STATUS_LINES_MAX: Final = 256
_CHUNKED: Final = BodyKind.CHUNKED
status_lines: Final[dict[tuple[int, bytes], bytes]] = {}
"""Those that were written before, up to a bound."""


def status_line(status: int, reason: bytes) -> bytes:
    """``HTTP/1.1 200 OK`` with its CRLF."""
    key = (status, reason)
    line = status_lines.get(key)
    if line is None:
        line = b"HTTP/1.1 %d %b\r\n" % (status, reason)
        if len(status_lines) < STATUS_LINES_MAX:
            status_lines[key] = line
    return line


def request_head(
    head: RequestHead, forwarded: bytes, target: UpstreamTarget, line: bytes = b"", line_end: bytes = b""
) -> bytes:
    """What the API gets. ``forwarded``: lines of the gateway's own; ``target`` is the Host of a request without one.
    ``line`` and ``line_end``: one line more."""
    tail = forwarded
    if head.body is _CHUNKED:
        tail += b"Transfer-Encoding: chunked\r\n"
    if head.upgrade is not None:
        tail += b"Connection: Upgrade\r\nUpgrade: " + head.upgrade + b"\r\n"
    elif head.te_trailers:
        tail += b"Connection: TE\r\nTE: trailers\r\n"
    if not head.version_minor and b"host" not in head.fields:
        tail += b"Host: " + (head.host or target.authority) + b"\r\n"
    return b"%b %b HTTP/1.1\r\n%b%b%b%b\r\n" % (head.method, head.origin_target, head.block, line, line_end, tail)


def write_pieces(transport: asyncio.Transport, pieces: list[Piece]) -> None:
    """Small pieces leave in one write."""
    if len(pieces) == 1:
        transport.write(pieces[0])
    elif sum(map(len, pieces)) <= JOIN_BYTES_MAX:
        transport.write(b"".join(pieces))
    else:
        transport.writelines(pieces)
