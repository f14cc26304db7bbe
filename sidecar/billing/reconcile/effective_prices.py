"""The active subscriptions of a customer: which subscription of the ledger each is, and who bills which metric."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from sidecar.billing.lago.models import Customer, Plan, Subscription, Tax
from sidecar.billing.metric_mapping import BilledMetric, MetricMapping
from sidecar.billing.reconcile.account_reading import AccountReading
from sidecar.billing.reconcile.alerts import Alerts, BillingRefused
from sidecar.billing.reconcile.counted_units import counted_units
from sidecar.billing.reconcile.enforcement_policy import EnforcementPolicy
from sidecar.billing.reconcile.plan_prices import ListedValues, PlanPrices, plan_prices
from sidecar.billing.reconcile.reconcile_state import ReconcileState
from sidecar.billing.usage_sync.period_links import PeriodLink
from sidecar.ledger.accounts.account_spec import METRICS_MAX
from sidecar.ledger.pricing.price_tables import PriceTable


@dataclass(frozen=True, slots=True)
class EffectivePrices:
    """The prices of one subscription of the ledger. It stands for one of Lago's; for several only where they have
    shared it since a release in which an account had one period.

    ``name``: the ledger's. ``actives``: Lago's, oldest first; the account's first one has those without charges too.
    ``billed_by``: Lago's subscription that bills a metric; ``billed``: under which code and by which fee of its charge.
    ``refused``: how many charges cannot be enforced.
    """

    name: str
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
        """Of all its active subscriptions, the oldest first."""
        return tuple(plan for _, plan in self.actives)

    @property
    def billing_subscriptions(self) -> tuple[Subscription, ...]:
        """The subscriptions that bill usage; the primary one if none does."""
        by_id = {each.lago_id: each for each in self.billed_by.values()}
        return tuple(by_id.values()) or (self.primary,)

    def without(self, metrics: Collection[str]) -> EffectivePrices:
        """The same, and these metrics are not served."""
        return replace(
            self,
            prices={metric: table for metric, table in self.prices.items() if metric not in metrics},
            billed_by={metric: each for metric, each in self.billed_by.items() if metric not in metrics},
            billed={metric: each for metric, each in self.billed.items() if metric not in metrics},
        )


def effective_prices(
    actives: Sequence[Subscription],
    customer: Customer,
    defaults: tuple[Tax, ...],
    alerts: Alerts,
    saved: ReconcileState,
    rounded_metrics: Set[str] = frozenset(),
    mapping: MetricMapping | None = None,
    listed_values: ListedValues | None = None,
) -> tuple[EffectivePrices, ...]:
    """The prices in force by subscription of the ledger, that of the oldest subscription first; a subscription that
    does not go with the others is an alert. ``saved`` tells which subscription of the ledger each has been.

    Raises:
        BillingRefused: too many metrics.
    """
    by_age = sorted(actives, key=lambda each: (each.started_at_ms or each.created_at_ms, each.lago_id))
    priced = [each for each in by_age if each.plan is not None and each.plan.charges] or by_age[:1]
    currency = _plan(priced[0]).currency
    served: list[Subscription] = []
    found: dict[str, PlanPrices] = {}
    for each in priced:
        plan = _plan(each)
        if plan.currency != currency:
            alerts.add("subscription", f"subscription {each.external_id}: its currency is {plan.currency}, that of"
                       f" {priced[0].external_id} is {currency}; its metrics are not served")  # fmt: skip
            continue
        found[each.lago_id] = plan_prices(plan, customer, defaults, rounded_metrics, mapping, listed_values)
        for fault in found[each.lago_id].refused:
            alerts.add("plan", str(fault))
        served.append(each)
    latest = _latest_links(saved)
    billed_by = _billed_by(served, found, latest, alerts)
    if len(billed_by) > METRICS_MAX:
        _drop_unnamed(billed_by, found, mapping or MetricMapping(), alerts)
    if len(billed_by) > METRICS_MAX:
        raise BillingRefused("plan", f"{len(billed_by)} metrics are charged; an account has at most {METRICS_MAX}")
    names = _names(served, latest)
    others = [each for each in by_age if each.lago_id not in names]
    groups: dict[str, list[Subscription]] = {}
    for each in served:
        # One of which nothing can be enforced has no use for a subscription of the ledger.
        if each is served[0] or found[each.lago_id].prices or each.external_id in latest:
            groups.setdefault(names[each.lago_id], []).append(each)
        else:
            others.append(each)
    effective = []
    for number, (name, group) in enumerate(groups.items()):
        mine = {metric: each for metric, each in billed_by.items() if each in group}
        members = [each for each in by_age if each in group or (number == 0 and each in others)]
        effective.append(
            EffectivePrices(
                name=name,
                primary=group[0],
                plan=_plan(group[0]),
                actives=tuple((each, each.plan) for each in members if each.plan is not None),
                prices={metric: found[each.lago_id].prices[metric] for metric, each in mine.items()},
                billed_by=mine,
                refused=sum(len(found[each.lago_id].refused) for each in group),
                billed={metric: found[each.lago_id].billed[metric] for metric, each in mine.items()},
            )
        )
    return tuple(effective)


def _drop_unnamed(
    billed_by: dict[str, Subscription], found: Mapping[str, PlanPrices], mapping: MetricMapping, alerts: Alerts
) -> None:
    """Drop metrics without an entry whose billable metric has entries of others: routes may charge those alone."""
    named = {found[each.lago_id].billed[m].code for m, each in billed_by.items() if mapping.has_entry(m)}
    for metric in sorted(metric for metric in billed_by if not mapping.has_entry(metric) and metric in named):
        alerts.add("plan", f"more than {METRICS_MAX} metrics are charged, so {metric} is not served: other metrics of"
                   " lago.billable_metrics are this billable metric, and it has no entry")  # fmt: skip
        del billed_by[metric]


def _plan(subscription: Subscription) -> Plan:
    assert subscription.plan is not None
    return subscription.plan


def _latest_links(saved: ReconcileState) -> dict[str, PeriodLink]:
    """The link of the last period by external id of the subscription, which an upgrade keeps."""
    by_age = sorted(saved.links.values(), key=lambda link: (link.ledger_start_ms, link.is_current))
    return {link.external_subscription_id: link for link in by_age}


def _names(served: Sequence[Subscription], latest: Mapping[str, PeriodLink]) -> dict[str, str]:
    """The ledger's subscription of each, by Lago's id. One that it has been it stays; but those of one period that have
    shared one part when their periods do. The first is the one without a name, unless that is another's."""
    names: dict[str, str] = {}
    bounds: dict[str, tuple[int | None, int | None]] = {}
    for each in served:
        link = latest.get(each.external_id)
        if link is None:
            continue
        name, period = link.ledger_subscription, (each.period_start_ms, each.period_end_ms)
        if bounds.setdefault(name, period) == period:
            names[each.lago_id] = name
    for each in served:
        if each.lago_id not in names:
            is_free = "" not in names.values()
            names[each.lago_id] = "" if each is served[0] and is_free else each.external_id
    return names


