"""``sidecar audit verify`` and ``statement``: what the books prove, and what they sum to."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer

from sidecar.app import assemble
from sidecar.app.configuration import Config, load_config
from sidecar.cli.output import (
    ConfigOption,
    JsonOption,
    console,
    fail,
    jsonable,
    print_json,
    print_table,
    run_async,
    say_error,
    warn,
)
from sidecar.cli.words import count as number_of
from sidecar.ledger.accounts.account_snapshot import AccountSnapshot
from sidecar.ledger.pricing.price_tables import pack
from sidecar.ledger.pricing.rating import cost
from sidecar.ledger.proof.books import BooksReport
from sidecar.ledger.proof.chain import KEY_BYTES_MIN
from sidecar.ledger.proof.checkpoint import CheckpointError, private_key, public_key
from sidecar.ledger.store import Store, open_store
from sidecar.metering.archive.archive_place import ArchiveError, ArchivePlace, archive_place
from sidecar.metering.proof.book_verification import BookReport, BookVerification, first_of
from sidecar.metering.proof.ledger_books import LedgerBooks
from sidecar.metering.proof.statement import Period, PeriodError, Statement, StatementSum, period_of

SHOWN_MAX = 20
MISUSED = 2

ArchiveOption = Annotated[str | None, typer.Option(help="Directory or URL of the archive, instead of the configured.")]
CheckpointsOption = Annotated[
    str | None, typer.Option(help="Directory or URL of the checkpoints, if they are not in the archive.")
]
KeyOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--chain-key", metavar="FILE", help="File with a key, beside the configured. Several, if the key was changed."
    ),
]
LedgerOption = Annotated[bool, typer.Option("--ledger/--no-ledger", help="Read what Valkey has, beside the archive.")]


@dataclass(frozen=True, slots=True)
class _Books:
    """What a command works on. ``store`` None: the archive alone."""

    verification: BookVerification
    store: Store | None


def register(group: typer.Typer) -> None:
    group.command()(verify)
    group.command()(statement)


def verify(
    archive: ArchiveOption = None,
    checkpoints: CheckpointsOption = None,
    public_key_file: Annotated[
        Path | None,
        typer.Option("--public-key", help="PEM file with the public key of the checkpoints. Default: the configured."),
    ] = None,
    chain_key: KeyOption = None,
    ledger: LedgerOption = True,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Verify that no entry of the outbox, the tail and the archive was changed, cut or put into another order.

    Exit code 1: the books are not what was written; the first entry that is wrong is named. Exit code 2: they could not
    be verified.

    Example: [bold]sidecar audit verify --archive /var/lib/sidecar/archive -c gateway.yaml[/bold]
    """
    loaded = _loaded(config, ledger=ledger)

    async def work() -> BookReport:
        async with _opened(loaded, archive, checkpoints, public_key_file, chain_key, ledger=ledger) as books:
            return await books.verification.run()

    report = run_async(work())
    first = first_of(report.faults)
    if json:
        print_json({"verified": first is None, "first": first, **jsonable(report)})
    else:
        _print_report(report)
    raise typer.Exit(0 if first is None else 1)


