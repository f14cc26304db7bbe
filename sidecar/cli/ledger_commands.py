"""``sidecar ledger``: what concerns the ledger as a whole. Each command is in a module of its own."""

from __future__ import annotations

from importlib import import_module
from typing import Final

import typer

_COMMANDS: Final = (
    "ledger_verify", "ledger_memory", "ledger_refused", "ledger_migrate", "ledger_export", "ledger_import",
)  # fmt: skip
"""Modules with the commands, in the order of the help. Each has ``register``, which adds its command to the group."""

app = typer.Typer(help="Verify, measure, migrate, export and import the whole ledger.", no_args_is_help=True)


def register(parent: typer.Typer) -> None:
    for module in _COMMANDS:
        import_module(f"sidecar.cli.{module}").register(app)
    parent.add_typer(app, name="ledger")
