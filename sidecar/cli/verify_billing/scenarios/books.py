"""Compares the three books of one account: the ledger, OpenMeter, Lago."""

from __future__ import annotations

from decimal import Decimal
from itertools import groupby

from sidecar.cli.verify_billing.rig import LOOK_S, Rig
from sidecar.cli.verify_billing.scenario import Comparison
from sidecar.cli.words import plain

CENTS: Decimal = Decimal(100)


def answers(statuses: list[int]) -> str:
    """``10 × 200, 2 × 402``."""
    return ", ".join(f"{len(list(group))} × {status}" for status, group in groupby(statuses))


def number(value: Decimal | int) -> str:
    return plain(Decimal(value))


async def ledger_books(rig: Rig, account: str) -> tuple[Decimal, Decimal]:
    """Units and cents, tax included, in the current period."""
    snapshot = await rig.ledger(account)
    metrics = [each for each in snapshot.metrics if each.metric == rig.names.metric]
    return Decimal(sum(each.settled for each in metrics)), sum((each.cost for each in metrics), Decimal(0)) * CENTS


async def compare_books(rig: Rig, account: str, served: int, surplus: int = 0) -> tuple[Comparison, ...]:
    """``served`` units were answered in the current period. ``surplus``: units that only OpenMeter has. Afterwards the
    usage is in Lago."""

    async def units() -> Decimal:
        return (await ledger_books(rig, account))[0]

    async def is_settled() -> bool:
        return await units() >= served

    await rig.until(f"{served} units of {account} in the ledger", is_settled, LOOK_S)
    settled, cents = await ledger_books(rig, account)
    metered = await rig.eventually(lambda: rig.openmeter_units(account), settled + surplus)
    await rig.flush(account)
    pushed = await rig.eventually(lambda: rig.lago_units(account), settled)
    billed = await rig.eventually(lambda: rig.lago_cents(account), int(cents))
    return (
        Comparison("ledger units", str(served), number(settled)),
        Comparison("OpenMeter units", number(settled + surplus), number(metered)),
        Comparison("Lago units", number(settled), number(pushed)),
        Comparison("Lago cents", number(cents), number(billed)),
    )
