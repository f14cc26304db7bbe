"""``sidecar ledger migrate``: a ledger of release 0.2 becomes one of this release."""

from __future__ import annotations

from typing import Annotated

import typer

from sidecar.cli.ledger_work import ProgressLines, instance_ttl_ms, run_resumable
from sidecar.cli.output import (
    ConfigOption,
    JsonOption,
    ValkeyOption,
    between,
    console,
    print_json,
    print_table,
    say_error,
    warn,
    where,
)
from sidecar.cli.words import count
from sidecar.ledger.audit_log import AuditLog
from sidecar.ledger.keys import FIRST_FORMAT_PARTITIONS
from sidecar.ledger.migration.first_format import PARTITIONS_MAX
from sidecar.ledger.migration.migration import Migration, marks_sentence
from sidecar.ledger.migration.migration_report import MigrationReport
from sidecar.ledger.store import open_store
from sidecar.ledger.transfer.access import Access


def register(group: typer.Typer) -> None:
    group.command()(migrate)


def migrate(
    config: ConfigOption = None,
    valkey: ValkeyOption = None,
    json: JsonOption = False,
    from_partitions: Annotated[
        int,
        typer.Option(
            callback=between(1, PARTITIONS_MAX),
            metavar="NUMBER",
            help="Number of partitions of the old ledger (ledger.partitions of release 0.2).",
        ),
    ] = FIRST_FORMAT_PARTITIONS,
    force: Annotated[
        bool, typer.Option("--force", help="Migrate although gateways of release 0.2 seem to run.")
    ] = False,
    keep_old: Annotated[bool, typer.Option("--keep-old", help="Keep the data of the old ledger.")] = False,
) -> None:
    """Migrate the ledger of release 0.2 to the format of this release, on the same Valkey.

    Stop all gateways and control planes first. Until everything is moved and compared, the old ledger stays as it is.
    If the command is interrupted, run it again: it goes on.

    Example: [bold]sidecar ledger migrate -c gateway.yaml[/bold]
    """
    ttl_ms = instance_ttl_ms(config, valkey)
    topology, keys = where(config, valkey)

    progress = ProgressLines()

    async def work() -> MigrationReport:
        async with open_store(topology, keys) as store:
            migration = Migration(
                Access(store.client), keys, first_partitions=from_partitions, instance_ttl_ms=ttl_ms, force=force,
                keep_old=keep_old, progress=progress,
            )  # fmt: skip
            report = await migration.run()
            progress.close()
            if not report.already and not report.differences:
                moved = {row.what: row.after for row in report.rows}
                await AuditLog(store.client, keys).add("ledger migrate", before={"format": 1}, after=moved)
            return report

    report = run_resumable(work(), "the old ledger can still be used, or run the command again to go on")
    if json:
        print_json(report)
    else:
        _print(report)
    if report.differences:
        raise typer.Exit(1)


def _print(report: MigrationReport) -> None:
    if report.already:
        console().print("the ledger has the format of this release already: nothing to do")
        return
    rows = [(row.what, row.before, row.after, "yes" if row.agrees else "NO") for row in report.rows]
    if rows:
        print_table("", ("what", "release 0.2", "now", "equal"), rows)
    if report.differences:
        for difference in report.differences:
            say_error(difference)
        say_error("the ledger was not migrated, and is as it was: release 0.2 can use it")
        return
    for metric, units in sorted(report.released.items()):
        console().print(f"{count(units, 'unit')} of {metric} were held by gateways that have stopped: given back")
    if sentence := marks_sentence(report):
        warn(sentence)
    for key in report.unknown_keys:
        warn(f"not moved, as release 0.2 has no such key: {key}")
    console().print("the ledger is migrated")
