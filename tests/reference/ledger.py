"""The ledger as docs/ledger.md describes it, in plain Python and exact integers; one account at a time, one call at a time.

It keeps what the rules talk about (who holds what, what was used in this period) rather than what the scripts store: H is always
the sum of the instances' shares, the rate limit's "how many would still pass" is counted by letting them pass.
"""

from __future__ import annotations

from collections import defaultdict
from copy import deepcopy
from dataclasses import dataclass, field

from tests.reference.messages import (
    HOLD, SETTLE, AccountState, Batch, Code, Conflict, Entry, Event, Group, InstanceState, LedgerError, Load, Loaded,
    MetricState, Outcome, Reply, Single, State, Summary,
)  # fmt: skip
from tests.reference.pricing import MAX_INT, Table, cost, worst

DAY_US = 86_400 * 1_000_000
PARTS_MAX = 3000


@dataclass
class Account:
    name: str
    terms: Load | None = None
    version: int = 0
    older_cost: int = 0
    start_ms: int = 0
    end_ms: int = MAX_INT
    following_ms: list[int] = field(default_factory=list)
    tat_us: int = 0
    day: int = 0
    day_count: int = 0
    digits: int | None = None
    used: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    held: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    """(instance, metric) to units."""
    live: dict[str, Table] = field(default_factory=dict)
    gone: dict[str, Table] = field(default_factory=dict)
    closed: dict[tuple[int, str], tuple[int, int]] = field(default_factory=dict)

    # Prices and money

    def h(self, metric: str) -> int:
        return sum(units for (_, of), units in self.held.items() if of == metric)

    def exposure(self, extra_metric: str = "", extra: int = 0) -> int:
        """What is used and held costs at worst, with ``extra`` units of a metric held beside."""
        return sum(
            worst(table, self.used[metric], self.h(metric) + (extra if metric == extra_metric else 0))
            for metric, table in (self.live | self.gone).items()
        )

    def available(self) -> int | None:
        """What used and held units may cost in all; None without a limit."""
        assert self.terms is not None
        if self.terms.ceiling is None:
            return None
        return self.terms.ceiling - (self.older_cost if self.terms.count_k else 0)

    # Periods

    def roll(self, now_ms: int) -> None:
        if now_ms < self.end_ms:
            return
        asleep_since: int | None = None
        while now_ms >= self.end_ms:
            length = self.end_ms - self.start_ms
            self.close_period(self.end_ms, record_at=asleep_since)
            while self.following_ms and self.following_ms[0] <= self.start_ms:
                self.following_ms.pop(0)
            if self.following_ms:
                self.end_ms = self.following_ms.pop(0)
            else:
                self.end_ms = self.start_ms + length
                # From here on nothing can have been used: all further periods share the first one's record.
                asleep_since = self.start_ms if asleep_since is None else asleep_since

    def close_period(self, new_start_ms: int, record_at: int | None = None) -> None:
        record = self.start_ms if record_at is None else record_at
        for metric in sorted(set(self.used) | set(self.live) | set(self.gone)):
            table = self.live.get(metric) or self.gone.get(metric)
            units = self.used[metric]
            price = 0 if table is None else min(cost(table, units), MAX_INT)
            if units or price:
                before = self.closed.get((record, metric), (0, 0)) if record_at is not None else (0, 0)
                self.closed[record, metric] = (units + before[0], price + before[1])
            self.older_cost = min(self.older_cost + price, MAX_INT)
            if metric in self.gone and not self.h(metric):
                del self.gone[metric]
        self.used.clear()
        self.start_ms = new_start_ms

    # Limits

    def next_tat(self, now_us: int) -> tuple[int, int]:
        """The theoretical arrival time after one more request, and for how long that request would have to wait."""
        assert self.terms is not None
        interval = self.terms.rate_interval_us
        tat = max(self.tat_us, now_us) + interval
        return tat, max(0, tat - now_us - interval * self.terms.burst)

    def rate_left(self, now_us: int) -> int:
        assert self.terms is not None
        if not self.terms.rate_interval_us:
            return -1
        before, passed = self.tat_us, 0
        while True:
            self.tat_us, wait_us = self.next_tat(now_us)
            if wait_us:
                break
            passed += 1
        self.tat_us = before
        return passed

    def counted_today(self, now_us: int) -> int:
        return self.day_count if self.day == now_us // DAY_US else 0

    def day_left(self, now_us: int) -> int:
        assert self.terms is not None
        return max(0, self.terms.day_limit - self.counted_today(now_us)) if self.terms.day_limit else -1


