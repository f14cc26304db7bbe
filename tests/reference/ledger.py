"""The ledger as docs/ledger.md describes it, in plain Python and exact integers, one call at a time.

It keeps what the rules talk about (who holds what, what was used in this period) rather than what the scripts store:
held units are always the sum of the instances' shares, and how many calls a rate limit leaves is counted by letting
them pass.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from copy import deepcopy
from dataclasses import dataclass

from tests.reference.account import DAY_US, Account
from tests.reference.messages import (
    HOLD,
    SETTLE,
    Batch,
    Code,
    Conflict,
    Entry,
    Event,
    Group,
    InstanceState,
    LedgerError,
    Load,
    Loaded,
    Outcome,
    Reply,
    Single,
    State,
    Summary,
)
from tests.reference.pricing import MAX_INT, scaled

PARTS_MAX = 3000
HOUR_MS = 3_600_000


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
        self.hours: Counter[tuple[int, str, str]] = Counter()
        """(hour, account, metric) to units."""

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
        known = account.policy is not None
        stored_digits = load.digits if account.digits is None else account.digits
        if account.version != load.expected_version or (known and stored_digits != load.expected_digits):
            return Conflict(account.version, stored_digits)
        if load.period_end_ms <= load.period_start_ms or load.digits < stored_digits:
            raise LedgerError("INVALID")
        if known:
            account.roll(now_us // 1000)
            if load.unsettled is not None and load.expected_start_ms not in (None, account.start_ms):
                self.accounts[load.account] = account
                return Conflict(account.version, stored_digits)
        scale = 10 ** (load.digits - stored_digits)
        older = account.unsettled * scale
        behind = known and load.period_start_ms < account.start_ms
        if load.unsettled is not None and not (behind and load.expected_start_ms is None):
            older = load.unsettled
        if known and load.period_start_ms > account.start_ms:
            before = account.unsettled
            account.close_period(load.period_start_ms)
            older += (account.unsettled - before) * scale
        if not behind:
            account.start_ms, account.end_ms = load.period_start_ms, load.period_end_ms
        account.unsettled = older
        if abs(older) > MAX_INT:
            raise LedgerError("OVERFLOW")
        account.closed = {of: (units, min(price * scale, MAX_INT)) for of, (units, price) in account.closed.items()}
        account.gone = {
            metric: scaled(table, scale)
            for metric, table in (account.gone | account.live).items()
            if metric not in load.prices
        }
        if any(number > MAX_INT for table in account.gone.values() for number in map(int, table[1:])):
            raise LedgerError("OVERFLOW")
        account.live = dict(load.prices)
        account.following_ms = list(load.periods)
        account.digits = load.digits
        account.version += 1
        account.policy = load
        self.accounts[load.account] = account
        return Loaded(account.version)

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
        self._charge(account, group.metric, group.settled + group.late, now_us)
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
        self._charge(account, single.metric, single.units, now_us)
        assert single.event is not None
        events.append(single.event)
        return Summary(None, -1, -1, (Outcome(Code.GRANTED),))

    def _charge(self, account: Account, metric: str, units: int, now_us: int) -> None:
        account.used[metric] += units
        self.hours[now_us // 1000 // HOUR_MS, account.name, metric] += units

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
        policy = account.policy
        if not registered:
            return Outcome(Code.UNREGISTERED)
        if policy is None:
            return Outcome(Code.UNKNOWN)
        if policy.status:
            return Outcome(Code.SUSPENDED if policy.status == 1 else Code.CLOSED)
        available = account.available()
        exposure = account.exposure()
        repeated = key is not None and key in self.charged
        if not repeated and metric not in account.live:
            return Outcome(Code.UNPRICED)
        if policy.day_limit and account.counted_today(now_us) >= policy.day_limit:
            return Outcome(Code.DAILY, DAY_US - now_us % DAY_US)
        tat_us, wait_us = account.next_tat(now_us)
        if policy.rate_interval_us and wait_us:
            return Outcome(Code.RATE, wait_us)
        if repeated:
            self._count_request(account, tat_us, now_us)
            return Outcome(Code.REPEAT, -1 if available is None else max(0, available - exposure))
        after = account.exposure(metric, units)
        if available is None:
            if after > MAX_INT:
                return Outcome(Code.CREDIT, 0, min(after - exposure, MAX_INT))
        elif after > available:
            return Outcome(Code.CREDIT, max(-MAX_INT, available - exposure), min(after - exposure, MAX_INT))
        account.held[instance, metric] += units
        self._count_request(account, tat_us, now_us)
        return Outcome(Code.GRANTED, -1 if available is None else available - after, after - exposure)

    @staticmethod
    def _count_request(account: Account, tat_us: int, now_us: int) -> None:
        assert account.policy is not None
        if account.policy.rate_interval_us:
            account.tat_us = tat_us
        if account.policy.day_limit:
            account.day_count = account.counted_today(now_us) + 1
            account.day = now_us // DAY_US

    @staticmethod
    def _summary(account: Account, known_version: int, outcomes: tuple[Outcome, ...], now_us: int) -> Summary:
        if account.policy is None:
            return Summary(None, -1, -1, outcomes)
        info = None if known_version == account.version else account.info()
        return Summary(info, account.rate_left(now_us), account.day_left(now_us), outcomes)

    # What is stored

    def state(self) -> State:
        """Everything, in the form in which the driver reads it from Valkey."""
        return State(
            {name: account.state() for name, account in self.accounts.items() if account.is_stored()},
            {
                name: InstanceState(
                    instance.epoch or 0, instance.seq, self.shares(name), instance.heartbeat_ms, instance.expires
                )
                for name, instance in self.instances.items()
                if instance.epoch is not None or instance.seq
            },
            tuple(self.outbox),
            +self.hours,
        )
