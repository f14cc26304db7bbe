"""Accounts as text for people."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Final

from rich.markup import escape

from sidecar.cli.output import console, print_table
from sidecar.cli.words import count, date_and_time, money, plain, price_text
from sidecar.ledger.accounts.account_snapshot import AccountSnapshot, MetricSnapshot

LOADED_SHOWN_MAX: Final = 50
_MODES: Final = {
    "prepaid": "prepaid (spends credit that was bought before)",
    "overage": "overage (has calls included, then pays for each)",
    "postpaid": "postpaid (pays later for what it used)",
}
_AMOUNTS: Final = {
    "funds": "funds", "overdraft": "overdraft", "spending_cap": "spending cap", "credit_limit": "credit limit",
}  # fmt: skip


def print_loaded(shown: Sequence[AccountSnapshot], loaded: int) -> None:
    """``shown``: the first of the ``loaded`` accounts."""
    if shown:
        rows = [
            (each.id, each.mode, each.status, money(each.available, each.currency),
             ", ".join(metric.metric for metric in each.metrics if metric.in_plan))
            for each in shown
        ]  # fmt: skip
        print_table("", ("account", "mode", "status", "can still spend", "metrics"), rows)
    if loaded > len(shown):
        console().print(f"… and {loaded - len(shown):,} more")
    console().print(f"{count(loaded, 'account')} loaded")


def print_accounts(accounts: Sequence[AccountSnapshot]) -> None:
    if accounts:
        rows = [(each.id, each.mode, each.status, money(each.available, each.currency)) for each in accounts]
        print_table("", ("account", "mode", "status", "can still spend"), rows)
    console().print(count(len(accounts), "account"))


def print_account(account: AccountSnapshot) -> None:
    currency = account.currency
    console().print(f"[bold]{escape(account.id)}[/bold]")
    rows = [
        ("status", account.status),
        ("mode", _MODES.get(account.mode, account.mode)),
        ("can still spend", money(account.available, currency)),
        ("may spend in all", money(account.ceiling, currency)),
    ]
    rows += [
        (f"- {_AMOUNTS.get(name, name)}", money(Decimal(amount), currency)) for name, amount in account.amounts.items()
    ]
    if account.unsettled:
        rows.append(("billed earlier, not paid", money(account.unsettled, currency)))
    over = "; the next call begins a new one" if account.rollover_pending else ""
    several = len(account.subscriptions) > 1
    for each in account.subscriptions:
        period = f"{date_and_time(each.period_start_ms)} to {date_and_time(each.period_end_ms)}{over}"
        rows.append((f"period of {_name(each.subscription)}" if several else "period", period))
    rows += [("limits", _limits(account)), ("API keys", f"{account.api_keys:,}")]
    rows.append(("version", f"{account.version:,}"))
    for name, text in rows:
        console().print(f"  [dim]{name:24}[/dim]  {escape(text)}", soft_wrap=True)
    if account.metrics:
        console().print()
        print_table(
            "in this period",
            ("metric", "used", "on hold", "cost", "price", *(("subscription",) if several else ())),
            [(m.metric, f"{m.settled:,}", f"{m.held:,}", money(m.cost, currency), _price(m, currency),
              *((_name(m.subscription),) if several else ()))
             for m in account.metrics],
        )  # fmt: skip
    if account.closed:
        console().print()
        print_table(
            "in earlier periods",
            ("since", "metric", "used", "cost"),
            [(date_and_time(usage.start_ms), usage.metric, f"{usage.units:,}", money(cost, currency))
             for usage, cost in account.closed],
        )  # fmt: skip


def _name(subscription: str) -> str:
    """An account's first subscription has no name of its own."""
    return subscription or "the first subscription"


def _price(metric: MetricSnapshot, currency: str) -> str:
    if metric.price is None:
        return "none"
    return price_text(metric.price, currency) + ("" if metric.in_plan else "; no longer in the plan")


def _limits(account: AccountSnapshot) -> str:
    limits = []
    rate = Decimal(account.rate_per_second)
    if rate:
        limits.append(f"{plain(rate)} {'request' if rate == 1 else 'requests'} per second")
    if account.burst > 1:
        limits.append(f"bursts of {count(account.burst, 'request')}")
    if account.day_limit:
        limits.append(f"{count(account.day_limit, 'request')} per day")
    return ", ".join(limits) or "none"
