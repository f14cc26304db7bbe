"""Sends the watermarks of each hour, by which the audit tells late events from lost ones."""

from __future__ import annotations

from typing import Final

from sidecar.basics.clock import Clock
from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.logger import get_logger
from sidecar.ledger.hours import HOUR_MS
from sidecar.ledger.keys import Keys
from sidecar.metering.outbox.events import EventAttributes
from sidecar.metering.publisher.ingest_responses import ResponseClass
from sidecar.metering.publisher.sender import Sender
from sidecar.metering.settings import MeteringSettings
from sidecar.metering.watermarks import ledger_name, watermark_events
from sidecar.valkey.calls import VALKEY_ERRORS
from sidecar.valkey.server_time import server_now_ms
from sidecar.valkey.topology import Client

log = get_logger("sidecar.metering")

LOOK_S: Final = 60.0
"""Time between two looks whether an hour has begun; also from the start to the first, since many starts are short."""


class WatermarkSender:
    """``await send_if_due(sender)`` now and then. Every publisher sends all watermarks; OpenMeter counts their ids
    once."""

    def __init__(self, client: Client, keys: Keys, settings: MeteringSettings, clock: Clock) -> None:
        self._client = client
        self._keys = keys
        self._batch_events_max = settings.batch_events_max
        self._attributes = EventAttributes(settings.source, settings.type)
        self._clock = clock
        self._due_s = clock.monotonic_s() + LOOK_S
        self._sent_hour = 0

    def __repr__(self) -> str:
        return f"WatermarkSender(hour {self._sent_hour})"

    async def send_if_due(self, sender: Sender) -> None:
        """Sends those of the hour that has begun, by Valkey's clock, which dates what was accepted."""
        if self._clock.monotonic_s() < self._due_s:
            return
        self._due_s = self._clock.monotonic_s() + LOOK_S
        try:
            hour = await server_now_ms(self._client) // HOUR_MS
            ledger = await ledger_name(self._client, self._keys) if hour > self._sent_hour else None
        except VALKEY_ERRORS as error:
            log.debug("no watermarks: valkey does not respond", reason=reason_of(error))
            return
        if ledger is None:
            return
        events = watermark_events(ledger, self._keys.partitions, hour, self._attributes)
        for start in range(0, len(events), self._batch_events_max):
            part = events[start : start + self._batch_events_max]
            response = await sender.post(b"[" + b",".join(part) + b"]")
            if response.response_class is not ResponseClass.ACCEPTED:
                if response.status in (401, 403):
                    sender.reload_token()
                log.debug("openmeter does not take watermarks now", reason=response.reason)
                return
        self._sent_hour = hour
