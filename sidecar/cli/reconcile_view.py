"""What reconciling did, as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final

from rich.markup import escape

from sidecar.billing.reconcile.reconciler import Outcome
from sidecar.cli.output import console, print_table
from sidecar.cli.words import count, instant, plain, price_text
from sidecar.ledger.accounts.account_state import AccountState
from sidecar.ledger.pricing.rating import unpacked

NOT_LOADED: Final = ("refused", "unavailable", "fenced")
"""Results after which the ledger has not what Lago has."""


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
        document["ends_period"] = bool(desired.period_ends)
        document["plans"] = desired.plans
        document["figures"] = desired.figures
        document["periods"] = [
            {
                "start": instant(status.period.start_ms),
                "end": instant(status.period.end_ms),
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
            "prices": {
                metric: price_text(table) for each in spec.subscriptions for metric, table in each.prices.items()
            },
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
        "period_start": instant(state.period_start_ms),
        "period_end": instant(state.period_end_ms),
        "subscriptions": [
            {"name": each.name, "period_start": instant(each.start_ms), "period_end": instant(each.end_ms)}
            for each in state.subscriptions
        ],
        "prices": {
            metric: price_text(unpacked(table, state.digits))
            for each in state.subscriptions
            for metric, table in each.prices.items()
        },
    }


def _available(state: AccountState | None) -> str:
    if state is None or state.version == 0:
        return "-"
    available = state.available()
    return "no limit" if available is None else plain(state.money(available))


def _after(outcome: Outcome) -> str:
    """What is available once the account is loaded; for a dry run what would be, by the counts of this moment."""
    spec = outcome.desired.spec if outcome.desired is not None else None
    if outcome.after is not None or spec is None or outcome.result != "dry-run":
        return _available(outcome.after)
    if spec.ceiling is None:
        return "no limit"
    used = outcome.before.money(outcome.before.reserved()) if outcome.before is not None else Decimal(0)
    return plain(spec.ceiling - used - ((spec.unsettled or Decimal(0)) if spec.counts_unsettled else Decimal(0)))


def print_outcome(outcome: Outcome) -> None:
    desired = outcome.desired
    spec = desired.spec if desired is not None else None
    title = outcome.result if outcome.result != "dry-run" else "dry run: the command wrote nothing"
    console().print(f"\n[bold]{escape(outcome.account)}[/bold]  {title}")
    rows: list[tuple[str, str]] = []
    if outcome.why:
        rows.append(("why", outcome.why))
    if desired is not None and desired.figures is not None:
        figures = desired.figures
        rows.append(("plan", ", ".join(desired.plans) or "none active"))
        if spec is not None:
            rows.append(("mode", f"{spec.mode}, {spec.status.word}"))
            for metric, table in ((m, table) for each in spec.subscriptions for m, table in each.prices.items()):
                rows.append(("price", f"{metric}: {price_text(table)}, with taxes"))
        rows.append(("wallets", f"{plain(figures.balance)} {figures.currency}"))
        for name, amount in (
            ("set aside", figures.plan_fee),
            ("rounding", figures.margin),
            ("in Lago only", figures.foreign),
        ):
            if amount:
                rows.append((name, f"−{plain(amount)}"))
        rows.append(("not billed yet", f"−{plain(figures.unsettled)}"))
        for status in desired.billing_statuses:
            period = status.period
            units = ", ".join(f"{number:,} {metric}" for metric, number in period.units.items()) or "nothing used"
            invoice = f", invoice {status.invoice.number}" if status.invoice else ""
            rows.append(
                ("period", f"{instant(period.start_ms)} to {instant(period.end_ms)}: {units}, {plain(period.cost)};"
                 f" {status.stage}{invoice}, owes {plain(status.owed)}")
            )  # fmt: skip
    if desired is not None and desired.period_ends:
        rows.append(("period", "the current one ends now, and another begins"))
    change = (
        f"{_available(outcome.before)} → {_available(outcome.after)}" if outcome.after else _available(outcome.before)
    )
    rows.append(("available", change))
    for alert in outcome.alerts:
        rows.append((f"! {alert.kind}", alert.message))
    for name, text in rows:
        console().print(f"  [dim]{name:16}[/dim] {escape(text)}", soft_wrap=True, highlight=False)


def print_outcomes(outcomes: Sequence[Outcome]) -> None:
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
                plain(figures.balance) if figures else "-",
                plain(figures.unsettled) if figures else "-",
                _available(outcome.before),
                _after(outcome),
                note[:200],
            )
        )
    columns = ("account", "result", "mode", "plan", "wallets", "not billed yet", "available", "now", "note")
    print_table("", columns, rows)
    wrong = sum(outcome.result in NOT_LOADED for outcome in outcomes)
    console().print(f"{count(len(outcomes), 'account')} read, {wrong:,} not loaded")
