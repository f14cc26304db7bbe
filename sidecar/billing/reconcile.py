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

from sidecar.billing.alerts import Alert, AlertKind, BillingRefused
from sidecar.billing.books import OldPeriod, Standing, old_periods, standing_of, unmatched_drafts
from sidecar.billing.calendar import next_ends_ms
from sidecar.billing.funds import Funds, funds_of, identity_faults, money, rounding_margin
from sidecar.billing.lago.models import Customer, Plan, Subscription, Tax
from sidecar.billing.memory import LastReading, Memory, SettledPeriod
from sidecar.billing.prices import plan_prices
from sidecar.billing.reading import AccountReading
from sidecar.billing.settings import LagoSettings
from sidecar.billing.sync.links import PeriodLink
from sidecar.billing.taxes import gross, subscription_taxes
from sidecar.billing.terms import Terms, terms_of
from sidecar.ledger.account_spec import METRICS_MAX, AccountSpec, Status
from sidecar.ledger.account_state import AccountState, ClosedPeriod
from sidecar.ledger.periods import NOW_MS_MAX, FixedPeriod
from sidecar.ledger.pricing import PriceError, PriceTable

UNBILLED_MS_MAX: Final = 2 * 86_400_000
"""A period that owes something, is over for so long and has not even a draft, is worth a look."""

SPREAD_MS_MAX: Final = 1_800_000
ADOPTED_MS_MAX: Final = 3_600_000
"""By how much a subscription may start after the ledger's period and still take all of it over."""
DOWNGRADE_LOOK_MS: Final = 60_000
_DAY_MS: Final = 86_400_000


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


@dataclass(frozen=True, slots=True)
class _Offer:
    """What the active subscriptions of an account come to: one period, one price for each metric."""

    primary: Subscription
    plan: Plan
    plans: tuple[Plan, ...]
    prices: Mapping[str, PriceTable]
    sold_by: Mapping[str, Subscription]
    refused: int

    @property
    def sellers(self) -> tuple[Subscription, ...]:
        """Those that bill usage; the primary one if none does."""
        by_id = {each.lago_id: each for each in self.sold_by.values()}
        return tuple(by_id.values()) or (self.primary,)


class _Alerts:
    def __init__(self, account: str) -> None:
        self.account = account
        self.rows: list[Alert] = []

    def add(self, kind: AlertKind, message: str) -> None:
        self.rows.append(Alert(kind, self.account, message))


def reconcile(
    reading: AccountReading, state: AccountState, memory: Memory, settings: LagoSettings, now_ms: int
) -> Books:
    """``state``: the ledger's account, rolled over to ``now_ms`` by Valkey's clock; version 0 if it has none.

    Raises:
        BillingRefused: Lago's data cannot be brought into the ledger; what is there stays in force.
    """
    alerts = _Alerts(reading.account)
    customer = reading.customer
    if customer is None:
        # An account that never came from Lago is a file's, and none of our business.
        if state.version == 0 or memory.last is None:
            return Books(reading.account, None, None, memory, "Lago does not know this customer")
        alerts.add("missing", "Lago does not know this customer any more; the account is closed")
        return _closed(reading, state, memory, settings, alerts, now_ms)
    actives = [each for each in reading.subscriptions if each.is_active and each.plan is not None]
    if not actives:
        if state.version == 0 or memory.last is None:
            return Books(reading.account, None, None, memory, "the customer has no active subscription")
        return _closed(reading, state, memory, settings, alerts, now_ms)
    offer = _offer(actives, customer, reading.default_taxes, alerts)
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


def _last(alerts: _Alerts) -> str:
    return alerts.rows[-1].message if alerts.rows else "no reason given"


# What the subscriptions offer


