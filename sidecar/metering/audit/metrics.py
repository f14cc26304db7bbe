"""The findings of audits, as Prometheus families."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sidecar.metering.audit.audit_report import AuditReport, HourState


@dataclass(slots=True)
class AuditMetrics:
    """Units of the hours that the last audit compared; ``resent_events``, ``audits`` and ``failures`` since the start.

    ``last_audit_s``: seconds since 1970 at which the last audit ended that had an answer to all of its questions.
    ``covered_until_s``: what OpenMeter accepted before was visible at the last audit, ``looked_at_s``, or lost; None
    where nothing was compared.
    """

    missing_units: int = 0
    surplus_units: int = 0
    unrecoverable_units: int = 0
    pending_units: int = 0
    hours_agreed: int = 0
    hours_open: int = 0
    resent_events: int = 0
    audits: int = 0
    failures: int = 0
    last_audit_s: float | None = None
    covered_until_s: float | None = None
    looked_at_s: float = 0.0

    def note(self, report: AuditReport, now_s: float) -> None:
        """An audit has ended."""
        self.missing_units = report.missing_units
        self.surplus_units = report.surplus_units
        self.unrecoverable_units = report.unrecoverable_units
        self.pending_units = report.pending_units
        self.hours_agreed = sum(hour.state is HourState.AGREED for hour in report.hours)
        self.hours_open = len(report.hours) - self.hours_agreed
        self.resent_events += report.resent_events
        self.audits += 1
        self.covered_until_s = None if report.covered_until_ms is None else report.covered_until_ms / 1000
        self.looked_at_s = now_s
        if report.problems:
            self.failures += 1
        else:
            self.last_audit_s = now_s


class AuditCollector(Collector):
    """Give it to a ``prometheus_client`` registry. ``now_s`` answers seconds since 1970."""

    def __init__(self, metrics: AuditMetrics, now_s: Callable[[], float]) -> None:
        self._metrics = metrics
        self._now_s = now_s

    def collect(self) -> Iterator[Metric]:
        counts = self._metrics
        for name, text, value in (
            ("missing_units", "Units that the ledger has charged and OpenMeter lacks.", counts.missing_units),
            ("surplus_units", "Units that OpenMeter has and the ledger did not charge.", counts.surplus_units),
            (
                "unrecoverable_units",
                "Missing units whose events are no longer kept, or do not count although they were sent again.",
                counts.unrecoverable_units,
            ),
            (
                "pending_units",
                "Units of past hours that are in the outbox or in dead letters.",
                counts.pending_units,
            ),
            ("hours_agreed", "Compared hours in which OpenMeter and the ledger agree.", counts.hours_agreed),
            ("hours_open", "Compared hours in which they differ, or could not be compared.", counts.hours_open),
        ):
            yield GaugeMetricFamily(f"sidecar_audit_{name}", text, value=value)
        if counts.last_audit_s is not None:
            yield GaugeMetricFamily(
                "sidecar_audit_age_seconds",
                "Time since the last complete comparison of the ledger with OpenMeter.",
                value=max(0.0, self._now_s() - counts.last_audit_s),
            )
        covered_s = counts.looked_at_s if counts.covered_until_s is None else counts.covered_until_s
        yield GaugeMetricFamily(
            "sidecar_audit_watermark_age_seconds",
            "Age of the newest events that OpenMeter surely shows, at the last audit; 0 if nothing was compared.",
            value=max(0.0, counts.looked_at_s - covered_s),
        )
        yield CounterMetricFamily(
            "sidecar_audit_resent_events", "Usage events sent to OpenMeter again.", value=counts.resent_events
        )
        yield CounterMetricFamily(
            "sidecar_audit_runs", "Comparisons of the ledger with OpenMeter.", value=counts.audits
        )
        yield CounterMetricFamily("sidecar_audit_failures", "Comparisons that were incomplete.", value=counts.failures)
