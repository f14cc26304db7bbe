"""What Lago does with a licence only."""

from __future__ import annotations

from collections.abc import Sequence

from sidecar.billing.lago.errors import LagoUnauthorized
from sidecar.cli.verify_billing.provisioning import standard
from sidecar.cli.verify_billing.rig import NotSeen, Rig
from sidecar.cli.verify_billing.scenario import Comparison, Scenario, Skipped
from sidecar.cli.verify_billing.scenarios.books import compare_answers, compare_books
from sidecar.cli.verify_billing.scenarios.prices import POSTPAID


class OverriddenPrice(Scenario):
    name = "overridden price"
    shows = "A price that a subscription overrides is the price of its calls."

    async def prepare(self, rig: Rig) -> None:
        self.account = rig.names.of("override")
        await rig.make.customer(self.account, POSTPAID)
        code = await rig.make.plan("override", standard("0.10"))
        plan = await rig.lago.plan(code)
        if plan is None:
            raise NotSeen(f"plan {code} in Lago")
        charge = {"id": plan.charges[0].lago_id, **standard("0.03")}
        try:
            await rig.make.subscribe(self.account, code, plan_overrides={"charges": [charge]})
        except LagoUnauthorized as error:
            if error.status == 403:
                raise Skipped("needs a premium licence: Lago refuses prices of a subscription's own") from None
            raise
        await rig.until_loaded(self.account)

    async def drive(self, rig: Rig) -> None:
        self.statuses = await rig.calls(self.account, 5)

    async def compare(self, rig: Rig) -> Sequence[Comparison]:
        calls = compare_answers([200] * 5, self.statuses)
        return calls, *await compare_books(rig, self.account, 5, 15)
