"""From what Lago says of an account, and what the ledger has, to what the ledger shall have. Without I/O.

The rule: available = Σ balances of the wallets that pay − what periods owe that are not finally billed − what the
current period has cost, or what Lago has counted in it if that is more. The last but one is the ledger's ``K``, the
last its own; ``funds`` is the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Final
from zlib import crc32

from sidecar.billing.lago.models import Customer
from sidecar.billing.reconcile.account_reading import AccountReading
from sidecar.billing.reconcile.alerts import Alert, Alerts, BillingRefused
from sidecar.billing.reconcile.calendar import next_ends_ms
from sidecar.billing.reconcile.closed_periods import Standing, old_periods, standing_of, unmatched_drafts
from sidecar.billing.reconcile.consistency_checks import check_age, check_raise, check_transactions, foreign_usage
from sidecar.billing.reconcile.effective_prices import Offer, counted_before, offer_of, plan_fee_of, terms_mark
from sidecar.billing.reconcile.enforcement_policy import terms_of
from sidecar.billing.reconcile.funds import funds_of, identity_faults, money, rounding_margin
from sidecar.billing.reconcile.period_change import downgrade_is_due, linked, links_of_offer, must_cut, remembered
from sidecar.billing.reconcile.reconcile_state import LastReading, Memory
from sidecar.billing.settings import LagoSettings
from sidecar.ledger.accounts.account_spec import AccountSpec, Status
from sidecar.ledger.accounts.account_state import AccountState, ClosedPeriod
from sidecar.ledger.accounts.periods import NOW_MS_MAX, FixedPeriod
from sidecar.ledger.pricing.price_tables import PriceError

SPREAD_MS_MAX: Final = 1_800_000
DOWNGRADE_LOOK_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class Cut:
    """The period at hand must end first: ``next_ends_ms`` are the ends of those after it; ``close``: nothing may be
    held any more, at once.
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
class Books:
    """What is to be done for an account.

    ``cut`` comes before ``spec``: with it, the state has changed afterwards and must be reconciled again. ``spec``
    None: nothing is to be loaded, and ``why`` says why. ``counted``: for an account new to the ledger. ``forget``:
    records of closed periods that ``memory`` now has.
    """

    account: str
    spec: AccountSpec | None
    period_start_ms: int | None
    memory: Memory
    why: str = ""
    cut: Cut | None = None
    counted: Mapping[str, int] = field(default_factory=dict)
    forget: tuple[ClosedPeriod, ...] = ()
    alerts: tuple[Alert, ...] = ()
    standings: tuple[Standing, ...] = ()
    figures: Figures | None = None
    plans: tuple[str, ...] = ()
    wake_at_ms: tuple[int, ...] = ()


def reconcile(
    reading: AccountReading, state: AccountState, memory: Memory, settings: LagoSettings, now_ms: int
) -> Books:
    """``state``: the ledger's account, rolled over to ``now_ms`` by Valkey's clock; version 0 if it has none.

    Raises:
        BillingRefused: Lago's data cannot be brought into the ledger; what is there stays in force.
    """
    alerts = Alerts(reading.account)
    customer = reading.customer
    if customer is None:
        # An account that never came from Lago is a file's, and none of our business.
        if state.version == 0 or not memory.came_from_lago:
            return Books(reading.account, None, None, memory, "Lago does not know this customer")
        alerts.add("missing", "Lago does not know this customer any more; the account is closed")
        return _closed(reading, state, memory, settings, alerts, now_ms)
    actives = [each for each in reading.subscriptions if each.is_active and each.plan is not None]
    if not actives:
        if state.version == 0 or not memory.came_from_lago:
            return Books(reading.account, None, None, memory, "the customer has no active subscription")
        return _closed(reading, state, memory, settings, alerts, now_ms)
    offer = offer_of(actives, customer, reading.default_taxes, alerts)
    if offer.refused and not offer.prices and state.version > 0:
        raise BillingRefused("plan", f"plan {offer.plan.code} has no charge that can be enforced: {_last(alerts)}")
    # Before the cut, so that what cannot be loaded does not cut either.
    spec = _open(reading, customer, offer, state, memory, settings, alerts, now_ms)
    if spec.cut is None and spec.spec is not None:
        try:
            spec.spec.check()
        except PriceError as error:
            raise BillingRefused("amount", f"plan {offer.plan.code}: {error}") from None
    return spec


