"""Prepaid accounts: what a wallet pays for, and what happens when that changes."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from sidecar.cli.verify_billing.provisioning import standard
from sidecar.cli.verify_billing.rig import Rig
from sidecar.cli.verify_billing.scenario import Comparison, Scenario
from sidecar.cli.verify_billing.scenarios.books import answers, compare_books

PRICE = "0.10"


class Prepaid(Scenario):
    name = "prepaid wallet"
    shows = "A wallet pays for exactly as many calls as it has funds for; the next call is refused with 402."

    async def prepare(self, rig: Rig) -> None:
        self.account = rig.names.of("prepaid")
        await rig.make.customer(self.account)
        await rig.make.wallet(self.account, "1.00")
        await rig.make.subscribe(self.account, await rig.make.plan("prepaid", standard(PRICE)))
        await rig.until_loaded(self.account, Decimal(1))

    async def drive(self, rig: Rig) -> None:
        self.statuses = await rig.calls(self.account, 12)

    async def compare(self, rig: Rig) -> Sequence[Comparison]:
        calls = Comparison("answers", answers([200] * 10 + [402] * 2), answers(self.statuses))
        return calls, *await compare_books(rig, self.account, 10)
