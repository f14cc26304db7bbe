"""``sidecar catalog``: compare a file of metrics, prices and customers with Lago and OpenMeter, and bring it there."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer
from rich.markup import escape

from sidecar.app import logs
from sidecar.app.configuration import Config, load_config
from sidecar.billing.catalog.apply import ApplyOutcome, apply
from sidecar.billing.catalog.changes import ACTIONS, Change, ChangeAction, FieldChange, Observed, counts
from sidecar.billing.catalog.current_state import read
from sidecar.billing.catalog.diff import diff
from sidecar.billing.catalog.document import load_catalog
from sidecar.billing.catalog.values import Catalog
from sidecar.billing.lago.client import LagoClient
from sidecar.billing.lago.errors import LagoError, LagoSetupError
from sidecar.billing.metric_mapping import MetricMapping
from sidecar.cli.output import ConfigOption, JsonOption, console, errors, fail, print_json, run_async
from sidecar.cli.words import count
from sidecar.metering.openmeter.access import MeteringError
from sidecar.metering.openmeter.meter_query import MeterQuery, QueryError

T = TypeVar("T")

app = typer.Typer(
    help="Compare a catalog file with Lago and OpenMeter, and apply it.",
    no_args_is_help=True,
)

FileArgument = Annotated[Path, typer.Argument(help="Catalog file (YAML). See `examples/catalog.yaml`.")]

VALUE_CHARS_SHOWN: Final = 160
_INDENT: Final = "      "
_MARKS: Final[dict[ChangeAction, str]] = {
    "create": "[green]+[/green]",
    "update": "[yellow]~[/yellow]",
    "keep": "=",
    "refuse": "[red]![/red]",
}
_NOTE_STYLES: Final[dict[ChangeAction, str]] = {"create": "dim", "update": "yellow", "keep": "yellow", "refuse": "red"}
_VERBS: Final[dict[ChangeAction, str]] = {
    "create": "to create",
    "update": "to change",
    "keep": "unchanged",
    "refuse": "refused",
}
_KIND_WIDTH: Final = len("webhook endpoint")


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="catalog")


@app.command(name="diff")
def diff_(file: FileArgument, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show what sidecar catalog apply would change. This writes nothing, and always exits with 0.

    Example: [bold]sidecar catalog diff examples/catalog.yaml -c gateway.yaml[/bold]
    """
    catalog, loaded = _inputs(file, config)

    async def work() -> tuple[Change, ...]:
        async with _services(loaded) as services:
            return services.diff(catalog, await services.read(catalog), loaded)

    changes = _run(work())
    if json:
        print_json({"changes": _rows(changes), "summary": counts(changes)})
        return
    _print_changes(changes, loaded)
    _print_summary(changes)


