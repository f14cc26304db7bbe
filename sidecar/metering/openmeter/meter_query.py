"""Reads usage and meters from OpenMeter's API.

Source: OpenMeter's ``openmeter/meter/httphandler``, ``openmeter/streaming/clickhouse/meter_query.go`` and its OpenAPI
document, v1. ``from`` is inclusive and ``to`` exclusive, whatever the document says; a window without events has no
row; there are no pages. A meter takes every event of its type, so events of several ledger metrics meet in it: usage
is always grouped by ``metric``, and only the rows of the metric that was asked for count.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Literal

import aiohttp
import orjson

from sidecar.basics.clock_reading import ClockReading, http_date
from sidecar.basics.fault_reasons import reason_of
from sidecar.metering.openmeter.access import Access
from sidecar.metering.openmeter.query_rows import (
    GROUP_KEY,
    AnswerTooLarge,
    Meter,
    QueryError,
    UsageRow,
    meter_as_json,
    meter_changes_as_json,
    parse_meter,
    parse_usage,
)
from sidecar.metering.settings import MeteringSettings

__all__ = ["AnswerTooLarge", "Meter", "MeterQuery", "QueryError", "UsageRow", "Window"]

Window = Literal["MINUTE", "HOUR"]

WINDOW_MS: Final[Mapping[Window, int]] = {"MINUTE": 60_000, "HOUR": 3_600_000}
ANSWER_BYTES_MAX: Final = 33_554_432
"""Some two hundred thousand rows."""
PAGE_METERS, PAGES_MAX = 100, 100
SUBJECTS_MAX: Final = 100
"""Of one query (OpenMeter's OpenAPI document, MeterQueryRequest)."""
REASON_CHARS_MAX: Final = 300
NO_API: Final = (
    "there is no API of OpenMeter at /api/v1 (404): check metering.url;"
    " managed OpenMeter (Kong Konnect, v3) cannot be used"
)
_TRANSIENT: Final = frozenset((408, 425, 429))
_SLUG: Final = re.compile(r"[a-z0-9]+(?:_[a-z0-9]+)*")
_SLUG_CHARS_MAX: Final = 64


class MeterQuery:
    """Asks OpenMeter; an async context manager that holds the connections. Nothing is tried twice, but that a refused
    token is read again from its file.

    Raises:
        MeteringError: on entering, as ``Sender`` does.
    """

    def __init__(self, settings: MeteringSettings) -> None:
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None
        self._access: Access | None = None
        self.last_date: ClockReading | None = None
        """OpenMeter's clock by its last answer, if that had a Date."""

    def __repr__(self) -> str:
        return f"MeterQuery({self._settings.url}, {'open' if self._session else 'closed'})"

    async def __aenter__(self) -> MeterQuery:
        self._access = Access(self._settings)
        self._session = self._access.session(self._settings.query_timeout_ms)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def usage(
        self,
        metric: str,
        from_ms: int,
        to_ms: int,
        *,
        subject: str | Sequence[str] | None = None,
        window: Window | None = "HOUR",
        of: str | None = None,
    ) -> tuple[UsageRow, ...]:
        """Units of a metric from ``from_ms`` until before ``to_ms``, by subject and window; where there is none there
        is no row. ``window`` None: one total for each subject, whose window begins at ``from_ms``. ``subject``: one,
        or up to SUBJECTS_MAX of them; None: all. ``of``: another metric, of which this one's meter has events too.

        Both instants are whole seconds, and on the bounds of windows: OpenMeter answers a window that it was asked for
        in part as if it were whole.

        Raises:
            QueryError: no usable answer; ``transient`` says whether a later try may get one.
        """
        step_ms = 1_000 if window is None else WINDOW_MS[window]
        assert from_ms % step_ms == to_ms % step_ms == 0, (from_ms, to_ms, window)
        assert from_ms < to_ms, (from_ms, to_ms)
        parameters = [("from", _rfc3339(from_ms)), ("to", _rfc3339(to_ms)), ("windowTimeZone", "UTC")]
        counted = of or metric
        parameters += [("groupBy", "subject"), ("groupBy", GROUP_KEY), (f"filterGroupBy[{GROUP_KEY}]", counted)]
        if window is not None:
            parameters.append(("windowSize", window))
        subjects = () if subject is None else (subject,) if isinstance(subject, str) else subject
        assert len(subjects) <= SUBJECTS_MAX, len(subjects)
        parameters += [("subject", each) for each in subjects]
        status, answer = await self._ask("GET", f"/meters/{_slug(metric)}/query", parameters)
        if status == 404:
            raise QueryError(_no_meter(metric), transient=False)
        if status >= 400:
            raise _refused(metric, _detail(answer))
        # Without windows the row repeats the bounds that were asked for.
        return parse_usage(_document(answer), counted, from_ms, to_ms, step_ms if window is not None else None)

    async def meter(self, slug: str) -> Meter | None:
        """A meter, or None if there is none.

        Raises:
            QueryError: as :meth:`usage` does.
        """
        status, answer = await self._ask("GET", f"/meters/{_slug(slug)}")
        if status == 404:
            return None
        if status >= 400:
            raise QueryError(f"OpenMeter does not show meter {slug}: {_detail(answer)}", transient=False)
        return parse_meter(_document(answer))

    async def meters(self) -> tuple[Meter, ...]:
        """All meters, the oldest first.

        Raises:
            QueryError: as :meth:`usage` does.
        """
        found: dict[str, Meter] = {}
        for page in range(1, PAGES_MAX + 1):
            parameters = [("page", str(page)), ("pageSize", str(PAGE_METERS)), ("orderBy", "createdAt")]
            status, answer = await self._ask("GET", "/meters", parameters)
            if status == 404:
                raise QueryError(NO_API, transient=False)
            if status >= 400:
                reason = f"{status} {_detail(answer)}".rstrip()
                raise QueryError(f"OpenMeter does not list its meters: {reason}", transient=False)
            document = _document(answer)
            if not isinstance(document, list):
                raise QueryError("OpenMeter's list of meters is not a JSON array", transient=False)
            known = len(found)
            for item in document:
                meter = parse_meter(item)
                found[meter.slug] = meter
            # Versions that ignore page and pageSize answer with all meters each time.
            if len(document) != PAGE_METERS or len(found) == known:
                return tuple(found.values())
        raise QueryError(f"OpenMeter has more than {PAGE_METERS * PAGES_MAX} meters", transient=False)

    async def create_meter(self, meter: Meter) -> Meter:
        """Makes a meter; answers it as OpenMeter has stored it.

        Raises:
            QueryError: as :meth:`usage` does; also when there is a meter with this slug.
        """
        _slug(meter.slug)
        status, answer = await self._ask("POST", "/meters", body=orjson.dumps(meter_as_json(meter)))
        if status >= 400:
            raise QueryError(f"OpenMeter does not take meter {meter.slug}: {_detail(answer)}", transient=False)
        return parse_meter(_document(answer))

    async def update_meter(self, meter: Meter) -> Meter:
        """Changes groups, name and description of a meter, which is all that can be changed; answers it as OpenMeter
        has it then.

        Raises:
            QueryError: as :meth:`usage` does; also when there is no meter with this slug.
        """
        path = f"/meters/{_slug(meter.slug)}"
        status, answer = await self._ask("PUT", path, body=orjson.dumps(meter_changes_as_json(meter)))
        if status >= 400:
            raise QueryError(f"OpenMeter does not change meter {meter.slug}: {_detail(answer)}", transient=False)
        return parse_meter(_document(answer))

    async def delete_meter(self, slug: str) -> bool:
        """Deletes a meter, not the events that it counted. False: OpenMeter does not know it.

        Raises:
            QueryError: as :meth:`usage` does.
        """
        status, answer = await self._ask("DELETE", f"/meters/{_slug(slug)}")
        if status >= 400 and status != 404:
            raise QueryError(f"OpenMeter does not delete meter {slug}: {_detail(answer)}", transient=False)
        return status != 404

    async def takes_seconds(self, slug: str, now_ms: int) -> bool:
        """Whether a query of the meter may begin and end at any second, not at whole minutes alone: OpenMeter since
        2025-03-06.

        Raises:
            QueryError: as :meth:`usage` does; also when neither is answered.
        """
        minute_ms = now_ms // 60_000 * 60_000
        for from_ms in (minute_ms - 119_000, minute_ms - 120_000):
            bounds = [("from", _rfc3339(from_ms)), ("to", _rfc3339(from_ms + 60_000))]
            status, answer = await self._ask("GET", f"/meters/{_slug(slug)}/query", bounds)
            if status < 400:
                return from_ms % 60_000 != 0
        raise _refused(slug, _detail(answer))

    async def _ask(
        self, method: str, path: str, parameters: list[tuple[str, str]] | None = None, body: bytes | None = None
    ) -> tuple[int, bytes]:
        """An answer that says something about the question: 2xx, or a 4xx that is not about who asks."""
        assert self._access is not None
        status, answer = await self._send(method, path, parameters, body)
        if status in (401, 403):
            self._access.reload_token()
            status, answer = await self._send(method, path, parameters, body)
        if status in (401, 403):
            raise QueryError(f"OpenMeter {self._access.refusal} ({status}): {self._access.remedy}", transient=False)
        if 300 <= status < 400:
            raise QueryError(f"OpenMeter answers with a redirect ({status}): check metering.url", transient=False)
        if status >= 500 or status in _TRANSIENT:
            raise QueryError(f"OpenMeter answers {status} {_detail(answer)}".rstrip(), transient=True)
        return status, answer

    async def _send(
        self, method: str, path: str, parameters: list[tuple[str, str]] | None, body: bytes | None
    ) -> tuple[int, bytes]:
        assert self._session is not None
        assert self._access is not None
        headers = {"Accept": "application/json", **self._access.headers}
        if body is not None:
            headers["Content-Type"] = "application/json"
        sent_s = time.time()
        try:
            async with self._session.request(
                method,
                f"{self._access.url}/api/v1{path}",
                params=parameters,
                data=body,
                headers=headers,
                allow_redirects=False,
            ) as response:
                self.last_date = http_date(response.headers.get("Date"), sent_s, time.time())
                if response.content_type in ("text/html", "application/xhtml+xml") and response.status not in (
                    401,
                    403,
                ):
                    # A page is some proxy's, which stands in for an OpenMeter that it cannot reach.
                    raise QueryError(f"a web page instead of OpenMeter's answer ({response.status})", transient=True)
                return response.status, await _body(response.content)
        except TimeoutError:
            raise QueryError(
                f"no answer of OpenMeter in {self._settings.query_timeout_ms} ms", transient=True
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            reason = reason_of(error)[:REASON_CHARS_MAX]
            raise QueryError(f"OpenMeter cannot be reached: {reason}", transient=True) from None


async def _body(content: aiohttp.StreamReader) -> bytes:
    read = bytearray()
    async for chunk in content.iter_any():
        read += chunk
        if len(read) > ANSWER_BYTES_MAX:
            raise AnswerTooLarge(ANSWER_BYTES_MAX)
    return bytes(read)


def _document(answer: bytes) -> Any:
    try:
        return orjson.loads(answer)
    except orjson.JSONDecodeError:
        # Cut off on its way, or another's text.
        raise QueryError("OpenMeter's answer is not JSON", transient=True) from None


def _detail(answer: bytes) -> str:
    """The detail of a problem document (RFC 9457)."""
    try:
        problem = orjson.loads(answer)
    except orjson.JSONDecodeError:
        return ""
    detail = problem.get("detail") if isinstance(problem, dict) else None
    return " ".join(detail.split())[:REASON_CHARS_MAX] if isinstance(detail, str) else ""


def _no_meter(metric: str) -> str:
    return f"OpenMeter has no meter {metric}; `sidecar catalog apply` makes it"


def _refused(metric: str, detail: str) -> QueryError:
    if "group by" in detail and GROUP_KEY in detail:
        return QueryError(
            f"OpenMeter's meter {metric} has no group-by {GROUP_KEY}: it needs groupBy {GROUP_KEY}: $.{GROUP_KEY}"
            " (`sidecar catalog diff` shows it)",
            transient=False,
        )
    return QueryError(f"OpenMeter does not answer for meter {metric}: {detail}", transient=False)


def _slug(metric: str) -> str:
    if not _SLUG.fullmatch(metric) or len(metric) > _SLUG_CHARS_MAX:
        raise QueryError(
            f"{metric[:80]!r} cannot be a meter of OpenMeter: lower-case letters and digits, joined by underscores,"
            f" {_SLUG_CHARS_MAX} at most",
            transient=False,
        )
    return metric


def _rfc3339(instant_ms: int) -> str:
    return f"{datetime.fromtimestamp(instant_ms // 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"
