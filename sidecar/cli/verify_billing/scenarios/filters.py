"""A charge with filters: each path has the price that Lago has for events with its properties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Final

from sidecar.billing.lago.models import Fee, FeeUsage
from sidecar.billing.lago.transport import segment
from sidecar.cli.verify_billing.names import OTHER_SCHEME
from sidecar.cli.verify_billing.options import filtered_path
from sidecar.cli.verify_billing.provisioning import Price, filtered, graduated
from sidecar.cli.verify_billing.rig import Rig
from sidecar.cli.verify_billing.scenario import Comparison, Scenario
from sidecar.cli.verify_billing.scenarios.books import (
    Total,
    compare_answers,
    compare_metric,
    invoice_with_fees,
    number,
    until_charged,
)
from sidecar.cli.verify_billing.scenarios.prices import POSTPAID

CALLS: Final[Mapping[str, int]] = {"sepa": 5, "swift": 2, OTHER_SCHEME: 3}
CENTS_OF: Final[Mapping[str, int]] = {"sepa": 90, "swift": 250, OTHER_SCHEME: 6}
"""By hand: 0.50 + 3 × 0.10 + 2 × 0.05, 2 × 1.25, and 3 × 0.02."""


def price() -> Price:
    """SWIFT payments are grouped by method as well, which is POST for all of them."""
    return filtered(
        graduated((None, "0.02", "0")),
        sepa=graduated((3, "0.10", "0.50"), (None, "0.05", "0")),
        swift=graduated((None, "1.25", "0"), group_keys=("method",)),
    )


class Filters(Scenario):
    name = "filters"
    shows = "Paths with prices of their own: 5 SEPA payments cost 0.90, 2 SWIFT payments 2.50, 3 other calls 0.06."

    async def prepare(self, rig: Rig) -> None:
        self.account = rig.names.of("filters")
        metric_id = await rig.make.filtered_metric()
        await rig.make.customer(self.account, POSTPAID)
        await rig.make.subscribe(self.account, await rig.make.plan("filters", price(), metric_id=metric_id))
        await rig.until_loaded(self.account)

    async def drive(self, rig: Rig) -> None:
        self.statuses = [
            await rig.call_path(self.account, filtered_path(scheme))
            for scheme, number_of in CALLS.items()
            for _ in range(number_of)
        ]

    async def compare(self, rig: Rig) -> Sequence[Comparison]:
        total = sum(CALLS.values())

        charged = await until_charged(rig, self.account, total)
        rows = [compare_answers([200] * total, self.statuses)]
        for scheme, units in CALLS.items():
            metric, due = rig.names.filtered_metric(scheme), Total(Decimal(units), Decimal(CENTS_OF[scheme]))
            rows += await compare_metric(rig, self.account, scheme, metric, due, charged.get(metric))
        expected = {scheme: Decimal(units) for scheme, units in CALLS.items()}

        async def in_lago() -> dict[str, Decimal]:
            await rig.flush(self.account)
            return await self._in_lago(rig)

        pushed = await rig.eventually(in_lago, expected)
        owed = await rig.eventually(lambda: rig.lago_cents(self.account), sum(CENTS_OF.values()))
        for scheme, units in CALLS.items():
            rows.append(Comparison(f"{scheme}: Lago units", str(units), number(pushed.get(scheme, Decimal(0)))))
        rows.append(Comparison("Lago cents", str(sum(CENTS_OF.values())), str(owed)))
        return (*rows, *await self._invoice(rig))

    async def _in_lago(self, rig: Rig) -> dict[str, Decimal]:
        """Units by scheme in Lago's current usage."""
        found = await rig.lago.current_usage(self.account, rig.names.subscription(self.account))
        fees = [fee for charge in (found.charges if found is not None else ()) for fee in charge.fees]
        return {_scheme_of(fee): fee.units for fee in fees if fee.units}

    async def _invoice(self, rig: Rig) -> tuple[Comparison, ...]:
        """Of the subscription, which ends."""
        await rig.lago.delete(f"/subscriptions/{segment(rig.names.subscription(self.account))}")
        invoice = await invoice_with_fees(rig, self.account)
        fees = [fee for fee in invoice.fees or () if fee.kind == "charge"]
        shown = {_scheme_of(fee): f"{number(fee.units)} for {fee.amount_cents + fee.taxes_cents}" for fee in fees}
        return tuple(
            Comparison(f"{scheme}: invoice", f"{units} for {CENTS_OF[scheme]}", shown.get(scheme, "no fee"))
            for scheme, units in CALLS.items()
        )


def _scheme_of(fee: Fee | FeeUsage) -> str:
    return next((values[0] for name, values in fee.filter or () if name == "scheme"), OTHER_SCHEME)
