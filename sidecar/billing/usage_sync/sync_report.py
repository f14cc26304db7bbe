"""The report of a round: counts, and rows for a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Final, Literal

ROWS_MAX: Final = 1_000

RowKind = Literal[
    "pushed", "carried", "late", "excess", "duplicate", "adopted", "rejected", "conflict", "unseen", "error", "held",
    "surplus", "ledger"
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class SyncRow:
    """One thing that happened, or stands: so many units of a metric of an account, in the ledger period that starts at
    ``period_start_ms``. ``detail`` says more where there is more to say; ``is_new``: no earlier round has said it."""

    account: str
    period_start_ms: int
    metric: str
    kind: RowKind
    units: int
    events: int = 0
    detail: str = ""
    is_new: bool = True


@dataclass(slots=True)
class Counts:
    """Counts of a round, and, from ``set_aside`` on, the state at its end.

    ``events`` and ``units``: that Lago has taken; ``deltas`` of these events are differences to earlier ones,
    ``carried_events`` and ``carried_units`` bill older periods. ``duplicates``: Lago had them already, as frozen;
    ``adopted``: with other units. ``rejected`` and ``conflicts``: events that were set aside. ``voided``: events that
    were frozen and never reached Lago before their invoice, and so are late usage. ``late_units``: missed their invoice
    and were not reported before. ``ledger_units``: pushed by the ledger's own counts, since OpenMeter did not show them
    in time.

    ``set_aside``: events that are. ``pending``: events that are frozen and not known to be delivered.
    ``late_units_known``: all units that missed their invoice, ``rescan_s`` back. ``excess_units``: pushed, and more
    than the ledger has charged. ``surplus_units``: that OpenMeter shows beyond what the ledger has charged; they are
    not pushed. ``held``: metrics of periods that are held back, since OpenMeter's answer cannot be.
    """

    accounts: int = 0
    accounts_failed: int = 0
    events: int = 0
    units: int = 0
    deltas: int = 0
    carried_events: int = 0
    carried_units: int = 0
    duplicates: int = 0
    adopted: int = 0
    rejected: int = 0
    conflicts: int = 0
    voided: int = 0
    late_units: int = 0
    ledger_units: int = 0
    set_aside: int = 0
    pending: int = 0
    late_units_known: int = 0
    excess_units: int = 0
    surplus_units: int = 0
    held: int = 0


@dataclass(frozen=True, slots=True)
class SyncReport:
    """One round. ``refused``: metrics that nothing is pushed to or read from, with the reason. ``stopped``: why the
    round ended early; the next one goes on. ``rows_left_out``: rows for which there was no room."""

    counts: Counts
    refused: Mapping[str, str] = field(default_factory=dict)
    stopped: str | None = None
    rows: tuple[SyncRow, ...] = ()
    rows_left_out: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether every account and metric was looked at."""
        return self.stopped is None and not self.refused and not self.counts.accounts_failed

    @property
    def is_clean(self) -> bool:
        """Whether all usage that is due has reached Lago, as far as OpenMeter knows it."""
        left = self.counts
        return self.is_complete and not (
            left.pending
            or left.set_aside
            or left.late_units_known
            or left.excess_units
            or left.surplus_units
            or left.held
        )


@dataclass(slots=True)
class ReportBuilder:
    """A report while it grows."""

    counts: Counts = field(default_factory=Counts)
    refused: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None
    rows: list[SyncRow] = field(default_factory=list)
    rows_left_out: int = 0

    def add(self, row: SyncRow) -> None:
        """A row, if there is room: trouble goes before what is as it should be."""
        if len(self.rows) < ROWS_MAX:
            self.rows.append(row)
            return
        self.rows_left_out += 1
        if row.kind != "pushed":
            at = next((n for n in range(ROWS_MAX - 1, -1, -1) if self.rows[n].kind == "pushed"), None)
            if at is not None:
                self.rows[at] = row

    def report(self) -> SyncReport:
        """As it stands."""
        rows = sorted(self.rows, key=lambda row: (row.account, row.period_start_ms, row.metric, row.kind))
        return SyncReport(replace(self.counts), dict(self.refused), self.stopped, tuple(rows), self.rows_left_out)


@dataclass(slots=True)
class SyncMetrics:
    """``total``: sums since the start, of what happens in rounds. ``last``: the last round that came to its end, for
    what stands. ``finished_at_ms``: when that began. ``refused``: metrics, by the last round's word."""

    rounds: int = 0
    rounds_failed: int = 0
    total: Counts = field(default_factory=Counts)
    last: Counts = field(default_factory=Counts)
    refused: Mapping[str, str] = field(default_factory=dict)
    finished_at_ms: int | None = None
    duration_s: float = 0.0

    def note(self, report: SyncReport, now_ms: int, duration_s: float) -> None:
        """A round has ended, which began at ``now_ms``."""
        self.rounds += 1
        for each in fields(Counts):
            setattr(self.total, each.name, getattr(self.total, each.name) + getattr(report.counts, each.name))
        self.duration_s = duration_s
        self.refused = report.refused
        if report.stopped is None:
            self.last = replace(report.counts)
            self.finished_at_ms = now_ms
        else:
            self.rounds_failed += 1
