"""Clients that hold a connection and get nowhere: each way ends when the gateway ends it, or after a timeout."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from loadtests.scenarios.plan import Plan
from loadtests.scenarios.wire import connect

CLIENT_TIMEOUT_S: Final = 10.0
"""How much longer than the gateway's limit is waited."""

BLOB_BYTES: Final = 32 * 1024 * 1024
"""More than all buffers between the API and a client that does not read."""

STEP_S: Final = 0.1
HEAD_BYTES_MAX: Final = 65_536


@dataclass(frozen=True, slots=True)
class Ended:
    """``ended``: by the gateway, with a 408 or by closing. ``status``: 0 where it closed without one."""

    method: str
    ended: bool
    status: int = 0
    may_be_charged: bool = False


def trickle_head(url: str, fields: Mapping[str, str], plan: Plan) -> Ended:
    """A head that comes byte by byte and never ends."""
    with _open(url) as sock:
        if sock is None:
            return Ended("GET", True)
        began = time.monotonic()
        text = _head("GET", plan.calls[0].path, url, fields)[:-2] + b"X-Filler: " + b"a" * 100_000
        for at in range(len(text)):
            if time.monotonic() - began > plan.limit_s + CLIENT_TIMEOUT_S:
                return Ended("GET", False)
            try:
                sock.sendall(text[at : at + 1])
            except OSError:
                return Ended("GET", True, _status(sock))
            status = _ended_within(sock, STEP_S)
            if status is not None:
                return Ended("GET", True, status)
        return Ended("GET", False)


def stall_body(url: str, fields: Mapping[str, str], plan: Plan) -> Ended:
    """A body of which half comes, and then nothing."""
    path = plan.echo or plan.calls[0].path
    with _open(url) as sock:
        if sock is None:
            return Ended("POST", True)
        head = _head("POST", path, url, {**fields, "Content-Length": "1000", "Content-Type": "application/json"})
        try:
            sock.sendall(head + b"x" * 500)
        except OSError:
            return Ended("POST", True, _status(sock))
        status = _ended_within(sock, plan.limit_s + CLIENT_TIMEOUT_S)
        # An API that answers before it has the whole body has been asked, and that is charged.
        return Ended("POST", status is not None, status or 0, may_be_charged=status not in (0, 408))


def read_nothing(url: str, fields: Mapping[str, str], plan: Plan) -> Ended:
    """A big answer of which only the beginning is read. The API did its work, so it may be charged."""
    with _open(url, receive_bytes=4_096) as sock:
        if sock is None:
            return Ended("GET", True)
        try:
            sock.sendall(_head("GET", f"{plan.blob}?bytes={BLOB_BYTES}", url, fields))
            sock.recv(1)
        except OSError:
            return Ended("GET", True, may_be_charged=True)
        time.sleep(plan.limit_s + STEP_S * 10)  # here it is the gateway's turn; reading on shows whether it has gone
        read, until = 1, time.monotonic() + CLIENT_TIMEOUT_S
        with contextlib.suppress(OSError):
            while time.monotonic() < until and read < BLOB_BYTES:
                data = sock.recv(HEAD_BYTES_MAX)
                if not data:
                    break
                read += len(data)
        return Ended("GET", read < BLOB_BYTES, may_be_charged=True)


Way = Callable[[str, Mapping[str, str], Plan], Ended]
WAYS: Final[tuple[Way, ...]] = (trickle_head, stall_body, read_nothing)


def ways(plan: Plan) -> tuple[Way, ...]:
    """Those that the API has routes for."""
    return tuple(way for way in WAYS if way is not read_nothing or plan.blob)


def note(way: str, ended: bool) -> str:
    """What is counted of one such client."""
    return f"{way.replace('_', ' ')}: {'ended by the gateway' if ended else 'left to itself'}"


@contextlib.contextmanager
def _open(url: str, receive_bytes: int = 0) -> Iterator[socket.socket | None]:
    try:
        sock = connect(url)
    except OSError:
        yield None
        return
    try:
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        yield sock
    finally:
        sock.close()


def _head(method: str, path: str, url: str, fields: Mapping[str, str]) -> bytes:
    host = url.partition("://")[2].rstrip("/")
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _ended_within(sock: socket.socket, seconds: float) -> int | None:
    """The status that came within this time, 0 if the connection was closed without one, None if nothing came."""
    sock.settimeout(seconds)
    try:
        data = sock.recv(HEAD_BYTES_MAX)
    except TimeoutError:
        return None
    except OSError:
        return 0
    return _status_of(data)


def _status(sock: socket.socket) -> int:
    """The status that the gateway sent before it closed, if it is still to be had."""
    with contextlib.suppress(OSError):
        sock.settimeout(STEP_S)
        return _status_of(sock.recv(HEAD_BYTES_MAX))
    return 0


def _status_of(head: bytes) -> int:
    words = head.split(b" ", 2)
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
