"""``sidecar outbox``: events that OpenMeter does not have yet, and those that it refused for good."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.progress import Progress

from sidecar.app import assemble, logs
from sidecar.app.configuration import load_config
from sidecar.cli.output import (
    ConfigOption,
    JsonOption,
    ValkeyOption,
    between,
    console,
    errors,
    fail,
    print_json,
    print_table,
    run_async,
    where,
)
from sidecar.cli.words import count
from sidecar.ledger.audit_log import AuditLog
from sidecar.ledger.store import open_store
from sidecar.metering.audit.audit_report import COLUMNS, AuditReport, audit_table
from sidecar.metering.audit.auditor import Auditor
from sidecar.metering.openmeter.meter_query import MeterQuery
from sidecar.metering.outbox.outbox_status import (
    DeadLetter,
    OutboxStatus,
    UnknownDeadLetter,
    dead_letters,
    drop_dead_letters,
    outbox_status,
    requeue_dead_letters,
)
from sidecar.metering.publisher.sender import MeteringError

IDS_NOTED_MAX = 100
"""Of one command in the audit log."""

app = typer.Typer(help="Show usage events that OpenMeter does not have yet, and send them again.", no_args_is_help=True)


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="outbox")


@app.command()
def status(config: ConfigOption = None, valkey: ValkeyOption = None, json: JsonOption = False) -> None:
    """Show how many events wait for delivery, since when, and how many publishers are at work.

    Example: [bold]sidecar outbox status -c gateway.yaml[/bold]
    """

    async def ask() -> OutboxStatus:
        async with open_store(*where(config, valkey)) as store:
            return await outbox_status(store.client, store.keys)

    found = run_async(ask())
    if json:
        totals = {"entries": found.entries, "events": found.events, "pending": found.pending, "lag": found.lag,
                  "oldest_seconds": found.oldest_s, "dead_letters": found.dead_letters,
                  "publishers": list(found.consumers)}  # fmt: skip
        print_json({**totals, "partitions": found.partitions})
        return
    rows = [
        (p.partition, p.entries, f"~{p.events}", p.pending, p.lag, f"{p.oldest_s:.1f}", p.dead_letters)
        for p in found.partitions
        if p.entries or p.dead_letters
    ]
    if rows:
        columns = ("partition", "entries", "events", "pending", "not read", "oldest s", "dead letters")
        print_table("", columns, rows)
    console().print(
        f"waiting: {count(found.entries, 'entry', 'entries')} with about {count(found.events, 'event')}"
        + (f", the oldest for {found.oldest_s:.1f} s" if found.entries else "")
        + f"; {count(found.dead_letters, 'dead letter')}; {count(len(found.consumers), 'publisher')}"
    )


@app.command(name="dead-letters")
def dead_letters_(
    config: ConfigOption = None,
    valkey: ValkeyOption = None,
    json: JsonOption = False,
    limit: Annotated[
        int,
        typer.Option(callback=between(1, 10_000), metavar="NUMBER", help="Show at most this many, the oldest first."),
    ] = 100,
    requeue: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Put this event back into the outbox (an id, or all).")
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Delete this event (an id). OpenMeter never counts it.")
    ] = None,
) -> None:
    """Show events that OpenMeter refused for good. Put them back, or delete them.

    Example: [bold]sidecar outbox dead-letters -c gateway.yaml --requeue all[/bold]
    """

    async def work() -> tuple[list[DeadLetter], int, int]:
        async with open_store(*where(config, valkey)) as store:
            letters = await dead_letters(store.client, store.keys, limit)
            wanted = [letter.id for letter in letters] if requeue and "all" in requeue else requeue or []
            put_back = await requeue_dead_letters(store.client, store.keys, wanted) if wanted else 0
            dropped = await drop_dead_letters(store.client, store.keys, drop) if drop else 0
            log = AuditLog(store.client, store.keys)
            if put_back:
                await log.add(
                    "outbox dead-letters --requeue", after={"events": put_back, "ids": wanted[:IDS_NOTED_MAX]}
                )
            if dropped:
                gone = [str(letter.event) for letter in letters if drop and letter.id in drop][:IDS_NOTED_MAX]
                await log.add("outbox dead-letters --drop", before={"events": gone}, after={"dropped": dropped})
            return letters, put_back, dropped

    try:
        letters, put_back, dropped = run_async(work())
    except UnknownDeadLetter as error:
        fail(str(error), 2)
    if json:
        print_json({"dead_letters": letters, "requeued": put_back, "dropped": dropped})
        return
    if requeue or drop:
        console().print(f"{count(put_back, 'event')} put back, {count(dropped, 'event')} deleted")
        return
    if not letters:
        console().print("no dead letters")
        return
    rows = [
        (letter.id, datetime.fromtimestamp(letter.at_ms / 1000, UTC).isoformat(timespec="seconds"), letter.reason,
         (letter.event or b"").decode("utf-8", "replace")[:200])
        for letter in letters
    ]  # fmt: skip
    print_table("", ("id", "since", "reason", "event"), rows)


@app.command()
def audit(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Compare the ledger with OpenMeter by hour and account. Send missing events again.

    The leading control plane does this by itself.

    Example: [bold]sidecar outbox audit -c gateway.yaml[/bold]
    """
    loaded = load_config(config, os.environ)
    logs.configure("error", loaded.log.format)
    if loaded.metering.url is None:
        fail("metering.url is not set: the audit needs OpenMeter", 1)

    async def work() -> AuditReport:
        async with (
            open_store(loaded.valkey, assemble.keys(loaded), loaded.valkey_embedded.appendfsync) as store,
            MeterQuery(loaded.metering) as query,
        ):
            auditor = Auditor(store.client, store.keys, loaded.lago.audit, loaded.metering, query)
            with Progress(console=errors(), transient=True, disable=not errors().is_terminal) as progress:
                task = progress.add_task("hours", total=None)
                now_ms = await store.accounts.now_ms()
                return await auditor.audit(
                    now_ms, lambda done, total: progress.update(task, completed=done, total=total)
                )

    try:
        report = run_async(work())
    except MeteringError as error:
        fail(f"metering: {error}", 1)
    if json:
        print_json(report)
    else:
        if report.rows:
            print_table("", COLUMNS, audit_table(report))
        console().print(
            f"{count(len(report.hours), 'hour')} compared: OpenMeter lacks {count(report.missing_units, 'unit')} "
            f"and has {count(report.surplus_units, 'unit')} too many; {count(report.resent_events, 'event')} sent again"
        )
        for problem in report.problems:
            errors().print(f"[red]{problem}[/red]", soft_wrap=True)
    if not report.agrees:
        raise typer.Exit(1)
