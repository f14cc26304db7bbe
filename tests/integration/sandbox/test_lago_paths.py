"""Paths as Lago's router reads them, and what lies beside the API."""

from __future__ import annotations

import pytest
from yarl import URL

from tests.integration.sandbox.lago_kit import Client, config, running

UNKNOWN = (404, "resource_not_found")


async def asked(client: Client, path: str) -> tuple[int, str]:
    """The status, and the external id or the code of the answer."""
    url = URL(f"{client.url}/api/v1{path}", encoded=True)
    async with client.session.get(url, headers={"Authorization": f"Bearer {client.key}"}) as answer:
        found = await answer.json()
    return answer.status, str(found["customer"]["external_id"] if "customer" in found else found.get("code", ""))


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/customers/acme%2Eexample", (200, "acme.example")),
        ("/customers/acme.example", (200, "acme")),
        ("/customers/acme.json", (200, "acme")),
        ("/customers/nobody.example", (404, "customer_not_found")),
        ("/customers/acme.co.example", UNKNOWN),
        ("/customers/acme.", UNKNOWN),
        ("/customers/.acme", UNKNOWN),
        ("/customers/acme.example/wallets", UNKNOWN),
        ("/customers/acme.example/current_usage?external_subscription_id=sub", UNKNOWN),
    ],
)
async def test_a_dot_ends_an_id_unless_it_is_encoded(path: str, found: tuple[int, str]) -> None:
    async with running() as client:
        for name in ("acme", "acme.example"):
            await client.customer(name)
        assert await asked(client, path) == found


async def test_a_code_may_have_dots() -> None:
    async with running() as client:
        await client.metric("aisp.accounts")
        for path in ("/billable_metrics/aisp.accounts", "/billable_metrics/aisp%2Eaccounts"):
            assert (await client.call("GET", path))[0] == 200


async def test_the_usage_of_an_unknown_customer_is_an_unknown_resource() -> None:
    async with running() as client:
        path = "/customers/nobody/current_usage?external_subscription_id=sub"
        assert await client.refused("GET", path) == UNKNOWN


@pytest.mark.parametrize(("first", "status"), [(0, 200), (1, 500)])
async def test_a_volume_table_that_begins_at_1_has_no_usage_of_none(first: int, status: int) -> None:
    ranges = [{"from_value": first, "to_value": None, "per_unit_amount": "1", "flat_amount": "0"}]
    async with running() as client:
        await client.customer()
        charge = {"billable_metric_id": await client.metric(), "charge_model": "volume"}
        await client.plan(charges=[{**charge, "properties": {"volume_ranges": ranges}}])
        await client.subscribe()
        path = "/customers/tpp/current_usage?external_subscription_id=sub"
        assert (await client.call("GET", path, checked=False))[0] == status
        await client.use(1, "2025-06-10 12:00")
        assert (await client.call("GET", path))[0] == 200


async def test_the_version_is_told_without_a_key() -> None:
    async with running(config(version="v1.18.0")) as client, client.session.get(f"{client.url}/health") as answer:
        assert (answer.status, (await answer.json())["version"]) == (200, "v1.18.0")
