"""Accounts with a limit: what it pays for, and what happens when it changes."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from sidecar.billing.lago.transport import segment
from sidecar.cli.verify_billing.provisioning import graduated, standard
from sidecar.cli.verify_billing.rig import LOOK_S, Rig
from sidecar.cli.verify_billing.scenario import Comparison, Scenario
from sidecar.cli.verify_billing.scenarios.books import compare_answers, compare_books

PRICE = standard("0.10")


async def prepaid_account(rig: Rig, account: str, plan: str, funds: str) -> str:
    """A customer with a wallet, loaded; the id of the wallet."""
    await rig.make.customer(account)
    wallet = await rig.make.wallet(account, funds)
    await rig.make.subscribe(account, await rig.make.plan(plan, PRICE))
    await rig.until_loaded(account, Decimal(funds))
    return wallet


class Prepaid(Scenario):
    name = "prepaid wallet"
    shows = "A wallet pays for exactly as many calls as it has funds for; the next call is refused with 402."

    async def prepare(self, rig: Rig) -> None:
        self.account = rig.names.of("prepaid")
        await prepaid_account(rig, self.account, "prepaid", "1.00")

    async def drive(self, rig: Rig) -> None:
        self.statuses = await rig.calls(self.account, 12)

    async def compare(self, rig: Rig) -> Sequence[Comparison]:
        calls = compare_answers([200] * 10 + [402] * 2, self.statuses)
        return calls, *await compare_books(rig, self.account, 10, 100)


class TopUp(Scenario):
    name = "top-up"
    shows = "Credits that are put into a wallet are available without a restart, and no more than they."

    async def prepare(self, rig: Rig) -> None:
        self.account = rig.names.of("topup")
        self.wallet = await prepaid_account(rig, self.account, "topup", "0.20")

    async def drive(self, rig: Rig) -> None:
        self.statuses = await rig.calls(self.account, 3)
        await rig.make.top_up(self.wallet, Decimal("0.30"))
        waited_s = await rig.until_loaded(self.account, Decimal("0.3"))
        self.note = f"seen after {waited_s:.1f} s"
        self.statuses += await rig.calls(self.account, 4)

    async def compare(self, rig: Rig) -> Sequence[Comparison]:
        calls = compare_answers([200] * 2 + [402] + [200] * 3 + [402], self.statuses)
        return calls, *await compare_books(rig, self.account, 5, 50)


class TerminatedWallet(Scenario):
    name = "terminated wallet"
    shows = "An account whose wallet ends has nothing to spend: 402, not everything."

    async def prepare(self, rig: Rig) -> None:
        self.account = rig.names.of("terminated")
        self.wallet = await prepaid_account(rig, self.account, "terminated", "1.00")

    async def drive(self, rig: Rig) -> None:
        self.statuses = await rig.calls(self.account, 2)
        await rig.lago.delete(f"/wallets/{segment(self.wallet)}")

        async def is_spent() -> bool:
            available = (await rig.ledger(self.account)).available
            return available is not None and available <= 0

        waited_s = await rig.until(f"the end of the wallet of {self.account} in the ledger", is_spent, LOOK_S)
        self.note = f"seen after {waited_s:.1f} s"
        self.statuses += await rig.calls(self.account, 2)

    async def compare(self, rig: Rig) -> Sequence[Comparison]:
        calls = compare_answers([200, 200, 402, 402], self.statuses)
        return calls, *await compare_books(rig, self.account, 2, 20)


class DottedId(Scenario):
    name = "id with a dot"
    shows = "A customer whose id has a dot is itself, not the one whose id ends before the dot."

    async def prepare(self, rig: Rig) -> None:
        self.neighbour = rig.names.of("dot")
        self.account = f"{self.neighbour}.example"
        await prepaid_account(rig, self.neighbour, "dot", "5.00")
        await prepaid_account(rig, self.account, "dotted", "0.20")

    async def drive(self, rig: Rig) -> None:
        self.statuses = await rig.calls(self.account, 3)
        self.statuses += await rig.calls(self.neighbour, 1)

    async def compare(self, rig: Rig) -> Sequence[Comparison]:
        calls = compare_answers([200, 200, 402, 200], self.statuses)
        return calls, *await compare_books(rig, self.account, 2, 20)


class Tax(Scenario):
    name = "tax"
    shows = "A wallet pays the tax too: 20 % leave ten calls of 0.10 in a wallet of 1.20."

    async def prepare(self, rig: Rig) -> None:
        self.account = rig.names.of("tax")
        await rig.make.customer(self.account, tax_codes=[rig.names.tax])
        await rig.make.wallet(self.account, "1.20")
        await rig.make.subscribe(self.account, await rig.make.plan("tax", PRICE))
        await rig.until_loaded(self.account, Decimal("1.2"))

    async def drive(self, rig: Rig) -> None:
        self.statuses = await rig.calls(self.account, 11)

    async def compare(self, rig: Rig) -> Sequence[Comparison]:
        calls = compare_answers([200] * 10 + [402], self.statuses)
        return calls, *await compare_books(rig, self.account, 10, 120)


class SpendingCap(Scenario):
    name = "overage with a cap"
    shows = "Included calls cost nothing, further ones do, and a spending cap ends them with 402."

    async def prepare(self, rig: Rig) -> None:
        self.account = rig.names.of("overage")
        await rig.make.customer(self.account, {"quota_mode": "overage", "quota_spending_cap": "0.20"})
        price = graduated((5, "0", "0"), (None, "0.05", "0"))
        await rig.make.subscribe(self.account, await rig.make.plan("overage", price))
        await rig.until_loaded(self.account)

    async def drive(self, rig: Rig) -> None:
        self.statuses = await rig.calls(self.account, 10)

    async def compare(self, rig: Rig) -> Sequence[Comparison]:
        calls = compare_answers([200] * 9 + [402], self.statuses)
        return calls, *await compare_books(rig, self.account, 9, 20)
