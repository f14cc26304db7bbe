"""Reads the raw body of a request, within limits of size, of time and of memory for all requests together."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import aiohttp
from aiohttp import hdrs, web
from aiohttp.http import HttpProcessingError

from sidecar.billing.webhooks.refusals import Refusal, Refused

READ_TIMEOUT_S: Final = 10.0
BUFFERED_BYTES_MAX: Final = 64 * 1024 * 1024


class BodyReader:
    """``bytes_max`` of one body, ``buffered_bytes_max`` of all that are in memory at a time. Those of one peer get half
    of that at most, so that others find room."""

    def __init__(
        self,
        bytes_max: int,
        *,
        buffered_bytes_max: int = BUFFERED_BYTES_MAX,
        timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        self.buffered_bytes = 0
        self._bytes_max = bytes_max
        self._buffered_bytes_max = max(bytes_max, buffered_bytes_max)
        self._timeout_s = timeout_s
        self._of_peer: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"BodyReader({self.buffered_bytes} bytes buffered)"

    @asynccontextmanager
    async def read(self, request: web.Request) -> AsyncIterator[bytes]:
        """The body, which counts as buffered until the block ends. Raises ``Refused``."""
        if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
            # Lago encodes nothing, and what was signed would no longer be what came.
            raise Refused(Refusal.ENCODED)
        if (request.content_length or 0) > self._bytes_max:
            raise Refused(Refusal.TOO_LARGE)
        body, peer = bytearray(), request.remote or ""
        try:
            await self._fill(body, request, peer)
            yield bytes(body)
        finally:
            self.buffered_bytes -= len(body)
            self._of_peer[peer] -= len(body)
            if not self._of_peer[peer]:
                del self._of_peer[peer]

    async def _fill(self, body: bytearray, request: web.Request, peer: str) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                async for chunk in request.content.iter_any():
                    body += chunk
                    self.buffered_bytes += len(chunk)
                    self._of_peer[peer] += len(chunk)
                    if len(body) > self._bytes_max:
                        raise Refused(Refusal.TOO_LARGE)
                    share = max(self._bytes_max, self._buffered_bytes_max // 2)
                    if self.buffered_bytes > self._buffered_bytes_max or self._of_peer[peer] > share:
                        raise Refused(Refusal.BUSY)
        except TimeoutError:
            raise Refused(Refusal.TOO_SLOW) from None
        except (aiohttp.ClientError, HttpProcessingError, OSError):
            raise Refused(Refusal.CUT_SHORT) from None
