"""Fills outboxes, runs publishers, and counts what arrived."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import redis
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from sidecar.ledger.keys import Keys
from sidecar.metering.outbox.outbox import GROUP
from sidecar.metering.publisher.publisher import Publisher
from sidecar.metering.settings import MeteringSettings
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter
from sidecar.valkey.topology import Client

Valkey = Any
"""A client that waits. Its library's annotations leave open whether text or bytes come back, so they are of no use."""

T_MS = 1_767_225_600_123
TIMEOUT_S = 30.0

#: Nothing in the tests waits long: what takes seconds in production takes milliseconds here.
FAST: dict[str, Any] = {
    "linger_ms": 5,
    "backoff_ms_min": 1,
    "backoff_ms_max": 20,
    "pause_ms": 20,
    "timeout_ms": 5_000,
    "claim_idle_ms": 400,
    "stop_grace_ms": 5_000,
}


def settings(url: str, **changes: Any) -> MeteringSettings:
    return MeteringSettings(url=url, **{**FAST, **changes})


def event(account: str = "tpp-1", units: object = 1, **values: Any) -> list[Any]:
    """One usage event as the ledger writes it."""
    row = {
        "account": account,
        "metric": "api_calls",
        "units": units,
        "route": "/open-banking/v3.1/aisp/accounts",
        "method": "GET",
        "status": 200,
        "response_time_ms": 12,
        "interaction_id": None,
        "traceparent": None,
    }
    return list({**row, **values}.values())


def entry(origin: str, seq: int, events: Iterable[list[Any]], t_ms: int = T_MS) -> dict[str, bytes]:
    """One outbox entry (docs/ledger.md)."""
    return {"o": origin.encode(), "q": b"%d" % seq, "t": b"%d" % t_ms, "e": orjson.dumps(list(events))}


def fill(
    client: Valkey,
    keys: Keys,
    entries: int,
    events: Callable[[int], int] = lambda number: 3,
    origin: str = "gw",
) -> set[str]:
    """Writes ``entries`` entries over all partitions, ``events(n)`` events in the n-th. Answers the events' ids."""
    ids: set[str] = set()
    pipeline = client.pipeline(transaction=False)
    for number in range(entries):
        partition = number % keys.partitions
        count = events(number)
        batch_origin = f"{origin}.{partition}"
        rows = [event(f"tpp-{(number + i) % 7}", units=1 + i % 3) for i in range(count)]
        pipeline.xadd(keys.outbox(partition), entry(batch_origin, number, rows))
        ids |= {f"{batch_origin}.{number}.{i}" for i in range(count)}
    pipeline.execute()
    return ids


def stored_ids(meter: OpenMeter) -> Counter[str]:
    return Counter(event.id for event in meter.store.events())


def outbox_is_empty(client: Valkey, keys: Keys) -> bool:
    """No entry is left, and none is owed by anyone."""
    for partition in range(keys.partitions):
        key = keys.outbox(partition)
        if client.xlen(key) or (client.exists(key) and pending(client, key)):
            return False
    return True


def pending(client: Valkey, key: str) -> int:
    try:
        reply: Any = client.xpending(key, GROUP)
    except redis.ResponseError:
        return 0
    return int(reply["pending"])


async def until(condition: Callable[[], object]) -> None:
    """Waits for what must come to be; a test that waits in vain fails here."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def publishing(client: Client, keys: Keys, how: MeteringSettings, **options: Any) -> AsyncIterator[Publisher]:
    """A publisher that runs until the end of the block, and then stops as it should."""
    publisher = Publisher(client, keys, how, **options)
    task = asyncio.create_task(publisher.run())
    try:
        yield publisher
    finally:
        publisher.stop()
        await asyncio.wait_for(task, TIMEOUT_S)


@dataclass(slots=True)
class RefusingProxy:
    """Stands before the stand-in, as a proxy might, and sees every ingest request.

    ``refuse`` is given a batch and answers the position of an event for which the whole batch is refused with
    ``status``, or None. ``hint``: the answer names the position, as OpenMeter does. ``refuse_all`` refuses whatever
    comes but empty batches, which OpenMeter answers 204 whatever is wrong. ``accepts_events``: how many events it lets
    pass before it refuses all, None for any number.
    """

    refuse: Callable[[list[Any]], int | None] = lambda batch: None
    status: int = 400
    hint: bool = True
    refuse_all: bool = False
    accepts_events: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[int, int]] = field(default_factory=list)
    content_types: set[str] = field(default_factory=set)

    def app(self, meter: OpenMeter) -> web.Application:
        app = meter.app()
        app.middlewares.insert(0, self._middleware())
        return app

    def _middleware(self) -> Middleware:
        @web.middleware
        async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.method != "POST":
                return await handler(request)
            body = await request.read()
            batch = orjson.loads(body)
            self.requests.append((len(batch), len(body)))
            self.content_types.add(request.headers["Content-Type"])
            if (self.refuse_all and batch) or self._exceeds(len(batch)):
                return self._problem("no such thing here")
            position = self.refuse(batch)
            if position is None:
                return await handler(request)
            what = f'Error at "/{position}/subject": not this one' if self.hint else "one of them is bad"
            return self._problem(f"request body has an error: doesn't match schema: {what}")

        return middleware

    def _exceeds(self, events: int) -> bool:
        if self.accepts_events is None:
            return False
        if events > self.accepts_events:
            return True
        self.accepts_events -= events
        return False

    def _problem(self, detail: str) -> web.Response:
        body = {"status": self.status, "detail": detail}
        return web.json_response(body, status=self.status, headers=self.headers)


def poison(client: Valkey, keys: Keys, events: int, partition: int = 0, seq: int = 900) -> set[str]:
    """Writes one entry of events that :func:`first_poisoned` finds. Answers their ids."""
    rows = [event(f"poison-{number}") for number in range(events)]
    client.xadd(keys.outbox(partition), entry(f"bad.{partition}", seq, rows))
    return {f"bad.{partition}.{seq}.{number}" for number in range(events)}


def first_poisoned(batch: list[Any]) -> int | None:
    """The position of the first event of an account whose name begins with ``poison``."""
    return next((i for i, one in enumerate(batch) if one["subject"].startswith("poison")), None)


class SkippingClock:
    """Waits in no time at all: the time that was waited for has then passed. ``waits`` are its seconds."""

    def __init__(self, now_s: float = 1_767_225_600.0) -> None:
        self.waits: list[float] = []
        self._now_s = now_s

    def now_s(self) -> float:
        return self._now_s

    def monotonic_s(self) -> float:
        return self._now_s

    async def wait(self, event: asyncio.Event, timeout_s: float) -> bool:
        await asyncio.sleep(0)
        if not event.is_set():
            self.waits.append(timeout_s)
            self._now_s += timeout_s
        return event.is_set()
