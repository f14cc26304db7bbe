"""An account for people and for answers of the admin port."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from sidecar.ledger.accounts.account_state import AccountState, ClosedUsage
from sidecar.ledger.pricing.price_tables import PriceTable
from sidecar.ledger.pricing.rating import unpacked


@dataclass(frozen=True, slots=True)
class MetricSnapshot:
    """One metric in the current period. ``cost`` is that of the settled units; ``in_plan``: the plan still has it.

    ``model`` names the kind of ``price``; "" and None for a metric that has been used but never had a price.
    """

    metric: str
    settled: int
    held: int
    cost: Decimal
    model: str
    price: PriceTable | None
    in_plan: bool


@dataclass(frozen=True, slots=True)
class AccountSnapshot:
    """An account as it stands, money in units of its currency.

    ``available`` is what a hold may still add, None without a limit. ``rollover_pending``: the stored period is over
    and nothing has touched the account since; all figures are those after the rollover. ``closed`` has the periods
    that are over with what they cost; ``api_keys`` is how many there are.
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
    names = sorted({*state.prices, *(usage.metric for usage in state.usages)})
    by_name = {usage.metric: usage for usage in state.usages}
    metrics = []
    for name in names:
        usage = by_name.get(name)
        spent = state.cost_of(usage) if usage else 0
        table = state.table(name)
        price = unpacked(table, state.digits) if table else None
        metrics.append(
            MetricSnapshot(
                metric=name,
                settled=usage.settled if usage else 0,
                held=usage.held if usage else 0,
                cost=state.money(spent),
                model=type(price).__name__.lower() if price else "",
                price=price,
                in_plan=name in state.prices,
            )
        )
    info = state.info
    return AccountSnapshot(
        id=account,
        version=state.version,
        mode=str(info.get("mode", "")),
        status=state.status.word,
        currency=str(info.get("currency", "")),
        digits=state.digits,
        ceiling=None if state.ceiling is None else state.money(state.ceiling),
        unsettled=state.money(state.unsettled),
        available=None if available is None else state.money(available),
        period_start_ms=state.period_start_ms,
        period_end_ms=state.period_end_ms,
        rollover_pending=state is not stored,
        metrics=tuple(metrics),
        closed=tuple((period, state.money(period.cost)) for period in state.closed),
        rate_per_second=str(info.get("rate_per_second", 0)),
        burst=state.burst,
        day_limit=state.day_limit,
        amounts=dict(info.get("amounts") or {}),
        api_keys=len(info.get("api_keys") or ()),
    )
