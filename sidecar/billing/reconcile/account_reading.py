"""Reads everything about one account from Lago, in the order that makes it safe.

Invoices, then wallets and credits, then invoices again: Lago debits them in the transaction that makes an invoice
final, so with the same invoices before and after, what is read in between either contains a debit or its invoice is not
final. A debit between the two would count twice (strict), never not at all.

Lago's usage of the current period is the one thing that a reading can do without: see :func:`_is_optional`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from sidecar.basics.logger import get_logger
from sidecar.billing.lago.errors import LagoError, LagoUnauthorized, LagoUnavailable
from sidecar.billing.lago.json_fields import number_of
from sidecar.billing.lago.models import (
    AppliedCoupon,
    BillableMetric,
    Coupon,
    CreditNote,
    CurrentUsage,
    Customer,
    FixedCharge,
    Invoice,
    Subscription,
    Tax,
    Wallet,
    WalletTransaction,
)
from sidecar.billing.reconcile.charge_filters import ALL_VALUES
from sidecar.billing.reconcile.credit_reading import NO_CREDITS, CreditReader, Credits

log = get_logger("sidecar.billing")

INVOICES_MAX: Final = 60
"""Newest invoices looked at: years of monthly ones. A period owes its cost until its invoice is seen."""

DETAILS_MAX: Final = 24
ATTEMPTS_MAX: Final = 4
TRANSACTIONS_WALLETS_MAX: Final = 6


class LagoReader(Protocol):
    """The part of ``LagoClient`` that is needed here."""

    async def customer(self, external_id: str) -> Customer | None: ...

    async def subscriptions(self, customer: str, *, statuses: Sequence[str] = ...) -> tuple[Subscription, ...]: ...

    async def subscription(self, external_id: str) -> Subscription | None: ...

    async def fixed_charges(self, external_subscription_id: str) -> tuple[FixedCharge, ...]: ...

    async def wallets(self, customer: str) -> tuple[Wallet, ...]: ...

    async def wallet_transactions(self, wallet_id: str) -> tuple[WalletTransaction, ...]: ...

    async def current_usage(self, customer: str, external_subscription_id: str) -> CurrentUsage | None: ...

    async def invoices(self, customer: str, *, limit: int = ...) -> tuple[Invoice, ...]: ...

    async def invoice(self, lago_id: str) -> Invoice | None: ...

    async def taxes(self) -> tuple[Tax, ...]: ...

    async def billable_metrics(self) -> tuple[BillableMetric, ...]: ...

    async def applied_coupons(self, customer: str) -> tuple[AppliedCoupon, ...]: ...

    async def coupon(self, code: str) -> Coupon | None: ...

    async def credit_notes(self, customer: str) -> tuple[CreditNote, ...]: ...


@dataclass(frozen=True, slots=True)
class AccountReading:
    """``subscriptions``: all that are or were, the active ones with their effective plan. ``invoices``: the newest,
    those from ``oldest_ms`` on with periods and fees. ``usages`` by external subscription id; ``unread_usages`` are of
    those that Lago could not tell. ``is_stable`` False: the invoices kept changing. ``transactions`` by wallet, only
    where they were asked for. ``rounded_metrics``: codes of metrics of which Lago bills other units than were counted.
    ``credits``: coupons and credit notes, of an account that may be prepaid.
    ``listed_values``: those of properties that billable metrics list for filters, by code and property.
    """

    account: str
    read_at_ms: int
    customer: Customer | None
    subscriptions: tuple[Subscription, ...] = ()
    wallets: tuple[Wallet, ...] = ()
    invoices: tuple[Invoice, ...] = ()
    usages: Mapping[str, CurrentUsage] = field(default_factory=dict)
    default_taxes: tuple[Tax, ...] = ()
    transactions: Mapping[str, tuple[WalletTransaction, ...]] = field(default_factory=dict)
    is_stable: bool = True
    unread_usages: frozenset[str] = frozenset()
    rounded_metrics: frozenset[str] = frozenset()
    credits: Credits = NO_CREDITS
    listed_values: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)


async def read_account(
    lago: LagoReader,
    account: str,
    default_taxes: tuple[Tax, ...],
    now_ms: int,
    oldest_ms: int,
    *,
    with_transactions: bool = False,
    rounded_metrics: frozenset[str] = frozenset(),
    credits: CreditReader | None = None,
    listed_values: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
) -> AccountReading:
    """Read one account. ``oldest_ms``: invoices older than that are not needed in detail; 0: the account is new to the
    ledger.

    Raises:
        LagoError: as the client does.
    """
    customer, subscriptions = await asyncio.gather(
        lago.customer(account), lago.subscriptions(account, statuses=("active", "pending", "terminated"))
    )
    if customer is None:
        return AccountReading(account, now_ms, None)
    actives = {each.external_id for each in subscriptions if each.is_active}
    found = await asyncio.gather(*(_with_fixed_charges(lago, each) for each in sorted(actives)))
    # An external id may have gone to another customer since.
    plans = {each.lago_id: each for each in found if each is not None and each.customer == account}
    by_external_id = {each.external_id: each for each in plans.values()}
    subscriptions = tuple(plans.pop(each.lago_id, each) for each in subscriptions) + tuple(plans.values())
    details: dict[tuple[str, str, str, int], Invoice] = {}
    before = await _invoices(lago, account, oldest_ms, details)
    for attempt in range(1, ATTEMPTS_MAX + 1):
        usages, unread = await _usages(lago, account, actives, by_external_id, is_known=oldest_ms > 0)
        wallets = await lago.wallets(account)
        found_credits = await credits.read(account) if credits is not None and _may_be_prepaid(customer) else NO_CREDITS
        after = await _invoices(lago, account, oldest_ms, details)
        stable = {_mark(each) for each in before} == {_mark(each) for each in after}
        if stable or attempt == ATTEMPTS_MAX:
            break
        before = after
    transactions: dict[str, tuple[WalletTransaction, ...]] = {}
    if with_transactions:
        for wallet in [each for each in wallets if each.is_active][:TRANSACTIONS_WALLETS_MAX]:
            transactions[wallet.lago_id] = await lago.wallet_transactions(wallet.lago_id)
    return AccountReading(
        account,
        now_ms,
        customer,
        subscriptions,
        wallets,
        before,
        usages,
        default_taxes,
        transactions,
        stable,
        frozenset(unread),
        rounded_metrics,
        found_credits,
        listed_values or {},
    )


def _may_be_prepaid(customer: Customer) -> bool:
    return customer.metadata.get("quota_mode", "prepaid").strip() in ("", "prepaid")


async def _usages(
    lago: LagoReader,
    account: str,
    actives: Iterable[str],
    subscriptions: Mapping[str, Subscription],
    *,
    is_known: bool,
) -> tuple[dict[str, CurrentUsage], set[str]]:
    """Lago's usage by external subscription id, and the ids of those that it could not tell."""
    usages: dict[str, CurrentUsage] = {}
    unread: set[str] = set()

    async def read(external_id: str) -> None:
        try:
            usage = await lago.current_usage(account, external_id)
        except LagoError as error:
            if not _is_optional(error, subscriptions.get(external_id), is_known):
                raise
            unread.add(external_id)
            log.warning("usage not read", account=account, subscription=external_id, reason=str(error))
        else:
            if usage is not None:
                usages[external_id] = usage

    await asyncio.gather(*map(read, sorted(actives)))
    return usages, unread