def statement(
    account: Annotated[str, typer.Argument(help="The account's id.")],
    period: Annotated[str, typer.Argument(help="2026-11, or two days: 2026-11-01..2026-11-15 (UTC).")],
    subscription: Annotated[
        str | None,
        typer.Option(
            help="Of an account with several subscriptions: which. Default: the first that `account show` lists."
        ),
    ] = None,
    archive: ArchiveOption = None,
    chain_key: KeyOption = None,
    ledger: LedgerOption = True,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """List what an account used in a period by metric and day, out of entries whose chain was verified.

    A month is the account's own period that begins in it, if the ledger knows one. Of an account with several
    subscriptions, which have periods and invoices of their own, one is stated. Exit code 1: the books are not what was
    written, or the ledger counted something else.

    Example: [bold]sidecar audit statement tpp-prepaid 2026-11 -c gateway.yaml[/bold]
    """
    try:
        asked = period_of(period)
    except PeriodError as error:
        fail(str(error), MISUSED)
    loaded = _loaded(config, ledger=ledger)

    async def work() -> tuple[BookReport, Statement, AccountSnapshot | None, frozenset[str]]:
        async with _opened(loaded, archive, None, None, chain_key, ledger=ledger) as books:
            shown = await books.store.accounts.show(account) if books.store is not None else None
            snapshot = shown if shown is None else _of_subscription(shown, subscription)
            others = frozenset() if shown is None or snapshot is None else _metrics(shown) - _metrics(snapshot)
            report = await books.verification.run()
            total = StatementSum(account, _own_period(asked, snapshot))
            async for entry in books.verification.counted():
                total.add(entry)
            return report, total.statement(), snapshot, others

    report, found, snapshot, others = run_async(work())
    lines = [line for line in _lines(found, snapshot) if line["metric"] not in others]
    differs = any(line["ledger_units"] not in (None, line["units"]) for line in lines)
    if json:
        print_json({"verified": not report.faults, "faults": len(report.faults), "metrics": lines, **jsonable(found)})
    else:
        _print_statement(report, found, lines, snapshot)
    raise typer.Exit(1 if report.faults or differs else 0)


def _loaded(config: Path | None, *, ledger: bool) -> Config | None:
    """Raises ConfigError."""
    if config is None and not os.environ.get("SIDECAR_VALKEY"):
        if ledger:
            fail("give -c FILE (or set SIDECAR_CONFIG), or --no-ledger with --archive and --chain-key", MISUSED)
        return None
    return load_config(config, os.environ)


@asynccontextmanager
async def _opened(
    config: Config | None, archive: str | None, checkpoints: str | None, public: Path | None,
    chain_key: list[Path] | None, *, ledger: bool,
) -> AsyncIterator[_Books]:  # fmt: skip
    keys = _chain_keys(config, chain_key or [])
    where = archive or (config.metering.archive.directory if config is not None else None)
    if where is None and not ledger:
        fail("there is nothing to verify: give --archive, or leave out --no-ledger", MISUSED)
    try:
        place = archive_place(where) if where is not None else None
        marks = archive_place(checkpoints) if checkpoints is not None else None
        verifying = _public_key(config, public)
        if config is None or not ledger:
            yield _Books(_verification(keys, place, None, marks, verifying), None)
            return
        async with open_store(config.valkey, assemble.keys(config)) as store:
            books = LedgerBooks(store.client, store.keys)
            yield _Books(_verification(keys, place, books, marks, verifying), store)
    except ArchiveError as error:
        fail(f"the archive cannot be read: {error}", MISUSED)


def _verification(
    keys: list[bytes], place: ArchivePlace | None, books: LedgerBooks | None, marks: ArchivePlace | None, verifying: Any
) -> BookVerification:
    return BookVerification(keys, archive=place, ledger=books, checkpoints=marks, public_key=verifying)


def _chain_keys(config: Config | None, files: list[Path]) -> list[bytes]:
    keys = [assemble.chain_key(config)] if config is not None and config.ledger.chain_key is not None else []
    for file in files:
        key = _read(file).removesuffix(b"\n")
        if len(key) < KEY_BYTES_MIN:
            fail(f"{file}: the key must be at least {KEY_BYTES_MIN} bytes long", MISUSED)
        keys.append(key)
    if not keys:
        fail("ledger.chain_key is not set, so nothing is proven; give it, or --chain-key FILE", MISUSED)
    return keys


def _public_key(config: Config | None, file: Path | None) -> Any:
    source = file or (config.audit.signing_key_file if config is not None else None)
    if source is None:
        return None
    try:
        return public_key(_read(source)) if file is not None else private_key(_read(source)).public_key()
    except CheckpointError as error:
        fail(f"{source}: {error}", MISUSED)


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(65_536)
    except OSError as error:
        fail(f"{file}: {error.strerror or error}", MISUSED)


def _of_subscription(snapshot: AccountSnapshot, name: str | None) -> AccountSnapshot:
    """The account with one of its subscriptions alone: its period and its metrics."""
    names = list(dict.fromkeys(
        [each.subscription for each in snapshot.subscriptions] + [each.subscription for each, _ in snapshot.closed]
    ))  # fmt: skip
    chosen = names[0] if name is None else name
    if chosen not in names:
        fail(f"account {snapshot.id} has no subscription {chosen!r}; it has {', '.join(map(repr, names))}", MISUSED)
    live = next((each for each in snapshot.subscriptions if each.subscription == chosen), None)
    closed = tuple((usage, cost) for usage, cost in snapshot.closed if usage.subscription == chosen)
    last_ms = max((usage.start_ms for usage, _ in closed), default=0)
    return replace(
        snapshot,
        subscriptions=() if live is None else (live,),
        period_start_ms=last_ms if live is None else live.period_start_ms,
        period_end_ms=last_ms + 1 if live is None else live.period_end_ms,
        metrics=tuple(each for each in snapshot.metrics if each.subscription == chosen),
        closed=closed,
    )


def _metrics(snapshot: AccountSnapshot) -> frozenset[str]:
    return frozenset([each.metric for each in snapshot.metrics] + [usage.metric for usage, _ in snapshot.closed])


def _own_period(asked: Period, snapshot: AccountSnapshot | None) -> Period:
    """The account's period that begins in the month that was asked for, or the month."""
    if snapshot is None or not asked.month:
        return asked
    bounds = sorted({each.start_ms for each, _ in snapshot.closed} | {snapshot.period_start_ms})
    for start_ms, end_ms in zip(bounds, [*bounds[1:], snapshot.period_end_ms], strict=True):
        if asked.start_ms <= start_ms < asked.end_ms:
            return Period(start_ms, end_ms)
    return asked


def _lines(found: Statement, snapshot: AccountSnapshot | None) -> list[dict[str, Any]]:
    """By metric: the units, what the ledger counted in the same period, and the cost by the account's prices."""
    lines = []
    counted = _counted(found, snapshot)
    for metric in sorted({*found.units, *counted}):
        units = found.units.get(metric, 0)
        lines.append({
            "metric": metric, "units": units, "ledger_units": counted.get(metric),
            "cost": _cost(metric, units, snapshot), "refused_units": found.refused_units.get(metric, 0),
            "unproven_units": found.unproven_units.get(metric, 0),
        })  # fmt: skip
    return lines


def _counted(found: Statement, snapshot: AccountSnapshot | None) -> dict[str, int]:
    """What the ledger counted, if the period is one of the account's."""
    counted: dict[str, int] = {}
    if snapshot is None:
        return counted
    if (found.start_ms, found.end_ms) == (snapshot.period_start_ms, snapshot.period_end_ms):
        for each in snapshot.metrics:
            counted[each.metric] = counted.get(each.metric, 0) + each.settled
    for closed, _ in snapshot.closed:
        if closed.start_ms == found.start_ms:
            counted[closed.metric] = counted.get(closed.metric, 0) + closed.units
    return counted


def _cost(metric: str, units: int, snapshot: AccountSnapshot | None) -> Decimal | None:
    """By today's prices; None where there are none, or where several subscriptions have some."""
    if snapshot is None or units < 0:
        return None
    prices = [each.price for each in snapshot.metrics if each.metric == metric and each.price is not None]
    if len(prices) != 1:
        return None
    return Decimal(cost(pack(prices[0], snapshot.digits, metric), units)).scaleb(-snapshot.digits)


def _print_report(report: BookReport) -> None:
    for name, books in (("archive", report.archive), ("ledger", report.ledger)):
        if books is not None:
            console().print(f"{name}: {_summary(books)}", soft_wrap=True)
    if report.checkpoints:
        console().print(f"{number_of(report.checkpoints, 'checkpoint')} compared")
    for place in report.torn[:SHOWN_MAX]:
        warn(f"{place} is a part of a line: its writer was killed, and wrote the entry again elsewhere")
    first = first_of(report.faults)
    if first is None:
        console().print("verified: every entry with a chain value is as it was written")
        return
    say_error(f"first: entry {first.entry} in {first.place} {first.what}")
    for fault in [each for each in report.faults if each is not first][: SHOWN_MAX - 1]:
        say_error(f"entry {fault.entry} in {fault.place} {fault.what}")
    if len(report.faults) > SHOWN_MAX:
        say_error(f"… and {len(report.faults) - SHOWN_MAX} more")


def _summary(books: BooksReport) -> str:
    parts = [f"{number_of(books.entries, 'entry', 'entries')} of {number_of(books.origins, 'origin')}"]
    for number, what in (
        (books.unchained, "without a chain value, not proven"),
        (books.adopted, "out of spools"),
        (books.offered_again, "offered again after a loss of data"),
        (books.parts, "dead letters that were put back"),
        (books.unproven, "last entries that nothing confirms yet"),
    ):
        if number:
            parts.append(f"{number:,} {what}")
    if books.without_beginning:
        parts.append(f"{number_of(books.without_beginning, 'origin')} whose first entries are not here any more")
    return "; ".join(parts)


def _print_statement(
    report: BookReport, found: Statement, lines: list[dict[str, Any]], snapshot: AccountSnapshot | None
) -> None:
    console().print(f"{found.account}, {_time(found.start_ms)} to {_time(found.end_ms)}", markup=False, soft_wrap=True)
    print_table("", ("day", "metric", "units"), [(day.day, day.metric, f"{day.units:,}") for day in found.days])
    currency = snapshot.currency if snapshot is not None else ""
    rows = [
        (line["metric"], f"{line['units']:,}", "" if line["ledger_units"] is None else f"{line['ledger_units']:,}",
         "" if line["cost"] is None else f"{line['cost']:f} {currency}", f"{line['refused_units']:,}",
         f"{line['unproven_units']:,}")
        for line in lines
    ]  # fmt: skip
    print_table("", ("metric", "units", "ledger", "cost", "refused by OpenMeter", "not proven"), rows)
    if report.faults:
        first = first_of(report.faults)
        assert first is not None
        say_error(f"the books are not what was written: entry {first.entry} in {first.place} {first.what}")


def _time(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M}Z"
