"""``sidecar sync``: push metered usage to Lago once, and compare it with Lago's."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Annotated

import typer

from sidecar.app import logs
from sidecar.app.configuration import Config, load_config
from sidecar.billing.usage_sync.sync_report import SyncReport
from sidecar.cli.control_commands import OnceOption, OneAccountArgument, opened, progress_bar
from sidecar.cli.output import ConfigOption, JsonOption, console, errors, fail, print_json, print_table, run_async
from sidecar.cli.words import count, instant, plain
from sidecar.controlplane.control_work import ControlWork
from sidecar.controlplane.sync_loop import Overview


def register(app: typer.Typer) -> None:
    app.command()(sync)


def sync(
    account: OneAccountArgument = None,
    once: OnceOption = False,
    flush: Annotated[
        bool, typer.Option("--flush", help="Push all usage up to now, as before an upgrade or a termination.")
    ] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Push metered usage from OpenMeter to Lago once. Compare what Lago has invoiced with the ledger.

    If a control plane leads, the command asks it to push.

    Example: [bold]sidecar sync --once --flush tpp-1 -c gateway.yaml[/bold]
    """
    if not once:
        fail("give --once; `sidecar control` syncs all the time", 2)
    loaded = load_config(config, os.environ)
    logs.configure("error", loaded.log.format)
    report, overview = run_async(_sync(loaded, account, flush))
    if json:
        print_json({"report": report, "billed": overview.billed, "waiting": overview.waiting})
    else:
        _print_sync(report, overview)
    if report is not None and not report.is_complete:
        raise typer.Exit(1)


async def _sync(config: Config, account: str | None, flush: bool) -> tuple[SyncReport | None, Overview]:
    async with opened(config) as control_work:
        loop = control_work.sync_loop
        if loop is None:
            fail("lago.sync.enabled or metering.url is not set: there is no usage to push", 1)
        report = None
        token = await control_work.lease.acquire()
        if token is not None:
            async with _kept(control_work):
                with progress_bar() as progress:
                    task = progress.add_task("accounts", total=None)
                    report = await loop.round(
                        token, flush=flush, only=account, progress=lambda done: progress.update(task, completed=done)
                    )
        elif not await control_work.ask_leader_to_flush(account, timeout_s=30.0):
            fail(f"the control plane {control_work.lease.state.leader} leads, but did not answer within 30 s", 1)
        return report, await loop.overview(account)


@contextlib.asynccontextmanager
async def _kept(control_work: ControlWork) -> AsyncIterator[None]:
    """Holds the lease for as long as it takes."""

    async def renew() -> None:
        while True:
            await asyncio.sleep(control_work.lease.ttl_s / 3)
            await control_work.lease.renew()

    renewing = asyncio.create_task(renew())
    try:
        yield
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
        await control_work.lease.release()


def _print_sync(report: SyncReport | None, overview: Overview) -> None:
    rows = [(row, False) for row in overview.billed] + [(row, True) for row in overview.waiting]
    rows.sort(key=lambda pair: (pair[0].account, pair[0].period_start_ms, pair[0].metric))
    table = [
        (
            row.account,
            instant(row.period_start_ms)[:10],
            row.metric,
            row.ledger,
            "?" if row.openmeter is None else row.openmeter,
            row.pushed,
            "not yet" if waits else plain(row.invoiced),
            f"{row.carried_in:+d}/{-row.carried_out:+d}" if row.carried_in or row.carried_out else "",
            "" if waits else plain(row.difference),
            "" if waits else row.cents_difference,
        )
        for row, waits in rows
    ]
    columns = ("account", "period", "metric", "ledger", "OpenMeter", "pushed", "invoiced", "carried in/out",
               "difference", "cents")  # fmt: skip
    print_table("", columns, table)
    if report is None:
        console().print("The leading control plane has pushed all usage that was due.")
        return
    counts = report.counts
    console().print(
        f"{count(counts.accounts, 'account')}: {count(counts.events, 'event')} with "
        f"{count(counts.units, 'unit')} pushed, "
        f"{counts.duplicates:,} known to Lago already, {counts.set_aside:,} set aside, "
        f"{count(counts.late_units_known, 'unit')} late"
    )
    for metric, reason in report.refused.items():
        errors().print(f"[red]{metric} is not pushed:[/red] {reason}", soft_wrap=True)
    if report.stopped is not None:
        errors().print(f"[red]stopped early:[/red] {report.stopped}; the next sync pushes the rest", soft_wrap=True)
    for row in report.rows:
        if row.kind not in ("pushed", "carried", "duplicate"):
            errors().print(
                f"{row.kind}: {row.account} {row.metric} {count(row.units, 'unit')} {row.detail}", soft_wrap=True
            )