@app.command(name="apply")
def apply_(
    file: FileArgument,
    config: ConfigOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Write without a question.")] = False,
    json: JsonOption = False,
) -> None:
    """Create and change metrics, plans, customers, wallets, webhooks and meters as the file describes them.

    The command deletes nothing, except charges of plans that are in the file. A second run changes nothing. If one
    entry of the file is refused, the command writes nothing. It stops at the first failure. Run it again to continue.

    Example: [bold]sidecar catalog apply examples/catalog.yaml -c gateway.yaml[/bold]
    """
    if not yes and (json or not sys.stdin.isatty()):
        fail("give --yes to write: standard input is no terminal, so the command cannot ask you", 2)
    catalog, loaded = _inputs(file, config)

    async def work() -> tuple[tuple[Change, ...], ApplyOutcome | None]:
        async with _services(loaded) as services:
            observed = await services.read(catalog)
            changes = services.diff(catalog, observed, loaded)
            found = counts(changes)
            if not json:
                _print_changes(changes, loaded)
                _print_summary(changes)
            if found["refuse"]:
                return changes, None
            if not found["create"] and not found["update"]:
                return changes, ApplyOutcome(())
            if not yes and not typer.confirm("Write this?", err=True):
                return changes, None
            return changes, await apply(changes, observed, services.lago, services.openmeter)

    changes, outcome = _run(work())
    if json:
        print_json(_outcome_document(changes, outcome))
    else:
        _print_outcome(changes, outcome)
    if outcome is None or outcome.failed is not None:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _Services:
    lago: LagoClient
    openmeter: MeterQuery | None

    async def read(self, catalog: Catalog) -> Observed:
        return await read(self.lago, self.openmeter, catalog)

    def diff(self, catalog: Catalog, observed: Observed, config: Config) -> tuple[Change, ...]:
        mapping = MetricMapping(config.lago.billable_metrics)
        return diff(catalog, observed, config.metering.type, time.time_ns() // 1_000_000, mapping)


@asynccontextmanager
async def _services(config: Config) -> AsyncIterator[_Services]:
    async with LagoClient(config.lago) as lago:
        if config.metering.url is None:
            yield _Services(lago, None)
            return
        async with MeterQuery(config.metering) as openmeter:
            yield _Services(lago, openmeter)


def _inputs(file: Path, config: Path | None) -> tuple[Catalog, Config]:
    """The file first: whoever writes one can see what is wrong in it without a Lago."""
    catalog = load_catalog(file)
    loaded = load_config(config, os.environ)
    logs.configure("error", "console")
    if loaded.lago.url is None:
        fail(f"{config or 'environment'}: lago.url is not set; the catalog needs Lago", 2)
    return catalog, loaded


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return run_async(work)
    except LagoError as error:
        fail(f"Lago: {error}", 1)
    except (LagoSetupError, QueryError, MeteringError) as error:
        fail(str(error), 1)


def _print_changes(changes: Sequence[Change], config: Config) -> None:
    for change in changes:
        if change.action == "keep" and not change.notes:
            continue
        line = f"{_MARKS[change.action]} {change.kind.ljust(_KIND_WIDTH)}  [bold]{escape(change.code)}[/bold]"
        console().print(f"{line}{'  refused' if change.action == 'refuse' else ''}", soft_wrap=True)
        for field in change.fields:
            console().print(f"{_INDENT}{escape(_field_text(change, field))}", soft_wrap=True)
        for note in change.notes:
            console().print(f"{_INDENT}[{_NOTE_STYLES[change.action]}]{escape(note)}[/]", soft_wrap=True)
    if config.metering.url is None:
        console().print("  metering.url is not set: the command leaves out meters of OpenMeter", soft_wrap=True)


def _field_text(change: Change, field: FieldChange) -> str:
    after = "none" if field.after is None else _short(field.after)
    if change.action == "create" or (change.action == "refuse" and field.before is None):
        return f"{field.name}: {after}"
    return f"{field.name}: {'none' if field.before is None else _short(field.before)} -> {after}"


def _short(text: str) -> str:
    if len(text) <= VALUE_CHARS_SHOWN:
        return text
    rest = text.count(", ", VALUE_CHARS_SHOWN)
    return f"{text[:VALUE_CHARS_SHOWN].rpartition(', ')[0] or text[:VALUE_CHARS_SHOWN]}, … ({rest + 1} more)"


def _print_summary(changes: Sequence[Change]) -> None:
    found = counts(changes)
    console().print(", ".join(f"{found[action]} {_VERBS[action]}" for action in ACTIONS), soft_wrap=True)


def _print_outcome(changes: Sequence[Change], outcome: ApplyOutcome | None) -> None:
    if outcome is None:
        refused = counts(changes)["refuse"]
        errors().print(
            "The command wrote nothing."
            + (f" Lago or OpenMeter cannot take {count(refused, 'entry', 'entries')} of the file." if refused else "")
        )
        return
    if outcome.failed is not None:
        failed, rest = outcome.failed, outcome.left[1:]
        what = f"{failed.kind} {failed.code}: {outcome.reason}"
        errors().print(f"[red]error:[/red] {escape(what)}", soft_wrap=True)
        errors().print(f"done: {_names(outcome.done)}", soft_wrap=True)
        errors().print(f"not done: {_names(outcome.left)}" + (", in this order" if rest else ""), soft_wrap=True)
        errors().print("Run the command again to continue.", soft_wrap=True)
    elif outcome.done:
        console().print(f"{count(len(outcome.done), 'change')} written")
    else:
        console().print("There is nothing to change.")


def _names(changes: Sequence[Change]) -> str:
    return escape(", ".join(f"{change.kind} {change.code}" for change in changes) or "nothing")


def _rows(changes: Sequence[Change]) -> list[dict[str, object]]:
    return [
        {"action": each.action, "kind": each.kind, "code": each.code, "fields": each.fields, "notes": each.notes}
        for each in changes
    ]


def _outcome_document(changes: Sequence[Change], outcome: ApplyOutcome | None) -> dict[str, object]:
    document: dict[str, object] = {"changes": _rows(changes), "summary": counts(changes)}
    done, left = (outcome.done, outcome.left) if outcome is not None else ((), tuple(c for c in changes if c.writes))
    failed = outcome.failed if outcome is not None else None
    document["done"] = [{"kind": each.kind, "code": each.code} for each in done]
    document["left"] = [{"kind": each.kind, "code": each.code} for each in left]
    document["failed"] = failed and {"kind": failed.kind, "code": failed.code, "reason": outcome and outcome.reason}
    return document
