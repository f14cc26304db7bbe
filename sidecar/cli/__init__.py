"""The command ``sidecar``. Exit codes: 0 done, 1 failed, 2 misused (arguments, configuration)."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

from sidecar.app import logs

_MODULES = {
    "demo": "demo",
    "run": "run",
    "control": "run",
    "drain": "drain",
    "redirect": "redirect",
    "inject": "inject",
    "injector": "injector",
    "check": "check",
    "route": "route",
    "account": "account_changes",
    "audit": "audit",
    "outbox": "outbox",
    "ledger": "ledger_commands",
    "spool": "spool",
    "reconcile": "reconcile",
    "sync": "sync",
    "catalog": "catalog",
    "verify-billing": "verify_billing.command",
    "version": "version",
}
"""Commands in the order of the help, and the modules that have them."""


def build(arguments: Sequence[str]) -> typer.Typer:
    """The command line, of which only what ``arguments`` ask for is imported: the data plane needs no sandbox and no
    progress bars in its memory."""
    app = typer.Typer(
        name="sidecar",
        help="Quota gateway for Open Banking APIs: it debits credits before a request passes, and meters each debit.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)  # keeps it a group, however few commands are in it
    wanted = arguments[0] if arguments and arguments[0] in _MODULES else None
    for module in dict.fromkeys([_MODULES[wanted]] if wanted else _MODULES.values()):
        import_module(f"sidecar.cli.{module}").register(app)
    _unwrap_help(app)
    return app


def _unwrap_help(app: typer.Typer) -> None:
    """Joins the lines of each paragraph, which are as long as sources are wide; the terminal breaks them anew."""
    for command in app.registered_commands:
        paragraphs = inspect.cleandoc(getattr(command.callback, "__doc__", None) or "").split("\n\n")
        command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            _unwrap_help(group.typer_instance)


def _print_version(asked: bool) -> None:
    if asked:
        from sidecar.basics.build import describe

        typer.echo(describe())
        raise typer.Exit


def _root(
    _: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    return


def main() -> None:
    """Runs the command line; a user's mistake is a message, not a traceback."""
    logs.configure("warning", "console")  # the output of a command has no log lines; a gateway configures its own
    app = build(sys.argv[1:])
    try:
        app(prog_name="sidecar")
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        from sidecar.cli.failures import explained  # what only failures need is not in a gateway's memory
        from sidecar.cli.output import fail

        message = explained(error)
        if message is None:
            raise
        fail(*message)
