"""Runs scenarios, a few at a time: most of them wait for Lago most of the time. Whatever becomes of one, the others are
run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import aiohttp

from sidecar.basics.errors import SetupError
from sidecar.basics.fault_reasons import reason_of
from sidecar.billing.lago.errors import LagoError
from sidecar.cli.verify_billing.rig import NotSeen, Rig
from sidecar.cli.verify_billing.scenario import Comparison, Need, Result, Row, Scenario, Skipped
from sidecar.ledger.accounts.loader import LedgerUnavailable
from sidecar.metering.openmeter.meter_query import QueryError
from sidecar.valkey.topology import CLIENT_ERRORS

FAULTS = (LagoError, QueryError, SetupError, LedgerUnavailable, aiohttp.ClientError, OSError, *CLIENT_ERRORS)
"""What is not the scenario's own fault, nor a difference."""


AT_ONCE: Final = 4


@dataclass(frozen=True, slots=True)
class Progress:
    """A scenario that begins, or has a row; ``done`` rows there are by now."""

    name: str
    done: int
    of: int
    row: Row | None = None


async def try_scenarios(rig: Rig, scenarios: Sequence[Scenario], note: Callable[[Progress], None]) -> list[Row]:
    """A row for each, in their order. Those that move the clock come when the others have ended."""
    rows: dict[Scenario, Row] = {}
    slots = asyncio.Semaphore(AT_ONCE)

    async def run(scenario: Scenario) -> None:
        async with slots:
            note(Progress(scenario.name, len(rows), len(scenarios)))
            rows[scenario] = row = await _row(rig, scenario)
            note(Progress(scenario.name, len(rows), len(scenarios), row))

    for moves in (False, True):
        async with asyncio.TaskGroup() as tasks:
            for scenario in scenarios:
                if (scenario.needs == "clock") is moves:
                    tasks.create_task(run(scenario))
    return [rows[scenario] for scenario in scenarios]


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
    text = (
        str(error) if isinstance(error, LagoError | QueryError | SetupError | LedgerUnavailable) else reason_of(error)
    )
    return " ".join(text.split())[:300]
