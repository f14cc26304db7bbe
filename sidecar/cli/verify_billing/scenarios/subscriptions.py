"""Two subscriptions of one customer, with intervals of their own."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from sidecar.billing.lago.transport import segment
from sidecar.cli.verify_billing.options import filtered_path
from sidecar.cli.verify_billing.provisioning import filtered, standard
from sidecar.cli.verify_billing.rig import LOOK_S, Rig
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

CALLS, PAYMENTS = 6, 4
CENTS_OF_CALLS, CENTS_OF_PAYMENTS = 60, 200
"""By hand: 6 × 0.10 and 4 × 0.50."""


class TwoSubscriptions(Scenario):
    name = "two subscriptions"
    shows = "A month and a week of one customer: each bills its own calls, and goes on when the other ends."

    async def prepare(self, rig: Rig) -> None:
        self.account = rig.names.of("two")
        self.second = f"{self.account}-week"
        self.payments = rig.names.filtered_metric("sepa")
        metric_id = await rig.make.filtered_metric()
        price = filtered(standard("0.02"), sepa=standard("0.50"))
        await rig.make.customer(self.account, POSTPAID)
        await rig.make.subscribe(self.account, await rig.make.plan("two-month", standard("0.10")))
        weekly = await rig.make.plan("two-week", price, metric_id=metric_id, interval="weekly")
        await rig.make.subscribe(self.account, weekly, external_id=self.second)

        async def has_both() -> bool:
            return self.payments in {each.metric for each in (await rig.ledger(self.account)).metrics}

        await rig.until_loaded(self.account)
        await rig.until(f"both subscriptions of {self.account} in the ledger", has_both, LOOK_S)

    async def drive(self, rig: Rig) -> None:
        self.statuses = await rig.calls(self.account, CALLS)
        self.statuses += [await rig.call_path(self.account, filtered_path("sepa")) for _ in range(PAYMENTS)]

    async def compare(self, rig: Rig) -> Sequence[Comparison]:
        charged = await until_charged(rig, self.account, CALLS + PAYMENTS)
        periods = {
            (each.period_start_ms, each.period_end_ms) for each in (await rig.ledger(self.account)).subscriptions
        }
        rows = [compare_answers([200] * (CALLS + PAYMENTS), self.statuses)]
        rows.append(Comparison("periods in the ledger", "2", str(len(periods))))
        for what, metric, units, cents in (
            ("calls", rig.names.metric, CALLS, CENTS_OF_CALLS),
            ("payments", self.payments, PAYMENTS, CENTS_OF_PAYMENTS),
        ):
            due = Total(Decimal(units), Decimal(cents))
            rows += await compare_metric(rig, self.account, what, metric, due, charged.get(metric))

        async def in_lago() -> tuple[int, int]:
            await rig.flush(self.account)
            both = [
                await rig.lago.current_usage(self.account, name)
                for name in (rig.names.subscription(self.account), self.second)
            ]
            first, second = (each.total_cents if each is not None else 0 for each in both)
            return first, second

        owed = await rig.eventually(in_lago, (CENTS_OF_CALLS, CENTS_OF_PAYMENTS))
        rows.append(Comparison("Lago cents", f"{CENTS_OF_CALLS} + {CENTS_OF_PAYMENTS}", " + ".join(map(str, owed))))
        return (*rows, *await self._after_the_week(rig))

    async def _after_the_week(self, rig: Rig) -> tuple[Comparison, ...]:
        """The second subscription ends: it is invoiced, and the first goes on."""
        await rig.lago.delete(f"/subscriptions/{segment(self.second)}")

        async def has_ended() -> bool:
            metrics = (await rig.ledger(self.account)).metrics
            return not any(each.metric == self.payments and each.in_plan for each in metrics)

        await rig.until(f"the end of {self.second} in the ledger", has_ended, LOOK_S)
        statuses = [await rig.call(self.account), await rig.call_path(self.account, filtered_path("sepa"))]
        invoice = await invoice_with_fees(rig, self.account)
        fees = [fee for fee in invoice.fees or () if fee.kind == "charge" and fee.units]
        billed = ", ".join(f"{number(fee.units)} for {fee.amount_cents}" for fee in fees)
        return (
            compare_answers([200, 403], statuses),
            Comparison("invoice of the week", f"{PAYMENTS} for {CENTS_OF_PAYMENTS}", billed),
        )
