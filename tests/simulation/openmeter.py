"""An OpenMeter for simulated publishers: it counts an event once by its id, and fails as the real one does."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Self

import orjson

from sidecar.metering.openmeter.query_rows import Meter, UsageRow
from sidecar.metering.publisher.ingest_responses import IngestResponse, ResponseClass

ACCEPTED = IngestResponse(ResponseClass.ACCEPTED, 204, "")


@dataclass
class SimulatedOpenMeter:
    """``failing``: share of requests that fail; of these one half was stored all the same."""

    random: random.Random
    failing: float = 0.0
    events: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Subject and units by the event's id."""
    posts: int = 0

    async def ingest(self, body: bytes) -> IngestResponse:
        self.posts += 1
        await asyncio.sleep(self.random.uniform(0.001, 0.05))
        fails = self.random.random() < self.failing
        if not fails or self.random.random() < 0.5:
            for event in orjson.loads(body):
                self.events.setdefault(event["id"], (event["subject"], int(event["data"]["units"])))
        return IngestResponse(ResponseClass.RETRY, 503, "it is failing") if fails else ACCEPTED

    def lose(self, share: float) -> int:
        """Forgets accepted events, as OpenMeter can. How many."""
        gone = [each for each in self.events if self.random.random() < share]
        for each in gone:
            del self.events[each]
        return len(gone)

    def units(self) -> Counter[str]:
        """By subject."""
        found: Counter[str] = Counter()
        for subject, units in self.events.values():
            found[subject] += units
        return found


@dataclass
class SimulatedQuery:
    """In place of ``sidecar.metering.openmeter.meter_query.MeterQuery``: all events are of one hour."""

    openmeter: SimulatedOpenMeter
    hour_ms: int
    watermarks: tuple[str, ...] = ()

    async def meter(self, metric: str) -> Meter:
        return Meter(metric, "SUM", "$.units", "api.call")

    async def usage(self, metric: str, from_ms: int, to_ms: int, *, of: str | None = None) -> tuple[UsageRow, ...]:
        if of is not None:
            # Whatever was accepted is visible at once here.
            return tuple(UsageRow(subject, to_ms - 3_600_000, 1) for subject in self.watermarks)
        if not from_ms <= self.hour_ms < to_ms:
            return ()
        return tuple(UsageRow(subject, from_ms, units) for subject, units in self.openmeter.units().items())


class SimulatedSender:
    """In place of ``sidecar.metering.publisher.sender.Sender``."""

    def __init__(self, openmeter: SimulatedOpenMeter) -> None:
        self._openmeter = openmeter

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: Any) -> None: ...

    async def post(self, body: bytes) -> IngestResponse:
        return await self._openmeter.ingest(body)

    def reload_token(self) -> None: ...
