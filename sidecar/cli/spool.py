"""``sidecar spool``: charges on disk that the ledger does not have yet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from sidecar.app import assemble
from sidecar.app.configuration import Config, load_config
from sidecar.cli.output import ConfigOption, JsonOption, console, fail, print_json, print_table, run_async, say_error
from sidecar.cli.words import count, instant
from sidecar.ledger.audit_log import AuditLog
from sidecar.ledger.spool.adoption import Adoption
from sidecar.ledger.spool.dead_spools import DeadSpools, Replay
from sidecar.ledger.spool.inspection import IN_USE, UNUSABLE, SpoolFile, inspect
from sidecar.ledger.spool.journal import JournalError
from sidecar.ledger.store import open_store

ACCOUNTS_SHOWN = 3

app = typer.Typer(help="Show charges on disk that wait for Valkey, and charge those of dead processes.",
                  no_args_is_help=True)  # fmt: skip

DirectoryOption = Annotated[
    Path | None,
    typer.Option("--directory", metavar="PATH", help="Instead of ledger.spool_directory.", show_default=False),
]


def register(group: typer.Typer) -> None:
    group.add_typer(app, name="spool")


@app.command()
def status(config: ConfigOption = None, directory: DirectoryOption = None, json: JsonOption = False) -> None:
    """Show the files of the spool: whose process lives, what waits to be charged, and what cannot be used.

    Exit code 1 if a file cannot be used.

    Example: [bold]sidecar spool status -c gateway.yaml[/bold]
    """
    place = _place(load_config(config, os.environ), directory)
    try:
        files = inspect(place) if place.exists() else []
    except JournalError as error:
        fail(str(error), 1)
    except OSError as error:
        fail(f"{place}: {error.strerror}", 1)
    if json:
        print_json({"directory": str(place), "files": [_document(file) for file in files]})
    elif not files:
        console().print(f"nothing is in {place}")
    else:
        print_table("", ("file", "state", "charges", "units", "since", "remarks"), [_row(file) for file in files])
    if any(file.state == UNUSABLE for file in files):
        raise typer.Exit(1)


@app.command()
def replay(
    config: ConfigOption = None,
    directory: DirectoryOption = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also what is so old that the ledger may have forgotten that it had it."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Charge what dead processes left in the spool. Running gateways do the same every second. Nothing is charged
    twice, however often it is run.

    Exit code 1 if something stays.

    Example: [bold]sidecar spool replay -c gateway.yaml[/bold]
    """
    loaded = load_config(config, os.environ)
    place = _place(loaded, directory)

    async def work() -> list[Replay]:
        async with open_store(loaded.valkey, assemble.keys(loaded), loaded.valkey_embedded.appendfsync) as store:
            adoption = Adoption(store.client, store.keys, assemble.link_settings(loaded), force=force)
            done = await DeadSpools(place, adoption).replay_all()
            charges = sum(each.charges for each in done)
            if charges:
                after = {"charges": charges, "files": [each.name for each in done], "force": force}
                await AuditLog(store.client, store.keys).add("spool replay", "", after=after)
            return done

    try:
        done = run_async(work()) if place.exists() else []
    except JournalError as error:
        fail(str(error), 1)
    if json:
        print_json({"replayed": done})
    else:
        charges, refused = sum(each.charges for each in done), sum(each.refused for each in done)
        also = f"; {refused} of them as refused settles" if refused else ""
        console().print(f"{count(charges, 'charge')} of {count(len(done), 'file')} are in the ledger{also}")
        for each in done:
            if each.why:
                say_error(f"{each.name}: {count(each.left, 'charge')} stay: {each.why}")
            if each.damaged:
                say_error(f"{each.name}: damaged parts are in {each.damaged}")
    if any(each.why for each in done):
        raise typer.Exit(1)


def _place(config: Config, directory: Path | None) -> Path:
    place = directory or assemble.spool_place(config)
    if place is None:
        fail("ledger.spool_directory is not set, and there is no --directory", 2)
    return place


def _row(file: SpoolFile) -> tuple[str, ...]:
    remarks = [file.why] if file.why else []
    if file.damages:
        remarks.append(count(file.damages, "damaged part"))
    if file.units:
        most = [f"{account} {units}" for account, units in file.units.most_common(ACCOUNTS_SHOWN)]
        remarks.append(", ".join(most) + (", …" if len(file.units) > ACCOUNTS_SHOWN else ""))
    known = file.state != IN_USE
    return (
        file.name, file.state, str(file.charges) if known else "", str(file.units.total()) if known else "",
        instant(file.since_ms) if file.since_ms else "", "; ".join(remarks),
    )  # fmt: skip


def _document(file: SpoolFile) -> dict[str, Any]:
    return {
        "name": file.name, "state": file.state, "charges": file.charges, "units": dict(file.units),
        "since_ms": file.since_ms or None, "damages": file.damages, "why": file.why or None,
    }  # fmt: skip
