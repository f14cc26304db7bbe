"""``sidecar account``: load, list, show, suspend, resume."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.progress import Progress

from sidecar.cli.output import (
    ConfigOption,
    JsonOption,
    ValkeyOption,
    console,
    errors,
    fail,
    jsonable,
    print_json,
    print_table,
    run_async,
    where,
)
from sidecar.ledger.accounts.account_spec import AccountSpec
from sidecar.ledger.accounts.accounts_file import load_accounts
from sidecar.ledger.accounts.loader import ApiKeyTaken, LedgerUnavailable, LoadError, PriceError, UnknownAccount
from sidecar.ledger.store import open_store

T = TypeVar("T")

app = typer.Typer(help="Accounts in the ledger: the TPPs, their funds, prices and limits.", no_args_is_help=True)

AccountArgument = Annotated[str, typer.Argument(help="Account id (Lago's customer external_id).")]


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="account")


@app.command()
def load(
    file: Annotated[Path, typer.Argument(help="Accounts file (YAML); `examples/accounts.yaml` shows all of it.")],
    config: ConfigOption = None,
    valkey: ValkeyOption = None,
    json: JsonOption = False,
) -> None:
    """Load accounts from a file. Usage so far is never touched; loading the same file twice changes nothing more.

    Example: [bold]sidecar account load accounts.yaml -c gateway.yaml[/bold]
    """
    specs = load_accounts(file)

    async def work() -> tuple[dict[str, int], dict[str, str]]:
        loaded: dict[str, int] = {}
        failed: dict[str, str] = {}
        async with open_store(*where(config, valkey)) as store:
            with Progress(console=errors(), transient=True, disable=not errors().is_terminal) as progress:
                for spec in progress.track(specs, description="loading accounts"):
                    try:
                        loaded[spec.id] = await store.accounts.load(spec)
                    except (LoadError, PriceError, ApiKeyTaken) as error:
                        failed[spec.id] = str(error)
        return loaded, failed

    try:
        loaded, failed = run_async(work())
    except LedgerUnavailable as error:
        fail(str(error), 1)
    if json:
        print_json({"loaded": loaded, "failed": failed})
    else:
        _print_loaded(specs, loaded)
        for message in failed.values():
            errors().print(f"[red]error:[/red] {message}")
    if failed:
        raise typer.Exit(1)


def _print_loaded(specs: Sequence[AccountSpec], loaded: dict[str, int]) -> None:
    rows = [
        (spec.id, spec.mode, spec.status.word, f"{spec.ceiling if spec.ceiling is not None else 'no limit'}",
         spec.currency, ", ".join(spec.prices), loaded[spec.id])
        for spec in specs
        if spec.id in loaded
    ]  # fmt: skip
    print_table("", ("account", "mode", "status", "may spend", "currency", "metrics", "version"), rows[:50])
    if len(rows) > 50:
        console().print(f"… and {len(rows) - 50} more")
    console().print(f"{len(rows)} accounts loaded")


@app.command(name="list")
def list_(
    config: ConfigOption = None,
    valkey: ValkeyOption = None,
    json: JsonOption = False,
    after: Annotated[str, typer.Option(help="Only ids that follow this one.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 100,
) -> None:
    """List account ids in order.

    Example: [bold]sidecar account list -c gateway.yaml --after tpp-1000[/bold]
    """

    async def work() -> list[str]:
        async with open_store(*where(config, valkey)) as store:
            return list(await store.accounts.list(after, limit))

    ids = run_async(_or_fail(work()))
    if json:
        print_json({"accounts": ids, "next_after": ids[-1] if len(ids) == limit else None})
        return
    for account in ids:
        typer.echo(account)
    if len(ids) == limit:
        errors().print(f"more may follow: --after {ids[-1]}")


@app.command()
def show(
    account: AccountArgument, config: ConfigOption = None, valkey: ValkeyOption = None, json: JsonOption = False
) -> None:
    """Show an account: what it may spend, what it has used, what it holds, at which prices.

    Example: [bold]sidecar account show tpp-prepaid -c gateway.yaml[/bold]
    """

    async def work() -> object:
        async with open_store(*where(config, valkey)) as store:
            return await store.accounts.show(account)

    snapshot = run_async(_or_fail(work()))
    if snapshot is None:
        fail(f"there is no account {account!r}", 1)
    document = jsonable(snapshot)
    if json:
        print_json(document)
        return
    nested = {key: value for key, value in document.items() if isinstance(value, list | dict)}
    print_table("", ("field", "value"), [(k, v) for k, v in document.items() if k not in nested])
    for key, value in nested.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            print_table(key, tuple(value[0]), [tuple(row.values()) for row in value])
        elif value:
            items = value.items() if isinstance(value, dict) else [("", item) for item in value]
            print_table(key, ("name", "value"), list(items))


@app.command()
def suspend(account: AccountArgument, config: ConfigOption = None, valkey: ValkeyOption = None) -> None:
    """Refuse an account's calls with 403 until it is resumed.

    Example: [bold]sidecar account suspend tpp-prepaid -c gateway.yaml[/bold]
    """
    _set_status(account, config, valkey, "suspend")


@app.command()
def resume(account: AccountArgument, config: ConfigOption = None, valkey: ValkeyOption = None) -> None:
    """Let a suspended account call again.

    Example: [bold]sidecar account resume tpp-prepaid -c gateway.yaml[/bold]
    """
    _set_status(account, config, valkey, "resume")


def _set_status(account: str, config: Path | None, valkey: str | None, verb: str) -> None:
    async def work() -> int:
        async with open_store(*where(config, valkey)) as store:
            change = store.accounts.suspend if verb == "suspend" else store.accounts.resume
            return await change(account)

    version = run_async(_or_fail(work()))
    console().print(f"{account} is {'suspended' if verb == 'suspend' else 'active'} (version {version})")


async def _or_fail(work: Coroutine[Any, Any, T]) -> T:
    try:
        return await work
    except (LedgerUnavailable, UnknownAccount, LoadError) as error:
        fail(str(error), 1)
