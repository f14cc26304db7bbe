"""Sends frozen events to Lago, and finds out what became of each.

Lago takes a batch whole or not at all, and names the events that it refuses by their places. One that it has already is
compared with what was frozen; others are set aside with the reason; the rest is sent again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from sidecar.billing.lago.errors import LagoError, LagoRejected
from sidecar.billing.lago.models import BillableMetric, Event
from sidecar.billing.usage_sync.concurrency import gather_limited
from sidecar.billing.usage_sync.frozen_events import REASON_CHARS_MAX, FrozenEvent

REQUESTS_MAX: Final = 4
"""Batches on their way at once."""
UNPROCESSABLE: Final = 422
DUPLICATE: Final = "value_already_exist"

DeliveryKind = Literal["sent", "duplicate", "adopted", "rejected", "conflict", "unseen", "void"]


class EventClient(Protocol):
    """As much of Lago's client as is used here."""

    async def send_events(self, events: Sequence[Event]) -> None: ...
    async def event(self, transaction_id: str) -> Event | None: ...
    async def metric(self, code: str) -> BillableMetric | None: ...


@dataclass(frozen=True, slots=True)
class DeliveryOutcome:
    """The outcome of an event's delivery.

    ``sent``: Lago has taken it. ``duplicate``: Lago had it, just as it was frozen. ``adopted``: Lago has one of the
    same place with other ``units``, which count from now on. ``conflict``: what Lago has under its id is something
    else. ``rejected``: Lago does not want it. ``unseen``: Lago says that it has it, and does not show it. ``void``:
    Lago does not have it, and it would be billed no more.
    """

    kind: DeliveryKind
    units: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Deliveries:
    """Outcomes by transaction id, of those events of which one is known; ``error`` is what stopped the rest."""

    outcomes: Mapping[str, DeliveryOutcome]
    error: LagoError | None = None


class EventDelivery:
    """Sends for one round. After a failure of Lago's nothing more is sent."""

    def __init__(self, lago: EventClient, batch_events_max: int) -> None:
        self._lago = lago
        self._batch_events_max = batch_events_max
        self._error: LagoError | None = None

    def __repr__(self) -> str:
        return f"EventDelivery({'stopped' if self._error else 'ready'})"

    async def deliver(self, events: Sequence[FrozenEvent]) -> Deliveries:
        """Send all; what is not in the outcomes stays frozen."""
        outcomes: dict[str, DeliveryOutcome] = {}

        async def deliver_batch(batch: Sequence[FrozenEvent]) -> None:
            if self._error is None:
                try:
                    await self._deliver_batch(batch, outcomes)
                except LagoError as error:
                    self._error = error

        size = self._batch_events_max
        batches = [events[at : at + size] for at in range(0, len(events), size)]
        await gather_limited(deliver_batch, batches, REQUESTS_MAX)
        return Deliveries(outcomes, self._error)

    async def look_up(self, frozen_event: FrozenEvent) -> DeliveryOutcome | None:
        """Look up what Lago has under the event's id; None if nothing. Raises ``LagoError``."""
        event = await self._lago.event(frozen_event.transaction_id)
        return None if event is None else _compared(frozen_event, event)

    async def _deliver_batch(self, batch: Sequence[FrozenEvent], outcomes: dict[str, DeliveryOutcome]) -> None:
        """Every try gives at least one event an outcome, or halves the batch, so this ends."""
        parts = [list(batch)]
        while parts:
            part = parts.pop()
            try:
                await self._lago.send_events([each.event() for each in part])
            except LagoRejected as rejected:
                refused = {at: codes for at, codes in rejected.events.items() if 0 <= at < len(part)}
                # A refusal that names no event concerns the address or the client, unless it is about validity.
                if not refused and rejected.status != UNPROCESSABLE:
                    raise
                for at, codes in refused.items():
                    outcomes[part[at].transaction_id] = await self._outcome(part[at], codes)
                if not refused and len(part) == 1:
                    outcomes[part[0].transaction_id] = DeliveryOutcome(
                        "rejected", reason=str(rejected)[:REASON_CHARS_MAX]
                    )
                else:
                    rest = [each for at, each in enumerate(part) if at not in refused]
                    middle = len(rest) if refused else len(rest) // 2
                    parts += [half for half in (rest[middle:], rest[:middle]) if half]
            else:
                outcomes.update((each.transaction_id, DeliveryOutcome("sent")) for each in part)

    async def _outcome(self, frozen_event: FrozenEvent, reasons: Mapping[str, Sequence[str]]) -> DeliveryOutcome:
        others = [f"{name}: {code}" for name, codes in reasons.items() for code in codes if code != DUPLICATE]
        if others:
            return DeliveryOutcome("rejected", reason=", ".join(others)[:REASON_CHARS_MAX])
        found = await self.look_up(frozen_event)
        return found or DeliveryOutcome("unseen", reason="Lago says that it has this event, and does not show it")


def _compared(frozen_event: FrozenEvent, event: Event) -> DeliveryOutcome:
    if frozen_event.is_same(event):
        return DeliveryOutcome("duplicate")
    units = frozen_event.units_of(event)
    if frozen_event.has_same_place(event) and frozen_event.timestamp == event.timestamp and units is not None:
        return DeliveryOutcome("adopted", units, f"Lago has it with {units} units instead of {frozen_event.units}")
    return DeliveryOutcome(
        "conflict",
        reason=f"Lago has an event of this id for subscription {event.external_subscription_id!r}, metric"
        f" {event.code!r}, at {event.timestamp}, with {_properties(event)}; frozen was"
        f" {frozen_event.external_subscription_id!r}, {frozen_event.billable_metric!r}, at {frozen_event.timestamp},"
        f" with {_properties(frozen_event.event())}"[:REASON_CHARS_MAX],
    )


def _properties(event: Event) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(event.properties.items()))
