"""An API of an Open Banking day: accounts, consents, payments, files, events, WebSocket, long polls."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import WSMsgType, web

from tests.conftest import free_port

EVENTS = 5


class Bank:
    """``calls``: by method and first segment. ``consents``: by key, so that a repeat makes none anew."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        self.consents: dict[str, str] = {}
        self.changed = asyncio.Event()

    def application(self) -> web.Application:
        app = web.Application(client_max_size=16_000_000, middlewares=[self._count])
        app.add_routes(
            [
                web.get("/accounts{rest:(/.*)?}", self._read),
                web.post("/consents", self._consent),
                web.post("/payments", self._pay),
                web.post("/files", self._file),
                web.post("/echo", self._echo),
                web.get("/events", self._events),
                web.get("/poll", self._poll),
                web.get("/ws", self._ws),
                web.options("/{rest:.*}", self._options),
            ]
        )
        return app

    @web.middleware
    async def _count(self, request: web.Request, handler: object) -> web.StreamResponse:
        self.calls[request.method, request.path.split("/")[1]] += 1
        return await handler(request)  # type: ignore[operator, no-any-return]

    async def _read(self, request: web.Request) -> web.Response:
        if request.path.endswith("/missing"):
            return web.json_response({"Code": "404"}, status=404)
        return web.json_response({"path": request.path, "query": dict(request.query)})

    async def _consent(self, request: web.Request) -> web.Response:
        key = request.headers["x-idempotency-key"]
        self.consents.setdefault(key, f"consent-{len(self.consents)}")
        return web.json_response({"ConsentId": self.consents[key], "got": len(await request.read())}, status=201)

    async def _pay(self, request: web.Request) -> web.Response:
        headers = {"x-jws-signature": request.headers.get("x-jws-signature", "")}
        return web.json_response(await request.json(), status=201, headers=headers)

    async def _file(self, request: web.Request) -> web.Response:
        digest = hashlib.sha256()
        async for piece in request.content.iter_any():
            digest.update(piece)
        return web.json_response({"sha256": digest.hexdigest()})

    async def _echo(self, request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(EVENTS):
            await response.write(b"data: %d\n\n" % number)
            await asyncio.sleep(0.01)
        return response

    async def _poll(self, request: web.Request) -> web.Response:
        await asyncio.sleep(0.2)
        return web.Response(status=204)

    async def _ws(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        async for message in ws:
            if message.type == WSMsgType.TEXT:
                await ws.send_str(message.data[::-1])
        return ws

    async def _options(self, request: web.Request) -> web.Response:
        return web.Response(status=204, headers={"Access-Control-Allow-Origin": "*"})


@asynccontextmanager
async def bank() -> AsyncIterator[tuple[Bank, int]]:
    """A bank and its port."""
    open_bank = Bank()
    runner = web.AppRunner(open_bank.application(), shutdown_timeout=1.0)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield open_bank, port
    finally:
        await runner.cleanup()
