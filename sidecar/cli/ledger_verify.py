"""``sidecar ledger verify``: the ledger's rules, recomputed from what is stored."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated

import typer

from sidecar.basics.errors import SetupError
from sidecar.basics.fault_reasons import reason_of
from sidecar.cli.output import (
    ConfigOption,
    JsonOption,
    ValkeyOption,
    between,
    console,
    errors,
    fail,
    print_json,
    print_table,
    run_async,
    say_error,
    where,
)
from sidecar.cli.words import count
from sidecar.ledger.audit_log import AuditLog
from sidecar.ledger.hours import HOUR_MS
from sidecar.ledger.store import open_store
from sidecar.ledger.verification.charged_units import ChargedUnits
from sidecar.ledger.verification.pace import Pace
from sidecar.ledger.verification.verify import repair_orphans, verify_ledger
from sidecar.ledger.verification.verify_report import VerifyReport
from sidecar.metering.audit.charged_events import read_charged
from sidecar.valkey.topology import CLIENT_ERRORS

DIFFERENT, IMPOSSIBLE = 1, 2


def register(group: typer.Typer) -> None:
    group.command()(verify)


def verify(
    config: ConfigOption = None,
    valkey: ValkeyOption = None,
    json: JsonOption = False,
    pages_per_second: Annotated[
        float,
        typer.Option(
            callback=between(0.1, 10_000),
            metavar="NUMBER",
            help="Most pages in a second, of 100 accounts or stream entries each. It bounds the load on Valkey.",
        ),
    ] = 50,
    events: Annotated[bool, typer.Option(help="Compare hours with their usage events.")] = True,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Give back units that are held for processes that nobody knows. Nothing else is changed."
        ),
    ] = False,
) -> None:
    """Verify the ledger: shares, counts, hours, events, keys. Gateways may go on.

    Exit code 1: there are differences, each of which is named. Exit code 2: the ledger could not be verified.

    Example: [bold]sidecar ledger verify -c gateway.yaml[/bold]
    """
    topology, keys = where(config, valkey)

    async def work() -> tuple[VerifyReport, Mapping[int, bool]]:
        async with open_store(topology, keys) as store:
            pace = Pace(pages_per_second)

            async def charged(now_ms: int) -> ChargedUnits | None:
                return await read_charged(store.client, keys, now_ms, pace)

            report = await verify_ledger(store.client, keys, read_charged=charged if events else None, pace=pace)
            repaired: Mapping[int, bool] = {}
            if repair and report.orphans:
                repaired = await repair_orphans(store.client, keys, report.orphans)
                units = {str(each.epoch): each.units for each in report.orphans if repaired[each.epoch]}
                await AuditLog(store.client, keys).add("ledger verify --repair", after=units)
            return report, repaired

    try:
        report, repaired = run_async(work())
    except SetupError as error:
        fail(str(error), IMPOSSIBLE)
    except CLIENT_ERRORS as error:
        fail(f"the ledger cannot be verified: {reason_of(error)}", IMPOSSIBLE)
    if json:
        print_json(
            {"agrees": report.agrees, **_document(report), "repaired": [e for e, done in repaired.items() if done]}
        )
    else:
        _print(report, repaired, events)
    if not report.agrees:
        raise typer.Exit(DIFFERENT)


def _document(report: VerifyReport) -> dict[str, object]:
    return {
        "accounts": report.accounts,
        "epochs": report.epochs,
        "epochs_moving": report.epochs_moving,
        "hours": {"first_ms": report.first_hour * HOUR_MS, "count": report.hours},
        "differences": [
            {"check": d.check.value, "place": d.place, "what": d.what, "expected": d.expected, "found": d.found}
            for d in report.differences
        ],
        "more": report.more,
        "orphans": report.orphans,
        "notes": report.notes,
    }


def _print(report: VerifyReport, repaired: Mapping[int, bool], events: bool) -> None:
    if report.differences:
        rows = [(d.check.value, d.place, d.what, d.expected, d.found) for d in report.differences]
        print_table("", ("check", "where", "what", "expected", "found"), rows)
    if report.more:
        say_error(f"{count(report.more, 'further difference')}")
    for note in report.notes:
        errors().print(f"note: {note}", markup=False, soft_wrap=True)
    if report.epochs_moving:
        moving = count(report.epochs_moving, "process", "processes")
        errors().print(f"note: the holds of {moving} moved all the time; their sum was not compared", markup=False)
    for epoch, done in repaired.items():
        console().print(f"epoch {epoch}: " + ("the control plane gives it back" if done else "not repaired"))
    console().print(
        f"{count(report.accounts, 'account')} and the holds of {count(report.epochs, 'process', 'processes')} verified"
        f"{_hours(report) if events else ''}: "
        + ("all agrees" if report.agrees else count(len(report.differences) + report.more, "difference"))
    )


def _hours(report: VerifyReport) -> str:
    if not report.hours:
        return ", no hour of which all events are kept"
    first = datetime.fromtimestamp(report.first_hour * HOUR_MS / 1000, UTC)
    return f", {count(report.hours, 'hour')} from {first:%Y-%m-%d %H:%M} UTC on with their events"
