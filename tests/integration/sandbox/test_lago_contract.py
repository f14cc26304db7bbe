"""The stand-in serves what Lago's OpenAPI document has, and the check of its answers can fail.

The answers themselves are held to the document in every test of the stand-in: see ``lago_kit``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from sidecar.sandbox.lago.lago_server import API
from tests.integration.sandbox.lago_contract import answer_errors, is_here, template_of
from tests.integration.sandbox.lago_kit import metered

JSON = "application/json"

# No skipped tests: where the document is absent, these are not there.
if is_here():

    async def test_every_endpoint_is_one_of_the_documents() -> None:
        async with metered() as client:
            served = {
                (route.method.lower(), route.resource.canonical.removeprefix(API))
                for route in client.lago.app().router.routes()
                if route.resource is not None and route.resource.canonical.startswith(API)
            }
        unknown = [
            (method, path)
            for method, path in served
            if method != "head" and answer_errors(method, path, 401, JSON, {"status": 401, "error": "Unauthorized"})
        ]
        assert unknown == []
        assert len(served) > 50

    def test_a_path_finds_its_template() -> None:
        assert template_of("/events/batch") == "/events/batch"
        assert template_of("/customers/a%2Fb/current_usage") == "/customers/{external_customer_id}/current_usage"
        assert template_of("/nothing") is None

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda wallet: wallet.pop("balance_cents"),
            lambda wallet: wallet.update(balance_cents="500"),
            lambda wallet: wallet.update(credits_balance=5.0),
            lambda wallet: wallet.update(status="gone"),
            lambda wallet: wallet.update(lago_id="w-1"),
            lambda wallet: wallet.update(created_at="2025-06-10 12:00"),
            lambda wallet: wallet.update(rate_amount="one"),
        ],
    )
    async def test_a_spoiled_answer_is_found_out(spoil: Callable[[dict[str, Any]], object]) -> None:
        async with metered() as client:
            wallet = await client.wallet(granted_credits="5")
        good = {"wallet": wallet}
        assert answer_errors("GET", "/wallets/1", 200, JSON, good) == []
        spoiled = copy.deepcopy(good)
        spoil(spoiled["wallet"])
        assert answer_errors("GET", "/wallets/1", 200, JSON, spoiled) != []

    def test_an_undocumented_status_is_found_out() -> None:
        assert answer_errors("GET", "/wallets/1", 418, JSON, {}) == ["GET /wallets/{lago_id} has no status 418"]
        assert answer_errors("POST", "/nothing", 200, JSON, {}) == ["there is no POST /nothing"]
