"""Lago's answers for any number of customers: the shapes of the sandbox's stand-in, asked for once, with marks where a
customer's own ids, times and amounts belong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import aiohttp
import orjson

from loadtests.billing_scale.bank import Bank
from sidecar.billing.lago.client import LagoClient
from sidecar.billing.lago.models import Event
from sidecar.billing.settings import LagoSettings
from sidecar.sandbox.lago.lago_server import Lago, LagoConfig
from sidecar.sandbox.server import Server

START: Final = datetime(2026, 2, 1, tzinfo=UTC)
BILLED: Final = datetime(2026, 3, 1, 0, 11, tzinfo=UTC)
ACCOUNT: Final = "marked-account"

PERIOD_MARKS: Final[Mapping[str, str]] = {
    "current_billing_period_started_at": "@FROM@",
    "current_billing_period_ending_at": "@TO@",
    "from_datetime": "@FROM@",
    "to_datetime": "@TO@",
    "charges_from_datetime": "@FIRST@",
    "charges_to_datetime": "@LAST@",
    "subscription_from_datetime": "@FIRST@",
    "subscription_to_datetime": "@LAST@",
    "started_at": "@FIRST@",
    "subscription_at": "@FIRST@",
    "balance_cents": "@CENTS@",
    "credits_balance": "@CREDITS@",
}


@dataclass(frozen=True, slots=True)
class Answers:
    """Each is JSON with marks, ``@NAME@``; a mark that is a whole text in quotes may stand for a number.

    Marks: ACCOUNT, CUSTOMER, SUBSCRIPTION, WALLET, INVOICE (ids), FROM and TO (the current period), FIRST and LAST (the
    first period), BILLED (when its invoice was made), CENTS and CREDITS of a wallet, ``U<n>`` units of metric ``n`` on
    the invoice, and FEES, their sum.
    """

    customer: bytes
    subscription: bytes
    subscription_row: bytes
    wallet_row: bytes
    usage: bytes
    invoice: bytes
    invoice_row: bytes
    customer_row: bytes
    metrics: bytes
    metric: Mapping[str, bytes]


async def recorded(bank: Bank) -> Answers:
    """Ask the stand-in."""
    lago = Lago(LagoConfig(now=START.timestamp))
    async with Server(lago.app()) as server:
        settings = LagoSettings.model_validate({"url": server.url, "api_key": lago.config.api_key})
        async with LagoClient(settings) as client:
            await _seed(client, bank)
        headers = {"Authorization": f"Bearer {lago.config.api_key}"}
        async with aiohttp.ClientSession(f"{server.url}/", headers=headers) as session:

            async def get(path: str) -> Any:
                async with session.get(f"api/v1/{path}") as answer:
                    assert answer.status == 200, f"{path}: {answer.status}"
                    return orjson.loads(await answer.read())

            found = {
                "customer": await get(f"customers/{ACCOUNT}"),
                "customers": await get("customers"),
                "subscription": await get(f"subscriptions/{ACCOUNT}-sub"),
                "subscriptions": await get("subscriptions"),
                "wallets": await get("wallets"),
                "usage": await get(f"customers/{ACCOUNT}/current_usage?external_subscription_id={ACCOUNT}-sub"),
                "metrics": await get("billable_metrics"),
            }
            lago.advance_to(BILLED)
            found["invoices"] = await get(f"invoices?external_customer_id={ACCOUNT}")
            invoice_id = found["invoices"]["invoices"][0]["lago_id"]
            found["invoice"] = await get(f"invoices/{invoice_id}")
    metrics = {row["code"]: orjson.dumps({"billable_metric": row}) for row in found["metrics"]["billable_metrics"]}
    marks = {
        ACCOUNT: "@ACCOUNT@",
        f"{ACCOUNT}-sub": "@ACCOUNT@-sub",
        found["customer"]["customer"]["lago_id"]: "@CUSTOMER@",
        found["subscription"]["subscription"]["lago_id"]: "@SUBSCRIPTION@",
        found["wallets"]["wallets"][0]["lago_id"]: "@WALLET@",
        invoice_id: "@INVOICE@",
    }
    invoice = found["invoice"]["invoice"]
    invoice["created_at"] = found["invoices"]["invoices"][0]["created_at"] = "@BILLED@"
    for row in (invoice, found["invoices"]["invoices"][0]):
        row["fees_amount_cents"] = row["total_amount_cents"] = "@FEES@"
    charges = [fee for fee in invoice["fees"] if fee["item"]["type"] == "charge"]
    _check(len(charges) == bank.metrics, "an invoice with a fee for each metric")
    for fee in charges:
        number = bank.metric_number(fee["item"]["code"])
        fee["lago_id"] = f"@INVOICE@-{number}"
        fee["units"] = fee["amount_cents"] = f"@U{number}@"
        fee["from_date"], fee["to_date"] = "@FIRST@", "@LAST@"

    def marked(value: Any) -> bytes:
        return orjson.dumps(_marked(value, marks))

    return Answers(
        customer=marked(found["customer"]),
        subscription=marked(found["subscription"]),
        subscription_row=marked(found["subscriptions"]["subscriptions"][0]),
        wallet_row=marked(found["wallets"]["wallets"][0]),
        usage=marked(found["usage"]),
        invoice=marked(found["invoice"]),
        invoice_row=marked(found["invoices"]["invoices"][0]),
        customer_row=marked(found["customers"]["customers"][0]),
        metrics=orjson.dumps(found["metrics"]),
        metric=metrics,
    )


async def _seed(client: LagoClient, bank: Bank) -> None:
    charges = []
    for number in range(bank.metrics):
        code = bank.metric(number)
        made = await client.create_metric(
            {"code": code, "name": code, "aggregation_type": "sum_agg", "field_name": "calls"}
        )
        charges.append(
            {"billable_metric_id": made.lago_id, "charge_model": "standard", "properties": {"amount": "0.01"}}
        )
    await client.create_plan(
        {"code": "pro", "name": "pro", "interval": "monthly", "amount_cents": 0, "amount_currency": "EUR",
         "pay_in_advance": False, "charges": charges}
    )  # fmt: skip
    await client.create_customer({"external_id": ACCOUNT, "currency": "EUR"})
    await client.create_wallet(
        {"external_customer_id": ACCOUNT, "name": "w", "currency": "EUR", "rate_amount": "1", "paid_credits": "0",
         "granted_credits": "100000"}
    )  # fmt: skip
    await client.create_subscription(
        {"external_customer_id": ACCOUNT, "external_id": f"{ACCOUNT}-sub", "plan_code": "pro"}
    )
    at_s = Decimal(int(START.timestamp()) + 60)
    for number in range(bank.metrics):  # an invoice has no fee for what was not used
        code = bank.metric(number)
        await client.send_event(Event(f"marked-{number}", f"{ACCOUNT}-sub", code, at_s, {"calls": "1"}))


def _marked(value: Any, marks: Mapping[str, str], name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _marked(below, marks, key) for key, below in value.items()}
    if isinstance(value, list):
        return [_marked(below, marks) for below in value]
    if name in PERIOD_MARKS and value is not None:
        return PERIOD_MARKS[name]
    return marks.get(value, value) if isinstance(value, str) else value


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(f"the stand-in of Lago did not answer with {what}")
