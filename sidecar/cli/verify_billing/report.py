"""The table of a run, for people and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from sidecar.cli.output import console, errors, print_json
from sidecar.cli.verify_billing.cleaning import Cleaned
from sidecar.cli.verify_billing.scenario import Result, Row
from sidecar.cli.verify_billing.trial import Progress
from sidecar.cli.words import count

STYLES: Final[dict[Result, str]] = {"ok": "green", "differs": "red", "failed": "red", "skipped": "yellow"}


def passes(rows: Sequence[Row]) -> bool:
    """Nothing differs, and nothing failed."""
    return all(row.result in ("ok", "skipped") for row in rows)


def details(row: Row) -> str:
    """What differs, a line each; where nothing does, all that was compared."""
    wrong = [
        f"{each.what}: expected {each.expected}, found {each.found}" for each in row.comparisons if not each.is_equal
    ]
    found = wrong or [", ".join(f"{each.what} {each.found}" for each in row.comparisons)]
    return "\n".join(filter(None, [*found, row.why]))


def show_progress(progress: Progress) -> None:
    """A line on standard error when a scenario has ended; on a terminal, one when it begins too."""
    if progress.row is not None:
        style, head = STYLES[progress.row.result], f"{progress.done:>2}/{progress.of} {progress.name}"
        errors().print(f"{head}: [{style}]{progress.row.result}[/{style}] ({progress.row.seconds:g} s)")
    elif errors().is_terminal:
        errors().print(f"[dim]      {progress.name} …[/dim]")


def show_table(rows: Sequence[Row]) -> None:
    from rich.table import Table

    table = Table()
    table.add_column("scenario", overflow="fold", max_width=24)
    table.add_column("result", no_wrap=True)
    table.add_column("compared", overflow="fold")
    for row in rows:
        style = STYLES[row.result]
        table.add_row(row.name, f"[{style}]{row.result}[/{style}]", details(row).replace("[", "\\["))
    console().print(table)
    results = Counter(row.result for row in rows)
    console().print(", ".join(f"{results[result]} {result}" for result in STYLES if results[result]))


def show_json(prefix: str, rows: Sequence[Row], cleaned: Cleaned | None) -> None:
    print_json({"prefix": prefix, "ok": passes(rows), "rows": list(map(_row, rows)), "cleaned": cleaned})


def _row(row: Row) -> dict[str, Any]:
    return {
        "name": row.name, "shows": row.shows, "result": row.result, "why": row.why, "seconds": row.seconds,
        "comparisons": [
            {"what": each.what, "expected": each.expected, "found": each.found} for each in row.comparisons
        ],
    }  # fmt: skip


def show_cleaned(prefix: str, cleaned: Cleaned) -> None:
    """On standard error, as progress is."""
    taken = ", ".join(count(number, kind, _plural(kind)) for kind, number in cleaned.taken.items() if number)
    errors().print(f"cleaned up {prefix}: {taken or 'there was nothing'}", soft_wrap=True)
    for each in cleaned.left:
        errors().print(f"[red]left:[/red] {each.replace('[', chr(92) + '[')}", soft_wrap=True)
    if cleaned.left:
        errors().print(f"try again: sidecar verify-billing --clean {prefix} …", soft_wrap=True)


def _plural(kind: str) -> str:
    return {"tax": "taxes", "key in Valkey": "keys in Valkey"}.get(kind, "")
