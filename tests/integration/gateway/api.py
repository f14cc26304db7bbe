"""The API behind the gateway, scripted byte by byte."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.integration.gateway.wire import Message, Wire

Script = Callable[["Conversation"], Awaitable[None]]


class Conversation(Wire):
    """One connection of the gateway. ``number`` counts the connections from 1."""

    def __init__(self, api: Api, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer)
        self.api = api
        self.number = number

    async def request(self) -> Message:
        message = await super().request()
        self.api.requests.append(message)
        return message

    async def answer(self, response: bytes) -> Message:
        """Reads a request, writes a response."""
        request = await self.request()
        await self.send(response)
        return request


class Api:
    """Runs ``script`` for every connection; the connection ends with it. ``requests`` are those that were read."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[Message] = []
        self.connections = 0
        self.open = 0
        self.errors: list[BaseException] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self, *, tls: ssl.SSLContext | None = None, path: Path | None = None) -> int:
        if path is not None:
            self._server = await asyncio.start_unix_server(self._accept, path, limit=1 << 20)
            return 0
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=tls, limit=1 << 20)
        return int(self._server.sockets[0].getsockname()[1])

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        task = asyncio.get_running_loop().create_task(self._talk(Conversation(self, self.connections, reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _talk(self, conversation: Conversation) -> None:
        try:
            await self.script(conversation)
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # the gateway closed: nothing is left to say
        except Exception as error:  # a script's own failed assertion has to reach the test
            self.errors.append(error)
        finally:
            self.open -= 1
            conversation.close()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            self._server.close()
        if self.errors:
            raise self.errors[0]


def length(body: bytes = b"ok", *lines: bytes, status: bytes = b"200 OK") -> bytes:
    """A response with Content-Length."""
    head = [b"HTTP/1.1 " + status, *lines, b"Content-Length: %d" % len(body)]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def always(response: bytes) -> Script:
    """Answers every request on every connection with the same bytes."""

    async def script(talk: Conversation) -> None:
        while True:
            await talk.answer(response)

    return script


def once(response: bytes) -> Script:
    """Answers one request with these bytes, then closes."""

    async def script(talk: Conversation) -> None:
        await talk.answer(response)

    return script


async def echo(talk: Conversation) -> None:
    """Answers with the body that came, and what came before it in ``X-Start``."""
    while True:
        request = await talk.request()
        await talk.send(length(request.body, b"X-Start: " + request.start))


async def silent(talk: Conversation) -> None:
    """Reads, and never answers."""
    await talk.request()
    await talk.reader.read()


async def absent(talk: Conversation) -> None:
    """Closes whatever connects."""
