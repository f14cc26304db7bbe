"""An API that counts what it did, and that can be told when it begins to work and what it answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

from tests.integration.gateway.api import Conversation, length
from tests.integration.gateway.wire import Message

HEAD, FIRST_BYTE, END = "head", "first byte", "end"
BEGINS = (HEAD, FIRST_BYTE, END)
"""When it begins to work on a request. Who begins at the head has worked for a body that never comes."""

SUCCESS, EARLY, STREAM, LARGE, STREAM_BREAKS = "200", "200 early", "stream", "large", "stream breaks"
NOT_FOUND, UNAVAILABLE, NEVER, CLOSES, BREAKS = "404", "503", "never", "closes", "breaks"
SERVES = (SUCCESS, EARLY, STREAM, LARGE, STREAM_BREAKS)
"""Answers of which a caller gets something that is charged."""
ANSWERS = (*SERVES, NOT_FOUND, UNAVAILABLE, NEVER, CLOSES, BREAKS)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nevent\r\n"
EVENTS = CHUNKED.replace(b"Transfer", b"Content-Type: text/event-stream\r\nTransfer")
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
LARGE_BYTES = 4_000_000


def account_of(request: Message) -> str:
    return (request.get(b"X-TPP-Id") or b"").decode()


@dataclass
class Counting:
    """By account, as the gateway says it. ``done``: calls that it worked for. ``heads``: requests it heard of.
    ``bodies``: requests that it has as a whole."""

    begins: str = HEAD
    answer: str = SUCCESS
    done: Counter[str] = field(default_factory=Counter)
    heads: Counter[str] = field(default_factory=Counter)
    bodies: Counter[str] = field(default_factory=Counter)

    async def __call__(self, talk: Conversation) -> None:
        while True:
            try:
                request = await talk.head()
            except TimeoutError:
                return
            self.heads[account_of(request)] += 1
            if self.begins == HEAD:
                self._work(request)
            if self.answer == EARLY:
                await talk.send(length(b"ok"))
            whole = await self._read(talk, request)
            self.bodies[account_of(request)] += whole
            if whole and self.begins == END:
                self._work(request)
            if self.answer == EARLY:
                if not whole:
                    return
                continue
            if not whole:
                await talk.send(length(b"incomplete", status=b"400 Bad Request"))
                return
            if not await self._answer(talk, request):
                return

    def _work(self, request: Message) -> None:
        self.done[account_of(request)] += 1

    async def _read(self, talk: Conversation, request: Message) -> bool:
        """Reads the body. False: it does not come as a whole."""
        begun = False

        async def take(size: int) -> None:
            nonlocal begun
            while size:
                piece = await talk.reader.read(min(size, 65_536))
                if not piece:
                    raise asyncio.IncompleteReadError(b"", size)
                if not begun and self.begins == FIRST_BYTE:
                    self._work(request)
                begun = True
                size -= len(piece)

        try:
            if request.get(b"Transfer-Encoding") == b"chunked":
                while size := int(await talk.reader.readuntil(b"\r\n"), 16):
                    await take(size)
                    await talk.reader.readexactly(2)
                while await talk.reader.readuntil(b"\r\n") != b"\r\n":
                    pass
            else:
                await take(int(request.get(b"Content-Length") or 0))
        except (asyncio.IncompleteReadError, ConnectionError):
            return False
        if not begun and self.begins == FIRST_BYTE:
            self._work(request)  # there is none
        return True

    async def _answer(self, talk: Conversation, request: Message) -> bool:
        """False: the connection ends."""
        if request.get(b"Upgrade") is not None and self.answer in SERVES:
            await talk.send(SWITCH)
            await talk.reader.read()
            return False
        if request.method == b"HEAD" and self.answer not in (NOT_FOUND, UNAVAILABLE, NEVER, CLOSES):
            await talk.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
            return True
        if self.answer == SUCCESS:
            await talk.send(length(b"ok"))
        elif self.answer == NOT_FOUND:
            await talk.send(length(b"no", status=b"404 Not Found"))
        elif self.answer == UNAVAILABLE:
            await talk.send(length(b"no", status=b"503 Service Unavailable"))
        elif self.answer == LARGE:
            with suppress(TimeoutError):
                await talk.send(length(bytes(LARGE_BYTES)))
        elif self.answer == STREAM:
            for piece in (EVENTS, b"5\r\nevent\r\n", b"0\r\n\r\n"):
                if talk.writer.transport.is_closing():
                    return False
                await talk.send(piece)
                await asyncio.sleep(0.002)
        elif self.answer == STREAM_BREAKS:
            await talk.send(CHUNKED)
            await asyncio.sleep(0.002)
            return False
        elif self.answer == BREAKS:
            await talk.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort")
            return False
        elif self.answer == NEVER:
            await talk.reader.read()
            return False
        else:
            return False
        return True