def _last(alerts: Alerts) -> str:
    return alerts.rows[-1].message if alerts.rows else "no reason given"


# An account with an active subscription


def _open(
    reading: AccountReading,
    customer: Customer,
    offer: Offer,
    state: AccountState,
    memory: Memory,
    settings: LagoSettings,
    alerts: Alerts,
    now_ms: int,
) -> Books:
    primary, plan = offer.primary, offer.plan
    currency = plan.currency
    _check_currency(state, currency)
    lago_from, lago_to = primary.period_start_ms, primary.period_end_ms
    if lago_from is None or lago_to is None:
        raise BillingRefused("subscription", f"subscription {primary.external_id} is active but has no billing period")
    ends = next_ends_ms(primary, plan, customer.timezone)
    is_new = state.version == 0
    if not is_new and must_cut(state, memory, offer, lago_from):
        following = (lago_to, *ends)
        return Books(reading.account, None, None, memory, "the period at hand ends first",
                     cut=Cut(following, close=False), alerts=tuple(alerts.rows))  # fmt: skip
    # Ahead of Lago by its clock: the period that the ledger has begun stands.
    ahead = not is_new and state.period_start_ms >= lago_to
    start_ms = lago_from // 1000 * 1000 if is_new else state.period_start_ms
    end_ms, later = (state.period_end_ms, state.next_ends_ms) if ahead else (lago_to, ends)
    funds = funds_of(reading.wallets, tuple(offer.prices), currency, now_ms)
    for fault in funds.ignored:
        alerts.add("wallet", fault)
    for wallet in reading.wallets:
        if wallet.is_active:
            for fault in identity_faults(wallet):
                alerts.add("identity", fault)
    check_transactions(reading, alerts)
    has_wallet = any(wallet.is_active for wallet in reading.wallets)
    terms = terms_of(customer, plan, has_wallet, settings.plans)
    plan_fee = plan_fee_of(offer, customer, reading.default_taxes) if funds.pays_plan_fee else Decimal(0)

    standings = _standings(reading, state, memory, currency, settings, now_ms)
    periods = [standing.period for standing in standings]
    unsettled = _owed(standings, settings, currency, alerts)
    unsettled += unmatched_drafts(periods, reading.invoices, currency)
    unpaid = Decimal(0)
    if terms.mode == "postpaid":
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
        counted = counted_before(reading, offer)
        foreign = Decimal(0)
    else:
        counted = {}
        foreign = Decimal(0) if ahead else foreign_usage(reading, offer, state, currency, alerts)
    taxes = len(customer.taxes or reading.default_taxes)
    margin = rounding_margin(offer.prices.values(), taxes, currency) if terms.mode == "prepaid" else Decimal(0)
    available = funds.balance - plan_fee - margin - foreign
    unsettled += unpaid
    spec = AccountSpec(
        id=reading.account,
        mode=terms.mode,
        currency=currency,
        period=FixedPeriod(start_ms, end_ms, later),
        prices=offer.prices,
        status=terms.status,
        funds=available,
        overdraft=terms.overdraft,
        spending_cap=terms.spending_cap,
        credit_limit=terms.credit_limit,
        unsettled=unsettled,
        limits=terms.limits,
        api_keys=terms.api_keys,
    )
    figures = Figures(currency, funds.balance, plan_fee, margin, foreign, unpaid, unsettled, available)
    mark = terms_mark(terms, offer)
    check_raise(state, spec, memory, standings, funds, mark, alerts)
    check_age(standings, alerts, now_ms)
    if not reading.is_stable:
        alerts.add("unstable", "its invoices kept changing while they were read; it is read again soon")
    is_open = any(not standing.is_final for standing in standings)
    last = LastReading(now_ms, funds.balance, mark, memory.last.fingerprint if memory.last else "", is_open)
    kept, forget = remembered(reading, memory, standings, state, settings, now_ms)
    waits = not is_new and downgrade_is_due(reading, primary, start_ms, now_ms)
    current = {} if waits else links_of_offer(offer, start_ms, end_ms, lago_from, lago_to, ahead)
    kept = replace(
        kept,
        links={**{key: link for key, link in kept.links.items() if key[0] != start_ms}, **current},
        fees={**kept.fees, start_ms: plan_fee},
        last=last,
    )
    moments = (
        funds.next_expiry_ms,
        _after(reading.account, start_ms, end_ms),
        now_ms + DOWNGRADE_LOOK_MS if waits else None,
    )
    wakes = [at for at in moments if at is not None and at > now_ms]
    return Books(
        account=reading.account,
        spec=spec,
        period_start_ms=None if is_new else start_ms,
        memory=kept,
        counted=counted,
        forget=forget,
        alerts=tuple(alerts.rows),
        standings=standings,
        figures=figures,
        plans=tuple(each.code for each in offer.plans),
        wake_at_ms=tuple(wakes),
    )


