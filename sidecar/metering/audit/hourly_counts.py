"""Collects both sides' counts of the hours that are not known to agree.

The order matters: first what waits in the outbox, then OpenMeter. An event that is in neither is missing, since an
entry leaves the outbox only after OpenMeter has accepted it. The other way round an event that is delivered between the
two looks would be taken for missing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from sidecar.ledger.hours import HOUR_MS, Hours, HourTotal, Units
from sidecar.metering.audit.audit_state import HourAuditState, load_hour_states, with_hourly_counts
from sidecar.metering.audit.comparison import Cell, Counts
from sidecar.metering.audit.streams import PendingUnits, Streams
from sidecar.metering.openmeter.meter_query import AnswerTooLarge, MeterQuery, QueryError
from sidecar.metering.watermarks import METRIC as WATERMARKS
from sidecar.metering.watermarks import covered_until_ms

METRICS_MAX: Final = 100
"""Ledger metrics of which OpenMeter is asked; a bank has a handful."""

UNREADABLE_NAMED_MAX: Final = 5
WATERMARKS_AFTER: Final = 3
"""Hours after the last one that is compared of which watermarks are looked for."""

Progress = Callable[[int, int], None]
"""Told how many hours of how many have been compared."""


@dataclass(slots=True)
class OpenHour:
    """An hour that is not known to agree. ``counts``: the cells in which the sides differ or of which something waits.

    ``answered``: OpenMeter has said everything that there was to ask. ``unknown``: accounts and metrics of which
    it says what cannot be.
    """

    hour: int
    total: HourTotal
    audit_state: HourAuditState
    ledger: Units
    openmeter_units: int = 0
    answered: bool = True
    counts: dict[Cell, Counts] = field(default_factory=dict)
    unknown: set[tuple[str, str]] = field(default_factory=set)


class HourlyCounts:
    """The hourly counts of both sides. ``agreed``: the hours that agreed before and have not changed since.
    ``complete``: nothing that waits was left out. ``problems``: why it is not all that it could be.
    """

    def __init__(
        self, hours: Hours, streams: Streams, query: MeterQuery, event_type: str, ledger: str | None, partitions: int
    ) -> None:
        self.agreed: dict[int, HourTotal] = {}
        self.open: list[OpenHour] = []
        self.complete = True
        self.problems: list[str] = []
        self._hours = hours
        self._streams = streams
        self._query = query
        self._event_type = event_type
        self._ledger = ledger
        self._partitions = partitions
        self._metrics: list[str] = []
        self.covered_until_ms: int | None = None
        """All that was accepted before this instant is visible, or lost; None: nothing is known to be."""

    def __repr__(self) -> str:
        return f"HourlyCounts({len(self.agreed)} hours agreed, {len(self.open)} open)"

    async def collect(self, hours: Collection[int], progress: Progress | None = None) -> None:
        """Count. Raises RedisError or OSError when Valkey cannot be reached; OpenMeter's failures are problems."""
        await self._choose(hours)
        if not self.open:
            return
        waiting = await self._streams.waiting(frozenset(each.hour for each in self.open))
        self.complete = waiting.complete
        if not self.complete:
            self.problems.append("too much waits in the outbox to be counted: what OpenMeter lacks is compared later")
        await self._look_at_meters()
        await self._look_at_watermarks(hours)
        for number, each in enumerate(self.open, 1):
            self._compare(each, await self._ask(each), waiting)
            each.ledger = {}
            if progress is not None:
                progress(number, len(self.open))

    async def _choose(self, hours: Collection[int]) -> None:
        """An hour that the ledger did not count is left out.

        One pass counts all hours, with the cells of those that have never agreed. Only if one that agreed has another
        total now, a second pass takes its cells, and its total with them.
        """
        hours = await with_hourly_counts(self._hours, hours)
        states = await load_hour_states(self._hours, hours)
        found = await self._hours.read(hours, [hour for hour in hours if states[hour].agreed is None])
        totals, cells, unreadable = found.totals, found.cells, found.unreadable
        changed = [hour for hour, total in totals.items() if states[hour].agreed not in (None, total)]
        if changed:
            found = await self._hours.read(changed, changed)
            totals, cells, unreadable = totals | found.totals, cells | found.cells, unreadable | found.unreadable
        for hour, total in totals.items():
            if states[hour].agreed == total:
                self.agreed[hour] = total
            else:
                self.open.append(OpenHour(hour, total, states[hour], cells[hour]))
        for account, reason in list(unreadable.items())[:UNREADABLE_NAMED_MAX]:
            self.problems.append(f"the ledger's counts of account {account} cannot be read: {reason}")
        if len(unreadable) > UNREADABLE_NAMED_MAX:
            self.problems.append(f"the ledger's counts of {len(unreadable)} accounts or more cannot be read")

    async def _look_at_meters(self) -> None:
        """Leaves the metrics whose meters sum units. Another would never agree, however often events are sent."""
        for metric in sorted({metric for each in self.open for _, metric in each.ledger})[:METRICS_MAX]:
            try:
                meter = await self._query.meter(metric)
            except QueryError as error:
                if self._note(error):
                    self._metrics.clear()
                    return
                continue
            if meter is None:
                self.problems.append(f"OpenMeter has no meter {metric}; `sidecar catalog apply` makes it")
            elif (meter.aggregation, meter.value_property, meter.event_type) != ("SUM", "$.units", self._event_type):
                what = f"the SUM of $.units of {self._event_type}"
                self.problems.append(f"OpenMeter's meter {metric} is not {what}, so it cannot be compared")
            else:
                self._metrics.append(metric)

    async def _look_at_watermarks(self, hours: Collection[int]) -> None:
        """Before the usage: what they cover is in it. Any meter of the events' type has them."""
        if not self._metrics or self._ledger is None:
            return
        # An hour more than are compared: the running one has begun with a watermark.
        from_ms, to_ms = min(hours) * HOUR_MS, (max(hours) + WATERMARKS_AFTER) * HOUR_MS
        while True:
            try:
                rows = await self._query.usage(self._metrics[0], from_ms, to_ms, of=WATERMARKS)
                break
            except AnswerTooLarge as error:
                # Many partitions, or many ledgers: the newest hours have what is looked for.
                from_ms = to_ms - (to_ms - from_ms) // HOUR_MS // 2 * HOUR_MS
                if from_ms == to_ms:
                    self._note(error)
                    return
            except QueryError as error:
                self._note(error)
                return
        self.covered_until_ms = covered_until_ms(self._ledger, self._partitions, rows)
        if self.covered_until_ms is None:
            self.problems.append(
                "OpenMeter shows no watermark of these hours: what it lacks may be late, and is not sent again. Either"
                " its sink stands still, or no publisher has run for an hour"
            )

    async def _ask(self, hour: OpenHour) -> dict[tuple[str, str], int]:
        found: dict[tuple[str, str], int] = {}
        for metric in list(self._metrics):
            try:
                rows = await self._query.usage(metric, hour.hour * HOUR_MS, (hour.hour + 1) * HOUR_MS)
            except QueryError as error:
                if self._note(error):
                    # Nobody waits for as many timeouts as there are hours: the rest is asked next time.
                    self._metrics.clear()
                    break
                self._metrics.remove(metric)
                continue
            faults = {row.subject: row.fault for row in rows if row.fault}
            hour.unknown |= {(subject, metric) for subject in faults}
            found |= {(row.subject, metric): row.units for row in rows if row.subject not in faults}
            for subject, fault in list(faults.items())[:UNREADABLE_NAMED_MAX]:
                self.problems.append(f"OpenMeter's answer for {subject[:80]}, {metric}, {fault}: it is not compared")
        hour.openmeter_units = sum(found.values())
        hour.answered = {metric for _, metric in hour.ledger} <= set(self._metrics) and not hour.unknown
        return found

    def _compare(self, hour: OpenHour, openmeter: dict[tuple[str, str], int], waiting: PendingUnits) -> None:
        for account, metric in hour.ledger.keys() | openmeter.keys():
            if metric not in self._metrics or (account, metric) in hour.unknown:
                continue
            cell = Cell(hour.hour, account, metric)
            counts = Counts(
                hour.ledger.get((account, metric), 0),
                openmeter.get((account, metric), 0),
                waiting.outbox[cell],
                waiting.dead[cell],
            )
            if counts.ledger != counts.openmeter or counts.outbox or counts.dead:
                hour.counts[cell] = counts

    def _note(self, error: QueryError) -> bool:
        self.problems.append(str(error))
        return error.transient
