"""Bytes of a client in, bytes for it out: RESP2 as a connection to a simulated server speaks it."""

from __future__ import annotations

from typing import Protocol

from tests.simulation.valkey.replies import Error, Reply, encoded
from tests.simulation.valkey.server import Session

PART_BYTES_MAX = 512 * 1024 * 1024


class Server(Protocol):
    """What answers calls: a simulated Valkey server, or another that speaks RESP."""

    def connect(self) -> Session: ...

    def execute(self, session: Session, parts: list[bytes]) -> Reply: ...


class RespSession:
    """One connection. ``closed``: the server has hung up, since what came was no request."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.session = server.connect()
        self.closed = False
        self._received = b""

    def requests(self, data: bytes) -> list[list[bytes]]:
        """The calls that are whole now, with what was received before."""
        self._received += data
        found: list[list[bytes]] = []
        at = 0
        while not self.closed:
            try:
                parts, at = _request(self._received, at)
            except EOFError:
                break
            except ValueError:
                self.closed = True
                break
            if parts:
                found.append(parts)
        self._received = self._received[at:]
        return found

    def receive(self, data: bytes) -> bytes:
        """Does what has come, and answers."""
        out = [encoded(self.server.execute(self.session, parts)) for parts in self.requests(data)]
        if self.closed:
            out.append(encoded(Error(b"ERR Protocol error: expected '$'")))
        return b"".join(out)


def _line(data: bytes, at: int) -> tuple[bytes, int]:
    end = data.find(b"\r\n", at)
    if end < 0:
        raise EOFError
    return data[at:end], end + 2


def _request(data: bytes, at: int) -> tuple[list[bytes], int]:
    """A call and the position after it.

    Raises:
        EOFError: it is not whole yet.
        ValueError: it is none.
    """
    line, at = _line(data, at)
    if not line.startswith(b"*"):
        return line.split(), at  # inline, as from a person
    parts = []
    for _ in range(int(line[1:])):
        line, at = _line(data, at)
        if not line.startswith(b"$"):
            raise ValueError("no bulk string")
        length = int(line[1:])
        if not 0 <= length <= PART_BYTES_MAX:
            raise ValueError("a bulk string of a bad length")
        if len(data) < at + length + 2:
            raise EOFError
        parts.append(data[at : at + length])
        at += length + 2
    return parts, at
