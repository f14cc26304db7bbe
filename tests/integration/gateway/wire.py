"""HTTP/1.1 by hand: messages as the bytes that they are, read and written over real sockets by either side."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from dataclasses import dataclass, field

TIMEOUT_S = 10.0
"""A test that waits so long for what must come has failed."""


@dataclass
class Message:
    """A request or response as it came: start line, field lines, body without framing, trailer lines."""

    start: bytes
    lines: list[bytes]
    body: bytes = b""
    trailers: list[bytes] = field(default_factory=list)
    interim: list[Message] = field(default_factory=list)
    cut: bool = False
    """The connection ended in the middle of it."""

    @property
    def status(self) -> int:
        return int(self.start.split(b" ")[1])

    @property
    def method(self) -> bytes:
        return self.start.split(b" ")[0]

    @property
    def target(self) -> bytes:
        return self.start.split(b" ")[1]

    def all(self, name: bytes) -> list[bytes]:
        pairs = (line.partition(b":") for line in self.lines)
        return [value.strip() for key, _, value in pairs if key.lower() == name.lower()]

    def get(self, name: bytes) -> bytes | None:
        found = self.all(name)
        assert len(found) < 2, f"{name!r} came {len(found)} times"
        return found[0] if found else None


class Wire:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *data: bytes, apart: bool = False) -> None:
        """Writes; with ``apart`` each piece on its own, so that the other side most likely reads them so."""
        for piece in data:
            self.writer.write(piece)
            async with asyncio.timeout(TIMEOUT_S):
                await self.writer.drain()
            if apart:
                await asyncio.sleep(0.002)

    async def head(self) -> Message:
        """The next head. Raises IncompleteReadError when the connection ends before it, ConnectionError on a reset."""
        async with asyncio.timeout(TIMEOUT_S):
            block = await self.reader.readuntil(b"\r\n\r\n")
        start, *lines = block[:-4].split(b"\r\n")
        return Message(start, lines)

    async def request(self) -> Message:
        message = await self.head()
        await self.body(message)
        return message

    async def response(self, method: bytes = b"GET") -> Message:
        """The next final response, with the interim ones before it."""
        interim = []
        message = await self.head()
        while 100 <= message.status < 200 and message.status != 101:
            interim.append(message)
            message = await self.head()
        message.interim = interim
        bodiless = method == b"HEAD" or message.status in (101, 204, 304)
        if not bodiless:
            await self.body(message, until_close=True)
        return message

    async def body(self, message: Message, *, until_close: bool = False) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                length = message.get(b"Content-Length")
                if message.get(b"Transfer-Encoding") == b"chunked":
                    await self._chunks(message)
                elif length is not None:
                    message.body = await self.reader.readexactly(int(length))
                elif until_close:
                    message.body = await self.reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            message.cut = True

    async def _chunks(self, message: Message) -> None:
        while True:
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            if size == 0:
                break
            message.body += await self.reader.readexactly(size)
            assert await self.reader.readexactly(2) == b"\r\n"
        while (line := await self.reader.readuntil(b"\r\n")) != b"\r\n":
            message.trailers.append(line[:-2])

    async def ended(self) -> bytes:
        """What still came until the other side closed; a reset counts as an end."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await self.reader.read()
        except ConnectionError:
            return b""

    async def was_reset(self) -> bool:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await self.reader.read()
        except ConnectionError:
            return True
        return False

    def half_close(self) -> None:
        self.writer.write_eof()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Ends the connection so that the other side gets a reset, as when a process dies."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


async def connect(
    port: int, *, tls: ssl.SSLContext | None = None, server_hostname: str | None = None, receive_bytes: int = 0
) -> Wire:
    """A client's connection. ``receive_bytes``: size of the kernel's buffer, small for one that takes little."""
    sock = socket.socket()
    sock.setblocking(False)
    if receive_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    async with asyncio.timeout(TIMEOUT_S):
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        name = server_hostname if tls else None
        return Wire(*await asyncio.open_connection(sock=sock, ssl=tls, server_hostname=name, limit=1 << 20))
