"""``sidecar reconcile`` and ``sidecar sync``: what the control plane does by itself, once and with its reasons."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

import typer
from rich.progress import Progress, TaskID

from sidecar.app import assemble, logs
from sidecar.app.configuration import Config, load_config
from sidecar.basics.errors import SetupError
from sidecar.billing.lago.errors import LagoError
from sidecar.billing.reconcile.reconciler import Outcome
from sidecar.billing.usage_sync.sync_report import SyncReport
from sidecar.cli.output import ConfigOption, JsonOption, console, errors, fail, print_json, print_table, run_async
from sidecar.controlplane.billing import Billing, open_billing
from sidecar.controlplane.sync_loop import Overview
from sidecar.ledger.accounts.account_state import AccountState
from sidecar.ledger.accounts.loader import LedgerUnavailable
from sidecar.ledger.pricing.price_tables import Graduated, Package, PriceTable, Standard, Volume
from sidecar.ledger.pricing.rating import unpacked
from sidecar.ledger.store import open_store

OnceOption = Annotated[bool, typer.Option("--once", help="Do it now, once. `sidecar control` does it all the time.")]
AccountArgument = Annotated[str | None, typer.Argument(help="Only this account (Lago's customer external_id).")]


def register(app: typer.Typer) -> None:
    app.command()(reconcile)
    app.command()(sync)


def reconcile(
    account: AccountArgument = None,
    once: OnceOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change; write nothing.")] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Bring accounts from Lago into the ledger: what was read, what it comes to, what changes.

    Example: [bold]sidecar reconcile --once --dry-run tpp-1 -c gateway.yaml[/bold]
    """
    if not once:
        fail("say --once; `sidecar control` reconciles all the time", 2)
    loaded = load_config(config, os.environ)
    logs.configure("error", loaded.log.format)
    outcomes = run_async(_reconcile(loaded, account, dry_run))
    if json:
        print_json([outcome_document(outcome) for outcome in outcomes])
    elif account is not None:
        for outcome in outcomes:
            _print_outcome(outcome)
    else:
        _print_outcomes(outcomes)
    if any(outcome.result in ("refused", "unavailable", "fenced") for outcome in outcomes):
        raise typer.Exit(1)


async def _reconcile(config: Config, account: str | None, dry_run: bool) -> list[Outcome]:
    async with _opened(config) as billing:
        if account is not None:
            if dry_run:
                return [await billing.reconciler.preview(account)]
            return [await billing.reconciler.reconcile(account, thorough=True)]
        outcomes: list[Outcome] = []
        with _progress() as progress:
            shown: dict[str, TaskID] = {}

            def step(what: str, done: int, total: int) -> None:
                if what not in shown:
                    shown[what] = progress.add_task(what, total=total)
                progress.update(shown[what], completed=done, total=total)

            try:
                await billing.reconcile_loop.sweep(
                    None, everybody=True, dry_run=dry_run, progress=step, each=outcomes.append
                )
            except LagoError as error:
                fail(f"Lago: {error}", 1)
        return sorted(outcomes, key=lambda outcome: outcome.account)


