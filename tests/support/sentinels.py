"""A primary with a replica, and a Sentinel that fails over from one to the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from sidecar.valkey.url import Address, Sentinel
from tests.support.valkey_process import START_TIMEOUT_S, ValkeyProcess, free_port

SERVICE = "ledger"


@dataclass
class Watched:
    """``servers``: the first is the primary at the start."""

    servers: list[ValkeyProcess]
    sentinels: list[ValkeyProcess]

    @property
    def topology(self) -> Sentinel:
        return Sentinel(tuple(Address("127.0.0.1", each.port) for each in self.sentinels), SERVICE)

    def primary(self) -> int:
        """The port of the primary, as the first Sentinel tells it."""
        with redis.Redis(port=self.sentinels[0].port) as client:
            found: Any = client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", SERVICE)
            return int(found[1])

    def fail_over(self) -> None:
        """Begins a planned failover, as soon as the Sentinel knows the replica well enough."""

        def began() -> bool:
            try:
                return bool(client.execute_command("SENTINEL FAILOVER", SERVICE))
            except redis.ResponseError as error:
                if "NOGOODSLAVE" not in str(error):
                    raise
                return False

        with redis.Redis(port=self.sentinels[0].port) as client:
            wait_until(began)


def info(port: int, section: str) -> dict[str, Any]:
    with redis.Redis(port=port) as client:
        found: dict[str, Any] = client.info(section)
        return found


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "never came to be"
        time.sleep(0.02)


@contextmanager
def replicated(directory: Path, **settings: str) -> Iterator[list[ValkeyProcess]]:
    """A primary and its replica, in that order; ``settings`` are both's, with underscores for hyphens."""
    options = {"repl-diskless-sync-delay": "0"} | {name.replace("_", "-"): value for name, value in settings.items()}
    primary = ValkeyProcess(directory / "primary", options)
    replica = ValkeyProcess(directory / "replica", options)
    try:
        primary.start()
        replica.settings = {**options, "replicaof": f"127.0.0.1 {primary.port}"}
        replica.start()
        wait_until(lambda: info(primary.port, "replication").get("slave0", {}).get("state") == "online")
        yield [primary, replica]
    finally:
        replica.stop()
        primary.stop()


@contextmanager
def watched(directory: Path, sentinels: int = 1) -> Iterator[Watched]:
    """With Sentinels that know of both servers."""
    with replicated(directory) as servers:
        started: list[ValkeyProcess] = []
        try:
            for number in range(sentinels):
                sentinel = ValkeyProcess(directory / f"sentinel-{number}", {}, ("--sentinel",), free_port())
                sentinel.settings = {
                    "sentinel": f"monitor {SERVICE} 127.0.0.1 {servers[0].port} {sentinels // 2 + 1}\n"
                    f"sentinel down-after-milliseconds {SERVICE} 1000"
                }
                started.append(sentinel)
                sentinel.start()
            wait_until(lambda: all(_knows(each.port, sentinels) for each in started))
            yield Watched(servers, started)
        finally:
            for sentinel in started:
                sentinel.stop()


def _knows(port: int, sentinels: int) -> bool:
    master = info(port, "sentinel").get("master0", {})
    return (master.get("slaves"), master.get("sentinels")) == (1, sentinels)
