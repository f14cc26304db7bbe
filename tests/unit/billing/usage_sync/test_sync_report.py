from __future__ import annotations

from sidecar.billing.usage_sync.sync_report import ROWS_MAX, Counts, ReportBuilder, SyncMetrics, SyncReport, SyncRow


def row(n: int, kind: str = "pushed") -> SyncRow:
    return SyncRow(f"tpp-{n:05}", 0, "api_calls", kind, 1)  # type: ignore[arg-type]


def test_a_table_is_bounded_and_trouble_goes_before_what_is_well() -> None:
    report = ReportBuilder()
    for n in range(ROWS_MAX + 5):
        report.add(row(n))
    report.add(row(99_999, "conflict"))
    report = report.report()
    assert len(report.rows) == ROWS_MAX
    assert report.rows_left_out == 6
    assert [each.kind for each in report.rows].count("conflict") == 1


def test_rows_are_in_the_order_of_accounts() -> None:
    report = ReportBuilder()
    report.add(row(2))
    report.add(row(1))
    assert [each.account for each in report.report().rows] == ["tpp-00001", "tpp-00002"]


def test_metrics_sum_up_what_happened_and_keep_what_stands() -> None:
    metrics = SyncMetrics()
    metrics.note(SyncReport(Counts(accounts=2, events=3, units=30, pending=1)), 1_000, 0.5)
    metrics.note(SyncReport(Counts(accounts=2, events=1, units=10, late_units=4, late_units_known=4)), 2_000, 0.25)
    assert (metrics.total.events, metrics.total.units, metrics.total.late_units) == (4, 40, 4)
    assert (metrics.last.pending, metrics.last.late_units_known) == (0, 4)
    assert (metrics.rounds, metrics.rounds_failed, metrics.finished_at_ms, metrics.duration_s) == (2, 0, 2_000, 0.25)


def test_a_round_that_ended_early_does_not_replace_what_stands() -> None:
    metrics = SyncMetrics()
    metrics.note(SyncReport(Counts(pending=5)), 1_000, 1.0)
    metrics.note(SyncReport(Counts(events=1), stopped="Lago is away"), 2_000, 1.0)
    assert (metrics.last.pending, metrics.finished_at_ms) == (5, 1_000)
    assert (metrics.rounds_failed, metrics.total.events) == (1, 1)


def test_a_report_is_clean_when_nothing_is_left() -> None:
    assert SyncReport(Counts(events=5, units=5, duplicates=1)).is_clean
    for counts in (
        Counts(pending=1),
        Counts(set_aside=1),
        Counts(late_units_known=1),
        Counts(excess_units=1),
        Counts(accounts_failed=1),
    ):
        assert not SyncReport(counts).is_clean
