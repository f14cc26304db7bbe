"""Webhooks of Lago: they come, and their signatures are valid."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from sidecar.cli.verify_billing.rig import LOOK_S, Rig
from sidecar.cli.verify_billing.scenario import Comparison, Scenario
from sidecar.cli.verify_billing.scenarios.prepaid import prepaid_account

KIND = "wallet_transaction."


class Webhooks(Scenario):
    name = "webhooks"
    shows = "A top-up makes Lago send a webhook whose signature is valid."
    needs = "webhooks"

    async def prepare(self, rig: Rig) -> None:
        self.account = rig.names.of("webhooks")
        self.wallet = await prepaid_account(rig, self.account, "webhooks", "0.10")

    async def drive(self, rig: Rig) -> None:
        before = rig.webhooks_taken(KIND)
        await rig.make.top_up(self.wallet, Decimal("0.10"))

        async def has_come() -> bool:
            return rig.webhooks_taken(KIND) > before or bool(rig.webhooks_refused())

        await rig.until("a webhook of a top-up", has_come, LOOK_S)
        await rig.until_loaded(self.account, Decimal("0.2"))

    async def compare(self, rig: Rig) -> Sequence[Comparison]:
        refused = rig.webhooks_refused()
        found = ", ".join(f"{count} × {reason}" for reason, count in sorted(refused.items()))
        return (Comparison("refused webhooks", "none", found or "none"),)
