"""What passes while the ledger is away: nothing, or what the configuration allows, then charged exactly once."""

from __future__ import annotations

import asyncio
import fcntl
import signal
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.chaos.kit import KEYS, Answers, Api, Process, gateways, get, load, settings, start, storm, until
from tests.support.ledger_totals import LedgerTotals, read_totals
from tests.support.valkey_process import ValkeyProcess

ALLOWANCE = 40


@pytest.fixture
def failing_open(server: ValkeyProcess, api: Api, tmp_path: Path) -> dict[str, Any]:
    """A gateway that passes what it cannot check, within bounds."""
    opened = {"spool_directory": str(tmp_path / "spool"), "allowance_units": ALLOWANCE}
    ledger = {"on_ledger_failure": "open", "open": opened, "hold_budget_ms": 200}
    return settings(f"valkey://127.0.0.1:{server.port}", api.url, ledger=ledger)


async def _away(server: ValkeyProcess, *processes: Process) -> None:
    """Ends the server and waits until the gateways know."""
    server.kill()

    async def known() -> bool:
        metrics = [(await get(process.admin_port, "/metrics"))[1] for process in processes]
        return all("\nsidecar_ledger_up 0.0" in text for text in metrics)

    await until(known, "the gateways know that the ledger is away")


async def _totals_of(server: ValkeyProcess, units: int) -> LedgerTotals:
    """Waits until so many units are settled, and then looks whether it becomes more."""
    client = Redis(port=server.port, protocol=2)
    try:
        totals = LedgerTotals()
        try:
            async with asyncio.timeout(30):
                while totals.settled.get("tpp", 0) < units or totals.held["tpp"]:
                    await asyncio.sleep(0.05)
                    totals = await read_totals(client, KEYS, ["tpp"])
        except TimeoutError:
            raise AssertionError(f"{units} units are not settled, but {totals.settled}, held {totals.held}") from None
        await asyncio.sleep(0.6)  # two rounds of the replay
        return await read_totals(client, KEYS, ["tpp"])
    finally:
        await client.aclose()


def _spooled(directory: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in (directory / "spool").glob("spool-*.log"))


async def test_closed_it_answers_503_and_says_when_to_come_back(
    server: ValkeyProcess, control: Redis, api: Api, tmp_path: Path
) -> None:
    await load(control, {"tpp": 100})
    document = settings(f"valkey://127.0.0.1:{server.port}", api.url, ledger={"hold_budget_ms": 200})
    document["routes"].append({"path": "/free", "free": True})
    answers = Answers()
    async with gateways(tmp_path, document) as (gateway,):
        await storm(gateway.port, "tpp", 4, 10, answers)
        await _away(server, gateway)
        await storm(gateway.port, "tpp", 4, 20, answers)
        assert (await get(gateway.admin_port, "/readyz"))[0] == 200, "else a Service would have nobody who says 503"
        assert await get(gateway.port, "/free") == (200, "{}"), "what costs nothing needs no ledger"
        server.start()
        await until(lambda: _charges(gateway), "it charges again")
        await storm(gateway.port, "tpp", 4, 10, answers)
    assert answers.statuses == {200: 20, 503: 20}
    assert all(b"\r\nRetry-After: " in head for head in answers.heads)
    assert api.asked == 21, "the free one too"
    (await _totals_of(server, 20)).check()


async def _charges(gateway: Process) -> bool:
    return "\nsidecar_ledger_up 1.0" in (await get(gateway.admin_port, "/metrics"))[1]


async def test_it_is_ready_once_it_has_met_its_ledger(server: ValkeyProcess, api: Api, tmp_path: Path) -> None:
    """So that a rollout of gateways with a wrong address or password stops."""
    document = settings(f"valkey://127.0.0.1:{server.port}", api.url)
    server.kill()
    async with gateways(tmp_path, document) as (gateway,):
        assert await get(gateway.admin_port, "/readyz") == (503, "Valkey has not answered yet\n")
        server.start()
        await until(lambda: _ready(gateway), "ready")
        await _away(server, gateway)
        assert await _ready(gateway)


async def _ready(gateway: Process) -> bool:
    return (await get(gateway.admin_port, "/readyz"))[0] == 200


async def test_open_it_passes_the_allowance_and_charges_it_once_when_the_ledger_is_back(
    server: ValkeyProcess, control: Redis, failing_open: dict[str, Any], tmp_path: Path
) -> None:
    await load(control, {"tpp": 1_000})
    answers = Answers()
    async with gateways(tmp_path, failing_open) as (gateway,):
        await storm(gateway.port, "tpp", 4, 10, answers)
        await _away(server, gateway)
        await storm(gateway.port, "tpp", 4, ALLOWANCE + 15, answers)
        assert answers.statuses == {200: 10 + ALLOWANCE, 503: 15}
        await until(lambda: _spooled(tmp_path) == ALLOWANCE, "every charge on disk")
        server.start()
        totals = await _totals_of(server, 10 + ALLOWANCE)
        totals.check()
        assert totals.settled == {"tpp": 10 + ALLOWANCE}
        await until(lambda: _spooled(tmp_path) == 0, "the spool is empty")
        await storm(gateway.port, "tpp", 4, 10, answers)
        assert answers.statuses == {200: 20 + ALLOWANCE, 503: 15}
    assert (await _totals_of(server, 20 + ALLOWANCE)).settled == {"tpp": 20 + ALLOWANCE}
    assert list((tmp_path / "spool").iterdir()) == []


