"""A process whose standard error nobody reads goes on, and a flood of refusals is no flood of lines."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis

REQUESTS = 3_000
PATH = "/" + "a" * 500


@contextmanager
def running(valkey: redis.Redis, tmp_path: Path, log: dict[str, Any], stderr: int) -> Iterator[dict[str, str]]:
    where = valkey.connection_pool.connection_kwargs
    config = {
        "listen": {"host": "127.0.0.1", "port": 0},
        "admin": {"host": "127.0.0.1", "port": 0},
        "health": {"host": "127.0.0.1", "port": 0},
        "upstream": {"url": "http://127.0.0.1:9"},
        "valkey": f"valkey://{where['host']}:{where['port']}",
        "identity": [{"type": "api_key"}],
        "log": log,
    }
    path = tmp_path / "gateway.yaml"
    path.write_text(json.dumps(config))
    command = [sys.executable, "-m", "sidecar", "run", "-c", str(path), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr)
    try:
        assert process.stdout is not None
        yield orjson.loads(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def get(url: str, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def refuse(url: str, count: int) -> None:
    """So many requests without a credential, each over one connection."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    for _ in range(count):
        connection.request("GET", PATH)
        answer = connection.getresponse()
        assert (answer.status, bool(answer.read())) == (401, True)
    connection.close()


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_process_goes_on_while_nobody_reads_its_lines(valkey: redis.Redis, tmp_path: Path, style: str) -> None:
    reading, writing = os.pipe()
    try:
        with running(valkey, tmp_path, {"lines_max": 0, "format": style}, writing) as urls:
            refuse(urls["proxy"], REQUESTS)
            assert get(urls["health"], "/livez")[0] == 200
            assert re.search(
                rb'open_banking_requests_total{.*status="401".*} 3000.0', get(urls["admin"], "/metrics")[1]
            )
    finally:
        os.close(writing)
        os.close(reading)


def test_a_flood_of_refusals_is_a_few_lines_and_a_number(valkey: redis.Redis, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    found: list[bytes] = []

    def read() -> None:
        while part := os.read(reading, 65_536):
            found.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    with running(valkey, tmp_path, {}, writing) as urls:
        refuse(urls["proxy"], REQUESTS)
        metrics = get(urls["admin"], "/metrics")[1].decode()
    os.close(writing)
    reader.join()
    os.close(reading)

    lines = [orjson.loads(line) for line in b"".join(found).splitlines()]
    logged = [line for line in lines if line["event"] == "request"]
    left_out = [line for line in lines if line["event"] == "requests not logged"]
    assert 10 <= len(logged) <= 30, "ten in each ten seconds"
    assert len(logged) + sum(line["count"] for line in left_out) == REQUESTS
    assert {(line["status"], line["reason"], line["clients"]) for line in left_out} == {(401, logged[0]["reason"], 1)}
    assert f"sidecar_log_unlogged_requests_total {REQUESTS - len(logged)}.0" in metrics
    assert "sidecar_log_dropped_lines_total 0.0" in metrics
