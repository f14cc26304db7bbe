"""Whether OpenMeter counts an event once that it is sent twice: asks a meter of its own.

Without deduplication the sink still drops what is twice in one flush, and with ``driver: memory`` it remembers the last
128 events (openmeter ``openmeter/sink/sink.go``, ``openmeter/dedupe``). So the event is sent again only when it can be
seen and OTHERS_BETWEEN others have come after it; and it is asked for when others that followed it can be seen.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Final

import orjson

from sidecar.basics.clock import SystemClock
from sidecar.metering.openmeter.meter_query import Meter, MeterQuery, QueryError
from sidecar.metering.openmeter.query_rows import GROUP_KEY
from sidecar.metering.publisher.ingest_responses import ResponseClass
from sidecar.metering.publisher.sender import Sender
from sidecar.metering.settings import MeteringSettings

SLUG: Final = "quota_sidecar_probe"
EVENT_TYPE: Final = "quota-sidecar.probe"
METER: Final = Meter(
    SLUG,
    "SUM",
    "$.units",
    EVENT_TYPE,
    {GROUP_KEY: f"$.{GROUP_KEY}"},
    name="Probe of quota-sidecar",
    description="Made and deleted by `sidecar check --probe`",
)
OTHERS_BETWEEN: Final = 500
"""As many as fill a flush of the sink (``minCommitCount``)."""
OTHERS_AFTER: Final = 100
"""So that each partition of Kafka has some behind the event."""
VISIBLE_S: Final = 60.0
POLL_S: Final = 0.5


class Dedupe(Enum):
    """What became of an event that was sent twice."""

    ONCE = "counted once"
    TWICE = "counted twice"
    NOT_VISIBLE = "not visible"


class ProbeError(Exception):
    """There is no probe: the message says what OpenMeter refused, or has."""


@dataclass(frozen=True, slots=True)
class ProbeOutcome:
    """``left_behind``: why the meter could not be deleted; "" if it was."""

    dedupe: Dedupe
    left_behind: str = ""


async def probe_dedupe(
    settings: MeteringSettings, *, visible_s: float = VISIBLE_S, poll_s: float = POLL_S
) -> ProbeOutcome:
    """Makes the meter, sends the events, asks for at most ``visible_s`` in all, deletes the meter. The events stay in
    OpenMeter; no other meter counts their type.

    Raises:
        ProbeError: OpenMeter refuses the events, or has another meter of this name.
        QueryError: OpenMeter does not answer about the meter.
        MeteringError: the settings cannot be used.
    """
    async with MeterQuery(settings) as query, Sender(settings, SystemClock()) as sender:
        found = await query.meter(SLUG)
        if found is None:
            await query.create_meter(METER)
        elif not _is_ours(found):
            raise ProbeError(f"OpenMeter has a meter {SLUG} of another definition: delete it if it is not needed")
        # One of ours is what a probe left that was killed.
        left_behind = ""
        try:
            dedupe = await _Probe(settings.source, query, sender, poll_s).run(visible_s)
        finally:
            try:
                await query.delete_meter(SLUG)
            except QueryError as error:
                left_behind = str(error)
        return ProbeOutcome(dedupe, left_behind)


def _is_ours(found: Meter) -> bool:
    return (found.aggregation, found.value_property, found.event_type, found.group_by) == (
        METER.aggregation,
        METER.value_property,
        METER.event_type,
        METER.group_by,
    )


class _Probe:
    """Names of its own, so that what earlier probes left counts for nothing."""

    def __init__(self, source: str, query: MeterQuery, sender: Sender, poll_s: float) -> None:
        self._source = source
        self._query = query
        self._sender = sender
        self._poll_s = poll_s
        self._name = f"quota-sidecar-probe-{uuid.uuid4().hex}"
        self._at_s = int(time.time())

    async def run(self, visible_s: float) -> Dedupe:
        probed = [self._event(self._name, 0)]
        try:
            async with asyncio.timeout(visible_s):
                await self._send(probed)
                await self._seen(self._name, 1)
                await self._pass("between", OTHERS_BETWEEN)
                await self._send(probed)
                await self._pass("after", OTHERS_AFTER)
                return Dedupe.ONCE if await self._units(self._name) == 1 else Dedupe.TWICE
        except TimeoutError:
            return Dedupe.NOT_VISIBLE

    async def _pass(self, word: str, number: int) -> None:
        """Sends others, and waits until they can be seen."""
        subject = f"{self._name}-{word}"
        await self._send(self._event(subject, each) for each in range(number))
        await self._seen(subject, number)

    def _event(self, subject: str, number: int) -> dict[str, object]:
        return {
            "specversion": "1.0",
            "id": f"{subject}.{number}",
            "source": self._source,
            "type": EVENT_TYPE,
            "subject": subject,
            "time": f"{datetime.fromtimestamp(self._at_s, UTC):%Y-%m-%dT%H:%M:%SZ}",
            "data": {GROUP_KEY: SLUG, "units": 1},
        }

    async def _send(self, events: Iterable[dict[str, object]]) -> None:
        answer = await self._sender.post(orjson.dumps(list(events)))
        if answer.response_class is not ResponseClass.ACCEPTED:
            raise ProbeError(f"OpenMeter does not take events: {answer.reason}")

    async def _seen(self, subject: str, units: int) -> None:
        while await self._units(subject) < units:
            await asyncio.sleep(self._poll_s)

    async def _units(self, subject: str) -> int:
        minute_ms = self._at_s // 60 * 60_000  # older versions take whole minutes only
        rows = await self._query.usage(SLUG, minute_ms, minute_ms + 60_000, subject=subject, window=None)
        return sum(row.units for row in rows)
