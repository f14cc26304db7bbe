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
from sidecar.metering.audit.resend import Resent, resend_kept
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

TIME_FORMATS = ["%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d"]

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
def resend(
    account: Annotated[str | None, typer.Argument(metavar="ACCOUNT", help="Only events of this account.")] = None,
    from_: Annotated[
        datetime | None,
        typer.Option(
            "--from", metavar="TIME", help="First time, such as 2026-01-31T14:00 (UTC).", formats=TIME_FORMATS
        ),
    ] = None,
    to: Annotated[
        datetime | None,
        typer.Option("--to", metavar="TIME", help="Time before which events lie.", formats=TIME_FORMATS),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count the events, send nothing.")] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Send accepted events to OpenMeter again, by the time of the calls.

    For events that OpenMeter has lost. It counts an event once by its id, as long as its dedupe knows the id
    (sink.dedupe.config.expiration, 24 hours by default). Events are kept for metering.retain_s.

    Example: [bold]sidecar outbox resend --from 2026-01-31T14:00 --to 2026-01-31T16:00 tpp-1 -c gateway.yaml[/bold]
    """
    if from_ is None or to is None:
        fail("--from and --to are needed: which calls' events are sent again", 2)
    from_ms, to_ms = _utc_ms(from_), _utc_ms(to)
    if not 0 <= from_ms < to_ms:
        fail(f"--to {to.isoformat()} is not after --from {from_.isoformat()}", 2)
    loaded = load_config(config, os.environ)
    logs.configure("error", loaded.log.format)
    if loaded.metering.url is None and not dry_run:
        fail("metering.url is not set: there is no OpenMeter to send to", 1)

    async def work() -> Resent:
        async with open_store(loaded.valkey, assemble.keys(loaded), loaded.valkey_embedded.appendfsync) as store:
            found = await resend_kept(
                store.client, store.keys, loaded.metering, from_ms, to_ms, account, dry_run=dry_run
            )
            if found.sent:
                await AuditLog(store.client, store.keys).add(
                    "outbox resend", account or "",
                    after={"from": from_.isoformat(), "to": to.isoformat(), "events": found.sent},
                )  # fmt: skip
            return found

    try:
        found = run_async(work())
    except MeteringError as error:
        fail(f"metering: {error}", 1)
    if json:
        print_json(found)
    else:
        console().print(
            f"{count(found.events, 'event')} with {count(found.units, 'unit')} kept, {count(found.sent, 'event')} sent"
            + (f", {count(found.refused, 'event')} refused" if found.refused else "")
        )
    if found.failure is not None:
        fail(f"OpenMeter does not take them: {found.failure}", 1)


def _utc_ms(time: datetime) -> int:
    """A time without a zone is of UTC."""
    return round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)


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
