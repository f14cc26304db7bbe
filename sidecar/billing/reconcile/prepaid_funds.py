"""The funds of a prepaid account: what its wallets and credits pay, fee by fee (``wallet_allocation``)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final, TypeVar

from sidecar.billing.lago.models import Wallet
from sidecar.billing.reconcile.alerts import Alerts
from sidecar.billing.reconcile.closed_periods import BillingStatus
from sidecar.billing.reconcile.funds import FEE_KINDS, Funds, money
from sidecar.billing.reconcile.reconcile_state import LastReading
from sidecar.billing.reconcile.wallet_allocation import (
    USAGE,
    Claims,
    Owed,
    ScopedBalance,
    allocate,
    usage_key,
)
from sidecar.ledger.accounts.account_state import AccountState
from sidecar.ledger.pricing.price_tables import PackedTable, PriceTable, amounts
from sidecar.ledger.pricing.rating import cost

T = TypeVar("T")

HELD_BACK_RELOAD_MS: Final = 60_000
"""An account whose scoped wallets hold money back is read again after that."""
HELD_BACK_RELOAD_MS_MAX: Final = 900_000
"""While nothing of it is used the time doubles up to this."""


@dataclass(frozen=True, slots=True)
class Spendable:
    """``funds``: for the ledger, which takes what is unsettled and spent off it. ``prices``: of what is served.

    ``low``: metrics that are not served since their wallets have little left, with what that is. ``claimed``: all that
    is owed by now; it says whether something was used between two readings.
    """

    funds: Decimal
    prices: Mapping[str, PriceTable]
    low: Mapping[str, Decimal] = field(default_factory=dict)
    held_back: Decimal = Decimal(0)
    claimed: Decimal = Decimal(0)

    def served(self, by_metric: Mapping[str, T]) -> dict[str, T]:
        """Of values by metric those of metrics that are served."""
        return {metric: value for metric, value in by_metric.items() if metric in self.prices}

    def reload_at_ms(self, last: LastReading | None, now_ms: int) -> int | None:
        """When to read the account again, for scoped wallets to free what they hold back; None: they hold nothing."""
        if self.held_back <= 0:
            return None
        idle_ms = now_ms - last.read_at_ms if last is not None and last.claimed == self.claimed else 0
        return now_ms + min(max(HELD_BACK_RELOAD_MS, 2 * idle_ms), HELD_BACK_RELOAD_MS_MAX)


@dataclass(frozen=True, slots=True)
class Obligations:
    """What an account owes beside the usage of the current period. Money with taxes.

    ``closed``: its ended periods, of which ``unsettled`` is the sum, with drafts of times before the ledger.
    ``next_fees``: fees beside usage of the current period. ``reserved``: for rounding, and what only Lago has counted.
    """

    unsettled: Decimal
    closed: Sequence[BillingStatus] = ()
    next_fees: Decimal = Decimal(0)
    reserved: Decimal = Decimal(0)
    counts_short: bool = True


def spendable(
    counted: Funds,
    prices: Mapping[str, PriceTable],
    codes: Mapping[str, str],
    state: AccountState,
    obligations: Obligations,
    credit: Decimal,
    alerts: Alerts,
) -> Spendable:
    """What the account may spend, and on which metrics. ``counted``: its wallets, ``credit``: beside them. ``codes``:
    Lago's billable metric of each metric, of which wallets and invoices speak.

    An account that is new to the ledger (version 0) serves every metric that a wallet pays for: the ledger counts what
    Lago had counted against its funds, and the next reading knows of it. Metrics that cost nothing need no wallet.
    """
    is_new = state.version == 0
    usage = {} if is_new else _usage(state)
    paid_for = {metric: table for metric, table in prices.items() if _least(table) > 0}
    claims, keys = _claims(paid_for, usage, obligations, credit, {} if is_new else _falls(state))
    by_code = _by_code(codes, obligations.closed)
    found = allocate([_scoped(wallet, keys, by_code) for wallet in counted.counted], claims, keeps_all=is_new)
    left_out = {metric for metric in paid_for if metric not in found.served}
    for metric in sorted(left_out - found.rooms.keys()):
        alerts.add("wallet", f"{metric} is not served: none of the wallets that count pays for it")
    spent = sum(usage.values(), Decimal(0))
    return Spendable(
        funds=found.available + obligations.unsettled + spent,
        prices={metric: table for metric, table in prices.items() if metric not in left_out},
        low={metric: max(Decimal(0), found.rooms[metric]) for metric in sorted(left_out & found.rooms.keys())},
        held_back=found.held_back,
        claimed=sum((each.total for each in claims.owed), Decimal(0)),
    )


def _claims(
    prices: Mapping[str, PriceTable],
    usage: Mapping[str, Decimal],
    obligations: Obligations,
    credit: Decimal,
    falls: Mapping[str, Decimal],
) -> tuple[Claims, frozenset[str]]:
    """Also the keys of all fees for usage."""
    owing = [each for each in obligations.closed if each.owed and (obligations.counts_short or not each.is_final)]
    metrics = {*prices, *usage, *(metric for each in owing for metric in _caps_by_metric(each))}
    keys = frozenset((USAGE, *map(usage_key, metrics)))
    owed = [Owed.on(usage_key(metric), amount) for metric, amount in usage.items() if amount]
    for status in owing:
        owed += _owed_for(status, keys)
    sorted_out = sum((each.owed for each in owing), Decimal(0))
    owed.append(Owed.on_any((*keys, *FEE_KINDS), obligations.unsettled - sorted_out))
    owed.append(Owed.on_any(FEE_KINDS, obligations.next_fees))
    owed.append(Owed.on_any(keys, obligations.reserved))
    claims = Claims(
        owed=[each for each in owed if each.total],
        prices={metric: _least(table) for metric, table in prices.items()},
        credit=credit,
        falls=falls,
        served_before=sorted({*usage, *(m for each in owing for m in each.period.costs)} - prices.keys()),
    )
    return claims, keys


def _owed_for(status: BillingStatus, keys: Iterable[str]) -> list[Owed]:
    """What a closed period owes, as far as it is known for which fees."""
    period = status.period
    if status.is_final or status.stage == "draft":
        # On a draft is Lago's count, and that of a metric may differ from the ledger's in either direction.
        known = {usage_key(metric): amount for metric, amount in _caps_by_metric(status).items()}
        others: Iterable[str] = FEE_KINDS if status.stage == "draft" else ()
        if status.invoice is not None and status.invoice.fees is None:
            others, known = (*keys, *FEE_KINDS), {}
        return [Owed(status.owed, dict.fromkeys(others, status.owed) | known)]
    owed = [Owed.on(usage_key(metric), amount) for metric, amount in period.costs.items()]
    return [*owed, Owed.on_any(FEE_KINDS, period.fee), Owed.on_any(keys, period.foreign)]


def _caps_by_metric(status: BillingStatus) -> dict[str, Decimal]:
    """The most that each metric may cost on the invoice of a closed period."""
    caps = dict(status.period.costs)
    billed: dict[str, Decimal] = {}
    if status.stage == "draft" and status.invoice is not None:
        for fee in status.invoice.fees or ():
            if fee.kind == USAGE and fee.metric_code is not None:
                amount = money(fee.amount_cents + fee.taxes_cents, status.invoice.currency)
                billed[fee.metric_code] = billed.get(fee.metric_code, Decimal(0)) + amount
    for code, amount in billed.items():
        # Which of several metrics of one code a fee is of makes no difference to the most that each may cost.
        metrics = [metric for metric in status.period.costs if status.period.billed_metric(metric).code == code]
        for metric in metrics or [code]:
            caps[metric] = max(caps.get(metric, Decimal(0)), amount)
    return caps


def _by_code(codes: Mapping[str, str], closed: Iterable[BillingStatus]) -> dict[str, set[str]]:
    """Metrics by Lago's code, those of ended periods too."""
    by_code: dict[str, set[str]] = {}
    for metric, code in codes.items():
        by_code.setdefault(code, set()).add(metric)
    for status in closed:
        for metric in status.period.costs:
            by_code.setdefault(status.period.billed_metric(metric).code, set()).add(metric)
    return by_code


