"""Faults of servers, processes and the wire, each as something that begins under load and is over when it returns."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random
from typing import Final

import redis
from redis.asyncio import Redis

from tests.chaos.rounds.servers import SLOTS, Kind, client_of, role
from tests.chaos.rounds.system import System
from tests.support.data_loss import back_up, roll_back
from tests.support.sentinels import SERVICE, wait_until
from tests.support.valkey_process import ValkeyProcess

Fault = Callable[[System, Random, dict[str, int]], Awaitable[None]]
"""With the accounts that are there, and the calls that each can pay for."""


async def _pause(chance: Random, least: float, most: float) -> None:
    await asyncio.sleep(chance.uniform(least, most))


# Processes


async def gateway_killed(system: System, chance: Random, _: dict[str, int]) -> None:
    number = chance.randrange(2)
    await system.gateways[number].end(signal.SIGKILL)
    await _pause(chance, 0, 1)
    await system.start_gateway(number)


async def gateway_stopped(system: System, chance: Random, _: dict[str, int]) -> None:
    number = chance.randrange(2)
    await system.gateways[number].end(signal.SIGTERM)
    await system.start_gateway(number)


async def gateway_stands_still(system: System, chance: Random, _: dict[str, int]) -> None:
    """Longer than its time to live: others take it for dead, and it comes back as a zombie."""
    process = system.gateways[chance.randrange(2)]
    process.send(signal.SIGSTOP)
    await _pause(chance, 1.0, 4.0)
    process.send(signal.SIGCONT)


async def control_plane_killed(system: System, chance: Random, _: dict[str, int]) -> None:
    number = chance.randrange(2)
    await system.planes[number].end(signal.SIGKILL)
    await _pause(chance, 0, 1)
    await system.start_plane(number)


# One server


async def server_killed(system: System, chance: Random, _: dict[str, int]) -> None:
    (server,) = system.servers.servers
    server.kill()
    await _pause(chance, 0.2, 3)
    await asyncio.to_thread(server.start)


async def server_hangs(system: System, chance: Random, _: dict[str, int]) -> None:
    (server,) = system.servers.servers
    server.send(signal.SIGSTOP)
    await _pause(chance, 0.5, 4)
    server.send(signal.SIGCONT)


async def machine_loses_the_last_second(system: System, chance: Random, _: dict[str, int]) -> None:
    """What ``appendfsync everysec`` may lose with the power: the end of the append-only file."""
    (server,) = system.servers.servers
    await _lose_the_end(server, chance)
    await asyncio.to_thread(server.start)


async def machine_of_server_and_gateway_is_lost(system: System, chance: Random, _: dict[str, int]) -> None:
    """The same, and a gateway with its memory goes too: what it alone knew is lost."""
    (server,) = system.servers.servers
    number = chance.randrange(2)
    await _lose_the_end(server, chance)
    await system.gateways[number].end(signal.SIGKILL)
    await asyncio.to_thread(server.start)
    await system.start_gateway(number)


async def _lose_the_end(server: ValkeyProcess, chance: Random) -> None:
    (file,) = (server.directory / "appendonlydir").glob("*.incr.aof")
    size = file.stat().st_size
    await _pause(chance, 0.5, 1)
    server.kill()
    os.truncate(file, size)


async def gateway_ends_in_an_outage(system: System, chance: Random, _: dict[str, int]) -> None:
    (server,) = system.servers.servers
    number = chance.randrange(2)
    server.kill()
    await _pause(chance, 0.4, 1.5)  # a charge that waits is on disk after 0.2 s
    await system.gateways[number].end(chance.choice((signal.SIGTERM, signal.SIGKILL)))
    await asyncio.to_thread(server.start)
    await system.start_gateway(number)


async def rolled_back(system: System, chance: Random, _: dict[str, int]) -> None:
    async with Redis(port=system.servers.servers[0].port, protocol=2) as client:
        backup = await back_up(client)
        await _pause(chance, 0.2, 2)
        await roll_back(client, backup)


async def all_data_gone(system: System, chance: Random, accounts: dict[str, int]) -> None:
    async with Redis(port=system.servers.servers[0].port, protocol=2) as client:
        await client.flushall()
    await _pause(chance, 0.2, 1)
    await system.load_accounts(accounts)


async def out_of_memory(system: System, chance: Random, _: dict[str, int]) -> None:
    async with Redis(port=system.servers.servers[0].port, protocol=2) as client:
        await client.config_set("maxmemory", "1mb")
        await _pause(chance, 0.5, 3)
        await client.config_set("maxmemory", "0")


async def scripts_forgotten(system: System, chance: Random, _: dict[str, int]) -> None:
    async with Redis(port=system.servers.servers[0].port, protocol=2) as client:
        await client.function_flush()
        await client.script_flush()
        await client.client_kill_filter(_type="normal", skipme=True)


async def gateway_cut_off(system: System, chance: Random, _: dict[str, int]) -> None:
    assert system.wire is not None
    system.wire.refuse()
    await _pause(chance, 0.5, 4)
    system.wire.accept()


async def wire_breaks_again_and_again(system: System, chance: Random, _: dict[str, int]) -> None:
    assert system.wire is not None
    for _round in range(20):
        system.wire.faults.append(chance.choice(("drop before", "drop after", "split")))
        await _pause(chance, 0.02, 0.15)
    system.wire.faults.clear()


# A primary with replicas


async def planned_failover(system: System, chance: Random, _: dict[str, int]) -> None:
    before = system.servers.primary()

    def begun() -> bool:
        with client_of(system.servers.sentinels[chance.randrange(3)]) as sentinel:
            try:
                return bool(sentinel.execute_command("SENTINEL FAILOVER", SERVICE))
            except redis.ResponseError:
                return False

    await asyncio.to_thread(wait_until, begun)
    await asyncio.to_thread(wait_until, lambda: system.servers.primary() is not before)


async def primary_killed(system: System, chance: Random, _: dict[str, int]) -> None:
    before = system.servers.primary()
    before.kill()
    await asyncio.to_thread(wait_until, lambda: _is_led(system, before.port))
    await asyncio.to_thread(before.start)


async def primary_hangs(system: System, chance: Random, _: dict[str, int]) -> None:
    before = system.servers.primary()
    before.send(signal.SIGSTOP)
    await asyncio.to_thread(wait_until, lambda: _is_led(system, before.port))
    await _pause(chance, 0, 1)
    before.send(signal.SIGCONT)


async def failover_to_a_replica_that_lags(system: System, chance: Random, _: dict[str, int]) -> None:
    """Without the guard: the replicas stand still, and then the primary dies with what they lack."""
    before = system.servers.primary()
    _set_guard(system, "0")
    replicas = [each for each in system.servers.replicas() if each is not before]
    for replica in replicas:
        replica.send(signal.SIGSTOP)
    with client_of(before) as client:
        client.client_kill_filter(_type="replica")
    await _pause(chance, 0.2, 1.0)
    before.kill()
    for replica in replicas:
        replica.send(signal.SIGCONT)
    await asyncio.to_thread(wait_until, lambda: _is_led(system, before.port))
    await asyncio.to_thread(before.start)
    _set_guard(system, "1")


def _set_guard(system: System, replicas: str) -> None:
    for server in system.servers.running():
        with client_of(server) as client:
            client.config_set("min-replicas-to-write", replicas)


def _is_led(system: System, but_for: int) -> bool:
    with suppress(redis.RedisError, OSError, StopIteration):
        primary = system.servers.primary()
        return primary.port != but_for and role(primary) == "master"
    return False


# A Cluster


async def cluster_primary_killed(system: System, chance: Random, _: dict[str, int]) -> None:
    primaries = system.servers.primaries()
    victim = chance.choice(primaries)
    others = {each.port for each in primaries if each is not victim}
    victim.kill()
    await asyncio.to_thread(wait_until, lambda: any(each.port not in others for each in system.servers.primaries()))
    await asyncio.to_thread(victim.start)


async def cluster_failover(system: System, chance: Random, _: dict[str, int]) -> None:
    replica = chance.choice(system.servers.replicas())
    with client_of(replica) as client:
        client.execute_command("CLUSTER", "FAILOVER")
    await asyncio.to_thread(wait_until, lambda: role(replica) == "master")


async def slots_move(system: System, chance: Random, _: dict[str, int]) -> None:
    """A thousand slots go to another primary, and back."""
    source, target = chance.sample(system.servers.primaries(), 2)
    with client_of(source) as one, client_of(target) as other:
        there, here = other.execute_command("CLUSTER", "MYID"), one.execute_command("CLUSTER", "MYID")
        first, last = _slots_of(one, here.decode())
        last = min(last, first + chance.randrange(200, 1000))
        for client, to in ((one, there), (other, here)):
            client.execute_command("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", first, last, "NODE", to)
            await asyncio.to_thread(wait_until, lambda to=to: _has(system, to.decode(), first))


def _slots_of(client: redis.Redis, node_id: str) -> tuple[int, int]:
    for low, high, primary, *_ in client.execute_command("CLUSTER SLOTS"):
        if primary[2].decode() == node_id:
            return int(low), int(high)
    raise AssertionError(f"a primary without slots, of {SLOTS}")


def _has(system: System, node_id: str, slot: int) -> bool:
    for server in system.servers.primaries():
        with client_of(server) as client:
            for low, high, primary, *_ in client.execute_command("CLUSTER SLOTS"):
                if low <= slot <= high and primary[2].decode() != node_id:
                    return False
    return True


async def replica_killed(system: System, chance: Random, _: dict[str, int]) -> None:
    replica = chance.choice(system.servers.replicas())
    replica.kill()
    await _pause(chance, 0.5, 2)
    await asyncio.to_thread(replica.start)


ANYWHERE: Final[dict[str, Fault]] = {
    "gateway killed": gateway_killed,
    "gateway stopped": gateway_stopped,
    "gateway stands still": gateway_stands_still,
    "control plane killed": control_plane_killed,
}
FAULTS: Final[dict[Kind, dict[str, Fault]]] = {
    "single": {
        **ANYWHERE,
        "server killed": server_killed,
        "server hangs": server_hangs,
        "machine loses the last second": machine_loses_the_last_second,
        "machine of server and gateway is lost": machine_of_server_and_gateway_is_lost,
        "gateway ends in an outage": gateway_ends_in_an_outage,
        "data rolled back": rolled_back,
        "all data gone": all_data_gone,
        "out of memory": out_of_memory,
        "scripts forgotten": scripts_forgotten,
        "gateway cut off": gateway_cut_off,
        "wire breaks again and again": wire_breaks_again_and_again,
    },
    "sentinel": {
        **ANYWHERE,
        "planned failover": planned_failover,
        "primary killed": primary_killed,
        "primary hangs": primary_hangs,
        "failover to a replica that lags": failover_to_a_replica_that_lags,
    },
    "cluster": {
        **ANYWHERE,
        "primary killed": cluster_primary_killed,
        "planned failover": cluster_failover,
        "slots move": slots_move,
        "replica killed": replica_killed,
    },
}
