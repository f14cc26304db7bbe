"""Sends requests to Lago: within a rate, with bounds, and again where that is safe."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from http.cookiejar import CookieJar, DefaultCookiePolicy
from importlib.util import find_spec
from random import Random
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlsplit

import httpx

from sidecar.basics.backoff import Backoff
from sidecar.basics.clock import Clock
from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.logger import get_logger
from sidecar.billing.lago.access import Access, tls_context
from sidecar.billing.lago.errors import (
    LagoError,
    LagoMalformed,
    LagoRejected,
    LagoSetupError,
    LagoUnauthorized,
    LagoUnavailable,
    excerpt,
)
from sidecar.billing.lago.json_fields import Fields
from sidecar.billing.lago.metrics import LagoMetrics
from sidecar.billing.lago.request_rate import RequestRateLimit
from sidecar.billing.lago.responses import LagoResponse, result_of
from sidecar.billing.settings import LagoSettings

T = TypeVar("T")

log = get_logger("sidecar.billing")

BACKOFF_S_MIN: Final = 0.2
BACKOFF_S_MAX: Final = 10.0
THROTTLED_S: Final = 1.0
"""Pause after a 429 that does not say for how long: one of Lago's windows."""

ID_CHARS_MAX: Final = 1_024
API: Final = "/api/v1"

if "sniffio" not in sys.modules and find_spec("sniffio") is None:
    # httpcore imports it at every request. Where it is not installed, that searches the whole path each time, unless it
    # is known that there is none.
    sys.modules["sniffio"] = None  # type: ignore[assignment]

_UNSENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
Query = Sequence[tuple[str, str]]


def segment(text: str) -> str | None:
    """``text`` as one segment of a path. None for what none can hold: nothing, dots that mean another path, half a
    surrogate pair, and more than ID_CHARS_MAX characters.

    Dots are encoded too, though RFC 3986 (section 2.3) leaves them as they are: the router of Rails takes what follows
    one for a format, and would look for ``acme`` where ``acme.example`` is meant.
    """
    if text in ("", ".", "..") or len(text) > ID_CHARS_MAX:
        return None
    try:
        return quote(text, safe="").replace(".", "%2E")
    except UnicodeEncodeError:
        return None


