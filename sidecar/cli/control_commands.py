"""What `sidecar reconcile` and `sidecar sync` share: the parts of a control plane, opened for one piece of work."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

import typer
from rich.progress import Progress

from sidecar.app import assemble
from sidecar.app.configuration import Config
from sidecar.basics.errors import SetupError
from sidecar.cli.output import errors
from sidecar.controlplane.control_work import ControlWork, open_control_work
from sidecar.ledger.store import open_store

OnceOption = Annotated[bool, typer.Option("--once", help="Do it now, once. The control plane does it all the time.")]
OneAccountArgument = Annotated[
    str | None, typer.Argument(help="Only this account (external_id of the customer in Lago).")
]


@contextlib.asynccontextmanager
async def opened(config: Config) -> AsyncIterator[ControlWork]:
    """Raises `SetupError`: there is no Lago."""
    async with (
        open_store(config.valkey, assemble.keys(config), config.valkey_embedded.appendfsync) as store,
        open_control_work(config.lago, config.metering, store) as control_work,
    ):
        if control_work is None:
            raise SetupError("lago.url is not set: accounts come from files (`sidecar account load`)")
        yield control_work


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """Shown on a terminal only."""
    with Progress(console=errors(), transient=True, disable=not errors().is_terminal) as progress:
        yield progress
