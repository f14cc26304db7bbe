"""Decides whether sums can be pushed to a billable metric of Lago, and into which property."""

from __future__ import annotations

from sidecar.billing.lago.models import BillableMetric
from sidecar.billing.metric_mapping import BilledMetric

WANTED = '{"aggregation_type":"sum_agg","field_name":"calls","recurring":false}'


class MetricRefused(Exception):
    """Nothing is pushed to the metric as it is. The message names it and says what to do."""


def checked_field(metric: BilledMetric, found: BillableMetric | None) -> str:
    """The property that Lago sums for a metric of the gateway. ``found``: the billable metric of its code.

    Raises:
        MetricRefused: as :func:`field_of`; the message also names the metric and its entry in the settings.
    """
    try:
        name = field_of(metric.code, found)
        if name in dict(metric.properties):
            raise MetricRefused(f"billable metric {metric.code!r} sums {name!r}, which the entry gives as a property")
    except MetricRefused as error:
        if (metric.code, metric.properties) == (metric.metric, ()):
            raise
        raise MetricRefused(f"metric {metric.metric!r}, by its entry in lago.billable_metrics: {error}") from None
    return name


def field_of(code: str, metric: BillableMetric | None) -> str:
    """The property that Lago sums.

    Lago accepts a ``count_agg`` with a field name, forgets the name and counts events (lago-api
    ``app/models/billable_metric.rb``): a pushed sum of 1,234 would be billed as 1.

    Raises:
        MetricRefused: sums pushed to it would not be billed as they are.
    """
    if metric is None:
        raise MetricRefused(f"Lago has no billable metric {code!r}; `sidecar catalog apply` makes it as {WANTED}")
    if metric.aggregation == "count_agg":
        raise MetricRefused(
            f"billable metric {code!r} is a count_agg: Lago would bill each pushed sum as one unit, whatever it says."
            f" Make it {WANTED}, which `sidecar catalog apply` does"
        )
    if metric.aggregation != "sum_agg" or not metric.field_name:
        has = f"{metric.aggregation} {'of ' + metric.field_name if metric.field_name else 'without field_name'}"
        raise MetricRefused(
            f"billable metric {code!r} is a {has}; pushed sums need {WANTED}, see `sidecar catalog apply`"
        )
    if metric.recurring:
        raise MetricRefused(
            f"billable metric {code!r} is recurring: its sum never starts again at 0. Make it {WANTED},"
            " which `sidecar catalog apply` does"
        )
    if metric.has_expression:
        raise MetricRefused(
            f"billable metric {code!r} has an expression, which would compute other units than were pushed; remove it"
        )
    if metric.rounds_units:
        raise MetricRefused(
            f"billable metric {code!r} rounds to {10**-metric.rounding_precision} units ({metric.rounding}): Lago would"
            " bill others than were charged; remove the rounding"
        )
    return metric.field_name