def _offer(actives: Sequence[Subscription], customer: Customer, defaults: tuple[Tax, ...], alerts: _Alerts) -> _Offer:
    by_age = sorted(actives, key=lambda each: (each.started_at_ms or each.created_at_ms, each.lago_id))
    priced = [each for each in by_age if each.plan is not None and each.plan.charges] or by_age
    primary = priced[0]
    assert primary.plan is not None
    bounds = (primary.period_start_ms, primary.period_end_ms)
    prices: dict[str, PriceTable] = {}
    sold_by: dict[str, Subscription] = {}
    refused = 0
    for each in priced:
        plan = each.plan
        assert plan is not None
        if not plan.charges:
            continue
        if plan.currency != primary.plan.currency:
            alerts.add("subscription", f"subscription {each.external_id}: its currency is {plan.currency}, that of"
                       f" {primary.external_id} is {primary.plan.currency}; its metrics are not served")  # fmt: skip
            continue
        if (each.period_start_ms, each.period_end_ms) != bounds:
            alerts.add("subscription", f"subscription {each.external_id} has other billing periods than"
                       f" {primary.external_id}; an account has one period, so its metrics are not served")  # fmt: skip
            continue
        found = plan_prices(plan, customer, defaults)
        for fault in found.refused:
            alerts.add("plan", str(fault))
            refused += 1
        for metric, table in found.prices.items():
            if metric in prices:
                alerts.add("subscription", f"{metric} is charged by the subscriptions {sold_by[metric].external_id} and"
                           f" {each.external_id}; it is counted for the first")  # fmt: skip
                continue
            prices[metric], sold_by[metric] = table, each
    if len(prices) > METRICS_MAX:
        raise BillingRefused("plan", f"{len(prices)} metrics are charged; an account has at most {METRICS_MAX}")
    plans = tuple(each.plan for each in by_age if each.plan is not None)
    return _Offer(primary, primary.plan, plans, prices, sold_by, refused)


# An account with an active subscription


def _open(
    reading: AccountReading,
    customer: Customer,
    offer: _Offer,
    state: AccountState,
    memory: Memory,
    settings: LagoSettings,
    alerts: _Alerts,
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
    if not is_new and _must_cut(state, memory, offer, lago_from):
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
    _check_transactions(reading, alerts)
    has_wallet = any(wallet.is_active for wallet in reading.wallets)
    terms = terms_of(customer, plan, has_wallet, settings.plans)
    plan_fee = _plan_fee(offer, customer, reading.default_taxes, now_ms) if funds.pays_plan_fee else Decimal(0)

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
        counted = _counted(reading, offer)
        foreign = Decimal(0)
    else:
        counted = {}
        foreign = Decimal(0) if ahead else _foreign(reading, offer, state, currency, alerts)
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
    mark = _terms_mark(terms, offer)
    _check_raise(state, spec, memory, standings, funds, mark, alerts)
    _check_age(standings, alerts, now_ms)
    if not reading.is_stable:
        alerts.add("unstable", "its invoices kept changing while they were read; it is read again soon")
    is_open = any(not standing.is_final for standing in standings)
    last = LastReading(now_ms, funds.balance, mark, memory.last.fingerprint if memory.last else "", is_open)
    kept, forget = _remembered(reading, memory, standings, state, settings, now_ms)
    waits = not is_new and _downgrade_is_due(reading, primary, start_ms, now_ms)
    current = {} if waits else _links(offer, start_ms, end_ms, lago_from, lago_to, ahead)
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


def _must_cut(state: AccountState, memory: Memory, offer: _Offer, lago_from_ms: int) -> bool:
    """Whether the ledger's period began before the one that Lago is in, or at no whole second, as one from an accounts
    file may. If Lago is in a period of another subscription, but the ledger's lies in it, it has always been that one.

    Lago starts the plan after a downgrade ten minutes into the day, and bills what is used until then to nobody
    (lago-api ``plan_downgrade_service.rb``). A period of which nothing was pushed yet goes to the new plan as a whole.
    """
    start_ms, from_ms = state.period_start_ms, lago_from_ms // 1000 * 1000
    if start_ms % 1000 or from_ms - start_ms > ADOPTED_MS_MAX:
        return True
    others = {link.subscription_id for link in memory.links_of(start_ms)} - {each.lago_id for each in offer.sellers}
    return start_ms < from_ms and bool(others)


def _downgrade_is_due(reading: AccountReading, primary: Subscription, start_ms: int, now_ms: int) -> bool:
    """Whether another plan should have begun with the period, and Lago has not got to it yet."""
    if primary.next_plan_code is None or now_ms - start_ms > ADOPTED_MS_MAX:
        return False
    return any(
        each.status == "pending" and each.external_id == primary.external_id and each.created_at_ms < start_ms
        for each in reading.subscriptions
    )


def _plan_fee(offer: _Offer, customer: Customer, defaults: tuple[Tax, ...], now_ms: int) -> Decimal:
    """What the plans themselves will cost at the end of the period; a whole one, though Lago may prorate it."""
    total = Decimal(0)
    for plan in offer.plans:
        if plan.currency != offer.plan.currency or not plan.amount_cents:
            continue
        if _on_trial(offer.primary, plan):
            continue
        net = money(plan.amount_cents, plan.currency)
        total += gross(net, subscription_taxes(plan, customer, defaults))
    # Taxes are rounded to the coin: up, to be on the safe side.
    coin = money(1, offer.plan.currency)
    return -(-total // coin) * coin


def _on_trial(subscription: Subscription, plan: Plan) -> bool:
    started, end = subscription.started_at_ms, subscription.period_end_ms
    if plan.trial_days <= 0 or subscription.trial_ended_at_ms is not None or started is None or end is None:
        return False
    return started + int(plan.trial_days * _DAY_MS) >= end


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
        standing_of(_linked(period, reading), reading.invoices, currency, now_ms, voided_open_ms)
        for period in old_periods(state, memory)
    )


def _owed(standings: Sequence[Standing], settings: LagoSettings, currency: str, alerts: _Alerts) -> Decimal:
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


def _linked(period: OldPeriod, reading: AccountReading) -> OldPeriod:
    """A period that nobody has linked, as Lago was out of reach all through it, belongs to whom it lies with."""
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
            )
            return replace(period, links=(link,))
    return period


