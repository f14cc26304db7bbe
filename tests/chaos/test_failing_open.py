"""What passes while the ledger is away: nothing, or what the configuration allows, then charged exactly once."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from sidecar.ledger.client.sealed import SealedBatch
from sidecar.ledger.spool.journal import Journal, JournalEntry, dead_journals
from tests.chaos.kit import KEYS, Answers, Api, Process, gateways, get, load, settings, start, storm, until
from tests.support.fault_proxy import FaultProxy
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


async def _metric(process: Process, name: str) -> float:
    lines = (await get(process.admin_port, "/metrics"))[1].splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)


async def _spooled(process: Process, charges: int) -> None:
    """Waits until so many charges are on disk."""

    async def written() -> bool:
        return await _metric(process, "sidecar_spool_written_charges_total") >= charges

    await until(written, f"{charges} charges on disk")


async def _empty(process: Process) -> None:
    async def empty() -> bool:
        return await _metric(process, "sidecar_spool_bytes") == 0

    await until(empty, "the spool is empty")


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
        await _spooled(gateway, ALLOWANCE)
        server.start()
        totals = await _totals_of(server, 10 + ALLOWANCE)
        totals.check()
        assert totals.settled == {"tpp": 10 + ALLOWANCE}
        await _empty(gateway)
        await storm(gateway.port, "tpp", 4, 10, answers)
        assert answers.statuses == {200: 20 + ALLOWANCE, 503: 15}
    assert (await _totals_of(server, 20 + ALLOWANCE)).settled == {"tpp": 20 + ALLOWANCE}
    assert list((tmp_path / "spool").iterdir()) == []


async def test_what_a_killed_gateway_had_spooled_is_charged_once_by_the_next(
    server: ValkeyProcess, control: Redis, failing_open: dict[str, Any], tmp_path: Path
) -> None:
    """Two of them share a directory; one dies, its last entry is torn, and one is damaged on disk."""
    await load(control, {"tpp": 1_000})
    answers = Answers()
    first = await start(failing_open, tmp_path, name="first")
    async with gateways(tmp_path, failing_open, name="second") as (second,):
        await storm(first.port, "tpp", 1, 1, answers)
        await storm(second.port, "tpp", 1, 1, answers)
        await _totals_of(server, 2)
        await _away(server, first, second)
        for part in range(4):
            await storm(first.port, "tpp", 4, ALLOWANCE // 4, answers)
            await _spooled(first, (part + 1) * ALLOWANCE // 4)
        await storm(second.port, "tpp", 4, ALLOWANCE, answers)
        await _spooled(second, ALLOWANCE)
        assert answers.statuses == {200: 2 + 2 * ALLOWANCE}
        assert await first.end(signal.SIGKILL) == -signal.SIGKILL
        lost = _damage(tmp_path / "spool")
        assert 0 < lost < ALLOWANCE
        server.start()
        totals = await _totals_of(server, 2 + 2 * ALLOWANCE - lost)
        totals.check()
        assert totals.settled == {"tpp": 2 + 2 * ALLOWANCE - lost}, "all but the damaged entry"
        await _empty(second)
    left = list((tmp_path / "spool").iterdir())
    assert [file.suffix for file in left] == [".damaged-1"], "kept for people to look at"
    assert b"api_calls" in left[0].read_bytes()
    assert any("damaged" in line for line in second.log)


def _damage(directory: Path) -> int:
    """Changes a byte of the dead process's second entry, and tears off a part behind its last. How many charges the
    entry has."""
    (journal,) = [found for name in dead_journals(directory) if (found := Journal.adopt(directory, name))]
    entries = [item for item in journal.entries() if isinstance(item, JournalEntry)]
    journal.close(remove=False)
    data = bytearray(journal.path.read_bytes())
    at = data.index(entries[1].payload)
    data[at + len(entries[1].payload) // 2] ^= 1
    journal.path.write_bytes(data + data[at : at + 40])
    return SealedBatch.from_bytes(entries[1].payload).settles


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
    await _spooled(first, 1_500)
    server.start()

    async def begun() -> bool:
        return (await read_totals(control, KEYS, ["tpp"])).settled.get("tpp", 0) > 100

    await until(begun, "the replay")
    await first.end(signal.SIGKILL)
    async with gateways(tmp_path, failing_open, name="second"):
        totals = await _totals_of(server, 1_501)
    totals.check()
    assert totals.settled == {"tpp": 1_501}


async def test_a_ledger_that_is_merely_slow_lets_nobody_beyond_what_is_left(
    server: ValkeyProcess, control: Redis, api: Api, tmp_path: Path
) -> None:
    """Seen on 0.1.0: with answers after 300 ms an account without credit overspent by 400, at an allowance of 20."""
    await load(control, {"tpp": 12, "broke": 1, "never-seen": 100})
    opened = {"allowance_units": 20}
    ledger = {
        "on_ledger_failure": "open", "open": opened, "hold_budget_ms": 100, "spool_directory": str(tmp_path / "spool"),
    }  # fmt: skip
    async with FaultProxy("127.0.0.1", server.port) as wire:
        document = settings(f"valkey://127.0.0.1:{wire.listening_port}", api.url, ledger=ledger)
        answers, seen = {name: Answers() for name in ("tpp", "broke", "never-seen")}, Answers()
        async with gateways(tmp_path, document) as (gateway,):
            await storm(gateway.port, "tpp", 1, 1, answers["tpp"])
            await storm(gateway.port, "broke", 1, 2, answers["broke"])
            assert answers["broke"].statuses == {200: 1, 402: 1}
            await _totals_of(server, 1)
            wire.delay_s = 0.3
            for _ in range(3):
                for name, seen in answers.items():
                    await storm(gateway.port, name, 8, 60, seen)
            wire.delay_s = 0.0
            await _empty(gateway)
    assert answers["tpp"].statuses[200] <= 12, "what was left when the ledger last said so"
    assert answers["broke"].statuses[200] == 1, "it was last refused"
    assert answers["never-seen"].statuses[200] == 0, "nobody knows what it has left"
    totals = await _totals_of(server, answers["tpp"].statuses[200])
    assert totals.settled["tpp"] <= 12


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("mode", ["open", "closed"])
async def test_ended_while_the_ledger_is_away_what_was_served_is_charged_by_the_next(
    server: ValkeyProcess, control: Redis, api: Api, tmp_path: Path, end: signal.Signals, mode: str
) -> None:
    """Seen on 0.1.0: with SIGTERM 60 of 60 served calls lost in the default mode, with SIGKILL in both."""
    await load(control, {"tpp": 1_000})
    ledger = {"on_ledger_failure": mode, "spool_directory": str(tmp_path / "spool"), "hold_budget_ms": 5_000}
    document = settings(f"valkey://127.0.0.1:{server.port}", api.url, ledger=ledger)
    api.delay_s = 0.5
    answers = Answers()
    first = await start(document, tmp_path, name="first")
    calling = asyncio.create_task(storm(first.port, "tpp", 60, 60, answers))
    await until(lambda: api.asked == 60, api)
    await _away(server, first)
    await calling
    assert answers.statuses == {200: 60}
    if end == signal.SIGKILL:
        await _spooled(first, 60)
    expected = -end if end == signal.SIGKILL else 1  # not all was settled, and its exit code says so
    assert await first.end(end) == expected
    server.start()
    async with gateways(tmp_path, document, name="second"):
        totals = await _totals_of(server, 60)
    assert (totals.settled, totals.events, totals.held) == ({"tpp": 60}, {"tpp": 60}, {"tpp": 0})
    assert list((tmp_path / "spool").iterdir()) == []


async def test_without_a_spool_sigterm_writes_what_waits_to_the_log(
    server: ValkeyProcess, control: Redis, api: Api, tmp_path: Path
) -> None:
    await load(control, {"tpp": 1_000})
    document = settings(f"valkey://127.0.0.1:{server.port}", api.url, ledger={"hold_budget_ms": 5_000})
    api.delay_s = 0.5
    answers = Answers()
    gateway = await start(document, tmp_path)
    calling = asyncio.create_task(storm(gateway.port, "tpp", 8, 8, answers))
    await until(lambda: api.asked == 8, api)
    await _away(server, gateway)
    await calling
    assert await gateway.end(signal.SIGTERM) == 1
    lines = [line for line in gateway.log if "are only in this line" in line]
    assert sum(line.count('"api_calls"') for line in lines) == 8, lines
    server.start()


async def test_a_spool_directory_that_is_none_is_refused_by_name(failing_open: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("not a directory")
    with pytest.raises(AssertionError) as refusal:
        await start(failing_open, tmp_path)
    said = str(refusal.value)
    assert said.startswith("exit code 1: ")
    assert f"spool directory: {tmp_path}/spool: it is not a directory" in said
    assert "Traceback" not in said
