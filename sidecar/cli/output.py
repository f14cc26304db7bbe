"""What all commands share: options, errors, tables, JSON, progress."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import os
import socket
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from decimal import Decimal
from enum import Enum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import orjson
import typer

from sidecar.app import assemble
from sidecar.app.configuration import NO_FILE, load_config
from sidecar.app.signals import cancel_on_signals, end_if_told
from sidecar.ledger.keys import Keys
from sidecar.valkey.url import Topology, ValkeyUrlError, parse_valkey_url

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        envvar="SIDECAR_CONFIG",
        help="Configuration file (YAML). SIDECAR_… variables override its values.",
        show_default=False,
    ),
]
ValkeyOption = Annotated[
    str | None,
    typer.Option("--valkey", help="URL of Valkey, instead of the one in the configuration.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@cache
def console() -> Console:
    """Standard output. Rich comes with the first line, since a gateway writes none."""
    from rich.console import Console

    return Console(highlight=False)


@cache
def errors() -> Console:
    """Standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def fail(message: str, code: int) -> NoReturn:
    """Prints an error and ends the process."""
    say_error(message)
    sys.exit(code)


def say_error(message: str) -> None:
    """Prints an error, and goes on."""
    errors().print(f"[red]error:[/red] {_plain(message)}", soft_wrap=True)


def warn(message: str) -> None:
    """Prints what is worth knowing, and goes on."""
    errors().print(f"[yellow]warning:[/yellow] {_plain(message)}", soft_wrap=True)


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Runs on uvloop. A signal that ends the process cancels it first, so that it leaves nothing behind."""
    import uvloop

    async def guarded() -> T:
        asyncio.get_running_loop().set_exception_handler(_unretrieved)
        cancel_on_signals()
        return await main

    try:
        result: T = uvloop.run(guarded())
    except BaseException:  # whatever the work made of its cancellation
        end_if_told()
        raise
    return result


def _unretrieved(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """uvloop prints a traceback for each look-up of a host name that failed after its caller had stopped waiting."""
    if not isinstance(context.get("exception"), socket.gaierror):
        loop.default_exception_handler(context)


def where(config: Path | None, valkey: str | None) -> tuple[Topology, Keys]:
    """Where the ledger is: ``--valkey`` alone, or a configuration.

    Raises:
        ConfigError: the configuration is wrong, or there is none.
    """
    if valkey is not None:
        try:
            return parse_valkey_url(valkey), Keys()
        except ValkeyUrlError as error:
            fail(f"--valkey: {error}", 2)
    if config is None and not os.environ.get("SIDECAR_VALKEY"):
        fail(f"{NO_FILE}, or --valkey URL", 2)
    loaded = load_config(config, os.environ)
    return loaded.valkey, assemble.keys(loaded)


def jsonable(value: Any) -> Any:
    """Dataclasses and decimals as JSON has them; money stays text, never a float."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    return str(value)


def print_json(value: Any) -> None:
    typer.echo(orjson.dumps(jsonable(value), option=orjson.OPT_INDENT_2).decode())


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    from rich.table import Table

    table = Table(title=title or None, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_plain(str(cell)) for cell in row))
    console().print(table)


def between(least: float, most: float) -> Callable[[Any], Any]:
    """A check of a number that is an option. Typer's own would write ``[0<=x<=65535]`` into the help."""

    def check(value: Any) -> Any:
        if value is not None and not least <= value <= most:
            wanted = f"{least:.0f} or more" if math.isinf(most) else f"between {least:.0f} and {most:.0f}"
            raise typer.BadParameter(f"{value} is not {wanted}.")
        return value

    return check
