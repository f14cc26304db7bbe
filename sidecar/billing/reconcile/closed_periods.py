"""Closed periods of the ledger, and whether Lago has billed them.

What a period cost stays owed until its invoice is final, for only then has Lago taken it from the wallet. A ledger
period belongs to the Lago period of its subscription that contains its start.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal

from sidecar.billing.lago.models import Invoice
from sidecar.billing.metric_mapping import BilledMetric
from sidecar.billing.reconcile.funds import FEE_KINDS, money
from sidecar.billing.reconcile.reconcile_state import InvoicedPeriod, ReconcileState
from sidecar.billing.usage_sync.fee_groups import fee_groups
from sidecar.billing.usage_sync.period_links import PeriodKey, PeriodLink
from sidecar.ledger.accounts.account_state import AccountState

_WITHOUT_USAGE: Final = frozenset(
    ("subscription_starting", "in_advance_charge", "in_advance_charge_periodic", "progressive_billing")
)
"""Reasons for an invoice (lago-api ``InvoiceSubscription.invoicing_reasons``) that bills no usage of its period."""

_NOT_YET: Final = frozenset(("draft", "pending", "failed", "open", "generating"))

Stage = Literal["unbilled", "draft", "final", "voided", "written_off"]


@dataclass(frozen=True, slots=True)
class ClosedPeriod:
    """A period of one of the ledger's subscriptions that is over, with all its metrics. ``fee`` is what is billed
    beside usage, as far as a wallet pays it. ``foreign``: what Lago had counted beyond the ledger when it was read
    last.

    ``invoiced``: what is saved of it since its invoice was final or voided. ``subscription``: the ledger's.
    """

    start_ms: int
    end_ms: int
    units: Mapping[str, int]
    costs: Mapping[str, Decimal]
    fee: Decimal
    links: tuple[PeriodLink, ...]
    invoiced: InvoicedPeriod | None = None
    foreign: Decimal = Decimal(0)
    subscription: str = ""

    @property
    def key(self) -> PeriodKey:
        return self.start_ms, self.subscription

    @property
    def owed(self) -> Decimal:
        """What it takes from the funds as long as no invoice says more."""
        return self.cost + self.fee + self.foreign

    def billed_metric(self, metric: str) -> BilledMetric:
        """How Lago bills a metric in this period."""
        found = (link.billed_metric(metric) for link in self.links if metric in link.metrics)
        return next(found, BilledMetric(metric, metric))

    @property
    def cost(self) -> Decimal:
        """The cost of its usage."""
        return sum(self.costs.values(), Decimal(0))


@dataclass(frozen=True, slots=True)
class BillingStatus:
    """Whether Lago has billed a closed period.

    ``owed`` is what the period still takes from the funds. ``invoice`` is the one that bills it, if there is one, and
    ``billed`` what a final one has for its usage where units are missing on it. ``stage`` "written_off": its invoice
    was voided, and no other one came in time.
    """

    period: ClosedPeriod
    stage: Stage
    owed: Decimal
    invoice: Invoice | None
    billed: Decimal | None = None

    @property
    def is_final(self) -> bool:
        return self.stage in ("final", "written_off")


def closed_periods(state: AccountState, saved: ReconcileState) -> tuple[ClosedPeriod, ...]:
    """Every period before the current one of its subscription that is not forgotten, oldest first. Of a subscription
    that the ledger has no more all are over."""
    keys = saved.periods | {(period.start_ms, period.subscription) for period in state.closed}
    periods: list[ClosedPeriod] = []
    for name in {name for _, name in keys}:
        live = state.named(name)
        last = None if live is None else live.start_ms
        older = sorted(start for start, of in keys if of == name and (live is None or start < live.start_ms))
        for start, following in zip(older, (*older[1:], last), strict=False):
            periods.append(_closed_period((start, name), following, state, saved))
    return tuple(sorted(periods, key=lambda period: period.key))


def _closed_period(
    key: PeriodKey, following_ms: int | None, state: AccountState, saved: ReconcileState
) -> ClosedPeriod:
    start_ms, name = key
    links = saved.links_of(key)
    following = start_ms + 1000 if following_ms is None else following_ms
    planned = max((link.ledger_end_ms for link in links), default=following)
    closed = [period for period in state.closed if (period.start_ms, period.subscription) == key]
    invoiced = saved.invoiced.get(key)
    units = {period.metric: period.units for period in closed}
    costs = {period.metric: state.money(period.cost) for period in closed}
    if not closed and invoiced is not None:
        units, costs = dict(invoiced.units), dict(invoiced.costs)
    return ClosedPeriod(
        start_ms=start_ms,
        end_ms=planned if following_ms is None else min(planned, following),
        units=units,
        costs=costs,
        fee=saved.fees.get(key, Decimal(0)),
        links=links,
        invoiced=invoiced,
        foreign=saved.foreign.get(key, Decimal(0)),
        subscription=name,
    )


def billing_status(
    period: ClosedPeriod,
    invoices: Sequence[Invoice],
    currency: str,
    now_ms: int,
    voided_open_ms: int,
    pays: Collection[str] = FEE_KINDS,
) -> BillingStatus:
    """The status of a period. ``invoices``: with their periods and fees, as far as they could bill it. ``pays``: kinds
    of fees beside usage that a wallet pays.
    """
    of_period = [invoice for invoice in invoices if _bills(invoice, period)]
    # Subscriptions of one account may be billed on invoices of their own; all of them must be final.
    final = [invoice for invoice in of_period if invoice.status == "finalized"]
    if final and all(any(_bills_link(invoice, link) for invoice in final) for link in period.links):
        billed = _billed_short(final, period, currency)
        return BillingStatus(period, "final", shortfall(period, billed, currency), final[0], billed)
    draft = [invoice for invoice in of_period if invoice.status in _NOT_YET]
    if draft:
        billed = sum((_total(invoice, period, currency, pays) for invoice in draft), Decimal(0))
        # Lago's count is on the draft, with what the ledger has not.
        return BillingStatus(period, "draft", max(period.cost + period.fee, billed), draft[0])
    invoiced = period.invoiced
    voided = [invoice for invoice in of_period if invoice.status == "voided"]
    if voided or _is_voided(invoiced, invoices):
        since = voided[0].voided_at_ms if voided else None
        if since is None:
            since = invoiced.voided_at_ms if invoiced is not None and invoiced.voided_at_ms is not None else now_ms
        invoice = voided[0] if voided else None
        if now_ms - since >= voided_open_ms:
            return BillingStatus(period, "written_off", Decimal(0), invoice)
        return BillingStatus(period, "voided", period.owed, invoice)
    if invoiced is not None:
        return BillingStatus(period, "final", shortfall(period, invoiced.billed, currency), None, invoiced.billed)
    return BillingStatus(period, "unbilled", period.owed, None)


def _billed_short(final: Sequence[Invoice], period: ClosedPeriod, currency: str) -> Decimal | None:
    """The amount of final invoices for the period's usage if units are missing on them, else None: what a bank asks for
    the units is its own affair.
    """
    subscriptions = {link.subscription_id for link in period.links}
    fees = [
        fee
        for invoice in final
        for fee in invoice.fees or ()
        if fee.kind == "charge" and fee.subscription_id in subscriptions
    ]
    for group in fee_groups(map(period.billed_metric, period.units), fees):
        if sum(fee.units for fee in group.fees) < sum(period.units[metric] for metric in group.metrics):
            break
    else:
        return None
    return sum((_usage_total(invoice, period, currency) for invoice in final), Decimal(0))


def shortfall(period: ClosedPeriod, billed: Decimal | None, currency: str) -> Decimal:
    """The part of a period's cost that its final invoice lacks: usage that came too late for it.

    It was served and never taken from a wallet, so it must not become funds again. What fees and taxes lose by being
    rounded is none.
    """
    if billed is None:
        return Decimal(0)
    missing = period.cost - billed
    return missing if missing > money(2 * max(1, len(period.units)), currency) else Decimal(0)


def unmatched_drafts(periods: Iterable[ClosedPeriod], invoices: Iterable[Invoice], currency: str) -> Decimal:
    """The amount of drafts for periods that the ledger has never had, such as those before it was introduced."""
    known = list(periods)
    total = Decimal(0)
    for invoice in invoices:
        waits = invoice.status in _NOT_YET and invoice.type == "subscription" and invoice.currency == currency
        if waits and not any(_bills(invoice, period) for period in known):
            total += money(invoice.fees_cents + invoice.taxes_cents, currency)
    return total


def _is_voided(invoiced: InvoicedPeriod | None, invoices: Iterable[Invoice]) -> bool:
    if invoiced is None or invoiced.invoice_id is None:
        return False
    return any(invoice.lago_id == invoiced.invoice_id and invoice.status == "voided" for invoice in invoices)


def _bills(invoice: Invoice, period: ClosedPeriod) -> bool:
    return any(_bills_link(invoice, link) for link in period.links)


def _bills_link(invoice: Invoice, link: PeriodLink) -> bool:
    start = max(link.ledger_start_ms, link.lago_from_ms)
    return any(
        billed.subscription_id == link.subscription_id
        and billed.reason not in _WITHOUT_USAGE
        and billed.from_ms <= start < billed.to_ms
        for billed in invoice.periods or ()
    )


def _total(invoice: Invoice, period: ClosedPeriod, currency: str, pays: Collection[str]) -> Decimal:
    """All that wallets pay of a draft, with taxes, but for fees of subscriptions that have periods of their own."""
    subscriptions = {link.subscription_id for link in period.links}
    others = {billed.subscription_id for billed in invoice.periods or ()} - subscriptions
    fees = [fee for fee in invoice.fees or () if fee.subscription_id not in others]
    cents = sum(fee.amount_cents + fee.taxes_cents for fee in fees if fee.kind == "charge" or fee.kind in pays)
    if not others and all(kind in pays for kind in FEE_KINDS):
        cents = max(cents, invoice.fees_cents + invoice.taxes_cents)
    return money(cents, currency)


def _usage_total(invoice: Invoice, period: ClosedPeriod, currency: str) -> Decimal:
    """Usage of this period's subscriptions, with taxes."""
    subscriptions = {link.subscription_id for link in period.links}
    cents = sum(
        fee.amount_cents + fee.taxes_cents
        for fee in invoice.fees or ()
        if fee.subscription_id in subscriptions and fee.kind == "charge"
    )
    return money(cents, currency)
