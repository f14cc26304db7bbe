"""Sends one POST to OpenMeter."""

from __future__ import annotations

from types import TracebackType

import aiohttp

from sidecar.basics.backoff import retry_after_s
from sidecar.basics.clock import Clock
from sidecar.basics.fault_reasons import reason_of
from sidecar.metering.openmeter.access import Access, MeteringError
from sidecar.metering.publisher.ingest_responses import REASON_CHARS_MAX, IngestResponse, ResponseClass, ingest_response
from sidecar.metering.settings import MeteringSettings

__all__ = ["CONTENT_TYPE", "PATH", "MeteringError", "Sender"]

CONTENT_TYPE = "application/cloudevents-batch+json"
"""OpenMeter's v1 compares the whole header: even a charset parameter makes it a 400."""

PATH = "/api/v1/events"
ANSWER_BYTES_MAX = 16_384


class Sender:
    """Posts batches; an async context manager that holds the connections.

    Raises:
        MeteringError: on entering: ``url`` is not set, a file cannot be read or is not what it should be.
    """

    def __init__(self, settings: MeteringSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        self._access: Access | None = None
        self._headers: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Sender({self._settings.url}, {'open' if self._session else 'closed'})"

    async def __aenter__(self) -> Sender:
        self._access = Access(self._settings)
        self._session = self._access.session(self._settings.timeout_ms)
        self._set_headers()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def post(self, body: bytes) -> IngestResponse:
        """Sends a JSON array of events once. Every failure becomes a response."""
        assert self._session is not None
        try:
            # A redirect would be followed with a GET, which is answered 200 and stores nothing.
            async with self._session.post(
                f"{self._settings.url}{PATH}", data=body, headers=self._headers, allow_redirects=False
            ) as response:
                after_s = retry_after_s(response.headers.get("Retry-After"), self._clock.now_s())
                return ingest_response(response.status, await _beginning(response.content), after_s)
        except TimeoutError:
            return IngestResponse(ResponseClass.RETRY, None, f"no answer in {self._settings.timeout_ms} ms")
        except (aiohttp.ClientError, OSError) as error:
            return IngestResponse(ResponseClass.RETRY, None, reason_of(error)[:REASON_CHARS_MAX])

    def reload_token(self) -> None:
        """Reads the token's file again, since it may have been replaced. Keeps the old token if it cannot be read."""
        assert self._access is not None
        self._access.reload_token()
        self._set_headers()

    def _set_headers(self) -> None:
        assert self._access is not None
        self._headers = {"Content-Type": CONTENT_TYPE, **self._access.headers}


async def _beginning(content: aiohttp.StreamReader) -> bytes:
    """As much of an answer as is worth reading."""
    read = b""
    while len(read) < ANSWER_BYTES_MAX and (chunk := await content.read(ANSWER_BYTES_MAX - len(read))):
        read += chunk
    return read
