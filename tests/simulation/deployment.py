"""The servers of a simulated system: one, a primary with its replica and Sentinels, or a Cluster of two primaries."""

from __future__ import annotations

import asyncio
import random
from typing import Final

from sidecar.ledger.keys import Keys
from sidecar.valkey.topology import SLOTS, Topology
from sidecar.valkey.url import Address, Cluster, Sentinel, Standalone
from tests.simulation.loop import SimulatedLoop
from tests.simulation.network import Network, Node
from tests.simulation.replication import Replication
from tests.simulation.sentinels import PORTS, SERVICE, Configuration, add_sentinels
from tests.simulation.valkey.cluster import SlotTable, slot_of
from tests.simulation.valkey.server import SimulatedValkey, Snapshot

FIRST_PORT: Final = 6379
TOLD_S_MAX: Final = 1.0
"""Within which all Sentinels know of a failover."""


class Deployment:
    """One server. ``topology``: how clients find it."""

    def __init__(self, network: Network, keys: Keys, seed: int, servers: int = 1) -> None:
        self.network = network
        self.loop: SimulatedLoop = network.loop
        self.keys = keys
        self.random = random.Random(seed)
        self.nodes: list[Node] = []
        for index in range(servers):
            address = f"127.0.0.1:{FIRST_PORT + index}"
            server = SimulatedValkey(self.loop.wall_us, seed=seed + index, address=address)
            self.nodes.append(network.add(server, address))

    @property
    def topology(self) -> Topology:
        return Standalone(_address(self.nodes[0]))

    def node_of(self, partition: int) -> Node:
        """The primary of a partition, as it really is."""
        return self.nodes[0]

    def one(self, which: int) -> Node:
        """One of the primaries."""
        return self.nodes[0]

    def stored(self, partition: int, key: str) -> bytes | None:
        """A string of a partition, read past all trouble."""
        server = server_of(self.node_of(partition))
        server.db.now_ms = self.loop.wall_us() // 1000
        return server.db.string(key.encode())

    def start(self, node: Node) -> None:
        """A server that was killed starts again, with what data it has now."""
        node.start()

    def set_back(self, node: Node, snapshot: Snapshot) -> None:
        """A primary has older data from now on."""
        server_of(node).restore(snapshot)


class WithReplica(Deployment):
    """A primary, its replica and three Sentinels."""

    def __init__(self, network: Network, keys: Keys, seed: int) -> None:
        super().__init__(network, keys, seed, servers=2)
        self.replication = Replication(*self.nodes, guard_s=2.0)
        self.sentinels = add_sentinels(network, self.nodes[0].address)
        self._epoch = 0

    @property
    def topology(self) -> Topology:
        return Sentinel(tuple(Address("127.0.0.1", port) for port in PORTS), SERVICE)

    def node_of(self, partition: int) -> Node:
        return self.replication.primary

    def one(self, which: int) -> Node:
        return self.replication.primary

    def start(self, node: Node) -> None:
        super().start(node)
        self.replication.resume()

    def set_back(self, node: Node, snapshot: Snapshot) -> None:
        super().set_back(node, snapshot)
        self.replication.resume()

    def say_down(self) -> None:
        """The Sentinels agree that the primary is down."""
        self._tell(Configuration(self.replication.primary.address, self._epoch, is_down=True))

    def fail_over(self) -> int:
        """The replica becomes the primary; how many writes it does not have. The old primary goes on until it is told
        (:meth:`demote`)."""
        before = self.replication.lost_writes
        self.replication.break_link()
        self.replication.fail_over()
        self._epoch += 1
        self._tell(Configuration(self.replication.primary.address, self._epoch))
        return self.replication.lost_writes - before

    def demote(self, *, tells_clients: bool) -> None:
        """The old primary becomes the replica of the new one. ``tells_clients``: it ends their connections."""
        self.replication.demote()
        if tells_clients:
            self.replication.replica.break_connections()

    def _tell(self, configuration: Configuration) -> None:
        first, *others = self.random.sample(self.sentinels, len(self.sentinels))
        first.learn(configuration)
        for each in others:
            self.loop.call_later(self.random.uniform(0, TOLD_S_MAX), each.learn, configuration)


class WithSlots(Deployment):
    """A Cluster: two primaries, each with half of the slots and, at first, half of the partitions."""

    def __init__(self, network: Network, keys: Keys, seed: int) -> None:
        super().__init__(network, keys, seed, servers=2)
        one, two = (node.address for node in self.nodes)
        owners = [one] * (SLOTS // 2) + [two] * (SLOTS // 2)
        for partition in range(keys.partitions):
            owners[self._slot(partition)] = self.nodes[partition % 2].address
        for node in self.nodes:
            server_of(node).slots = SlotTable(node.address, list(owners), epochs={one: 1, two: 2})
        self._epoch = 2

    @property
    def topology(self) -> Topology:
        return Cluster(tuple(map(_address, self.nodes)))

    def _slot(self, partition: int) -> int:
        return slot_of(self.keys.outbox(partition).encode())

    def node_of(self, partition: int) -> Node:
        slot = self._slot(partition)
        return next(node for node in self.nodes if self._table(node).owners[slot] == node.address)

    def one(self, which: int) -> Node:
        return self.nodes[which % 2]

    def stored(self, partition: int, key: str) -> bytes | None:
        # In a reshard it is on either.
        found = (server_of(node).db.values.get(key.encode()) for node in self.nodes)
        return next((value for value in found if isinstance(value, bytes)), None)

    @staticmethod
    def _table(node: Node) -> SlotTable:
        table = server_of(node).slots
        assert table is not None
        return table

    async def reshard(self, partition: int, length_s: float) -> None:
        """The slot of a partition moves to the other primary, key by key, while it is used (CLUSTER SETSLOT,
        MIGRATE)."""
        slot = self._slot(partition)
        source = self.node_of(partition)
        target = next(node for node in self.nodes if node is not source)
        here, there = self._table(source), self._table(target)
        there.importing[slot], here.migrating[slot] = source.address, target.address
        while keys := [key for key in server_of(source).db.values if slot_of(key) == slot]:
            self.random.shuffle(keys)
            for key in keys:
                await asyncio.sleep(self.random.uniform(0, 2 * length_s / len(keys)))
                _migrate(server_of(source), server_of(target), key)
            length_s = 0.01
        self._epoch += 1
        for table in (here, there):
            table.epochs[target.address] = self._epoch
        there.owners[slot] = target.address
        del there.importing[slot]
        await asyncio.sleep(self.random.uniform(0, 0.1))
        here.owners[slot] = target.address
        del here.migrating[slot]


def _migrate(source: SimulatedValkey, target: SimulatedValkey, key: bytes) -> None:
    value = source.db.values.get(key)
    if value is None:
        return
    expires = source.db.expires.get(key)
    target.db.set(key, value if isinstance(value, bytes) else value.copy())
    if expires is not None:
        target.db.expires[key] = expires
    source.db.remove(key)


def server_of(node: Node) -> SimulatedValkey:
    assert isinstance(node.server, SimulatedValkey)
    return node.server


def _address(node: Node) -> Address:
    host, _, port = node.address.rpartition(":")
    return Address(host, int(port))


KINDS: Final[dict[str, type[Deployment]]] = {"server": Deployment, "sentinel": WithReplica, "cluster": WithSlots}
