"""Saves an audit's state of an hour in Valkey: whether it agreed, and what was sent again."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from sidecar.ledger.hours import HOURS_OF_DAY, Hours, HourTotal
from sidecar.metering.audit.comparison import Cell, ResendHistory

AGREED: Final = "agreed"
RESENT: Final = "resent"
DAY: Final = "day"
CHOSEN: Final = b"chosen"
COMPACTED: Final = b"compacted"
"""A note at a day's first hour: its hours may become one count each by now, or have."""

HISTORY_MAX: Final = 20_000
"""Cells saved of an hour. Further ones begin anew with each audit, so they are never given up."""


@dataclass(frozen=True, slots=True)
class HourAuditState:
    """``agreed``: the sums with which the hour agreed. ``history``: cells that were missing."""

    agreed: HourTotal | None = None
    history: Mapping[Cell, ResendHistory] = field(default_factory=dict)


async def load_hour_states(hours: Hours, numbers: Collection[int]) -> dict[int, HourAuditState]:
    """Load the states of these hours. A state that cannot be read counts as none."""
    notes = await hours.notes(numbers, AGREED, RESENT)
    return {hour: HourAuditState(_total(agreed), _history(hour, history)) for hour, (agreed, history) in notes.items()}


async def with_hourly_counts(hours: Hours, numbers: Collection[int]) -> list[int]:
    """Those of these hours that are not part of a day's count, as they are where the look-back was made longer."""
    days = {hour // HOURS_OF_DAY for hour in numbers}
    notes = await hours.notes([day * HOURS_OF_DAY for day in days], DAY)
    return [hour for hour in numbers if notes[hour // HOURS_OF_DAY * HOURS_OF_DAY][0] not in (CHOSEN, COMPACTED)]


async def save_agreed(hours: Hours, hour: int, total: HourTotal) -> None:
    """The hour agreed, with these sums: it need not be compared again while it has them."""
    await hours.note(hour, {AGREED: f"{total.counts} {total.units}"})


async def save_resend_history(hours: Hours, hour: int, history: Mapping[Cell, ResendHistory]) -> None:
    """Replaces what is known of the hour's cells."""
    rows = [
        [cell.account, cell.metric, each.attempts, each.at_ms, each.events]
        for cell, each in list(history.items())[:HISTORY_MAX]
    ]
    await hours.note(hour, {RESENT: orjson.dumps(rows)})


def _total(note: bytes | None) -> HourTotal | None:
    numbers = (note or b"").split()
    if len(numbers) != 2 or not all(number.isdigit() for number in numbers):
        return None
    return HourTotal(int(numbers[0]), int(numbers[1]))


def _history(hour: int, note: bytes | None) -> dict[Cell, ResendHistory]:
    try:
        rows: Any = orjson.loads(note or b"[]")
        return {Cell(hour, account, metric): ResendHistory(*numbers) for account, metric, *numbers in rows}
    except (orjson.JSONDecodeError, TypeError, ValueError):
        return {}