def _counted(reading: AccountReading, offer: _Offer) -> dict[str, int]:
    counted: dict[str, int] = {}
    for subscription in offer.sold_by.values():
        usage = reading.usages.get(subscription.external_id)
        for charge in usage.charges if usage is not None else ():
            if charge.metric_code in offer.prices and charge.units > 0:
                counted[charge.metric_code] = max(counted.get(charge.metric_code, 0), -int(-charge.units // 1))
    return counted


def _foreign(reading: AccountReading, offer: _Offer, state: AccountState, currency: str, alerts: _Alerts) -> Decimal:
    """By how much Lago's own figure for the current period exceeds what the ledger has settled in it."""
    total = Decimal(0)
    roundings = 0
    for external_id in {each.external_id for each in offer.sold_by.values()}:
        usage = reading.usages.get(external_id)
        if usage is not None and usage.from_ms <= state.period_start_ms < usage.to_ms:
            total += money(usage.total_cents, currency)
            roundings += len(usage.charges) + 1
    spent = sum((state.money(state.cost_of(usage)) for usage in state.usages), Decimal(0))
    excess = total - spent
    if excess <= money(roundings, currency):
        return Decimal(0)
    alerts.add(
        "foreign",
        f"Lago has counted {total} {currency} in the current period, the ledger {spent}: the difference is set aside;"
        " events that did not pass the gateway, or lost data, may be the reason",
    )
    return excess


def _check_transactions(reading: AccountReading, alerts: _Alerts) -> None:
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


def _terms_mark(terms: Terms, offer: _Offer) -> str:
    """Changes when something other than money may raise what is available."""
    plans = (plan.lago_id for plan in offer.plans)
    prices = (f"{metric}={table}" for metric, table in sorted(offer.prices.items()))
    parts = (terms.mode, terms.overdraft, terms.spending_cap, terms.credit_limit, *plans, *prices)
    return "|".join(map(str, parts))[:4_000]


def _check_raise(
    state: AccountState,
    spec: AccountSpec,
    memory: Memory,
    standings: Sequence[Standing],
    funds: Funds,
    mark: str,
    alerts: _Alerts,
) -> None:
    """Rule 4 of the ledger, looked at from here: no give-back."""
    ceiling = spec.ceiling
    if state.version == 0 or state.ceiling is None or ceiling is None or memory.last is None:
        return
    before = state.money(state.ceiling - (state.unsettled if state.count_k else 0))
    after = ceiling - ((spec.unsettled or Decimal(0)) if spec.counts_unsettled else Decimal(0))
    if after <= before or funds.balance > memory.last.balance or mark != memory.last.terms:
        return
    if any(standing.is_final and standing.period.settled is None for standing in standings):
        return
    alerts.add(
        "raise", f"available rises from {before} to {after} {spec.currency} without new money or a final invoice"
    )


def _check_age(standings: Sequence[Standing], alerts: _Alerts, now_ms: int) -> None:
    for standing in standings:
        age_ms = now_ms - standing.period.end_ms
        if standing.stage == "unbilled" and standing.owed > 0 and age_ms > UNBILLED_MS_MAX:
            days = age_ms // _DAY_MS
            alerts.add("unsettled", f"a period that ended {days} days ago owes {standing.owed} and has no invoice")


def _remembered(
    reading: AccountReading,
    memory: Memory,
    standings: Sequence[Standing],
    state: AccountState,
    settings: LagoSettings,
    now_ms: int,
) -> tuple[Memory, tuple[ClosedPeriod, ...]]:
    """What is kept of periods that are over, and which of the ledger's records are not needed any more."""
    kept_ms = settings.reconcile.closed_kept_s * 1000
    ends = {each.lago_id: each.terminated_at_ms for each in reading.subscriptions if each.terminated_at_ms is not None}
    links, fees = dict(memory.links), dict(memory.fees)
    settled, checks = dict(memory.settled), dict(memory.checks)
    forget: list[ClosedPeriod] = []
    for standing in standings:
        period = standing.period
        start = period.start_ms
        at_ms = period.settled.at_ms if period.settled is not None else now_ms
        for link in period.links:
            # No event counts for a subscription that has ended, and the ledger heard of its end a moment later.
            ended = ends.get(link.subscription_id, link.lago_to_ms)
            lago_to_ms = min(link.lago_to_ms, ended) if ended > link.lago_from_ms else link.lago_to_ms
            links[start, link.subscription_id] = replace(
                link, ledger_end_ms=period.end_ms, lago_to_ms=lago_to_ms, is_final=standing.is_final, is_current=False
            )
        voided_at = period.settled.voided_at_ms if period.settled is not None else None
        if standing.stage == "voided":
            voided_at = voided_at if voided_at is not None else now_ms
        if standing.stage in ("final", "forgiven", "voided"):
            invoice = standing.invoice.lago_id if standing.invoice else None
            if invoice is None and period.settled is not None:
                invoice = period.settled.invoice_id
            settled[start] = SettledPeriod(
                start, period.end_ms, invoice, period.units, period.costs, period.fee, at_ms,
                None if standing.stage == "final" else voided_at, standing.billed,
            )  # fmt: skip
            forget += [closed for closed in state.closed if closed.start_ms == start]
        # A period without usage and without a fee owes nothing, whether Lago makes an invoice of it or not.
        idle = not period.units and not period.cost and not period.fee
        if now_ms - period.end_ms > kept_ms and (standing.is_final or idle):
            settled.pop(start, None)
            fees.pop(start, None)
            checks.pop(start, None)
            links = {key: link for key, link in links.items() if key[0] != start}
    return Memory(links, fees, settled, memory.last, checks), tuple(forget)


def _links(
    offer: _Offer, start_ms: int, end_ms: int, lago_from_ms: int, lago_to_ms: int, ahead: bool
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
            metrics=tuple(sorted(metric for metric, seller in offer.sold_by.items() if seller.lago_id == each.lago_id)),
            is_final=False,
            is_current=True,
        )
        for each in offer.sellers
    }


# An account without an active subscription


def _closed(
    reading: AccountReading,
    state: AccountState,
    memory: Memory,
    settings: LagoSettings,
    alerts: _Alerts,
    now_ms: int,
) -> Books:
    """What it has used is billed on its last invoice; it takes no new holds."""
    currency = str(state.info.get("currency", ""))
    if memory.links_of(state.period_start_ms) or any(usage.settled for usage in state.usages):
        return Books(reading.account, None, None, memory, "the period at hand ends first",
                     cut=Cut((NOW_MS_MAX,), close=True), alerts=tuple(alerts.rows))  # fmt: skip
    standings = _standings(reading, state, memory, currency, settings, now_ms)
    unsettled = _owed(standings, settings, currency, alerts)
    kept, forget = _remembered(reading, memory, standings, state, settings, now_ms)
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
