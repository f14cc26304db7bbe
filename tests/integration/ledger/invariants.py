"""The rules of DESIGN section 4 that can be read off what is stored, checked on the raw data alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.integration.ledger.strategies import REPEATS_MAX
from tests.reference.messages import HOLD, RELEASE, REPLAY, AccountState, Code, Single, State, SubscriptionState
from tests.reference.pricing import worst

HOUR_MS = 3_600_000

Place = tuple[str, str, str, int]
"""Account, metric, subscription and the start of its period: where units are charged."""


def subscription_for(account: AccountState, metric: str) -> SubscriptionState:
    """The first subscription that has a price for a metric, else the first that had one, else the first."""
    for tables in ([of.live for of in account.subscriptions], [of.gone for of in account.subscriptions]):
        for subscription, prices in zip(account.subscriptions, tables, strict=True):
            if metric in prices:
                return subscription
    return account.subscriptions[0]


def holds_elsewhere(account: AccountState) -> bool:
    """Whether something is held of a subscription that a metric was of, and is not any more."""
    return any(subscription_for(account, metric).name != name for _, name, metric in account.shares)


@dataclass
class Books:
    """What the events say, each put where the account charged it when it came into the outbox."""

    units: Counter[Place] = field(default_factory=Counter)
    entries: int = 0

    def follow(self, state: State) -> None:
        """Enters the new entries. An event's time lies in the period that it was charged to."""
        for entry in state.outbox[self.entries :]:
            for name, metric, units, *_ in entry.events:
                account = state.accounts[name]
                of = subscription_for(account, metric)
                self.units[name, metric, of.name, of.start_ms] += units
                if account.policy is not None:
                    assert of.start_ms <= entry.time_of(name) < of.end_ms, (entry, of)
        self.entries = len(state.outbox)

    def load_first(self, account: str, subscription: str, start_ms: int) -> None:
        """An account without a policy has one subscription without a name; the first load gives it one."""
        for place, units in list(self.units.items()):
            if place[0] == account:
                del self.units[place]
                self.units[account, place[1], subscription, start_ms] += units


@dataclass
class Repeats:
    """Calls that were free, and those that they repeated."""

    charged: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    free: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    records: set[tuple[str, str]] = field(default_factory=set)

    def note(self, single: Single, code: Code) -> None:
        """A call is free only as one of so many repeats of one that was charged, with the same key and body."""
        of = single.account, single.scope, single.body
        if single.kind == RELEASE or (code == Code.REPEAT and (single.account, single.record) in self.records):
            return  # a record that was charged; when its mark is over, it is charged again
        if code == Code.REPEAT:
            self.free[of] += 1
            assert self.free[of] <= self.charged[of] * REPEATS_MAX, f"{of} was free too often"
        elif single.kind != HOLD:
            assert code == Code.GRANTED, "the API did the work"
            self.charged[of] += 1
        if single.kind == REPLAY:
            self.records.add((single.account, single.record))


def assert_conserved(state: State, books: Books) -> None:
    """Rule 1: the settled units, and the units of every closed period, are the sums of the units in all events of that
    period."""
    in_ledger: Counter[Place] = Counter()
    for name, account in state.accounts.items():
        for of in account.subscriptions:
            for metric, counted in of.metrics.items():
                in_ledger[name, metric, of.name, of.start_ms] += counted.settled
        for (start, subscription, metric), (units, _cost) in account.closed.items():
            in_ledger[name, metric, subscription, start] += units
    assert +books.units == +in_ledger


def assert_hours(state: State) -> None:
    """What an hour counts of an account and metric is the sum of the units of all events whose time lies in it."""
    in_events: Counter[tuple[int, str, str]] = Counter()
    for entry in state.outbox:
        for account, metric, units, *_ in entry.events:
            in_events[entry.time_of(account) // HOUR_MS, account, metric] += units
    assert in_events == state.hours


def assert_no_hold_is_lost(state: State) -> None:
    """Rule 3: the held units are the sum of the shares, and every share is of an instance or of one that departed, who
    hold that much in all."""
    by_epoch: Counter[int] = Counter()
    for name, account in state.accounts.items():
        shares: Counter[tuple[str, str]] = Counter()
        for (epoch, subscription, metric), units in account.shares.items():
            by_epoch[epoch] += units
            shares[subscription, metric] += units
        held = {(of.name, metric): m.held for of in account.subscriptions for metric, m in of.metrics.items() if m.held}
        assert held == dict(shares), name
    holders = Counter({instance.epoch: instance.held for instance in state.instances.values() if instance.epoch})
    assert all(instance.held == 0 for instance in state.instances.values() if not instance.epoch)
    assert not set(holders) & set(state.home.departed)
    assert by_epoch == +holders + Counter(state.home.departed)


def exposure(account: AccountState) -> int:
    """What is used and held costs at worst, recomputed from the stored tables."""
    total = 0
    for subscription in account.subscriptions:
        for metric, table in (dict(subscription.live) | dict(subscription.gone)).items():
            of = subscription.metrics.get(metric)
            total += worst(table, of.settled if of else 0, of.held if of else 0)
    return total


def remaining(account: AccountState) -> int | None:
    """What may still be spent, negative when overdrawn; None without a limit."""
    if account.policy is None:
        return None
    _status, ceiling, counts_unsettled, *_ = account.policy
    if ceiling is None:
        return None
    return int(ceiling) - (account.unsettled if counts_unsettled else 0) - exposure(account)


def never_falls(account: AccountState) -> bool:
    """No table in force has a price that may fall when a tier is entered."""
    return all(t[0] != "v" for of in account.subscriptions for t in (*of.live.values(), *of.gone.values()))


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