def sync(
    account: AccountArgument = None,
    once: OnceOption = False,
    flush: Annotated[
        bool, typer.Option("--flush", help="Push up to this second, as before an upgrade or a termination.")
    ] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Push metered usage from OpenMeter to Lago, and compare what Lago has invoiced with the ledger.

    If a control plane leads, it is asked to do the pushing.

    Example: [bold]sidecar sync --once --flush tpp-1 -c gateway.yaml[/bold]
    """
    if not once:
        fail("say --once; `sidecar control` syncs all the time", 2)
    loaded = load_config(config, os.environ)
    logs.configure("error", loaded.log.format)
    report, overview = run_async(_sync(loaded, account, flush))
    if json:
        print_json({"report": report, "billed": overview.billed, "waiting": overview.waiting})
    else:
        _print_sync(report, overview)
    if report is not None and not report.is_complete:
        raise typer.Exit(1)


async def _sync(config: Config, account: str | None, flush: bool) -> tuple[SyncReport | None, Overview]:
    async with _opened(config) as billing:
        loop = billing.sync_loop
        if loop is None:
            fail("lago.sync is not enabled, or metering.url is not set: there is nothing to push", 1)
        report = None
        token = await billing.lease.acquire()
        if token is not None:
            async with _kept(billing):
                with _progress() as progress:
                    task = progress.add_task("accounts", total=None)
                    report, _ = await loop.round(
                        token, flush=flush, only=account, progress=lambda done: progress.update(task, completed=done)
                    )
        elif not await billing.ask_leader_to_flush(account, timeout_s=30.0):
            fail(f"{billing.lease.state.leader} leads, and has not answered within 30 s", 1)
        return report, await loop.overview(account)


@contextlib.asynccontextmanager
async def _kept(billing: Billing) -> AsyncIterator[None]:
    """Holds the lease for as long as it takes."""

    async def renew() -> None:
        while True:
            await asyncio.sleep(billing.lease.ttl_s / 3)
            await billing.lease.renew()

    renewing = asyncio.create_task(renew())
    try:
        yield
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
        await billing.lease.release()


@contextlib.asynccontextmanager
async def _opened(config: Config) -> AsyncIterator[Billing]:
    async with (
        open_store(config.valkey, assemble.keys(config), config.valkey_embedded.appendfsync) as store,
        open_billing(config.lago, config.metering, store) as billing,
    ):
        if billing is None:
            raise SetupError("lago.url is not set: accounts come from files (`sidecar account load`)")
        try:
            yield billing
        except LedgerUnavailable as error:
            raise SetupError(str(error)) from None


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    with Progress(console=errors(), transient=True, disable=not errors().is_terminal) as progress:
        yield progress


# what is shown


def outcome_document(outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON has it."""
    desired = outcome.desired
    spec = desired.spec if desired is not None else None
    document: dict[str, Any] = {"account": outcome.account, "result": outcome.result}
    if outcome.why:
        document["why"] = outcome.why
    document["alerts"] = [{"kind": alert.kind, "message": alert.message} for alert in outcome.alerts]
    document["before"] = _state(outcome.before)
    document["after"] = _state(outcome.after)
    if desired is not None:
        document["ends_period"] = desired.period_end is not None
        document["plans"] = desired.plans
        document["figures"] = desired.figures
        document["periods"] = [
            {
                "start": _instant(status.period.start_ms),
                "end": _instant(status.period.end_ms),
                "units": status.period.units,
                "cost": status.period.cost,
                "fee": status.period.fee,
                "stage": status.stage,
                "owed": status.owed,
                "invoice": status.invoice.number if status.invoice else None,
            }
            for status in desired.billing_statuses
        ]
    if spec is not None:
        document["loaded"] = {
            "mode": spec.mode,
            "status": spec.status.word,
            "currency": spec.currency,
            "funds": spec.funds,
            "ceiling": spec.ceiling,
            "unsettled": spec.unsettled,
            "prices": {metric: price_text(table) for metric, table in spec.prices.items()},
        }
    return document


def _state(state: AccountState | None) -> dict[str, Any] | None:
    if state is None or state.version == 0:
        return None
    available = state.available()
    return {
        "version": state.version,
        "status": state.status.word,
        "available": None if available is None else state.money(available),
        "unsettled": state.money(state.unsettled),
        "period_start": _instant(state.period_start_ms),
        "period_end": _instant(state.period_end_ms),
        "prices": {metric: price_text(unpacked(table, state.digits)) for metric, table in state.prices.items()},
    }


def price_text(table: PriceTable) -> str:
    """A price in a line."""
    match table:
        case Standard(amount):
            return f"{_plain(amount)} each"
        case Package(amount, size, free):
            return f"{_plain(amount)} per {size}" + (f" after {free}" if free else "")
        case Graduated(tiers) | Volume(tiers):
            kind = "graduated" if isinstance(table, Graduated) else "volume"
            steps = [
                f"{'to ' + str(tier.up_to) if tier.up_to is not None else 'beyond'}: {_plain(tier.unit)}"
                + (f" + {_plain(tier.flat)}" if tier.flat else "")
                for tier in tiers
            ]
            return f"{kind} ({', '.join(steps)})"


def _plain(amount: Decimal) -> str:
    text = format(amount, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _instant(at_ms: int) -> str:
    try:
        return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (OverflowError, ValueError, OSError):
        return str(at_ms)


def _available(state: AccountState | None) -> str:
    if state is None or state.version == 0:
        return "-"
    available = state.available()
    return "no limit" if available is None else _plain(state.money(available))


def _after(outcome: Outcome) -> str:
    """What is available once the account is loaded; for a dry run what would be, by the counts of this moment."""
    spec = outcome.desired.spec if outcome.desired is not None else None
    if outcome.after is not None or spec is None or outcome.result != "dry-run":
        return _available(outcome.after)
    if spec.ceiling is None:
        return "no limit"
    used = outcome.before.money(outcome.before.reserved()) if outcome.before is not None else Decimal(0)
    return _plain(spec.ceiling - used - ((spec.unsettled or Decimal(0)) if spec.counts_unsettled else Decimal(0)))


def _print_outcome(outcome: Outcome) -> None:
    desired = outcome.desired
    spec = desired.spec if desired is not None else None
    title = outcome.result if outcome.result != "dry-run" else "dry run, nothing is written"
    console().print(f"\n[bold]{outcome.account}[/bold]  {title}")
    rows: list[tuple[str, str]] = []
    if outcome.why:
        rows.append(("why", outcome.why))
    if desired is not None and desired.figures is not None:
        figures = desired.figures
        rows.append(("plan", ", ".join(desired.plans) or "none active"))
        if spec is not None:
            rows.append(("mode", f"{spec.mode}, {spec.status.word}"))
            for metric, table in spec.prices.items():
                rows.append(("price", f"{metric}: {price_text(table)}, with taxes"))
        rows.append(("wallets", f"{_plain(figures.balance)} {figures.currency}"))
        for name, amount in (
            ("set aside", figures.plan_fee),
            ("rounding", figures.margin),
            ("in Lago only", figures.foreign),
        ):
            if amount:
                rows.append((name, f"−{_plain(amount)}"))
        rows.append(("not billed yet", f"−{_plain(figures.unsettled)}"))
        for status in desired.billing_statuses:
            period = status.period
            units = ", ".join(f"{count} {metric}" for metric, count in period.units.items()) or "nothing used"
            invoice = f", invoice {status.invoice.number}" if status.invoice else ""
            rows.append(
                ("period", f"{_instant(period.start_ms)} to {_instant(period.end_ms)}: {units}, {_plain(period.cost)};"
                 f" {status.stage}{invoice}, owes {_plain(status.owed)}")
            )  # fmt: skip
    if desired is not None and desired.period_end is not None:
        rows.append(("period", "the one at hand ends now, and another begins"))
    change = (
        f"{_available(outcome.before)} → {_available(outcome.after)}" if outcome.after else _available(outcome.before)
    )
    rows.append(("available", change))
    for alert in outcome.alerts:
        rows.append((f"! {alert.kind}", alert.message))
    for name, text in rows:
        console().print(f"  [dim]{name:16}[/dim] {text}", soft_wrap=True, highlight=False)


def _print_outcomes(outcomes: list[Outcome]) -> None:
    rows = []
    for outcome in outcomes:
        desired = outcome.desired
        spec = desired.spec if desired is not None else None
        figures = desired.figures if desired is not None else None
        note = outcome.why or "; ".join(alert.message for alert in outcome.alerts)
        rows.append(
            (
                outcome.account,
                outcome.result,
                spec.mode if spec else "-",
                ", ".join(desired.plans) if desired else "-",
                _plain(figures.balance) if figures else "-",
                _plain(figures.unsettled) if figures else "-",
                _available(outcome.before),
                _after(outcome),
                note[:200],
            )
        )
    columns = ("account", "result", "mode", "plan", "wallets", "not billed yet", "available", "now", "note")
    print_table("", columns, rows)
    wrong = sum(outcome.result in ("refused", "unavailable", "fenced") for outcome in outcomes)
    console().print(f"{len(outcomes)} accounts read, {wrong} could not be loaded")


def _print_sync(report: SyncReport | None, overview: Overview) -> None:
    rows = [(row, False) for row in overview.billed] + [(row, True) for row in overview.waiting]
    rows.sort(key=lambda pair: (pair[0].account, pair[0].period_start_ms, pair[0].metric))
    table = [
        (
            row.account,
            _instant(row.period_start_ms)[:10],
            row.metric,
            row.ledger,
            row.openmeter,
            row.pushed,
            "not yet" if waits else _plain(row.invoiced),
            f"{row.carried_in:+d}/{-row.carried_out:+d}" if row.carried_in or row.carried_out else "",
            "" if waits else _plain(row.difference),
            "" if waits else row.cents_difference,
        )
        for row, waits in rows
    ]
    columns = ("account", "period", "metric", "ledger", "OpenMeter", "pushed", "invoiced", "carried in/out",
               "difference", "cents")  # fmt: skip
    print_table("", columns, table)
    if report is None:
        console().print("the leading control plane has pushed what was due")
        return
    counts = report.counts
    console().print(
        f"{counts.accounts} accounts, {counts.events} events with {counts.units} units pushed,"
        f" {counts.duplicates} known already, {counts.set_aside} set aside, {counts.late_units_known} units late"
    )
    for metric, reason in report.refused.items():
        errors().print(f"[red]{metric} is not pushed:[/red] {reason}", soft_wrap=True)
    if report.stopped is not None:
        errors().print(f"[red]stopped early:[/red] {report.stopped}; the rest is pushed next time", soft_wrap=True)
    for row in report.rows:
        if row.kind not in ("pushed", "carried", "duplicate"):
            errors().print(f"{row.kind}: {row.account} {row.metric} {row.units} units {row.detail}", soft_wrap=True)
