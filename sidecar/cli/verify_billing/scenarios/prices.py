"""The charge models: what the ledger has charged is what Lago shows, to the cent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from sidecar.cli.verify_billing.provisioning import Price, graduated, package, standard, volume
from sidecar.cli.verify_billing.rig import Rig
from sidecar.cli.verify_billing.scenario import Comparison, Scenario
from sidecar.cli.verify_billing.scenarios.books import compare_answers, compare_books

POSTPAID: Final = {"quota_mode": "postpaid"}
TENS, ONES = 3, 4
UNITS: Final = 10 * TENS + ONES


async def postpaid_account(rig: Rig, account: str, plan: str, price: Price) -> None:
    """A customer without a limit, loaded."""
    await rig.make.customer(account, POSTPAID)
    await rig.make.subscribe(account, await rig.make.plan(plan, price))
    await rig.until_loaded(account)


class _Priced(Scenario):
    price: ClassVar[Price]
    cents: ClassVar[int]
    """What UNITS cost, computed by hand."""

    async def prepare(self, rig: Rig) -> None:
        name = self.name.partition(" ")[0]
        self.account = rig.names.of(name)
        await postpaid_account(rig, self.account, name, self.price)

    async def drive(self, rig: Rig) -> None:
        self.statuses = [*await rig.calls(self.account, TENS, 10), *await rig.calls(self.account, ONES)]

    async def compare(self, rig: Rig) -> Sequence[Comparison]:
        calls = compare_answers([200] * (TENS + ONES), self.statuses)
        return calls, *await compare_books(rig, self.account, UNITS, self.cents)


class StandardPrice(_Priced):
    name = "standard price"
    shows = "34 units at 0.07 cost 2.38."
    price = standard("0.07")
    cents = 238


class GraduatedPrice(_Priced):
    name = "graduated price"
    shows = "34 units in three tiers with flat fees cost 1.00 + 1.30 + 1.08."
    price = graduated((10, "0.10", "0"), (30, "0.05", "0.30"), (None, "0.02", "1"))
    cents = 338


class PackagePrice(_Priced):
    name = "package price"
    shows = "34 units, of which 3 are free, are four packages of 10 at 1.50."
    price = package("1.50", 10, 3)
    cents = 600


class VolumePrice(_Priced):
    name = "volume price"
    shows = "34 units cost 0.04 each and a flat fee of 0.50: the second tier is the price of all of them."
    price = volume((20, "0.10", "0"), (None, "0.04", "0.50"))
    cents = 186
