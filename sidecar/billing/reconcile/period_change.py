"""Ends one period of the ledger, begins the next, and says what is saved of the old one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from sidecar.billing.lago.models import Subscription
from sidecar.billing.metric_mapping import MetricMapping
from sidecar.billing.reconcile.account_reading import AccountReading
from sidecar.billing.reconcile.closed_periods import BillingStatus, ClosedPeriod
from sidecar.billing.reconcile.effective_prices import EffectivePrices
from sidecar.billing.reconcile.reconcile_state import InvoicedPeriod, ReconcileState
from sidecar.billing.settings import LagoSettings
from sidecar.billing.usage_sync.period_links import PeriodLink
from sidecar.ledger.accounts.account_state import AccountState, ClosedUsage

ADOPTED_MS_MAX: Final = 3_600_000
"""By how much a subscription may start after the ledger's period and still take all of it over."""


def must_end_period(state: AccountState, saved: ReconcileState, effective: EffectivePrices, lago_from_ms: int) -> bool:
    """Whether the ledger's period began before the one that Lago is in, or at no whole second, as one from an accounts
    file may. If Lago is in a period of another subscription, but the ledger's lies in it, it has always been that one.

    Lago starts the plan after a downgrade ten minutes into the day, and bills what is used until then to nobody
    (lago-api ``plan_downgrade_service.rb``). A period of which nothing was pushed yet goes to the new plan as a whole.
    """
    start_ms, from_ms = state.period_start_ms, lago_from_ms // 1000 * 1000
    if start_ms % 1000 or from_ms - start_ms > ADOPTED_MS_MAX:
        return True
    others = {link.subscription_id for link in saved.links_of(start_ms)} - {
        each.lago_id for each in effective.billing_subscriptions
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


def with_links(period: ClosedPeriod, reading: AccountReading, mapping: MetricMapping) -> ClosedPeriod:
    """A period without links, as Lago was out of reach all through it, is linked to the subscription of its time."""
    if period.links or not period.units or period.start_ms % 1000 or period.end_ms % 1000:
        return period
    for each in reading.subscriptions:
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
                billed=tuple(mapping.of(metric) for metric in sorted(period.units) if mapping.has_entry(metric)),
            )
            return replace(period, links=(link,))
    return period


def current_links(
    effective: EffectivePrices, start_ms: int, end_ms: int, lago_from_ms: int, lago_to_ms: int, ahead: bool
) -> dict[tuple[int, str], PeriodLink]:

    def bounds(each: Subscription) -> tuple[int, int]:
        # Lago tells its periods in whole seconds, and yet counts no event before the millisecond of the start.
        first, last = (start_ms, end_ms) if ahead else (lago_from_ms, lago_to_ms)
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
        start = period.start_ms
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
            invoiced[start] = InvoicedPeriod(
                start, period.end_ms, invoice, period.units, period.costs, period.fee, at_ms,
                None if status.stage == "final" else voided_at, status.billed,
            )  # fmt: skip
            forget += [closed for closed in state.closed if closed.start_ms == start]
        # A period without usage and without a fee owes nothing, whether Lago makes an invoice of it or not.
        idle = not period.units and not period.cost and not period.fee and not period.foreign
        if now_ms - period.end_ms > kept_ms and (status.is_final or idle):
            invoiced.pop(start, None)
            fees.pop(start, None)
            foreign.pop(start, None)
            checks.pop(start, None)
            links = {key: link for key, link in links.items() if key[0] != start}
    return ReconcileState(links, fees, invoiced, saved.last, checks, foreign), tuple(forget)