def lists_all_values(reading: AccountReading) -> bool:
    """Whether the values are known of every property of which a filter takes all."""
    plans = [each.plan for each in reading.subscriptions if each.plan is not None]
    return all(
        name in reading.listed_values.get(charge.metric_code, {})
        for plan in plans
        for charge in plan.charges
        for filter_ in charge.filters
        for name, values in filter_.values.items()
        if values == (ALL_VALUES,)
    )


def _is_optional(error: LagoError, subscription: Subscription | None, is_known: bool) -> bool:
    """Whether a reading goes on without the usage that Lago could not tell.

    A known account has its own count, and must not miss a top-up because Lago cannot count. A new one begins with
    Lago's count, so it waits for it, unless Lago fails in the one way that means no usage.
    """
    if isinstance(error, LagoUnauthorized):
        return False
    fails_on_none = isinstance(error, LagoUnavailable) and error.kind == "status" and _fails_without_usage(subscription)
    return is_known or fails_on_none


def _fails_without_usage(subscription: Subscription | None) -> bool:
    """Whether Lago answers 500 while there is no usage: a volume charge that begins at 1 has no range for 0 units
    (lago-api ``app/services/charge_models/volume_service.rb``).
    """
    charges = subscription.plan.charges if subscription is not None and subscription.plan is not None else ()
    volumes = [charge for charge in charges if charge.model == "volume"]
    prices = [charge.properties for charge in volumes]
    prices += [each.properties for charge in volumes for each in charge.filters]
    return any(
        all((number_of(row.get("from_value")) or 0) > 0 for row in ranges if isinstance(row, dict))
        for ranges in (properties.get("volume_ranges") for properties in prices)
        if isinstance(ranges, list)
    )


async def _with_fixed_charges(lago: LagoReader, external_id: str) -> Subscription | None:
    found = await lago.subscription(external_id)
    if found is None or found.plan is None or found.plan.fixed_charges is not None:
        return found
    return replace(found, plan=replace(found.plan, fixed_charges=await lago.fixed_charges(external_id)))


def _mark(invoice: Invoice) -> tuple[str, str, str, int]:
    """Changes when a wallet may have been debited or repaid for the invoice."""
    return invoice.lago_id, invoice.status, invoice.payment_status, invoice.prepaid_cents


async def _invoices(
    lago: LagoReader, account: str, oldest_ms: int, details: dict[tuple[str, str, str, int], Invoice]
) -> tuple[Invoice, ...]:
    listed = await lago.invoices(account, limit=INVOICES_MAX)
    wanted = [each for each in listed if each.created_at_ms >= oldest_ms and each.type == "subscription"][:DETAILS_MAX]
    missing = [each for each in wanted if _mark(each) not in details]
    for row, whole in zip(
        missing, await asyncio.gather(*(lago.invoice(each.lago_id) for each in missing)), strict=True
    ):
        if whole is not None:
            details[_mark(row)] = whole
    # The status in the list counts: the details may already be those of a later status.
    return tuple(details.get(_mark(each), each) for each in listed)
