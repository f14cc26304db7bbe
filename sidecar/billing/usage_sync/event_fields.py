"""Remembers for one round which property of usage events Lago sums, for each metric as it is billed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sidecar.billing.metric_mapping import BilledMetric
from sidecar.billing.usage_sync.billable_metrics import MetricRefused, checked_field
from sidecar.billing.usage_sync.delivery import EventClient
from sidecar.billing.usage_sync.frozen_events import FrozenEvent


class EventFields:
    """``refused``: metrics that nothing can be pushed to, with the reason."""

    def __init__(self, lago: EventClient) -> None:
        self.refused: dict[str, str] = {}
        self._lago = lago
        self._known: dict[BilledMetric, str | None] = {}

    def __repr__(self) -> str:
        return f"EventFields({len(self._known)} known, {len(self.refused)} refused)"

    async def learn(self, metrics: Iterable[BilledMetric]) -> None:
        """Ask Lago about those that are not known. Raises ``LagoError``."""
        wanted = {_without_fee(each) for each in metrics} - self._known.keys()
        for each in sorted(wanted, key=lambda each: (each.metric, each.code, each.properties)):
            try:
                self._known[each] = checked_field(each, await self._lago.metric(each.code))
            except MetricRefused as refused:
                self._known[each] = None
                self.refused[each.metric] = str(refused)

    def of(self, metric: BilledMetric) -> str | None:
        """The property; None if the metric is refused, or was not learned."""
        return self._known.get(_without_fee(metric))

    def of_event(self, event: FrozenEvent) -> str | None:
        return self.of(billed_as(event))


def billed_as(event: FrozenEvent) -> BilledMetric:
    """The metric of an event as it was frozen."""
    return BilledMetric(event.metric, event.billable_metric, event.properties)


def _without_fee(metric: BilledMetric) -> BilledMetric:
    return replace(metric, filter=None, group=())
