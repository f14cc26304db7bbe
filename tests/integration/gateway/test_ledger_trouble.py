"""Valkey that does not answer for a while: nobody waits long, nothing is charged unseen, nothing stays held."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.integration.gateway.api import echo
from tests.integration.gateway.rig import Rig, get, post

BUDGET_S = 0.05


@asynccontextmanager
async def silence(rig: Rig) -> AsyncIterator[None]:
    """Valkey runs no script meanwhile. Who calls is remembered from a call before."""
    assert (await rig.ask(get())).status == 200
    await rig.idle()
    await rig.client.client_pause(60_000, all=False)
    try:
        yield
    finally:
        await rig.client.client_unpause()


async def test_a_ledger_that_does_not_answer_is_a_503_and_costs_nothing(gateway: Any) -> None:
    async with gateway(echo, hold_budget_s=BUDGET_S) as rig:
        async with silence(rig):
            for request in (get(), post(b"abc"), get(method=b"HEAD")):
                answer = await rig.ask(request)
                assert (answer.status, answer.get(b"Retry-After")) == (503, b"1")
        assert len(rig.api.requests) == 1
        await rig.until(lambda: rig.ledger.is_up)
        assert (await rig.ask(get())).status == 200
        assert await rig.charged() == [200, 200]


async def test_a_client_that_is_gone_before_its_hold_is_decided_pays_nothing(gateway: Any) -> None:
    async with gateway(echo) as rig:
        async with silence(rig):
            wire = await rig.connect()
            await wire.send(get(b"/gone"))
            await rig.until(lambda: rig.ledger.counters.holds == 2)
            wire.reset()
            await rig.until(lambda: rig.log[-1]["status"] == 499)
        assert await rig.charged() == [200]
        assert rig.ledger.counters.late_grants == 1
        assert [request.target for request in rig.api.requests] == [b"/accounts"]


async def test_a_gateway_that_fails_open_serves_what_is_allowed_and_charges_it_later(
    gateway: Any, tmp_path: Path
) -> None:
    async with gateway(echo, hold_budget_s=BUDGET_S, spool_directory=tmp_path) as rig:
        async with silence(rig):
            statuses = [(await rig.ask(get())).status for _ in range(3)]
        assert statuses == [200, 200, 503]  # the rig's spool allows two units
        assert [line["units"] for line in rig.log] == [1, 1, 1, 0]
        await rig.until(lambda: rig.ledger.is_up)
        async with asyncio.timeout(10):
            while len(await rig.charged()) < 3:
                await asyncio.sleep(0.05)
        assert await rig.charged() == [200, 200, 200]


async def test_an_answer_of_503_from_the_gateway_says_what_is_the_matter(gateway: Any) -> None:
    async with gateway(echo, hold_budget_s=BUDGET_S) as rig:
        async with silence(rig):
            answer = await rig.ask(get(b"/a", b"x-fapi-interaction-id: 93bac548"))
        assert json.loads(answer.body)["type"] == "urn:quota-sidecar:ledger-unavailable"
        assert answer.get(b"x-fapi-interaction-id") == b"93bac548"
        await rig.until(lambda: rig.ledger.is_up)
