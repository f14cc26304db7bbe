"""An OpenMeter for tests and the demo: ingest, meters, queries and the event list, in memory.

A stand-in, not OpenMeter: it follows what the server's sources say (openmeterio/openmeter, commit 7e57a39) and its
OpenAPI document. It is as fresh as can be, where the real one's sink lags by seconds; it knows no customers, so every
listed event bears the server's remark about that; it keeps nothing on disk. Where the document and the code differ,
the code is followed, but for ``POST /api/v1/meters``: 201 as documented and as the official client insists, though
the code says 200.

Beside the API, under ``/sandbox``: ``GET|POST|DELETE /sandbox/faults`` (see ``openmeter_faults``) and
``GET /sandbox/stats``.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from sidecar.sandbox.openmeter.listing import event_filter, event_json, list_events
from sidecar.sandbox.openmeter.meters import DEFAULT_METERS, Meter
from sidecar.sandbox.openmeter.openmeter_events import CloudEvent, Version, is_empty_batch, parse_events
from sidecar.sandbox.openmeter.openmeter_faults import FaultError, OpenMeterFault, OpenMeterFaults
from sidecar.sandbox.openmeter.openmeter_store import OpenMeterEventStore, Stored
from sidecar.sandbox.openmeter.openmeter_wire import Problem, format_time, from_unix, json_answer, problem_answer
from sidecar.sandbox.openmeter.params import query_from_body, query_from_string
from sidecar.sandbox.openmeter.query import Query, as_csv, bounds_s, run_query
from sidecar.sandbox.openmeter.registry import MeterRegistry, meter_from_json

V1 = "/api/v1"
V3 = "/api/v3/openmeter"
_PASS = OpenMeterFault()
_RELEASED: web.AppKey[asyncio.Event] = web.AppKey("released", asyncio.Event)


@dataclass(frozen=True, slots=True)
class OpenMeterConfig:
    """How the stand-in behaves.

    ``token``: if not empty, the API wants ``Authorization: Bearer`` with it. A self-hosted server has no such check;
    the cloud has.

    ``dedupe``: keep one event for each source and id. On by default here, off by default in OpenMeter: there it is
    the sink worker's ``sink.dedupe.enabled`` with a Redis (for 24 h, ``sink.dedupe.config.expiration``); the API
    server's ``dedupe.enabled`` is another switch, to be left off (openmeter issue 5118).

    ``body_bytes_max``: larger bodies are answered 413. OpenMeter has no such limit, proxies before it do.
    ``now`` answers Unix seconds; ``seed`` fixes the draws of faults by chance.
    """

    meters: tuple[Meter, ...] = DEFAULT_METERS
    token: str = field(default="", repr=False)
    dedupe: bool = True
    body_bytes_max: int = 32 * 1024**2
    seed: int = 1
    now: Callable[[], float] = time.time


@dataclass(slots=True)
class Counts:
    """What has come in: ingest ``requests``, those ``refused`` as invalid, and what became of the events."""

    requests: int = 0
    refused: int = 0
    accepted: int = 0
    duplicates: int = 0
    dropped: int = 0
    lost: int = 0


class OpenMeter:
    """The stand-in's state. ``app()`` makes an application of it, a new one for each start of a server.

    ``faults`` are the faults of ingest requests to come, ``counts`` what has come in, ``store`` the events.
    """

    def __init__(self, config: OpenMeterConfig | None = None) -> None:
        self.config = config or OpenMeterConfig()
        self.faults = OpenMeterFaults(self.config.seed)
        self.counts = Counts()
        self.store = OpenMeterEventStore(dedupe=self.config.dedupe, now=self.config.now)
        self.meters = MeterRegistry(self.config.meters, self._now())
        self._requests = 0

    def __repr__(self) -> str:
        return f"OpenMeter({self.counts}, {self.store!r}, {self.faults!r})"

    def app(self) -> web.Application:
        app = web.Application(middlewares=[_middleware(self)], client_max_size=self.config.body_bytes_max)
        app[_RELEASED] = asyncio.Event()
        app.on_shutdown.append(_release)
        routes = app.router
        routes.add_post(f"{V1}/events", self._ingest_v1)
        routes.add_post(f"{V3}/events", self._ingest_v3)
        routes.add_get(f"{V1}/events", self._list_events)
        routes.add_get(f"{V1}/meters", self._list_meters)
        routes.add_post(f"{V1}/meters", self._create_meter)
        routes.add_get(f"{V1}/meters/{{meter}}", self._get_meter)
        routes.add_put(f"{V1}/meters/{{meter}}", self._update_meter)
        routes.add_delete(f"{V1}/meters/{{meter}}", self._delete_meter)
        routes.add_get(f"{V1}/meters/{{meter}}/query", self._query)
        routes.add_post(f"{V1}/meters/{{meter}}/query", self._query)
        routes.add_get("/sandbox/faults", self._show_faults)
        routes.add_post("/sandbox/faults", self._replace_faults)
        routes.add_delete("/sandbox/faults", self._clear_faults)
        routes.add_get("/sandbox/stats", self._stats)
        return app

    async def answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._requests += 1
        instance = f"urn:request:sandbox/{self._requests:06d}"
        try:
            if request.path.startswith("/api/"):
                self._authorise(request)
            return await handler(request)
        except Problem as problem:
            return problem_answer(problem, instance)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            answer = problem_answer(Problem(error.status, error.reason), instance)
            if "Allow" in error.headers:
                answer.headers["Allow"] = error.headers["Allow"]
            return answer

    def _authorise(self, request: web.Request) -> None:
        if not self.config.token:
            return
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        right = hmac.compare_digest(token.encode("utf-8", "surrogateescape"), self.config.token.encode())
        if scheme.lower() != "bearer" or not right:
            raise Problem(401, "a valid bearer token is required")

    async def _ingest_v1(self, request: web.Request) -> web.StreamResponse:
        return await self._ingest(request, "v1")

    async def _ingest_v3(self, request: web.Request) -> web.StreamResponse:
        return await self._ingest(request, "v3")

    async def _ingest(self, request: web.Request, version: Version) -> web.StreamResponse:
        self.counts.requests += 1
        body = await request.read()
        content_type = request.headers.get("Content-Type", "")
        fault = self.faults.next(is_empty=is_empty_batch(content_type, body)) or _PASS
        if fault.delay_ms:
            await asyncio.sleep(fault.delay_ms / 1000)
        if fault.hang:
            await request.app[_RELEASED].wait()
        if fault.hang or fault.drop == "before":
            return _hang_up(request)
        if fault.status and not fault.kept:
            return self._fault_answer(fault)
        try:
            events = parse_events(content_type, body, version)
        except Problem:
            self.counts.refused += 1
            raise
        if fault.lose:
            self.counts.lost += len(events)
        else:
            self.keep(events[: fault.kept] if fault.status else events)
        if fault.status:
            return self._fault_answer(fault)
        if fault.drop == "after":
            return _hang_up(request)
        return web.Response(status=204 if version == "v1" else 202)

    def keep(self, events: list[CloudEvent]) -> None:
        """Stores events as a request would, without the request."""
        for event in events:
            outcome = self.store.add(event)
            if outcome is Stored.KEPT:
                self.counts.accepted += 1
            elif outcome is Stored.DUPLICATE:
                self.counts.duplicates += 1
            else:
                self.counts.dropped += 1

    def _fault_answer(self, fault: OpenMeterFault) -> web.Response:
        instance = f"urn:request:sandbox/{self._requests:06d}"
        answer = problem_answer(Problem(fault.status, "injected fault"), instance)
        if fault.retry_after:
            answer.headers["Retry-After"] = fault.retry_after
        return answer

    async def _list_events(self, request: web.Request) -> web.Response:
        newest = list_events(self.store, event_filter(request, self._now()))
        return json_answer([event_json(event, self.meters.of_type(event.type)) for event in newest])

    async def _list_meters(self, request: web.Request) -> web.Response:
        return json_answer([item.as_json() for item in self.meters.page(request)])

    async def _create_meter(self, request: web.Request) -> web.Response:
        meter = meter_from_json(await _json_body(request))
        return json_answer(self.meters.create(meter, self._now()).as_json(), 201)

    async def _get_meter(self, request: web.Request) -> web.Response:
        return json_answer(self.meters.get(request.match_info["meter"]).as_json())

    async def _update_meter(self, request: web.Request) -> web.Response:
        body = await _json_body(request)
        return json_answer(self.meters.update(request.match_info["meter"], body, self._now()).as_json())

    async def _delete_meter(self, request: web.Request) -> web.Response:
        self.meters.delete(request.match_info["meter"])
        return web.Response(status=204)

    async def _query(self, request: web.Request) -> web.Response:
        meter = self.meters.get(request.match_info["meter"]).meter
        if request.method == "POST":
            query = query_from_body(meter, await _json_body(request))
        else:
            query = query_from_string(meter, request)
        rows = run_query(meter, query, self.store.rows(meter.event_type, *bounds_s(meter, query)))
        if request.headers.get("Accept", "").split(",")[0].split(";")[0].strip() == "text/csv":
            disposition = f"attachment; filename={meter.slug}.csv"
            headers = {"Content-Type": "text/csv", "Content-Disposition": disposition}
            return web.Response(body=as_csv(query, rows).encode(), headers=headers)
        return json_answer({**_asked(query), "data": [row.as_json() for row in rows]})

    async def _show_faults(self, request: web.Request) -> web.Response:
        return json_answer(self.faults.as_json())

    async def _replace_faults(self, request: web.Request) -> web.Response:
        try:
            self.faults.replace(await _json_body(request))
        except FaultError as error:
            raise Problem(400, str(error)) from None
        return json_answer(self.faults.as_json())

    async def _clear_faults(self, request: web.Request) -> web.Response:
        self.faults.clear()
        return web.Response(status=204)

    async def _stats(self, request: web.Request) -> web.Response:
        return json_answer({**asdict(self.counts), "events": len(self.store)})

    def _now(self) -> datetime:
        return from_unix(int(self.config.now()))


def _middleware(meter: OpenMeter) -> Middleware:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await meter.answer(request, handler)

    return middleware


async def _release(app: web.Application) -> None:
    app[_RELEASED].set()


def _hang_up(request: web.Request) -> web.StreamResponse:
    """Cuts the connection without an answer; what is returned has nowhere to go."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)


async def _json_body(request: web.Request) -> object:
    if request.content_type != "application/json":
        given = request.headers.get("Content-Type", "")[:200]
        raise Problem(400, f'request body has an error: header Content-Type has unexpected value "{given}"')
    try:
        return orjson.loads(await request.read())
    except orjson.JSONDecodeError as error:
        message = f"failed to decode request body: {error.msg} at byte {error.pos}"
        raise Problem(400, f"request body has an error: {message}") from None


def _asked(query: Query) -> dict[str, object]:
    """The bounds and the window of a query, as its answer repeats them."""
    body: dict[str, object] = {}
    if query.begin is not None:
        body["from"] = format_time(query.begin)
    if query.end is not None:
        body["to"] = format_time(query.end)
    if query.window is not None:
        body["windowSize"] = query.window
    return body
