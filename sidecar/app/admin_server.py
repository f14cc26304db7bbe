"""The server of a gateway's admin side and health port: heads are read as those of requests are, by the parser that is
there already. A web framework beside it would be a seventh of a gateway's memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from http import HTTPStatus
from typing import Final, Protocol, cast

from sidecar.app.admin_endpoints import ALLOWED, Answer, problem
from sidecar.app.listen_fault import CannotListen
from sidecar.basics.errors import SetupError
from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.listening import listening_sockets
from sidecar.gateway.http1.body import BodyKind
from sidecar.gateway.http1.framing import HeadParser, ProtocolError, RequestHead
from sidecar.gateway.http1.limits import Limits

CONNECTIONS_MAX: Final = 256
HEAD_TIMEOUT_S: Final = 10.0
ANSWER_TIMEOUT_S: Final = 60.0
IDLE_TIMEOUT_S: Final = 75.0
CLOSE_TIMEOUT_S: Final = 5.0
_LIMITS: Final = Limits(method_bytes_max=32, target_bytes_max=8192, head_bytes_max=16_384, fields_max=64)
_AUTHORIZATION: Final = b"authorization"


class Endpoints(Protocol):
    """What is served (`AdminEndpoints`, `HealthEndpoints`)."""

    async def answer(self, method: str, path: str, query: str, authorization: str) -> Answer: ...


class AdminServer:
    """Serves ``endpoints``.

    Args:
        name: section of the configuration that the address is from.
        socket_path: a Unix socket instead of that address.
        answer_timeout_s: for making an answer and its way to who asked.
    """

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        endpoints: Endpoints,
        *,
        socket_path: str | None = None,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        self.endpoints = endpoints
        self.answer_timeout_s = answer_timeout_s
        self.parser = HeadParser(interesting=[_AUTHORIZATION], limits=_LIMITS, upgrades=())
        self.connections: dict[_Connection, None] = {}  # in the order in which they came
        self.closing = False
        self.emptied = asyncio.Event()
        self._name, self._host, self._port = name, host, port
        self._socket_path = socket_path
        self._servers: list[asyncio.Server] = []

    async def start(self) -> int:
        """Listens; returns the port, 0 for a Unix socket.

        Raises:
            SetupError: the address cannot be bound.
        """
        loop = asyncio.get_running_loop()
        try:
            if self._socket_path is not None:
                self._servers.append(await loop.create_unix_server(lambda: _Connection(self), self._socket_path))
                return 0
            sockets = listening_sockets(self._host, self._port)
            for sock in sockets:
                self._servers.append(await loop.create_server(lambda: _Connection(self), sock=sock))
        except OSError as error:
            if self._socket_path is not None:
                raise SetupError(f"{self._name}: cannot listen on {self._socket_path}: {reason_of(error)}") from None
            raise CannotListen(error, self._host, self._port, f"{self._name}.port") from None
        bound: int = sockets[0].getsockname()[1]
        return bound

    def make_room(self) -> bool:
        """Whether there is room for one connection more. One that only waits makes room: whoever opens many must not
        keep out the kubelet, which opens one for every probe."""
        if len(self.connections) >= CONNECTIONS_MAX:
            waiting = next((connection for connection in self.connections if connection.task is None), None)
            if waiting is None:
                return False
            self.connections.pop(waiting)
            waiting.abort()
        return True

    async def close(self) -> None:
        """Answers under way are made and taken, for a few seconds; then what is left is cut off."""
        self.closing = True
        for server in self._servers:
            server.close()
        for connection in [*self.connections]:
            connection.end_if_idle()
        if self.connections:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.emptied.wait(), CLOSE_TIMEOUT_S)
        for connection in [*self.connections]:
            connection.abort()
        if self._socket_path is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._socket_path)


class _Connection(asyncio.Protocol):
    """One request after the other, each in a task of its own. A timer ends what takes too long."""

    def __init__(self, server: AdminServer) -> None:
        self.task: asyncio.Task[None] | None = None
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._searched = 0
        self._paused = False
        self._half_closed = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = opened = cast(asyncio.Transport, transport)  # or what uvloop has for one
        if self._server.closing or not self._server.make_room():
            opened.abort()
            return
        self._server.connections[self] = None
        self._arm(HEAD_TIMEOUT_S)

    def data_received(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if not self._buffer and self.task is None:
            self._arm(HEAD_TIMEOUT_S)
        self._buffer += data
        if self.task is None:
            self._read()
        elif len(self._buffer) > _LIMITS.head_bytes_max and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """Who has sent all that it will may still wait for answers. Whether the connection stays open for them."""
        self._half_closed = True
        return self.task is not None

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.pop(self, None)
        if self._server.closing and not self._server.connections:
            self._server.emptied.set()
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        if self.task is not None:
            self.task.cancel()

    def end_if_idle(self) -> None:
        """For the end: one without a request under way closes when what was written has gone out."""
        if self.task is None and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Cuts off, whatever has not gone out."""
        if self._transport is not None:
            self._transport.abort()

    def _arm(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.abort)

    def _read(self) -> None:
        try:
            found = self._server.parser.request(self._buffer, 0, self._searched)
        except ProtocolError as error:
            self._write(problem(error.status, error.reason), keep=False)
            return
        if found is None:
            self._searched = len(self._buffer)
            return
        head, end = found
        self._buffer, self._searched = self._buffer[end:], 0
        has_body = head.body is not BodyKind.NONE
        if has_body and head.method.decode() in ALLOWED:
            self._write(problem(413, "A request to the admin side has no body."), keep=False)
            return
        self._arm(self._server.answer_timeout_s)
        # What is not read of a body cannot be told from the next request.
        self.task = asyncio.get_running_loop().create_task(self._answer(head, last=has_body))

    async def _answer(self, head: RequestHead, *, last: bool) -> None:
        answer = await self._server.endpoints.answer(
            head.method.decode(),
            head.path.decode("latin-1"),
            head.query.decode("latin-1"),
            head.fields.get(_AUTHORIZATION, b"").decode("latin-1"),
        )
        keep = head.keep_alive and head.version_minor == 1 and not self._server.closing and not last
        self.task = None
        self._write(answer, keep=keep, head_only=head.method == b"HEAD")
        if keep:
            self._next()

    def _next(self) -> None:
        transport = self._transport
        if transport is None:
            return
        self._arm(HEAD_TIMEOUT_S if self._buffer else IDLE_TIMEOUT_S)
        if self._paused:
            self._paused = False
            transport.resume_reading()
        if self._buffer:
            self._read()
        if self._half_closed and self.task is None:
            transport.close()

    def _write(self, answer: Answer, *, keep: bool, head_only: bool = False) -> None:
        transport = self._transport
        if transport is None:
            return
        lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}", f"Content-Type: {answer.content_type}"]
        lines += [f"Content-Length: {len(answer.body)}", "Cache-Control: no-store"]
        lines += [f"{name}: {value}" for name, value in answer.headers]
        if not keep:
            lines.append("Connection: close")
        transport.write("\r\n".join([*lines, "", ""]).encode("latin-1") + (b"" if head_only else answer.body))
        if not keep:
            transport.close()
