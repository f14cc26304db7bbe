"""What a check is, and what a run's checks mean for its exit status. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

SHOWN_MAX = 3
"""Accounts that are named when several are wrong."""


class Verdict(StrEnum):
    HOLDS = "holds"
    FAILED = "FAILED"
    UNCHECKED = "not checked"


@dataclass(frozen=True, slots=True)
class Check:
    """One assertion: what must be so, what was found. ``found`` of an unchecked one says what is missing."""

    name: str
    expected: str
    found: str
    verdict: Verdict


def passes(name: str, holds: bool, expected: object, found: object) -> Check:
    return Check(name, str(expected), str(found), Verdict.HOLDS if holds else Verdict.FAILED)


def equals(name: str, expected: object, found: object) -> Check:
    return passes(name, expected == found, _shown(expected), _shown(found))


def unchecked(name: str, expected: str, needs: str) -> Check:
    """``needs``: the option that would give access, such as ``--valkey``."""
    return Check(name, expected, f"needs {needs}", Verdict.UNCHECKED)


def within(name: str, low: Mapping[str, int], high: Mapping[str, int], found: Mapping[str, int]) -> Check:
    """Account by account; where ``low`` is ``high``, exactly that. An account that is not ``found`` has zero."""
    wrong = [
        f"{account}: {found.get(account, 0):,}, not {_span(low.get(account, 0), high.get(account, 0))}"
        for account in sorted({*low, *high, *found})
        if not low.get(account, 0) <= found.get(account, 0) <= high.get(account, 0)
    ]
    more = f" and {len(wrong) - SHOWN_MAX} more accounts" if len(wrong) > SHOWN_MAX else ""
    total = f"{sum(found.values()):,}"
    shown = f"{total} ({'; '.join(wrong[:SHOWN_MAX])}{more})" if wrong else total
    return passes(name, not wrong, _span(sum(low.values()), sum(high.values())), shown)


def exit_status(checks: Iterable[Check]) -> int:
    """0: all that could be checked holds; 1: something does not; 2: nothing could be checked."""
    verdicts = {check.verdict for check in checks}
    if Verdict.FAILED in verdicts:
        return 1
    return 0 if Verdict.HOLDS in verdicts else 2


def _span(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
