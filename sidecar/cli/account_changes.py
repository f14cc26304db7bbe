"""``sidecar account close|delete|adjust``: what an operator changes of one account, each with a reason."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from sidecar.cli.account import AccountArgument, app, register
from sidecar.cli.output import ConfigOption, JsonOption, ValkeyOption, console, fail, print_json, run_async, where
from sidecar.ledger.accounts.adjustments import AccountAdjuster
from sidecar.ledger.store import open_store

__all__ = ["adjust", "close", "delete", "register"]

T = TypeVar("T")

RequiredReason = Annotated[str, typer.Option("--reason", help="Why, for the audit log.", show_default=False)]


def _run(config: Path | None, valkey: str | None, work: Callable[[AccountAdjuster], Awaitable[T]]) -> T:
    async def main() -> T:
        async with open_store(*where(config, valkey)) as store:
            return await work(AccountAdjuster(store.client, store.keys, store.accounts))

    return run_async(main())


def _checked(reason: str) -> str:
    if not reason.strip():
        fail("--reason: should say why", 2)
    return reason.strip()


@app.command()
def close(
    account: AccountArgument, reason: RequiredReason, config: ConfigOption = None, valkey: ValkeyOption = None
) -> None:
    """Close an account: the gateway refuses its calls with 403 for good. What it owes stays.

    Example: [bold]sidecar account close tpp-prepaid --reason "contract ended" -c gateway.yaml[/bold]
    """
    why = _checked(reason)
    version = _run(config, valkey, lambda adjuster: adjuster.close(account, why))
    console().print(f"{account} is now closed (version {version})")


@app.command()
def delete(
    account: AccountArgument,
    reason: RequiredReason,
    config: ConfigOption = None,
    valkey: ValkeyOption = None,
    although_owed: Annotated[
        bool, typer.Option("--although-owed", help="Even if it has units or cost that no invoice has billed.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a closed account that holds nothing, with its API keys. The audit log keeps its last state.

    Example: [bold]sidecar account delete tpp-prepaid --reason "contract ended" --yes -c gateway.yaml[/bold]
    """
    why = _checked(reason)
    if not yes:
        typer.confirm(f"Delete account {account}? This cannot be undone.", abort=True)
    _run(config, valkey, lambda adjuster: adjuster.delete(account, why, although_owed=although_owed))
    console().print(f"{account} is deleted")


@app.command()
def adjust(
    account: AccountArgument,
    reason: RequiredReason,
    units: Annotated[
        int | None, typer.Option("--units", help="Settled units to add; below 0 to take away.", show_default=False)
    ] = None,
    metric: Annotated[str, typer.Option("--metric", help="Metric of the units.")] = "api_calls",
    funds: Annotated[
        str | None,
        typer.Option(
            "--funds", help="Money to give, like 12.50; below 0 to take.", metavar="AMOUNT", show_default=False
        ),
    ] = None,
    config: ConfigOption = None,
    valkey: ValkeyOption = None,
    json: JsonOption = False,
) -> None:
    """Adjust an account: units of a metric, or funds.

    Units become a usage event of their own, so OpenMeter learns of them. Funds of an account from Lago are adjusted in
    Lago.

    Example: [bold]sidecar account adjust tpp-prepaid --units=-3 --reason "ticket 4711" -c gateway.yaml[/bold]
    """
    why = _checked(reason)
    if (units is None) == (funds is None):
        fail("give either --units or --funds", 2)
    if units is not None:
        number = units
        if number == 0:
            fail("--units: should not be 0", 2)
        done = _run(config, valkey, lambda adjuster: adjuster.adjust_units(account, metric, number, why))
        if json:
            print_json(done)
        else:
            console().print(
                f"{account}: {done.before} settled units of {metric} are now {done.after} ({done.event_id})"
            )
        return
    amount = _amount(funds or "")
    of_funds = _run(config, valkey, lambda adjuster: adjuster.adjust_funds(account, amount, why))
    if json:
        print_json(of_funds)
    else:
        console().print(f"{account}: {of_funds.before} {of_funds.currency} available are now {of_funds.after}")


def _amount(text: str) -> Decimal:
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal(0)
    if not amount.is_finite() or not amount or abs(amount) >= 10**15:
        fail(f"--funds: {text!r} should be an amount like 12.50 or -12.50, not 0", 2)
    return amount
