"""Computes an account's desired state in the ledger from a reading of Lago and the ledger's state. Without I/O.

The rule: available = Σ balances of the wallets that pay − what periods owe whose invoice is not final − what the
current period has cost, or what Lago has counted in it if that is more. The ledger calls what ended periods owe
``unsettled``, and computes the cost of the current period itself; ``funds`` is the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Final
from zlib import crc32

from sidecar.billing.lago.models import Customer
from sidecar.billing.metric_mapping import MetricMapping
from sidecar.billing.reconcile.account_reading import AccountReading
from sidecar.billing.reconcile.alerts import Alert, Alerts, BillingRefused
from sidecar.billing.reconcile.calendar import next_ends_ms
from sidecar.billing.reconcile.closed_periods import BillingStatus, billing_status, closed_periods, unmatched_drafts
from sidecar.billing.reconcile.consistency_checks import check_age, check_raise, check_transactions, foreign_usage
from sidecar.billing.reconcile.effective_prices import (
    EffectivePrices,
    counted_before,
    effective_prices,
    policy_revision,
)
from sidecar.billing.reconcile.enforcement_policy import enforcement_policy
from sidecar.billing.reconcile.funds import FEE_KINDS, funds_of, identity_faults, money, rounding_margin
from sidecar.billing.reconcile.next_fees import Account, next_fees
from sidecar.billing.reconcile.period_change import (
    current_links,
    downgrade_is_due,
    must_end_period,
    updated_state,
    with_links,
)
from sidecar.billing.reconcile.reconcile_state import LastReading, ReconcileState
from sidecar.billing.reconcile.taxes import customer_taxes
from sidecar.billing.settings import LagoSettings
from sidecar.ledger.accounts.account_spec import AMOUNTS_OF, AccountSpec, Mode, Status
from sidecar.ledger.accounts.account_state import AccountState, ClosedUsage
from sidecar.ledger.accounts.periods import NOW_MS_MAX, FixedPeriod
from sidecar.ledger.pricing.price_tables import PriceError

RELOAD_JITTER_MS_MAX: Final = 1_800_000
"""Reloads after the end of a period are spread over so long at most."""
DOWNGRADE_CHECK_MS: Final = 60_000
"""Between two readings of an account whose downgrade is due and not yet in force in Lago."""


@dataclass(frozen=True, slots=True)
class PeriodEnd:
    """The current period must end now. ``next_ends_ms``: the ends of the periods after it. ``close``: from now on the
    account takes no new holds.
    """

    next_ends_ms: tuple[int, ...]
    close: bool


@dataclass(frozen=True, slots=True)
class Figures:
    """How the funds came about, money in units of ``currency``."""

    currency: str
    balance: Decimal = Decimal(0)
    plan_fee: Decimal = Decimal(0)
    margin: Decimal = Decimal(0)
    foreign: Decimal = Decimal(0)
    unpaid: Decimal = Decimal(0)
    unsettled: Decimal = Decimal(0)
    funds: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True)
class DesiredState:
    """An account as it shall be in the ledger.

    ``period_end`` comes before ``spec``: the ledger's state changes with it, and must be reconciled again afterwards.
    ``spec`` None: nothing is to be loaded, and ``why`` says why. ``counted``: for an account new to the ledger.
    ``forget``: records of closed periods that ``reconcile_state`` now has.
    """

    account: str
    spec: AccountSpec | None
    period_start_ms: int | None
    reconcile_state: ReconcileState
    why: str = ""
    period_end: PeriodEnd | None = None
    counted: Mapping[str, int] = field(default_factory=dict)
    forget: tuple[ClosedUsage, ...] = ()
    alerts: tuple[Alert, ...] = ()
    billing_statuses: tuple[BillingStatus, ...] = ()
    figures: Figures | None = None
    plans: tuple[str, ...] = ()
    reload_at_ms: tuple[int, ...] = ()


def desired_state(
    reading: AccountReading, state: AccountState, saved: ReconcileState, settings: LagoSettings, now_ms: int
) -> DesiredState:
    """``state``: the ledger's account, rolled over to ``now_ms`` by Valkey's clock; version 0 if it has none.

    Raises:
        BillingRefused: Lago's data cannot be brought into the ledger; what is there stays in force.
    """
    alerts = Alerts(reading.account)
    customer = reading.customer
    if customer is None:
        # An account that never came from Lago is a file's, and none of our business.
        if state.version == 0 or not saved.came_from_lago:
            return DesiredState(reading.account, None, None, saved, "Lago does not know this customer")
        alerts.add("missing", "Lago no longer has this customer; the account is closed")
        return _closed(reading, state, saved, settings, alerts, now_ms)
    actives = [each for each in reading.subscriptions if each.is_active and each.plan is not None]
    if not actives:
        if state.version == 0 or not saved.came_from_lago:
            return DesiredState(reading.account, None, None, saved, "the customer has no active subscription")
        return _closed(reading, state, saved, settings, alerts, now_ms)
    mapping = MetricMapping(settings.billable_metrics)
    effective = effective_prices(
        actives, customer, reading.default_taxes, alerts, reading.rounded_metrics, mapping, reading.listed_values
    )
    if effective.refused and not effective.prices and state.version > 0:
        raise BillingRefused("plan", f"plan {effective.plan.code} has no charge that can be enforced: {_last(alerts)}")
    # First, so that what cannot be loaded does not end a period either.
    spec = _open(reading, customer, effective, state, saved, settings, alerts, now_ms)
    if spec.period_end is None and spec.spec is not None:
        try:
            spec.spec.check()
        except PriceError as error:
            raise BillingRefused("amount", f"plan {effective.plan.code}: {error}") from None
    return spec


def _last(alerts: Alerts) -> str:
    return alerts.rows[-1].message if alerts.rows else "no reason given"


# An account with an active subscription


def _open(
    reading: AccountReading,
    customer: Customer,
    effective: EffectivePrices,
    state: AccountState,
    saved: ReconcileState,
    settings: LagoSettings,
    alerts: Alerts,
    now_ms: int,
) -> DesiredState:
    primary, plan = effective.primary, effective.plan
    currency = plan.currency
    _check_currency(state, currency)
    lago_from, lago_to = primary.period_start_ms, primary.period_end_ms
    if lago_from is None or lago_to is None:
        raise BillingRefused("subscription", f"subscription {primary.external_id} is active but has no billing period")
    ends = next_ends_ms(primary, plan, customer.timezone)
    policy = enforcement_policy(customer, plan, bool(reading.wallets), settings)
    is_new = state.version == 0
    if not is_new and must_end_period(state, saved, effective, lago_from):
        following = (lago_to, *ends)
        return DesiredState(reading.account, None, None, saved, "the current period ends first",
                     period_end=PeriodEnd(following, close=False), alerts=tuple(alerts.rows))  # fmt: skip
    # Ahead of Lago by its clock: the period that the ledger has begun stands.
    ahead = not is_new and state.period_start_ms >= lago_to
    start_ms = lago_from // 1000 * 1000 if is_new else state.period_start_ms
    end_ms, later = (state.period_end_ms, state.next_ends_ms) if ahead else (lago_to, ends)
    funds = funds_of(reading.wallets, effective.codes, currency, now_ms)
    for fault in funds.ignored:
        alerts.add("wallet", fault)
    for wallet in reading.wallets:
        if wallet.is_active:
            for fault in identity_faults(wallet):
                alerts.add("identity", fault)
    check_transactions(reading, alerts)
    if policy.mode == "prepaid" and reading.wallets and not any(wallet.is_active for wallet in reading.wallets):
        alerts.add("wallet", "no wallet of this prepaid customer is active any more: it has nothing to spend")
    spent = Decimal(0) if is_new else sum((state.money(state.cost_of(each)) for each in state.usages), Decimal(0))
    plan_fee = next_fees(
        Account(effective, customer, reading.default_taxes, reading.invoices, funds.pays, spent, now_ms)
    )
    billing_statuses = _billing_statuses(reading, state, saved, currency, settings, now_ms, funds.pays)
    periods = [status.period for status in billing_statuses]
    unsettled = _owed(billing_statuses, settings, currency, alerts)
    unsettled += unmatched_drafts(periods, reading.invoices, currency)
    unpaid = Decimal(0)
    if policy.mode == "postpaid":
        unpaid = sum(
            (
                money(invoice.due_cents, currency)
                for invoice in reading.invoices
                if invoice.status == "finalized"
                and invoice.payment_status != "succeeded"
                and invoice.type == "subscription"
            ),
            Decimal(0),
        )
    if is_new:
        counted = counted_before(reading, effective)
        foreign = Decimal(0)
    else:
        counted = {}
        foreign = Decimal(0) if ahead else foreign_usage(reading, effective, state, currency, alerts)
        if reading.unread_usages:
            # Usage that Lago cannot tell now has not become credit.
            foreign = max(foreign, saved.foreign.get(start_ms, Decimal(0)))
    taxes = len(customer_taxes(customer, reading.default_taxes))
    margin = rounding_margin(effective.prices.values(), taxes, currency) if policy.mode == "prepaid" else Decimal(0)
    available = funds.balance - plan_fee - margin - foreign
    unsettled += unpaid
    spec = AccountSpec(
        id=reading.account,
        mode=policy.mode,
        currency=currency,
        period=FixedPeriod(start_ms, end_ms, later),
        prices=effective.prices,
        status=policy.status,
        funds=available,
        overdraft=policy.overdraft,
        spending_cap=policy.spending_cap,
        credit_limit=policy.credit_limit,
        unsettled=unsettled,
        limits=policy.limits,
        api_keys=policy.api_keys,
    )
    figures = Figures(currency, funds.balance, plan_fee, margin, foreign, unpaid, unsettled, available)
    revision = policy_revision(policy, effective)
    freed = saved.fees.get(start_ms, plan_fee) - plan_fee
    check_raise(state, spec, saved, billing_statuses, funds, revision, alerts, freed)
    check_age(billing_statuses, alerts, now_ms)
    if not reading.is_stable:
        alerts.add("unstable", "its invoices kept changing while they were read; it is read again soon")
    is_open = any(not status.is_final for status in billing_statuses)
    last = LastReading(now_ms, funds.balance, revision, saved.last.fingerprint if saved.last else "", is_open)
    kept, forget = updated_state(reading, saved, billing_statuses, state, settings, now_ms)
    waits = not is_new and downgrade_is_due(reading, primary, start_ms, now_ms)
    current = {} if waits else current_links(effective, start_ms, end_ms, lago_from, lago_to, ahead)
    unmetered = {start_ms: foreign} if foreign else {}
    kept = replace(
        kept,
        links={**{key: link for key, link in kept.links.items() if key[0] != start_ms}, **current},
        fees={**kept.fees, start_ms: plan_fee},
        foreign={**{start: each for start, each in kept.foreign.items() if start != start_ms}, **unmetered},
        last=last,
    )
    reload_times = (
        funds.next_expiry_ms,
        _after(reading.account, start_ms, end_ms),
        now_ms + DOWNGRADE_CHECK_MS if waits else None,
    )
    wakes = [at for at in reload_times if at is not None and at > now_ms]
    return DesiredState(
        account=reading.account,
        spec=spec,
        period_start_ms=None if is_new else start_ms,
        reconcile_state=kept,
        counted=counted,
        forget=forget,
        alerts=tuple(alerts.rows),
        billing_statuses=billing_statuses,
        figures=figures,
        plans=tuple(each.code for each in effective.plans),
        reload_at_ms=tuple(wakes),
    )


def _after(account: str, start_ms: int, end_ms: int) -> int:
    """When to look again after the period's end: not all accounts of a bank in the second in which a month begins."""
    jitter_ms = min((end_ms - start_ms) // 10, RELOAD_JITTER_MS_MAX)
    return end_ms + jitter_ms * (crc32(account.encode()) % 1000) // 1000


def _check_currency(state: AccountState, currency: str) -> None:
    stored = state.currency if state.version > 0 else ""
    usages = [usage for each in state.subscriptions for usage in each.usages]
    used = any(usage.settled or usage.held for usage in usages) or state.unsettled
    if stored and stored != currency and used:
        raise BillingRefused(
            "amount", f"its currency was {stored} and is {currency} now, with usage of this period open"
        )


def _billing_statuses(
    reading: AccountReading,
    state: AccountState,
    saved: ReconcileState,
    currency: str,
    settings: LagoSettings,
    now_ms: int,
    pays: Collection[str] = FEE_KINDS,
) -> tuple[BillingStatus, ...]:
    voided_open_ms = settings.reconcile.voided_open_s * 1000
    mapping = MetricMapping(settings.billable_metrics)
    return tuple(
        billing_status(with_links(period, reading, mapping), reading.invoices, currency, now_ms, voided_open_ms, pays)
        for period in closed_periods(state, saved)
    )


def _owed(billing_statuses: Sequence[BillingStatus], settings: LagoSettings, currency: str, alerts: Alerts) -> Decimal:
    """With ``carry`` a shortfall is billed in the current period, and Lago's own figure for that has it."""
    total = Decimal(0)
    for status in billing_statuses:
        if not status.is_final:
            total += status.owed
        elif status.owed and settings.sync.late_usage == "report":
            total += status.owed
            alerts.add("short", f"the final invoice of a period has {status.billed} {currency} for usage, the ledger"
                       f" {status.period.cost}: the difference stays set aside")  # fmt: skip
    return total


# An account without an active subscription


def _closed(
    reading: AccountReading,
    state: AccountState,
    saved: ReconcileState,
    settings: LagoSettings,
    alerts: Alerts,
    now_ms: int,
) -> DesiredState:
    """The account takes no new holds. Its last invoice bills its usage."""
    currency = state.currency
    if saved.links_of(state.period_start_ms) or any(usage.settled for usage in state.usages):
        return DesiredState(reading.account, None, None, saved, "the current period ends first",
                     period_end=PeriodEnd((NOW_MS_MAX,), close=True), alerts=tuple(alerts.rows))  # fmt: skip
    billing_statuses = _billing_statuses(reading, state, saved, currency, settings, now_ms)
    unsettled = _owed(billing_statuses, settings, currency, alerts)
    kept, forget = updated_state(reading, saved, billing_statuses, state, settings, now_ms)
    mode: Mode = next((each for each in AMOUNTS_OF if each == state.mode), "postpaid")
    balance = funds_of(reading.wallets, (), currency, now_ms).balance
    spec = AccountSpec(
        id=reading.account,
        mode=mode,
        currency=currency,
        period=FixedPeriod(state.period_start_ms, max(state.period_end_ms, NOW_MS_MAX)),
        prices={},
        status=Status.CLOSED,
        funds=balance,
        spending_cap=Decimal(0) if mode == "overage" else None,
        credit_limit=Decimal(0) if mode == "postpaid" else None,
        unsettled=unsettled,
    )
    return DesiredState(
        account=reading.account,
        spec=spec,
        period_start_ms=state.period_start_ms,
        reconcile_state=replace(
            kept,
            last=LastReading(
                now_ms,
                balance,
                "closed",
                saved.last.fingerprint if saved.last else "",
                any(not status.is_final for status in billing_statuses),
            ),
        ),
        forget=forget,
        alerts=tuple(alerts.rows),
        billing_statuses=billing_statuses,
        figures=Figures(currency, balance=balance, unsettled=unsettled, funds=balance),
    )
