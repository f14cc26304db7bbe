"""Takes away what a run has made, by its prefix. Invoices and events stay: neither Lago nor OpenMeter deletes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

from sidecar.basics.fault_reasons import reason_of
from sidecar.billing.lago.errors import LagoError
from sidecar.billing.lago.models import Page
from sidecar.billing.lago.transport import segment
from sidecar.cli.verify_billing.names import Names
from sidecar.cli.verify_billing.own_lago import OwnLago
from sidecar.metering.openmeter.meter_query import MeterQuery, QueryError
from sidecar.valkey.topology import CLIENT_ERRORS, Client

T = TypeVar("T")

NO_INVOICE: Final = (("on_termination_invoice", "skip"),)
"""A subscription that ends here owes nobody anything."""

KEYS_AT_ONCE: Final = 500


@dataclass(slots=True)
class Cleaned:
    """``taken`` away, by kind; ``left``: what could not be, and why."""

    taken: Counter[str] = field(default_factory=Counter)
    left: list[str] = field(default_factory=list)

    async def take(self, kind: str, name: str, delete: Callable[[], Awaitable[bool]]) -> None:
        """Goes on whatever happens: the rest has to go too."""
        try:
            if await delete():
                self.taken[kind] += 1
        except (LagoError, QueryError) as error:
            self.left.append(f"{kind} {name}: {error}")


async def clean(names: Names, lago: OwnLago, query: MeterQuery) -> Cleaned:
    """Ends subscriptions and wallets, deletes customers, plans, metrics, coupons, taxes, webhook endpoints, meters."""
    cleaned = Cleaned()
    steps = {
        "Lago": partial(_clean_lago, names, lago, cleaned),
        "OpenMeter": partial(_clean_openmeter, names, query, cleaned),
    }
    for kind, step in steps.items():
        try:
            await step()
        except (LagoError, QueryError) as error:
            cleaned.left.append(f"{kind}: {error}")
    return cleaned


async def _clean_lago(names: Names, lago: OwnLago, cleaned: Cleaned) -> None:
    async def take(kind: str, collection: str, name: str, query: tuple[tuple[str, str], ...] = ()) -> None:
        await cleaned.take(kind, name, lambda: lago.delete(f"/{collection}/{segment(name)}", query))

    # Nobody listens any more to what the rest makes Lago say.
    for endpoint in await lago.webhook_endpoints():
        if names.owns(endpoint.name):
            await take("webhook endpoint", "webhook_endpoints", endpoint.lago_id)
    for status in ("pending", "active"):  # a pending one takes the place of the active one that ends
        subscriptions = await _all(partial(lago.subscriptions_page, statuses=(status,)))
        for subscription in subscriptions:
            assert names.owns(subscription.customer), subscription
            await take("subscription", "subscriptions", subscription.external_id, (*NO_INVOICE, ("status", status)))
    for wallet in await _all(lago.wallets_page):
        assert names.owns(wallet.customer), wallet
        if wallet.is_active:
            await take("wallet", "wallets", wallet.lago_id)
    for customer in await _all(lago.customers):
        assert names.owns(customer.external_id), customer
        await take("customer", "customers", customer.external_id)
    for plan in await _all(lago.plans_page):
        if names.owns(plan.code):
            await take("plan", "plans", plan.code)
    for metric in await lago.billable_metrics():
        if names.owns(metric.code):
            await take("metric", "billable_metrics", metric.code)
    for coupon in await _all(lago.coupons_page):
        if names.owns(coupon.code):
            await take("coupon", "coupons", coupon.code)
    for tax in await lago.taxes():
        if names.owns(tax.code):
            await take("tax", "taxes", tax.code)


async def _clean_openmeter(names: Names, query: MeterQuery, cleaned: Cleaned) -> None:
    for meter in await query.meters():
        if names.owns(meter.slug):
            await cleaned.take("meter", meter.slug, partial(query.delete_meter, meter.slug))


async def clean_ledger(names: Names, client: Client, cleaned: Cleaned) -> None:
    """Deletes the run's keys in a Valkey that stays."""
    try:
        found: list[bytes] = []
        async for key in client.scan_iter(match=f"{names.ledger}:*", count=KEYS_AT_ONCE):
            found.append(key)
        for key in found:  # one by one: those of a Cluster lie on several servers
            await client.unlink(key)
        cleaned.taken["key in Valkey"] += len(found)
    except CLIENT_ERRORS as error:
        cleaned.left.append(f"keys in Valkey: {reason_of(error)}")


async def _all(read: Callable[[int], Awaitable[Page[T]]]) -> list[T]:
    """All pages, before anything is deleted, which would move them."""
    return [each async for page in _pages(read) for each in page.items]


async def _pages(read: Callable[[int], Awaitable[Page[T]]]) -> AsyncIterator[Page[T]]:
    number: int | None = 1
    while number is not None:
        page = await read(number)
        yield page
        number = page.next_page
