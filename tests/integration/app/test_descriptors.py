"""A process with few file descriptors: clients that only connect must not take them from all else."""

from __future__ import annotations

import http.server
import json
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.integration.gateway.certificates import Authority
from tests.support.processes import Running, running, sidecar

DESCRIPTORS = 256


@pytest.fixture
def url(valkey: redis.Redis) -> str:
    options = valkey.get_connection_kwargs()
    return f"valkey://{options['host']}:{options['port']}"


@pytest.fixture
def api() -> Iterator[str]:
    class Answers(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def configuration(directory: Path, **sections: Any) -> str:
    document = {
        "listen": {"host": "127.0.0.1", "port": 0},
        "admin": {"port": 0},
        "routes": [{"path": "/free", "free": True}, {"path": "/charged"}],
        "ledger": {"heartbeat_ms": 200, "instance_ttl_ms": 2000},
        **sections,
    }
    path = directory / "gateway.yaml"
    path.write_text(json.dumps(document))
    return str(path)


def status(url: str, tls: ssl.SSLContext | None = None) -> int:
    if tls is not None:
        tls.check_hostname = False
    with urllib.request.urlopen(url, timeout=10, context=tls) as answer:
        assert isinstance(answer.status, int)
        return answer.status


def metric(gateway: Running, name: str) -> float:
    with urllib.request.urlopen(f"{gateway.ready['admin']}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line.rpartition(" ")[2] for line in lines if line.startswith(f"{name} ")))


@pytest.mark.parametrize("tls", [False, True])
def test_idle_connections_leave_api_admin_side_and_heartbeat_alone(
    tmp_path: Path, url: str, api: str, tls: bool
) -> None:
    listen: dict[str, Any] = {"host": "127.0.0.1", "port": 0}
    authority = Authority.create(tmp_path)
    if tls:
        pair = str(authority.issue("localhost"))
        listen["tls"] = {"certificate_file": pair, "key_file": pair}
    config = configuration(tmp_path, listen=listen, valkey=url, upstream={"url": api})
    with running("run", "-c", config, "--json", descriptors=DESCRIPTORS) as gateway, ExitStack() as stack:
        port = int(gateway.ready["proxy"].rpartition(":")[2])
        most = metric(gateway, "sidecar_connections_max")
        assert 64 <= most <= DESCRIPTORS - 64 - 64
        for _ in range(400):
            sock = socket.socket()
            stack.callback(sock.close)
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
        for _ in range(5):
            assert status(f"{gateway.ready['proxy']}/free", authority.client() if tls else None) == 200
            assert status(f"{gateway.ready['admin']}/readyz") == 200
            assert metric(gateway, "sidecar_connections") <= most
            assert metric(gateway, "sidecar_ledger_up") == 1
            assert metric(gateway, "sidecar_ledger_registrations_total") == 1
            time.sleep(0.2)
        assert metric(gateway, "process_open_fds") < DESCRIPTORS - 16
    errors = b"".join(gateway.errors)
    assert b"too few file descriptors" in errors
    assert b"Too many open files" not in errors


def test_check_warns_if_there_are_fewer_descriptors_than_connections(tmp_path: Path, url: str) -> None:
    config = configuration(
        tmp_path, valkey=url, upstream={"url": "http://127.0.0.1:9"}, limits={"connections_max": 1_000_000}
    )
    findings = json.loads(sidecar("check", "-c", config, "--json").stdout)["findings"]
    (found,) = [each for each in findings if each["what"] == "file descriptors"]
    assert found["ok"] is None
    assert "limits.connections_max is" in found["detail"]
    assert "instead of 1000000" in found["detail"]
