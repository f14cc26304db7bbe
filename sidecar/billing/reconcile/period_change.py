"""The period of each of the ledger's subscriptions: when it ends, what follows, and what is saved of the old one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from sidecar.billing.lago.models import Subscription
from sidecar.billing.metric_mapping import MetricMapping
from sidecar.billing.reconcile.account_reading import AccountReading
from sidecar.billing.reconcile.alerts import BillingRefused
from sidecar.billing.reconcile.calendar import next_ends_ms
from sidecar.billing.reconcile.closed_periods import BillingStatus, ClosedPeriod
from sidecar.billing.reconcile.effective_prices import EffectivePrices
from sidecar.billing.reconcile.reconcile_state import InvoicedPeriod, ReconcileState
from sidecar.billing.settings import LagoSettings
from sidecar.billing.usage_sync.period_links import PeriodKey, PeriodLink
from sidecar.ledger.accounts.account_state import AccountState, ClosedUsage, SubscriptionState
from sidecar.ledger.accounts.periods import NOW_MS_MAX
from sidecar.ledger.pricing.price_tables import Standard


@dataclass(frozen=True, slots=True)
class PeriodEnd:
    """The current period of one of the ledger's subscriptions must end now. ``next_ends_ms``: the ends of the periods
    after it. ``close``: from now on it takes no new holds.
    """

    subscription: str
    next_ends_ms: tuple[int, ...]
    close: bool


@dataclass(frozen=True, slots=True)
class CurrentPeriod:
    """One of the ledger's subscriptions, its period, and that of Lago. ``state`` None: it is new to the ledger.
    ``is_ahead``: of Lago, by its clock; the period that the ledger has begun stands.
    """

    effective: EffectivePrices
    state: SubscriptionState | None
    start_ms: int
    end_ms: int
    next_ends_ms: tuple[int, ...]
    lago_from_ms: int
    lago_to_ms: int
    is_ahead: bool
    lago_next_ends_ms: tuple[int, ...]

    @property
    def key(self) -> PeriodKey:
        return self.start_ms, self.effective.name

    def without(self, metrics: Collection[str]) -> CurrentPeriod:
        """The same, and these metrics are not served."""
        return replace(self, effective=self.effective.without(metrics)) if metrics else self


ADOPTED_MS_MAX: Final = 3_600_000
"""By how much a subscription may start after the ledger's period and still take all of it over."""


