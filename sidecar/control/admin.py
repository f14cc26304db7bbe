"""The admin side: health, metrics, status, accounts. aiohttp, on a port of its own."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import orjson
from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from sidecar.config.operations import AdminSettings
from sidecar.control.assemble import SetupError
from sidecar.control.dataplane import Health

ACCOUNTS_PAGE_MAX = 500
FIELD_BYTES_MAX = 8190
WEBHOOKS = "/webhooks/lago"
_OPEN = frozenset({"/livez", "/readyz", WEBHOOKS})


class Accounts(Protocol):
    """What is shown of accounts."""

    async def page(self, after: str, limit: int) -> list[str]: ...

    async def detail(self, account: str) -> dict[str, Any] | None: ...


class AdminServer:
    """Serves one process, or several through the functions it is given.

    Args:
        health: whether new requests can be served.
        metrics: the exposition text.
        status: what ``/v1/status`` shows.
        accounts: None where there is no ledger to ask.
        webhooks: handler of ``POST /webhooks/lago``, which checks signatures itself and so needs no bearer token.
        field_bytes_max: longest header field.
        socket_path: a Unix socket instead of the configured address.
    """

    def __init__(
        self,
        settings: AdminSettings,
        *,
        health: Callable[[], Awaitable[Health]],
        metrics: Callable[[], Awaitable[bytes]],
        status: Callable[[], Awaitable[Mapping[str, Any]]],
        accounts: Accounts | None = None,
        webhooks: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None,
        field_bytes_max: int = FIELD_BYTES_MAX,
        socket_path: str | None = None,
    ) -> None:
        self._settings = settings
        self._socket_path = socket_path
        self._health = health
        self._metrics = metrics
        self._status = status
        self._accounts = accounts
        self._webhooks = webhooks
        self._field_bytes_max = field_bytes_max
        # A worker's socket lies in a directory that only its parent can enter; the parent asks for the token.
        wanted = settings.token if socket_path is None else None
        self._token = wanted.get_secret_value() if wanted is not None else None
        self._runner: web.AppRunner | None = None

    async def start(self) -> int:
        """Listens; returns the port.

        Raises:
            SetupError: the port cannot be bound.
        """
        app = web.Application(middlewares=[self._authorise], client_max_size=65_536)
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._serve_metrics)
        app.router.add_get("/v1/status", self._serve_status)
        app.router.add_get("/v1/accounts", self._list)
        app.router.add_get("/v1/accounts/{id}", self._show)
        if self._webhooks is not None:
            app.router.add_post(WEBHOOKS, self._webhooks)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, max_field_size=self._field_bytes_max)
        await self._runner.setup()
        site: web.BaseSite
        if self._socket_path is not None:
            site = web.UnixSite(self._runner, self._socket_path)
        else:
            site = web.TCPSite(self._runner, self._settings.host, self._settings.port)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            where = f"{self._settings.host}:{self._settings.port}"
            raise SetupError(f"admin: {where}: {error.strerror or error}") from None
        if self._socket_path is not None:
            return 0
        port: int = self._runner.addresses[0][1]
        return port

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _authorise(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if self._token is not None and request.path not in _OPEN:
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self._token.encode()):
                return _problem(401, "A bearer token is needed.", {"WWW-Authenticate": 'Bearer realm="sidecar admin"'})
        try:
            return await handler(request)
        except web.HTTPException as error:
            return _problem(error.status, error.reason)

    async def _livez(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        health = await self._health()
        return web.Response(text="ok\n" if health.ready else f"{health.why}\n", status=200 if health.ready else 503)

    async def _serve_metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=await self._metrics(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _serve_status(self, _request: web.Request) -> web.Response:
        return _json(await self._status())

    async def _list(self, request: web.Request) -> web.Response:
        if self._accounts is None:
            raise web.HTTPNotFound
        limit = request.query.get("limit", "100")
        if not limit.isdecimal() or not 1 <= int(limit) <= ACCOUNTS_PAGE_MAX:
            return _problem(400, f"limit: {limit[:20]!r} is not between 1 and {ACCOUNTS_PAGE_MAX}.")
        ids = await self._accounts.page(request.query.get("after", ""), int(limit))
        more = ids[-1] if len(ids) == int(limit) else None
        return _json({"accounts": ids, "next_after": more})

    async def _show(self, request: web.Request) -> web.Response:
        if self._accounts is None:
            raise web.HTTPNotFound
        account = request.match_info["id"]
        detail = await self._accounts.detail(account)
        if detail is None:
            return _problem(404, f"There is no account {account[:128]!r}.")
        return _json(detail)


def _json(document: Mapping[str, Any]) -> web.Response:
    body = orjson.dumps(document, default=_default, option=orjson.OPT_NON_STR_KEYS)
    return web.Response(body=body, content_type="application/json")


def _default(value: object) -> object:
    return str(value)


def _problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> web.Response:
    body = orjson.dumps({"type": "about:blank", "status": status, "detail": detail})
    return web.Response(body=body, status=status, content_type="application/problem+json", headers=headers)
