"""``sidecar version``."""

from __future__ import annotations

import typer

from sidecar.basics.build import describe


def register(app: typer.Typer) -> None:
    app.command()(version)


def version() -> None:
    """Print the release, and whether the request path is compiled.

    Example: [bold]sidecar version[/bold]
    """
    typer.echo(describe())
