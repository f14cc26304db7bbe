"""A TCP relay that breaks on demand, between a client and its server.

Faults are counted in requests and replies as the wire carries them, so that a test can say "the answer to the next
batch is lost" and mean that one. A request is recognised by a word in its bytes (``marker``); everything else passes.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Literal

Fault = Literal["drop before", "drop after", "swallow reply", "split"]
"""What happens to a marked request: the connection ends before the server has it; it ends when the server has answered;
its reply never arrives, nor anything after it on that connection; it and its reply arrive in pieces of one byte."""

CHUNK = 65_536


@dataclass
class FaultProxy:
    """Relays one port to ``host``:``port``. ``faults`` are used up in order, one for each marked request.
    ``delay_s``: how late every answer is."""

    host: str
    port: int
    marker: bytes = b"EVAL"
    faults: list[Fault] = field(default_factory=list)
    done: list[Fault] = field(default_factory=list)
    connections: int = 0
    delay_s: float = 0.0
    listening_port: int = 0

    def __post_init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()
        self._open = asyncio.Event()
        self._open.set()
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def __aenter__(self) -> FaultProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.listening_port)
        self.listening_port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()

    # What a test does to the wire

    def cut(self) -> None:
        """Ends every connection at once, without a word."""
        for pair in list(self._pairs):
            pair.abort()

    def refuse(self) -> None:
        """New connections are closed as soon as they are made, and those that exist are cut."""
        self._open.clear()
        self.cut()

    def accept(self) -> None:
        self._open.set()

    def stall(self) -> None:
        """Connections stay, and nothing passes any more in either direction, as with a server that hangs."""
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()

    def aim(self, host: str, port: int) -> None:
        """Relays new connections to another server; those that exist are cut."""
        self.host, self.port = host, port
        self.cut()

    # Relaying

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._open.is_set():
            writer.transport.abort()
            return
        self.connections += 1
        try:
            server_reader, server_writer = await asyncio.open_connection(self.host, self.port)
        except OSError:
            writer.transport.abort()
            return
        pair = _Pair(self, reader, writer, server_reader, server_writer)
        self._pairs.add(pair)
        try:
            await pair.run()
        finally:
            self._pairs.discard(pair)
            pair.abort()

    async def flowing(self) -> None:
        await self._flowing.wait()

    def next_fault(self, request: bytes) -> Fault | None:
        if not self.faults or self.marker not in request:
            return None
        fault = self.faults.pop(0)
        self.done.append(fault)
        return fault


class _Pair:
    """One connection: client to proxy, proxy to server."""

    def __init__(
        self,
        proxy: FaultProxy,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        server_reader: asyncio.StreamReader,
        server_writer: asyncio.StreamWriter,
    ) -> None:
        self._proxy = proxy
        self._reader, self._writer = reader, writer
        self._server_reader, self._server_writer = server_reader, server_writer
        self._reply_fault: Fault | None = None
        self._silent = False

    async def run(self) -> None:
        tasks = [asyncio.create_task(self._up()), asyncio.create_task(self._down())]
        _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def abort(self) -> None:
        for writer in (self._writer, self._server_writer):
            writer.transport.abort()

    async def _up(self) -> None:
        while data := await self._reader.read(CHUNK):
            await self._proxy.flowing()
            fault = self._proxy.next_fault(data)
            if fault == "drop before":
                return
            self._reply_fault = fault
            await self._write(self._server_writer, data, split=fault == "split")

    async def _down(self) -> None:
        while data := await self._server_reader.read(CHUNK):
            await self._proxy.flowing()
            if self._proxy.delay_s:
                await asyncio.sleep(self._proxy.delay_s)
            fault, self._reply_fault = self._reply_fault, None
            if fault == "drop after":
                return
            if fault == "swallow reply":
                self._silent = True
            if not self._silent:
                await self._write(self._writer, data, split=fault == "split")

    @staticmethod
    async def _write(writer: asyncio.StreamWriter, data: bytes, *, split: bool) -> None:
        with contextlib.suppress(ConnectionError):
            if not split:
                writer.write(data)
                await writer.drain()
                return
            for at in range(len(data)):
                writer.write(data[at : at + 1])
                await writer.drain()
                await asyncio.sleep(0)
