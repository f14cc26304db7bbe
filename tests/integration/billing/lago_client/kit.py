"""A server that answers what a test tells it to, and sees what was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

from aiohttp import web

from sidecar.billing.lago.client import LagoClient
from sidecar.billing.settings import LagoSettings
from sidecar.sandbox.server import Server

KEY = "lago-key-of-the-bank-0123456789"
TIMEOUT_S = 20.0

Reply = tuple[int, Any] | tuple[int, Any, dict[str, str]]
"""Status, body (bytes as they are, anything else as JSON), headers."""

Script = Callable[["Request"], Reply | Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Request:
    """``path`` is as it was sent, after ``/api/v1``; ``query`` in its order."""

    method: str
    path: str
    query: list[tuple[str, str]]
    headers: dict[str, str]
    body: Any


@dataclass(slots=True)
class ScriptedLago:
    """Answers with ``script``, or one after the other of a list of replies, the last one again and again."""

    script: Script | Sequence[Reply] = ()
    requests: list[Request] = field(default_factory=list)

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        return app

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path, _, _ = request.raw_path.partition("?")
        body = await request.json() if request.body_exists else None
        headers = {name.lower(): value for name, value in request.headers.items()}
        seen = Request(request.method, path.removeprefix("/api/v1"), list(request.query.items()), headers, body)
        self.requests.append(seen)
        reply = self._reply(seen)
        if not isinstance(reply, tuple):
            reply = await reply
        status, content, *rest = reply
        if isinstance(content, web.StreamResponse):
            return content
        if isinstance(content, bytes):
            return web.Response(status=status, body=content, headers=rest[0] if rest else None)
        return web.json_response(content, status=status, headers=rest[0] if rest else None)

    def _reply(self, seen: Request) -> Reply | Awaitable[Reply]:
        if callable(self.script):
            return self.script(seen)
        return self.script[min(len(self.requests), len(self.script)) - 1]

    @property
    def lines(self) -> list[str]:
        """Method and path of all that was asked."""
        return [f"{each.method} {each.path}" for each in self.requests]


class SkippingClock:
    """Waits in no time at all: the time that was waited for has then passed. ``waits`` are its seconds."""

    def __init__(self, now_s: float = 1_785_543_009.0) -> None:
        self.waits: list[float] = []
        self._now_s = now_s

    def now_s(self) -> float:
        return self._now_s

    def monotonic_s(self) -> float:
        return self._now_s

    async def wait(self, event: asyncio.Event, timeout_s: float) -> bool:
        await asyncio.sleep(0)
        if not event.is_set():
            self.waits.append(timeout_s)
            self._now_s += timeout_s
        return event.is_set()


def settings(url: str, /, **changes: Any) -> LagoSettings:
    values = {"url": url, "api_key": KEY, "timeout_ms": 5_000, "requests_per_second": 10_000}
    return LagoSettings.model_validate(values | changes)


@asynccontextmanager
async def talking(
    script: Script | Sequence[Reply], clock: SkippingClock | None = None, **changes: Any
) -> AsyncIterator[tuple[LagoClient, ScriptedLago]]:
    """A client, and the server that it talks to."""
    lago = ScriptedLago(script)
    async with (
        Server(lago.app()) as server,
        LagoClient(settings(server.url, **changes), clock=clock or SkippingClock(), random=Random(1)) as client,
    ):
        yield client, lago


@asynccontextmanager
async def raw_server(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A server that speaks no HTTP of its own; its URL."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
