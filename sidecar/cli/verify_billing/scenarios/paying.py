"""What pays an invoice: wallets with a scope, a coupon, a credit note. Nothing of it is left due."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from sidecar.billing.lago.errors import LagoUnauthorized
from sidecar.billing.lago.models import Invoice
from sidecar.billing.lago.transport import segment
from sidecar.cli.verify_billing.rig import LOOK_S, Rig
from sidecar.cli.verify_billing.scenario import Comparison, Scenario, Skipped
from sidecar.cli.verify_billing.scenarios.books import compare_answers, compare_books
from sidecar.cli.verify_billing.scenarios.prepaid import PRICE


async def cancel(rig: Rig, account: str, invoices: int) -> Invoice:
    """End the subscription; the newest of so many invoices of the account's usage. Raises `NotSeen`."""
    await rig.lago.delete(f"/subscriptions/{segment(rig.names.subscription(account))}")
    found: list[Invoice] = []

    async def is_billed() -> bool:
        whole = [await rig.lago.invoice(each.lago_id) for each in await rig.lago.invoices(account)]
        found[:] = [each for each in whole if each is not None and each.status == "finalized" and each.fees_cents]
        return len(found) >= invoices

    await rig.until(f"invoice {invoices} of {account}", is_billed)

    async def is_closed() -> bool:
        return (await rig.ledger(account)).status == "closed"

    await rig.until(f"the end of {account} in the ledger", is_closed, LOOK_S)
    return max(found, key=lambda each: (each.created_at_ms, each.number))


def compare_payment(invoice: Invoice, cents: int, from_wallets: int) -> tuple[Comparison, ...]:
    """What the invoice asked for, and what wallets paid of it; nothing is due."""
    return (
        Comparison("invoice cents", str(cents), str(invoice.fees_cents + invoice.taxes_cents)),
        Comparison("cents from wallets", str(from_wallets), str(invoice.prepaid_cents)),
        Comparison("cents due", "0", str(invoice.due_cents)),
    )


class ScopedWallets(Scenario):
    name = "wallets with scopes"
    shows = "Wallets pay for what they apply to, in the order of their priority; the ledger serves exactly that."

    async def prepare(self, rig: Rig) -> None:
        self.account = rig.names.of("scopes")
        await rig.make.customer(self.account)
        scope = {"billable_metric_codes": [rig.names.metric]}
        self.wallets = [
            await rig.make.wallet(self.account, "0.50", name="everything", priority=2),
            await rig.make.wallet(self.account, "0.30", name="calls", priority=1, applies_to=scope),
            await rig.make.wallet(self.account, "1.00", name="plan", applies_to={"fee_types": ["subscription"]}),
        ]
        await rig.make.subscribe(self.account, await rig.make.plan("scopes", PRICE))
        await rig.until_loaded(self.account, Decimal("0.8"))

    async def drive(self, rig: Rig) -> None:
        self.statuses = await rig.calls(self.account, 7)
        self.books = await compare_books(rig, self.account, 7, 70)
        self.invoice = await cancel(rig, self.account, 1)

    async def compare(self, rig: Rig) -> Sequence[Comparison]:
        left = {each.lago_id: each.balance_cents for each in await rig.lago.wallets(self.account)}
        return (
            compare_answers([200] * 7, self.statuses),
            *self.books,
            *compare_payment(self.invoice, 70, 70),
            Comparison("cents left in wallets", "[10, 0, 100]", str([left.get(each) for each in self.wallets])),
        )


class CouponOnce(Scenario):
    name = "coupon"
    shows = "A coupon of a fixed amount pays for calls before the wallet, and both together for no more than they have."

    async def prepare(self, rig: Rig) -> None:
        self.account = rig.names.of("coupon")
        await rig.make.customer(self.account)
        await rig.make.wallet(self.account, "0.50")
        await rig.make.coupon(self.account, "coupon", 30)
        await rig.make.subscribe(self.account, await rig.make.plan("coupon", PRICE))
        await rig.until_loaded(self.account, Decimal("0.8"))

    async def drive(self, rig: Rig) -> None:
        self.statuses = await rig.calls(self.account, 9)
        self.books = await compare_books(rig, self.account, 8, 80)
        self.invoice = await cancel(rig, self.account, 1)

    async def compare(self, rig: Rig) -> Sequence[Comparison]:
        calls = compare_answers([200] * 8 + [402], self.statuses)
        return calls, *self.books, *compare_payment(self.invoice, 80, 50)


class CreditNoted(Scenario):
    name = "credit note"
    shows = "A credit note of an invoice pays for later calls before the wallet."

    async def prepare(self, rig: Rig) -> None:
        self.account = rig.names.of("credit")
        await rig.make.customer(self.account)
        await rig.make.wallet(self.account, "1.00")
        self.plan = await rig.make.plan("credit", PRICE)
        await rig.make.subscribe(self.account, self.plan)
        await rig.until_loaded(self.account, Decimal(1))

    async def drive(self, rig: Rig) -> None:
        self.statuses = await rig.calls(self.account, 5)
        self.books = await compare_books(rig, self.account, 5, 50)
        first = await cancel(rig, self.account, 1)
        fee = next(each for each in first.fees or () if each.metric_code == rig.names.metric)
        try:
            await rig.make.credit_note(first.lago_id, fee.lago_id or "", 20)
        except LagoUnauthorized as error:
            if error.status == 403:
                raise Skipped("needs a premium licence: Lago makes no credit note without one") from None
            raise
        await rig.make.subscribe(self.account, self.plan)
        await rig.until_loaded(self.account, Decimal("0.7"))
        self.statuses += await rig.calls(self.account, 8)
        self.later = await compare_books(rig, self.account, 7, 70, openmeter_has_more=5)
        self.invoice = await cancel(rig, self.account, 2)

    async def compare(self, rig: Rig) -> Sequence[Comparison]:
        calls = compare_answers([200] * 12 + [402], self.statuses)
        return calls, *self.books, *self.later, *compare_payment(self.invoice, 70, 50)
