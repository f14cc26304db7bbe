"""Finds the price that a plan in Lago has for each metric of the gateway, taxes included. Without I/O.

A charge prices a billable metric. With filters or groups it has a fee for each, and each fee begins at the first price.
The usage events of a metric all have the same properties, so they belong to one fee, and the ledger's counter of the
metric counts what that fee bills. Charges, or metrics, for which this does not hold are refused with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

from sidecar.billing.lago.json_fields import whole_number_of
from sidecar.billing.lago.models import Charge, Customer, GroupValues, Plan, Tax
from sidecar.billing.metric_mapping import BilledMetric, MetricMapping
from sidecar.billing.reconcile.charge_filters import UnknownFilter, counting_filters
from sidecar.billing.reconcile.charge_prices import Unenforceable, check_terms, group_keys, price_table, refusal
from sidecar.billing.reconcile.taxes import charge_taxes
from sidecar.ledger.pricing.price_tables import Graduated, PriceTable, Standard, Volume

ListedValues = Mapping[str, Mapping[str, Sequence[str]]]
"""The values of properties that Lago's billable metrics list for filters, by code and property."""


@dataclass(frozen=True, slots=True)
class PlanPrices:
    """``prices`` by metric, taxes included; a metric with a refused charge is not among them. ``billed``: how Lago
    bills each of them."""

    prices: Mapping[str, PriceTable]
    refused: tuple[Unenforceable, ...]
    billed: Mapping[str, BilledMetric] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _FeePrice:
    """The price of one fee of a charge. ``place``: of its filter, None without one."""

    place: int | None
    group: GroupValues
    table: PriceTable


def plan_prices(
    plan: Plan,
    customer: Customer,
    default_taxes: Sequence[Tax],
    rounded_metrics: Set[str] = frozenset(),
    mapping: MetricMapping | None = None,
    listed_values: ListedValues | None = None,
) -> PlanPrices:
    """The prices for a subscriber of ``plan``. A charge that is refused does not stop the others. ``rounded_metrics``:
    codes of billable metrics of which Lago bills other units than were counted.

    Raises:
        ValueError: the customer is from an answer that does not tell its taxes.
    """
    mapping = mapping or MetricMapping()
    charges = Counter(charge.metric_code for charge in plan.charges)
    prices: dict[str, PriceTable] = {}
    billed: dict[str, BilledMetric] = {}
    refused: list[Unenforceable] = []
    for charge in plan.charges:
        try:
            if charges[charge.metric_code] > 1:
                raise refusal(charge, plan, f"the metric has {charges[charge.metric_code]} charges; one is possible")
            if charge.metric_code in rounded_metrics:
                raise refusal(charge, plan, "the metric rounds a period's units to tens or more (rounding_precision)")
            taxes = charge_taxes(charge, plan, customer, default_taxes)
            listed = (listed_values or {}).get(charge.metric_code, {})
            found = _ChargePrices(charge, plan, taxes, mapping, listed, refused).prices()
        except Unenforceable as error:
            refused.append(error)
        else:
            prices |= {each.metric: fee.table for each, fee in found.items()}
            billed |= {each.metric: _billed(each, fee, charge) for each, fee in found.items()}
    return PlanPrices(prices, tuple(refused), billed)


def _billed(metric: BilledMetric, fee: _FeePrice, charge: Charge) -> BilledMetric:
    values = None if fee.place is None else charge.filters[fee.place].values
    shown = None if values is None else tuple(sorted((name, tuple(sorted(each))) for name, each in values.items()))
    return replace(metric, filter=shown, group=fee.group)


