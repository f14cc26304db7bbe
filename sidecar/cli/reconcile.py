"""``sidecar reconcile``: what the control plane does with Lago's accounts by itself, once and with its reasons."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.progress import TaskID

from sidecar.app import logs
from sidecar.app.configuration import Config, load_config
from sidecar.billing.lago.errors import LagoError
from sidecar.billing.reconcile.reconciler import Outcome
from sidecar.cli.control_commands import OnceOption, OneAccountArgument, opened, progress_bar
from sidecar.cli.output import ConfigOption, JsonOption, fail, print_json, run_async
from sidecar.cli.reconcile_view import NOT_LOADED, outcome_document, print_outcome, print_outcomes


def register(app: typer.Typer) -> None:
    app.command()(reconcile)


def reconcile(
    account: OneAccountArgument = None,
    once: OnceOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change. Write nothing.")] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Load accounts from Lago into the ledger once. Show what Lago has, and what changes.

    Example: [bold]sidecar reconcile --once --dry-run tpp-1 -c gateway.yaml[/bold]
    """
    if not once:
        fail("give --once; `sidecar control` reconciles all the time", 2)
    loaded = load_config(config, os.environ)
    logs.configure("error", loaded.log.format)
    outcomes = run_async(_reconcile(loaded, account, dry_run))
    if json:
        print_json([outcome_document(outcome) for outcome in outcomes])
    elif account is not None:
        for outcome in outcomes:
            print_outcome(outcome)
    else:
        print_outcomes(outcomes)
    if any(outcome.result in NOT_LOADED for outcome in outcomes):
        raise typer.Exit(1)


async def _reconcile(config: Config, account: str | None, dry_run: bool) -> list[Outcome]:
    async with opened(config) as control_work:
        if account is not None:
            if dry_run:
                return [await control_work.reconciler.preview(account)]
            return [await control_work.reconciler.reconcile(account, thorough=True)]
        outcomes: list[Outcome] = []
        with progress_bar() as progress:
            shown: dict[str, TaskID] = {}

            def step(what: str, done: int, total: int) -> None:
                if what not in shown:
                    shown[what] = progress.add_task(what, total=total)
                progress.update(shown[what], completed=done, total=total)

            try:
                await control_work.reconcile_loop.sweep(
                    None, everybody=True, dry_run=dry_run, progress=step, each=outcomes.append
                )
            except LagoError as error:
                fail(f"Lago: {error}", 1)
        return sorted(outcomes, key=lambda outcome: outcome.account)
