"""Runs scenarios one after the other. Whatever becomes of one, the others are run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sidecar.basics.fault_reasons import reason_of
from sidecar.billing.lago.errors import LagoError
from sidecar.cli.verify_billing.rig import NotSeen, Rig
from sidecar.cli.verify_billing.scenario import Comparison, Need, Result, Row, Scenario, Skipped
from sidecar.ledger.accounts.loader import LedgerUnavailable
from sidecar.metering.openmeter.meter_query import QueryError
from sidecar.valkey.topology import CLIENT_ERRORS

FAULTS = (LagoError, QueryError, LedgerUnavailable, OSError, TimeoutError, *CLIENT_ERRORS)
"""What is not the scenario's own fault, nor a difference."""


@dataclass(frozen=True, slots=True)
class Progress:
    """A scenario that begins, or has a row."""

    number: int
    of: int
    name: str
    row: Row | None = None


async def try_scenarios(rig: Rig, scenarios: Sequence[Scenario], note: Callable[[Progress], None]) -> list[Row]:
    """A row for each."""
    rows = []
    for number, scenario in enumerate(scenarios, 1):
        note(Progress(number, len(scenarios), scenario.name))
        row = await _row(rig, scenario)
        rows.append(row)
        note(Progress(number, len(scenarios), scenario.name, row))
    return rows


async def _row(rig: Rig, scenario: Scenario) -> Row:
    began_s = time.monotonic()

    def row(result: Result, comparisons: Sequence[Comparison] = (), why: str = "") -> Row:
        seconds = round(time.monotonic() - began_s, 1)
        return Row(scenario.name, scenario.shows, result, seconds, tuple(comparisons), why)

    missing = _missing(rig, scenario.needs)
    if missing:
        return row("skipped", why=missing)
    try:
        await scenario.prepare(rig)
        await scenario.drive(rig)
        comparisons = await scenario.compare(rig)
    except Skipped as skipped:
        return row("skipped", why=str(skipped))
    except NotSeen as late:
        return row("differs", [Comparison(str(late), f"within {rig.options.timeout_s:g} s", "not in that time")])
    except FAULTS as error:
        return row("failed", why=_one_line(error))
    is_equal = all(each.is_equal for each in comparisons)
    return row("ok" if is_equal else "differs", comparisons, scenario.note)


def _missing(rig: Rig, need: Need | None) -> str:
    if need == "clock" and rig.stand_in is None:
        return "needs a moved clock: Lago bills at the end of the month"
    if need == "webhooks" and rig.options.webhook_url is None:
        return "needs --webhook-url: Lago has to reach this machine"
    return ""


def _one_line(error: Exception) -> str:
    text = str(error) if isinstance(error, LagoError | QueryError | LedgerUnavailable) else reason_of(error)
    return " ".join(text.split())[:300]
