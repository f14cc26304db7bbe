"""redis-py's clients, synchronous and asyncio, on anything that answers bytes with bytes. All but the socket is
redis-py's.

A :class:`Wire` is one connection: a simulated server's (``session.RespSession``), or a pair of servers'
(``twins.TwinSession``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol, TypeAlias

import redis
import redis.asyncio
from redis.asyncio.connection import AbstractConnection as AsyncAbstractConnection
from redis.connection import AbstractConnection, ConnectionPool


class Wire(Protocol):
    def receive(self, data: bytes) -> bytes:
        """Takes what a client sends, and gives what it is answered."""
        ...


OpenWire: TypeAlias = Callable[[], Wire]
OpenStreams: TypeAlias = Callable[[], Awaitable[tuple[asyncio.StreamReader, Any]]]
"""Opens a connection: a reader, and what redis-py needs of a writer."""


class _Socket:
    """What redis-py needs of a socket; every answer is there when the call has been sent."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._answers = bytearray()

    def sendall(self, data: bytes) -> None:
        self._answers += self._wire.receive(bytes(data))

    def recv_into(self, buffer: Any) -> int:
        some = self._answers[: len(buffer)]
        if not some:
            raise BlockingIOError("nothing was answered")
        buffer[: len(some)] = some
        del self._answers[: len(some)]
        return len(some)

    def settimeout(self, timeout_s: float | None) -> None: ...

    def shutdown(self, how: int) -> None: ...

    def close(self) -> None: ...


class _Connection(AbstractConnection):
    def __init__(self, *, open_wire: OpenWire, **options: Any) -> None:
        self._open_wire = open_wire
        super().__init__(**options)

    def repr_pieces(self) -> list[tuple[str, Any]]:
        return [("wire", self._open_wire)]

    def _connect(self) -> Any:
        return _Socket(self._open_wire())

    def can_read(self, timeout: float | None = 0, **options: Any) -> bool:
        return False

    def _host_error(self) -> str:
        return "the wire"


def sync_client(open_wire: OpenWire) -> redis.Redis:
    """A client whose answers are bytes."""
    pool = ConnectionPool(connection_class=_Connection, open_wire=open_wire, protocol=2)
    return redis.Redis(connection_pool=pool)


class _DirectWriter:
    """Its answers are in the reader when a write returns."""

    def __init__(self, wire: Wire, reader: asyncio.StreamReader) -> None:
        self._wire, self._reader = wire, reader

    def writelines(self, parts: Iterable[bytes]) -> None:
        self._reader.feed_data(self._wire.receive(b"".join(parts)))

    async def drain(self) -> None: ...

    def close(self) -> None: ...

    async def wait_closed(self) -> None: ...


def directly(open_wire: OpenWire) -> OpenStreams:
    async def opened() -> tuple[asyncio.StreamReader, Any]:
        reader = asyncio.StreamReader()
        return reader, _DirectWriter(open_wire(), reader)

    return opened


class _AsyncConnection(AsyncAbstractConnection):
    def __init__(self, *, open_streams: OpenStreams, **options: Any) -> None:
        self._open_streams = open_streams
        super().__init__(**options)

    def repr_pieces(self) -> list[tuple[str, Any]]:
        return [("streams", self._open_streams)]

    async def _connect(self) -> None:
        self._reader, self._writer = await self._open_streams()

    def _host_error(self) -> str:
        return "the wire"


def async_client(open_streams: OpenStreams, **options: Any) -> redis.asyncio.Redis:
    """A client whose answers are bytes. ``options``: of redis-py's connections."""
    options = {"protocol": 2, **options}
    pool = redis.asyncio.ConnectionPool(connection_class=_AsyncConnection, open_streams=open_streams, **options)
    return redis.asyncio.Redis.from_pool(pool)
