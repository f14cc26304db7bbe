"""Reconciles the counts of a run: whether ledger, outbox and OpenMeter agree with the answers. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

from loadtests.scenarios.checks import Check, equals, passes, unchecked, within
from loadtests.scenarios.plan import Answers


@dataclass(frozen=True, slots=True)
class Account:
    """An account in the ledger: units settled and held in this period, all metrics together, and what is left to spend
    (None: no limit, or not known).
    """

    settled: int
    held: int
    period_start_ms: int
    available: Decimal | None = None


Ledger = Mapping[str, Account]


@dataclass(frozen=True, slots=True)
class UsageEvent:
    id: str
    account: str
    units: int


@dataclass(frozen=True, slots=True)
class Events:
    """The usage events of the run. ``waiting``: in the outbox; ``accepted``: what OpenMeter took, in the retained tail;
    ``dead``: dead letters.
    """

    waiting: tuple[UsageEvent, ...] = ()
    accepted: tuple[UsageEvent, ...] = ()
    dead: int = 0

    def all(self) -> tuple[UsageEvent, ...]:
        return (*self.waiting, *self.accepted)


Meters = Mapping[str, int]
"""Units that OpenMeter has counted, by account."""


@dataclass(frozen=True, slots=True)
class Counts:
    """The counts at one instant; None: no access was given."""

    ledger: Ledger | None = None
    events: Events | None = None
    meters: Meters | None = None


@dataclass(frozen=True, slots=True)
class RunCounts:
    """A run: the counts before and after, and what the clients saw in between."""

    before: Counts
    after: Counts
    answers: Answers
    accounts: tuple[str, ...] = field(default=())


def debited(before: Ledger, after: Ledger) -> dict[str, int]:
    """Units that each account was charged between two looks."""
    return {account: after[account].settled - before[account].settled for account in after}


def has_new_period(before: Ledger, after: Ledger) -> bool:
    return any(after[account].period_start_ms != before[account].period_start_ms for account in after)


def bounds(answers: Answers) -> tuple[dict[str, int], dict[str, int]]:
    """The fewest and the most units that may have been charged, by account: what answers said, and with those requests
    whose connection was cut.
    """
    low = dict(answers.charged)
    high = Counter(low)
    high.update(answers.unsure)
    return low, dict(high)


def judge(run_counts: RunCounts) -> tuple[Check, ...]:
    """All that must hold after every scenario."""
    return (*_ledger_checks(run_counts), *_event_checks(run_counts), *_meter_checks(run_counts))


DEBITS = "units debited in the ledger = answers that said so"
HELD = "nothing is left held"
OVERSPENT = "nobody spent more than there was"
EVENTS = "units in usage events = units debited"
IDS = "each event id once"
DELIVERED = "every event delivered, no dead letters"
METERED = "units counted by OpenMeter = units debited"
NEED_LEDGER, NEED_EVENTS, NEED_METERS = "--admin or --valkey", "--valkey", "--openmeter"


def _ledger_checks(run_counts: RunCounts) -> Iterable[Check]:
    before, after = run_counts.before.ledger, run_counts.after.ledger
    low, high = bounds(run_counts.answers)
    expected = f"{sum(low.values()):,}"
    if before is None or after is None:
        yield unchecked(DEBITS, expected, NEED_LEDGER)
        yield unchecked(HELD, "0", NEED_LEDGER)
        return
    if has_new_period(before, after):
        yield unchecked(DEBITS, expected, "a run in which no billing period ends")
    else:
        check = within(DEBITS, low, high, debited(before, after))
        # README, "When something fails": who gets no whole answer may have been charged, or not.
        open_ = sum(high.values()) - sum(low.values())
        yield replace(check, expected=f"{check.expected} ({open_:,} without a whole answer)") if open_ else check
    yield equals(HELD, 0, sum(account.held for account in after.values()))
    known = {name: account.available for name, account in after.items() if account.available is not None}
    if known:
        least = min(known, key=lambda name: known[name])
        yield passes(OVERSPENT, known[least] >= 0, "0 or more left", f"least: {known[least]} ({least})")


def _event_checks(run_counts: RunCounts) -> Iterable[Check]:
    events = run_counts.after.events
    low, high = _debits(run_counts)
    if events is None:
        for name in (EVENTS, IDS, DELIVERED):
            yield unchecked(name, f"{sum(low.values()):,}" if name == EVENTS else "0", NEED_EVENTS)
        return
    yield within(EVENTS, low, high, _units(events.all()))
    yield repeated(events.all())
    lost = f"{len(events.waiting):,} waiting, {events.dead:,} dead"
    if run_counts.after.meters is None and not events.accepted:
        yield unchecked(DELIVERED, "0 waiting, 0 dead", NEED_METERS)
    else:
        yield equals(DELIVERED, "0 waiting, 0 dead", lost)


def repeated(events: Sequence[UsageEvent]) -> Check:
    ids = Counter(event.id for event in events)
    twice = [id_ for id_, count in ids.items() if count > 1]
    found = f"{len(ids):,} ids" + (f", {len(twice):,} more than once, such as {twice[0]}" if twice else "")
    return passes(IDS, not twice, f"{len(events):,} ids", found)


def _meter_checks(run_counts: RunCounts) -> Iterable[Check]:
    before, after = run_counts.before.meters, run_counts.after.meters
    low, high = _debits(run_counts)
    if before is None or after is None:
        yield unchecked(METERED, f"{sum(low.values()):,}", NEED_METERS)
        return
    counted = {account: after.get(account, 0) - before.get(account, 0) for account in {*low, *high, *after, *before}}
    yield within(METERED, low, high, {account: units for account, units in counted.items() if units})


def _debits(run_counts: RunCounts) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """What the ledger has debited, exactly; without access to it, what the answers allow."""
    before, after = run_counts.before.ledger, run_counts.after.ledger
    if before is None or after is None or has_new_period(before, after):
        return bounds(run_counts.answers)
    found = debited(before, after)
    return found, found


def _units(events: Iterable[UsageEvent]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for event in events:
        total[event.account] += event.units
    return dict(total)
