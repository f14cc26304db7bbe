"""Serves one stand-in on a TCP port: what all of the sandbox has in common."""

from __future__ import annotations

import ssl
from types import TracebackType

from aiohttp import web

from sidecar.basics.fault_reasons import reason_of

#: Larger than aiohttp's 8190, so that what the gateway lets through is not refused by the stand-in behind it.
FIELD_BYTES_MAX = 64 * 1024
FIELDS_MAX = 512


class ServerError(Exception):
    """The address cannot be listened on. The message names the address and the reason."""


class Server:
    """One aiohttp application listening on ``host``:``port``; port 0 picks a free one.

    ``keepalive_s`` is how long an idle connection stays open, ``grace_s`` how long :meth:`close` waits for
    requests in flight before it cancels them. A request's handler is cancelled when its client goes away.
    Bodies arrive as they were sent: a ``Content-Encoding`` is not undone. There is no access log.
    """

    def __init__(
        self,
        app: web.Application,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        keepalive_s: float = 75.0,
        grace_s: float = 0.5,
    ) -> None:
        self._app = app
        self._host = host
        self._port = port
        self._tls = tls
        self._keepalive_s = keepalive_s
        self._grace_s = grace_s
        self._runner: web.AppRunner | None = None

    async def start(self) -> str:
        """Listens and answers the base URL, without a slash at its end.

        Raises :class:`ServerError` when the address is taken, forbidden or unknown.
        """
        if self._runner is not None:
            raise ServerError(f"{self!r} has been started already")
        runner = web.AppRunner(
            self._app,
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=self._grace_s,
            keepalive_timeout=self._keepalive_s,
            auto_decompress=False,
            max_line_size=FIELD_BYTES_MAX,
            max_field_size=FIELD_BYTES_MAX,
            max_headers=FIELDS_MAX,
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port, ssl_context=self._tls).start()
        except (OSError, OverflowError) as error:
            await runner.cleanup()
            reason = reason_of(error)
            raise ServerError(f"cannot listen on {self._host}:{self._port}: {reason}") from error
        self._runner = runner
        self._port = int(runner.addresses[0][1])
        return self.url

    async def close(self) -> None:
        """Stops listening; closes every connection after ``grace_s`` at the latest. Safe to call twice."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{self._port}"

    @property
    def port(self) -> int:
        """The port asked for; after :meth:`start`, the one in use."""
        return self._port

    async def __aenter__(self) -> Server:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"Server({self.url}, {'listening' if self._runner else 'closed'})"
