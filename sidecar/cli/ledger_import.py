"""``sidecar ledger import``: a ledger out of an exported file."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import IO, Annotated

import typer

from sidecar.cli.ledger_work import ProgressLines, instance_ttl_ms, run_resumable
from sidecar.cli.output import (
    ConfigOption,
    JsonOption,
    ValkeyOption,
    console,
    print_json,
    print_table,
    say_error,
    where,
)
from sidecar.ledger.audit_log import AuditLog
from sidecar.ledger.store import open_store
from sidecar.ledger.transfer.access import Access
from sidecar.ledger.transfer.importing import Import, ImportReport


def register(group: typer.Typer) -> None:
    group.command(name="import")(import_)


def import_(
    file: Annotated[str, typer.Argument(help="File that `sidecar ledger export` wrote, or - for standard input.")],
    config: ConfigOption = None,
    valkey: ValkeyOption = None,
    json: JsonOption = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Remove the ledger that is there. The file is checked before.")
    ] = False,
) -> None:
    """Make a ledger of an exported file. The number of partitions is that of the configuration.

    If the command is interrupted, run it again with the same file: it goes on. Until then no gateway starts.

    Example: [bold]sidecar ledger import ledger.jsonl -c gateway.yaml[/bold]
    """
    ttl_ms = instance_ttl_ms(config, valkey)
    topology, keys = where(config, valkey)
    progress = ProgressLines()

    async def work(opened: IO[bytes]) -> ImportReport:
        async with open_store(topology, keys) as store:
            access = Access(store.client)
            report = await Import(
                access, keys, opened, instance_ttl_ms=ttl_ms, replace=replace, progress=progress
            ).run()
            progress.close()
            if not report.already and not report.differences:
                before = {"file": file, "partitions": report.from_partitions}
                await AuditLog(store.client, keys).add("ledger import", before=before, after=dict(report.counts))
            return report

    with _opened(file) as opened:
        report = run_resumable(work(opened), "run the command again with the same file to go on")
    if json:
        print_json(report)
    elif report.already:
        console().print("the file was imported before: nothing to do")
    else:
        print_table("", ("what", "imported"), [(what, f"{number:,}") for what, number in sorted(report.counts.items())])
        for difference in report.differences:
            say_error(difference)
        if not report.differences:
            console().print(
                f"the ledger is imported: {report.from_partitions} partitions became {report.partitions}"
                if report.from_partitions != report.partitions
                else "the ledger is imported"
            )
    if report.differences:
        say_error("the ledger is not complete, and cannot be used: import the file again with --replace")
        raise typer.Exit(1)


@contextlib.contextmanager
def _opened(file: str) -> Iterator[IO[bytes]]:
    """It is read twice: once to check it."""
    if file != "-":
        with open(file, "rb") as opened:
            yield opened
        return
    with tempfile.TemporaryFile() as copied:
        shutil.copyfileobj(sys.stdin.buffer, copied)
        copied.seek(0)
        yield copied