def _billed_by(
    served: Iterable[Subscription],
    found: Mapping[str, PlanPrices],
    latest: Mapping[str, PeriodLink],
    alerts: Alerts,
) -> dict[str, Subscription]:
    """Who bills a metric that several charge: who has billed it until now, or else the oldest."""
    candidates: dict[str, list[Subscription]] = {}
    for each in served:
        for metric in found[each.lago_id].prices:
            candidates.setdefault(metric, []).append(each)
    billed_by: dict[str, Subscription] = {}
    for metric, charged_by in candidates.items():
        holders = [
            each for each in charged_by if each.external_id in latest and metric in latest[each.external_id].metrics
        ]
        billed_by[metric] = (holders or charged_by)[0]
        if len(charged_by) > 1:
            names = " and ".join(each.external_id for each in charged_by)
            alerts.add("subscription", f"{metric} is charged by the subscriptions {names};"
                       f" it is counted for {billed_by[metric].external_id}")  # fmt: skip
    return billed_by


def policy_revision(policy: EnforcementPolicy, effective: Iterable[EffectivePrices]) -> str:
    """Changes when something other than money may raise what is available."""
    groups = tuple(effective)
    plans = (plan.lago_id for each in groups for plan in each.plans)
    tables = sorted(((m, table) for each in groups for m, table in each.prices.items()), key=lambda pair: pair[0])
    prices = (f"{metric}={table}" for metric, table in tables)
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
