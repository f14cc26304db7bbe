"""Short questions to several servers about who is the primary, over connections that may be kept."""

from __future__ import annotations

import asyncio
from typing import Self

from sidecar.valkey.resp import LedgerConnectionError, Reply, RespConnection
from sidecar.valkey.server_addresses import ServerAddresses
from sidecar.valkey.url import Address


class Inquiries:
    """One connection to each server that was asked, until :meth:`close` or the end of a ``with``. ``timeout_s``: for
    connecting, and for the answers."""

    def __init__(self, addresses: ServerAddresses, timeout_s: float) -> None:
        self._addresses = addresses
        self._timeout_s = timeout_s
        self._connections: dict[Address, RespConnection] = {}

    def __repr__(self) -> str:
        return f"Inquiries({len(self._connections)} connections)"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def ask(self, where: Address, *commands: tuple[bytes, ...]) -> list[Reply]:
        """The replies, error replies among them.

        Raises:
            LedgerConnectionError: the server cannot be reached, or does not answer in time.
        """
        connection = self._connections.pop(where, None)
        if connection is None or connection.closed:
            connection = await RespConnection.open(self._addresses.of(where), timeout_s=self._timeout_s)
        try:
            async with asyncio.timeout(self._timeout_s):
                # All at once, so that they are answered at one instant of the server.
                waiting = [connection.call(*command) for command in commands]
                replies = await asyncio.gather(*waiting)
        except TimeoutError:
            connection.close()
            raise LedgerConnectionError(f"Valkey at {where} did not answer within {self._timeout_s:g} s") from None
        except BaseException:
            connection.close()
            raise
        self._connections[where] = connection
        return replies

    def keep_only(self, wanted: set[Address]) -> None:
        """Closes connections to servers that nobody asks any more."""
        for where in self._connections.keys() - wanted:
            self._connections.pop(where).close()

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
