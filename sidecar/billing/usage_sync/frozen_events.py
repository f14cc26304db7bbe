"""Frozen events for Lago: each is written down first, and only ever sent as it was written down."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Final, Literal

import orjson

from sidecar.basics.fault_reasons import reason_of
from sidecar.billing.lago.models import Event
from sidecar.billing.usage_sync.period_links import PeriodLink

FROZEN_EVENT_BYTES_MAX: Final = 65_536
REASON_CHARS_MAX: Final = 300

State = Literal["frozen", "rejected", "conflict"]


@dataclass(frozen=True, slots=True)
class FrozenEvent:
    """An event that Lago is not known to have.

    ``period_start_ms``: the ledger period whose usage it is; ``target_start_ms``: the one that it is billed in, another
    one if it is carried over; the targets of a metric are told apart by this alone. ``segment_s``: where the segment
    started. ``code`` and ``properties``: the billable metric in Lago, "" for that of the metric's name, and what the
    event carries beside the units. ``state``: ``rejected`` and ``conflict`` are set aside, with the ``reason``.
    """

    transaction_id: str
    external_subscription_id: str
    metric: str
    field_name: str
    timestamp: Decimal
    units: int
    period_start_ms: int
    target_start_ms: int
    segment_s: int
    state: State = "frozen"
    reason: str = ""
    code: str = ""
    properties: tuple[tuple[str, str], ...] = ()

    @property
    def billable_metric(self) -> str:
        """Its code in Lago."""
        return self.code or self.metric

    @property
    def is_carried(self) -> bool:
        return self.target_start_ms != self.period_start_ms

    @property
    def revision(self) -> int:
        """0 for the first event of a segment; what follows are differences."""
        return int(self.transaction_id.removesuffix(":carried").rpartition(":")[2])

    def event(self) -> Event:
        """As Lago gets it."""
        return Event(
            transaction_id=self.transaction_id,
            external_subscription_id=self.external_subscription_id,
            code=self.billable_metric,
            timestamp=self.timestamp,
            properties={**dict(self.properties), self.field_name: str(self.units)},
        )

    def units_of(self, event: Event) -> int | None:
        """Units of an event that Lago has under this transaction id; None if they cannot be read."""
        return whole_units(event.properties.get(self.field_name))

    def is_same(self, event: Event) -> bool:
        """Whether what Lago has is what was frozen."""
        return self.has_same_place(event) and self.timestamp == event.timestamp and self.units_of(event) == self.units

    def has_same_place(self, event: Event) -> bool:
        """Whether it is an event of the same subscription and metric, with the same properties."""
        others = {name: value for name, value in event.properties.items() if name != self.field_name}
        is_of_metric = (self.external_subscription_id, self.billable_metric) == (
            event.external_subscription_id,
            event.code,
        )
        return is_of_metric and others == dict(self.properties)


def whole_units(value: object) -> int | None:
    """A property as a whole number of at least 0, None if it is none. Lago may give it back as text or as a number."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Decimal)):
        return None
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return None
    # The order of magnitude first: 1E+999999999 written out would fill the memory.
    if not number.is_finite() or number < 0 or number.adjusted() > 18 or number != number.to_integral_value():
        return None
    return int(number)


def transaction_id(metric: str, link: PeriodLink, segment_s: int, revision: int, *, carried: bool = False) -> str:
    """Unique in all of Lago, since its check for duplicates within a batch looks at nothing else."""
    return f"om:{metric}:{link.subscription_id}:{segment_s}:{revision}{':carried' if carried else ''}"


def encode_frozen_event(frozen_event: FrozenEvent) -> bytes:
    """The event as it is stored under its transaction id."""
    row: dict[str, Any] = {
        "subscription": frozen_event.external_subscription_id,
        "metric": frozen_event.metric,
        "field": frozen_event.field_name,
        "timestamp": str(frozen_event.timestamp),
        "units": frozen_event.units,
        "period": frozen_event.period_start_ms,
        "target": frozen_event.target_start_ms,
        "segment": frozen_event.segment_s,
        "state": frozen_event.state,
        "reason": frozen_event.reason[:REASON_CHARS_MAX],
    }
    if frozen_event.code:
        row |= {"code": frozen_event.code, "properties": dict(frozen_event.properties)}
    return orjson.dumps(row)


def decode_frozen_event(transaction_id: str, data: bytes) -> FrozenEvent:
    """As ``encode_frozen_event`` has written it.

    Raises:
        ValueError: it is not that.
    """
    if len(data) > FROZEN_EVENT_BYTES_MAX:
        raise ValueError(f"{len(data)} bytes, more than {FROZEN_EVENT_BYTES_MAX}")
    row = orjson.loads(data)
    try:
        state = row["state"]
        if state not in ("frozen", "rejected", "conflict"):
            raise ValueError(f"its state is {state!r}")
        return FrozenEvent(
            transaction_id=transaction_id,
            external_subscription_id=str(row["subscription"]),
            metric=str(row["metric"]),
            field_name=str(row["field"]),
            timestamp=Decimal(row["timestamp"]),
            units=int(row["units"]),
            period_start_ms=int(row["period"]),
            target_start_ms=int(row["target"]),
            segment_s=int(row["segment"]),
            state=state,
            reason=str(row["reason"]),
            code=str(row.get("code", "")),
            properties=tuple(sorted((str(name), str(value)) for name, value in row.get("properties", {}).items())),
        )
    except (TypeError, KeyError, AttributeError, InvalidOperation) as error:
        raise ValueError(reason_of(error)) from None
