"""Gateways that are killed, that stop as they should, and that are thought dead and come back."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from pathlib import Path

from redis.asyncio import Redis

from tests.chaos.kit import (
    KEYS,
    Answers,
    Api,
    Caller,
    Process,
    gateways,
    get,
    load,
    load_until,
    settings,
    start,
    storm,
    until,
)  # fmt: skip
from tests.support.ledger_totals import LedgerTotals, read_totals
from tests.support.valkey_process import ValkeyProcess

CLIENTS = 16


async def _held_nothing(control: Redis) -> LedgerTotals:
    """Waits until the reaper has given back what the dead held."""
    totals = await read_totals(control, KEYS, ["tpp"])
    while totals.held["tpp"]:
        await asyncio.sleep(0.05)
        totals = await read_totals(control, KEYS, ["tpp"])
    return totals


async def test_a_gateway_killed_under_load_again_and_again_loses_no_hold_and_charges_nothing_twice(
    server: ValkeyProcess, control: Redis, api: Api, tmp_path: Path
) -> None:
    """What a killed process may owe: at most one request a client, which it had answered and not yet charged.

    A 200 is written before its charge is confirmed, since a client should not wait for that; so a kill can lose the
    charges of the requests that were under way in the process, and there are no more of them than clients.
    """
    await load(control, {"tpp": 1_000_000})
    document = settings(f"valkey://127.0.0.1:{server.port}", api.url)
    chance = random.Random(7)
    answers, stop, kills = Answers(), asyncio.Event(), 3
    async with gateways(tmp_path, document, name="survivor") as (survivor,):
        current: list[Process] = [await start(document, tmp_path, name="victim-0")]
        loading = asyncio.create_task(load_until(stop, lambda: current[0].port, "tpp", CLIENTS, answers))
        for kill in range(kills):
            enough = answers.statuses[200] + chance.randrange(50, 150)
            await until(lambda enough=enough: answers.statuses[200] > enough, answers)
            assert await current[0].end(signal.SIGKILL) == -signal.SIGKILL
            if kill < kills - 1:
                current[0] = await start(document, tmp_path, name=f"victim-{kill + 1}")
        stop.set()
        await loading
        async with asyncio.timeout(30):
            totals = await _held_nothing(control)
        totals.check()
        assert survivor.process.returncode is None
    charged = totals.settled["tpp"]
    assert answers.statuses[200] - CLIENTS * kills <= charged <= answers.sent
    assert charged <= answers.statuses[200] + answers.lost, "charged, and never asked for"
    assert set(answers.statuses) == {200}


async def test_a_gateway_told_to_stop_under_load_charges_every_answer_and_leaves_nothing_held(
    server: ValkeyProcess, control: Redis, api: Api, tmp_path: Path
) -> None:
    await load(control, {"tpp": 1_000_000})
    api.delay_s = 0.02
    document = settings(f"valkey://127.0.0.1:{server.port}", api.url)
    answers, stop = Answers(), asyncio.Event()
    gateway = await start(document, tmp_path)
    loading = asyncio.create_task(load_until(stop, gateway.port, "tpp", CLIENTS, answers))
    await until(lambda: answers.statuses[200] > 100, answers)
    code = await gateway.end(signal.SIGTERM)
    stop.set()
    await loading
    totals = await read_totals(control, KEYS, ["tpp"])
    totals.check()
    assert code == 0, gateway.log
    assert totals.alive == frozenset()
    assert totals.settled == {"tpp": answers.statuses[200]}
    assert set(answers.statuses) == {200}


async def test_a_gateway_frozen_until_it_was_reaped_charges_what_it_had_under_way_and_works_on(
    server: ValkeyProcess, control: Redis, api: Api, tmp_path: Path
) -> None:
    await load(control, {"tpp": 1_000})
    api.delay_s = 0.3
    document = settings(f"valkey://127.0.0.1:{server.port}", api.url)
    answers = Answers()
    async with gateways(tmp_path, document, document) as (zombie, _reaping):
        calling = asyncio.create_task(storm(zombie.port, "tpp", 8, 8, answers))
        await until(lambda: api.asked == 8, api)
        assert (await read_totals(control, KEYS, ["tpp"])).held == {"tpp": 8}
        zombie.send(signal.SIGSTOP)
        async with asyncio.timeout(30):
            totals = await _held_nothing(control)
        assert totals.settled == {}
        assert len(totals.alive) == 1
        zombie.send(signal.SIGCONT)
        await calling
        api.delay_s = 0.0
        await storm(zombie.port, "tpp", 8, 80, answers)
        assert answers.statuses == {200: 88}
    totals = await read_totals(control, KEYS, ["tpp"])
    totals.check()
    assert totals.settled == {"tpp": 88}, "late settles count, and count once"


async def test_workers_are_started_again_and_end_with_their_parent(
    server: ValkeyProcess, control: Redis, api: Api, tmp_path: Path
) -> None:
    await load(control, {"tpp": 1_000_000})
    document = settings(f"valkey://127.0.0.1:{server.port}", api.url, listen={"workers": 2})
    answers = Answers()
    async with gateways(tmp_path, document) as (parent,):
        first = await _workers(parent)
        assert len(first) == 2
        _kill(first[0])
        await until(lambda: _replaced(parent, first), "a new worker")
        await storm(parent.port, "tpp", CLIENTS, 200, answers)
        assert answers.statuses == {200: 200}
        _, metrics = await get(parent.admin_port, "/metrics")
        counted = [line for line in metrics.splitlines() if line.startswith("open_banking_requests_total")]
        assert sum(float(line.split()[-1]) for line in counted) == 200
        last = await _workers(parent)
        assert await parent.end(signal.SIGKILL) == -signal.SIGKILL
        await until(lambda: not any(map(_runs, last)), last)
    async with gateways(tmp_path, document, name="again") as (parent,):
        last = await _workers(parent)
        assert await parent.end(signal.SIGTERM) == 0, parent.log
        assert not any(map(_runs, last))
    totals = await read_totals(control, KEYS, ["tpp"])
    assert (totals.settled, totals.events) == ({"tpp": 200}, {"tpp": 200})


async def _workers(parent: Process) -> list[int]:
    """The process ids of the workers that answer."""
    _, text = await get(parent.admin_port, "/v1/status")
    return [worker["pid"] for worker in json.loads(text)["workers"] if worker.get("ready")]


async def _replaced(parent: Process, before: list[int]) -> bool:
    now = await _workers(parent)
    return len(now) == len(before) and before[0] not in now


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # ended, and waited for by nobody yet


async def test_a_stop_while_a_worker_is_about_to_be_started_again_is_not_waited_for(
    server: ValkeyProcess, api: Api, tmp_path: Path
) -> None:
    document = settings(f"valkey://127.0.0.1:{server.port}", api.url, listen={"workers": 2})
    async with gateways(tmp_path, document) as (parent,):
        workers = await _workers(parent)
        _kill(workers[0])
        await until(lambda: any("started again" in line for line in parent.log), parent.log)
        assert await parent.end(signal.SIGTERM) == 0, parent.log
        assert not any("started again" in line for line in parent.log[-1:])
        answers = Answers()
        assert await Caller(parent.port, "tpp", answers).call() is None, "nobody listens any more"
