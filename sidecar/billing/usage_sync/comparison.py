"""Compares the units of the ledger with those that Lago has invoiced, without I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from sidecar.billing.lago.models import Fee, Invoice
from sidecar.billing.usage_sync.fee_groups import fee_groups
from sidecar.billing.usage_sync.period_links import PeriodLink
from sidecar.ledger.pricing.currencies import exponent


@dataclass(frozen=True, slots=True)
class LedgerUsage:
    """Units and cost of one metric in a period of the ledger; ``cost`` in units of the currency, with taxes."""

    metric: str
    units: int
    cost: Decimal


@dataclass(frozen=True, slots=True)
class SyncedUnits:
    """Units of one metric in a period, as the sync knows them."""

    openmeter: int | None = 0
    pushed: int = 0
    carried_in: int = 0
    carried_out: int = 0
    late: int = 0

    def __add__(self, other: SyncedUnits) -> SyncedUnits:
        unknown = self.openmeter is None or other.openmeter is None
        return SyncedUnits(
            None if unknown else (self.openmeter or 0) + (other.openmeter or 0),
            self.pushed + other.pushed,
            self.carried_in + other.carried_in,
            self.carried_out + other.carried_out,
            self.late + other.late,
        )


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """One metric of one period, or several that cannot be told apart on the invoice.

    ``difference`` = ledger + carried_in − carried_out − invoiced; 0 says that every unit which the ledger has debited
    is on the invoice, or on a later one. ``invoiced_cents`` includes taxes, as the ledger's cost does. What is carried
    over is priced in another period than that of its debit, so the cents of both periods may differ then.
    """

    account: str
    period_start_ms: int
    metric: str
    ledger: int
    openmeter: int | None
    pushed: int
    invoiced: Decimal
    carried_in: int
    carried_out: int
    late: int
    difference: Decimal
    ledger_cents: int
    invoiced_cents: int

    @property
    def cents_difference(self) -> int:
        return self.ledger_cents - self.invoiced_cents

    @property
    def is_equal(self) -> bool:
        """Whether units and money agree."""
        return self.difference == 0 and self.cents_difference == 0


def compare(
    account: str,
    links: Sequence[PeriodLink],
    ledger: Sequence[LedgerUsage],
    synced: Mapping[str, SyncedUnits],
    invoice: Invoice,
) -> tuple[ComparisonRow, ...]:
    """One row per metric that the ledger, the link or the invoice knows, by name. Metrics that one fee bills, or of
    whose fees Lago does not say which is whose, have one row together.

    ``links``: the ledger's periods that one billing period of Lago contains, usually one; ``ledger`` and ``synced``
    are their sums.

    Raises:
        ValueError: there is no link, or links of several billing periods, or an invoice without its fees.
    """
    if len({(link.subscription_id, link.lago_from_ms) for link in links}) != 1:
        raise ValueError(f"account {account}: a comparison needs the periods of one billing period")
    if invoice.fees is None:
        raise ValueError(f"account {account}: invoice {invoice.number} was read without its fees")
    fees = [fee for fee in invoice.fees if _bills(fee, links[0])]
    units: dict[str, int] = {}
    costs: dict[str, Decimal] = {}
    for usage in ledger:
        units[usage.metric] = units.get(usage.metric, 0) + usage.units
        costs[usage.metric] = costs.get(usage.metric, Decimal(0)) + usage.cost
    known = {metric for link in links for metric in link.metrics} | units.keys() | synced.keys()
    start_ms = min(link.ledger_start_ms for link in links)
    # The last link: what several of one billing period say is the same, unless the settings have changed.
    newest = max(links, key=lambda link: link.ledger_start_ms)
    rows = []
    for group in fee_groups(map(newest.billed_metric, sorted(known)), fees):
        sums = sum((synced.get(metric, SyncedUnits()) for metric in group.metrics), SyncedUnits())
        invoiced = sum((fee.units for fee in group.fees), Decimal(0))
        debited = sum(units.get(metric, 0) for metric in group.metrics)
        amounts = [costs.get(metric, Decimal(0)) for metric in group.metrics]
        if len(group.fees) <= 1:  # rounded once
            amounts = [sum(amounts, Decimal(0))]
        rate = _rate(group.fees)
        rows.append(
            ComparisonRow(
                account=account,
                period_start_ms=start_ms,
                metric=group.name,
                ledger=debited,
                openmeter=sums.openmeter,
                pushed=sums.pushed,
                invoiced=invoiced,
                carried_in=sums.carried_in,
                carried_out=sums.carried_out,
                late=sums.late,
                difference=debited + sums.carried_in - sums.carried_out - invoiced,
                ledger_cents=sum(_cents(amount, invoice.currency, rate) for amount in amounts),
                invoiced_cents=sum(fee.amount_cents + fee.taxes_cents for fee in group.fees),
            )
        )
    return tuple(sorted(rows, key=lambda row: row.metric))


def _bills(fee: Fee, link: PeriodLink) -> bool:
    if fee.kind != "charge" or fee.subscription_id not in (None, link.subscription_id):
        return False
    if fee.from_ms is None or fee.to_ms is None:
        return True
    return fee.from_ms < link.lago_to_ms and link.lago_from_ms < fee.to_ms


def _rate(fees: Sequence[Fee]) -> Decimal:
    """Of the taxes on a metric's fees, which have the same."""
    return max((fee.taxes_rate for fee in fees), default=Decimal(0))


def _cents(cost: Decimal, currency: str, taxes_rate: Decimal) -> int:
    """The amount of a fee of this cost on an invoice, taxes included.

    Lago rounds the fee once, half away from zero (lago-api ``app/services/fees/charge_service.rb``), and the taxes on
    what it was rounded to once more (``app/services/fees/apply_taxes_service.rb``); costs are not below 0.
    """
    rate = Fraction(taxes_rate) / 100
    fee = _rounded(Fraction(cost) * 10 ** exponent(currency) / (1 + rate))
    return fee + _rounded(fee * rate)


def _rounded(amount: Fraction) -> int:
    return math.floor(amount + Fraction(1, 2))
