"""Compares the counts of both sides for one account and metric in one hour. Without I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple, Protocol

from sidecar.ledger.hours import HOUR_MS

HELPLESS_ATTEMPTS: Final = 3
"""After so many attempts to send the same events again that did not help somebody has to look. OpenMeter knows the ids,
say, but lost the events (openmeter issue 5118, ``dedupe.enabled`` of its API server)."""
RESEND_MS, RESEND_MS_MAX = 900_000, 21_600_000
"""Time between two attempts, doubling, and its bound."""


class AuditSettings(Protocol):
    """``sidecar.billing.settings.AuditSettings``."""

    @property
    def interval_s(self) -> int: ...
    @property
    def settle_s(self) -> int: ...
    @property
    def hours(self) -> int: ...


class Cell(NamedTuple):
    """One cell of the comparison: an hour, counted from 1970, an account and a metric."""

    hour: int
    account: str
    metric: str


class RowState(Enum):
    """How a cell stands. Only MISSING, UNRECOVERABLE and SURPLUS are differences."""

    AGREED = "agreed"
    PENDING = "pending"
    """The missing units are on their way, wait among the dead letters, or may still become visible."""
    MISSING = "missing"
    UNRECOVERABLE = "unrecoverable"
    """Missing, and nothing is left to send again."""
    SURPLUS = "surplus"


@dataclass(frozen=True, slots=True)
class Counts:
    """Units of a cell: in the ledger, in OpenMeter, in the outbox, among the dead letters."""

    ledger: int
    openmeter: int
    outbox: int = 0
    dead: int = 0


@dataclass(frozen=True, slots=True)
class Tail:
    """Units of a cell in the tail: those that OpenMeter must show by now, and those accepted since the watermark."""

    settled: int = 0
    arriving: int = 0


@dataclass(frozen=True, slots=True)
class ResendHistory:
    """The work of earlier audits on a cell that was missing: ``attempts`` to send it again, the last look or attempt
    at ``at_ms``. ``events``: how many were sent again."""

    attempts: int
    at_ms: int
    events: int = 0


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One cell that does not agree. ``difference``: units that OpenMeter lacks, negative where it has too many.

    ``unrecoverable_units`` are part of the difference. ``resent``: events that were sent again, now or before.
    """

    cell: Cell
    state: RowState
    counts: Counts
    difference: int
    unrecoverable_units: int = 0
    resent: int = 0

    @property
    def hour(self) -> int:
        return self.cell.hour

    @property
    def account(self) -> str:
        return self.cell.account

    @property
    def metric(self) -> str:
        return self.cell.metric

    @property
    def ledger_units(self) -> int:
        return self.counts.ledger

    @property
    def openmeter_units(self) -> int:
        return self.counts.openmeter

    @property
    def pending_units(self) -> int:
        """On the way, or waiting for somebody's decision."""
        return self.counts.outbox + self.counts.dead


def complete_hours(now_ms: int, settings: AuditSettings) -> range:
    """The hours to compare: those of the last ``hours`` that OpenMeter must know in full."""
    end = (now_ms - settings.settle_s * 1000) // HOUR_MS
    return range(max(0, now_ms // HOUR_MS - settings.hours), end)


def missing_units(counts: Counts) -> int:
    """Units that OpenMeter has not got and nobody is about to deliver. The outbox may hold events that OpenMeter
    has already, so this is the least that it can be."""
    return max(0, counts.ledger - counts.openmeter - counts.outbox - counts.dead)


def audit_row(
    cell: Cell,
    counts: Counts,
    tail: Tail | None,
    history: ResendHistory | None,
    now_ms: int,
    settle_ms: int,
    covered_until_ms: int | None,
) -> AuditRow:
    """``tail`` None: it was not, or not wholly, looked at; what is missing is not known to be so then.
    ``covered_until_ms``: what was accepted before it is visible, or lost (``sidecar.metering.watermarks``)."""
    missing = missing_units(counts)
    resent = history.events if history else 0
    if not missing:
        # An operator's correction takes units away once it has arrived.
        surplus = counts.openmeter - counts.ledger + min(0, counts.outbox + counts.dead)
        if surplus > 0:
            return AuditRow(cell, RowState.SURPLUS, counts, -surplus, resent=resent)
        waits = counts.outbox or counts.dead
        return AuditRow(cell, RowState.PENDING if waits else RowState.AGREED, counts, 0, resent=resent)
    if tail is None or missing <= tail.arriving or _is_on_its_way(history, now_ms, covered_until_ms):
        return AuditRow(cell, RowState.PENDING, counts, 0, resent=resent)
    missing -= tail.arriving
    # One look may come between an event's leaving the outbox and its arrival elsewhere: nothing is given up at once.
    seen = history is not None and (history.attempts > 0 or now_ms - history.at_ms >= settle_ms)
    may_be_late = covered_until_ms is None or covered_until_ms < (cell.hour + 1) * HOUR_MS
    if tail.settled:
        helpless = history is not None and history.attempts >= HELPLESS_ATTEMPTS
        beyond = max(0, missing - tail.settled) if seen and not may_be_late else 0
        return AuditRow(cell, RowState.MISSING, counts, missing, missing if helpless else beyond, resent)
    if may_be_late:
        return AuditRow(cell, RowState.PENDING, counts, 0, resent=resent)
    if seen:
        return AuditRow(cell, RowState.UNRECOVERABLE, counts, missing, missing, resent)
    return AuditRow(cell, RowState.MISSING, counts, missing, 0, resent)


def _is_on_its_way(history: ResendHistory | None, now_ms: int, covered_until_ms: int | None) -> bool:
    """Whether what was sent again last may still become visible, or its next turn has not come."""
    if history is None or not history.attempts:
        return False
    wait_ms = min(RESEND_MS_MAX, RESEND_MS << min(history.attempts - 1, 10))
    return covered_until_ms is None or covered_until_ms <= history.at_ms or now_ms - history.at_ms < wait_ms
