"""The rules of DESIGN section 4 that can be read off what is stored, checked on the raw data alone."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field

from tests.reference.messages import AccountState, State
from tests.reference.pricing import worst

HOUR_MS = 3_600_000


@dataclass
class Calendar:
    """Which period of an account an instant belongs to: rising instants, each with the start that names the period."""

    instants: list[int] = field(default_factory=lambda: [0])
    starts: list[int] = field(default_factory=lambda: [0])
    loaded_ms: int = 0

    def period_of(self, t_ms: int) -> int:
        return self.starts[bisect_right(self.instants, t_ms) - 1]

    def begin(self, at_ms: int, start_ms: int) -> None:
        self.instants.append(max(at_ms, self.loaded_ms))
        self.starts.append(start_ms)

    def rename_first(self, start_ms: int, now_ms: int) -> None:
        """It had no policy until now: all that was used so far goes into its first period, even if that is over."""
        self.instants, self.starts, self.loaded_ms = [0], [start_ms], now_ms


def assert_conserved(state: State, calendars: dict[str, Calendar]) -> None:
    """Rule 1: the settled units, and the units of every closed period, are the sums of the units in all events of that
    period."""
    in_events: Counter[tuple[str, str, int]] = Counter()
    for entry in state.outbox:
        for account, metric, units, *_ in entry.events:
            in_events[account, metric, calendars[account].period_of(entry.t_ms)] += units
    in_ledger: Counter[tuple[str, str, int]] = Counter()
    for name, account in state.accounts.items():
        for metric, of in account.metrics.items():
            in_ledger[name, metric, account.start_ms] += of.settled
        for (start, metric), (units, _cost) in account.closed.items():
            in_ledger[name, metric, start] += units
    assert +in_events == +in_ledger


def assert_hours(state: State) -> None:
    """What an hour counts of an account and metric is the sum of the units of all events whose time lies in it."""
    in_events: Counter[tuple[int, str, str]] = Counter()
    for entry in state.outbox:
        for account, metric, units, *_ in entry.events:
            in_events[entry.t_ms // HOUR_MS, account, metric] += units
    assert in_events == state.hours


def assert_no_hold_is_lost(state: State) -> None:
    """Rule 3: the held units are the sum of the instances' shares."""
    shares: Counter[tuple[str, str]] = Counter()
    for instance in state.instances.values():
        assert all(units > 0 for units in instance.shares.values()), instance
        shares.update(instance.shares)
    held = {
        (name, metric): of.held for name, a in state.accounts.items() for metric, of in a.metrics.items() if of.held
    }
    assert held == dict(shares)


def exposure(account: AccountState) -> int:
    """What is used and held costs at worst, recomputed from the stored tables."""
    total = 0
    for metric, table in (dict(account.live) | dict(account.gone)).items():
        of = account.metrics.get(metric)
        total += worst(table, of.settled if of else 0, of.held if of else 0)
    return total


def remaining(account: AccountState) -> int | None:
    """What may still be spent, negative when overdrawn; None without a limit."""
    if account.policy is None:
        return None
    _version, _status, ceiling, counts_unsettled, *_ = account.policy
    if ceiling is None:
        return None
    return int(ceiling) - (account.unsettled if counts_unsettled else 0) - exposure(account)


def never_falls(account: AccountState) -> bool:
    """No table in force has a price that may fall when a tier is entered."""
    return all(table[0] != "v" for table in (*account.live.values(), *account.gone.values()))


def assert_money(
    *, before: AccountState | None, after: AccountState, may_overdraw: bool, may_free: bool, was_granted: bool
) -> None:
    """Rules 2 and 4: holds never overspend, and nothing but a known cause makes more available.

    What may overdraw is listed in docs/ledger.md, "When a prepaid account can be overdrawn".
    """
    left = remaining(after)
    if left is None:
        return
    had = remaining(before) if before is not None else None
    if not may_overdraw:
        assert left >= 0 or (had is not None and left >= had), f"overdrawn by {-left}, had {had}"
        assert left >= 0 or not was_granted, f"a hold was granted at {left}"
    if not may_free and had is not None and never_falls(after):
        assert left <= had, f"{left} are left of {had}, and nobody gave anything back"
