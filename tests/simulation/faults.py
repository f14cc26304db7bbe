"""What can happen to a simulated system: one method for each kind of fault."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from sidecar.billing.reconcile.reload_requests import ReloadRequests
from sidecar.valkey.topology import CLIENT_ERRORS, connected
from tests.simulation.deployment import TOLD_S_MAX, WithReplica, WithSlots, server_of
from tests.simulation.lago import ACCOUNT
from tests.simulation.network import Node, Weather
from tests.simulation.processes import KEYS
from tests.simulation.schedule import Fault
from tests.simulation.system import System

ROUGH = Weather(slow=0.02, lost=0.03, reply_lost=0.03, cut=0.03, late=0.03, stuck=0.01, refused=0.05)
LEFT_AFTER_S = 0.5
DOWN_AFTER_S = 0.5
"""Without an answer for so long a Sentinel takes a primary for down."""


async def _rough_network(system: System, fault: Fault) -> None:
    system.network.weather = ROUGH
    await asyncio.sleep(3 * fault.length_s)
    system.network.weather = Weather()


# A server


async def _server_stands_still(system: System, fault: Fault) -> None:
    node = system.deployment.one(fault.who)
    node.pause()
    await asyncio.sleep(fault.length_s)
    node.resume()


async def _server_cut_off(system: System, fault: Fault) -> None:
    node = system.deployment.one(fault.who)
    node.cut_off()
    await asyncio.sleep(fault.length_s)
    node.rejoin()


async def _connections_break(system: System, fault: Fault) -> None:
    system.deployment.one(fault.who).break_connections()


async def _server_ends_and_starts(system: System, fault: Fault) -> None:
    node = system.deployment.one(fault.who)
    node.kill()
    await asyncio.sleep(fault.length_s)
    server_of(node).restart(functions=system.random.random() < 0.5, data=True)
    system.deployment.start(node)


async def _scripts_are_gone(system: System, fault: Fault) -> None:
    server_of(system.deployment.one(fault.who)).restart(functions=False, data=True)


async def _data_goes_back(system: System, fault: Fault) -> None:
    """A server starts with older data."""
    node = system.deployment.one(fault.who)
    snapshot = server_of(node).snapshot()
    await asyncio.sleep(fault.length_s)
    node.kill()
    system.deployment.set_back(node, snapshot)
    system.data_is_lost()
    await asyncio.sleep(system.random.uniform(0, 0.5))
    system.deployment.start(node)


async def _data_goes_back_unseen(system: System, fault: Fault) -> None:
    """Behind connections that stand, as a proxy in front of the servers keeps them."""
    node = system.deployment.one(fault.who)
    snapshot = server_of(node).snapshot()
    await asyncio.sleep(fault.length_s)
    system.deployment.set_back(node, snapshot)
    system.data_is_lost()


async def _all_data_is_gone(system: System, fault: Fault) -> None:
    node = system.deployment.one(fault.who)
    node.kill()
    server_of(node).restart(data=False)
    system.data_is_lost()
    await asyncio.sleep(fault.length_s)
    system.deployment.start(node)
    await system.load_accounts()


async def _out_of_memory(system: System, fault: Fault) -> None:
    await _trouble(system, "out_of_memory", fault)


async def _no_replicas(system: System, fault: Fault) -> None:
    await _trouble(system, "lacks_replicas", fault)


async def _disk_fails(system: System, fault: Fault) -> None:
    await _trouble(system, "disk_fails", fault)


async def _loading(system: System, fault: Fault) -> None:
    await _trouble(system, "is_loading", fault)


async def _a_script_runs(system: System, fault: Fault) -> None:
    await _trouble(system, "is_busy", fault)


async def _trouble(system: System, name: str, fault: Fault) -> None:
    server = server_of(system.deployment.one(fault.who))
    setattr(server.trouble, name, True)
    await asyncio.sleep(fault.length_s)
    setattr(server.trouble, name, False)


# Several servers


async def _planned_failover(system: System, fault: Fault) -> None:
    """Both run, and for a while both take writes."""
    servers = system.deployment
    assert isinstance(servers, WithReplica)
    old = servers.one(0)
    await _fail_over(system, servers)
    await _until_demoted(system, fault, old)
    servers.demote(tells_clients=system.random.random() < 0.5)


async def _primary_dies(system: System, fault: Fault) -> None:
    servers = system.deployment
    assert isinstance(servers, WithReplica)
    old = servers.one(0)
    old.kill()
    await asyncio.sleep(DOWN_AFTER_S)
    servers.say_down()
    await asyncio.sleep(system.random.uniform(0, 0.5))
    await _fail_over(system, servers)
    await asyncio.sleep(fault.length_s)
    servers.demote(tells_clients=False)
    servers.start(old)


async def _primary_left_alone(system: System, fault: Fault) -> None:
    """It loses its replica and the Sentinels, not its clients."""
    servers = system.deployment
    assert isinstance(servers, WithReplica)
    servers.replication.break_link()
    old = servers.one(0)
    await asyncio.sleep(DOWN_AFTER_S + fault.length_s)
    servers.say_down()
    await _fail_over(system, servers)
    await _until_demoted(system, fault, old)
    servers.demote(tells_clients=system.random.random() < 0.5)


async def _primary_starts_with_older_data(system: System, fault: Fault) -> None:
    """And its replica, which has all of it, takes over when gateways have met the primary, or before."""
    servers = system.deployment
    assert isinstance(servers, WithReplica)
    old = servers.one(0)
    snapshot = server_of(old).snapshot()
    await asyncio.sleep(fault.length_s)
    servers.replication.break_link()
    old.kill()
    server_of(old).restore(snapshot)
    system.data_is_lost()
    await asyncio.sleep(system.random.uniform(0, 0.2))
    old.start()
    await asyncio.sleep(system.random.choice((0.01, 0.1, 1.0)) * system.random.random())
    await _fail_over(system, servers)
    await asyncio.sleep(system.random.uniform(0, 0.5))
    servers.demote(tells_clients=system.random.random() < 0.5)


async def _replica_lags(system: System, fault: Fault) -> None:
    servers = system.deployment
    assert isinstance(servers, WithReplica)
    servers.replication.break_link()
    await asyncio.sleep(fault.length_s)
    servers.replication.mend_link()


async def _fail_over(system: System, servers: WithReplica) -> None:
    if servers.fail_over():
        system.data_is_lost()


async def _until_demoted(system: System, fault: Fault, old: Node) -> None:
    """Once all Sentinels know of the new primary, writes to the old one end within LEFT_AFTER_S."""
    seen_s = TOLD_S_MAX + LEFT_AFTER_S
    if fault.length_s <= seen_s or "rough network" in {each.kind for each in system.schedule.faults}:
        await asyncio.sleep(fault.length_s)
        return
    await asyncio.sleep(seen_s)
    writes = server_of(old).writes
    await asyncio.sleep(fault.length_s - seen_s)
    late = server_of(old).writes - writes
    assert not late, f"{late} writes to a primary that was, more than {LEFT_AFTER_S} s after that could be known"


async def _a_slot_moves(system: System, fault: Fault) -> None:
    servers = system.deployment
    assert isinstance(servers, WithSlots)
    await servers.reshard(fault.who % KEYS.partitions, fault.length_s)


# What is around the ledger


async def _clock_steps(system: System, fault: Fault) -> None:
    system.loop.wall_offset_s += fault.step_s


async def _gateway_killed(system: System, fault: Fault) -> None:
    await system.replace_gateway(fault.who, fault.length_s, killed=True)


async def _gateway_stopped(system: System, fault: Fault) -> None:
    await system.replace_gateway(fault.who, fault.length_s, killed=False)


async def _control_plane_killed(system: System, fault: Fault) -> None:
    await system.replace_control_plane(fault.who % len(system.control_planes), fault.length_s)


async def _openmeter_fails(system: System, fault: Fault) -> None:
    system.openmeter.failing = 0.6
    await asyncio.sleep(3 * fault.length_s)
    system.openmeter.failing = 0.0


async def _lago_fails(system: System, fault: Fault) -> None:
    system.lago.failing = 0.6
    await asyncio.sleep(3 * fault.length_s)
    system.lago.failing = 0.0


async def _money_arrives(system: System, fault: Fault) -> None:
    """Sometimes with a webhook that says so."""
    await system.lago.top_up(1 + fault.who)
    if system.random.random() < 0.5:
        return
    try:
        async with connected(system.deployment.topology, timeout_s=2) as client:
            await ReloadRequests(client, KEYS).add([f"account:{ACCOUNT}"])
    except CLIENT_ERRORS:
        pass  # a sweep finds it


BY_KIND: dict[str, Callable[[System, Fault], Awaitable[None]]] = {
    name[1:].replace("_", " "): function
    for name, function in list(globals().items())
    if name.startswith("_")
    and name not in ("_trouble", "_fail_over", "_until_demoted")
    and asyncio.iscoroutinefunction(function)
}
