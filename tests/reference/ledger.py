"""The ledger as docs/ledger.md describes it, in plain Python and exact integers, one call at a time.

It keeps what the rules talk about (who holds what, what was used in this period) rather than what the scripts store:
held units are always the sum of the epochs' shares, and how many calls a rate limit leaves is counted by letting
them pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from zlib import crc32

from tests.reference.account import DAY_US, Account, Subscription
from tests.reference.messages import (
    HOLD,
    RELEASE,
    REPLAY,
    SETTLE,
    Batch,
    Code,
    Conflict,
    Entry,
    Event,
    Fenced,
    Group,
    HomeState,
    Inexact,
    InstanceState,
    LedgerError,
    Load,
    LoadAnswer,
    Loaded,
    Mark,
    Outcome,
    Plan,
    Reply,
    Single,
    State,
    Summary,
)
from tests.reference.pricing import MAX_INT, Table, money_of, scaled

PARTS_MAX = 3000
HOUR_MS = 3_600_000
HOME = 0
PARTITIONS = 64
EPOCHS = 1024
CLOCK_HOLDS_US = 5_000_000
IDEMPOTENCY_TTL_MS = 86_400_000
TOKENS = 4096


@dataclass
class Instance:
    """``epoch``: 0 after it departed, None before it came."""

    epoch: int | None = None
    seq: int = 0
    reply: Reply | None = None
    held: int = 0
    heartbeat_ms: int | None = None
    expires: bool = False


@dataclass
class Clock:
    """Of a partition. It never goes back less than ``CLOCK_HOLDS_US``."""

    latest_us: int = 0
    stepped: tuple[int, int] | None = None

    def now(self, server_us: int) -> tuple[int, tuple[int, int] | None]:
        back = self.latest_us - server_us
        if back > CLOCK_HOLDS_US:
            return server_us, (self.latest_us, server_us)
        return max(self.latest_us, server_us), None

    def note(self, now_us: int, stepped: tuple[int, int] | None) -> None:
        self.latest_us = now_us
        self.stepped = stepped or self.stepped


@dataclass
class Turn:
    """What one batch works on: copies, so that an error leaves no trace."""

    epoch: int
    registered: bool
    now_us: int
    held: int
    numbers: dict[str, int]
    accounts: dict[str, Account]
    events: list[Event]
    charged: set[str]
    unpaid_interval_us: int
    unpaid_burst: int
    current: int = 0

    @property
    def now_ms(self) -> int:
        return self.now_us // 1000


class Unusable(Exception):
    """An account cannot be read or charged."""


class Ledger:
    """The model. Every call takes the server's clock, ``now_us``, as an argument."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.instances: dict[str, Instance] = defaultdict(Instance)
        self.outbox: list[Entry] = []
        self.clocks: dict[int, Clock] = defaultdict(Clock)
        self.epochs = 0
        self.departed: dict[int, int] = {}
        """Epoch to units."""
        self.unreadable: set[str] = set()

    def account(self, name: str) -> Account:
        return self.accounts.setdefault(name, Account(name))

    # Instances

    def register(self, name: str, now_us: int) -> tuple[int, int]:
        now_us, stepped = self.clocks[HOME].now(now_us)
        instance = self.instances[name]
        self.epochs = max(self.epochs + 1, now_us // 1000)
        if instance.epoch and instance.held:
            self.departed[instance.epoch] = instance.held
        instance.epoch, instance.held = self.epochs * EPOCHS + HOME, 0
        instance.heartbeat_ms, instance.expires = now_us // 1000, False
        self.clocks[HOME].note(now_us, stepped)
        return instance.epoch, instance.seq

    def heartbeat(self, name: str, epoch: int, now_us: int) -> int:
        instance = self.instances[name]
        if not epoch or instance.epoch != epoch:
            return 0
        now_us, stepped = self.clocks[HOME].now(now_us)
        instance.heartbeat_ms = now_us // 1000
        self.clocks[HOME].note(now_us, stepped)
        return 1

    def reap(self, name: str, ttl_ms: int, now_us: int) -> int:
        now_us, stepped = self.clocks[HOME].now(now_us)
        instance = self.instances[name]
        now_ms, beat = now_us // 1000, instance.heartbeat_ms
        if ttl_ms >= 0 and beat is not None and now_ms - min(beat, now_ms) < ttl_ms:
            if beat > now_ms:
                instance.heartbeat_ms = now_ms
                self.clocks[HOME].note(now_us, stepped)
            return -1
        held = instance.held
        if instance.epoch and held:
            self.departed[instance.epoch] = held
        if instance.epoch is not None:
            instance.epoch, instance.held, instance.expires = 0, 0, True
        instance.heartbeat_ms = None
        self.clocks[HOME].note(now_us, stepped)
        return held

    def give_back(self, accounts: Iterable[str], now_us: int) -> int:
        now_us, stepped = self.clocks[HOME].now(now_us)
        names = sorted(accounts)
        for number, name in enumerate(names, 1):
            if name in self.unreadable:
                raise LedgerError(f"ACCOUNT {number}")
        for name in names:
            if name in self.accounts:
                account = self.accounts[name]
                account.roll(now_us // 1000)
                for epoch, units in account.give_back(set(self.departed)).items():
                    self.departed[epoch] -= units
        self.departed = {epoch: units for epoch, units in self.departed.items() if units > 0}
        self.clocks[HOME].note(now_us, stepped)
        return sum(self.departed.values())

    # The loader

    def load(self, load: Load, now_us: int) -> LoadAnswer:
        clock = self.clocks[crc32(load.account.encode()) % PARTITIONS]
        now_us, stepped = clock.now(now_us)
        now_ms = now_us // 1000
        # A copy: a load that is refused leaves no trace.
        account = deepcopy(self.accounts.get(load.account) or Account(load.account))
        known = account.policy is not None
        stored_digits = load.digits if account.digits is None else account.digits
        if account.version != load.expected_version or (known and stored_digits != load.expected_digits):
            return Conflict(account.version, stored_digits)
        if load.fence is not None and load.fence < (account.fence or 0):
            return Fenced(account.fence or 0)
        names = [plan.name for plan in load.plans]
        if not names or len(set(names)) < len(names) or any(plan.end_ms <= plan.start_ms for plan in load.plans):
            raise LedgerError("INVALID")
        stored = {subscription.name: subscription for subscription in account.subscriptions} if known else {}
        if known:
            began = {name: subscription.start_ms for name, subscription in stored.items()}
            account.roll(now_ms)
            moved = {name for name, subscription in stored.items() if subscription.start_ms != began[name]}
            if load.unsettled is not None and moved - set(names):
                # The caller's sum lacks the last periods of a subscription that the load lacks.
                self.accounts[load.account] = account
                return Conflict(account.version, stored_digits)
            for plan in load.plans:
                expected = None if load.unsettled is None else plan.expected_start_ms
                if expected is not None and plan.name in stored and expected != stored[plan.name].start_ms:
                    self.accounts[load.account] = account
                    return Conflict(account.version, stored_digits)
        before = account.unsettled
        behind = False
        starts = {}
        for plan in load.plans:
            starts[plan.name] = (plan.start_ms, plan.end_ms)
            if plan.name not in stored:
                continue
            subscription = stored[plan.name]
            if plan.start_ms > subscription.start_ms:
                account.close_period(subscription, plan.start_ms)
            elif plan.start_ms < subscription.start_ms:
                behind = behind or plan.expected_start_ms is None
                starts[plan.name] = (subscription.start_ms, subscription.end_ms)
        left = [subscription for subscription in stored.values() if subscription.name not in names]
        for subscription in left:
            subscription.gone |= subscription.live
            subscription.live = {}
            account.close_period(subscription, max(now_ms, subscription.start_ms + 1))
        change = Decimals(stored_digits, load.digits)
        older = change.money(before) + change.money(account.unsettled - before)
        if load.unsettled is not None and not behind:
            change.exact = True
            older = load.unsettled + change.money(account.unsettled - before)
        if abs(older) > MAX_INT:
            raise LedgerError("OVERFLOW")
        kept = dict(stored)
        if not known:
            kept[names[0]] = account.subscriptions[0]
        account.subscriptions = [
            self._planned(plan, starts[plan.name], kept.get(plan.name), change, counts=not known) for plan in load.plans
        ]
        for subscription in left:
            if any(subscription.held.values()):
                subscription.gone = change.tables(subscription.gone)
                subscription.end_ms, subscription.following_ms = MAX_INT, []
                account.subscriptions.append(subscription)
        account.closed = {
            of: (units, min(change.money(price), MAX_INT)) for of, (units, price) in account.closed.items()
        }
        if not change.exact:
            return Inexact(account.version, stored_digits)
        account.unsettled = older
        account.digits = load.digits
        account.version += 1
        account.policy = load
        if load.fence is not None:
            account.fence = load.fence
        self.accounts[load.account] = account
        clock.note(now_us, stepped)
        return Loaded(account.version)

    @staticmethod
    def _planned(
        plan: Plan, period: tuple[int, int], kept: Subscription | None, change: Decimals, *, counts: bool
    ) -> Subscription:
        subscription = kept or Subscription()
        subscription.name = plan.name
        subscription.start_ms, subscription.end_ms = period
        subscription.following_ms = list(plan.following)
        tables = subscription.tables()
        subscription.gone = change.tables({m: table for m, table in tables.items() if m not in plan.prices})
        subscription.live = dict(plan.prices)
        if counts:
            for metric, units in plan.counted.items():
                subscription.used[metric] = max(subscription.used[metric], units)
        return subscription

    # Batches

    def batch(self, name: str, batch: Batch, now_us: int) -> Reply:
        if len(batch.groups) + len(batch.singles) > PARTS_MAX:
            raise LedgerError("LIMIT")
        instance = self.instances[name]
        if batch.seq == instance.seq and instance.reply is not None:
            return instance.reply
        if batch.seq <= instance.seq:
            raise LedgerError("STALE")
        now_us, stepped = self.clocks[HOME].now(now_us)
        parts: list[Group | Single] = [*batch.groups, *batch.singles]
        touched = list(dict.fromkeys([*(part.account for part in parts), *(name for name, _ in batch.unpaid)]))
        turn = Turn(
            epoch=batch.epoch,
            registered=bool(batch.epoch) and batch.epoch == instance.epoch,
            now_us=now_us,
            held=instance.held,
            numbers={account: number for number, account in enumerate(touched, 1)},
            accounts={account: deepcopy(self.account(account)) for account in touched},
            events=[],
            charged=set(),
            unpaid_interval_us=batch.unpaid_interval_us,
            unpaid_burst=batch.unpaid_burst,
        )
        try:
            for account, answers in batch.unpaid:
                self._enter(account, turn).count_unpaid(answers, turn.unpaid_interval_us, turn.unpaid_burst, now_us)
            groups = tuple(self._group(group, turn) for group in batch.groups)
            singles = tuple(
                self._single(single, batch.seq * TOKENS + place, turn) for place, single in enumerate(batch.singles, 1)
            )
        except Unusable:
            raise LedgerError(f"ACCOUNT {turn.current}") from None
        self.accounts |= turn.accounts
        if turn.events:
            times = {a: turn.accounts[a].now(turn.now_ms) for a in turn.charged}
            times = {a: time for a, time in times.items() if time != turn.now_ms}
            events = tuple(tuple(event.as_json()) for event in turn.events)
            self.outbox.append(Entry(f"{name}.{HOME:02d}", batch.seq, turn.now_ms, events, times))
        if instance.epoch is None:
            instance.expires = True
        if turn.registered:
            instance.held = turn.held
        instance.seq = batch.seq
        instance.reply = Reply(turn.registered, now_us, groups, singles, stepped)
        self.clocks[HOME].note(now_us, stepped)
        return instance.reply

    def _enter(self, name: str, turn: Turn) -> Account:
        turn.current = turn.numbers[name]
        if name in self.unreadable:
            raise Unusable
        account = turn.accounts[name]
        account.roll(turn.now_ms)
        return account

    def _group(self, group: Group, turn: Turn) -> Summary | None:
        account = self._enter(group.account, turn)
        if turn.registered:
            turn.held -= account.take_share(turn.epoch, group.metric, group.settled + group.released)
        if group.settled + group.late:
            self._charge(account, group.metric, group.settled + group.late, turn)
        turn.events += group.events
        outcomes = tuple(self._hold(account, group.metric, units, turn) for units in group.holds)
        return self._summary(account, group.known_version, outcomes, turn.now_us) if group.holds else None

    def _single(self, single: Single, token: int, turn: Turn) -> Summary:
        account = self._enter(single.account, turn)
        now_ms = turn.now_ms
        until_ms = now_ms + IDEMPOTENCY_TTL_MS
        code = Code.GRANTED
        if single.kind == HOLD:
            decided, owns = self._key_decides(account, single, now_ms)
            outcome = self._hold(account, single.metric, single.units, turn, decided)
            owns = owns and outcome.code == Code.GRANTED
            if owns:
                account.marks[single.scope] = Mark(until_ms, single.body, turn.epoch, token)
            elif outcome.code == Code.REPEAT:
                self._note_repeat(account, single.scope)
            summary = self._summary(account, single.known_version, (outcome,), turn.now_us)
            return replace(summary, token=token if owns else 0)
        if single.kind in (SETTLE, RELEASE):
            if turn.registered and single.epoch == turn.epoch:
                turn.held -= account.take_share(turn.epoch, single.metric, single.units)
            stored = account.marks.get(single.scope)
            is_own = stored is not None and (stored.epoch, stored.token) == (single.epoch, single.token)
            if single.kind == RELEASE:
                if is_own:
                    del account.marks[single.scope]
            elif is_own or account.mark(single.scope, now_ms) is None:
                account.marks[single.scope] = Mark(until_ms, single.body)
        elif single.record and account.mark(single.record, now_ms):
            code = Code.REPEAT
        else:
            assert single.kind == REPLAY
            if single.record:
                account.marks[single.record] = Mark(until_ms)
            mark = account.mark(single.scope, now_ms) if single.scope else None
            if mark and not mark.epoch and mark.body == single.body and mark.repeats < single.repeats_max:
                self._note_repeat(account, single.scope)
                code = Code.REPEAT
            elif single.scope and (mark is None or mark.epoch):
                account.marks[single.scope] = Mark(until_ms, single.body)
        if code == Code.GRANTED and single.event is not None:
            self._charge(account, single.metric, single.units, turn)
            turn.events.append(single.event)
        return Summary(None, -1, -1, (Outcome(code),))

    @staticmethod
    def _key_decides(account: Account, single: Single, now_ms: int) -> tuple[Code | None, bool]:
        """What the key makes of a hold, None if nothing; and whether it would be the hold's."""
        mark = account.mark(single.scope, now_ms)
        if mark is None:
            return None, True
        if mark.body != single.body:
            return (Code.MISMATCH if single.refuses else None), False
        if mark.epoch:
            return (Code.UNDER_WAY if single.refuses else None), False
        return (Code.REPEAT if mark.repeats < single.repeats_max else None), False

    @staticmethod
    def _note_repeat(account: Account, scope: str) -> None:
        mark = account.marks[scope]
        account.marks[scope] = replace(mark, repeats=mark.repeats + 1)

    @staticmethod
    def _charge(account: Account, metric: str, units: int, turn: Turn) -> None:
        used = account.subscription_for(metric).used
        hour = account.now(turn.now_ms) // HOUR_MS, metric
        if max(used[metric], account.hours[hour]) + units > MAX_INT:
            raise Unusable
        used[metric] += units
        account.hours[hour] += units
        turn.charged.add(account.name)

    @staticmethod
    def _hold(account: Account, metric: str, units: int, turn: Turn, decided: Code | None = None) -> Outcome:
        policy = account.policy
        if not turn.registered:
            return Outcome(Code.UNREGISTERED)
        if policy is None:
            return Outcome(Code.UNKNOWN)
        if policy.status:
            return Outcome(Code.SUSPENDED if policy.status == 1 else Code.CLOSED)
        available = account.available()
        exposure = account.exposure()
        subscription = account.subscription_for(metric)
        if decided != Code.REPEAT and metric not in subscription.live:
            return Outcome(Code.UNPRICED)
        now_us = turn.now_us
        if policy.day_limit and account.counted_today(now_us) >= policy.day_limit:
            return Outcome(Code.DAILY, (account.today(now_us) + 1) * DAY_US - now_us)
        tat_us, wait_us = account.next_tat(now_us)
        if policy.rate_interval_us and wait_us:
            account.tat_us = min(account.tat_us, tat_us - policy.rate_interval_us)
            return Outcome(Code.RATE, wait_us)
        if wait_us := account.unpaid_wait(turn.unpaid_interval_us, turn.unpaid_burst, now_us):
            return Outcome(Code.UNPAID, wait_us)
        if decided in (Code.MISMATCH, Code.UNDER_WAY):
            return Outcome(decided)
        if decided == Code.REPEAT:
            Ledger._count_request(account, tat_us, now_us)
            return Outcome(Code.REPEAT, -1 if available is None else max(0, available - exposure))
        after = account.exposure(metric, units)
        if available is None:
            if after > MAX_INT:
                return Outcome(Code.CREDIT, 0, min(after - exposure, MAX_INT))
        elif after > available:
            return Outcome(Code.CREDIT, max(-MAX_INT, available - exposure), min(after - exposure, MAX_INT))
        if subscription.used[metric] + subscription.held_units(metric) + units > MAX_INT:
            return Outcome(Code.CREDIT, 0, min(after - exposure, MAX_INT))
        subscription.held[turn.epoch, metric] += units
        turn.held += units
        Ledger._count_request(account, tat_us, now_us)
        return Outcome(Code.GRANTED, -1 if available is None else available - after, after - exposure)

    @staticmethod
    def _count_request(account: Account, tat_us: int, now_us: int) -> None:
        assert account.policy is not None
        if account.policy.rate_interval_us:
            account.tat_us = tat_us
        if account.policy.day_limit:
            account.day_count = account.counted_today(now_us) + 1
            account.day = account.today(now_us)

    @staticmethod
    def _summary(account: Account, known_version: int, outcomes: tuple[Outcome, ...], now_us: int) -> Summary:
        policy = account.policy
        knows = known_version == account.version
        if policy is None or (knows and not policy.rate_interval_us and not policy.day_limit):
            return Summary(None, -1, -1, outcomes)
        view = None if knows else policy.view
        return Summary(view, account.rate_left(now_us), account.day_left(now_us), outcomes, account.version)

    # What is stored

    def state(self) -> State:
        """Everything, in the form in which the driver reads it from Valkey."""
        home = self.clocks[HOME]
        return State(
            {name: account.state() for name, account in self.accounts.items() if account.is_stored()},
            {
                name: InstanceState(
                    instance.epoch or 0, instance.seq, instance.held, instance.heartbeat_ms, instance.expires
                )
                for name, instance in self.instances.items()
                if instance.epoch is not None or instance.seq
            },
            tuple(self.outbox),
            HomeState(home.latest_us, home.stepped, self.epochs, dict(self.departed)),
        )


@dataclass
class Decimals:
    """A change of an account's decimals. ``exact`` ends when something cannot be told by them."""

    before: int
    after: int
    exact: bool = True

    def money(self, amount: int) -> int:
        if self.after >= self.before:
            return amount * int(10 ** (self.after - self.before))
        told, rest = divmod(amount, int(10 ** (self.before - self.after)))
        self.exact = self.exact and rest == 0
        return told

    def tables(self, tables: dict[str, Table]) -> dict[str, Table]:
        changed: dict[str, Table] = {metric: scaled(table, self.money) for metric, table in tables.items()}
        if any(amount > MAX_INT for table in changed.values() for amount in money_of(table)):
            raise LedgerError("OVERFLOW")
        return changed
