"""Reads from Lago's usage how much it has counted of each metric of the gateway. Without I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal

from sidecar.billing.lago.models import ChargeUsage, FeeUsage
from sidecar.billing.metric_mapping import BilledMetric


def counted_units(charges: Iterable[ChargeUsage], metrics: Sequence[BilledMetric]) -> dict[str, Decimal]:
    """Units by metric, where there are any. Of metrics that are one fee the first gets them: they cost the same.

    Units of fees that bill no metric are left out; :func:`foreign_usage` sets aside what they cost.
    """
    by_fee: dict[tuple[object, ...], str] = {}
    for each in metrics:
        by_fee.setdefault((each.code, each.filter, each.group), each.metric)
    counted: dict[str, Decimal] = {}
    for charge in charges:
        for fee in charge.fees or (FeeUsage(None, (), charge.units),):
            metric = by_fee.get((charge.metric_code, fee.filter, fee.group))
            if metric is not None and fee.units > 0:
                counted[metric] = counted.get(metric, Decimal(0)) + fee.units
    return counted
