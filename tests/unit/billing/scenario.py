"""A small Lago and a small ledger as values, for tests of what is computed from them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from sidecar.billing.lago.models import (
    BillingPeriod,
    Charge,
    ChargeUsage,
    CurrentUsage,
    Customer,
    Fee,
    Invoice,
    Plan,
    Subscription,
    Wallet,
)
from sidecar.billing.reconcile.account_reading import AccountReading
from sidecar.billing.reconcile.desired_state import DesiredState, desired_state
from sidecar.billing.reconcile.period_change import PeriodEnd
from sidecar.billing.reconcile.reconcile_state import ReconcileState
from sidecar.billing.settings import LagoSettings
from sidecar.ledger.accounts.account_spec import AccountSpec, Status
from sidecar.ledger.accounts.account_state import AccountState, ClosedUsage, SubscriptionState, Usage
from sidecar.ledger.pricing.price_tables import MAX_INT

DAY_MS = 86_400_000
JULY = 1_782_864_000_000  # 2026-07-01T00:00:00Z
AUGUST = JULY + 31 * DAY_MS
SEPTEMBER = AUGUST + 31 * DAY_MS
NOW = AUGUST + 10 * DAY_MS


def standard(amount: str = "0.10", metric: str = "api_calls", **options: Any) -> Charge:
    return Charge(f"charge-{metric}", metric, "standard", {"amount": amount}, **options)


def plan(*charges: Charge, code: str = "pro", amount_cents: int = 0, **options: Any) -> Plan:
    values: dict[str, Any] = {"interval": "monthly", "currency": "EUR", "pay_in_advance": False} | options
    return Plan(f"plan-{code}", code, code, amount_cents=amount_cents, charges=charges or (standard(),), **values)


def subscription(of: Plan | None = None, lago_id: str = "sub-1", **options: Any) -> Subscription:
    of = of or plan()
    values: dict[str, Any] = {
        "external_id": "ext-1", "customer": "tpp-1", "plan_code": of.code, "status": "active",
        "billing_time": "calendar", "created_at_ms": JULY, "started_at_ms": JULY, "period_start_ms": AUGUST,
        "period_end_ms": SEPTEMBER, "plan": of,
    } | options  # fmt: skip
    return Subscription(lago_id, **values)


def wallet(euros: str = "100", lago_id: str = "w1", **options: Any) -> Wallet:
    values: dict[str, Any] = {
        "customer": "tpp-1", "status": "active", "currency": "EUR", "balance_cents": int(Decimal(euros) * 100),
        "credits_balance": Decimal(euros), "consumed_credits": Decimal(0), "rate_amount": Decimal(1), "priority": 50,
        "created_at_ms": JULY,
    } | options  # fmt: skip
    return Wallet(lago_id, **values)


def customer(**metadata: str) -> Customer:
    return Customer("c1", "tpp-1", "EUR", "UTC", metadata, ())


def invoice(
    status: str = "finalized", start: int = JULY, end: int = AUGUST, *, lago_id: str = "i1", cents: int = 1000,
    units: str = "100", sub: str = "sub-1", reason: str = "subscription_periodic", **options: Any,
) -> Invoice:  # fmt: skip
    values: dict[str, Any] = {
        "number": lago_id, "type": "subscription", "status": status, "payment_status": "succeeded", "currency": "EUR",
        "fees_cents": cents, "taxes_cents": 0, "prepaid_cents": cents, "total_cents": 0, "due_cents": 0,
        "issuing_date": "2026-08-01", "created_at_ms": end + 600_000, "customer": "tpp-1",
        "periods": (BillingPeriod(sub, "ext-1", "pro", start, end, reason),),
        "fees": (Fee("f1", "charge", "api_calls", sub, Decimal(units), cents, 0),),
    } | options  # fmt: skip
    return Invoice(lago_id, **values)


def usage(units: str, cents: int, start: int = AUGUST, end: int = SEPTEMBER) -> CurrentUsage:
    return CurrentUsage(
        start, end, cents, 0, cents, (ChargeUsage("api_calls", "charge-api_calls", Decimal(units), cents, 1),)
    )


EMPTY = AccountState(
    version=0, status=Status.ACTIVE, ceiling=None, counts_unsettled=False, rate_interval_us=0, burst=0, day_limit=0,
    unsettled=0, subscriptions=(SubscriptionState("", 0, MAX_INT),),
)  # fmt: skip


def with_subscription(state: AccountState, name: str | None = None, **changes: Any) -> AccountState:
    """The account with another state of one of its subscriptions; None: its only one."""
    if name is None:
        (name,) = [each.name for each in state.subscriptions]
    changed = (replace(each, **changes) if each.name == name else each for each in state.subscriptions)
    return replace(state, subscriptions=tuple(changed))


def ended(state: AccountState, ending: PeriodEnd, at_ms: int) -> AccountState:
    """What ``AccountLoader.end_period`` makes of it."""
    found = state.named(ending.subscription)
    assert found is not None
    changes: dict[str, Any] = {"end_ms": at_ms, "next_ends_ms": ending.next_ends_ms} if at_ms < found.end_ms else {}
    if ending.close and len(state.subscriptions) == 1:
        state = replace(state, status=Status.CLOSED)
    elif ending.close:
        changes |= {"prices": {}, "former_prices": {**found.former_prices, **found.prices}}
    return with_subscription(state, ending.subscription, **changes)


@dataclass
class Scenario:
    """One account, ``tpp-1``: what Lago says, what the ledger has, what is updated_state. ``load`` does what the
    ledger's script would.
    """

    reading: AccountReading = field(
        default_factory=lambda: AccountReading("tpp-1", NOW, customer(), (subscription(),), (wallet(),))
    )
    state: AccountState = EMPTY
    saved: ReconcileState = field(default_factory=ReconcileState)
    settings: LagoSettings = field(default_factory=lambda: LagoSettings.model_validate({}))
    now_ms: int = NOW

    def lago(self, **changes: Any) -> Scenario:
        """Lago now says something else."""
        self.reading = replace(self.reading, **changes)
        return self

    def desired(self) -> DesiredState:
        return desired_state(self.reading, self.state.rolled_over(self.now_ms), self.saved, self.settings, self.now_ms)

    def load(self) -> DesiredState:
        """Reconcile, and bring it into the ledger, early ends of periods included."""
        for _ in range(3):
            self.state = self.state.rolled_over(self.now_ms)
            desired = self.desired()
            if desired.period_ends:
                self.now_ms = self.now_ms // 1000 * 1000 + 1000
                for ending in desired.period_ends:
                    self.state = ended(self.state, ending, self.now_ms)
                continue
            assert desired.spec is not None, desired.why
            self.state = loaded(self.state, desired.spec, dict(desired.counted), desired.forget)
            self.saved = desired.reconcile_state
            return desired
        raise AssertionError("it goes on ending periods")

    def use(self, units: int, metric: str = "api_calls") -> None:
        """Settle units in the first subscription that has a price for the metric."""
        self.state = self.state.rolled_over(self.now_ms)
        of = next((each for each in self.state.subscriptions if metric in each.prices), self.state.first)
        rows = {each.metric: each for each in of.usages}
        old = rows.get(metric, Usage(metric, 0, 0))
        rows[metric] = replace(old, settled=old.settled + units)
        self.state = with_subscription(self.state, of.name, usages=tuple(rows.values()))

    @property
    def available(self) -> Decimal | None:
        state = self.state.rolled_over(self.now_ms)
        left = state.available()
        return None if left is None else state.money(left)


def loaded(
    state: AccountState, spec: AccountSpec, counted: dict[str, int], forget: tuple[ClosedUsage, ...]
) -> AccountState:
    """A state after ``load.lua``, as far as these tests look at it: ten decimals throughout."""
    digits = 10
    factor = 10 ** (digits - state.digits) if state.version else 1
    unsettled = spec.scaled_unsettled(digits)
    subscriptions = []
    for each, prices in zip(spec.subscriptions, spec.packed_prices(digits), strict=True):
        bounds, stored = each.period.at(0), state.named(each.name) or SubscriptionState(each.name, 0, MAX_INT)
        rows = {usage.metric: usage for usage in stored.usages}
        for metric in each.prices:
            rows.setdefault(metric, Usage(metric, counted.get(metric, 0) if state.version == 0 else 0, 0))
        known = {**stored.former_prices, **stored.prices}
        former = {metric: table for metric, table in known.items() if metric not in each.prices}
        subscriptions.append(
            SubscriptionState(
                each.name, bounds.start_ms, bounds.end_ms, bounds.next_ends_ms, tuple(rows.values()), prices, former
            )
        )
    gone = [each for each in state.subscriptions if each.name not in {one.name for one in subscriptions}]
    assert not any(usage.settled or usage.held for each in gone for usage in each.usages), "its period ends first"
    return replace(
        state,
        version=state.version + 1,
        status=spec.status,
        ceiling=spec.scaled_ceiling(digits),
        counts_unsettled=spec.counts_unsettled,
        unsettled=unsettled if unsettled is not None else state.unsettled * factor,
        closed=tuple(replace(each, cost=each.cost * factor) for each in state.closed if each not in forget),
        digits=digits,
        currency=spec.currency,
        mode=spec.mode,
        subscriptions=tuple(subscriptions),
    )
