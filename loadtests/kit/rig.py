"""Upstream, Valkey and the gateway, started for a measurement. Everything is on loopback and ends with the block."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson
import redis

from loadtests.kit.processes import RigError, running
from sidecar.ledger.accounts.state_values import unpack_state
from sidecar.ledger.keys import Keys
from sidecar.valkey.embedded import EmbeddedValkey
from sidecar.valkey.url import Embedded

CHARGED, FREE = "/open-banking/v3.1/aisp/accounts", "/free"
ACCOUNT = "tpp-bench"
KEY = "bench-key-0123456789abcdef"
PRICES = {"api_calls": {"model": "graduated", "tiers": [{"up_to": 100, "unit": "0"}, {"unit": "0.001"}]}}
"""As in the platform's plan: calls included, then a price per call."""


@dataclass(frozen=True, slots=True)
class ValkeyServer:
    socket: Path
    pid: int
    url: str
    client: redis.Redis


@dataclass(frozen=True, slots=True)
class GatewayProcess:
    port: int
    admin: str
    pid: int
    config: Path

    def scrape(self) -> int:
        """Reads the metrics once, as Prometheus would; how many bytes they are."""
        with urllib.request.urlopen(self.admin + "/metrics", timeout=10) as answer:
            return len(answer.read())


@contextmanager
def upstream() -> Iterator[int]:
    """The API: a process that answers as cheaply as can be. Its port."""
    with running([sys.executable, "-m", "loadtests.kit.upstream"]) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())


@contextmanager
def valkey(directory: Path) -> Iterator[ValkeyServer]:
    """The embedded Valkey with its usual durability (append-only file, fsync every second), the same for all."""
    topology = Embedded(directory)
    server = EmbeddedValkey(topology)
    # One loop for both: the server's watch is a task in it, which runs only while it does.
    with asyncio.Runner() as runner:
        runner.run(server.start())
        try:
            with redis.Redis(unix_socket_path=str(topology.socket)) as client:
                pid = int(client.info("server")["process_id"])
                yield ValkeyServer(Path(topology.socket), pid, f"embedded://{directory}", client)
        finally:
            runner.run(server.stop())


def accounts_file(path: Path, accounts: list[dict[str, Any]] | None = None) -> Path:
    """Writes an accounts file: one prepaid account with plenty of credit, unless others are given."""
    usual = {
        "id": ACCOUNT, "mode": "prepaid", "currency": "GBP", "funds": "1000000000", "prices": PRICES,
        "period": {"every": "month"}, "api_keys": [{"key": KEY}],
    }  # fmt: skip
    path.write_bytes(orjson.dumps({"accounts": accounts or [usual]}))
    return path


def gateway_config(path: Path, upstream_port: int, valkey_url: str, **sections: object) -> Path:
    """Writes a configuration in which everything is on but the access log, which the peers have off as well, and the
    limit on free routes: all load comes from one address."""
    config: dict[str, object] = {
        "listen": {"host": "127.0.0.1", "port": 0},
        "upstream": {"url": f"http://127.0.0.1:{upstream_port}"},
        "valkey": valkey_url,
        "routes": [{"path": FREE, "free": True}, {"path": CHARGED}, {"path": "/bytes/{Count}"}],
        "admin": {"port": 0},
        "log": {"level": "warning", "access": "off"},
    }
    config |= sections
    limits = config.get("limits")
    config["limits"] = {"free_per_second": 0, **(limits if isinstance(limits, dict) else {})}
    path.write_bytes(orjson.dumps(config))
    return path


def load_accounts(config: Path, accounts: Path) -> None:
    command = [sys.executable, "-m", "sidecar", "account", "load", str(accounts), "-c", str(config)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RigError(f"accounts were not loaded: {done.stderr.strip()}")


@contextmanager
def gateway(config: Path, *, python: tuple[str, ...] = ()) -> Iterator[GatewayProcess]:
    """``sidecar run``, ready."""
    with running([sys.executable, *python, "-m", "sidecar", "run", "-c", str(config), "--json"]) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RigError("the gateway did not start")
        ready = json.loads(line)
        yield GatewayProcess(int(ready["proxy"].rpartition(":")[2]), ready["admin"], process.pid, config)


def settled(client: redis.Redis, account: str = ACCOUNT, metric: str = "api_calls") -> int:
    """``N``: units that the ledger has charged the account in this period."""
    return _settled(client.get(Keys().state(account)), metric)


def settled_by_all(client: redis.Redis, accounts: Sequence[str], metric: str = "api_calls") -> int:
    """The same over many accounts."""
    keys, total = Keys(), 0
    for at in range(0, len(accounts), 5000):
        pipeline = client.pipeline(transaction=False)
        for account in accounts[at : at + 5000]:
            pipeline.get(keys.state(account))
        total += sum(_settled(packed, metric) for packed in pipeline.execute())
    return total


def _settled(packed: Any, metric: str) -> int:
    if packed is None:
        return 0
    return sum(units for _, name, *_, units, _, _ in unpack_state(packed).counters if name == metric)


def streams(client: redis.Redis) -> list[bytes]:
    return list(client.scan_iter(match="*outbox", count=1000, _type="stream"))


def count_events(client: redis.Redis) -> int:
    """How many usage events the outbox has."""
    total = 0
    for stream in streams(client):
        last: bytes = b"-"
        while entries := cast(list[Any], client.xrange(stream, min=last, count=2000)):
            for _, fields in entries:
                total += len(orjson.loads(fields[b"e"]))
            last = b"(" + entries[-1][0]
    return total


def forget_events(client: redis.Redis) -> None:
    """Empties the outbox, so that no run pays for what another left behind."""
    with contextlib.suppress(redis.ResponseError):
        for stream in streams(client):
            client.xtrim(stream, maxlen=0, approximate=False)
