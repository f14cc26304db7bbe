"""The HTTP side: one POST to OpenMeter."""

from __future__ import annotations

import ssl
from pathlib import Path
from types import TracebackType

import aiohttp
import structlog

from sidecar.metering.backoff import retry_after_s
from sidecar.metering.clock import Clock
from sidecar.metering.settings import MeteringSettings, check_token
from sidecar.metering.verdict import REASON_CHARS_MAX, Answer, Verdict, answer_of

log = structlog.get_logger("sidecar.metering")

CONTENT_TYPE = "application/cloudevents-batch+json"
"""OpenMeter's v1 compares the whole header: even a charset parameter makes it a 400."""

PATH = "/api/v1/events"
ANSWER_BYTES_MAX = 16_384
TOKEN_BYTES_MAX = 16_384


class MeteringError(Exception):
    """Metering cannot start as configured. The message names the setting."""


class Sender:
    """Posts batches; an async context manager that holds the connections.

    Raises:
        MeteringError: on entering: ``url`` is not set, a file cannot be read or is not what it should be.
    """

    def __init__(self, settings: MeteringSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        self._headers: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Sender({self._settings.url}, {'open' if self._session else 'closed'})"

    async def __aenter__(self) -> Sender:
        settings = self._settings
        if settings.url is None:
            raise MeteringError("metering.url is not set")
        self._set_token(self._read_token())
        tls = _tls(settings.ca_file) if settings.ca_file else True
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=settings.requests_in_flight_max, ssl=tls),
            timeout=aiohttp.ClientTimeout(total=settings.timeout_ms / 1000),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def post(self, body: bytes) -> Answer:
        """Sends a JSON array of events once. Whatever happens becomes an answer."""
        assert self._session is not None
        try:
            # A redirect would be followed with a GET, which is answered 200 and stores nothing.
            async with self._session.post(
                f"{self._settings.url}{PATH}", data=body, headers=self._headers, allow_redirects=False
            ) as response:
                after_s = retry_after_s(response.headers.get("Retry-After"), self._clock.now_s())
                return answer_of(response.status, await _beginning(response.content), after_s)
        except TimeoutError:
            return Answer(Verdict.RETRY, None, f"no answer in {self._settings.timeout_ms} ms")
        except (aiohttp.ClientError, OSError) as error:
            reason = f"{type(error).__name__}: {error}"
            return Answer(Verdict.RETRY, None, reason[:REASON_CHARS_MAX])

    def reload_token(self) -> None:
        """Reads the token's file again, since it may have been replaced. Keeps the old token if it cannot be read."""
        try:
            self._set_token(self._read_token())
        except MeteringError as error:
            log.warning("metering token kept", reason=str(error))

    def _read_token(self) -> str | None:
        if self._settings.token is not None:
            return self._settings.token.get_secret_value()
        path = self._settings.token_file
        if path is None:
            return None
        try:
            with path.open("rb") as file:
                raw = file.read(TOKEN_BYTES_MAX + 1)
        except OSError as error:
            raise MeteringError(f"metering.token_file: {path}: {error.strerror}") from None
        if len(raw) > TOKEN_BYTES_MAX:
            raise MeteringError(f"metering.token_file: {path} is larger than {TOKEN_BYTES_MAX} bytes")
        token = raw.decode("latin-1").strip()
        try:
            check_token(token)
        except ValueError as error:
            raise MeteringError(f"metering.token_file: {path}: {error}") from None
        return token

    def _set_token(self, token: str | None) -> None:
        self._headers = {"Content-Type": CONTENT_TYPE, "Accept-Encoding": "identity"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"


async def _beginning(content: aiohttp.StreamReader) -> bytes:
    """As much of an answer as is worth reading."""
    read = b""
    while len(read) < ANSWER_BYTES_MAX and (chunk := await content.read(ANSWER_BYTES_MAX - len(read))):
        read += chunk
    return read


def _tls(ca_file: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError:
        raise MeteringError(f"metering.ca_file: {ca_file} holds no certificate in PEM") from None
    except OSError as error:
        raise MeteringError(f"metering.ca_file: {ca_file}: {error.strerror}") from None
