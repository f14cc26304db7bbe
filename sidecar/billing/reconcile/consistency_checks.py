"""Checks figures against each other: Lago's own, Lago's and the ledger's, this reading's and the last one's."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Final

from sidecar.billing.reconcile.account_reading import AccountReading
from sidecar.billing.reconcile.alerts import Alerts
from sidecar.billing.reconcile.closed_periods import BillingStatus
from sidecar.billing.reconcile.effective_prices import EffectivePrices
from sidecar.billing.reconcile.enforcement_policy import EnforcementPolicy
from sidecar.billing.reconcile.funds import Funds, identity_faults, money
from sidecar.billing.reconcile.reconcile_state import ReconcileState
from sidecar.ledger.accounts.account_spec import AccountSpec
from sidecar.ledger.accounts.account_state import AccountState

_DAY_MS: Final = 86_400_000
UNBILLED_MS_MAX: Final = 2 * _DAY_MS
"""A period that owes something, is over for so long and has not even a draft, is worth a look."""


def note_wallets(reading: AccountReading, funds: Funds, policy: EnforcementPolicy, alerts: Alerts) -> None:
    """The findings of wallets: those that do not count, and figures of Lago that contradict each other."""
    for fault in funds.ignored:
        alerts.add("wallet", fault)
    for wallet in reading.wallets:
        if wallet.is_active:
            for fault in identity_faults(wallet):
                alerts.add("identity", fault)
    check_transactions(reading, alerts)
    if policy.mode == "prepaid" and reading.wallets and not any(wallet.is_active for wallet in reading.wallets):
        alerts.add("wallet", "no wallet of this prepaid customer is active any more: it has nothing to spend")


def check_transactions(reading: AccountReading, alerts: Alerts) -> None:
    """Balance = Σ settled inbound − Σ settled outbound, or Lago has lost or doubled a transaction."""
    for wallet in reading.wallets:
        rows = reading.transactions.get(wallet.lago_id)
        if rows is None:
            continue
        settled = [row for row in rows if row.status == "settled"]
        total = sum((row.amount if row.type == "inbound" else -row.amount for row in settled), Decimal(0))
        balance = money(wallet.balance_cents, wallet.currency)
        if total != balance:
            alerts.add("identity", f"wallet {wallet.lago_id}: its transactions sum up to {total} {wallet.currency},"
                       f" its balance is {balance}")  # fmt: skip


def check_raise(
    state: AccountState,
    spec: AccountSpec,
    saved: ReconcileState,
    billing_statuses: Sequence[BillingStatus],
    funds: Funds,
    revision: str,
    alerts: Alerts,
    freed: Decimal = Decimal(0),
) -> None:
    """Rule 4 of the ledger, looked at from here: no give-back. ``freed``: by how much the fees have fallen that are set
    aside for the current period.
    """
    ceiling = spec.ceiling
    if state.version == 0 or state.ceiling is None or ceiling is None or saved.last is None:
        return
    before = state.money(state.ceiling - (state.unsettled if state.counts_unsettled else 0))
    after = ceiling - ((spec.unsettled or Decimal(0)) if spec.counts_unsettled else Decimal(0))
    if after - max(Decimal(0), freed) <= before or funds.balance > saved.last.balance or revision != saved.last.policy:
        return
    if any(status.is_final and status.period.invoiced is None for status in billing_statuses):
        return
    alerts.add(
        "raise", f"available rises from {before} to {after} {spec.currency} without new money or a final invoice"
    )


def check_age(billing_statuses: Sequence[BillingStatus], alerts: Alerts, now_ms: int) -> None:
    for status in billing_statuses:
        age_ms = now_ms - status.period.end_ms
        if status.stage == "unbilled" and status.owed > 0 and age_ms > UNBILLED_MS_MAX:
            days = age_ms // _DAY_MS
            alerts.add(
                "unsettled",
                f"a period that ended {days} days ago has an unsettled cost of {status.owed} and no invoice",
            )


def foreign_usage(
    reading: AccountReading, effective: EffectivePrices, start_ms: int, spent: Decimal, alerts: Alerts
) -> Decimal:
    """By how much Lago's own figure for the current period of a subscription exceeds what the ledger has settled in it.
    ``start_ms`` and ``spent``: the ledger's."""
    currency = effective.plan.currency
    total = Decimal(0)
    roundings = 0
    for external_id in {each.external_id for each in effective.billed_by.values()}:
        usage = reading.usages.get(external_id)
        if usage is not None and usage.from_ms <= start_ms < usage.to_ms:
            total += money(usage.total_cents, currency)
            roundings += sum(max(1, len(charge.fees)) for charge in usage.charges) + 1
    excess = total - spent
    if excess <= money(roundings, currency):
        return Decimal(0)
    alerts.add(
        "foreign",
        f"Lago has counted {total} {currency} in the current period, the ledger {spent}: the difference is set aside;"
        " events that did not pass the gateway, or lost data, may be the reason",
    )
    return excess
