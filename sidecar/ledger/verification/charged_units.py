"""Units that usage events say were charged, for the comparison with the hours of accounts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sidecar.ledger.hours import HOUR_MS


@dataclass(frozen=True, slots=True)
class ChargedUnits:
    """``hours``: those of which every event is still there. ``units``: by account, of each hour and metric."""

    hours: range
    units: Mapping[str, Mapping[tuple[int, str], int]] = field(default_factory=dict)

    def of(self, account: str) -> Mapping[tuple[int, str], int]:
        return self.units.get(account, {})


def complete_hours(first_ms: int, now_ms: int, settle_ms: int) -> range:
    """The hours that began after ``first_ms`` and have been over for ``settle_ms``."""
    return range(-(-first_ms // HOUR_MS), max(-(-first_ms // HOUR_MS), (now_ms - settle_ms) // HOUR_MS))
