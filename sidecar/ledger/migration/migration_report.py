"""What a migration has moved, counted on both sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

DIFFERENCES_MAX: Final = 20
"""Differences that are told; one is enough to stop."""


@dataclass(slots=True)
class Tally:
    """Sums of one side. Money by currency, units by metric. ``entries`` by stream, ``others`` by kind of key."""

    accounts: int = 0
    unlisted: int = 0
    unsettled: dict[str, Decimal] = field(default_factory=dict)
    ceilings: dict[str, Decimal] = field(default_factory=dict)
    unlimited: int = 0
    decimals: int = 0
    settled: Counter[str] = field(default_factory=Counter)
    closed_records: int = 0
    closed_units: int = 0
    closed_cost: dict[str, Decimal] = field(default_factory=dict)
    hours: Counter[str] = field(default_factory=Counter)
    entries: Counter[str] = field(default_factory=Counter)
    api_keys: int = 0
    others: Counter[str] = field(default_factory=Counter)

    def rows(self) -> Iterator[tuple[str, str]]:
        """What is counted, and how much of it."""
        yield "accounts", f"{self.accounts:,}"
        yield "accounts that were never loaded", f"{self.unlisted:,}"
        for currency, money in sorted(self.unsettled.items()):
            yield f"unsettled cost, {currency or 'no currency'}", f"{money:,f}"
        for currency, money in sorted(self.ceilings.items()):
            yield f"funds and limits, {currency or 'no currency'}", f"{money:,f}"
        yield "accounts without a limit", f"{self.unlimited:,}"
        yield "decimals of all accounts", f"{self.decimals:,}"
        for metric, units in sorted(self.settled.items()):
            yield f"settled units, {metric}", f"{units:,}"
        yield "closed records", f"{self.closed_records:,}"
        yield "units of closed records", f"{self.closed_units:,}"
        for currency, money in sorted(self.closed_cost.items()):
            yield f"cost of closed records, {currency or 'no currency'}", f"{money:,f}"
        for metric, units in sorted(self.hours.items()):
            yield f"units of hours, {metric}", f"{units:,}"
        for stream, count in sorted(self.entries.items()):
            yield f"entries of {stream}", f"{count:,}"
        yield "API keys", f"{self.api_keys:,}"
        for kind, count in sorted(self.others.items()):
            yield kind, f"{count:,}"


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One sum of the table."""

    what: str
    before: str
    after: str

    @property
    def agrees(self) -> bool:
        return self.before == self.after


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """``differences``: why the migration failed; then the ledger is as it was. ``already``: there was nothing to do.

    ``released``: held units of gateways that have stopped, by metric. ``marks``: idempotency keys that could not be
    taken along, the last of which would have been forgotten after ``marks_ms``.
    """

    rows: tuple[ReportRow, ...] = ()
    differences: tuple[str, ...] = ()
    already: bool = False
    resumed: bool = False
    released: dict[str, int] = field(default_factory=dict)
    marks: int = 0
    marks_ms: int = 0
    unknown_keys: tuple[str, ...] = ()
    generation: str = ""


def rows_of(before: Tally, after: Tally) -> tuple[ReportRow, ...]:
    """Both sides beside each other."""
    one, other = dict(before.rows()), dict(after.rows())
    return tuple(ReportRow(what, one.get(what, "0"), other.get(what, "0")) for what in {**one, **other})
