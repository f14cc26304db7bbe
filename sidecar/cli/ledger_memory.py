"""``sidecar ledger memory``: what the ledger takes of Valkey's memory."""

from __future__ import annotations

from typing import Annotated

import typer

from sidecar.cli.output import (
    ConfigOption,
    JsonOption,
    ValkeyOption,
    between,
    console,
    print_json,
    print_table,
    run_async,
    warn,
    where,
)
from sidecar.cli.words import count
from sidecar.ledger.store import open_store
from sidecar.ledger.verification.memory_use import MemoryReport, drop_old_functions, memory_report

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def register(group: typer.Typer) -> None:
    group.command()(memory)


def memory(
    config: ConfigOption = None,
    valkey: ValkeyOption = None,
    json: JsonOption = False,
    sample: Annotated[
        int,
        typer.Option(
            callback=between(10, 10_000), metavar="NUMBER", help="Accounts and API keys whose size is asked for."
        ),
    ] = 200,
    drop_old: Annotated[
        bool,
        typer.Option(
            "--drop-old-functions",
            help="Remove the functions of other releases. A gateway that still uses one loads it again.",
        ),
    ] = False,
) -> None:
    """Show what the ledger takes of Valkey's memory, by kind of data, and what is wrong with it.

    Sizes with a ~ are estimates from a sample.

    Example: [bold]sidecar ledger memory -c gateway.yaml[/bold]
    """

    async def work() -> tuple[MemoryReport, dict[str, list[str]]]:
        async with open_store(*where(config, valkey)) as store:
            gone = await drop_old_functions(store.client) if drop_old else {}
            return await memory_report(store.client, store.keys, sample=sample), gone

    report, gone = run_async(work())
    if json:
        totals = {"ledger": report.ledger_bytes, "used": report.used_bytes, "max": report.max_bytes}
        print_json(
            {"kinds": report.kinds, "servers": report.servers, "bytes": totals, "warnings": report.warnings,
             "dropped_functions": gone}
        )  # fmt: skip
        return
    whole = report.max_bytes or report.used_bytes
    rows: list[tuple[str, str, str, str]] = []
    for kind in report.kinds:
        about = "~" if kind.estimated else ""
        share = f"{kind.size_bytes / max(1, whole):.1%}"
        rows.append((kind.kind, f"{about}{kind.count:,}", f"{about}{size(kind.size_bytes)}", share))
    functions = sum(server.functions_bytes for server in report.servers)
    libraries = sum(len(server.current_functions) + len(server.old_functions) for server in report.servers)
    rows.append(("functions", f"{libraries:,}", size(functions), f"{functions / max(1, whole):.1%}"))
    rest = max(0, report.used_bytes - report.ledger_bytes)
    rows.append(("all else", "", f"~{size(rest)}", f"{rest / max(1, whole):.1%}"))
    print_table("", ("data", "number", "size", "of maxmemory" if report.max_bytes else "of what is used"), rows)
    for server, names in gone.items():
        console().print(f"{count(len(names), 'function')} removed{' from ' + server if server else ''}", markup=False)
    limit = f" of {size(report.max_bytes)}" if report.max_bytes else ", without a limit"
    console().print(f"used: {size(report.used_bytes)}{limit}")
    for warning in report.warnings:
        warn(warning)


def size(number: float) -> str:
    """``1.5 MiB``."""
    for unit in _UNITS:
        if number < 1024 or unit == _UNITS[-1]:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError("unreachable: the last unit takes everything")