def _scoped(wallet: Wallet, usage_keys: frozenset[str], by_code: Mapping[str, Collection[str]]) -> ScopedBalance:
    balance = money(max(0, wallet.balance_cents), wallet.currency)
    if not wallet.fee_types and not wallet.metric_codes:
        return ScopedBalance(balance)
    known = {metric for metrics in by_code.values() for metric in metrics}
    metrics = {metric for code in wallet.metric_codes for metric in by_code.get(code, () if code in known else (code,))}
    keys = {*map(usage_key, metrics), *(kind for kind in wallet.fee_types if kind != USAGE)}
    return ScopedBalance(balance, frozenset(keys | usage_keys if USAGE in wallet.fee_types else keys))


def _usage(state: AccountState) -> dict[str, Decimal]:
    """The cost of the current periods of all subscriptions, by metric."""
    costs: dict[str, Decimal] = {}
    for subscription in state.subscriptions:
        for usage in subscription.usages:
            costs[usage.metric] = costs.get(usage.metric, Decimal(0)) + state.money(subscription.cost_of(usage))
    return costs


def _falls(state: AccountState) -> dict[str, Decimal]:
    """By how much the cost of a metric may yet fall: where a volume price is lower for more units."""
    falls: dict[str, Decimal] = {}
    for subscription in state.subscriptions:
        for usage in subscription.usages:
            table = subscription.table(usage.metric)
            if table is not None and table[0] == "v":
                fall = cost(table, usage.settled) - _cheapest(table, usage.settled)
                falls[usage.metric] = falls.get(usage.metric, Decimal(0)) + state.money(fall)
    return falls


def _cheapest(table: PackedTable, settled: int) -> int:
    """The lowest cost of this count or a higher one: each tier is cheapest where it begins."""
    begins = [int(to) + 1 for to in table[1:-3:3]]
    return min(cost(table, units) for units in (settled, *(each for each in begins if each > settled)))


def _least(table: PriceTable) -> Decimal:
    """The lowest amount in a table that is one; 0 if nothing costs anything."""
    return min((amount for amount in amounts(table) if amount > 0), default=Decimal(0))
