"""An aiohttp application on a port, with limits that aiohttp does not have: of connections, of the time for a handshake
and for the first request, and a log that takes garbage from the network without a traceback."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from aiohttp import web

from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.listening import listening_sockets
from sidecar.basics.logger import get_logger

CONNECTIONS_MAX: Final = 256
"""More wait in the kernel's queue. An API server has a few."""
HANDSHAKE_TIMEOUT_S: Final = 5.0
FIRST_REQUEST_TIMEOUT_S: Final = 10.0
KEEP_ALIVE_S: Final = 120.0
"""Above the 90 s after which an API server closes an idle connection itself: then it never uses one that is closing."""
SHUTDOWN_TIMEOUT_S: Final = 15.0
_RETRY_S: Final = 0.05
log = get_logger("sidecar.injector")


class InjectorFault(Exception):
    """An address cannot be bound; the message says which. ``port`` is the one that was asked for."""

    def __init__(self, error: OSError, host: str, port: int) -> None:
        self.port = port
        in_use = error.errno == errno.EADDRINUSE
        where = f"port {port} is in use on {host}" if in_use else f"cannot listen on {host}:{port}: {reason_of(error)}"
        super().__init__(where)


@asynccontextmanager
async def listening(
    app: web.Application, host: str, port: int, context: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Serves until the block ends, and what is under way then to its end; yields the port.

    Raises:
        InjectorFault: the port cannot be bound.
    """
    unused: set[Any] = set()
    under_way = 0

    @web.middleware
    async def follow(request: web.Request, handler: Callable[[web.Request], Awaitable[Any]]) -> Any:
        nonlocal under_way
        unused.discard(request.protocol)
        under_way += 1
        try:
            return await handler(request)
        finally:
            under_way -= 1

    app.middlewares.append(follow)
    app.on_response_prepare.append(_hide_software)
    runner = web.AppRunner(
        app, access_log=None, handle_signals=False, keepalive_timeout=KEEP_ALIVE_S, shutdown_timeout=1.0,
        logger=_quiet_logger(),
    )  # fmt: skip
    await runner.setup()
    assert runner.server is not None
    try:
        sockets = listening_sockets(host, port)
    except OSError as error:
        await runner.cleanup()
        raise InjectorFault(error, host, port) from None
    acceptor = _Acceptor(runner.server, context, unused)
    loop = asyncio.get_running_loop()
    accepting = []
    for sock in sockets:
        sock.listen(128)
        accepting.append(loop.create_task(acceptor.accept(sock)))
    try:
        yield int(sockets[0].getsockname()[1])
    finally:
        for task in (*accepting, *acceptor.starting):
            task.cancel()
        await asyncio.gather(*accepting, *acceptor.starting, return_exceptions=True)
        for sock in sockets:
            sock.close()
        # aiohttp takes no more bytes once it cleans up, not even the rest of a request that has begun.
        deadline = loop.time() + SHUTDOWN_TIMEOUT_S
        while under_way and loop.time() < deadline:
            await asyncio.sleep(_RETRY_S)
        await runner.cleanup()


async def _hide_software(_: web.Request, response: web.StreamResponse) -> None:
    """Versions of Python and of aiohttp are nobody's business (RFC 9110 section 10.2.4)."""
    response.headers.popall("Server", None)


class _Acceptor:
    def __init__(self, server: web.Server, context: ssl.SSLContext | None, unused: set[Any]) -> None:
        self.starting: set[asyncio.Task[None]] = set()
        self._server = server
        self._context = context
        self._unused = unused

    async def accept(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if len(self.starting) + len(self._server.connections) >= CONNECTIONS_MAX:
                await asyncio.sleep(_RETRY_S)
                continue
            try:
                client, _ = await loop.sock_accept(sock)
            except OSError as error:  # it left already, or there are no more descriptors
                log.debug("cannot accept a connection", error=reason_of(error))
                await asyncio.sleep(_RETRY_S)
                continue
            task = loop.create_task(self._start(client))
            self.starting.add(task)
            task.add_done_callback(self.starting.discard)

    async def _start(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        timeout_s = None if self._context is None else HANDSHAKE_TIMEOUT_S
        try:
            _, protocol = await loop.connect_accepted_socket(
                self._server, client, ssl=self._context, ssl_handshake_timeout=timeout_s
            )
        except OSError as error:  # also those of ssl and of time
            log.debug("TLS handshake failed", error=reason_of(error))
            return
        self._unused.add(protocol)
        loop.call_later(FIRST_REQUEST_TIMEOUT_S, self._close_unused, protocol)

    def _close_unused(self, protocol: Any) -> None:
        if protocol in self._unused:
            self._unused.discard(protocol)
            protocol.force_close()


class _AiohttpLogHandler(logging.Handler):
    """Logs what aiohttp reports in one line: aiohttp logs a request that is not HTTP with a traceback."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        why = reason_of(error) if error is not None else record.getMessage()
        log.warning("cannot serve a request", why=" ".join(why.split())[:200])


def _quiet_logger() -> logging.Logger:
    logger = logging.Logger("sidecar.injector.http", logging.WARNING)
    logger.addHandler(_AiohttpLogHandler())
    return logger
