"""One primary of a Cluster is away: what is on the others works, also for who starts meanwhile, and it is told of."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis
from redis.asyncio.cluster import RedisCluster
from structlog.testing import capture_logs

from sidecar.app import assemble, ledger_start
from sidecar.app.configuration import Config, load_config
from sidecar.app.data_plane import DataPlane
from sidecar.app.ledger_start import check_ledger, check_ledger_later
from sidecar.app.serve import key_store, status_document
from sidecar.ledger.accounts.loader import AccountLoader, LedgerUnavailable
from sidecar.ledger.client.outcomes import Code
from sidecar.ledger.client.reaper import keep_reaping
from sidecar.ledger.store import open_store
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter
from sidecar.sandbox.server import Server
from sidecar.valkey.topology import connect, connected, keyslot
from tests.integration.ledger_client.kit import KEYS, ask, call, client_of, load, spec, until
from tests.integration.metering.kit import entry, event, publishing, settings, stored_ids
from tests.support.clusters import SLOTS, Absence, cluster_of_three, topology_of
from tests.support.valkey_process import ValkeyProcess

AWAY = 0
"""The node that has the first slots: redis-py asks it first for everything."""


def node_of(partition: int) -> int:
    return keyslot(KEYS.alive(partition)) * 3 // SLOTS


def of_each_partition() -> dict[int, str]:
    found: dict[int, str] = {}
    n = 0
    while len(found) < KEYS.partitions:
        found.setdefault(KEYS.partition(f"tpp-{n}"), f"tpp-{n}")
        n += 1
    return dict(sorted(found.items()))


ACCOUNTS = of_each_partition()
GONE = [partition for partition in ACCOUNTS if node_of(partition) == AWAY]
THERE = [partition for partition in ACCOUNTS if node_of(partition) != AWAY]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ValkeyProcess]]:
    directory = tmp_path_factory.mktemp("partial")
    with cluster_of_three(directory, cluster_require_full_coverage="no", appendonly="yes") as started:
        yield started


@pytest.fixture
async def absence(nodes: list[ValkeyProcess]) -> AsyncIterator[Absence]:
    """A ledger with an account in each partition, of which a node can go away; after the test it is there again."""
    async with connected(topology_of(nodes)) as client:
        for node in nodes:
            with redis.Redis(port=node.port) as direct:
                direct.flushall()
        await load(client, dict.fromkeys(ACCOUNTS.values(), 5))
    found = Absence(nodes, AWAY)
    yield found
    await asyncio.to_thread(found.end)


def config_of(tmp_path: Path, nodes: list[ValkeyProcess]) -> Config:
    path = tmp_path / "gateway.yaml"
    path.write_text(json.dumps({
        "listen": {"host": "127.0.0.1", "port": 0}, "upstream": {"url": "http://127.0.0.1:9"},
        "valkey": str(topology_of(nodes)), "ledger": {"state_directory": str(tmp_path)},
    }))  # fmt: skip
    return load_config(path, {})


async def test_a_gateway_that_starts_serves_the_accounts_that_can_be_reached(
    tmp_path: Path, nodes: list[ValkeyProcess], absence: Absence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_start, "CHECK_AGAIN_S", 0.1)
    await asyncio.to_thread(absence.begin)
    config = config_of(tmp_path, nodes)
    async with open_store(config.valkey, assemble.keys(config)) as store:
        with capture_logs() as lines:
            is_checked = await check_ledger(config, store.client)
        assert not is_checked
        assert [line["event"] for line in lines if "cannot be reached" in line["event"]] == [
            "some partitions of the ledger cannot be reached; what is on the others works"
        ]
        plane = DataPlane(config, store.client, key_store(store), ledger_is_checked=is_checked)
        await plane.start()
        try:
            await until(lambda: plane.ledger.partitions_down == GONE, plane.ledger)
            health = plane.health()
            assert health.ready
            assert health.why.startswith(f"degraded: {len(GONE)} of 64 partitions of the ledger cannot be reached")
            status = await status_document(store, plane)
            assert (status["ledger"]["up"], status["ledger"]["partitions_down"]) == (False, GONE)
            assert status["outbox"]["partitions_unreached"] == len(GONE)
            codes = await asyncio.gather(*(call(plane.ledger, ACCOUNTS[p]) for p in THERE))
            assert set(codes) == {Code.GRANTED}
            assert (await ask(plane.ledger, ACCOUNTS[GONE[0]])).code == Code.UNAVAILABLE

            await asyncio.to_thread(absence.end)
            await until(lambda: plane.ledger.is_up, plane.ledger)
            assert (plane.health().ready, plane.health().why) == (True, "")
            codes = await asyncio.gather(*(call(plane.ledger, ACCOUNTS[p]) for p in GONE))
            assert set(codes) == {Code.GRANTED}
        finally:
            await plane.stop()


async def test_what_is_remembered_of_a_partition_outlives_its_absence(
    tmp_path: Path, nodes: list[ValkeyProcess], absence: Absence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_start, "CHECK_AGAIN_S", 0.05)
    config = config_of(tmp_path, nodes)
    remembered = tmp_path / "ledger-qs.json"
    async with connected(config.valkey) as client:
        assert await check_ledger(config, client)
        before = remembered.read_text()
        await asyncio.to_thread(absence.begin)
        assert not await check_ledger(config, client)
        assert remembered.read_text() == before
        remembered.unlink()
        assert not await check_ledger(config, client)
        known = json.loads(remembered.read_text())["generations"]
        assert [partition for partition, generation in enumerate(known) if not generation] == GONE
        later = asyncio.create_task(check_ledger_later(config, client))
        await asyncio.to_thread(absence.end)
        await asyncio.wait_for(later, 20)
        assert remembered.read_text() == before


@asynccontextmanager
async def reaping(client: object) -> AsyncIterator[None]:
    task = asyncio.create_task(keep_reaping(client, KEYS, 400))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_control_plane_that_starts_delivers_and_gives_back_what_it_can_reach(
    nodes: list[ValkeyProcess], absence: Absence
) -> None:
    topology = topology_of(nodes)
    async with client_of(topology, leave=False) as dies:
        await asyncio.gather(*(ask(dies, account) for account in ACCOUNTS.values()))
    async with connected(topology) as client:
        for partition in ACCOUNTS:
            await client.xadd(KEYS.outbox(partition), entry(f"gw.{partition}", 1, [event()]))
    await asyncio.to_thread(absence.begin)

    meter = OpenMeter()
    async with Server(meter.app()) as server:
        fresh = connect(topology, timeout_s=1.0)
        assert isinstance(fresh, RedisCluster)
        try:
            async with publishing(fresh, KEYS, settings(server.url)), reaping(fresh):
                await until(lambda: set(stored_ids(meter)) == {f"gw.{p}.1.0" for p in THERE}, meter)
                async with asyncio.timeout(20):
                    while [p for p in THERE if await fresh.zcard(KEYS.alive(p))]:
                        await asyncio.sleep(0.02)
                loader = AccountLoader(fresh, KEYS)
                await loader.load(spec(ACCOUNTS[THERE[0]], 7))
                with pytest.raises(LedgerUnavailable):
                    await loader.load(spec(ACCOUNTS[GONE[0]], 7))
                assert set(await loader.list(reachable=True)) == {ACCOUNTS[p] for p in THERE}
                found = [id_ async for page in loader.pages(10, reachable=True) for id_ in page]
                assert sorted(found) == sorted(ACCOUNTS[p] for p in THERE)
                with pytest.raises(LedgerUnavailable):
                    await loader.list()
                with pytest.raises(LedgerUnavailable):
                    [page async for page in loader.pages(10)]

                await asyncio.to_thread(absence.end)
                await until(lambda: set(stored_ids(meter)) == {f"gw.{p}.1.0" for p in ACCOUNTS}, meter)
                async with asyncio.timeout(20):
                    while [p for p in GONE if await fresh.zcard(KEYS.alive(p))]:
                        await asyncio.sleep(0.02)
        finally:
            await fresh.aclose()


async def test_a_cluster_that_stops_as_a_whole_says_so_at_the_start(
    tmp_path: Path, nodes: list[ValkeyProcess], absence: Absence
) -> None:
    def require(value: str) -> None:
        for node in nodes:
            with redis.Redis(port=node.port) as direct:
                direct.config_set("cluster-require-full-coverage", value)

    require("yes")
    await asyncio.to_thread(absence.begin)
    async with connected(topology_of(nodes)) as client:
        with capture_logs() as lines:
            assert not await check_ledger(config_of(tmp_path, nodes), client)
    await asyncio.to_thread(absence.end)
    require("no")
    problems = [line["problem"] for line in lines if "problem" in line]
    assert any("Set cluster-require-full-coverage no" in problem for problem in problems), lines
