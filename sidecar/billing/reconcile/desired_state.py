"""Computes an account's desired state in the ledger from a reading of Lago and the ledger's state. Without I/O.

The rule: available = Σ balances of the wallets that pay − what periods owe whose invoice is not final − what the
current period has cost, or what Lago has counted in it if that is more. The ledger calls what ended periods owe
``unsettled``, and computes the cost of the current period itself; ``funds`` is the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Final
from zlib import crc32

from sidecar.billing.lago.models import Customer
from sidecar.billing.metric_mapping import MetricMapping
from sidecar.billing.reconcile.account_reading import AccountReading
from sidecar.billing.reconcile.alerts import Alert, Alerts, BillingRefused
from sidecar.billing.reconcile.closed_periods import BillingStatus, unmatched_drafts
from sidecar.billing.reconcile.consistency_checks import check_age, check_raise, note_wallets
from sidecar.billing.reconcile.credits import credit_of
from sidecar.billing.reconcile.effective_prices import (
    EffectivePrices,
    counted_before,
    effective_prices,
    policy_revision,
)
from sidecar.billing.reconcile.enforcement_policy import enforcement_policy
from sidecar.billing.reconcile.figures import Figures
from sidecar.billing.reconcile.funds import FEE_KINDS, funds_of, rounding_margin
from sidecar.billing.reconcile.owed import billing_statuses, fees_of, foreign_in, owed, unpaid_invoices
from sidecar.billing.reconcile.period_change import (
    CurrentPeriod,
    PeriodEnd,
    closing,
    counts_from_anew,
    current_links,
    current_period,
    downgrade_is_due,
    moved_metrics,
    period_ends,
    updated_state,
)
from sidecar.billing.reconcile.prepaid_funds import Obligations, Spendable, spendable
from sidecar.billing.reconcile.reconcile_state import LastReading, ReconcileState
from sidecar.billing.reconcile.taxes import customer_taxes
from sidecar.billing.settings import LagoSettings
from sidecar.billing.usage_sync.period_links import PeriodLink
from sidecar.ledger.accounts.account_spec import AMOUNTS_OF, AccountSpec, Mode, Status, SubscriptionSpec
from sidecar.ledger.accounts.account_state import AccountState, ClosedUsage
from sidecar.ledger.accounts.periods import NOW_MS_MAX, FixedPeriod
from sidecar.ledger.pricing.price_tables import PriceError

RELOAD_JITTER_MS_MAX: Final = 1_800_000
"""Reloads after the end of a period are spread over so long at most."""
DOWNGRADE_CHECK_MS: Final = 60_000
"""Between two readings of an account whose downgrade is due and not yet in force in Lago."""


@dataclass(frozen=True, slots=True)
class DesiredState:
    """An account as it shall be in the ledger.

    ``period_ends`` come before ``spec``: the ledger's state changes with them, and must be reconciled again afterwards.
    ``spec`` None: nothing is to be loaded, and ``why`` says why. ``period_starts_ms`` by name of the subscription, None
    for an account new to the ledger, for which ``counted`` is. ``forget``: records of closed periods that
    ``reconcile_state`` now has.
    """

    account: str
    spec: AccountSpec | None
    period_starts_ms: Mapping[str, int] | None
    reconcile_state: ReconcileState
    why: str = ""
    period_ends: tuple[PeriodEnd, ...] = ()
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
        actives, customer, reading.default_taxes, alerts, saved, reading.rounded_metrics, mapping, reading.listed_values
    )
    plans = ", ".join(each.plan.code for each in effective)
    if any(each.refused for each in effective) and not any(each.prices for each in effective) and state.version > 0:
        raise BillingRefused("plan", f"plan {plans} has no charge that can be enforced: {_last(alerts)}")
    # First, so that what cannot be loaded does not end a period either.
    spec = _open(reading, customer, effective, state, saved, settings, alerts, now_ms)
    if not spec.period_ends and spec.spec is not None:
        try:
            spec.spec.check()
        except PriceError as error:
            raise BillingRefused("amount", f"plan {plans}: {error}") from None
    return spec


def _last(alerts: Alerts) -> str:
    return alerts.rows[-1].message if alerts.rows else "no reason given"


# An account with an active subscription


def _open(
    reading: AccountReading,
    customer: Customer,
    effective: Sequence[EffectivePrices],
    state: AccountState,
    saved: ReconcileState,
    settings: LagoSettings,
    alerts: Alerts,
    now_ms: int,
) -> DesiredState:
    plan = effective[0].plan
    currency = plan.currency
    _check_currency(state, currency)
    policy = enforcement_policy(customer, plan, bool(reading.wallets), settings)
    is_new = state.version == 0
    periods = [current_period(each, state, saved, customer.timezone, now_ms) for each in effective]
    moved = {each.effective.name: moved_metrics(each, state, saved) for each in periods}
    cut = {each.effective.name: moved[each.effective.name] for each in periods if counts_from_anew(each)}
    ending = () if is_new else period_ends(state, saved, periods, cut)
    if ending:
        return DesiredState(reading.account, None, None, saved, "the current period ends first",
                     period_ends=ending, alerts=tuple(alerts.rows))  # fmt: skip
    for period in periods:
        for metric in sorted(moved[period.effective.name]):
            alerts.add("subscription", f"{metric} is charged by {period.effective.primary.external_id} only"
                       " since another one has ended; it is served from the next period on")  # fmt: skip
    periods = [each.without(moved[each.effective.name]) for each in periods]
    prices = {metric: table for each in periods for metric, table in each.effective.prices.items()}
    is_prepaid = policy.mode == "prepaid"
    codes = {metric: billed.code for each in periods for metric, billed in each.effective.billed.items()}
    funds = funds_of(reading.wallets, tuple(dict.fromkeys(codes.values())), currency, now_ms, of_any=is_prepaid)
    last_end_ms = max(each.end_ms for each in periods)
    credit = credit_of(reading.credits, effective, currency, last_end_ms) if is_prepaid else Decimal(0)
    pays: Collection[str] = FEE_KINDS if credit else funds.pays
    note_wallets(reading, funds, policy, alerts)
    fees = {each.key: fees_of(each, reading, customer, state, pays, now_ms) for each in periods}
    plan_fee = sum(fees.values(), Decimal(0))
    statuses = billing_statuses(reading, state, saved, currency, settings, now_ms, pays)
    closed = [status.period for status in statuses]
    unsettled = owed(statuses, settings, currency, alerts)
    unsettled += unmatched_drafts(closed, reading.invoices, currency)
    unpaid = unpaid_invoices(reading.invoices, currency) if policy.mode == "postpaid" else Decimal(0)
    unmetered = {} if is_new else {each.key: foreign_in(each, reading, state, saved, alerts) for each in periods}
    foreign = sum(unmetered.values(), Decimal(0))
    taxes = len(customer_taxes(customer, reading.default_taxes))
    margin = rounding_margin(prices.values(), taxes, currency) if is_prepaid else Decimal(0)
    unsettled += unpaid
    available = Spendable(funds.balance - plan_fee - margin - foreign, prices)
    if is_prepaid:
        counts_short = settings.sync.late_usage == "report"
        obligations = Obligations(unsettled, statuses, plan_fee, margin + foreign, counts_short)
        available = spendable(funds, prices, codes, state, obligations, credit, alerts)
    first, *further = (
        SubscriptionSpec(
            each.effective.name,
            FixedPeriod(each.start_ms, each.end_ms, each.next_ends_ms),
            available.served(each.effective.prices),
        )
        for each in periods
    )
    spec = AccountSpec(
        id=reading.account,
        mode=policy.mode,
        currency=currency,
        period=first.period,
        prices=first.prices,
        status=policy.status,
        funds=available.funds,
        overdraft=policy.overdraft,
        spending_cap=policy.spending_cap,
        credit_limit=policy.credit_limit,
        unsettled=unsettled,
        limits=policy.limits,
        api_keys=policy.api_keys,
        subscription=first.name,
        further_subscriptions=tuple(further),
    )
    held_back, low = available.held_back, available.low
    figures = Figures(
        currency, funds.balance, plan_fee, margin, foreign, credit, held_back, unpaid, unsettled, available.funds, low
    )
    served = [replace(each, prices=available.served(each.prices)) for each in effective]
    revision = policy_revision(policy, served)
    freed = sum((saved.fees.get(key, fee) - fee for key, fee in fees.items()), Decimal(0))
    freed = max(Decimal(0), freed) + (saved.last.held_back if saved.last is not None else Decimal(0))
    money_in = replace(funds, balance=funds.balance + credit)
    check_raise(state, spec, saved, statuses, money_in, revision, alerts, freed)
    check_age(statuses, alerts, now_ms)
    if not reading.is_stable:
        alerts.add("unstable", "its invoices kept changing while they were read; it is read again soon")
    is_open = any(not status.is_final for status in statuses)
    fingerprint = saved.last.fingerprint if saved.last else ""
    last = LastReading(now_ms, money_in.balance, revision, fingerprint, is_open, held_back, available.claimed)
    kept, forget = updated_state(reading, saved, statuses, state, settings, now_ms)
    waiting = [] if is_new else [
        each for each in periods if downgrade_is_due(reading, each.effective.primary, each.start_ms, now_ms)
    ]  # fmt: skip
    current: dict[tuple[int, str], PeriodLink] = {}
    for each in periods:
        if each not in waiting:
            current |= current_links(each)
    kept = replace(
        kept,
        links={**{name: link for name, link in kept.links.items() if link.key not in fees}, **current},
        fees={**kept.fees, **fees},
        foreign={
            **{key: amount for key, amount in kept.foreign.items() if key not in fees},
            **{key: amount for key, amount in unmetered.items() if amount},
        },
        last=last,
    )
    reload_times = (
        funds.next_expiry_ms,
        available.reload_at_ms(saved.last, now_ms),
        *(_after(reading.account, each.start_ms, each.end_ms) for each in periods),
        now_ms + DOWNGRADE_CHECK_MS if waiting else None,
    )
    wakes = [at for at in reload_times if at is not None and at > now_ms]
    return DesiredState(
        account=reading.account,
        spec=spec,
        period_starts_ms=None if is_new else {each.effective.name: each.start_ms for each in periods},
        reconcile_state=kept,
        counted=available.served(_counted(periods, reading)) if is_new else {},
        forget=forget,
        alerts=tuple(alerts.rows),
        billing_statuses=statuses,
        figures=figures,
        plans=tuple(plan.code for each in effective for plan in each.plans),
        reload_at_ms=tuple(wakes),
    )


def _counted(periods: Iterable[CurrentPeriod], reading: AccountReading) -> dict[str, int]:
    counted: dict[str, int] = {}
    for each in periods:
        counted |= counted_before(reading, each.effective)
    return counted


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
    ending = closing(state, saved)
    if ending:
        return DesiredState(reading.account, None, None, saved, "the current period ends first",
                     period_ends=ending, alerts=tuple(alerts.rows))  # fmt: skip
    statuses = billing_statuses(reading, state, saved, currency, settings, now_ms)
    unsettled = owed(statuses, settings, currency, alerts)
    kept, forget = updated_state(reading, saved, statuses, state, settings, now_ms)
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
        subscription=state.first.name,
    )
    return DesiredState(
        account=reading.account,
        spec=spec,
        period_starts_ms={each.name: each.start_ms for each in state.subscriptions},
        reconcile_state=replace(
            kept,
            last=LastReading(
                now_ms,
                balance,
                "closed",
                saved.last.fingerprint if saved.last else "",
                any(not status.is_final for status in statuses),
            ),
        ),
        forget=forget,
        alerts=tuple(alerts.rows),
        billing_statuses=statuses,
        figures=Figures(currency, balance=balance, unsettled=unsettled, funds=balance),
    )
