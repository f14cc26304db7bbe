"""Gateways that are taken out of service while clients call: a Service goes on sending them clients for a while."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.chaos.kit import KEYS, Answers, Api, Process, gateways, get, load, load_until, settings, until
from tests.support.ledger_totals import read_totals
from tests.support.valkey_process import ValkeyProcess

CLIENTS = 12
NOTICES_S = 0.4
"""How long the Service takes to notice that a gateway is not ready, and to send its clients elsewhere."""
DELAY_MS = 1_500


class Service:
    """What a cluster does for one: new connections go to the first gateway that was ready when it last looked."""

    def __init__(self, processes: list[Process]) -> None:
        self.processes = processes
        self.chosen = processes[0]

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(NOTICES_S)
            for process in self.processes:
                with contextlib.suppress(OSError):
                    if (await get(process.health_port, "/readyz"))[0] == 200:
                        self.chosen = process
                        break

    def port(self) -> int:
        return self.chosen.port


async def drained_by_hook(process: Process, config: Path) -> None:
    """As a container's preStop hook does it; the application's waits for the gateway's health port meanwhile."""
    waiting = asyncio.create_task(get(process.health_port, "/drained"))
    hook = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sidecar", "drain", "-c", str(config), stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "SIDECAR_ADMIN__PORT": str(process.admin_port)},
    )  # fmt: skip
    _, said = await hook.communicate()
    assert hook.returncode == 0, said.decode()
    assert await waiting == (200, "drained\n")
    assert process.process.returncode is None, "it ends when it is told to, and not before"
    assert (await get(process.health_port, "/livez"))[0] == 200


@pytest.mark.parametrize(
    "how", ["SIGTERM", "a preStop hook", "SIGTERM to two workers", "a preStop hook and two workers"]
)
async def test_under_constant_load_no_request_is_lost_and_no_hold_is_left(
    how: str, server: ValkeyProcess, control: Redis, api: Api, tmp_path: Path
) -> None:
    await load(control, {"tpp": 1_000_000})
    api.delay_s = 0.02
    document: dict[str, Any] = settings(
        f"valkey://127.0.0.1:{server.port}", api.url,
        limits={"drain_delay_ms": DELAY_MS}, health={"port": 0, "host": "127.0.0.1"},
        listen={"workers": 2 if "workers" in how else 1},
    )  # fmt: skip
    config = tmp_path / "hook.yaml"
    config.write_text(json.dumps(document))
    answers, stop = Answers(), asyncio.Event()
    async with gateways(tmp_path, document, document) as (leaving, staying):
        service = Service([leaving, staying])
        watching = asyncio.create_task(service.watch())
        loading = asyncio.create_task(load_until(stop, service.port, "tpp", CLIENTS, answers))
        await until(lambda: answers.statuses[200] > 200, answers)
        if "hook" in how:
            await drained_by_hook(leaving, config)
        assert await leaving.end(signal.SIGTERM) == 0, leaving.log
        served = answers.statuses[200]
        await until(lambda: answers.statuses[200] > served + 100, answers)
        stop.set()
        await loading
        watching.cancel()
    totals = await read_totals(control, KEYS, ["tpp"])
    totals.check()
    assert set(answers.statuses) == {200}
    assert (answers.lost, answers.refused) == (0, 0)
    assert totals.settled["tpp"] == answers.statuses[200] == answers.sent


async def test_a_gateway_told_by_a_terminal_waits_for_nobody(server: ValkeyProcess, api: Api, tmp_path: Path) -> None:
    document = settings(f"valkey://127.0.0.1:{server.port}", api.url, limits={"drain_delay_ms": 60_000})
    async with gateways(tmp_path, document) as (gateway,):
        async with asyncio.timeout(10):
            assert await gateway.end(signal.SIGINT) == 0


async def test_a_drain_that_has_begun_can_be_cut_short(server: ValkeyProcess, api: Api, tmp_path: Path) -> None:
    document = settings(f"valkey://127.0.0.1:{server.port}", api.url, limits={"drain_delay_ms": 60_000})
    async with gateways(tmp_path, document) as (gateway,):
        gateway.send(signal.SIGUSR1)
        await until(lambda: any("draining" in line for line in gateway.log), gateway.log)
        assert (await get(gateway.admin_port, "/readyz")) == (503, "the gateway is stopping\n")
        async with asyncio.timeout(10):
            assert await gateway.end(signal.SIGINT) == 0
