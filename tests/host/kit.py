"""Hosts of a test's own: network namespaces with a cable between them, and processes in them."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 30.0
CLIENT, POD = ("10.77.0.1", "fd77::1"), ("10.77.0.2", "fd77::2")


@dataclass(frozen=True)
class Host:
    """A network namespace."""

    name: str

    def run(self, *command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs a command there to its end."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.name, *command],
            capture_output=True, text=True, timeout=TIMEOUT_S, check=False, cwd=ROOT, env={**os.environ, **environment},
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.returncode}: {done.stderr}{done.stdout}"
        return done

    @contextmanager
    def running(self, *arguments: str, **environment: str) -> Iterator[dict[str, Any]]:
        """A Python module there that prints one line of JSON when it is ready, until the block ends."""
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.name, sys.executable, "-m", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env={**os.environ, **environment},
        )  # fmt: skip
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.communicate(timeout=TIMEOUT_S)[1].decode()
            yield json.loads(line)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.communicate(timeout=TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()

    def curl(self, url: str, *options: str) -> tuple[int, dict[str, str], Any]:
        """Status, fields and body of an answer; status 0 if there was none."""
        done = self.run("curl", "-sS", "-g", "-i", "--max-time", "10", *options, url, check=False)
        head, _, body = done.stdout.partition("\n\n")  # text mode has made plain line ends of it
        lines = head.splitlines()
        if not lines or not lines[0].startswith("HTTP/"):
            return 0, {}, done.stderr
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        try:
            return int(lines[0].split()[1]), fields, json.loads(body)
        except ValueError:
            return int(lines[0].split()[1]), fields, body


@contextmanager
def hosts() -> Iterator[tuple[Host, Host]]:
    """A client's host and a pod's, on one cable, with IPv4 and IPv6."""
    tag = secrets.token_hex(3)
    client, pod = Host(f"qs-client-{tag}"), Host(f"qs-pod-{tag}")
    with ExitStack() as stack:
        for host in (client, pod):
            _ip("netns", "add", host.name)
            stack.callback(_ip, "netns", "delete", host.name)
        _ip("link", "add", "eth0", "netns", client.name, "type", "veth", "peer", "name", "eth0", "netns", pod.name)
        for host, addresses in ((client, CLIENT), (pod, POD)):
            host.run("ip", "link", "set", "lo", "up")
            host.run("ip", "address", "add", f"{addresses[0]}/24", "dev", "eth0")
            host.run("ip", "address", "add", f"{addresses[1]}/64", "dev", "eth0", "nodad")
            host.run("ip", "link", "set", "eth0", "up")
        yield client, pod


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=TIMEOUT_S)
