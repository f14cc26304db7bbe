"""Whoever runs Valkey without what keeps confirmed charges through a failover is told so, and nobody else is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from sidecar.valkey.safeguards import missing_safeguards
from sidecar.valkey.topology import connected
from sidecar.valkey.url import Address, Credentials, Sentinel, Standalone, Topology
from tests.integration.ledger_client.kit import at
from tests.support.sentinels import Watched, watched
from tests.support.valkey_process import valkey_process


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with watched(tmp_path_factory.mktemp("guard")) as found:
        yield found


@pytest.fixture
def primary(system: Watched) -> Iterator[redis.Redis]:
    """A client of the primary, which has no guard after a test."""
    with redis.Redis(port=system.servers[0].port) as client:
        yield client
        client.config_set("min-replicas-to-write", 0)
        client.config_set("min-replicas-max-lag", 10)
        client.acl_deluser("careful")


async def problems(topology: Topology) -> list[str]:
    async with connected(topology) as client:
        return await missing_safeguards(client, topology)


async def test_a_server_alone_needs_no_guard(tmp_path_factory: pytest.TempPathFactory) -> None:
    with valkey_process(tmp_path_factory.mktemp("alone")) as server:
        assert await problems(at(server.port)) == []


async def test_a_primary_with_a_replica_and_no_guard_is_told_of(system: Watched, primary: redis.Redis) -> None:
    port = system.servers[0].port
    for topology in (at(port), system.topology):
        (found,) = await problems(topology)
        assert "min-replicas-to-write is not set" in found
        assert "set min-replicas-to-write 1 and min-replicas-max-lag 2" in found


async def test_a_guard_that_waits_for_long_is_told_of(system: Watched, primary: redis.Redis) -> None:
    primary.config_set("min-replicas-to-write", 1)
    (found,) = await problems(at(system.servers[0].port))
    assert "min-replicas-max-lag is 10" in found
    assert "for 11 s" in found
    primary.config_set("min-replicas-max-lag", 2)
    assert await problems(at(system.servers[0].port)) == []


@pytest.mark.parametrize("guarded", [False, True])
async def test_a_server_that_refuses_config_is_judged_by_what_it_tells(
    system: Watched, primary: redis.Redis, guarded: bool
) -> None:
    primary.acl_setuser(
        "careful", enabled=True, passwords=["+secret"], keys=["*"], categories=["+@all", "-@dangerous"],
        commands=["+info"],
    )  # fmt: skip
    primary.config_set("min-replicas-to-write", int(guarded))
    who = Standalone(Address("127.0.0.1", system.servers[0].port), Credentials("careful", "secret"))
    assert len(await problems(who)) == (0 if guarded else 1)


async def test_a_server_that_tells_nothing_is_not_judged(system: Watched, primary: redis.Redis) -> None:
    primary.acl_setuser("careful", enabled=True, passwords=["+secret"], keys=["*"], categories=["+@all", "-@dangerous"])
    sentinels = system.topology.sentinels
    assert await problems(Sentinel(sentinels, system.topology.service, Credentials("careful", "secret"))) == []


async def test_a_sentinels_primary_needs_the_guard_even_while_its_replica_is_away(system: Watched) -> None:
    async with connected(system.topology) as client:
        system.servers[1].stop()
        try:
            while (await client.info("replication"))["connected_slaves"]:
                pass
            (found,) = await missing_safeguards(client, system.topology)
        finally:
            system.servers[1].start()
    assert "min-replicas-to-write is not set" in found