class _ChargePrices:
    """The prices of one charge. ``refused`` gets the metrics that have none, though the charge has."""

    def __init__(
        self,
        charge: Charge,
        plan: Plan,
        taxes: Sequence[Tax],
        mapping: MetricMapping,
        listed: Mapping[str, Sequence[str]],
        refused: list[Unenforceable],
    ) -> None:
        self._refused = refused
        self._charge = charge
        self._plan = plan
        self._taxes = taxes
        self._mapping = mapping
        self._listed = listed

    def prices(self) -> dict[BilledMetric, _FeePrice]:
        """The fee that each metric belongs to. Raises ``Unenforceable`` if none can be enforced."""
        charge = self._charge
        check_terms(charge, self._plan)
        if charge.has_filters and not charge.filters:
            raise refusal(charge, self._plan, "it has groups of a Lago before filters, with prices of their own")
        found: dict[BilledMetric, _FeePrice] = {}
        refused_before = len(self._refused)
        for metric in self._mapping.metrics_of(charge.metric_code):
            try:
                found[metric] = self._fee(metric)
            except Unenforceable as error:
                self._refused.append(error)
        found = self._without_shared_steps(found)
        if charge.filters or not (found or len(self._refused) > refused_before):
            self._check_fees_without_usage({fee.place for fee in found.values()})
        return found

    def _fee(self, metric: BilledMetric) -> _FeePrice:
        place = self._place(metric)
        properties = self._properties(place)
        group = _group(group_keys(properties), metric)
        if group is None:
            raise self._refusal(metric, "its pricing_group_keys are no names of properties")
        table = self._table(place, metric)
        if group and _costs_without_units(table):
            raise self._refusal(
                metric, "it is grouped and has a flat amount from the first unit on, which Lago bills once a group"
            )
        return _FeePrice(place, group, table)

    def _place(self, metric: BilledMetric) -> int | None:
        filters = self._charge.filters
        if not filters:
            return None
        try:
            places = counting_filters(filters, self._listed, dict(metric.properties))
        except UnknownFilter as error:
            raise self._refusal(metric, str(error)) from None
        if len(places) != 1:
            raise self._refusal(metric, f"Lago would bill its events {len(places)} times, for filters that overlap")
        return places[0]

    def _table(self, place: int | None, metric: BilledMetric | None) -> PriceTable:
        names = ("pricing_group_keys", "grouped_by")
        properties = {name: each for name, each in self._properties(place).items() if name not in names}
        bare = replace(self._charge, properties=properties, has_filters=False, filters=())
        try:
            return price_table(bare, self._plan, self._taxes)
        except Unenforceable as error:
            if not self._charge.filters:
                raise
            raise self._refusal(metric, f"{self._filter_text(place)}: {error.reason}") from None

    def _without_shared_steps(self, found: Mapping[BilledMetric, _FeePrice]) -> dict[BilledMetric, _FeePrice]:
        """Without metrics that share a fee of which the price of a unit depends on how many there were: Lago counts
        their units together, the ledger apart. One that has no entry yields to those that have: nothing says that a
        route charges it.
        """
        kept: dict[BilledMetric, _FeePrice] = {}
        fees: dict[tuple[int | None, GroupValues], list[BilledMetric]] = {}
        for metric, fee in found.items():
            fees.setdefault((fee.place, fee.group), []).append(metric)
        for metrics in fees.values():
            named = [each for each in metrics if self._mapping.has_entry(each.metric)]
            table = found[metrics[0]].table
            good = metrics
            if len(metrics) > 1 and not _is_linear(table):
                good = named if len(named) == 1 else []
            kept |= {each: found[each] for each in good}
            names = " and ".join(sorted(each.metric for each in metrics))
            for metric in metrics:
                if metric not in good:
                    reason = f"{names} are one fee in Lago, whose price of a unit depends on the units of both"
                    self._refused.append(self._refusal(metric, reason))
        return kept

    def _check_fees_without_usage(self, used: Set[int | None]) -> None:
        """Lago bills the flat amount of the first range of every filter, and of what no filter takes, whether there are
        events or not."""
        charge = self._charge
        if charge.model not in ("graduated", "volume"):
            return
        places = [*range(len(charge.filters)), None]
        for place in [each for each in places if each not in used]:
            where = self._filter_text(place) if charge.filters else "it"
            if _costs_without_units(self._table(place, None)):
                raise refusal(
                    charge, self._plan, f"{where} costs a flat amount without usage, and no metric is billed by it"
                )
            if charge.model == "volume" and _starts_at_one(self._properties(place)):
                raise refusal(
                    charge, self._plan, f"{where} has ranges from 1 on, for which Lago makes no invoice without usage"
                )

    def _properties(self, place: int | None) -> Mapping[str, Any]:
        return self._charge.properties if place is None else self._charge.filters[place].properties

    def _filter_text(self, place: int | None) -> str:
        if place is None:
            return "the price for what no filter takes"
        values = self._charge.filters[place].values
        return "filter " + ", ".join(f"{name}={'|'.join(each)}" for name, each in values.items())

    def _refusal(self, metric: BilledMetric | None, reason: str) -> Unenforceable:
        if metric is None or not self._mapping.has_entry(metric.metric):
            return refusal(self._charge, self._plan, reason)
        return refusal(self._charge, self._plan, f"metric {metric.metric}: {reason}")


def _group(keys: Sequence[object], metric: BilledMetric) -> GroupValues | None:
    properties = dict(metric.properties)
    names = [key for key in keys if isinstance(key, str)]
    return tuple(sorted((key, properties.get(key)) for key in names)) if len(names) == len(keys) else None


def _costs_without_units(table: PriceTable) -> bool:
    return isinstance(table, Graduated | Volume) and bool(table.tiers[0].flat)


def _is_linear(table: PriceTable) -> bool:
    """Whether each unit costs the same."""
    match table:
        case Standard():
            return True
        case Graduated(tiers) | Volume(tiers):
            return len(tiers) == 1 and not tiers[0].flat
    return False


def _starts_at_one(properties: Mapping[str, Any]) -> bool:
    rows = properties.get("volume_ranges")
    first = rows[0].get("from_value") if isinstance(rows, list | tuple) and rows and isinstance(rows[0], Mapping) else 0
    return whole_number_of(first) == 1
