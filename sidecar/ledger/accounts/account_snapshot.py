"""An account for people and for answers of the admin port."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

from sidecar.ledger.accounts.account_state import AccountState, ClosedUsage, SubscriptionState
from sidecar.ledger.pricing.price_tables import PriceTable
from sidecar.ledger.pricing.rating import unpacked


@dataclass(frozen=True, slots=True)
class MetricSnapshot:
    """One metric in the current period of a subscription. ``cost`` is that of the settled units; ``in_plan``: the plan
    still has it.

    ``model`` names the kind of ``price``; "" and None for a metric that has been used but never had a price.
    """

    metric: str
    settled: int
    held: int
    cost: Decimal
    model: str
    price: PriceTable | None
    in_plan: bool
    subscription: str = ""


@dataclass(frozen=True, slots=True)
class SubscriptionSnapshot:
    """The current period of a subscription."""

    subscription: str
    period_start_ms: int
    period_end_ms: int


@dataclass(frozen=True, slots=True)
class AccountSnapshot:
    """An account as it stands, money in units of its currency.

    ``available`` is what a hold may still add, None without a limit. ``rollover_pending``: the stored period is over
    and nothing has touched the account since; all figures are those after the rollover. The period is the first
    subscription's. ``closed`` has the periods that are over with what they cost; ``api_keys`` is how many there are.
    """

    id: str
    version: int
    mode: str
    status: str
    currency: str
    digits: int
    ceiling: Decimal | None
    unsettled: Decimal
    available: Decimal | None
    period_start_ms: int
    period_end_ms: int
    rollover_pending: bool
    subscriptions: tuple[SubscriptionSnapshot, ...]
    metrics: tuple[MetricSnapshot, ...]
    closed: tuple[tuple[ClosedUsage, Decimal], ...]
    rate_per_second: str
    burst: int
    day_limit: int
    amounts: dict[str, str]
    api_keys: int


def snapshot_of(account: str, stored: AccountState, state: AccountState) -> AccountSnapshot:
    """A snapshot of ``state``, which is ``stored`` or what a rollover makes of it."""
    available = state.available()
    metrics = [metric for each in state.subscriptions for metric in _metrics(state, each)]
    closed = sorted(state.closed, key=lambda each: (each.start_ms, each.subscription, each.metric))
    return AccountSnapshot(
        id=account,
        version=state.version,
        mode=state.mode,
        status=state.status.word,
        currency=state.currency,
        digits=state.digits,
        ceiling=None if state.ceiling is None else state.money(state.ceiling),
        unsettled=state.money(state.unsettled),
        available=None if available is None else state.money(available),
        period_start_ms=state.period_start_ms,
        period_end_ms=state.period_end_ms,
        rollover_pending=state is not stored,
        subscriptions=tuple(
            SubscriptionSnapshot(each.name, each.start_ms, each.end_ms) for each in state.subscriptions
        ),
        metrics=tuple(metrics),
        closed=tuple((period, state.money(period.cost)) for period in closed),
        rate_per_second=state.rate_per_second,
        burst=state.burst,
        day_limit=state.day_limit,
        amounts=dict(state.about.amounts),
        api_keys=len(state.about.api_keys),
    )


def _metrics(state: AccountState, subscription: SubscriptionState) -> Iterator[MetricSnapshot]:
    by_name = {usage.metric: usage for usage in subscription.usages}
    for name in sorted({*subscription.prices, *by_name}):
        usage = by_name.get(name)
        table = subscription.table(name)
        price = unpacked(table, state.digits) if table else None
        yield MetricSnapshot(
            metric=name,
            settled=usage.settled if usage else 0,
            held=usage.held if usage else 0,
            cost=state.money(subscription.cost_of(usage) if usage else 0),
            model=type(price).__name__.lower() if price else "",
            price=price,
            in_plan=name in subscription.prices,
            subscription=subscription.name,
        )
