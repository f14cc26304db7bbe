"""What OpenMeter counts that the gateway did not charge, and what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from decimal import Decimal

from sidecar.cli.verify_billing.provisioning import standard
from sidecar.cli.verify_billing.rig import ASK_S, Rig
from sidecar.cli.verify_billing.scenario import Comparison, Scenario
from sidecar.cli.verify_billing.scenarios.books import compare_answers, compare_books, number
from sidecar.cli.verify_billing.scenarios.prices import postpaid_account

EVENTS, SURPLUS = 5, 3


class Duplicates(Scenario):
    name = "duplicates"
    shows = "OpenMeter counts events that are sent twice once, if its dedupe is on, and twice if it is off."

    async def prepare(self, rig: Rig) -> None:
        self.subject = rig.names.of("duplicates")

    async def drive(self, rig: Rig) -> None:
        ids = [f"{self.subject}-{number}" for number in range(EVENTS)]
        await rig.send_events(self.subject, ids)
        await self._until(rig, EVENTS)
        await rig.send_events(self.subject, ids)
        # OpenMeter shows events in the order in which it took them: behind this one all others are to be seen.
        await rig.send_events(self.subject, [f"{self.subject}-last"])
        await self._until(rig, EVENTS + 1)
        await asyncio.sleep(ASK_S)
        self.counted = await rig.openmeter_units(self.subject)

    async def _until(self, rig: Rig, units: int) -> None:
        async def are_counted() -> bool:
            return await rig.openmeter_units(self.subject) >= units

        await rig.until(f"{units} events of {self.subject} in OpenMeter", are_counted)

    async def compare(self, rig: Rig) -> Sequence[Comparison]:
        once = self.counted == Decimal(EVENTS + 1)
        self.note = "dedupe is on" if once else "dedupe is off: an event that is sent again counts again (sink.dedupe)"
        expected = EVENTS + 1 if once else 2 * EVENTS + 1
        return (Comparison("OpenMeter units", str(expected), number(self.counted)),)


class Surplus(Scenario):
    name = "surplus in OpenMeter"
    shows = "Events that did not come from the gateway are not billed."

    async def prepare(self, rig: Rig) -> None:
        self.account = rig.names.of("surplus")
        await postpaid_account(rig, self.account, "surplus", standard("0.10"))

    async def drive(self, rig: Rig) -> None:
        self.statuses = await rig.calls(self.account, 5)
        await rig.send_events(self.account, [f"{self.account}-{number}" for number in range(SURPLUS)])

    async def compare(self, rig: Rig) -> Sequence[Comparison]:
        calls = compare_answers([200] * 5, self.statuses)
        return calls, *await compare_books(rig, self.account, 5, 50, openmeter_has_more=SURPLUS)
