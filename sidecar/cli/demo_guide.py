"""What ``sidecar demo`` prints: where everything listens, lines to paste into a shell, and usage as it is counted."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import orjson
import typer

from sidecar.cli.output import console
from sidecar.ledger.store import Store
from sidecar.metering.outbox.outbox_status import outbox_status
from sidecar.sandbox.demo import DemoAccount

PATH: Final = "/open-banking/v3.1/aisp/accounts"
POLL_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Running:
    """Where everything listens. ``wallet`` is the Lago id of the prepaid account's."""

    proxy: str
    admin: str
    lago: str
    openmeter: str
    upstream: str
    valkey: str
    accounts: tuple[DemoAccount, ...]
    wallet: str
    lago_api_key: str = field(repr=False)
    webhook_hmac_key: str = field(repr=False)

    def document(self) -> dict[str, Any]:
        """The line of ``--json``."""
        return {
            "proxy": self.proxy,
            "admin": self.admin,
            "lago": self.lago,
            "openmeter": self.openmeter,
            "upstream": self.upstream,
            "valkey": self.valkey,
            "accounts": [{"id": a.id, "mode": a.mode, "api_key": a.api_key} for a in self.accounts],
            "lago_api_key": self.lago_api_key,
            "webhook_hmac_key": self.webhook_hmac_key,
        }


@dataclass(frozen=True, slots=True)
class Line:
    """A command for a shell. It needs no other that was run before, and no variable."""

    about: str
    command: str


def print_json(running: Running) -> None:
    typer.echo(orjson.dumps(running.document()).decode())
    sys.stdout.flush()


def print_guide(running: Running) -> None:
    console().print("\n[bold]quota-sidecar demo[/bold]\n")
    places = (("gateway", running.proxy), ("admin", running.admin), ("OpenMeter", running.openmeter))
    for what, url in (*places, ("Lago", running.lago)):
        print(f"  {what:13} {url}")
    print()
    for account in running.accounts:
        print(f"  {account.id:13} X-API-Key: {account.api_key}")
        console().print(f"  {'':13} [dim]{account.about}[/dim]", soft_wrap=True)
    print("\nPaste any of these lines into another shell, in any order:\n")
    for line in lines(running):
        console().print(f"  [dim]# {line.about}[/dim]", soft_wrap=True)
        print(f"  {line.command}")
    print("\nPress Ctrl-C to end the demo. Usage that OpenMeter has counted is shown here:\n")
    sys.stdout.flush()


def lines(running: Running) -> tuple[Line, ...]:
    """The commands of the guide."""
    prepaid, overage, postpaid = running.accounts
    call = f"-H 'X-API-Key: {prepaid.api_key}' {running.proxy}{PATH}"
    delivered = f"until curl -s {running.admin}/v1/status | grep -q '\"events\":0,'; do sleep 0.2; done"
    top_up = {"wallet_transaction": {"wallet_id": running.wallet, "granted_credits": "5.0"}}
    upgrade = {
        "subscription": {
            "external_customer_id": postpaid.id,
            "external_id": postpaid.subscription,
            "plan_code": overage.plan,
        }
    }
    return (
        Line("make a call", f"curl -i -w '\\n' {call}"),
        Line(
            "make eleven calls: while the wallet has 1.00, the credit is enough for ten of them",
            f"for i in $(seq 11); do curl -s -o /dev/null -w '%{{http_code}}\\n' {call}; done",
        ),
        Line("see how much is missing once the credit is used up", f"curl -s -w '\\n' {call}"),
        Line(
            "see what OpenMeter has counted, once all events are delivered",
            f"{delivered}; curl -s -w '\\n' '{running.openmeter}/api/v1/meters/api_calls/query?groupBy=subject'",
        ),
        Line(
            f"top up the wallet of {prepaid.id} in Lago: the next call passes",
            _lago(running, "POST", "/wallet_transactions", top_up),
        ),
        Line(
            f"suspend {postpaid.id} in Lago: its next call is refused with 403",
            _lago(running, "POST", "/customers", _status(postpaid, "suspended")),
        ),
        Line(f"end the suspension of {postpaid.id}", _lago(running, "POST", "/customers", _status(postpaid, "active"))),
        Line(
            f"upgrade {postpaid.id} to the plan of {overage.id}: twenty calls are included",
            _lago(running, "POST", "/subscriptions", upgrade),
        ),
        Line(
            f"terminate the subscription of {overage.id}: its next call is refused with 403",
            _lago(running, "DELETE", f"/subscriptions/{overage.subscription}"),
        ),
        Line("see the account of tpp-prepaid", f"curl -s -w '\\n' {running.admin}/v1/accounts/{prepaid.id}"),
    )


def _lago(running: Running, method: str, path: str, body: dict[str, Any] | None = None) -> str:
    fields = f"-H 'Authorization: Bearer {running.lago_api_key}'"
    if body is not None:
        # In quotes that no shell looks into; what is in the body has none.
        fields += f" -H 'Content-Type: application/json' -d '{json.dumps(body, separators=(',', ':'))}'"
    return f"curl -s -w '\\n' -X {method} {fields} {running.lago}/api/v1{path}"


def _status(account: DemoAccount, status: str) -> dict[str, Any]:
    """The customer with a status. Lago replaces all pairs by those that are sent."""
    customer = account.customer()
    pair = {"key": "quota_status", "value": status, "display_in_invoice": False}
    return {"customer": {**customer, "metadata": [*customer["metadata"], pair]}}


async def print_usage(running: Running, store: Store, write: Callable[[str], None]) -> None:
    """Prints what OpenMeter has counted, whenever that has changed and the outbox is empty. Runs until it is
    cancelled."""
    printed: dict[str, float] = {}
    async with aiohttp.ClientSession() as session:
        while True:
            await asyncio.sleep(POLL_S)
            if (await outbox_status(store.client, store.keys)).events:
                continue
            url = f"{running.openmeter}/api/v1/meters/api_calls/query?groupBy=subject"
            async with session.get(url) as response:
                rows = (await response.json())["data"]
            counted = {str(row["subject"]): float(row["value"]) for row in rows}
            if counted != printed:
                printed = counted
                text = ", ".join(f"{subject} {value:g}" for subject, value in sorted(counted.items()))
                write(f"OpenMeter has counted api_calls: {text}")
