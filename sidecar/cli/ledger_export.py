"""``sidecar ledger export``: all of a ledger into a file."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated

import typer

from sidecar.cli.ledger_work import ProgressLines, instance_ttl_ms, run_resumable
from sidecar.cli.output import (
    ConfigOption,
    JsonOption,
    ValkeyOption,
    console,
    errors,
    fail,
    print_json,
    print_table,
    warn,
    where,
)
from sidecar.cli.words import count
from sidecar.ledger.store import open_store
from sidecar.ledger.transfer.access import Access
from sidecar.ledger.transfer.export import Export, ExportReport


def register(group: typer.Typer) -> None:
    group.command()(export)


def export(
    file: Annotated[str, typer.Argument(help="File to write, or - for standard output.")],
    config: ConfigOption = None,
    valkey: ValkeyOption = None,
    json: JsonOption = False,
    live: Annotated[
        bool,
        typer.Option(
            "--live", help="Export although gateways run. Each account is consistent, but not all with each other."
        ),
    ] = False,
) -> None:
    """Write the whole ledger into a file: accounts, API keys, events, and the state of the control plane.

    Stop all gateways and control planes first. Units that are held are given back in the file. The file has personal
    and commercial data: protect it as you protect Valkey.

    Example: [bold]sidecar ledger export ledger.jsonl -c gateway.yaml[/bold]
    """
    ttl_ms = instance_ttl_ms(config, valkey)
    topology, keys = where(config, valkey)
    to_standard_output = file == "-"
    if json and to_standard_output:
        fail("--json and the ledger cannot both go to standard output", 2)
    progress = ProgressLines()

    async def work(opened: IO[bytes]) -> ExportReport:
        async with open_store(topology, keys) as store:
            access = Access(store.client)
            report = await Export(access, keys, opened, instance_ttl_ms=ttl_ms, live=live, progress=progress).run()
            progress.close()
            return report

    with _opened(file) as opened:
        report = run_resumable(work(opened), "nothing was changed; run the command again")
    if json:
        print_json(report)
        return
    if not to_standard_output:
        print_table("", ("what", "exported"), [(what, f"{number:,}") for what, number in sorted(report.counts.items())])
    for metric, units in sorted(report.released.items()):
        warn(f"{count(units, 'unit')} of {metric} are held; in the file they are given back")
    (errors() if to_standard_output else console()).print("the ledger is exported")


@contextlib.contextmanager
def _opened(file: str) -> Iterator[IO[bytes]]:
    """A file that takes its name only when it is whole; nobody else may read it."""
    if file == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(file)
    if path.exists():
        fail(f"{path} is there already", 2)
    partial = path.with_name(path.name + ".partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as opened:
            yield opened
            opened.flush()
            os.fsync(opened.fileno())
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
