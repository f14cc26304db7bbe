"""`sidecar ledger export` and `import`: what they print, and how they fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from redis.asyncio import Redis

from tests.integration.ledger_client.kit import load
from tests.support.processes import sidecar


@pytest.fixture
def url(valkey: redis.Redis) -> str:
    options = valkey.get_connection_kwargs()
    return f"valkey://{options['host']}:{options['port']}"


@pytest.fixture
async def accounts(valkey: redis.Redis) -> None:
    """Thirty of them."""
    client = Redis(port=valkey.get_connection_kwargs()["port"], protocol=2)
    await load(client, {f"tpp-{number}": 10 for number in range(30)})
    await client.aclose()


def gateway(tmp_path: Path, url: str, **ledger: object) -> str:
    path = tmp_path / "gateway.yaml"
    path.write_text(json.dumps({"upstream": {"url": "http://127.0.0.1:9"}, "valkey": url, "ledger": ledger}))
    return str(path)


@pytest.mark.usefixtures("accounts")
def test_a_ledger_goes_through_a_file_into_another_number_of_partitions(
    url: str, valkey: redis.Redis, tmp_path: Path
) -> None:
    file = tmp_path / "ledger.jsonl"

    ended = sidecar("ledger", "export", str(file), "--valkey", url)

    assert ended.returncode == 0, ended.stderr
    assert "the ledger is exported" in ended.stdout
    assert "accounts exported: 30" in ended.stderr
    assert file.stat().st_mode & 0o077 == 0
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.jsonl"]
    again = sidecar("ledger", "export", str(file), "--valkey", url)
    assert (again.returncode, "is there already" in again.stderr) == (2, True)

    config = gateway(tmp_path, url, partitions=5)
    other = sidecar("account", "list", "-c", config)
    assert "has 64 partitions, ledger.partitions says 5" in other.stderr
    refused = sidecar("ledger", "import", str(file), "-c", config)
    assert (refused.returncode, "--replace removes it" in refused.stderr) == (1, True)
    ended = sidecar("ledger", "import", str(file), "-c", config, "--replace")
    assert ended.returncode == 0, ended.stderr
    assert "the ledger is imported: 64 partitions became 5" in ended.stdout
    assert "lines imported: " in ended.stderr
    assert sidecar("account", "list", "-c", config).stdout.endswith("30 accounts\n")
    assert sidecar("ledger", "verify", "-c", config).returncode == 0
    again = sidecar("ledger", "import", str(file), "-c", config)
    assert (again.returncode, again.stdout) == (0, "the file was imported before: nothing to do\n")
    assert json.loads(sidecar("ledger", "import", str(file), "-c", config, "--json").stdout)["already"] is True


@pytest.mark.usefixtures("accounts")
def test_a_ledger_goes_through_a_pipe(url: str, tmp_path: Path) -> None:
    config = gateway(tmp_path, url, prefix="other", partitions=3)
    command = (
        f"{sys.executable} -m sidecar ledger export - --valkey {url} | "
        f"{sys.executable} -m sidecar ledger import - -c {config}"
    )
    ended = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert sidecar("account", "list", "-c", config).stdout.endswith("30 accounts\n")


def test_mistakes_have_messages(url: str, tmp_path: Path) -> None:
    nothing = sidecar("ledger", "export", str(tmp_path / "file"), "--valkey", url)
    assert (nothing.returncode, "there is no ledger" in nothing.stderr) == (1, True)
    assert not (tmp_path / "file").exists()
    missing = sidecar("ledger", "import", str(tmp_path / "file"), "--valkey", url)
    assert (missing.returncode, "file" in missing.stderr) == (1, True)
    (tmp_path / "wrong").write_text("{}\n")
    wrong = sidecar("ledger", "import", str(tmp_path / "wrong"), "--valkey", url)
    assert (wrong.returncode, "no exported ledger" in wrong.stderr) == (1, True)
    both = sidecar("ledger", "export", "-", "--json", "--valkey", url)
    assert both.returncode == 2
    assert not any("Traceback" in each.stderr for each in (nothing, missing, wrong, both))


@pytest.mark.usefixtures("accounts")
def test_ctrl_c_leaves_an_import_that_goes_on(url: str, valkey: redis.Redis, tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"
    assert sidecar("ledger", "export", str(file), "--valkey", url).returncode == 0
    config = gateway(tmp_path, url, prefix="other")
    arguments = [sys.executable, "-m", "sidecar", "ledger", "import", str(file), "-c", config]
    # What it writes waits until the interruption.
    valkey.client_pause(60_000, all=False)
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ})
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(3)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        valkey.client_unpause()
        process.kill()
    assert process.returncode == 130
    assert b"interrupted: run the command again with the same file to go on" in errors
    assert b"Traceback" not in errors
    assert sidecar("ledger", "import", str(file), "-c", config).returncode == 0
    assert sidecar("account", "list", "-c", config).stdout.endswith("30 accounts\n")
