"""`sidecar check` and the start of a process say it when Valkey would lose what it has confirmed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from structlog.testing import capture_logs

from sidecar.app.configuration import load_config
from sidecar.app.ledger_start import check_ledger
from sidecar.valkey.topology import connected
from tests.integration.cli.test_commands import gateway
from tests.support.processes import sidecar
from tests.support.sentinels import replicated
from tests.support.valkey_process import ValkeyProcess


@pytest.fixture(scope="module")
def primary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyProcess]:
    with replicated(tmp_path_factory.mktemp("pair")) as (server, _):
        yield server


def test_check_warns_of_a_primary_without_a_guard(tmp_path: Path, primary: ValkeyProcess) -> None:
    ended = sidecar("check", "-c", gateway(tmp_path, f"valkey://127.0.0.1:{primary.port}"), "--json")
    found = {each["what"]: each for each in json.loads(ended.stdout)["findings"]}
    assert found["valkey safeguards"]["ok"] is None
    assert "min-replicas-to-write" in found["valkey safeguards"]["detail"]


@pytest.mark.parametrize("guarded", [False, True])
async def test_a_start_warns_once_of_a_primary_without_a_guard(
    tmp_path: Path, primary: ValkeyProcess, guarded: bool
) -> None:
    with redis.Redis(port=primary.port) as admin:
        admin.config_set("min-replicas-max-lag", 2)
        admin.config_set("min-replicas-to-write", int(guarded))
    config = load_config(Path(gateway(tmp_path, f"valkey://127.0.0.1:{primary.port}")), {})
    async with connected(config.valkey) as client:
        with capture_logs() as lines:
            assert await check_ledger(config, client)
    warned = [line["problem"] for line in lines if line["log_level"] == "warning"]
    assert len(warned) == (0 if guarded else 1)
    assert all("min-replicas-to-write 1" in problem for problem in warned)
