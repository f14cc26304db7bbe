"""Compares the books of one account: the ledger, OpenMeter, Lago's current usage, Lago's invoice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby
from typing import Final

from sidecar.billing.lago.models import Invoice
from sidecar.cli.verify_billing.rig import LOOK_S, Rig
from sidecar.cli.verify_billing.scenario import Comparison
from sidecar.cli.words import plain

CENTS: Final = Decimal(100)
BILLED: Final = ("finalized", "draft")


@dataclass(frozen=True, slots=True)
class Total:
    """Units and cents, tax included."""

    units: Decimal
    cents: Decimal


def answers(statuses: Sequence[int]) -> str:
    """``10 × 200 + 2 × 402``."""
    return " + ".join(f"{len(list(group))} × {status}" for status, group in groupby(statuses))


def compare_answers(expected: Sequence[int], found: Sequence[int]) -> Comparison:
    return Comparison("answers", answers(expected), answers(found))


def number(value: Decimal | int) -> str:
    return plain(Decimal(value))


async def ledger_total(rig: Rig, account: str) -> Total:
    """What the ledger has charged in the current period."""
    snapshot = await rig.ledger(account)
    metrics = [each for each in snapshot.metrics if each.metric == rig.names.metric]
    units = Decimal(sum(each.settled for each in metrics))
    return Total(units, sum((each.cost for each in metrics), Decimal(0)) * CENTS)


async def ledger_totals(rig: Rig, account: str) -> dict[str, Total]:
    """What the ledger has charged in the current periods, by metric."""
    metrics = (await rig.ledger(account)).metrics
    return {each.metric: Total(Decimal(each.settled), each.cost * CENTS) for each in metrics}


async def until_charged(rig: Rig, account: str, units: int) -> dict[str, Total]:
    """The totals by metric once the ledger has charged so many units of all metrics. Raises `NotSeen`."""

    async def is_settled() -> bool:
        return sum(each.units for each in (await ledger_totals(rig, account)).values()) >= units

    await rig.until(f"{units} units of {account} in the ledger", is_settled, LOOK_S)
    return await ledger_totals(rig, account)


async def compare_metric(
    rig: Rig, account: str, what: str, metric: str, expected: Total, charged: Total | None
) -> tuple[Comparison, ...]:
    """Ledger and OpenMeter of one metric of several."""
    found = charged or Total(Decimal(0), Decimal(0))
    metered = await rig.eventually(lambda: rig.openmeter_units(account, metric), found.units)
    return (
        Comparison(f"{what}: ledger units", number(expected.units), number(found.units)),
        Comparison(f"{what}: ledger cents", number(expected.cents), number(found.cents)),
        Comparison(f"{what}: OpenMeter units", number(found.units), number(metered)),
    )


async def compare_books(
    rig: Rig, account: str, units: int, cents: int, *, openmeter_has_more: int = 0
) -> tuple[Comparison, ...]:
    """In the current period ``units`` were served, which cost ``cents``. Afterwards the usage is in Lago.

    ``openmeter_has_more``: units that are not of this period, or of nobody's.
    """

    async def is_settled() -> bool:
        return (await ledger_total(rig, account)).units >= units

    await rig.until(f"{units} units of {account} in the ledger", is_settled, LOOK_S)
    charged = await ledger_total(rig, account)
    expected = charged.units + openmeter_has_more
    metered = await rig.eventually(lambda: rig.openmeter_units(account), expected)

    async def used() -> Decimal:
        await rig.flush(account)  # each time: the second that has not ended yet is not pushed
        return await rig.lago_units(account)

    async def cents_in_lago() -> int:
        return await rig.lago_cents(account)

    # What OpenMeter has not counted does not come to Lago either, however long one waits.
    pushed = await rig.eventually(used, charged.units) if metered == expected else await used()
    is_there = pushed == charged.units
    owed = await (rig.eventually(cents_in_lago, int(charged.cents)) if is_there else cents_in_lago())
    return (
        Comparison("ledger units", str(units), number(charged.units)),
        Comparison("ledger cents", str(cents), number(charged.cents)),
        Comparison("OpenMeter units", number(expected), number(metered)),
        Comparison("Lago units", number(charged.units), number(pushed)),
        Comparison("Lago cents", number(charged.cents), number(owed)),
    )


async def invoice_with_fees(rig: Rig, account: str) -> Invoice:
    """The first invoice that Lago makes of an account's usage or fees. Raises `NotSeen`: it makes none."""
    found: list[Invoice] = []

    async def is_there() -> bool:
        for each in await rig.lago.invoices(account, statuses=BILLED):
            invoice = await rig.lago.invoice(each.lago_id)
            found.extend([invoice] if invoice is not None and invoice.fees else [])
        return bool(found)

    await rig.until(f"an invoice of {account}", is_there)
    return found[0]


async def compare_invoice(rig: Rig, account: str, charged: Total) -> tuple[Comparison, ...]:
    """The invoice that Lago makes of a period that has ended. Raises `NotSeen`: it makes none."""
    found: list[Invoice] = []

    async def is_there() -> bool:
        for each in await rig.lago.invoices(account, statuses=BILLED):
            invoice = await rig.lago.invoice(each.lago_id)
            if invoice is not None and any(fee.metric_code == rig.names.metric for fee in invoice.fees or ()):
                found.append(invoice)
        return bool(found)

    await rig.until(f"an invoice of {account}", is_there)
    invoice = found[0]
    fees = [fee for fee in invoice.fees or () if fee.metric_code == rig.names.metric]
    cents = sum(fee.amount_cents + fee.taxes_cents for fee in fees)
    return (
        Comparison("invoice units", number(charged.units), number(sum((fee.units for fee in fees), Decimal(0)))),
        Comparison("invoice cents", number(charged.cents), number(cents)),
    )
