"""`sidecar ledger migrate`: what it prints, and how it fails."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from tests.integration.ledger_migration.first_ledger import FirstLedger
from tests.integration.ledger_migration.test_migration import build
from tests.support.processes import sidecar


@pytest.fixture
def url(valkey: redis.Redis) -> str:
    options = valkey.get_connection_kwargs()
    return f"valkey://{options['host']}:{options['port']}"


def test_a_ledger_is_migrated_with_a_table_and_progress(url: str, valkey: redis.Redis) -> None:
    build(valkey)
    refused = sidecar("account", "list", "--valkey", url)
    assert refused.stderr.endswith("then run: sidecar ledger migrate\n")

    ended = sidecar("ledger", "migrate", "--valkey", url, "--force")

    assert ended.returncode == 0, ended.stderr
    words = " ".join(re.sub("[│┃]", " ", ended.stdout).split())
    for text in (
        "what release 0.2 now equal", "accounts 46 46 yes", "API keys 41 41 yes", "closed records 1 1 yes",
        "unsettled cost, GBP 3.41 3.41 yes", "entries of sent 100 100 yes",
        "150 units of api_calls were held by gateways that have stopped: given back", "the ledger is migrated",
    ):  # fmt: skip
        assert text in words
    assert " NO " not in words
    assert "1 idempotency keys could not be taken along" in ended.stderr
    assert "accounts copied: 47" in ended.stderr
    assert "accounts compared: 47" in ended.stderr
    assert sidecar("account", "list", "--valkey", url).stdout.endswith("46 accounts\n")

    again = sidecar("ledger", "migrate", "--valkey", url)
    assert (again.returncode, again.stdout) == (
        0, "the ledger has the format of this release already: nothing to do\n"
    )  # fmt: skip


def test_a_difference_ends_with_1_and_says_what(url: str, valkey: redis.Redis, tmp_path: Path) -> None:
    ledger = build(valkey, 4)
    valkey.hset(ledger.account_key("poor"), "policy", b"\x93\x01\x02\x03")
    config = tmp_path / "gateway.yaml"
    config.write_text(
        json.dumps({"upstream": {"url": "http://127.0.0.1:9"}, "valkey": url, "ledger": {"partitions": 2}})
    )
    arguments = "ledger", "migrate", "-c", str(config), "--from-partitions", "4", "--force"

    ended = sidecar(*arguments)

    assert ended.returncode == 1
    assert "error: account 'poor' cannot be read: a policy of 3" in ended.stderr
    assert "the ledger was not migrated, and is as it was" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert json.loads(sidecar(*arguments, "--json").stdout)["differences"]


def test_mistakes_have_messages(url: str, valkey: redis.Redis) -> None:
    nothing = sidecar("ledger", "migrate", "--valkey", url)
    assert (nothing.returncode, "there is no ledger of format 1" in nothing.stderr) == (1, True)
    FirstLedger(valkey).register("gw-living", 5)
    living = sidecar("ledger", "migrate", "--valkey", url)
    assert (living.returncode, "gateways of release 0.2 are running: gw-living" in living.stderr) == (1, True)
    misused = sidecar("ledger", "migrate", "--valkey", url, "--from-partitions", "0")
    assert misused.returncode == 2
    assert not any("Traceback" in each.stderr for each in (nothing, living, misused))


def test_ctrl_c_leaves_a_migration_that_goes_on(url: str, valkey: redis.Redis) -> None:
    build(valkey)
    arguments = [sys.executable, "-m", "sidecar", "ledger", "migrate", "--valkey", url, "--force"]
    valkey.client_pause(60_000, all=False)  # what it writes waits until the interruption
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(3)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        valkey.client_unpause()
        process.kill()
    assert process.returncode == 130
    assert b"interrupted: the old ledger can still be used, or run the command again to go on" in errors
    assert b"Traceback" not in errors
    assert sidecar("ledger", "migrate", "--valkey", url, "--force").returncode == 0