class Transport:
    """One client's connections. ``close`` ends what waits.

    Raises:
        LagoSetupError: when made: ``url`` is not set, a file cannot be read or is not what it should be.
    """

    def __init__(self, settings: LagoSettings, clock: Clock, random: Random, metrics: LagoMetrics) -> None:
        if settings.url is None:
            raise LagoSetupError("lago.url is not set")
        self._settings = settings
        self._clock = clock
        self._random = random
        self._metrics = metrics
        self._access = Access(settings)
        self._rate_limit = RequestRateLimit(settings.requests_per_second, clock, metrics)
        self._slots = asyncio.Semaphore(settings.requests_in_flight_max)
        self._timeout_s = settings.timeout_ms / 1000
        self._is_failing = False
        self._place = urlsplit(settings.url).netloc.rpartition("@")[2]
        self._http = httpx.AsyncClient(
            base_url=f"{settings.url}{API}",
            verify=tls_context(settings.ca_file),
            # Half of the time for connecting, so that a request that was never sent is known for one.
            timeout=httpx.Timeout(self._timeout_s, connect=self._timeout_s / 2),
            limits=httpx.Limits(
                max_connections=settings.requests_in_flight_max,
                max_keepalive_connections=settings.requests_in_flight_max,
            ),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            trust_env=False,
            # Bodies are taken as they are sent, so that the limit is on what really came.
            headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "quota-sidecar"},
        )

    def __repr__(self) -> str:
        return f"Transport({self._settings.url}, {self._rate_limit!r})"

    async def close(self) -> None:
        """Close the connections; requests that wait, or are under way, fail."""
        self._rate_limit.close()
        await self._http.aclose()

    async def health(self, parse: Callable[[Fields], T]) -> T:
        """What ``parse`` makes of ``GET /health``, which lies beside the API. Raises as :meth:`request`."""
        return await self.request("GET /health", f"{self._settings.url}/health", parse)

    async def request(
        self,
        endpoint: str,
        path: str,
        parse: Callable[[Fields], T],
        *,
        query: Query = (),
        body: Mapping[str, Any] | None = None,
        repeatable: bool = True,
    ) -> T:
        """Send a request; answer what ``parse`` makes of the JSON object that came back.

        ``endpoint`` is method and template, such as ``GET /wallets/{id}``: for counts and errors. A request that is not
        ``repeatable`` is sent again only if the first one certainly had no effect.

        Raises:
            LagoError: there is no result, after ``attempts_max`` attempts where the reason was a passing one.
        """
        url = _url(endpoint, path, query)
        content = None if body is None else _encoded(body)
        backoff = Backoff(BACKOFF_S_MIN, BACKOFF_S_MAX, self._random)
        attempt, may_renew = 1, True
        while True:
            key = self._access.key
            try:
                answer = await self._send(endpoint, url, content, key)
                result = parse(Fields(result_of(endpoint, answer, key, self._clock.now_s()), endpoint))
            except LagoUnauthorized as error:
                self._note(error, key)
                if not may_renew or not self._access.renewed(key):
                    raise
                may_renew = False
                continue
            except LagoError as error:
                self._note(error, key)
                wait_s = backoff.next_s()
                if error.kind == "throttled":
                    # For everyone, and a little longer than asked for: other clients were told the same.
                    self._rate_limit.pause(wait_s + (THROTTLED_S if error.after_s is None else error.after_s))
                    wait_s = 0.0
                else:
                    wait_s = max(wait_s, error.after_s or 0.0)
                if not error.transient or not (repeatable or error.unsent) or attempt >= self._settings.attempts_max:
                    raise
            else:
                self._recovered()
                return result
            attempt += 1
            self._metrics.retries += 1
            if wait_s:
                await self._rate_limit.wait(wait_s)

    async def _send(self, endpoint: str, url: str, content: bytes | None, key: str) -> LagoResponse:
        async with self._slots:
            await self._rate_limit.turn()
            self._metrics.requests[endpoint] += 1
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await self._exchange(endpoint, url, content, key)
            except (httpx.TimeoutException, TimeoutError) as error:
                what = f"{endpoint}: no answer in {self._settings.timeout_ms} ms"
                raise LagoUnavailable(what, kind="timeout", unsent=isinstance(error, _UNSENT)) from None
            except (httpx.HTTPError, OSError) as error:
                what = f"{endpoint}: {self._place}: {excerpt(reason_of(error))}"
                raise LagoUnavailable(what, kind="network", unsent=isinstance(error, _UNSENT)) from None

    async def _exchange(self, endpoint: str, url: str, content: bytes | None, key: str) -> LagoResponse:
        headers = {"Authorization": f"Bearer {key}"}
        if content is not None:
            headers["Content-Type"] = "application/json"
        method = endpoint.partition(" ")[0]
        async with self._http.stream(method, url, content=content, headers=headers) as response:
            encoding = response.headers.get("Content-Encoding", "identity")
            if encoding.lower() != "identity":
                raise LagoMalformed(f"{endpoint}: {excerpt(encoding, 40)} was not asked for", transient=True)
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > self._settings.answer_bytes_max:
                    limit = self._settings.answer_bytes_max
                    raise LagoMalformed(f"{endpoint}: the answer is larger than lago.answer_bytes_max, {limit} bytes")
            return LagoResponse(response.status_code, dict(response.headers), bytes(body))

    def _note(self, error: LagoError, key: str) -> None:
        error.args = (str(error).replace(key, "***"),)
        self._metrics.failures[error.kind] += 1
        if error.kind != "rejected" and not self._is_failing:
            log.warning("requests to lago fail", reason=str(error))
            self._is_failing = True

    def _recovered(self) -> None:
        if self._is_failing:
            log.info("requests to lago succeed again")
            self._is_failing = False


def _url(endpoint: str, path: str, query: Query) -> str:
    try:
        return f"{path}?{httpx.QueryParams(list(query))}" if query else path
    except UnicodeEncodeError:
        raise LagoRejected(f"{endpoint}: half a surrogate pair cannot be sent", status=400) from None


def _encoded(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, allow_nan=False, default=_plain).encode()


def _plain(value: object) -> dict[str, Any] | int | str:
    """JSON of Python knows no decimals; Lago takes texts wherever it takes amounts, and for times."""
    if isinstance(value, Mapping):
        return dict(value)
    if not isinstance(value, Decimal) or not value.is_finite():
        raise TypeError(f"{type(value).__name__} cannot be sent to Lago")
    return int(value) if value == value.to_integral_value() else f"{value:f}"
