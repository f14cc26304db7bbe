"""Short words for readable tests of the ledger, which run on the shipped scripts and on the model alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.reference.ledger import Ledger
from tests.reference.messages import (
    HOLD,
    SETTLE,
    AccountState,
    Batch,
    Code,
    Conflict,
    Entry,
    Group,
    InstanceState,
    Load,
    Loaded,
    Outcome,
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


class LedgerFixture:
    """One ledger, its clock, and whoever talks to it. Numbers and epochs are kept for each instance by name."""

    def __init__(self, backend: RealLedger | Ledger, accounts: tuple[str, ...] = ("tpp", "other")) -> None:
        self.backend = backend
        self.now_us = (START_MS + DAY_MS) * 1000
        self.epochs: dict[str, int] = {}
        self.seqs: dict[str, int] = {}
        self.last: dict[str, Batch] = {}
        self._accounts = accounts

    # Loader

    def load(self, account: str = "tpp", **changes: Any) -> Loaded | Conflict:
        """Loads ``account``: what is not said stays as it was, or is prepaid with 10.00 at one cent a call."""
        stored = self._known().get(account)
        fresh = Load(account, CENT, START_MS, END_MS, ceiling=1000)
        if stored is not None and stored.policy is not None:
            version, status, ceiling, counts_unsettled, interval, burst, day_limit = stored.policy
            assert stored.digits is not None
            fresh = replace(
                fresh, prices=stored.live, period_start_ms=stored.start_ms, period_end_ms=stored.end_ms,
                ceiling=ceiling, expected_version=version, status=status, counts_unsettled=bool(counts_unsettled),
                rate_interval_us=interval, burst=burst, day_limit=day_limit, periods=stored.periods,
                digits=stored.digits, expected_digits=stored.digits,
            )  # fmt: skip
        return self.backend.load(replace(fresh, **changes), now_us=self.now_us)

    # Instances

    def start(self, *names: str) -> None:
        for name in names:
            self.epochs[name], self.seqs[name] = self.backend.register(name, frozenset(), now_us=self.now_us)

    def reap(self, name: str, ttl_ms: int = -1, accounts: tuple[str, ...] | None = None) -> int:
        named = frozenset(self._accounts if accounts is None else accounts)
        return self.backend.reap(name, ttl_ms, named, now_us=self.now_us)

    # Batches

    def send(self, name: str, *parts: Group | Single) -> Reply:
        """One batch. A gateway that was not started yet starts first."""
        if name not in self.epochs:
            self.start(name)
        self.seqs[name] += 1
        groups = tuple(part for part in parts if isinstance(part, Group))
        singles = tuple(part for part in parts if isinstance(part, Single))
        self.last[name] = Batch(self.epochs[name], self.seqs[name], groups, singles)
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

    def release(self, units: int, account: str = "tpp", metric: str = "api_calls", by: str = "gw") -> None:
        self.send(by, Group.of(account, metric, release=units))

    def spend(self, units: int, account: str = "tpp", metric: str = "api_calls", by: str = "gw") -> Outcome:
        """A hold and its settle."""
        outcome = self.hold(units, account, metric, by)
        if outcome.code == Code.GRANTED:
            self.settle(units, account=account, metric=metric, by=by)
        return outcome

    def charge_late(self, units: int, account: str = "tpp", metric: str = "api_calls", by: str = "gw") -> None:
        self.send(by, Group.of(account, metric, late=(units,)))

    def once(self, key: str, kind: int = HOLD, units: int = 1, account: str = "tpp", by: str = "gw") -> Outcome:
        """A hold or a settle under an idempotency key."""
        [summary] = self.send(by, Single(account, "api_calls", units, key, kind)).singles
        return summary.outcomes[0]

    def settle_once(self, key: str, units: int = 1, account: str = "tpp", by: str = "gw") -> Outcome:
        return self.once(key, SETTLE, units, account, by)

    # What is stored

    def _known(self) -> dict[str, AccountState]:
        if isinstance(self.backend, RealLedger):
            return dict(self.backend.state(self._accounts, []).accounts)
        return dict(self.backend.state().accounts)

    def account(self, account: str = "tpp") -> AccountState:
        return self._known()[account]

    def settled_units(self, account: str = "tpp", metric: str = "api_calls") -> int:
        of = self.account(account).metrics.get(metric)
        return of.settled if of else 0

    def held_units(self, account: str = "tpp", metric: str = "api_calls") -> int:
        of = self.account(account).metrics.get(metric)
        return of.held if of else 0

    def instance(self, name: str) -> InstanceState:
        if isinstance(self.backend, RealLedger):
            return self.backend.instance(name, self._accounts)
        return self.backend.state().instances[name]

    def entries(self) -> tuple[Entry, ...]:
        return self.backend.entries() if isinstance(self.backend, RealLedger) else tuple(self.backend.outbox)

    def charged_units(self) -> int:
        """Of all events."""
        return sum(event[2] for entry in self.entries() for event in entry.events)

    # Time

    def wait_ms(self, ms: int) -> None:
        self.now_us += ms * 1000

    def wait_until_ms(self, at_ms: int) -> None:
        self.now_us = at_ms * 1000
