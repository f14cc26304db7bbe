"""A Valkey Cluster of three primaries."""

from __future__ import annotations

import gc
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from sidecar.valkey.url import Address, Cluster
from tests.support.sentinels import wait_until
from tests.support.valkey_process import ValkeyProcess

SLOTS = 16_384


@contextmanager
def cluster_of_three(directory: Path, **settings: str) -> Iterator[list[ValkeyProcess]]:
    """Node n has the n-th third of the slots; ``settings`` with underscores for hyphens."""
    options = {
        "cluster-enabled": "yes", "cluster-node-timeout": "1000", "cluster-allow-replica-migration": "no",
        **{name.replace("_", "-"): value for name, value in settings.items()},
    }  # fmt: skip
    nodes = [ValkeyProcess(directory / f"node-{n}", options) for n in range(3)]
    clients: list[redis.Redis] = []
    try:
        for node in nodes:
            node.start()
        clients = [redis.Redis(port=node.port) for node in nodes]
        for n, client in enumerate(clients):
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", SLOTS * n // 3, SLOTS * (n + 1) // 3 - 1)
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
        wait_until(lambda: all(_is_whole(client) for client in clients))
        yield nodes
    finally:
        for client in clients:
            client.close()
        for node in nodes:
            node.stop()
        gc.collect()  # redis-py's nodes that a hanging server left behind complain to whichever loop runs then


class Absence:
    """A node that is killed and comes back. Its ports stay taken meanwhile: another test could be given them."""

    def __init__(self, nodes: list[ValkeyProcess], away: int) -> None:
        self._nodes = nodes
        self._node = nodes[away]
        self._other = nodes[away - 1]
        self._places: list[socket.socket] = []

    def begin(self) -> None:
        """Returns when the others have noticed."""
        self._node.kill()
        for port in (self._node.port, self._node.port + 10_000):
            place = socket.socket()
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            place.bind(("127.0.0.1", port))
            self._places.append(place)
        with redis.Redis(port=self._other.port) as other:
            wait_until(lambda: "cluster_slots_fail:0" not in cluster_info(other))

    def end(self) -> None:
        """Returns when all nodes know all slots to be served."""
        if self._node.process is not None:
            return
        for place in self._places:
            place.close()
        self._places.clear()
        self._node.start()
        for node in self._nodes:
            with redis.Redis(port=node.port) as client:
                wait_until(lambda client=client: "cluster_slots_ok:16384" in cluster_info(client))


def _is_whole(client: redis.Redis) -> bool:
    info = cluster_info(client)
    return "cluster_state:ok" in info and "cluster_known_nodes:3" in info


def cluster_info(client: redis.Redis) -> str:
    """CLUSTER INFO as the server sent it: redis-py would read it, each version its own way."""
    connection = client.connection_pool.get_connection()
    try:
        connection.send_command("CLUSTER", "INFO")
        answer = connection.read_response()
        assert isinstance(answer, bytes)
        return answer.decode()
    finally:
        client.connection_pool.release(connection)


def topology_of(nodes: list[ValkeyProcess]) -> Cluster:
    return Cluster(tuple(Address("127.0.0.1", node.port) for node in nodes))
