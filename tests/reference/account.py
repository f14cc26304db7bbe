"""One account of the model: what it used and holds, what that costs, when its periods end, what its limits leave."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from tests.reference.messages import AccountState, Load, Mark, MetricState, SubscriptionState
from tests.reference.pricing import MAX_INT, Table, cost, worst

DAY_US = 86_400 * 1_000_000
UNPAID_DEBT_US = 60 * 1_000_000


@dataclass
class Subscription:
    name: str = ""
    start_ms: int = 0
    end_ms: int = MAX_INT
    following_ms: list[int] = field(default_factory=list)
    used: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    held: dict[tuple[int, str], int] = field(default_factory=lambda: defaultdict(int))
    """(epoch, metric) to units."""
    live: dict[str, Table] = field(default_factory=dict)
    gone: dict[str, Table] = field(default_factory=dict)

    def held_units(self, metric: str) -> int:
        return sum(units for (_, of), units in self.held.items() if of == metric)

    def tables(self) -> dict[str, Table]:
        return self.live | self.gone

    def exposure(self, extra_metric: str = "", extra: int = 0) -> int:
        """What is used and held costs at worst, with ``extra`` units of a metric held beside."""
        return sum(
            worst(table, self.used[metric], self.held_units(metric) + (extra if metric == extra_metric else 0))
            for metric, table in self.tables().items()
        )

    def state(self) -> SubscriptionState:
        names = set(self.used) | {metric for _, metric in self.held}
        metrics = {name: MetricState(self.used.get(name, 0), self.held_units(name)) for name in names}
        return SubscriptionState(
            self.name,
            self.start_ms,
            self.end_ms,
            {name: state for name, state in metrics.items() if state != MetricState(0, 0)},
            self.live,
            self.gone,
            tuple(self.following_ms),
        )


@dataclass
class Account:
    name: str
    policy: Load | None = None
    version: int = 0
    unsettled: int = 0
    tat_us: int = 0
    day: int = 0
    day_count: int = 0
    digits: int | None = None
    fence: int | None = None
    subscriptions: list[Subscription] = field(default_factory=lambda: [Subscription()])
    closed: dict[tuple[int, str, str], tuple[int, int]] = field(default_factory=dict)
    hours: Counter[tuple[int, str]] = field(default_factory=Counter)
    marks: dict[str, Mark] = field(default_factory=dict)
    unpaid_tat_us: int = 0

    # Prices and money

    def subscription_for(self, metric: str) -> Subscription:
        """Where a metric is held and charged: the first that has a price for it, then the first that had one."""
        for subscription in self.subscriptions:
            if metric in subscription.live:
                return subscription
        for subscription in self.subscriptions:
            if metric in subscription.gone:
                return subscription
        return self.subscriptions[0]

    def exposure(self, extra_metric: str = "", extra: int = 0) -> int:
        """What is used and held costs at worst, with ``extra`` units of a metric held beside."""
        grows = self.subscription_for(extra_metric)
        return sum(
            subscription.exposure(extra_metric, extra) if subscription is grows else subscription.exposure()
            for subscription in self.subscriptions
        )

    def available(self) -> int | None:
        """What used and held units may cost in all; None without a limit."""
        assert self.policy is not None
        if self.policy.ceiling is None:
            return None
        return self.policy.ceiling - (self.unsettled if self.policy.counts_unsettled else 0)

    # Holds

    def take_share(self, epoch: int, metric: str, units: int) -> int:
        """Gives back at most ``units`` of what an epoch holds of a metric, wherever it is held. Returns how many."""
        first = self.subscription_for(metric)
        left = units
        for subscription in [first, *(other for other in self.subscriptions if other is not first)]:
            taken = min(left, subscription.held[epoch, metric])
            subscription.held[epoch, metric] -= taken
            left -= taken
        return units - left

    def give_back(self, epochs: set[int]) -> Counter[int]:
        """Gives back all that these epochs hold. Returns how many units by epoch."""
        given: Counter[int] = Counter()
        for subscription in self.subscriptions:
            for (epoch, metric), units in list(subscription.held.items()):
                if epoch in epochs:
                    given[epoch] += units
                    del subscription.held[epoch, metric]
        return given

    # Idempotency keys

    def mark(self, name: str, now_ms: int) -> Mark | None:
        """One that counts: not over, and of a call that was charged or whose instance still holds something here."""
        mark = self.marks.get(name)
        if mark is None or mark.until_ms <= now_ms:
            return None
        holds = {epoch for of in self.subscriptions for (epoch, _), units in of.held.items() if units}
        return mark if not mark.epoch or mark.epoch in holds else None

    # Periods

    def now(self, now_ms: int) -> int:
        """The instant at which a change happens: not before a period that is current."""
        return max(now_ms, *(subscription.start_ms for subscription in self.subscriptions))

    def roll(self, now_ms: int) -> None:
        now_ms = self.now(now_ms)
        for subscription in self.subscriptions:
            asleep_since: int | None = None
            while now_ms >= subscription.end_ms:
                length = subscription.end_ms - subscription.start_ms
                self.close_period(subscription, subscription.end_ms, record_at=asleep_since)
                while subscription.following_ms and subscription.following_ms[0] <= subscription.start_ms:
                    subscription.following_ms.pop(0)
                if subscription.following_ms:
                    subscription.end_ms = subscription.following_ms.pop(0)
                else:
                    subscription.end_ms = subscription.start_ms + length
                    # From here on nothing can have been used: all further periods share the first one's record.
                    asleep_since = subscription.start_ms if asleep_since is None else asleep_since

    def close_period(self, subscription: Subscription, new_start_ms: int, record_at: int | None = None) -> None:
        start = subscription.start_ms if record_at is None else record_at
        tables = subscription.tables()
        for metric in sorted(set(subscription.used) | set(tables)):
            table = tables.get(metric)
            units = subscription.used[metric]
            price = 0 if table is None else min(cost(table, units), MAX_INT)
            if units or price:
                record = start, subscription.name, metric
                before = self.closed.get(record, (0, 0))
                self.closed[record] = (units + before[0], price + before[1])
            self.unsettled = min(self.unsettled + price, MAX_INT)
            if metric in subscription.gone and not subscription.held_units(metric):
                del subscription.gone[metric]
        subscription.used.clear()
        subscription.start_ms = new_start_ms

    # Limits

    def next_tat(self, now_us: int) -> tuple[int, int]:
        """The theoretical arrival time after one more request, and for how long that request would have to wait."""
        assert self.policy is not None
        interval = self.policy.rate_interval_us
        full_us = now_us + interval * self.policy.burst
        tat = min(max(self.tat_us, now_us), full_us) + interval
        return tat, max(0, tat - full_us)

    def rate_left(self, now_us: int) -> int:
        assert self.policy is not None
        if not self.policy.rate_interval_us:
            return -1
        before, passed = self.tat_us, 0
        while True:
            self.tat_us, wait_us = self.next_tat(now_us)
            if wait_us:
                break
            passed += 1
        self.tat_us = before
        return passed

    def unpaid_wait(self, interval_us: int, burst: int, now_us: int) -> int:
        """How long the next call waits since the account had too many answers that cost nothing. Whoever is told so
        need not wait longer, even if the clock was ahead when they were counted."""
        if not interval_us or self.unpaid_tat_us <= now_us:
            return 0
        latest = now_us + interval_us * burst + UNPAID_DEBT_US
        wait = min(self.unpaid_tat_us, latest) - interval_us * (burst - 1) - now_us
        if wait <= 0:
            return 0
        self.unpaid_tat_us = min(self.unpaid_tat_us, latest)
        return wait

    def count_unpaid(self, answers: int, interval_us: int, burst: int, now_us: int) -> None:
        if interval_us and self.policy is not None:
            first = min(max(self.unpaid_tat_us, now_us), now_us + interval_us * burst + UNPAID_DEBT_US)
            self.unpaid_tat_us = first + answers * interval_us

    def today(self, now_us: int) -> int:
        """The day that counts."""
        return max(self.day, now_us // DAY_US)

    def counted_today(self, now_us: int) -> int:
        return self.day_count if self.day == self.today(now_us) else 0

    def day_left(self, now_us: int) -> int:
        assert self.policy is not None
        return max(0, self.policy.day_limit - self.counted_today(now_us)) if self.policy.day_limit else -1

    # What is stored

    def is_stored(self) -> bool:
        return self.policy is not None or bool(self.marks) or any(any(s.used.values()) for s in self.subscriptions)

    def state(self) -> AccountState:
        """In the form in which the driver reads it from Valkey."""
        policy = self.policy
        return AccountState(
            version=self.version,
            unsettled=self.unsettled,
            tat_us=self.tat_us,
            day=self.day,
            day_count=self.day_count,
            subscriptions=tuple(subscription.state() for subscription in self.subscriptions),
            shares={
                (epoch, subscription.name, metric): units
                for subscription in self.subscriptions
                for (epoch, metric), units in subscription.held.items()
                if units
            },
            closed=self.closed,
            hours=+self.hours,
            marks=self.marks,
            policy=None if policy is None else self._policy(policy),
            digits=self.digits,
            view=None if policy is None else policy.view,
            about=None if policy is None else policy.about,
            fence=self.fence,
            unpaid_tat_us=self.unpaid_tat_us,
        )

    @staticmethod
    def _policy(policy: Load) -> tuple[int | None, ...]:
        limits = (policy.rate_interval_us, policy.burst, policy.day_limit)
        return (policy.status, policy.ceiling, int(policy.counts_unsettled), *limits)
