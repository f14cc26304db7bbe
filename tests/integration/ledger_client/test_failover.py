"""Connections follow the primary: what was one is left as soon as the Sentinels or the Cluster know another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis
from structlog.testing import capture_logs

from sidecar.valkey.endpoints import ClusterEndpoints, SingleEndpoints, endpoints
from sidecar.valkey.primary_watch import PrimaryWatch
from sidecar.valkey.resp import LedgerConnectionError, ServerAddress
from sidecar.valkey.topology import connected
from sidecar.valkey.url import Address, Credentials, Sentinel, Standalone
from tests.integration.ledger_client.kit import KEYS, at, until
from tests.support.sentinels import SERVICE, Watched, info, replicated, watched
from tests.support.valkey_process import ValkeyProcess, free_port, valkey_process

ANY = KEYS.alive(0)


@asynccontextmanager
async def watching(where: SingleEndpoints | ClusterEndpoints, changes: list[str]) -> AsyncIterator[PrimaryWatch]:
    watch = where.watch(lambda: changes.append("changed"))
    task = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.fixture
def system(tmp_path: Path) -> Iterator[Watched]:
    with watched(tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ValkeyProcess]]:
    with replicated(tmp_path_factory.mktemp("pair")) as servers:
        yield servers


async def test_a_replica_is_refused_at_connect_and_named(pair: list[ValkeyProcess]) -> None:
    primary, replica = pair
    (await endpoints(at(primary.port)).connect(ANY)).close()
    with pytest.raises(LedgerConnectionError, match=f"{replica.port} is a replica of 127.0.0.1:{primary.port}"):
        await endpoints(at(replica.port)).connect(ANY)


async def test_a_server_that_does_not_tell_its_role_is_used_and_told_of_once(tmp_path: Path) -> None:
    with valkey_process(tmp_path) as server:
        with redis.Redis(port=server.port) as admin:
            admin.acl_setuser("quiet", enabled=True, passwords=["+secret"], keys=["*"], commands=["+@all", "-role"])
        where = endpoints(Standalone(Address("127.0.0.1", server.port), Credentials("quiet", "secret")))
        with capture_logs() as lines:
            for _ in range(3):
                (await where.connect(ANY)).close()
    assert [line["log_level"] for line in lines] == ["warning"]
    assert "+role" in lines[0]["event"]


async def test_a_planned_failover_is_seen_while_the_old_primary_still_takes_writes(system: Watched) -> None:
    """Seen on 0.1.0: 72,917 of 123,616 served calls were lost, written to a primary that was none any more."""
    where = endpoints(system.topology)
    assert isinstance(where, SingleEndpoints)
    changes: list[str] = []
    connection = await where.connect(ANY)
    assert connection.address.port == system.servers[0].port
    async with watching(where, changes), connected(system.topology) as control:
        assert await control.set("before", 1)
        assert where.is_current(ANY, connection.address)
        await asyncio.to_thread(system.fail_over)
        while where.is_current(ANY, connection.address):
            assert isinstance(await connection.call(b"INCR", b"written"), int)
        assert changes == ["changed"]
        assert info(system.servers[0].port, "replication")["role"] == "master", "nobody has told it yet"

        moved = await where.connect(ANY)
        assert moved.address.port == system.servers[1].port
        assert where.is_current(ANY, moved.address)
        # redis-py would go on with the connection that it has.
        await until(lambda: control.connection_pool.known.address.port == system.servers[1].port)
        assert await control.set("after", 1)
        with redis.Redis(port=system.servers[1].port) as new:
            assert new.get("after") == b"1"
        for each in (connection, moved):
            each.close()


async def test_the_watch_outlives_its_sentinels_and_says_once_when_they_go_and_come(system: Watched) -> None:
    sentinel = system.sentinels[0]
    nobody = Address("127.0.0.1", free_port())
    where = endpoints(Sentinel((nobody, Address("127.0.0.1", sentinel.port)), SERVICE))
    assert isinstance(where, SingleEndpoints)
    changes: list[str] = []

    def of_the_sentinel() -> list[str]:
        return [line["log_level"] for line in lines if str(sentinel.port) in line.get("who", "")]

    with capture_logs() as lines:
        async with watching(where, changes) as watch:
            await until(lambda: not where.is_current(ANY, ServerAddress(port=nobody.port)))
            await asyncio.to_thread(sentinel.kill)
            await until(lambda: of_the_sentinel() == ["warning"], lines)
            await asyncio.to_thread(sentinel.start)
            await until(lambda: of_the_sentinel() == ["warning", "info"], lines)
            assert str(system.servers[0].port) in repr(watch)
    assert changes == []
    assert len([line for line in lines if str(nobody) in line.get("who", "")]) == 1


async def test_there_is_nothing_to_watch_on_one_server(pair: list[ValkeyProcess]) -> None:
    where = endpoints(at(pair[0].port))
    await where.watch(lambda: None).run()
    connection = await where.connect(ANY)
    assert where.is_current(ANY, connection.address)
    connection.close()
