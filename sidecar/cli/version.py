"""``sidecar version``."""

from __future__ import annotations

import typer

from sidecar import __version__


def register(app: typer.Typer) -> None:
    app.command()(version)


def version() -> None:
    """Print the version.

    Example: [bold]sidecar version[/bold]
    """
    typer.echo(__version__)
