"""``sidecar account``: load, list, show, suspend, resume, close, delete, adjust."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.progress import Progress

from sidecar.cli.account_view import LOADED_SHOWN_MAX, print_account, print_accounts, print_loaded
from sidecar.cli.output import (
    ConfigOption,
    JsonOption,
    ValkeyOption,
    between,
    console,
    errors,
    fail,
    jsonable,
    print_json,
    run_async,
    say_error,
    where,
)
from sidecar.ledger.accounts.account_snapshot import AccountSnapshot
from sidecar.ledger.accounts.accounts_file import load_accounts
from sidecar.ledger.accounts.loader import ApiKeyTaken, LoadError, MalformedAccount, PriceError
from sidecar.ledger.audit_log import AuditLog
from sidecar.ledger.store import Store, open_store

AT_ONCE: Final = 50
"""Accounts that are read at the same time."""

app = typer.Typer(help="Load, show and change accounts in the ledger.", no_args_is_help=True)

AccountArgument = Annotated[str, typer.Argument(help="Account id (Lago's customer external_id).")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the audit log.", show_default=False)]


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="account")


@app.command()
def load(
    file: Annotated[Path, typer.Argument(help="Accounts file (YAML). See `examples/accounts.yaml`.")],
    config: ConfigOption = None,
    valkey: ValkeyOption = None,
    json: JsonOption = False,
) -> None:
    """Load accounts from a file into the ledger.

    The command keeps all usage so far. Loading a file a second time changes nothing more.

    Example: [bold]sidecar account load accounts.yaml -c gateway.yaml[/bold]
    """
    specs = load_accounts(file)

    async def work() -> tuple[dict[str, int], dict[str, str], list[AccountSnapshot]]:
        loaded: dict[str, int] = {}
        failed: dict[str, str] = {}
        async with open_store(*where(config, valkey)) as store:
            log = AuditLog(store.client, store.keys)
            with Progress(console=errors(), transient=True, disable=not errors().is_terminal) as progress:
                for spec in progress.track(specs, description="loading accounts"):
                    try:
                        loaded[spec.id] = await store.accounts.load(spec)
                        await log.add(
                            "account load", spec.id, after={"version": loaded[spec.id]}, why=f"file {file.name}"
                        )
                    except (LoadError, PriceError, ApiKeyTaken, MalformedAccount) as error:
                        failed[spec.id] = str(error)
            found = [] if json else await _snapshots(store, list(loaded)[:LOADED_SHOWN_MAX])
        return loaded, failed, found

    loaded, failed, shown = run_async(work())
    if json:
        print_json({"loaded": loaded, "failed": failed})
    else:
        print_loaded(shown, len(loaded))
        for message in failed.values():
            say_error(message)
    if failed:
        raise typer.Exit(1)


@app.command(name="list")
def list_(
    config: ConfigOption = None,
    valkey: ValkeyOption = None,
    json: JsonOption = False,
    after: Annotated[str, typer.Option(help="List only ids after this one.")] = "",
    limit: Annotated[
        int, typer.Option(callback=between(1, 10_000), metavar="NUMBER", help="List at most this many.")
    ] = 100,
) -> None:
    """List accounts in the order of their ids, each with its status and what it may still spend.

    Example: [bold]sidecar account list -c gateway.yaml --after tpp-1000[/bold]
    """

    async def work() -> list[AccountSnapshot]:
        async with open_store(*where(config, valkey)) as store:
            ids = await store.accounts.list(after, limit)
            return await _snapshots(store, ids)

    accounts = run_async(work())
    more = accounts[-1].id if len(accounts) == limit else None
    if json:
        rows = [
            {"id": a.id, "mode": a.mode, "status": a.status, "currency": a.currency, "available": a.available}
            for a in accounts
        ]
        print_json({"accounts": rows, "next_after": more})
        return
    print_accounts(accounts)
    if more is not None:
        errors().print(f"There may be more accounts. List them with --after {more}", markup=False, soft_wrap=True)


async def _snapshots(store: Store, ids: Sequence[str]) -> list[AccountSnapshot]:
    found: list[AccountSnapshot | None] = []
    for start in range(0, len(ids), AT_ONCE):
        found += await asyncio.gather(*map(store.accounts.show, ids[start : start + AT_ONCE]))
    return [account for account in found if account is not None]  # one may have been deleted meanwhile


@app.command()
def show(
    account: AccountArgument, config: ConfigOption = None, valkey: ValkeyOption = None, json: JsonOption = False
) -> None:
    """Show an account: its status, its money, its limits, and its use in each period.

    Example: [bold]sidecar account show tpp-prepaid -c gateway.yaml[/bold]
    """

    async def work() -> AccountSnapshot | None:
        async with open_store(*where(config, valkey)) as store:
            return await store.accounts.show(account)

    snapshot = run_async(work())
    if snapshot is None:
        fail(f"there is no account {account!r}", 1)
    if json:
        print_json(jsonable(snapshot))
    else:
        print_account(snapshot)


@app.command()
def suspend(
    account: AccountArgument, config: ConfigOption = None, valkey: ValkeyOption = None, reason: ReasonOption = ""
) -> None:
    """Suspend an account: the gateway refuses its calls with 403 until you resume it.

    Example: [bold]sidecar account suspend tpp-prepaid -c gateway.yaml[/bold]
    """
    _set_status(account, config, valkey, "suspend", reason)


@app.command()
def resume(
    account: AccountArgument, config: ConfigOption = None, valkey: ValkeyOption = None, reason: ReasonOption = ""
) -> None:
    """Resume a suspended account: the gateway accepts its calls again.

    Example: [bold]sidecar account resume tpp-prepaid -c gateway.yaml[/bold]
    """
    _set_status(account, config, valkey, "resume", reason)


def _set_status(account: str, config: Path | None, valkey: str | None, verb: str, reason: str) -> None:
    async def work() -> int:
        async with open_store(*where(config, valkey)) as store:
            before = await store.accounts.state(account)
            change = store.accounts.suspend if verb == "suspend" else store.accounts.resume
            version = await change(account)
            after = await store.accounts.state(account)
            await AuditLog(store.client, store.keys).add(
                f"account {verb}", account, before={"status": before.status.word}, after={"status": after.status.word},
                why=reason,
            )  # fmt: skip
            return version

    version = run_async(work())
    console().print(f"{account} is now {'suspended' if verb == 'suspend' else 'active'} (version {version})")