async def test_what_a_killed_gateway_had_spooled_is_charged_once_by_the_next(
    server: ValkeyProcess, control: Redis, failing_open: dict[str, Any], tmp_path: Path
) -> None:
    """Two of them share a directory; one dies, its last line is torn, and one line is damaged on disk."""
    await load(control, {"tpp": 1_000})
    answers = Answers()
    first = await start(failing_open, tmp_path, name="first")
    async with gateways(tmp_path, failing_open, name="second") as (second,):
        await storm(first.port, "tpp", 1, 1, answers)
        await storm(second.port, "tpp", 1, 1, answers)
        # A gateway that dies while the ledger is away takes with it what it had not yet settled.
        await _totals_of(server, 2)
        await _away(server, first, second)
        await storm(first.port, "tpp", 4, ALLOWANCE, answers)
        await storm(second.port, "tpp", 4, ALLOWANCE, answers)
        await until(lambda: _spooled(tmp_path) == 2 * ALLOWANCE, "every charge on disk")
        assert answers.statuses == {200: 2 + 2 * ALLOWANCE}
        assert await first.end(signal.SIGKILL) == -signal.SIGKILL
        (torn,) = [file for file in (tmp_path / "spool").iterdir() if _unlocked(file)]
        lines = torn.read_bytes().splitlines(keepends=True)
        lines[3] = lines[3].replace(b'"api_calls"', b'"api_cells"')
        torn.write_bytes(b"".join(lines) + lines[0][:40])
        server.start()
        totals = await _totals_of(server, 2 + 2 * ALLOWANCE - 1)
        totals.check()
        assert totals.settled == {"tpp": 2 + 2 * ALLOWANCE - 1}, "all but the damaged line"
        await until(lambda: _spooled(tmp_path) == 0, "both files are done")
    left = list((tmp_path / "spool").iterdir())
    assert [file.suffix for file in left] == [".damaged"], "kept for people to look at"
    assert left[0].read_bytes() == lines[3]
    assert any("damaged" in line for line in second.log)


def _unlocked(file: Path) -> bool:
    with file.open("rb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


async def test_a_gateway_killed_in_the_middle_of_the_replay_leaves_no_charge_to_be_made_twice(
    server: ValkeyProcess, control: Redis, failing_open: dict[str, Any], tmp_path: Path
) -> None:
    await load(control, {"tpp": 10_000})
    failing_open["ledger"]["open"]["allowance_units"] = 2_000
    failing_open["ledger"]["batch_operations_max"] = 16
    answers = Answers()
    first = await start(failing_open, tmp_path, name="first")
    await storm(first.port, "tpp", 1, 1, answers)
    await _totals_of(server, 1)
    await _away(server, first)
    await storm(first.port, "tpp", 16, 1_500, answers)
    await until(lambda: _spooled(tmp_path) == 1_500, "every charge on disk")
    server.start()

    async def begun() -> bool:
        return (await read_totals(control, KEYS, ["tpp"])).settled.get("tpp", 0) > 100

    await until(begun, "the replay")
    await first.end(signal.SIGKILL)
    async with gateways(tmp_path, failing_open, name="second"):
        totals = await _totals_of(server, 1_501)
    totals.check()
    assert totals.settled == {"tpp": 1_501}


async def test_stopped_while_the_ledger_is_away_it_keeps_what_it_could_not_settle_for_the_next(
    server: ValkeyProcess, control: Redis, api: Api, failing_open: dict[str, Any], tmp_path: Path
) -> None:
    await load(control, {"tpp": 1_000})
    failing_open["ledger"]["hold_budget_ms"] = 5_000
    api.delay_s = 0.5
    answers = Answers()
    first = await start(failing_open, tmp_path, name="first")
    calling = asyncio.create_task(storm(first.port, "tpp", 8, 8, answers))
    await until(lambda: api.asked == 8, api)
    await _away(server, first)
    await calling
    assert answers.statuses == {200: 8}
    assert await first.end(signal.SIGTERM) == 1, "not all was settled, and its exit code says so"
    server.start()
    async with gateways(tmp_path, failing_open, name="second"):
        totals = await _totals_of(server, 8)
    assert (totals.settled, totals.events, totals.held) == ({"tpp": 8}, {"tpp": 8}, {"tpp": 0})


async def test_a_spool_directory_that_is_none_is_refused_by_name(failing_open: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("not a directory")
    with pytest.raises(AssertionError) as refusal:
        await start(failing_open, tmp_path)
    said = str(refusal.value)
    assert said.startswith("exit code 1: ")
    assert f"spool directory {tmp_path}/spool: it is not a directory" in said
    assert "Traceback" not in said