@dataclass
class Instance:
    epoch: int | None = None
    seq: int = 0
    reply: Reply | None = None
    heartbeat_ms: int | None = None
    expires: bool = False


class Ledger:
    """The model. Every call takes the ledger's clock, ``now_us``, as an argument."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.instances: dict[str, Instance] = defaultdict(Instance)
        self.charged: set[tuple[str, str]] = set()
        """Idempotency keys: (account, scope)."""
        self.outbox: list[Entry] = []

    def account(self, name: str) -> Account:
        return self.accounts.setdefault(name, Account(name))

    # Instances

    def register(self, name: str, accounts: frozenset[str], now_us: int) -> tuple[int, int]:
        instance = self.instances[name]
        instance.epoch = (instance.epoch or 0) + 1
        instance.expires = False
        if self._give_back(name, accounts, now_us):
            if instance.heartbeat_ms is None:
                instance.heartbeat_ms = 0
            raise LedgerError("HELD")
        instance.heartbeat_ms = now_us // 1000
        return instance.epoch, instance.seq

    def heartbeat(self, name: str, epoch: int, now_us: int) -> int:
        instance = self.instances[name]
        if instance.epoch != epoch:
            return 0
        instance.heartbeat_ms = now_us // 1000
        return 1

    def reap(self, name: str, ttl_ms: int, accounts: frozenset[str], now_us: int) -> int:
        instance = self.instances[name]
        beat = instance.heartbeat_ms
        if ttl_ms >= 0 and beat is not None and now_us // 1000 - beat < ttl_ms:
            return -1
        remain = self._give_back(name, accounts, now_us)
        if instance.epoch is not None or instance.seq:
            instance.epoch = (instance.epoch or 0) + 1
        if not remain:
            instance.heartbeat_ms = None
            instance.expires = True
        return remain

    def shares(self, instance: str) -> dict[tuple[str, str], int]:
        """(account, metric) to the units that the instance holds."""
        return {
            (account.name, metric): units
            for account in self.accounts.values()
            for (holder, metric), units in account.held.items()
            if holder == instance and units
        }

    def _give_back(self, instance: str, accounts: frozenset[str], now_us: int) -> int:
        remain = 0
        for name, metric in self.shares(instance):
            if name in accounts:
                account = self.accounts[name]
                account.roll(now_us // 1000)
                del account.held[instance, metric]
            else:
                remain += 1
        return remain

    # The loader

    def load(self, load: Load, now_us: int) -> Loaded | Conflict:
        # A copy: a load that is refused leaves no trace.
        account = deepcopy(self.accounts.get(load.account) or Account(load.account))
        known = account.terms is not None
        stored_digits = load.digits if account.digits is None else account.digits
        if account.version != load.expected_version or (known and stored_digits != load.expected_digits):
            return Conflict(account.version, stored_digits)
        if load.period_end_ms <= load.period_start_ms or load.digits < stored_digits:
            raise LedgerError("INVALID")
        if known:
            account.roll(now_us // 1000)
            if load.older_cost is not None and load.expected_start_ms not in (None, account.start_ms):
                self.accounts[load.account] = account
                return Conflict(account.version, stored_digits)
        scale = 10 ** (load.digits - stored_digits)
        older = account.older_cost * scale
        behind = known and load.period_start_ms < account.start_ms
        if load.older_cost is not None and not (behind and load.expected_start_ms is None):
            older = load.older_cost
        if known and load.period_start_ms > account.start_ms:
            before = account.older_cost
            account.close_period(load.period_start_ms)
            older += (account.older_cost - before) * scale
        if not behind:
            account.start_ms, account.end_ms = load.period_start_ms, load.period_end_ms
        account.older_cost = older
        if abs(older) > MAX_INT:
            raise LedgerError("OVERFLOW")
        account.gone = {
            metric: [table[0], *self.scaled(table, scale)]
            for metric, table in (account.gone | account.live).items()
            if metric not in load.prices
        }
        if any(number > MAX_INT for table in account.gone.values() for number in map(int, table[1:])):
            raise LedgerError("OVERFLOW")
        account.live = dict(load.prices)
        account.following_ms = list(load.periods)
        account.digits = load.digits
        account.version += 1
        account.terms = load
        self.accounts[load.account] = account
        return Loaded(account.version)

    @staticmethod
    def scaled(table: Table, scale: int) -> list[int]:
        """The numbers of a table with its money, and nothing else, multiplied."""
        numbers = [int(value) for value in table[1:]]
        is_money = {"s": [True], "p": [False, False, True]}.get(str(table[0]), [False, True, True] * len(numbers))
        return [value * scale if money else value for value, money in zip(numbers, is_money, strict=False)]

    # Batches

    def batch(self, name: str, batch: Batch, now_us: int) -> Reply:
        if len(batch.groups) + len(batch.singles) > PARTS_MAX:
            raise LedgerError("LIMIT")
        instance = self.instances[name]
        if batch.seq == instance.seq and instance.reply is not None:
            return instance.reply
        if batch.seq <= instance.seq:
            raise LedgerError("STALE")
        registered = instance.epoch is not None and batch.epoch == instance.epoch
        if instance.epoch is None:
            instance.expires = True
        events: list[Event] = []
        groups = tuple(self._group(name, group, registered, now_us, events) for group in batch.groups)
        singles = tuple(self._single(name, single, registered, now_us, events) for single in batch.singles)
        if events:
            entry = Entry(f"{name}.00", batch.seq, now_us // 1000, tuple(tuple(e.as_json()) for e in events))
            self.outbox.append(entry)
        instance.seq = batch.seq
        instance.reply = Reply(registered, now_us, groups, singles)
        return instance.reply

    def _enter(self, name: str, now_us: int) -> Account:
        account = self.account(name)
        account.roll(now_us // 1000)
        return account

    def _group(self, instance: str, group: Group, registered: bool, now_us: int, events: list[Event]) -> Summary | None:
        account = self._enter(group.account, now_us)
        account.used[group.metric] += group.settled + group.late
        events += group.events
        if registered:
            self._take_share(account, instance, group.metric, group.settled + group.released)
        outcomes = tuple(
            self._hold(account, instance, group.metric, units, registered, now_us) for units in group.holds
        )
        return self._summary(account, group.known_version, outcomes, now_us) if group.holds else None

    def _single(self, instance: str, single: Single, registered: bool, now_us: int, events: list[Event]) -> Summary:
        account = self._enter(single.account, now_us)
        key = (single.account, single.scope)
        if single.kind == HOLD:
            outcome = self._hold(account, instance, single.metric, single.units, registered, now_us, key)
            return self._summary(account, single.known_version, (outcome,), now_us)
        if single.kind == SETTLE and registered:
            self._take_share(account, instance, single.metric, single.units)
        if key in self.charged:
            return Summary(None, -1, -1, (Outcome(Code.REPEAT),))
        self.charged.add(key)
        account.used[single.metric] += single.units
        assert single.event is not None
        events.append(single.event)
        return Summary(None, -1, -1, (Outcome(Code.GRANTED),))

    @staticmethod
    def _take_share(account: Account, instance: str, metric: str, units: int) -> None:
        share = account.held[instance, metric]
        account.held[instance, metric] = share - min(share, units)

    def _hold(
        self,
        account: Account,
        instance: str,
        metric: str,
        units: int,
        registered: bool,
        now_us: int,
        key: tuple[str, str] | None = None,
    ) -> Outcome:
        terms = account.terms
        if not registered:
            return Outcome(Code.UNREGISTERED)
        if terms is None:
            return Outcome(Code.UNKNOWN)
        if terms.status:
            return Outcome(Code.SUSPENDED if terms.status == 1 else Code.CLOSED)
        available = account.available()
        exposure = account.exposure()
        if key is not None and key in self.charged:
            return Outcome(Code.REPEAT, -1 if available is None else max(0, available - exposure))
        if metric not in account.live:
            return Outcome(Code.UNPRICED)
        if terms.day_limit and account.counted_today(now_us) >= terms.day_limit:
            return Outcome(Code.DAILY, DAY_US - now_us % DAY_US)
        tat_us, wait_us = account.next_tat(now_us)
        if terms.rate_interval_us and wait_us:
            return Outcome(Code.RATE, wait_us)
        after = account.exposure(metric, units)
        if available is None:
            if after > MAX_INT:
                return Outcome(Code.CREDIT, 0, min(after - exposure, MAX_INT))
        elif after > available:
            return Outcome(Code.CREDIT, max(-MAX_INT, available - exposure), min(after - exposure, MAX_INT))
        account.held[instance, metric] += units
        if terms.rate_interval_us:
            account.tat_us = tat_us
        if terms.day_limit:
            account.day_count = account.counted_today(now_us) + 1
            account.day = now_us // DAY_US
        return Outcome(Code.GRANTED, -1 if available is None else available - after, after - exposure)

    @staticmethod
    def _summary(account: Account, known_version: int, outcomes: tuple[Outcome, ...], now_us: int) -> Summary:
        if account.terms is None:
            return Summary(None, -1, -1, outcomes)
        info = None if known_version == account.version else _info(account)
        return Summary(info, account.rate_left(now_us), account.day_left(now_us), outcomes)

    # What is stored

    def state(self) -> State:
        """Everything, in the form in which the driver reads it from Valkey."""
        return State(
            {name: _account_state(account) for name, account in self.accounts.items() if _is_stored(account)},
            {
                name: InstanceState(
                    instance.epoch or 0, instance.seq, self.shares(name), instance.heartbeat_ms, instance.expires
                )
                for name, instance in self.instances.items()
                if instance.epoch is not None or instance.seq
            },
            tuple(self.outbox),
        )


def _is_stored(account: Account) -> bool:
    return account.terms is not None or any(account.used.values())


def _info(account: Account) -> str:
    assert account.terms is not None
    return account.terms.info.replace('"version":0', f'"version":{account.version}', 1)


def _account_state(account: Account) -> AccountState:
    terms = account.terms
    metrics = {metric: MetricState(account.used.get(metric, 0), account.h(metric)) for metric in _metrics(account)}
    return AccountState(
        version=account.version,
        older_cost=account.older_cost,
        start_ms=account.start_ms,
        end_ms=account.end_ms,
        tat_us=account.tat_us,
        day=account.day,
        day_count=account.day_count,
        metrics={metric: state for metric, state in metrics.items() if state != MetricState(0, 0)},
        live=account.live,
        gone=account.gone,
        periods=tuple(account.following_ms),
        closed=account.closed,
        terms=None
        if terms is None
        else (
            account.version,
            terms.status,
            terms.ceiling,
            int(terms.count_k),
            terms.rate_interval_us,
            terms.burst,
            terms.day_limit,
        ),
        digits=account.digits,
        info=None if terms is None else _info(account),
    )


def _metrics(account: Account) -> set[str]:
    return set(account.used) | {metric for _, metric in account.held}
