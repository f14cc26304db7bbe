"""Where a JWKS comes from: a URL or a file. Sources read bytes; what they mean is for ``jwks.py``."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import aiohttp

from sidecar.basics.fault_reasons import reason_of
from sidecar.identity.jwks import KeySetError
from sidecar.identity.types import IdentitySetupError


class KeySource(Protocol):
    """Reads the document anew each time it is asked."""

    description: str
    """For logs and errors."""
    must_work_at_start: bool
    """True if a failure at start is a mistake in the configuration rather than an outage."""

    async def open(self) -> None:
        """Raises ``IdentitySetupError``."""
        ...

    async def fetch(self) -> bytes:
        """Raises ``KeySetError``."""
        ...

    async def close(self) -> None: ...


class UrlKeySource:
    """An HTTP resource. Redirects are not followed: they could lead from https to http, or to the inside."""

    must_work_at_start = False

    def __init__(self, url: str, *, timeout_s: float, bytes_max: int, ca_file: Path | None = None) -> None:
        parts = urlsplit(url)
        self.description = f"{parts.scheme}://{parts.netloc}{parts.path}"  # a query may hold a secret
        self._url = url
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._bytes_max = bytes_max
        self._ca_file = ca_file
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """See ``KeySource``. Answers without effect if it is open already."""
        if self._session is not None:
            return
        try:
            context = ssl.create_default_context(cafile=self._ca_file)
        except (OSError, ssl.SSLError) as error:
            reason = "holds no certificate in PEM" if isinstance(error, ssl.SSLError) else reason_of(error)
            raise IdentitySetupError(f"identity jwt: jwks_ca_file {self._ca_file}: {reason}") from None
        # Bodies are taken as they are sent, without decompression: the limit then is on what really came.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context, limit=2),
            timeout=self._timeout,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept": "application/jwk-set+json, application/json", "Accept-Encoding": "identity"},
        )

    async def fetch(self) -> bytes:
        """See ``KeySource``."""
        await self.open()
        assert self._session is not None
        try:
            async with self._session.get(self._url, allow_redirects=False) as response:
                if response.status != 200:
                    raise KeySetError(f"it answered {response.status}")
                return await self._read(response.content)
        except (aiohttp.ClientError, OSError) as error:
            raise KeySetError(f"it cannot be read: {reason_of(error)}") from None

    async def _read(self, content: aiohttp.StreamReader) -> bytes:
        body = bytearray()
        async for chunk in content.iter_any():
            body += chunk
            if len(body) > self._bytes_max:
                raise KeySetError(f"it is larger than {self._bytes_max} bytes")
        return bytes(body)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def __repr__(self) -> str:
        return f"UrlKeySource({self.description})"


class FileKeySource:
    """A file, which may be replaced while the gateway runs."""

    must_work_at_start = True

    def __init__(self, path: Path, *, bytes_max: int) -> None:
        self.description = str(path)
        self._path = path
        self._bytes_max = bytes_max

    async def open(self) -> None:
        """Nothing to do."""

    async def fetch(self) -> bytes:
        """See ``KeySource``."""
        try:
            body = await asyncio.to_thread(self._read)
        except OSError as error:
            raise KeySetError(f"it cannot be read: {error.strerror}") from None
        if len(body) > self._bytes_max:
            raise KeySetError(f"it is larger than {self._bytes_max} bytes")
        return body

    def _read(self) -> bytes:
        with self._path.open("rb") as file:
            return file.read(self._bytes_max + 1)

    async def close(self) -> None:
        """Nothing to do."""

    def __repr__(self) -> str:
        return f"FileKeySource({self.description})"
