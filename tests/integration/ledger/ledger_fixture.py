"""Short words for readable tests of the ledger, which run on the shipped scripts and on the model alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.reference.ledger import Ledger
from tests.reference.messages import (
    REPLAY,
    SETTLE,
    AccountState,
    Batch,
    Code,
    Entry,
    Group,
    HomeState,
    InstanceState,
    Load,
    LoadAnswer,
    Outcome,
    Plan,
    Reply,
    Single,
    Summary,
)
from tests.reference.pricing import Table
from tests.support.ledger_driver import RealLedger

DAY_MS = 86_400_000
START_MS = 1_800_000_000_000 // DAY_MS * DAY_MS
LENGTH_MS = 30 * DAY_MS
END_MS = START_MS + LENGTH_MS
CENT: dict[str, Table] = {"api_calls": ["s", 1]}
"""One cent a call."""
PLAN_FIELDS = {"prices", "start_ms", "end_ms", "following", "expected_start_ms", "name", "counted"}


class LedgerFixture:
    """One ledger, its clock, and whoever talks to it. Numbers and epochs are kept for each instance by name."""

    def __init__(self, backend: RealLedger | Ledger, accounts: tuple[str, ...] = ("tpp", "other")) -> None:
        self.backend = backend
        self.now_us = (START_MS + DAY_MS) * 1000
        self.epochs: dict[str, int] = {}
        self.seqs: dict[str, int] = {}
        self.last: dict[str, Batch] = {}
        self.under_way: dict[tuple[str, str, str], Single] = {}
        self._accounts = accounts

    # Loader

    def load(self, account: str = "tpp", **changes: Any) -> LoadAnswer:
        """Loads ``account``: what is not said stays as it was, or is prepaid with 10.00 at one cent a call. Fields of a
        plan are those of its only subscription."""
        stored = self._known().get(account)
        fresh = Load(account, (Plan(CENT, START_MS, END_MS),), ceiling=1000)
        if stored is not None and stored.policy is not None:
            status, ceiling, counts_unsettled, interval, burst, day_limit = stored.policy
            assert stored.digits is not None
            plans = tuple(
                Plan(of.live, of.start_ms, of.end_ms, of.following, name=of.name) for of in stored.subscriptions
            )
            fresh = replace(
                fresh, plans=plans, ceiling=ceiling, expected_version=stored.version, status=status,
                counts_unsettled=bool(counts_unsettled), rate_interval_us=interval, burst=burst, day_limit=day_limit,
                digits=stored.digits, expected_digits=stored.digits,
            )  # fmt: skip
        of_plan = {name: changes.pop(name) for name in PLAN_FIELDS & set(changes)}
        if of_plan:
            [plan] = fresh.plans
            fresh = replace(fresh, plans=(replace(plan, **of_plan),))
        return self.backend.load(replace(fresh, **changes), now_us=self.now_us)

    # Instances

    def start(self, *names: str) -> None:
        for name in names:
            self.epochs[name], self.seqs[name] = self.backend.register(name, now_us=self.now_us)

    def reap(self, name: str, ttl_ms: int = -1) -> int:
        """The units that the instance held; -1: it lives."""
        return self.backend.reap(name, ttl_ms, now_us=self.now_us)

    def give_back(self, *accounts: str) -> int:
        """Of these accounts, or of all. Returns the units of departed instances that remain."""
        return self.backend.give_back(accounts or self._accounts, now_us=self.now_us)

    def bury(self, name: str) -> None:
        """An instance departs, and what it held comes back."""
        self.reap(name)
        assert self.give_back() == 0

    # Batches

    def send(self, name: str, *parts: Group | Single, unpaid: tuple[tuple[str, int], ...] = ()) -> Reply:
        """One batch. A gateway that was not started yet starts first."""
        if name not in self.epochs:
            self.start(name)
        self.seqs[name] += 1
        groups = tuple(part for part in parts if isinstance(part, Group))
        singles = tuple(part for part in parts if isinstance(part, Single))
        self.last[name] = Batch(self.epochs[name], self.seqs[name], groups, singles, unpaid)
        return self.backend.batch(name, self.last[name], now_us=self.now_us)

    def send_again(self, name: str) -> Reply:
        return self.backend.batch(name, self.last[name], now_us=self.now_us)

    def ask(
        self, *units: int, account: str = "tpp", metric: str = "api_calls", by: str = "gw", known: int = 0
    ) -> Summary:
        """Holds in one group; the whole answer."""
        [summary] = self.send(by, Group.of(account, metric, hold=units, known_version=known)).groups
        assert summary is not None
        return summary

    def hold(self, units: int = 1, account: str = "tpp", metric: str = "api_calls", by: str = "gw") -> Outcome:
        return self.ask(units, account=account, metric=metric, by=by).outcomes[0]

    def settle(self, *units: int, account: str = "tpp", metric: str = "api_calls", by: str = "gw") -> None:
        self.send(by, Group.of(account, metric, settle=units))

    def release(
        self, units: int, account: str = "tpp", metric: str = "api_calls", by: str = "gw", answered: int = 0
    ) -> None:
        """``answered``: how many of the calls the API has answered."""
        self.send(by, Group.of(account, metric, release=units), unpaid=((account, answered),) if answered else ())

    def spend(self, units: int, account: str = "tpp", metric: str = "api_calls", by: str = "gw") -> Outcome:
        """A hold and its settle."""
        outcome = self.hold(units, account, metric, by)
        if outcome.code == Code.GRANTED:
            self.settle(units, account=account, metric=metric, by=by)
        return outcome

    def charge_late(self, units: int, account: str = "tpp", metric: str = "api_calls", by: str = "gw") -> None:
        self.send(by, Group.of(account, metric, late=(units,)))

    def once(self, key: str, units: int = 1, account: str = "tpp", by: str = "gw", **what: Any) -> Outcome:
        """A hold under an idempotency key."""
        single = Single(account, "api_calls", units, key, **what)
        [summary] = self.send(by, single).singles
        if summary.token:
            self.under_way[by, account, key] = replace(single, epoch=self.epochs[by], token=summary.token)
        return summary.outcomes[0]

    def end_once(self, key: str, kind: int = SETTLE, account: str = "tpp", by: str = "gw") -> Outcome:
        """Settles or releases the hold that has the key."""
        [summary] = self.send(by, replace(self.under_way[by, account, key], kind=kind)).singles
        return summary.outcomes[0]

    def spend_once(self, key: str, units: int = 1, account: str = "tpp", by: str = "gw", **what: Any) -> Outcome:
        """A hold under an idempotency key, and its settle, whoever has the key."""
        before = self.under_way.pop((by, account, key), None)
        outcome = self.once(key, units, account, by, **what)
        if outcome.code == Code.GRANTED and (by, account, key) in self.under_way:
            self.end_once(key, SETTLE, account, by)
        elif outcome.code == Code.GRANTED:
            self.settle(units, account=account, by=by)
        if before is not None:
            self.under_way[by, account, key] = before
        return outcome

    def replay(self, record: str, units: int = 1, account: str = "tpp", by: str = "gw", **what: Any) -> Outcome:
        """A charge of a spool."""
        [summary] = self.send(by, Single(account, "api_calls", units, kind=REPLAY, record=record, **what)).singles
        return summary.outcomes[0]

    # What is stored

    def _known(self) -> dict[str, AccountState]:
        if isinstance(self.backend, RealLedger):
            return dict(self.backend.state(self._accounts, []).accounts)
        return dict(self.backend.state().accounts)

    def account(self, account: str = "tpp") -> AccountState:
        return self._known()[account]

    def settled_units(self, account: str = "tpp", metric: str = "api_calls") -> int:
        """In all subscriptions."""
        return sum(of.metrics[metric].settled for of in self.account(account).subscriptions if metric in of.metrics)

    def held_units(self, account: str = "tpp", metric: str = "api_calls") -> int:
        return sum(of.metrics[metric].held for of in self.account(account).subscriptions if metric in of.metrics)

    def instance(self, name: str) -> InstanceState:
        if isinstance(self.backend, RealLedger):
            return self.backend.instance(name)
        return self.backend.state().instances[name]

    def entries(self) -> tuple[Entry, ...]:
        return self.backend.entries() if isinstance(self.backend, RealLedger) else tuple(self.backend.outbox)

    def charged_units(self) -> int:
        """Of all events."""
        return sum(event[2] for entry in self.entries() for event in entry.events)

    def home(self) -> HomeState:
        return self.backend.home() if isinstance(self.backend, RealLedger) else self.backend.state().home

    # Time

    def wait_ms(self, ms: int) -> None:
        self.now_us += ms * 1000

    def wait_until_ms(self, at_ms: int) -> None:
        self.now_us = at_ms * 1000
