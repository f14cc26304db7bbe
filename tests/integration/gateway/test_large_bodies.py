"""The gateway as a process: a gigabyte either way, in little memory, and an end in order."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis
from redis.asyncio import Redis

from sidecar.ledger.accounts.account_spec import AccountSpec
from sidecar.ledger.accounts.loader import AccountLoader
from sidecar.ledger.keys import Keys
from tests.integration.gateway.rig import account

GIGABYTE = 1 << 30
BLOCK = bytes(1 << 20)
GROWTH_BYTES_MAX = 64 << 20
START_S_MAX = 30.0
KEY = {"X-API-Key": "this-is-the-key-of-tpp"}


@dataclass(frozen=True)
class Gateway:
    port: int
    process: subprocess.Popen[bytes]

    def connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def memory_bytes(self, which: str) -> int:
        """``VmRSS`` now, or ``VmHWM`` at its highest."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(which + ":"):
                return int(line.split()[1]) * 1024
        raise AssertionError(which)


@pytest.fixture
def api_port(tmp_path: Path) -> Iterator[int]:
    port_file = tmp_path / "port"
    process = subprocess.Popen([sys.executable, "-m", "tests.integration.gateway.endless_api", str(port_file)])
    try:
        end = time.monotonic() + START_S_MAX
        while not port_file.exists():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
        yield int(port_file.read_text())
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def gateway_process(valkey: redis.Redis, api_port: int, tmp_path: Path) -> Iterator[Gateway]:
    where = valkey.connection_pool.connection_kwargs
    config = {
        "listen": {"host": "127.0.0.1", "port": 0},
        "admin": {"host": "127.0.0.1", "port": 0},
        "upstream": {"url": f"http://127.0.0.1:{api_port}"},
        "valkey": f"valkey://{where['host']}:{where['port']}",
        "identity": [{"type": "api_key"}],
        "default_route": {"metric": "api_calls"},
        "limits": {"body_bytes_max": None},
        "log": {"level": "error", "access": "off"},
    }
    path = tmp_path / "gateway.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    command = [sys.executable, "-m", "sidecar", "run", "-c", str(path), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        ready = orjson.loads(process.stdout.readline())
        yield Gateway(int(ready["proxy"].rpartition(":")[2]), process)
    finally:
        process.kill()
        process.wait()


async def load_and_show(valkey: redis.Redis, spec: AccountSpec | None) -> set[tuple[str, int, int]]:
    """Loads the account if it is given; answers (metric, settled, held) of what was used."""
    where = valkey.connection_pool.connection_kwargs
    async with Redis(host=where["host"], port=where["port"]) as client:
        loader = AccountLoader(client, Keys())
        if spec is not None:
            await loader.load(spec)
        shown = await loader.show("tpp")
    assert shown is not None
    return {(m.metric, m.settled, m.held) for m in shown.metrics if m.settled or m.held}


def download(connection: http.client.HTTPConnection, path: str) -> int:
    connection.request("GET", path, headers=KEY)
    response = connection.getresponse()
    assert response.status == 200
    total, buffer = 0, bytearray(1 << 20)
    while count := response.readinto(buffer):
        total += count
    return total


def upload(connection: http.client.HTTPConnection, count: int, *, chunked: bool) -> int:
    blocks = (BLOCK for _ in range(count // len(BLOCK)))
    headers = KEY if chunked else {**KEY, "Content-Length": str(count)}
    connection.request("POST", "/", body=blocks, headers=headers, encode_chunked=chunked)
    response = connection.getresponse()
    assert response.status == 200
    return int(response.read())


def test_a_gigabyte_passes_either_way_in_little_memory_and_the_process_ends_in_order(
    valkey: redis.Redis, gateway_process: Gateway
) -> None:
    asyncio.run(load_and_show(valkey, account("tpp", "prepaid", funds=Decimal(10))))
    connection = gateway_process.connect()
    assert download(connection, "/1000000") == 1_000_000  # what the first request takes for good is no growth
    before = gateway_process.memory_bytes("VmRSS")
    assert download(connection, f"/{GIGABYTE}") == GIGABYTE
    assert download(connection, f"/chunked/{GIGABYTE // 4}") == GIGABYTE // 4
    assert upload(connection, GIGABYTE, chunked=False) == GIGABYTE
    assert upload(connection, GIGABYTE // 4, chunked=True) == GIGABYTE // 4
    assert gateway_process.memory_bytes("VmHWM") - before < GROWTH_BYTES_MAX

    gateway_process.process.send_signal(signal.SIGTERM)
    assert gateway_process.process.wait(timeout=20) == 0
    entries: list[Any] = []
    for partition in range(Keys().partitions):
        entries += valkey.xrange(Keys().outbox(partition)) or []
    events = [event for _, fields in entries for event in orjson.loads(fields[b"e"])]
    assert [event[5] for event in events] == [200] * 5
    assert asyncio.run(load_and_show(valkey, None)) == {("api_calls", 5, 0)}
