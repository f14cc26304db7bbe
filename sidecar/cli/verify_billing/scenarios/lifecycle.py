"""Ends of periods: an upgrade, a cancellation, the end of a month. Each makes an invoice."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Final

from sidecar.billing.lago.transport import segment
from sidecar.cli.verify_billing.provisioning import standard
from sidecar.cli.verify_billing.rig import LOOK_S, NotSeen, Rig
from sidecar.cli.verify_billing.scenario import Comparison, Scenario
from sidecar.cli.verify_billing.scenarios.books import (
    Total,
    compare_answers,
    compare_books,
    compare_invoice,
    ledger_total,
)
from sidecar.cli.verify_billing.scenarios.prices import postpaid_account
from sidecar.ledger.pricing.price_tables import Standard

AFTER_MIDNIGHT_S: Final = 900
"""Lago bills ten minutes past midnight."""


class Upgrade(Scenario):
    name = "upgrade"
    shows = "Another plan: the calls before it are on its invoice at the old price, those after it have the new price."

    async def prepare(self, rig: Rig) -> None:
        self.account = rig.names.of("upgrade")
        await postpaid_account(rig, self.account, "upgrade", standard("0.10"))
        self.dearer = await rig.make.plan("dearer", standard("0.20"), amount_cents=100)

    async def drive(self, rig: Rig) -> None:
        self.statuses = await rig.calls(self.account, 4)
        self.before = await compare_books(rig, self.account, 4, 40)
        self.charged = await ledger_total(rig, self.account)
        await rig.make.subscribe(self.account, self.dearer)

        async def has_new_price() -> bool:
            metrics = (await rig.ledger(self.account)).metrics
            return any(each.price == Standard(Decimal("0.20")) and each.settled == 0 for each in metrics)

        await rig.until(f"the new price of {self.account} in the ledger", has_new_price, LOOK_S)
        self.statuses += await rig.calls(self.account, 3)

    async def compare(self, rig: Rig) -> Sequence[Comparison]:
        return (
            compare_answers([200] * 7, self.statuses),
            *(each for each in self.before if not each.is_equal),
            *await compare_books(rig, self.account, 3, 60, openmeter_has_more=4),
            *await compare_invoice(rig, self.account, self.charged),
        )


class Cancellation(Scenario):
    name = "cancellation"
    shows = "A subscription that ends is invoiced with what was charged, and its calls are refused with 403."

    async def prepare(self, rig: Rig) -> None:
        self.account = rig.names.of("cancelled")
        await postpaid_account(rig, self.account, "cancelled", standard("0.10"))

    async def drive(self, rig: Rig) -> None:
        self.statuses = await rig.calls(self.account, 7)
        self.books = await compare_books(rig, self.account, 7, 70)
        self.charged = await ledger_total(rig, self.account)
        await rig.lago.delete(f"/subscriptions/{segment(rig.names.subscription(self.account))}")

        async def is_closed() -> bool:
            return (await rig.ledger(self.account)).status == "closed"

        await rig.until(f"the end of {self.account} in the ledger", is_closed, LOOK_S)
        self.statuses += await rig.calls(self.account, 1)

    async def compare(self, rig: Rig) -> Sequence[Comparison]:
        calls = compare_answers([200] * 7 + [403], self.statuses)
        return calls, *self.books, *await compare_invoice(rig, self.account, self.charged)


class MonthEnd(Scenario):
    name = "invoice at month end"
    shows = "The invoice of a month has the units and the cents that the ledger has charged in it, tax included."
    needs = "clock"

    async def prepare(self, rig: Rig) -> None:
        self.account = rig.names.of("month")
        await rig.make.customer(self.account, {"quota_mode": "postpaid"}, tax_codes=[rig.names.tax])
        await rig.make.subscribe(self.account, await rig.make.plan("month", standard("0.10")))
        await rig.until_loaded(self.account)

    async def drive(self, rig: Rig) -> None:
        self.statuses = await rig.calls(self.account, 6)
        self.books = await compare_books(rig, self.account, 6, 72)
        self.charged: Total = await ledger_total(rig, self.account)
        subscription = await rig.lago.subscription(rig.names.subscription(self.account))
        if subscription is None or subscription.period_end_ms is None:
            raise NotSeen(f"the period of {self.account} in Lago")
        await rig.move_clock(subscription.period_end_ms / 1000 + AFTER_MIDNIGHT_S)

    async def compare(self, rig: Rig) -> Sequence[Comparison]:
        calls = compare_answers([200] * 6, self.statuses)
        return calls, *self.books, *await compare_invoice(rig, self.account, self.charged)
