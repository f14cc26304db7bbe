"""``sidecar audit log``: what operators did to the ledger."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from sidecar.cli.output import ConfigOption, JsonOption, ValkeyOption, between, console, print_json, run_async, where
from sidecar.ledger.audit_log import AuditEntry, AuditLog
from sidecar.ledger.store import open_store

app = typer.Typer(help="Show what operators did.", no_args_is_help=True)


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="audit")


@app.callback()
def group() -> None:
    """Keeps ``log`` a command of a group, also while it is the only one."""


@app.command()
def log(
    account: Annotated[str, typer.Option(help="Show only lines about this account.")] = "",
    limit: Annotated[
        int, typer.Option(callback=between(1, 10_000), metavar="NUMBER", help="Newest lines to show.")
    ] = 50,
    config: ConfigOption = None,
    valkey: ValkeyOption = None,
    json: JsonOption = False,
) -> None:
    """Show who changed the ledger: when, who, what, before, after and why. The newest line comes first.

    Example: [bold]sidecar audit log --account tpp-prepaid -c gateway.yaml[/bold]
    """

    async def work() -> tuple[AuditEntry, ...]:
        async with open_store(*where(config, valkey)) as store:
            return await AuditLog(store.client, store.keys).read(account, limit)

    entries = run_async(work())
    if json:
        print_json(entries)
        return
    if not entries:
        console().print("the audit log has no line")
    for entry in entries:
        when = datetime.fromtimestamp(entry.time_ms / 1000, UTC)
        changes = " ".join(f"{name}={value}" for name, value in entry.before.items())
        became = " ".join(f"{name}={value}" for name, value in entry.after.items())
        line = f"{when:%Y-%m-%d %H:%M:%S}Z  {entry.who}  {entry.what} {entry.account}"
        if changes or became:
            line += f"  {changes} -> {became}" if changes else f"  {became}"
        console().print(line + (f"  ({entry.why})" if entry.why else ""), markup=False, soft_wrap=True)
