"""``sidecar ledger refused``: settles that no account could take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from sidecar.app.configuration import load_config
from sidecar.cli.output import (
    ConfigOption,
    JsonOption,
    ValkeyOption,
    between,
    console,
    fail,
    print_json,
    print_table,
    run_async,
    say_error,
    where,
)
from sidecar.cli.words import count, instant
from sidecar.ledger.audit_log import AuditLog
from sidecar.ledger.settings import LedgerSettings
from sidecar.ledger.store import open_store
from sidecar.ledger.verification import refused_settles as refused
from sidecar.ledger.verification.refused_settles import Reapplied, RefusedSettles, UnknownRefusedSettles

app = typer.Typer(help="Show settles that no account could take, charge them now, or drop them.", no_args_is_help=True)

AccountOption = Annotated[
    str | None, typer.Option("--account", metavar="ACCOUNT", help="Only those of this account.", show_default=False)
]
IdsOption = Annotated[
    list[str] | None,
    typer.Option("--id", metavar="ID", help="Only this entry. Give it once for each.", show_default=False),
]


def register(group: typer.Typer) -> None:
    group.add_typer(app, name="refused")


@app.command(name="list")
def list_(
    config: ConfigOption = None,
    valkey: ValkeyOption = None,
    json: JsonOption = False,
    account: AccountOption = None,
    limit: Annotated[
        int,
        typer.Option(callback=between(1, 10_000), metavar="NUMBER", help="Show at most this many, the oldest first."),
    ] = 100,
) -> None:
    """Show calls that were served, but not charged, as their account could not be read or charged.

    Example: [bold]sidecar ledger refused list -c gateway.yaml[/bold]
    """

    async def ask() -> list[RefusedSettles]:
        async with open_store(*where(config, valkey)) as store:
            return await refused.refused_settles(store.client, store.keys, account=account, limit=limit)

    found = run_async(ask())
    if json:
        print_json({"refused": [_document(entry) for entry in found]})
        return
    if not found:
        console().print("no refused settles")
        return
    rows = [(e.id, instant(e.at_ms), e.account, e.units, len(e.events), e.broken or e.reason) for e in found]
    print_table("", ("id", "since", "account", "units", "events", "reason"), rows)


@app.command()
def reapply(
    ids: IdsOption = None,
    account: AccountOption = None,
    config: ConfigOption = None,
    valkey: ValkeyOption = None,
    json: JsonOption = False,
) -> None:
    """Charge refused settles now: all, those of an account, or some entries. An entry whose account still cannot be
    charged stays.

    Example: [bold]sidecar ledger refused reapply --account tpp-prepaid -c gateway.yaml[/bold]
    """
    marks_ttl_ms = _marks_ttl_ms(config, valkey)

    async def work() -> list[Reapplied]:
        async with open_store(*where(config, valkey)) as store:
            entries = await refused.refused_settles(store.client, store.keys, account=account, ids=ids or ())
            audit, done = AuditLog(store.client, store.keys), []
            async for each in refused.reapply(store.client, store.keys, entries, marks_ttl_ms):
                done.append(each)
                if not each.problem:
                    after = {"units": each.units, "events": each.events, "skipped": each.skipped, "entry": each.id}
                    await audit.add("ledger refused reapply", each.account, after=after)
            return done

    try:
        done = run_async(work())
    except UnknownRefusedSettles as error:
        fail(str(error), 2)
    failed = [each for each in done if each.problem]
    if json:
        print_json({"reapplied": [each for each in done if not each.problem], "failed": failed})
    else:
        charged = [each for each in done if not each.problem]
        units, skipped = sum(each.units for each in charged), sum(each.skipped for each in charged)
        entries = count(len(charged), "entry", "entries")
        already = f"; {count(skipped, 'event')} had been charged already" if skipped else ""
        console().print(f"{entries} with {count(units, 'unit')} charged{already}")
        for each in failed:
            say_error(f"{each.id} of account {each.account}: {each.problem}")
    if failed:
        raise typer.Exit(1)


@app.command()
def drop(
    reason: Annotated[str, typer.Option("--reason", help="Why, for the audit log.", show_default=False)],
    ids: IdsOption = None,
    account: AccountOption = None,
    config: ConfigOption = None,
    valkey: ValkeyOption = None,
    json: JsonOption = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete refused settles: nobody is ever charged for these calls. Name entries or an account.

    Example: [bold]sidecar ledger refused drop --account tpp-test --reason "test traffic" -c gateway.yaml[/bold]
    """
    if not reason.strip():
        fail("--reason: should say why", 2)
    if not ids and account is None:
        fail("name entries with --id, or an account with --account", 2)

    async def find() -> list[RefusedSettles]:
        async with open_store(*where(config, valkey)) as store:
            return await refused.refused_settles(store.client, store.keys, account=account, ids=ids or ())

    async def work(entries: list[RefusedSettles]) -> list[RefusedSettles]:
        async with open_store(*where(config, valkey)) as store:
            gone = await refused.drop(store.client, store.keys, entries, reason.strip())
            audit = AuditLog(store.client, store.keys)
            for entry in gone:
                await audit.add("ledger refused drop", entry.account, before=_document(entry), why=reason.strip())
            return gone

    try:
        entries = run_async(find())
    except UnknownRefusedSettles as error:
        fail(str(error), 2)
    if entries and not yes:
        all_units = count(sum(entry.units for entry in entries), "unit")
        what = f"{count(len(entries), 'entry', 'entries')} with {all_units}"
        typer.confirm(f"Drop {what}? Nobody is ever charged for them.", abort=True)
    gone = run_async(work(entries)) if entries else []
    if json:
        print_json({"dropped": [_document(entry) for entry in gone]})
        return
    for entry in gone:
        units = count(entry.units, "unit")
        console().print(f"dropped {entry.id}: {units} of account {entry.account}", markup=False, soft_wrap=True)
    console().print(f"{count(len(gone), 'entry', 'entries')} dropped")


def _marks_ttl_ms(config: Path | None, valkey: str | None) -> int:
    settings = LedgerSettings() if valkey is not None else load_config(config, os.environ).ledger
    return settings.idempotency_ttl_s * 1000


def _document(entry: RefusedSettles) -> dict[str, object]:
    return {
        "id": entry.id,
        "at_ms": entry.at_ms,
        "account": entry.account,
        "units": entry.units,
        "reason": entry.reason,
        "broken": entry.broken,
        "origin": entry.origin,
        "batch": entry.seq,
        "events": [event.text.decode("utf-8", "replace") for event in entry.events],
    }
