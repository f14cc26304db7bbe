"""``sidecar outbox``: events that OpenMeter does not have yet, and those that it refused for good."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from sidecar.cli.output import (
    ConfigOption,
    JsonOption,
    ValkeyOption,
    console,
    fail,
    print_json,
    print_table,
    run_async,
    where,
)
from sidecar.control.store import open_store
from sidecar.metering.status import (
    DeadLetter,
    OutboxStatus,
    UnknownLetter,
    dead_letters,
    drop_dead_letters,
    outbox_status,
    requeue_dead_letters,
)

app = typer.Typer(help="Usage events on their way to OpenMeter.", no_args_is_help=True)


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="outbox")


@app.command()
def status(config: ConfigOption = None, valkey: ValkeyOption = None, json: JsonOption = False) -> None:
    """Show how many events wait, since when, and who publishes them.

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
    console.print(
        f"{found.entries} entries with about {found.events} events wait, the oldest for {found.oldest_s:.1f} s; "
        f"{found.dead_letters} dead letters; {len(found.consumers)} publishers"
    )


@app.command(name="dead-letters")
def dead_letters_(
    config: ConfigOption = None,
    valkey: ValkeyOption = None,
    json: JsonOption = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many, the oldest first.")] = 100,
    requeue: Annotated[
        list[str] | None, typer.Option(help="Put this one back into the outbox (an id, or `all`).")
    ] = None,
    drop: Annotated[list[str] | None, typer.Option(help="Delete this one: it is never counted (an id).")] = None,
) -> None:
    """Show events that OpenMeter refused for good, and put them back or delete them.

    Example: [bold]sidecar outbox dead-letters -c gateway.yaml --requeue all[/bold]
    """

    async def work() -> tuple[list[DeadLetter], int, int]:
        async with open_store(*where(config, valkey)) as store:
            letters = await dead_letters(store.client, store.keys, limit)
            wanted = [letter.id for letter in letters] if requeue and "all" in requeue else requeue or []
            put_back = await requeue_dead_letters(store.client, store.keys, wanted) if wanted else 0
            dropped = await drop_dead_letters(store.client, store.keys, drop) if drop else 0
            return letters, put_back, dropped

    try:
        letters, put_back, dropped = run_async(work())
    except UnknownLetter as error:
        fail(str(error), 2)
    if json:
        print_json({"dead_letters": letters, "requeued": put_back, "dropped": dropped})
        return
    if requeue or drop:
        console.print(f"{put_back} put back, {dropped} deleted")
        return
    if not letters:
        console.print("no dead letters")
        return
    rows = [
        (letter.id, datetime.fromtimestamp(letter.at_ms / 1000, UTC).isoformat(timespec="seconds"), letter.reason,
         (letter.event or b"").decode("utf-8", "replace")[:200])
        for letter in letters
    ]  # fmt: skip
    print_table("", ("id", "since", "reason", "event"), rows)
