"""What audits tell Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from sidecar.metering.audit.audit_report import AuditReport, HourReport, HourState
from sidecar.metering.audit.comparison import AuditRow, Cell, Counts, RowState
from sidecar.metering.audit.metrics import AuditCollector, AuditMetrics

CELL = Cell(490_000, "tpp-1", "api_calls")
ROWS = (
    AuditRow(CELL, RowState.MISSING, Counts(9, 2, outbox=1, dead=2), 4, 1, 3),
    AuditRow(CELL, RowState.UNRECOVERABLE, Counts(9, 4), 5, 5),
    AuditRow(CELL, RowState.SURPLUS, Counts(1, 8), -7),
)
HOURS = (
    HourReport(1, HourState.AGREED, 1, 1),
    HourReport(2, HourState.AGREED, 1, 1),
    HourReport(3, HourState.DIFFERS, 19, 14),
)


def values(metrics: AuditMetrics, now_s: float) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(AuditCollector(metrics, lambda: now_s))
    return {
        sample.name.removeprefix("sidecar_audit_"): sample.value
        for each in registry.collect()
        for sample in each.samples
    }


def test_every_number_is_shown_under_its_own_name() -> None:
    metrics = AuditMetrics()
    metrics.note(AuditReport(0, HOURS, ROWS, (), 3), now_s=1_000.0)
    metrics.note(AuditReport(0, HOURS, ROWS, (), 4, 1_700_000), now_s=2_000.0)
    assert values(metrics, 2_060.0) == {
        "missing_units": 9,
        "surplus_units": 7,
        "unrecoverable_units": 6,
        "pending_units": 3,
        "hours_agreed": 2,
        "hours_open": 1,
        "age_seconds": 60,
        "watermark_age_seconds": 300,
        "resent_events_total": 7,
        "runs_total": 2,
        "failures_total": 0,
    }


def test_an_audit_that_could_not_do_its_work_does_not_make_the_last_one_younger() -> None:
    metrics = AuditMetrics()
    metrics.note(AuditReport(0, (), (), ("no answer",), 0), now_s=1_000.0)
    assert "age_seconds" not in values(metrics, 1_500.0)
    metrics.note(AuditReport(0, (), (), (), 0), now_s=2_000.0)
    metrics.note(AuditReport(0, (), (), ("no answer",), 0), now_s=3_000.0)
    shown = values(metrics, 3_500.0)
    assert (shown["age_seconds"], shown["runs_total"], shown["failures_total"]) == (1_500, 3, 2)


def test_where_nothing_was_compared_nothing_is_late() -> None:
    metrics = AuditMetrics()
    metrics.note(AuditReport(0, HOURS, ROWS, (), 4, 1_700_000), now_s=2_000.0)
    metrics.note(AuditReport(0, (), (), (), 0), now_s=9_000.0)
    assert values(metrics, 9_000.0)["watermark_age_seconds"] == 0