def current_period(
    effective: EffectivePrices, account: AccountState, saved: ReconcileState, timezone: str, now_ms: int
) -> CurrentPeriod:
    """The period that a subscription of the ledger is to be in. One that is new to the ledger begins with Lago's; where
    another has billed one of its metrics from that instant on, it begins now.

    Raises:
        BillingRefused: Lago does not tell its own.
    """
    primary = effective.primary
    lago_from, lago_to = primary.period_start_ms, primary.period_end_ms
    if lago_from is None or lago_to is None:
        raise BillingRefused("subscription", f"subscription {primary.external_id} is active but has no billing period")
    ends = next_ends_ms(primary, effective.plan, timezone)
    state = account.named(effective.name) if account.version else None
    is_ahead = state is not None and state.start_ms >= lago_to
    start_ms = lago_from // 1000 * 1000
    if state is None and _billed_by_others(effective, start_ms, account, saved):
        start_ms = max(start_ms, now_ms // 1000 * 1000)
    return CurrentPeriod(
        effective=effective,
        state=state,
        start_ms=start_ms if state is None else state.start_ms,
        end_ms=state.end_ms if state is not None and is_ahead else lago_to,
        next_ends_ms=state.next_ends_ms if state is not None and is_ahead else ends,
        lago_from_ms=lago_from,
        lago_to_ms=lago_to,
        is_ahead=is_ahead,
        lago_next_ends_ms=ends,
    )


def period_ends(
    state: AccountState, saved: ReconcileState, periods: Sequence[CurrentPeriod], moved: Mapping[str, Collection[str]]
) -> tuple[PeriodEnd, ...]:
    """What must end before the account can be loaded. ``moved``: as ``moved_metrics`` says, by subscription."""
    ends = [
        PeriodEnd(each.effective.name, (each.lago_to_ms, *each.lago_next_ends_ms), close=False)
        for each in periods
        if each.state is not None and (_must_end(each, saved) or moved.get(each.effective.name))
    ]
    stays = {each.effective.name for each in periods}
    return tuple(ends) + closing(state, saved, stays)


def closing(state: AccountState, saved: ReconcileState, stays: Collection[str] = ()) -> tuple[PeriodEnd, ...]:
    """The periods of subscriptions that Lago has no more. They end once, at a whole second."""
    return tuple(
        PeriodEnd(each.name, (NOW_MS_MAX,), close=True)
        for each in state.subscriptions
        if each.name not in stays
        and (saved.links_of((each.start_ms, each.name)) or any(usage.settled for usage in each.usages))
    )


def moved_metrics(period: CurrentPeriod, account: AccountState, saved: ReconcileState) -> frozenset[str]:
    """Metrics of a subscription that another one has billed in a period which began at the same instant. What is pushed
    of a metric belongs to one subscription from the start of a period on, so its own must begin anew."""
    if period.state is None:
        return frozenset()
    return _billed_by_others(period.effective, period.start_ms, account, saved)


def _billed_by_others(
    effective: EffectivePrices, start_ms: int, account: AccountState, saved: ReconcileState
) -> frozenset[str]:
    """Metrics that others have billed from this instant on, or will have, as the ledger has counted them."""
    counted = {usage.metric for usage in account.closed
               if usage.start_ms == start_ms and usage.subscription != effective.name}  # fmt: skip
    for each in account.subscriptions if account.version else ():
        if each.start_ms == start_ms and each.name != effective.name:
            counted |= {usage.metric for usage in each.usages if usage.settled}
    mine = {each.external_id for each in effective.billing_subscriptions}
    links = [link for link in saved.links.values() if link.ledger_start_ms == start_ms]
    own = {metric for link in links if link.external_subscription_id in mine for metric in link.metrics}
    others = {metric for link in links if link.external_subscription_id not in mine for metric in link.metrics}
    return frozenset(effective.billed_by) & (counted | (others - own))


def counts_from_anew(period: CurrentPeriod) -> bool:
    """Whether its price is the same if its period is cut in two: Lago's goes on, and so do its tiers."""
    used = {usage.metric for usage in period.state.usages if usage.settled or usage.held} if period.state else ()
    return all(isinstance(period.effective.prices.get(metric), Standard) for metric in used)


def _must_end(period: CurrentPeriod, saved: ReconcileState) -> bool:
    """Whether the ledger's period began before the one that Lago is in, or at no whole second, as one from an accounts
    file may. If Lago is in a period of another subscription, but the ledger's lies in it, it has always been that one.

    Lago starts the plan after a downgrade ten minutes into the day, and bills what is used until then to nobody
    (lago-api ``plan_downgrade_service.rb``). A period of which nothing was pushed yet goes to the new plan as a whole.
    """
    start_ms, from_ms = period.start_ms, period.lago_from_ms // 1000 * 1000
    if start_ms % 1000 or from_ms - start_ms > ADOPTED_MS_MAX:
        return True
    others = {link.subscription_id for link in saved.links_of(period.key)} - {
        each.lago_id for each in period.effective.billing_subscriptions
    }
    return start_ms < from_ms and bool(others)


def downgrade_is_due(reading: AccountReading, primary: Subscription, start_ms: int, now_ms: int) -> bool:
    """Whether another plan should have begun with the period, and Lago has not got to it yet."""
    if primary.next_plan_code is None or now_ms - start_ms > ADOPTED_MS_MAX:
        return False
    return any(
        each.status == "pending" and each.external_id == primary.external_id and each.created_at_ms < start_ms
        for each in reading.subscriptions
    )


def with_links(
    period: ClosedPeriod, reading: AccountReading, names: Collection[str] = (), mapping: MetricMapping | None = None
) -> ClosedPeriod:
    """A period without links, as Lago was out of reach all through it, is linked to the subscription of its time.
    ``names``: of all subscriptions of the ledger; those that have one bear Lago's external id."""
    if period.links or not period.units or period.start_ms % 1000 or period.end_ms % 1000:
        return period
    for each in reading.subscriptions:
        if each.external_id != period.subscription and (period.subscription or each.external_id in names):
            continue
        began, ended = each.started_at_ms, each.terminated_at_ms
        if began is not None and began // 1000 * 1000 <= period.start_ms and (ended is None or period.start_ms < ended):
            link = PeriodLink(
                ledger_start_ms=period.start_ms,
                ledger_end_ms=period.end_ms,
                subscription_id=each.lago_id,
                external_subscription_id=each.external_id,
                lago_from_ms=period.start_ms,
                lago_to_ms=min(period.end_ms, ended) if ended is not None else period.end_ms,
                metrics=tuple(sorted(period.units)),
                is_final=False,
                is_current=False,
                ledger_subscription=period.subscription,
                billed=tuple(
                    mapping.of(metric) for metric in sorted(period.units) if mapping and mapping.has_entry(metric)
                ),
            )
            return replace(period, links=(link,))
    return period


def current_links(period: CurrentPeriod) -> dict[tuple[int, str], PeriodLink]:
    """The links of a current period, as they are saved."""
    effective, start_ms, end_ms = period.effective, period.start_ms, period.end_ms

    def bounds(each: Subscription) -> tuple[int, int]:
        # Lago tells its periods in whole seconds, and yet counts no event before the millisecond of the start.
        first, last = (start_ms, end_ms) if period.is_ahead else (period.lago_from_ms, period.lago_to_ms)
        return max(first, each.started_at_ms or first), last

    return {
        (start_ms, each.lago_id): PeriodLink(
            ledger_start_ms=start_ms,
            ledger_end_ms=end_ms,
            subscription_id=each.lago_id,
            external_subscription_id=each.external_id,
            lago_from_ms=bounds(each)[0],
            lago_to_ms=bounds(each)[1],
            metrics=tuple(
                sorted(
                    metric
                    for metric, subscription in effective.billed_by.items()
                    if subscription.lago_id == each.lago_id
                )
            ),
            is_final=False,
            is_current=True,
            ledger_subscription=effective.name,
            billed=tuple(
                billed
                for metric, billed in sorted(effective.billed.items())
                if not billed.is_plain and effective.billed_by[metric].lago_id == each.lago_id
            ),
        )
        for each in effective.billing_subscriptions
    }


def updated_state(
    reading: AccountReading,
    saved: ReconcileState,
    billing_statuses: Sequence[BillingStatus],
    state: AccountState,
    settings: LagoSettings,
    now_ms: int,
) -> tuple[ReconcileState, tuple[ClosedUsage, ...]]:
    """The state to save of closed periods, and the ledger's records that are not needed any more."""
    kept_ms = settings.reconcile.closed_kept_s * 1000
    ends = {each.lago_id: each.terminated_at_ms for each in reading.subscriptions if each.terminated_at_ms is not None}
    links, fees = dict(saved.links), dict(saved.fees)
    invoiced, checks, foreign = dict(saved.invoiced), dict(saved.checks), dict(saved.foreign)
    forget: list[ClosedUsage] = []
    for status in billing_statuses:
        period = status.period
        key, start = period.key, period.start_ms
        at_ms = period.invoiced.at_ms if period.invoiced is not None else now_ms
        for link in period.links:
            # No event counts for a subscription that has ended, and the ledger heard of its end a moment later.
            ended = ends.get(link.subscription_id, link.lago_to_ms)
            lago_to_ms = min(link.lago_to_ms, ended) if ended > link.lago_from_ms else link.lago_to_ms
            links[start, link.subscription_id] = replace(
                link, ledger_end_ms=period.end_ms, lago_to_ms=lago_to_ms, is_final=status.is_final, is_current=False
            )
        voided_at = period.invoiced.voided_at_ms if period.invoiced is not None else None
        if status.stage == "voided":
            voided_at = voided_at if voided_at is not None else now_ms
        if status.stage in ("final", "written_off", "voided"):
            invoice = status.invoice.lago_id if status.invoice else None
            if invoice is None and period.invoiced is not None:
                invoice = period.invoiced.invoice_id
            invoiced[key] = InvoicedPeriod(
                start, period.end_ms, invoice, period.units, period.costs, period.fee, at_ms,
                None if status.stage == "final" else voided_at, status.billed, period.subscription,
            )  # fmt: skip
            forget += [closed for closed in state.closed if (closed.start_ms, closed.subscription) == key]
        # A period without usage and without a fee owes nothing, whether Lago makes an invoice of it or not.
        idle = not period.units and not period.cost and not period.fee and not period.foreign
        if now_ms - period.end_ms > kept_ms and (status.is_final or idle):
            invoiced.pop(key, None)
            fees.pop(key, None)
            foreign.pop(key, None)
            checks.pop(key, None)
            links = {name: link for name, link in links.items() if link.key != key}
    return ReconcileState(links, fees, invoiced, saved.last, checks, foreign), tuple(forget)
