"""The admin side's server of a control plane: aiohttp, which brings Lago's webhooks in beside the endpoints."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from sidecar.app.admin_endpoints import AdminEndpoints, Answer, problem
from sidecar.app.listen_fault import CannotListen
from sidecar.app.settings import AdminSettings
from sidecar.basics.listening import listening_sockets

WEBHOOKS = "/webhooks/lago"


class AdminWebServer:
    """Serves ``endpoints`` and webhooks.

    Args:
        webhooks: handler of ``POST /webhooks/lago``, which checks signatures itself and so needs no bearer token.
        field_bytes_max: longest header field.
    """

    def __init__(
        self,
        settings: AdminSettings,
        endpoints: AdminEndpoints,
        *,
        webhooks: Callable[[web.Request], Awaitable[web.StreamResponse]],
        field_bytes_max: int,
    ) -> None:
        self._settings = settings
        self._endpoints = endpoints
        self._webhooks = webhooks
        self._field_bytes_max = field_bytes_max
        self._runner: web.AppRunner | None = None

    async def start(self) -> int:
        """Listens; returns the port.

        Raises:
            CannotListen: the port cannot be bound.
        """
        app = web.Application(client_max_size=65_536)
        app.on_response_prepare.append(_hide_software)
        app.router.add_post(WEBHOOKS, self._webhooks)
        app.router.add_route("*", WEBHOOKS, _post_only)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, max_field_size=self._field_bytes_max)
        await self._runner.setup()
        try:
            for sock in listening_sockets(self._settings.host, self._settings.listening_port):
                await web.SockSite(self._runner, sock).start()
        except OSError as error:
            await self._runner.cleanup()
            raise CannotListen(error, self._settings.host, self._settings.listening_port, "admin.port") from None
        port: int = self._runner.addresses[0][1]
        return port

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        url = request.rel_url
        authorization = ", ".join(request.headers.getall("Authorization", ()))
        return _response(
            await self._endpoints.answer(request.method, url.raw_path, url.raw_query_string, authorization)
        )


async def _hide_software(_: web.Request, response: web.StreamResponse) -> None:
    """Versions of Python and of aiohttp are nobody's business (RFC 9110 section 10.2.4)."""
    response.headers.popall("Server", None)


async def _post_only(_: web.Request) -> web.Response:
    return _response(problem(405, "Lago sends its webhooks with POST.", (("Allow", "POST"),)))


def _response(answer: Answer) -> web.Response:
    headers = {"Content-Type": answer.content_type, "Cache-Control": "no-store", **dict(answer.headers)}
    return web.Response(body=answer.body, status=answer.status, headers=headers)
