"""The findings of an audit, as values and as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum

from sidecar.ledger.hours import HOUR_MS
from sidecar.metering.audit.comparison import AuditRow, RowState

COLUMNS = ("hour", "account", "metric", "ledger", "openmeter", "pending", "difference", "resent", "state")


class HourState(Enum):
    """How an hour stands."""

    AGREED = "agreed"
    PENDING = "pending"
    DIFFERS = "differs"
    UNKNOWN = "unknown"
    """OpenMeter gave no answer, or not for every metric."""


@dataclass(frozen=True, slots=True)
class HourReport:
    """One hour that the ledger counted. ``openmeter_units``: None if OpenMeter was not asked, or gave no answer."""

    hour: int
    state: HourState
    ledger_units: int
    openmeter_units: int | None = None


@dataclass(frozen=True, slots=True)
class AuditReport:
    """``rows``: what does not agree, oldest first. ``problems``: what kept the audit from doing all of its work."""

    now_ms: int
    hours: tuple[HourReport, ...]
    rows: tuple[AuditRow, ...]
    problems: tuple[str, ...]
    resent_events: int
    covered_until_ms: int | None = None
    """All that was accepted before it is visible in OpenMeter, or lost. None: not known, or not asked."""

    @property
    def missing_units(self) -> int:
        """Units that OpenMeter lacks, with those that cannot be sent again."""
        return sum(row.difference for row in self.rows if row.difference > 0)

    @property
    def surplus_units(self) -> int:
        return -sum(row.difference for row in self.rows if row.difference < 0)

    @property
    def unrecoverable_units(self) -> int:
        return sum(row.unrecoverable_units for row in self.rows)

    @property
    def pending_units(self) -> int:
        return sum(row.pending_units for row in self.rows)

    @property
    def agrees(self) -> bool:
        """Every hour that the ledger counted is known to agree."""
        return not self.problems and all(hour.state is HourState.AGREED for hour in self.hours)


def hour_state(rows: Sequence[AuditRow]) -> HourState:
    """The state of an hour for which OpenMeter answered everything."""
    states = {row.state for row in rows} - {RowState.AGREED}
    if not states:
        return HourState.AGREED
    return HourState.PENDING if states == {RowState.PENDING} else HourState.DIFFERS


def hour_text(hour: int) -> str:
    """Such as 2026-01-31 14:00Z."""
    return f"{datetime.fromtimestamp(hour * HOUR_MS // 1000, UTC):%Y-%m-%d %H:%MZ}"


def audit_table(report: AuditReport) -> list[tuple[str, ...]]:
    """The rows that do not agree, under :data:`COLUMNS`."""
    return [
        (
            hour_text(row.hour),
            row.account,
            row.metric,
            str(row.ledger_units),
            str(row.openmeter_units),
            str(row.pending_units),
            str(row.difference),
            str(row.resent),
            row.state.value,
        )
        for row in report.rows
    ]
