"""What an account owes, or will owe, beside the calls that it makes from now on. Without I/O.

Closed periods without a final invoice, fees beside usage, usage that only Lago has counted, unpaid invoices.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from decimal import Decimal

from sidecar.billing.lago.models import Customer, Invoice
from sidecar.billing.metric_mapping import MetricMapping
from sidecar.billing.reconcile.account_reading import AccountReading
from sidecar.billing.reconcile.alerts import Alerts
from sidecar.billing.reconcile.closed_periods import BillingStatus, billing_status, closed_periods
from sidecar.billing.reconcile.consistency_checks import foreign_usage
from sidecar.billing.reconcile.funds import FEE_KINDS, money
from sidecar.billing.reconcile.next_fees import Account, next_fees
from sidecar.billing.reconcile.period_change import CurrentPeriod, with_links
from sidecar.billing.reconcile.reconcile_state import ReconcileState
from sidecar.billing.settings import LagoSettings
from sidecar.ledger.accounts.account_state import AccountState


def billing_statuses(
    reading: AccountReading,
    state: AccountState,
    saved: ReconcileState,
    currency: str,
    settings: LagoSettings,
    now_ms: int,
    pays: Collection[str] = FEE_KINDS,
) -> tuple[BillingStatus, ...]:
    """The status of each closed period. ``pays``: kinds of fees beside usage that a wallet pays."""
    voided_open_ms = settings.reconcile.voided_open_s * 1000
    names = {each.name for each in state.subscriptions} | {name for _, name in saved.periods}
    mapping = MetricMapping(settings.billable_metrics)
    linked = (with_links(period, reading, names, mapping) for period in closed_periods(state, saved))
    return tuple(billing_status(period, reading.invoices, currency, now_ms, voided_open_ms, pays) for period in linked)


def owed(statuses: Sequence[BillingStatus], settings: LagoSettings, currency: str, alerts: Alerts) -> Decimal:
    """What closed periods owe.

    With ``carry`` a shortfall is billed in the current period, and Lago's own figure for that has it.
    """
    total = Decimal(0)
    for status in statuses:
        if not status.is_final:
            total += status.owed
        elif status.owed and settings.sync.late_usage == "report":
            total += status.owed
            alerts.add("short", f"the final invoice of a period has {status.billed} {currency} for usage, the ledger"
                       f" {status.period.cost}: the difference stays set aside")  # fmt: skip
    return total


def fees_of(
    period: CurrentPeriod,
    reading: AccountReading,
    customer: Customer,
    state: AccountState,
    pays: Collection[str],
    now_ms: int,
) -> Decimal:
    """The fees beside usage that the current period of a subscription brings, taxes included."""
    spent = spent_in(period, state)
    return next_fees(Account(period.effective, customer, reading.default_taxes, reading.invoices, pays, spent, now_ms))


def spent_in(period: CurrentPeriod, state: AccountState) -> Decimal:
    """What the usage of a current period has cost by the ledger."""
    if period.state is None:
        return Decimal(0)
    return sum((state.money(period.state.cost_of(each)) for each in period.state.usages), Decimal(0))


def unpaid_invoices(invoices: Sequence[Invoice], currency: str) -> Decimal:
    """What is due on final invoices."""
    return sum(
        (
            money(invoice.due_cents, currency)
            for invoice in invoices
            if invoice.status == "finalized"
            and invoice.payment_status != "succeeded"
            and invoice.type == "subscription"
        ),
        Decimal(0),
    )


def foreign_in(
    period: CurrentPeriod, reading: AccountReading, state: AccountState, saved: ReconcileState, alerts: Alerts
) -> Decimal:
    """What Lago has counted in the current period beyond the ledger."""
    if period.is_ahead:
        foreign = Decimal(0)
    else:
        foreign = foreign_usage(reading, period.effective, period.start_ms, spent_in(period, state), alerts)
    mine = {each.external_id for each in period.effective.billing_subscriptions}
    if reading.unread_usages & mine:
        # Usage that Lago cannot tell now has not become credit.
        foreign = max(foreign, saved.foreign.get(period.key, Decimal(0)))
    return foreign