def _after(account: str, start_ms: int, end_ms: int) -> int:
    """When to look again after the period's end: not all accounts of a bank in the second in which a month begins."""
    spread_ms = min((end_ms - start_ms) // 10, SPREAD_MS_MAX)
    return end_ms + spread_ms * (crc32(account.encode()) % 1000) // 1000


def _check_currency(state: AccountState, currency: str) -> None:
    stored = state.info.get("currency") if state.version > 0 else None
    used = any(usage.settled or usage.held for usage in state.usages) or state.unsettled
    if stored and stored != currency and used:
        raise BillingRefused(
            "amount", f"its currency was {stored} and is {currency} now, with usage of this period open"
        )


def _standings(
    reading: AccountReading,
    state: AccountState,
    memory: Memory,
    currency: str,
    settings: LagoSettings,
    now_ms: int,
) -> tuple[Standing, ...]:
    voided_open_ms = settings.reconcile.voided_open_s * 1000
    return tuple(
        standing_of(linked(period, reading), reading.invoices, currency, now_ms, voided_open_ms)
        for period in old_periods(state, memory)
    )


def _owed(standings: Sequence[Standing], settings: LagoSettings, currency: str, alerts: Alerts) -> Decimal:
    """With ``carry`` a shortfall is billed in the current period, and Lago's own figure for that has it."""
    total = Decimal(0)
    for standing in standings:
        if not standing.is_final:
            total += standing.owed
        elif standing.owed and settings.sync.late_usage == "report":
            total += standing.owed
            alerts.add("short", f"the final invoice of a period has {standing.billed} {currency} for usage, the ledger"
                       f" {standing.period.cost}: the difference stays set aside")  # fmt: skip
    return total


# An account without an active subscription


def _closed(
    reading: AccountReading,
    state: AccountState,
    memory: Memory,
    settings: LagoSettings,
    alerts: Alerts,
    now_ms: int,
) -> Books:
    """What it has used is billed on its last invoice; it takes no new holds."""
    currency = str(state.info.get("currency", ""))
    if memory.links_of(state.period_start_ms) or any(usage.settled for usage in state.usages):
        return Books(reading.account, None, None, memory, "the period at hand ends first",
                     cut=Cut((NOW_MS_MAX,), close=True), alerts=tuple(alerts.rows))  # fmt: skip
    standings = _standings(reading, state, memory, currency, settings, now_ms)
    unsettled = _owed(standings, settings, currency, alerts)
    kept, forget = remembered(reading, memory, standings, state, settings, now_ms)
    mode = state.info.get("mode")
    balance = funds_of(reading.wallets, (), currency, now_ms).balance
    spec = AccountSpec(
        id=reading.account,
        mode=mode if mode in ("prepaid", "overage", "postpaid") else "postpaid",
        currency=currency,
        period=FixedPeriod(state.period_start_ms, max(state.period_end_ms, NOW_MS_MAX)),
        prices={},
        status=Status.CLOSED,
        funds=balance,
        spending_cap=Decimal(0) if mode == "overage" else None,
        credit_limit=Decimal(0) if mode == "postpaid" else None,
        unsettled=unsettled,
    )
    return Books(
        account=reading.account,
        spec=spec,
        period_start_ms=state.period_start_ms,
        memory=replace(
            kept,
            last=LastReading(
                now_ms,
                balance,
                "closed",
                memory.last.fingerprint if memory.last else "",
                any(not standing.is_final for standing in standings),
            ),
        ),
        forget=forget,
        alerts=tuple(alerts.rows),
        standings=standings,
        figures=Figures(currency, balance=balance, unsettled=unsettled, funds=balance),
    )
