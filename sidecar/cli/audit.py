"""``sidecar audit``: what operators did to the ledger, and what the books prove."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from sidecar.cli import audit_books
from sidecar.cli.output import (
    ConfigOption,
    JsonOption,
    ValkeyOption,
    between,
    console,
    fail,
    print_json,
    run_async,
    where,
)
from sidecar.ledger.audit_log import AuditEntry, AuditLog
from sidecar.ledger.proof.checkpoint import new_key_pair
from sidecar.ledger.store import open_store

app = typer.Typer(help="Show what operators did, and verify the books.", no_args_is_help=True)
audit_books.register(app)


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="audit")


@app.command()
def key(
    directory: Annotated[Path, typer.Argument(help="Where the two files go.")] = Path(),
    json: JsonOption = False,
) -> None:
    """Make the key pair of the checkpoints: `audit-key.pem` (secret) and `audit-key.pub.pem`.

    Example: [bold]sidecar audit key /etc/sidecar[/bold]
    """
    private, public = new_key_pair()
    paths = directory / "audit-key.pem", directory / "audit-key.pub.pem"
    for path, content, mode in zip(paths, (private, public), (0o600, 0o644), strict=True):
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(content)
        except OSError as error:
            fail(f"{path}: {error.strerror or error}", 1)
    if json:
        print_json({"private": str(paths[0]), "public": str(paths[1])})
        return
    console().print(f"{paths[0]}: for audit.signing_key_file of the control planes", markup=False, soft_wrap=True)
    console().print(f"{paths[1]}: for auditors (sidecar audit verify --public-key)", markup=False, soft_wrap=True)


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
