"""Reads from Lago and OpenMeter the objects that a catalog names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sidecar.billing.catalog.changes import Observed, Subscribers
from sidecar.billing.catalog.values import Catalog
from sidecar.billing.lago.client import LagoClient
from sidecar.billing.lago.models import Plan, Subscription, Wallet
from sidecar.metering.openmeter.meter_query import Meter, MeterQuery

PAGES_MAX: Final = 100
ALL_SUBSCRIPTION_STATUSES: Final = ("active", "pending", "terminated", "canceled")


async def read(lago: LagoClient, openmeter: MeterQuery | None, catalog: Catalog) -> Observed:
    """One request after the other, since nobody waits for a catalog as for a balance.

    Raises:
        LagoError: from Lago.
        QueryError: from OpenMeter.
    """
    plans = await _plans(lago)
    subscribers = {
        each.plan.code: await _subscribers(lago, each.plan.code) for each in catalog.plans if each.plan.code in plans
    }
    customers = {}
    subscriptions: dict[str, tuple[Subscription, ...]] = {}
    wallets: dict[str, tuple[Wallet, ...]] = {}
    for wanted in catalog.customers:
        found = await lago.customer(wanted.id)
        if found is not None:
            customers[wanted.id] = found
            subscriptions[wanted.id] = await lago.subscriptions(wanted.id)
            wallets[wanted.id] = await lago.wallets(wanted.id)
    return Observed(
        taxes={tax.code: tax for tax in await lago.taxes()},
        metrics={metric.code: metric for metric in await lago.billable_metrics()},
        plans=plans,
        subscribers=subscribers,
        endpoints=await lago.webhook_endpoints() if catalog.endpoint is not None else (),
        customers=customers,
        subscriptions=subscriptions,
        wallets=wallets,
        meters=await _meters(openmeter, (metric.code for metric in catalog.metrics)) if openmeter else None,
    )


async def _plans(lago: LagoClient) -> dict[str, Plan]:
    """All of them: whether a metric can be changed depends on plans that no catalog names."""
    found: dict[str, Plan] = {}
    page: int | None = 1
    while page is not None and page <= PAGES_MAX:
        answer = await lago.plans_page(page)
        found |= {plan.code: plan for plan in answer.items}
        page = answer.next_page
    return found


async def _subscribers(lago: LagoClient, plan_code: str) -> Subscribers:
    active = await lago.subscriptions_page(plan_code=plan_code, per_page=1)
    ever = await lago.subscriptions_page(statuses=ALL_SUBSCRIPTION_STATUSES, plan_code=plan_code, per_page=1)
    return Subscribers(active.total_count, ever.total_count)


async def _meters(openmeter: MeterQuery, slugs: Iterable[str]) -> dict[str, Meter]:
    found = {slug: await openmeter.meter(slug) for slug in slugs}
    return {slug: meter for slug, meter in found.items() if meter is not None}
