"""How Lago bills the metrics of the gateway: under which code, with which properties of usage events.

A metric is the name of a counter in the ledger and of a meter in OpenMeter. Without an entry in the settings it is
Lago's billable metric of the same code. With entries, several metrics may be one billable metric, told apart by
properties that charges are filtered or grouped by.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sidecar.billing.lago.models import FilterValues, GroupValues
from sidecar.billing.settings import BillableMetricSettings


@dataclass(frozen=True, slots=True)
class BilledMetric:
    """``properties``: of the usage events, by name, beside the one that Lago sums. ``filter`` and ``group``: of the
    fee that bills them, as invoices have them; None and () if the charge has neither.
    """

    metric: str
    code: str
    properties: tuple[tuple[str, str], ...] = ()
    filter: FilterValues | None = None
    group: GroupValues = ()

    @property
    def is_plain(self) -> bool:
        """Whether it is what a metric without an entry is, of a charge with one price."""
        return self == BilledMetric(self.metric, self.metric)


class MetricMapping:
    """The settings ``lago.billable_metrics``."""

    def __init__(self, entries: Iterable[BillableMetricSettings] = ()) -> None:
        self._entries = {
            each.metric: BilledMetric(each.metric, each.code, tuple(sorted(each.properties.items())))
            for each in entries
        }

    def __repr__(self) -> str:
        return f"MetricMapping({len(self._entries)} entries)"

    def has_entry(self, metric: str) -> bool:
        return metric in self._entries

    def of(self, metric: str) -> BilledMetric:
        """How Lago bills a metric."""
        return self._entries.get(metric) or BilledMetric(metric, metric)

    def metrics_of(self, code: str) -> tuple[BilledMetric, ...]:
        """The metrics that are billed under a code: those of entries in their order, and the one of the same name."""
        named = tuple(each for each in self._entries.values() if each.code == code)
        return named if self.has_entry(code) else (*named, BilledMetric(code, code))
