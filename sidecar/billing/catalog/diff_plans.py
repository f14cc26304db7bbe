"""Compares plans, and names the changes that Lago would not make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from sidecar.billing.catalog.changes import Change, FieldChange, Observed, Subscribers
from sidecar.billing.catalog.charge_tables import charge_tables
from sidecar.billing.catalog.compare import by_metric, plan_fields, same_charge
from sidecar.billing.catalog.values import Catalog, WantedPlan
from sidecar.billing.lago.models import Charge, Plan, Tax
from sidecar.billing.reconcile.charge_filters import ALL_VALUES
from sidecar.billing.reconcile.charge_prices import Unenforceable
from sidecar.billing.usage_sync.billable_metrics import MetricRefused, field_of

FIXED = ("interval", "currency", "pay_in_advance", "trial_days", "bill_charges_monthly")
"""Fields of a plan that Lago leaves as they are once it had a subscription (lago-api
``app/services/plans/update_service.rb``)."""


def known_taxes(catalog: Catalog, observed: Observed) -> Mapping[str, Tax]:
    """Taxes by code, as they will be."""
    return {**observed.taxes, **{each.tax.code: each.tax for each in catalog.taxes}}


def resolved(catalog: Catalog, observed: Observed) -> Iterator[tuple[str, Plan]]:
    """The wanted plans with their taxes, by code; without those that name a tax there is not."""
    taxes = known_taxes(catalog, observed)
    for wanted in catalog.plans:
        named = [*wanted.tax_codes, *(code for codes in wanted.charge_tax_codes.values() for code in codes)]
        if all(code in taxes for code in named):
            charges = tuple(
                replace(
                    charge, taxes=tuple(taxes[code] for code in wanted.charge_tax_codes.get(charge.metric_code, ()))
                )
                for charge in wanted.plan.charges
            )
            of_plan = tuple(taxes[code] for code in wanted.tax_codes)
            yield wanted.plan.code, replace(wanted.plan, charges=charges, taxes=of_plan)


def plan(wanted: WantedPlan, target: Plan | None, catalog: Catalog, observed: Observed) -> Change:
    """``target`` is the wanted plan with its taxes, None if there is no such tax."""
    code = wanted.plan.code
    found = observed.plans.get(code)
    if target is None:
        taxes = known_taxes(catalog, observed)
        codes = [*wanted.tax_codes, *(each for codes in wanted.charge_tax_codes.values() for each in codes)]
        missing = ", ".join(sorted({each for each in codes if each not in taxes}))
        return Change("refuse", "plan", code, notes=(f"there is no tax {missing}, neither in the file nor in Lago",))
    fields = plan_fields(target, found)
    reasons = [*_metric_reasons(target, catalog, observed), *_price_reasons(target, catalog, observed)]
    reasons += _filter_reasons(target, catalog, observed)
    if found is not None:
        reasons += _found_reasons(target, found, fields, observed.subscribers.get(code, Subscribers()))
    if reasons:
        return Change("refuse", "plan", code, fields, tuple(reasons))
    write = replace(wanted, plan=target)
    if found is None:
        return Change("create", "plan", code, fields, wanted=write)
    if not fields:
        return Change("keep", "plan", code)
    notes = tuple(_consequences(fields, observed.subscribers.get(code, Subscribers())))
    return Change("update", "plan", code, fields, notes, write)


def _metric_reasons(target: Plan, catalog: Catalog, observed: Observed) -> Iterator[str]:
    made = {each.code for each in catalog.metrics}
    refused = {each.code for each in catalog.refusals if each.kind == "metric"}
    for metric in by_metric(target.charges):
        if metric in made:
            continue
        if metric in refused:
            yield f"its metric {metric} is refused"
            continue
        try:
            field_of(metric, observed.metrics.get(metric))
        except MetricRefused as error:
            yield str(error)


def _price_reasons(target: Plan, catalog: Catalog, observed: Observed) -> Iterator[str]:
    """Prices that are good by themselves may not be with taxes: each tax adds decimals."""
    defaults = tuple(tax for tax in known_taxes(catalog, observed).values() if tax.is_default)
    for charge in target.charges:
        try:
            charge_tables(charge, target, charge.taxes or target.taxes or defaults)
        except Unenforceable as error:
            yield f"{charge.metric_code}: {error.reason}"


def _filter_reasons(target: Plan, catalog: Catalog, observed: Observed) -> Iterator[str]:
    """Lago takes only values that the billable metric lists."""
    listed = {code: dict(metric.filters) for code, metric in observed.metrics.items()}
    listed |= {each.code: dict(each.filters) for each in catalog.metrics if each.filters is not None}
    for charge in target.charges:
        of_metric = listed.get(charge.metric_code, {})
        for name, values in [item for each in charge.filters for item in each.values.items()]:
            unknown = [value for value in values if value not in of_metric.get(name, ()) and value != ALL_VALUES]
            if name not in of_metric:
                yield f"{charge.metric_code}: a filter has the property {name}, which the filters of the metric lack"
            elif unknown:
                yield f"{charge.metric_code}: a filter has {name}={unknown[0]}, which the filters of the metric lack"


def _found_reasons(
    target: Plan, found: Plan, fields: tuple[FieldChange, ...], subscribers: Subscribers
) -> Iterator[str]:
    if found.has_usage_thresholds:
        yield "Lago's plan has usage thresholds, by which wallets are debited in the middle of a period; remove them"
    if found.has_minimum_commitment:
        yield "Lago's plan has a minimum commitment, which no balance shows before it is billed; remove it"
    if found.has_fixed_charges:
        yield "Lago's plan has fixed charges, which the gateway does not take into account; remove them"
    if not subscribers.ever:
        return
    fixed = [field.name for field in fields if field.name in FIXED]
    fixed += [f"the model or terms of charges.{metric}" for metric in _charges_that_stay(target, found)]
    if fixed:
        yield (
            f"Lago does not change {', '.join(fixed)} of a plan that has or had subscriptions ({subscribers.ever}):"
            " make a plan with another code and move the subscribers"
        )


def _charges_that_stay(target: Plan, found: Plan) -> Iterator[str]:
    """Metrics whose charge is there, but of another model or on other terms, which Lago keeps while subscribed to."""
    theirs = by_metric(found.charges)
    for charge in target.charges:
        for other in theirs.get(charge.metric_code, [])[:1]:
            if not same_charge(charge, other) and _terms(charge) != _terms(other):
                yield charge.metric_code


def _terms(charge: Charge) -> tuple[object, ...]:
    minimum, unit = charge.min_amount_cents, charge.has_pricing_unit
    return charge.model, charge.pay_in_advance, charge.prorated, charge.invoiceable, minimum, unit


def _consequences(fields: tuple[FieldChange, ...], subscribers: Subscribers) -> Iterator[str]:
    if not subscribers.active:
        return
    who = f"{subscribers.active} active subscription{'s' if subscribers.active > 1 else ''}"
    charges = [field for field in fields if field.name.startswith("charges.")]
    if any(field.after is not None for field in charges) or any(field.name == "taxes" for field in fields):
        yield (
            f"{who}: Lago bills the whole running period at the new prices, the usage so far too, and the gateway does"
            " the same as soon as it reads them; subscriptions with prices of their own keep them"
        )
    if any(field.after is None for field in charges):
        yield f"{who}: usage of a metric without charge is no longer billed, that of the running period neither"
    if any(field.name == "amount" for field in fields):
        yield f"{who}: the next fee that falls due is the new one; Lago may cancel changes of plan that wait"
