"""One account of the model: what it used and holds, what that costs, when its periods end, what its limits leave."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from tests.reference.messages import AccountState, Load, MetricState
from tests.reference.pricing import MAX_INT, Table, cost, worst

DAY_US = 86_400 * 1_000_000


@dataclass
class Account:
    name: str
    policy: Load | None = None
    version: int = 0
    unsettled: int = 0
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

    def held_units(self, metric: str) -> int:
        return sum(units for (_, of), units in self.held.items() if of == metric)

    def exposure(self, extra_metric: str = "", extra: int = 0) -> int:
        """What is used and held costs at worst, with ``extra`` units of a metric held beside."""
        return sum(
            worst(table, self.used[metric], self.held_units(metric) + (extra if metric == extra_metric else 0))
            for metric, table in (self.live | self.gone).items()
        )

    def available(self) -> int | None:
        """What used and held units may cost in all; None without a limit."""
        assert self.policy is not None
        if self.policy.ceiling is None:
            return None
        return self.policy.ceiling - (self.unsettled if self.policy.counts_unsettled else 0)

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
            self.unsettled = min(self.unsettled + price, MAX_INT)
            if metric in self.gone and not self.held_units(metric):
                del self.gone[metric]
        self.used.clear()
        self.start_ms = new_start_ms

    # Limits

    def next_tat(self, now_us: int) -> tuple[int, int]:
        """The theoretical arrival time after one more request, and for how long that request would have to wait."""
        assert self.policy is not None
        interval = self.policy.rate_interval_us
        tat = max(self.tat_us, now_us) + interval
        return tat, max(0, tat - now_us - interval * self.policy.burst)

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

    def counted_today(self, now_us: int) -> int:
        return self.day_count if self.day == now_us // DAY_US else 0

    def day_left(self, now_us: int) -> int:
        assert self.policy is not None
        return max(0, self.policy.day_limit - self.counted_today(now_us)) if self.policy.day_limit else -1

    # What is stored

    def is_stored(self) -> bool:
        return self.policy is not None or any(self.used.values())

    def info(self) -> str:
        assert self.policy is not None
        return self.policy.info.replace('"version":0', f'"version":{self.version}', 1)

    def state(self) -> AccountState:
        """In the form in which the driver reads it from Valkey."""
        names = set(self.used) | {metric for _, metric in self.held}
        metrics = {name: MetricState(self.used.get(name, 0), self.held_units(name)) for name in names}
        return AccountState(
            version=self.version,
            unsettled=self.unsettled,
            start_ms=self.start_ms,
            end_ms=self.end_ms,
            tat_us=self.tat_us,
            day=self.day,
            day_count=self.day_count,
            metrics={name: state for name, state in metrics.items() if state != MetricState(0, 0)},
            live=self.live,
            gone=self.gone,
            periods=tuple(self.following_ms),
            closed=self.closed,
            policy=None if self.policy is None else self._policy(self.policy),
            digits=self.digits,
            info=None if self.policy is None else self.info(),
        )

    def _policy(self, policy: Load) -> tuple[int | None, ...]:
        limits = (policy.rate_interval_us, policy.burst, policy.day_limit)
        return (self.version, policy.status, policy.ceiling, int(policy.counts_unsettled), *limits)
