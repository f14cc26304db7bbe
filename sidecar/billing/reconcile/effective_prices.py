"""Joins the active subscriptions of a customer: one period, and one price for each metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from sidecar.billing.lago.models import Customer, Plan, Subscription, Tax
from sidecar.billing.metric_mapping import BilledMetric, MetricMapping
from sidecar.billing.reconcile.account_reading import AccountReading
from sidecar.billing.reconcile.alerts import Alerts, BillingRefused
from sidecar.billing.reconcile.counted_units import counted_units
from sidecar.billing.reconcile.enforcement_policy import EnforcementPolicy
from sidecar.billing.reconcile.plan_prices import ListedValues, plan_prices
from sidecar.ledger.accounts.account_spec import METRICS_MAX
from sidecar.ledger.pricing.price_tables import PriceTable


@dataclass(frozen=True, slots=True)
class EffectivePrices:
    """The prices of an account: its active subscriptions together have one period, and one price for each metric.

    ``billed_by``: the subscription that bills a metric; ``billed``: under which code and by which fee of its charge.
    ``refused``: how many charges cannot be enforced.
    """

    primary: Subscription
    plan: Plan
    actives: tuple[tuple[Subscription, Plan], ...]
    prices: Mapping[str, PriceTable]
    billed_by: Mapping[str, Subscription]
    refused: int
    billed: Mapping[str, BilledMetric] = field(default_factory=dict)

    @property
    def codes(self) -> tuple[str, ...]:
        """Of Lago's billable metrics that are charged."""
        return tuple(dict.fromkeys(each.code for each in self.billed.values()))

    @property
    def plans(self) -> tuple[Plan, ...]:
        """Of all active subscriptions, the oldest first."""
        return tuple(plan for _, plan in self.actives)

    @property
    def billing_subscriptions(self) -> tuple[Subscription, ...]:
        """The subscriptions that bill usage; the primary one if none does."""
        by_id = {each.lago_id: each for each in self.billed_by.values()}
        return tuple(by_id.values()) or (self.primary,)


def effective_prices(
    actives: Sequence[Subscription],
    customer: Customer,
    defaults: tuple[Tax, ...],
    alerts: Alerts,
    rounded_metrics: Set[str] = frozenset(),
    mapping: MetricMapping | None = None,
    listed_values: ListedValues | None = None,
) -> EffectivePrices:
    """The prices in force; a subscription that does not go with the others is an alert.

    Raises:
        BillingRefused: too many metrics.
    """
    by_age = sorted(actives, key=lambda each: (each.started_at_ms or each.created_at_ms, each.lago_id))
    priced = [each for each in by_age if each.plan is not None and each.plan.charges] or by_age
    primary = priced[0]
    assert primary.plan is not None
    bounds = (primary.period_start_ms, primary.period_end_ms)
    prices: dict[str, PriceTable] = {}
    billed_by: dict[str, Subscription] = {}
    billed: dict[str, BilledMetric] = {}
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
        found = plan_prices(plan, customer, defaults, rounded_metrics, mapping, listed_values)
        for fault in found.refused:
            alerts.add("plan", str(fault))
            refused += 1
        for metric, table in found.prices.items():
            if metric in prices:
                first = billed_by[metric].external_id
                alerts.add("subscription", f"{metric} is charged by the subscriptions {first} and {each.external_id};"
                           " it is counted for the first")  # fmt: skip
                continue
            prices[metric], billed_by[metric], billed[metric] = table, each, found.billed[metric]
    if len(prices) > METRICS_MAX:
        _drop_unnamed(prices, billed, mapping or MetricMapping(), alerts)
        billed_by = {metric: billed_by[metric] for metric in prices}
    if len(prices) > METRICS_MAX:
        raise BillingRefused("plan", f"{len(prices)} metrics are charged; an account has at most {METRICS_MAX}")
    pairs = tuple((each, each.plan) for each in by_age if each.plan is not None)
    return EffectivePrices(primary, primary.plan, pairs, prices, billed_by, refused, billed)


def _drop_unnamed(
    prices: dict[str, PriceTable], billed: dict[str, BilledMetric], mapping: MetricMapping, alerts: Alerts
) -> None:
    """Drop metrics without an entry whose billable metric has entries of others: routes may charge those alone."""
    named = {each.code for metric, each in billed.items() if mapping.has_entry(metric)}
    for metric in sorted(metric for metric in prices if not mapping.has_entry(metric) and metric in named):
        alerts.add("plan", f"more than {METRICS_MAX} metrics are charged, so {metric} is not served: other metrics of"
                   " lago.billable_metrics are this billable metric, and it has no entry")  # fmt: skip
        del prices[metric], billed[metric]


def policy_revision(policy: EnforcementPolicy, effective: EffectivePrices) -> str:
    """Changes when something other than money may raise what is available."""
    plans = (plan.lago_id for plan in effective.plans)
    prices = (f"{metric}={table}" for metric, table in sorted(effective.prices.items()))
    parts = (policy.mode, policy.overdraft, policy.spending_cap, policy.credit_limit, *plans, *prices)
    return "|".join(map(str, parts))[:4_000]


def counted_before(reading: AccountReading, effective: EffectivePrices) -> dict[str, int]:
    """Units by metric that Lago has counted in the current period; parts of a unit count as a whole one."""
    counted: dict[str, int] = {}
    for subscription in effective.billing_subscriptions:
        usage = reading.usages.get(subscription.external_id)
        charges = usage.charges if usage is not None else ()
        for metric, units in counted_units(charges, tuple(effective.billed.values())).items():
            counted[metric] = max(counted.get(metric, 0), math.ceil(units))
    return counted
