"""From what a file asks for and what is there to an ordered list of changes. Without I/O.

The order is that in which they can be made: what is named by others comes first. Whatever Lago would take without doing
it (it drops changes of things in use without a word) is refused here, with what to do instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sidecar.billing.catalog import diff_customers, diff_plans
from sidecar.billing.catalog.changes import Change, FieldChange, Observed
from sidecar.billing.catalog.compare import (
    GROUP_FIELD,
    by_metric,
    counts_later,
    endpoint_fields,
    instant,
    meter_fields,
    metric_fields,
    tax_fields,
)
from sidecar.billing.catalog.values import (
    Catalog,
    WantedEndpoint,
    WantedMetric,
    WantedTax,
    meter_of,
)
from sidecar.billing.metric_mapping import MetricMapping
from sidecar.billing.usage_sync.billable_metrics import MetricRefused, field_of
from sidecar.metering.openmeter.meter_query import Meter

METER_ANEW = "delete it in OpenMeter and apply again; the new one counts the events that are there already"
METER_REGROUPED = "the groups count for the events that are there already too"
METER_CONFIGURED = (
    "a meter from OpenMeter's own configuration is changed there too: OpenMeter does not start where they differ"
)
METRIC_IN_USE = "Lago changes nothing but name and filters of a metric that a plan uses"


def diff(
    catalog: Catalog, observed: Observed, event_type: str, now_ms: int, mapping: MetricMapping | None = None
) -> tuple[Change, ...]:
    """The changes to make, and what will not be done. ``event_type`` is that of the gateway's events
    (``metering.type``). ``mapping``: the metrics of the gateway, each of which has a meter."""
    plans = dict(diff_plans.resolved(catalog, observed))
    return (
        *(Change("refuse", each.kind, each.code, notes=_notes(each.where, each.reason, each.instead))
          for each in catalog.refusals),
        *(_tax(each, observed) for each in catalog.taxes),
        *(_metric(each, observed) for each in catalog.metrics),
        *_meters(catalog, observed, event_type, now_ms, mapping or MetricMapping()),
        *(diff_plans.plan(each, plans.get(each.plan.code), catalog, observed) for each in catalog.plans),
        *((_endpoint(catalog.endpoint, observed),) if catalog.endpoint is not None else ()),
        *(diff_customers.customer(each, observed) for each in catalog.customers),
        *(diff_customers.subscription(each, catalog, observed) for each in catalog.subscriptions),
        *(diff_customers.wallet(each, catalog, observed, now_ms) for each in catalog.wallets),
    )  # fmt: skip


def _notes(where: str, reason: str, instead: str) -> tuple[str, ...]:
    return (f"{where}: {reason}", *((f"instead: {instead}",) if instead else ()))


def _tax(wanted: WantedTax, observed: Observed) -> Change:
    code = wanted.tax.code
    found = observed.taxes.get(code)
    fields = tax_fields(wanted, found)
    if found is None:
        return Change("create", "tax", code, fields, wanted=wanted)
    if not fields:
        return Change("keep", "tax", code)
    note = "invoices that are not final yet bear the new rate, also on usage so far"
    return Change("update", "tax", code, fields, (note,), wanted)


def _metric(wanted: WantedMetric, observed: Observed) -> Change:
    found = observed.metrics.get(wanted.code)
    fields = metric_fields(wanted, found)
    if found is None:
        return Change("create", "metric", wanted.code, fields, wanted=wanted)
    if not fields:
        return Change("keep", "metric", wanted.code)
    users = [plan.code for plan in observed.plans.values() if wanted.code in by_metric(plan.charges)]
    if not users or all(field.name in ("name", "filters") for field in fields):
        return Change("update", "metric", wanted.code, fields, wanted=wanted)
    try:
        field_of(wanted.code, found)
        reason = f"it is a {found.aggregation} of {found.field_name}"
    except MetricRefused as error:
        reason = str(error)
    todo = f"{METRIC_IN_USE} ({_listed(users)}): make a metric with another code, and plans that use it"
    return Change("refuse", "metric", wanted.code, fields, (reason, todo))


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _meters(
    catalog: Catalog, observed: Observed, event_type: str, now_ms: int, mapping: MetricMapping
) -> Iterator[Change]:
    if observed.meters is None:
        return
    named = [each.metric for metric in catalog.metrics for each in mapping.metrics_of(metric.code)]
    for slug in dict.fromkeys([*(metric.code for metric in catalog.metrics), *named]):
        yield _meter(meter_of(slug, event_type), observed.meters.get(slug), now_ms)


def _meter(wanted: Meter, found: Meter | None, now_ms: int) -> Change:
    fields = meter_fields(wanted, found)
    if found is None:
        return Change("create", "meter", wanted.slug, fields, wanted=wanted)
    if counts_later(found, now_ms):
        fields = (*fields, FieldChange("event_from", instant(found.event_from_ms), None))
    if not fields:
        return Change("keep", "meter", wanted.slug)
    fixed = [field.name for field in fields if not field.name.startswith(GROUP_FIELD)]
    if fixed:
        notes = (f"OpenMeter cannot change {' and '.join(fixed)} of a meter: {METER_ANEW}", METER_CONFIGURED)
        return Change("refuse", "meter", wanted.slug, fields, notes)
    # OpenMeter empties what an update leaves out.
    target = replace(found, group_by={**found.group_by, **wanted.group_by})
    return Change("update", "meter", wanted.slug, fields, (METER_REGROUPED, METER_CONFIGURED), target)


def _endpoint(wanted: WantedEndpoint, observed: Observed) -> Change:
    found = next((each for each in observed.endpoints if each.url == wanted.url), None)
    fields = endpoint_fields(wanted, found)
    if found is not None and not fields:
        return Change("keep", "webhook endpoint", wanted.url)
    notes: tuple[str, ...] = ()
    if wanted.signature == "hmac":
        notes = ("the HMAC key is shown in Lago under Developers, Webhooks; the gateway's is lago.webhooks.hmac_key",)
    if wanted.signature == "jwt":
        notes = ("the gateway takes JWT signatures with lago.webhooks.jwt: true only",)
    if found is None:
        return Change("create", "webhook endpoint", wanted.url, fields, notes, wanted)
    return Change("update", "webhook endpoint", wanted.url, fields, notes, wanted, found.lago_id)
