"""Entries of ``lago.billable_metrics`` beside Lago's billable metrics and plans."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

from sidecar.app.configuration import Config
from sidecar.billing.lago.client import LagoClient
from sidecar.billing.lago.models import BillableMetric, Plan
from sidecar.billing.metric_mapping import BilledMetric, MetricMapping
from sidecar.billing.reconcile.charge_prices import group_keys
from sidecar.billing.usage_sync.billable_metrics import MetricRefused, checked_field
from sidecar.cli.checks.finding import Finding
from sidecar.cli.checks.metrics import charged_metrics

PLAN_PAGES_MAX: Final = 10
"""Of a hundred plans each."""


async def billable_metrics(config: Config, client: LagoClient) -> list[Finding]:
    """Whether usage of each metric can be pushed, and whether Lago has what entries name. Raises ``LagoError``."""
    entries = config.lago.billable_metrics
    mapping = MetricMapping(entries)
    findings: list[Finding] = []
    found: dict[str, BillableMetric | None] = {}
    for metric in sorted({*charged_metrics(config), *(each.metric for each in entries)}):
        billed = mapping.of(metric)
        if billed.code not in found:
            found[billed.code] = await client.metric(billed.code)
        try:
            checked_field(billed, found[billed.code])
        except MetricRefused as error:
            findings.append(Finding(f"lago metric {metric}", False, str(error)))
    if entries:
        known = {each.code: each for each in found.values() if each is not None}
        findings += entry_findings([mapping.of(each.metric) for each in entries], known, await _plans(client))
        findings += list(_unused(config))
    return findings


async def _plans(client: LagoClient) -> list[Plan]:
    plans: list[Plan] = []
    page: int | None = 1
    while page is not None and page <= PLAN_PAGES_MAX:
        found = await client.plans_page(page)
        plans += found.items
        page = found.next_page
    return plans


def entry_findings(
    entries: Sequence[BilledMetric], known: Mapping[str, BillableMetric], plans: Sequence[Plan]
) -> list[Finding]:
    """A warning for each property that no charge can look at: Lago takes the price of the charge itself then."""
    groups: dict[str, set[str]] = {}
    for charge in [charge for plan in plans for charge in plan.charges]:
        for properties in (charge.properties, *(each.properties for each in charge.filters)):
            groups.setdefault(charge.metric_code, set()).update(str(key) for key in group_keys(properties))
    findings = []
    for at, entry in enumerate(entries):
        metric = known.get(entry.code)
        if metric is None:
            continue
        grouped = groups.get(entry.code, set())
        for name, value in entry.properties:
            if reason := _not_seen(name, value, metric, grouped):
                where = f"lago.billable_metrics[{at}].properties"
                findings.append(Finding(f"lago metric {entry.metric}", None, f"{where}: {reason}"))
    return findings


def _not_seen(name: str, value: str, metric: BillableMetric, grouped: Collection[str]) -> str | None:
    if name in grouped:
        return None
    of_metric = f"the billable metric {metric.code}"
    if name not in metric.filters:
        return f"{name} is no filter of {of_metric}, and no charge is grouped by it{_near(name, metric.filters)}"
    if value not in metric.filters[name]:
        return f"{value} is no value of the filter {name} of {of_metric}{_near(value, metric.filters[name])}"
    return None


def _unused(config: Config) -> Iterator[Finding]:
    charged = charged_metrics(config)
    for at, entry in enumerate(config.lago.billable_metrics):
        if config.routes and entry.metric not in charged:
            detail = (
                f"lago.billable_metrics[{at}].metric: no route charges {entry.metric}{_near(entry.metric, charged)}"
            )
            yield Finding(f"lago metric {entry.metric}", None, detail)


def _near(name: str, names: Collection[str]) -> str:
    near = difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.7)
    return f"; did you mean {near[0]}?" if near else ""
