"""Valkey as it is run: one server, a primary with replicas and Sentinels, a Cluster with a replica for each primary."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.sentinels import SERVICE, info, wait_until
from tests.support.valkey_process import ValkeyProcess, free_port

Kind = Literal["single", "sentinel", "cluster"]
SLOTS = 16_384
GUARD = {"min-replicas-to-write": "1", "min-replicas-max-lag": "2", "repl-diskless-sync-delay": "0"}
"""As the shipped manifests have it."""


@dataclass
class Servers:
    """``servers``: data nodes; the first ones are the primaries at the start."""

    kind: Kind
    servers: list[ValkeyProcess]
    sentinels: list[ValkeyProcess] = field(default_factory=list)

    @property
    def url(self) -> str:
        """For ``valkey`` in a configuration."""
        match self.kind:
            case "single":
                return f"valkey://127.0.0.1:{self.servers[0].port}"
            case "sentinel":
                places = ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels)
                return f"valkey+sentinel://{places}/{SERVICE}"
            case "cluster":
                return "valkey+cluster://" + ",".join(f"127.0.0.1:{each.port}" for each in self.servers)

    def running(self) -> list[ValkeyProcess]:
        return [each for each in self.servers if each.process is not None and each.process.poll() is None]

    def primaries(self) -> list[ValkeyProcess]:
        """Those that say so."""
        return [each for each in self.running() if role(each) == "master"]

    def replicas(self) -> list[ValkeyProcess]:
        return [each for each in self.running() if role(each) == "slave"]

    def primary(self) -> ValkeyProcess:
        """The one that clients use."""
        if self.kind != "sentinel":
            return self.primaries()[0]
        with client_of(self.sentinels[0]) as sentinel:
            found: Any = sentinel.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", SERVICE)
            return next(each for each in self.servers if each.port == int(found[1]))

    def is_whole(self) -> bool:
        """Every server runs, follows whom it should, and takes writes."""
        if len(self.running()) < len(self.servers):
            return False
        try:
            match self.kind:
                case "single":
                    return role(self.servers[0]) == "master"
                case "sentinel":
                    primary = self.primary()
                    return role(primary) == "master" and connected_replicas(primary) == len(self.servers) - 1
                case "cluster":
                    primaries = self.primaries()
                    return len(primaries) == 3 and all(
                        connected_replicas(each) == 1 and "cluster_state:ok" in cluster_info(each) for each in primaries
                    )
        except (redis.RedisError, OSError, StopIteration):
            return False


def client_of(server: ValkeyProcess) -> redis.Redis:
    return redis.Redis(port=server.port, socket_timeout=5, retry=Retry(NoBackoff(), 0))


def role(server: ValkeyProcess) -> str:
    try:
        with client_of(server) as client:
            found: Any = client.execute_command("ROLE")
            return str(found[0].decode())
    except (redis.RedisError, OSError):
        return "away"


def connected_replicas(server: ValkeyProcess) -> int:
    replication = info(server.port, "replication")
    return sum(
        1 for name, each in replication.items()
        if name.startswith("slave") and isinstance(each, dict) and each.get("state") == "online" and each["lag"] < 2
    )  # fmt: skip


def cluster_info(server: ValkeyProcess) -> str:
    with client_of(server) as client:
        connection = client.connection_pool.get_connection()
        try:
            connection.send_command("CLUSTER", "INFO")
            answer = connection.read_response()
            assert isinstance(answer, bytes)
            return answer.decode()
        finally:
            client.connection_pool.release(connection)


@contextmanager
def started(kind: Kind, directory: Path) -> Iterator[Servers]:
    """The servers, whole."""
    servers = Servers(kind, [])
    try:
        match kind:
            case "single":
                _start(servers, directory, 1, {"appendonly": "yes", "appendfsync": "everysec"})
            case "sentinel":
                _start_replicated(servers, directory)
            case "cluster":
                _start_cluster(servers, directory)
        wait_until(servers.is_whole)
        yield servers
    finally:
        for each in [*servers.sentinels, *servers.servers]:
            if each.process is not None:
                with suppress(ProcessLookupError):
                    each.process.send_signal(signal.SIGCONT)
                each.kill()


def _start(servers: Servers, directory: Path, count: int, settings: dict[str, str]) -> None:
    for number in range(count):
        server = ValkeyProcess(directory / f"node-{number}", dict(settings))
        servers.servers.append(server)
        server.start()


def _start_replicated(servers: Servers, directory: Path) -> None:
    settings = {"appendonly": "yes", "enable-debug-command": "yes", **GUARD}
    _start(servers, directory, 3, settings)
    primary = servers.servers[0]
    for replica in servers.servers[1:]:
        with client_of(replica) as client:
            client.execute_command("REPLICAOF", "127.0.0.1", primary.port)
    wait_until(lambda: connected_replicas(primary) == 2)
    for number in range(3):
        sentinel = ValkeyProcess(directory / f"sentinel-{number}", {}, ("--sentinel",), free_port())
        sentinel.settings = {
            "sentinel": f"monitor {SERVICE} 127.0.0.1 {primary.port} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} 1000\nsentinel failover-timeout {SERVICE} 4000"
        }
        servers.sentinels.append(sentinel)
        sentinel.start()

    def knows(sentinel: ValkeyProcess) -> bool:
        master = info(sentinel.port, "sentinel").get("master0", {})
        return (master.get("slaves"), master.get("sentinels")) == (2, 3)

    wait_until(lambda: all(knows(each) for each in servers.sentinels))


def _start_cluster(servers: Servers, directory: Path) -> None:
    settings = {
        "cluster-enabled": "yes", "cluster-node-timeout": "1000", "cluster-allow-replica-migration": "no",
        "cluster-require-full-coverage": "no", "cluster-replica-validity-factor": "0", "appendonly": "yes", **GUARD,
    }  # fmt: skip
    _start(servers, directory, 6, settings)
    for number, node in enumerate(servers.servers):
        with client_of(node) as client:
            if number < 3:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", SLOTS * number // 3, SLOTS * (number + 1) // 3 - 1)
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", servers.servers[0].port)
    wait_until(lambda: all("cluster_known_nodes:6" in cluster_info(each) for each in servers.servers))
    for number in range(3):
        with client_of(servers.servers[number]) as primary, client_of(servers.servers[3 + number]) as replica:
            node_id = primary.execute_command("CLUSTER", "MYID").decode()

            def follows(replica: redis.Redis = replica, node_id: str = node_id) -> bool:
                try:
                    replica.execute_command("CLUSTER", "REPLICATE", node_id)
                except redis.ResponseError:
                    return False  # it does not know that node yet
                return True

            wait_until(follows)
