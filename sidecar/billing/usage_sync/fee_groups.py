"""Finds the fees of an invoice that bill a metric of the gateway. Without I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sidecar.billing.lago.models import Fee, FilterValues, GroupValues
from sidecar.billing.metric_mapping import BilledMetric


@dataclass(frozen=True, slots=True)
class FeeGroup:
    """Metrics, and the fees that bill them: usually one metric and one fee. ``code``: of the billable metric."""

    code: str
    metrics: tuple[str, ...]
    fees: tuple[Fee, ...]

    @property
    def name(self) -> str:
        return " + ".join(self.metrics) or self.code


def fee_groups(metrics: Iterable[BilledMetric], fees: Iterable[Fee]) -> Iterator[FeeGroup]:
    """The smallest groups that can be told apart.

    A fee bills the metrics of its code, filter and group. If one fee of a code fits no metric, all metrics and fees of
    that code are one group: its events are not the gateway's, or the plan's filters have changed since.
    """
    by_code: dict[str, list[BilledMetric]] = {}
    for metric in metrics:
        by_code.setdefault(metric.code, []).append(metric)
    of_code: dict[str, list[Fee]] = {}
    for fee in fees:
        if fee.metric_code is not None:
            of_code.setdefault(fee.metric_code, []).append(fee)
    for code in dict.fromkeys([*by_code, *of_code]):
        yield from _groups(code, by_code.get(code, []), of_code.get(code, []))


def _groups(code: str, metrics: list[BilledMetric], fees: list[Fee]) -> Iterator[FeeGroup]:
    keys: dict[tuple[FilterValues | None, GroupValues], list[str]] = {}
    for metric in metrics:
        keys.setdefault((metric.filter, metric.group), []).append(metric.metric)
    if len(keys) <= 1 or any((fee.filter, fee.group) not in keys for fee in fees):
        yield FeeGroup(code, tuple(sorted(each.metric for each in metrics)), tuple(fees))
        return
    for key, names in keys.items():
        yield FeeGroup(code, tuple(sorted(names)), tuple(fee for fee in fees if (fee.filter, fee.group) == key))
