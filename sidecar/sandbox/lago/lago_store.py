"""The tables of the Lago stand-in, its queue of jobs and where its notices go."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TypedDict, TypeVar
from uuid import UUID

from sidecar.sandbox.lago.clock import Clock
from sidecar.sandbox.lago.config import LagoConfig
from sidecar.sandbox.lago.lago_events import LagoEventStore
from sidecar.sandbox.lago.lago_wire import Json, not_found
from sidecar.sandbox.lago.periods import CalendarPeriods, Periods, SecondPeriods
from sidecar.sandbox.lago.records import (
    AppliedCoupon,
    Coupon,
    Customer,
    Endpoint,
    Invoice,
    Metric,
    Plan,
    Record,
    Subscription,
    Tax,
    Transaction,
    Wallet,
)

R = TypeVar("R", bound=Record)
JOBS_MAX = 1_000_000
#: While nothing sends them, the oldest are lost.
NOTICES_MAX = 100_000


class NewRecord(TypedDict):
    id: str
    seq: int
    created: datetime


@dataclass(frozen=True, slots=True)
class Notice:
    """A webhook to be sent. ``view`` makes its payload, when the sending job runs and not before."""

    type: str
    object_type: str
    view: Callable[[], Json]


class Store:
    """Everything in memory. Names are those of Lago's tables; ``plans`` has no plans made by overrides."""

    def __init__(self, config: LagoConfig, clock: Clock) -> None:
        self.config = config
        self.clock = clock
        self.random = random.Random(config.seed)  # noqa: S311 - ids and faults of a stand-in
        self.taxes: dict[str, Tax] = {}
        self.customers: dict[str, Customer] = {}
        self.metrics: dict[str, Metric] = {}
        self.plans: dict[str, Plan] = {}
        self.subscriptions: list[Subscription] = []
        self.wallets: dict[str, Wallet] = {}
        self.transactions: dict[str, Transaction] = {}
        self.invoices: dict[str, Invoice] = {}
        self.coupons: dict[str, Coupon] = {}
        self.applied_coupons: dict[str, AppliedCoupon] = {}
        self.endpoints: dict[str, Endpoint] = {}
        self.events = LagoEventStore()
        self.notices: deque[Notice] = deque(maxlen=NOTICES_MAX)
        self.on_notice: Callable[[], None] | None = None
        self._by_external_id: dict[str, list[Subscription]] = {}
        self._jobs: deque[Callable[[], None]] = deque()
        self._seq = 0

    def __repr__(self) -> str:
        return (
            f"Store({len(self.customers)} customers, {len(self.subscriptions)} subscriptions, "
            f"{len(self.wallets)} wallets, {len(self.invoices)} invoices, {self.events!r})"
        )

    def now(self) -> datetime:
        return self.clock.now()

    def new(self) -> NewRecord:
        """The identity of a record created now."""
        self._seq += 1
        return NewRecord(id=self.new_id(), seq=self._seq, created=self.now())

    def new_id(self) -> str:
        return str(UUID(int=self.random.getrandbits(128), version=4))

    def later(self, job: Callable[[], None]) -> None:
        """Queues what Lago does in a background job, after the request was answered."""
        if len(self._jobs) >= JOBS_MAX:
            raise RuntimeError(f"more than {JOBS_MAX} jobs are waiting")
        self._jobs.append(job)

    def run_jobs(self) -> None:
        """Runs what is queued, and what that queues."""
        while self._jobs:
            self._jobs.popleft()()

    def emit(self, type: str, object_type: str, view: Callable[[], Json]) -> None:
        if not self.endpoints:
            return
        self.notices.append(Notice(type, object_type, view))
        if self.on_notice is not None:
            self.on_notice()

    def add_subscription(self, subscription: Subscription) -> None:
        self.subscriptions.append(subscription)
        self._by_external_id.setdefault(subscription.external_id, []).append(subscription)

    def subscriptions_of(self, external_id: str) -> list[Subscription]:
        """Every one that ever had the external id, oldest first."""
        return self._by_external_id.get(external_id, [])

    def active(self, external_id: str) -> Subscription | None:
        return next((item for item in self.subscriptions_of(external_id) if item.status == "active"), None)

    def customer(self, external_id: str) -> Customer:
        """Raises :class:`Refusal` 404."""
        found = self.customers.get(external_id)
        if found is None or found.deleted:
            raise not_found("customer")
        return found

    def taxes_by_code(self, codes: Iterable[str]) -> list[Tax]:
        found = [self.taxes.get(code) for code in codes]
        if None in found:
            raise not_found("tax")
        return [tax for tax in found if tax is not None]

    def wallets_of(self, customer: Customer, *, active: bool = True) -> list[Wallet]:
        """In the order in which they pay: by priority, then age."""
        wallets = [item for item in self.wallets.values() if item.customer is customer]
        wallets = [item for item in wallets if item.is_active or not active]
        return sorted(wallets, key=lambda item: (item.priority, item.created, item.seq))

    def fee_periods(self, subscription: Subscription) -> Periods:
        return self._periods(subscription, subscription.plan.interval)

    def charge_periods(self, subscription: Subscription) -> Periods:
        return self._periods(subscription, subscription.plan.charges_interval)

    def _periods(self, subscription: Subscription, interval: str) -> Periods:
        if self.config.period_s is not None:
            return SecondPeriods(self.config.period_s)
        zone = subscription.customer.zone
        anchor = subscription.subscription_at.astimezone(zone).date()
        return CalendarPeriods(interval, zone, anchor if subscription.billing_time == "anniversary" else None)


def newest_first(records: Iterable[R]) -> list[R]:
    return sorted(records, key=lambda item: (item.created, item.seq), reverse=True)
