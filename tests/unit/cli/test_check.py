"""What `sidecar check` says of a server, from what the server says of itself."""

from __future__ import annotations

from typing import Any, cast

import pytest

from sidecar.cli.checks.ledger import server_settings
from sidecar.valkey.topology import Client


class Says:
    """A server's INFO. Servers as old as these cannot be had here."""

    def __init__(self, **info: Any) -> None:
        self._info = info

    async def info(self) -> dict[str, Any]:
        return self._info


async def findings(**info: Any) -> dict[str, bool | None]:
    said = {"redis_version": "7.2.4", "maxmemory_policy": "noeviction", "aof_enabled": 1, **info}
    return {finding.what: finding.ok for finding in await server_settings(cast(Client, Says(**said)))}


@pytest.mark.parametrize(("version", "old"), [("6.2.14", True), ("7.0.0", False), ("7.2.4", False), ("10.1", False)])
async def test_a_server_without_functions_is_of_no_use(version: str, old: bool) -> None:
    assert await findings(redis_version=version) == ({"valkey version": False} if old else {})


@pytest.mark.parametrize("version", ["", "unstable"])
async def test_a_version_that_says_nothing_is_no_finding(version: str) -> None:
    assert await findings(redis_version=version) == {}


async def test_settings_that_lose_credits_are_found() -> None:
    found = await findings(maxmemory_policy="allkeys-lru", aof_enabled=0)
    assert found == {"valkey maxmemory-policy": False, "valkey appendonly": None}


@pytest.mark.parametrize(
    "info",
    [
        {"role": "slave"},
        {"min_slaves_good_slaves": 0},
        {"aof_last_write_status": "err"},
        {"maxmemory": 1_000, "used_memory": 1_000},
    ],
)
async def test_a_server_that_takes_no_writes_is_found(info: dict[str, Any]) -> None:
    usable = {"role": "master", "min_slaves_good_slaves": 1, "aof_last_write_status": "ok", "maxmemory": 2_000}
    assert await findings(**usable) == {}
    assert await findings(**{**usable, **info}) == {"valkey writes": False}
