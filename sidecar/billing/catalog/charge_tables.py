"""Price tables of a charge with filters: its own, and one for each filter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sidecar.billing.catalog.tables import describe, properties_of
from sidecar.billing.lago.models import Charge, ChargeFilter, FilterValues, Plan, Tax
from sidecar.billing.reconcile.charge_prices import Unenforceable, price_table, refusal
from sidecar.ledger.pricing.price_tables import PriceTable


@dataclass(frozen=True, slots=True)
class ChargeTables:
    """``own``: the price of what no filter takes. ``filters``: by values, sorted."""

    own: PriceTable
    filters: tuple[tuple[FilterValues, PriceTable], ...] = ()

    def text(self) -> str:
        """One line."""
        return "; ".join([describe(self.own), *(f"{filter_text(v)} {describe(t)}" for v, t in self.filters)])

    def charge_filters(self) -> tuple[ChargeFilter, ...]:
        """As Lago has them."""
        return tuple(ChargeFilter(dict(values), properties_of(table)) for values, table in self.filters)


def charge_tables(charge: Charge, plan: Plan, taxes: Sequence[Tax]) -> ChargeTables:
    """The tables of a charge, with ``taxes`` on them.

    Raises:
        Unenforceable: one of them cannot be enforced, or two filters have the same values.
    """
    if charge.has_filters and not charge.filters:
        return ChargeTables(price_table(charge, plan, taxes))  # refused: there is nothing to read
    bare = replace(charge, has_filters=False, filters=())
    own = price_table(bare, plan, taxes)
    filters: dict[FilterValues, PriceTable] = {}
    for each in charge.filters:
        values = tuple(sorted((name, tuple(sorted(allowed))) for name, allowed in each.values.items()))
        if values in filters:
            raise refusal(charge, plan, f"two filters have the values {filter_text(values)}")
        try:
            filters[values] = price_table(replace(bare, properties=each.properties), plan, taxes)
        except Unenforceable as error:
            raise refusal(charge, plan, f"filter {filter_text(values)}: {error.reason}") from None
    return ChargeTables(own, tuple(sorted(filters.items(), key=lambda item: item[0])))


def filter_text(values: FilterValues) -> str:
    """Such as ``scheme=sepa|swift, method=POST``."""
    return ", ".join(f"{name}={'|'.join(allowed)}" for name, allowed in values)
