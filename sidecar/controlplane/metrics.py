"""The Prometheus families of the control work."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sidecar.billing.reconcile.metrics import BillingCollector
from sidecar.billing.webhooks.metrics import WebhookCollector
from sidecar.metering.audit.metrics import AuditCollector

if TYPE_CHECKING:
    from sidecar.billing.reconcile.invoice_checks import InvoiceChecks
    from sidecar.controlplane.control_work import ControlWork
    from sidecar.controlplane.sync_loop import SyncLoop


class LagoCollector(Collector):
    """The client, the sync and the comparison of invoices of one :class:`ControlWork`."""

    def __init__(self, control_work: ControlWork) -> None:
        self._control_work = control_work

    def collect(self) -> Iterator[Metric]:
        client = self._control_work.lago.metrics
        yield _labelled("sidecar_lago_requests", "Requests to Lago.", "endpoint", client.requests)
        yield _labelled("sidecar_lago_failures", "Requests to Lago that failed, by kind.", "kind", client.failures)
        yield CounterMetricFamily("sidecar_lago_retries", "Requests that were sent again.", value=client.retries)
        yield CounterMetricFamily("sidecar_lago_pauses", "Pauses that Lago asked for.", value=client.pauses)
        yield CounterMetricFamily(
            "sidecar_lago_throttled_seconds",
            "Time that requests waited for the request rate.",
            value=client.throttled_s,
        )
        lease = self._control_work.lease.state
        yield CounterMetricFamily("sidecar_control_terms", "Terms in which this process led.", value=lease.terms)
        loop = self._control_work.sync_loop
        if loop is not None:
            yield from self._sync(loop)
            yield from self._checks(loop.checks)

    @staticmethod
    def _sync(loop: SyncLoop) -> Iterable[Metric]:
        metrics, total, last = loop.sync.metrics, loop.sync.metrics.total, loop.last
        yield CounterMetricFamily("sidecar_sync_rounds", "Rounds of pushing usage to Lago.", value=metrics.rounds)
        yield CounterMetricFamily(
            "sidecar_sync_rounds_failed", "Rounds that were incomplete.", value=metrics.rounds_failed
        )
        yield CounterMetricFamily("sidecar_sync_events", "Usage events that Lago accepted.", value=total.events)
        yield CounterMetricFamily("sidecar_sync_units", "Units in these events.", value=total.units)
        yield CounterMetricFamily("sidecar_sync_duplicates", "Events that Lago had already.", value=total.duplicates)
        yield CounterMetricFamily("sidecar_sync_late_units", "Units that missed their invoice.", value=total.late_units)
        yield CounterMetricFamily(
            "sidecar_sync_carried_units", "Late units that are billed in a later period.", value=total.carried_units
        )
        yield CounterMetricFamily(
            "sidecar_sync_ledger_units",
            "Units pushed by the ledger's own counts, since OpenMeter did not show them before the invoice.",
            value=total.ledger_units,
        )
        yield GaugeMetricFamily(
            "sidecar_sync_refused_metrics",
            "Metrics that cannot be pushed because of their definition in Lago. The log has the reason.",
            value=len(metrics.refused),
        )
        if last is not None:
            counts = last.counts
            for name, text, value in (
                ("set_aside_events", "Events that Lago refuses.", counts.set_aside),
                ("pending_events", "Events not known to be delivered.", counts.pending),
                ("excess_units", "Units pushed beyond what the ledger has charged.", counts.excess_units),
                ("surplus_units", "Units in OpenMeter that the ledger has not charged.", counts.surplus_units),
                ("held_back", "Metrics of periods whose answer from OpenMeter cannot be.", counts.held),
                ("accounts_failed", "Accounts whose usage could not be pushed.", counts.accounts_failed),
            ):
                yield GaugeMetricFamily(f"sidecar_sync_{name}", text, value=value)
        if metrics.finished_at_ms is not None:
            yield GaugeMetricFamily(
                "sidecar_sync_timestamp_seconds",
                "Start of the last complete round.",
                value=metrics.finished_at_ms / 1000,
            )

    @staticmethod
    def _checks(checks: InvoiceChecks) -> Iterable[Metric]:
        yield CounterMetricFamily(
            "sidecar_invoices_compared",
            "Metrics of final invoices compared with the ledger.",
            value=checks.metrics.compared,
        )
        yield CounterMetricFamily(
            "sidecar_invoices_equal",
            "Metrics of final invoices that agreed at the first comparison.",
            value=checks.metrics.equal,
        )
        units = GaugeMetricFamily(
            "sidecar_invoice_difference_units",
            "Units of the ledger minus units of final invoices.",
            labels=["tpp_id", "metric"],
        )
        cents = GaugeMetricFamily(
            "sidecar_invoice_difference_cents",
            "Amount of the ledger minus amount of final invoices, in the currency's smallest coin.",
            labels=["tpp_id", "metric"],
        )
        for (account, metric), (difference, money) in sorted(checks.metrics.differences.items()):
            units.add_metric([account, metric], float(difference))
            cents.add_metric([account, metric], money)
        yield units
        yield cents


def collectors(control_work: ControlWork) -> Iterator[Collector]:
    """Of everything that ``control_work`` counts."""
    yield BillingCollector(control_work.metrics)
    yield WebhookCollector(control_work.receiver.metrics)
    yield LagoCollector(control_work)
    if control_work.auditor is not None:
        yield AuditCollector(control_work.auditor.metrics, time.time)


def _labelled(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in sorted(values.items()):
        family.add_metric([value], count)
    return family
