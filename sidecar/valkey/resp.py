"""A connection to one Valkey server for the request path: pipelined, callback-driven, no task and no future per call.

redis-py carries everything off the request path. This exists because it is measured: redis-py's client costs as much
CPU per call as the whole of a proxied request does here.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import hiredis

from sidecar.basics.fault_reasons import reason_of
from sidecar.valkey.command import encode_command

Reply = Any
"""bytes, int, list or None; an error reply is a :class:`ReplyError` value."""

ReplyError = hiredis.ReplyError
REPLY_BYTES_MAX = 64 * 1024 * 1024
"""A server that sends more than this without completing a reply is not one of ours."""


class LedgerConnectionError(ConnectionError):
    """The server cannot be reached, or refused the handshake. The message holds no credentials."""


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where a server listens, and how to enter. ``path`` for a Unix socket, else host and port."""

    host: str = "127.0.0.1"
    port: int = 6379
    path: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    server_hostname: str | None = None

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


class RespConnection(asyncio.Protocol):
    """Sends commands in order and hands each reply to its callback. After it is lost every callback that still waits
    gets a :class:`LedgerConnectionError`, once, in order."""

    def __init__(self, address: ServerAddress) -> None:
        self.address = address
        self.closed = False
        self.lost = asyncio.Event()
        """Set when the connection is gone and every callback has been told."""
        self._unread_bytes = 0
        self._reader = hiredis.Reader()
        self._waiting: deque[Callable[[Reply], None]] = deque()
        self._transport: asyncio.Transport | None = None

    def __repr__(self) -> str:
        return f"<RespConnection {self.address} waiting={len(self._waiting)} closed={self.closed}>"

    @classmethod
    async def open(
        cls,
        address: ServerAddress,
        *,
        timeout_s: float,
        name: str = "quota-sidecar",
    ) -> RespConnection:
        """Connects and shakes hands (AUTH, SELECT, CLIENT SETNAME).

        Raises:
            LedgerConnectionError: unreachable, too slow, or refused.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                if address.path is not None:
                    _, protocol = await loop.create_unix_connection(
                        lambda: cls(address),
                        address.path,
                        ssl=address.tls,
                        server_hostname=address.server_hostname,
                    )
                else:
                    _, protocol = await loop.create_connection(
                        lambda: cls(address), address.host, address.port,
                        ssl=address.tls, server_hostname=address.server_hostname if address.tls else None,
                    )  # fmt: skip
                try:
                    await protocol._handshake(name)
                except BaseException:
                    protocol.close()
                    raise
        except TimeoutError:
            raise LedgerConnectionError(f"Valkey at {address} did not answer within {timeout_s:g} s") from None
        except LedgerConnectionError:
            raise
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name that IDNA cannot encode
            raise LedgerConnectionError(f"Valkey at {address}: {reason_of(error)}") from error
        return protocol

    async def _handshake(self, name: str) -> None:
        address = self.address
        if address.password is not None:
            user = [address.username.encode()] if address.username else []
            await self._expect_ok("AUTH", b"AUTH", *user, address.password.encode())
        if address.db:
            await self._expect_ok("SELECT", b"SELECT", b"%d" % address.db)
        await self.call(b"CLIENT", b"SETNAME", name.encode())  # a server whose ACL forbids it is still good

    async def _expect_ok(self, what: str, *parts: bytes) -> None:
        reply = await self.call(*parts)
        if isinstance(reply, ReplyError):
            raise LedgerConnectionError(f"Valkey at {self.address} refused {what}: {reply}")

    def send(self, payload: bytes, callback: Callable[[Reply], None]) -> None:
        """Sends one encoded command; ``callback`` gets its reply, an error reply or a `LedgerConnectionError`."""
        assert self._transport is not None
        if self.closed:
            callback(LedgerConnectionError(f"connection to Valkey at {self.address} is closed"))
            return
        self._waiting.append(callback)
        self._transport.write(payload)

    def call(self, *parts: bytes) -> asyncio.Future[Reply]:
        """Sends one command and answers its reply as a future; error replies are results, a loss is raised."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def done(reply: Reply) -> None:
            if future.done():
                return
            if isinstance(reply, LedgerConnectionError):
                future.set_exception(reply)
            else:
                future.set_result(reply)

        self.send(encode_command([*parts]), done)
        return future

    def close(self) -> None:
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        reader.feed(data)
        self._unread_bytes += len(data)
        try:
            while (reply := reader.gets()) is not False:
                self._unread_bytes = 0
                if not self._waiting:
                    self.close()  # a reply that nobody asked for: the stream cannot be trusted any more
                    return
                self._waiting.popleft()(reply)
        except hiredis.ProtocolError:
            self.close()
        if self._unread_bytes > REPLY_BYTES_MAX:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        error = LedgerConnectionError(f"connection to Valkey at {self.address} was lost")
        while self._waiting:
            self._waiting.popleft()(error)
        self.lost.set()
