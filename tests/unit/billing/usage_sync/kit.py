"""Stand-ins for what the sync talks to, all in memory, and a way to fail at any step."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sidecar.billing.lago.errors import LagoError, LagoRejected, LagoUnavailable
from sidecar.billing.lago.models import BillableMetric, Event
from sidecar.billing.settings import SyncSettings
from sidecar.billing.usage_sync.metered_usage import Window
from sidecar.billing.usage_sync.period_links import PeriodLink, SyncAccount
from sidecar.billing.usage_sync.planning import RoundTime
from sidecar.billing.usage_sync.sync_report import SyncReport
from sidecar.billing.usage_sync.sync_round import SyncRound
from sidecar.billing.usage_sync.sync_store import Changed, Fenced, SyncState, SyncStateChange, after, decode_sync_state
from sidecar.ledger.account_counts import AccountCounts
from sidecar.ledger.hours import MalformedHours
from sidecar.metering.openmeter.meter_query import AnswerTooLarge, QueryError, UsageRow

HOUR = 3_600
DAY = 24 * HOUR
T0 = 1_784_160_000
"""2026-07-16 00:00:00 UTC."""


class Crash(Exception):
    """The process dies here."""


@dataclass(slots=True)
class Fate:
    """Counts the steps that may fail, and lets one of them fail: ``at`` 0 is the next."""

    at: int | None = None
    error: Exception = field(default_factory=Crash)

    def step(self) -> None:
        if self.at is None:
            return
        self.at -= 1
        if self.at < 0:
            self.at = None
            raise self.error


@dataclass(slots=True)
class OpenMeterFake:
    """Usage by account, metric and second. ``queries``: what was asked for."""

    usage_of: dict[tuple[str, str, int], int] = field(default_factory=dict)
    queries: list[tuple[str, int, int, str | tuple[str, ...] | None, Window | None]] = field(default_factory=list)
    error: QueryError | None = None
    failing: set[str] = field(default_factory=set)
    rows_max: int | None = None
    takes_s: float = 0
    faults: dict[str, str] = field(default_factory=dict)
    """By subject: what is wrong with its rows."""

    def use(self, account: str, at_s: int, units: int, metric: str = "api_calls") -> None:
        key = account, metric, at_s
        self.usage_of[key] = self.usage_of.get(key, 0) + units

    def total(self, account: str, start_s: int, end_s: int, metric: str = "api_calls") -> int:
        return sum(
            units
            for (who, what, at_s), units in self.usage_of.items()
            if (who, what) == (account, metric) and start_s <= at_s < end_s
        )

    async def usage(
        self,
        metric: str,
        from_ms: int,
        to_ms: int,
        *,
        subject: str | Sequence[str] | None = None,
        window: Window | None = "HOUR",
    ) -> Sequence[UsageRow]:
        step = {"HOUR": HOUR, "MINUTE": 60, None: 1}[window]
        assert from_ms % (1000 * step) == to_ms % (1000 * step) == 0
        assert from_ms < to_ms
        subjects = None if subject is None else {subject} if isinstance(subject, str) else set(subject)
        asked = subject if subject is None or isinstance(subject, str) else tuple(subject)
        self.queries.append((metric, from_ms // 1000, to_ms // 1000, asked, window))
        if self.takes_s:
            await asyncio.sleep(self.takes_s)
        if self.error is not None and (not self.failing or metric in self.failing):
            await asyncio.sleep(0)
            raise self.error
        rows: dict[tuple[str, int], int] = {}
        for (who, what, at_s), units in self.usage_of.items():
            if what == metric and from_ms <= at_s * 1000 < to_ms and (subjects is None or who in subjects):
                key = who, from_ms if window is None else at_s // step * step * 1000
                rows[key] = rows.get(key, 0) + units
        if self.rows_max is not None and len(rows) > self.rows_max:
            raise AnswerTooLarge(0)
        return [UsageRow(who, start_ms, units, self.faults.get(who, "")) for (who, start_ms), units in rows.items()]


def metric_of(code: str, **changes: Any) -> BillableMetric:
    values: dict[str, Any] = {
        "lago_id": f"id-{code}",
        "code": code,
        "name": code,
        "aggregation": "sum_agg",
        "field_name": "calls",
        "recurring": False,
    }
    return BillableMetric(**{**values, **changes})


@dataclass(slots=True)
class LagoFake:
    """Events as Lago's Postgres store takes them: a batch all or nothing, an id once.

    ``payloads``: everything that was ever sent, by id. ``odd``: codes for ids that are refused.
    """

    fate: Fate = field(default_factory=Fate)
    events: dict[str, Event] = field(default_factory=dict)
    payloads: dict[str, list[Event]] = field(default_factory=dict)
    metrics: dict[str, BillableMetric] = field(default_factory=lambda: {"api_calls": metric_of("api_calls")})
    odd: dict[str, tuple[str, ...]] = field(default_factory=dict)
    batches: list[int] = field(default_factory=list)
    error: LagoError | None = None
    hides: bool = False

    async def metric(self, code: str) -> BillableMetric | None:
        return self.metrics.get(code)

    async def event(self, transaction_id: str) -> Event | None:
        self.fate.step()
        return None if self.hides else self.events.get(transaction_id)

    async def send_events(self, events: Sequence[Event]) -> None:
        assert 1 <= len(events) <= 100
        self.fate.step()
        self.batches.append(len(events))
        for event in events:
            self.payloads.setdefault(event.transaction_id, []).append(event)
        if self.error is not None:
            raise self.error
        codes: dict[int, Mapping[str, tuple[str, ...]]] = {}
        for at, event in enumerate(events):
            if event.transaction_id in self.odd:
                codes[at] = {"timestamp": self.odd[event.transaction_id]}
            elif event.transaction_id in self.events:
                codes[at] = {"transaction_id": ("value_already_exist",)}
        if codes:
            raise LagoRejected("POST /events/batch: 422", status=422, code="validation_errors", events=codes)
        self.events.update((event.transaction_id, event) for event in events)
        self.fate.step()

    def units(self, link: PeriodLink, metric: str = "api_calls") -> int:
        """What Lago would bill in a period: its own sum over the events whose timestamps lie in it."""
        return sum(
            int(event.properties["calls"])
            for event in self.events.values()
            if event.code == metric
            and event.external_subscription_id == link.external_subscription_id
            and link.lago_from_ms <= event.timestamp * 1000 < link.lago_to_ms
        )


@dataclass(slots=True)
class MemoryStore:
    """As Valkey keeps it."""

    fate: Fate = field(default_factory=Fate)
    fields: dict[str, dict[bytes, bytes]] = field(default_factory=dict)
    writes: int = 0

    async def read(self, account: str) -> SyncState:
        self.fate.step()
        return decode_sync_state(account, self.fields.get(account, {}))

    async def apply(self, account: str, state: SyncState, change: SyncStateChange, token: int) -> SyncState:
        self.fate.step()
        stored = self.fields.setdefault(account, {})
        if int(stored.get(b"token", b"0")) > token:
            raise Fenced(account)
        if any(stored.get(name) != state.raw.get(name) for name in [*change.values(), *change.removed()]):
            raise Changed(f"account {account}: changed")
        result = after(account, state, change, token)
        self.fields[account] = dict(result.raw)
        self.writes += 1
        self.fate.step()
        return result


def link(
    start_s: int,
    end_s: int,
    *,
    sub: str = "s1",
    external: str = "sub-1",
    lago_from_ms: int | None = None,
    lago_to_ms: int | None = None,
    metrics: tuple[str, ...] = ("api_calls",),
    is_final: bool = False,
    is_current: bool = True,
) -> PeriodLink:
    return PeriodLink(
        ledger_start_ms=start_s * 1000,
        ledger_end_ms=end_s * 1000,
        subscription_id=sub,
        external_subscription_id=external,
        lago_from_ms=start_s * 1000 if lago_from_ms is None else lago_from_ms,
        lago_to_ms=end_s * 1000 if lago_to_ms is None else lago_to_ms,
        metrics=metrics,
        is_final=is_final,
        is_current=is_current,
    )


@dataclass(slots=True)
class Bank:
    """One bank: its OpenMeter, its Lago, its memory."""

    settings: SyncSettings = field(default_factory=SyncSettings)
    meter: OpenMeterFake = field(default_factory=OpenMeterFake)
    fate: Fate = field(default_factory=Fate)
    charged: dict[tuple[str, str, int], int] | None = None
    """What the ledger has charged, as ``OpenMeterFake.usage_of``; None: the same as OpenMeter shows."""
    links: dict[str, tuple[PeriodLink, ...]] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)
    forgotten: set[int] = field(default_factory=set)
    """Starts in ms of periods that the ledger has forgotten."""
    lago: LagoFake = field(init=False)
    store: MemoryStore = field(init=False)

    def __post_init__(self) -> None:
        self.lago = LagoFake(self.fate)
        self.store = MemoryStore(self.fate)

    async def round(
        self,
        now_s: int,
        *links: PeriodLink,
        account: str = "tpp-1",
        accounts: Iterable[SyncAccount] | None = None,
        flush: bool = False,
        rescan: bool = True,
        token: int = 1,
    ) -> SyncReport:
        """One round; by default of one account with these periods."""
        given = [SyncAccount(account, links)] if accounts is None else list(accounts)
        self.links = {each.id: each.links for each in given}
        one = SyncRound(
            self.store,
            self.lago,
            self.meter,
            self.settings,
            counts=self,
            token=token,
            round_time=RoundTime(now_s, flush=flush, rescan=rescan),
        )
        return await one.run(given)

    async def read(
        self, accounts: Sequence[str], from_hour: int, to_hour: int
    ) -> Mapping[str, AccountCounts | MalformedHours]:
        """In place of the ledger: it has charged what OpenMeter has counted, unless ``charged`` says another thing."""
        usage = self.meter.usage_of if self.charged is None else self.charged
        found: dict[str, AccountCounts | MalformedHours] = {}
        for account in accounts:
            if account in self.unreadable:
                found[account] = MalformedHours(f"the counts of account {account} cannot be read")
                continue
            hours: defaultdict[str, Counter[int]] = defaultdict(Counter)
            periods: Counter[tuple[int, str]] = Counter()
            for (who, metric, at_s), units in usage.items():
                if who == account:
                    hours[metric][at_s // HOUR] += units
                    for each in self.links.get(account, ()):
                        if each.start_s <= at_s < each.end_s and each.ledger_start_ms not in self.forgotten:
                            periods[each.ledger_start_ms, metric] += units
            found[account] = AccountCounts(periods, hours, from_hour)
        return found

    def sent(self) -> dict[str, int]:
        """Units by transaction id."""
        return {name: int(event.properties["calls"]) for name, event in sorted(self.lago.events.items())}

    def state(self, account: str = "tpp-1") -> SyncState:
        return decode_sync_state(account, self.store.fields.get(account, {}))


def unavailable() -> LagoUnavailable:
    return LagoUnavailable("POST /events/batch: no answer in 10000 ms", kind="timeout")
