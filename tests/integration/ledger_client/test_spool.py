"""Charges on disk: what a line is, what a full disk does, and that nothing is lost between disk and ledger."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from redis.asyncio import Redis

from sidecar.ledger.client.ledger_client import LedgerClient
from sidecar.ledger.client.outcomes import Event, Hold
from sidecar.ledger.spool import spool_file
from sidecar.ledger.spool.spool import Spool, SpoolError, SpoolSettings
from sidecar.ledger.spool.spool_file import Damage, Record, decode_record, encode_record, open_locked, read_records
from tests.integration.ledger_client.kit import KEYS, METRIC, at, client_of, load, until
from tests.support.fault_proxy import FaultProxy
from tests.support.ledger_totals import read_totals

EVENT: Event = ("tpp", METRIC, 1, "/accounts", "GET", 200, 1.5, None, None)
RECORD = Record("spool:gw:1", "tpp", METRIC, 1, EVENT)


def _hold(account: str = "tpp") -> Hold:
    return Hold(account, METRIC, 1, None, lambda _hold: None)


def test_a_record_is_read_as_it_was_written() -> None:
    assert decode_record(encode_record(RECORD)) == RECORD


@pytest.mark.parametrize("at_byte", range(0, len(encode_record(RECORD)), 7))
def test_a_line_with_one_bit_changed_is_no_record(at_byte: int) -> None:
    line = bytearray(encode_record(RECORD))
    line[at_byte] ^= 1
    with pytest.raises(ValueError):
        decode_record(bytes(line))


@pytest.mark.parametrize("body", [
    b"7", b"[]", b"null", b'["a","b","c","1",[]]', b'["a","b","c",1,[1,2]]', b'["a","b","c",-1,[1,2,3,4,5,6,7,8,9]]',
])  # fmt: skip
def test_a_line_that_is_no_charge_is_no_record_although_its_checksum_is_right(body: bytes) -> None:
    with pytest.raises(ValueError):
        decode_record(b"%08x %b\n" % (crc32(body), body))


def test_damage_costs_its_own_line_and_a_torn_end_is_told_from_it(tmp_path: Path) -> None:
    file = tmp_path / "spool-a.log"
    line = encode_record(RECORD)
    write_as_dead(file, line + b"rubbish\n" + line + b"x" * 200_000 + b"\n" + line + line[:20])
    found = [item if isinstance(item, Record) else item.torn for item in read_records(file)]
    assert [item for item in found if item is not False] == [RECORD, RECORD, RECORD, True]
    assert isinstance(list(read_records(file))[-1], Damage)


def write_as_dead(path: Path, data: bytes) -> None:
    """A file as a process left it: its owner's alone."""
    path.touch(0o600)
    path.write_bytes(data)


def files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


@asynccontextmanager
async def spool_of(client: LedgerClient, directory: Path, **options: int) -> AsyncIterator[Spool]:
    spool = Spool(SpoolSettings(directory, **options), client)
    spool.start()
    try:
        yield spool
    finally:
        await spool.close()


class FullDisk:
    """Stands for ``os`` in the module that writes the files: none grows beyond ``size`` bytes. A disk that is full
    cannot be had without being root, and a limit on the process would be pytest's too."""

    def __init__(self, size: int) -> None:
        self.size: int | None = size

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, descriptor: int, data: memoryview) -> int:
        room = len(data) if self.size is None else self.size - os.fstat(descriptor).st_size
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(descriptor, data[:room])


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FullDisk:
    full = FullDisk(0)
    full.size = None
    monkeypatch.setattr(spool_file, "os", full)
    return full


async def test_an_account_may_use_its_allowance_and_the_spool_its_bytes(proxy: FaultProxy, tmp_path: Path) -> None:
    proxy.refuse()
    async with (
        client_of(at(proxy.listening_port), ready=False) as client,
        spool_of(client, tmp_path, allowance_units=3, bytes_max=1_000) as spool,
    ):
        assert [spool.admit("tpp", 1) for _ in range(5)] == [True, True, True, False, False]
        spool.give_back("tpp", 1)
        assert spool.admit("tpp", 1)
        assert not spool.admit("other", 4)
        while spool.bytes_used < 1_000:
            assert spool.admit(f"tpp-{spool.bytes_used}", 1)
            spool.charge(_hold(), EVENT)
        assert not spool.admit("new", 1), "the spool is full"


async def test_what_a_full_disk_did_not_take_is_charged_from_memory_and_nothing_is_torn(
    control: Redis, proxy: FaultProxy, tmp_path: Path, disk: FullDisk
) -> None:
    await load(control, {"tpp": 100})
    async with client_of(at(proxy.listening_port)) as client, spool_of(client, tmp_path) as spool:
        proxy.refuse()
        await until(lambda: not client.is_up, client)
        spool.charge(_hold(), EVENT)
        (file,) = files(tmp_path)
        await until(lambda: spool.written == 1, spool)
        size = file.stat().st_size
        disk.size = size + 30
        for _ in range(3):
            spool.charge(_hold(), EVENT)
        await until(lambda: not spool.admit("tpp", 1), "the full disk is noticed")
        assert file.stat().st_size == size, "no half a line stays"
        proxy.accept()
        await until(lambda: not spool.bytes_used, spool)
        disk.size = None
        await until(lambda: spool.admit("tpp", 1), "there is room again")
        assert spool.admit("tpp", 1)
        spool.charge(_hold(), EVENT)
        await until(lambda: not spool.bytes_used, spool)
    totals = await read_totals(control, KEYS, ["tpp"])
    totals.check()
    assert totals.settled == {"tpp": 5}
    assert files(tmp_path) == []


async def test_a_disk_that_has_room_again_takes_what_it_refused(
    proxy: FaultProxy, tmp_path: Path, disk: FullDisk
) -> None:
    proxy.refuse()
    async with client_of(at(proxy.listening_port), ready=False) as client, spool_of(client, tmp_path) as spool:
        disk.size = 30
        spool.charge(_hold(), EVENT)
        await until(lambda: not spool.admit("tpp", 1), "the full disk is noticed")
        disk.size = None
        await until(lambda: spool.written == 1, spool)
        assert spool.admit("tpp", 1)
    (file,) = files(tmp_path)
    assert [type(item) for item in read_records(file)] == [Record]


async def test_the_files_of_many_dead_processes_are_replayed_once_by_two_living_ones(
    control: Redis, proxy: FaultProxy, tmp_path: Path
) -> None:
    await load(control, {"tpp": 1_000})
    for dead in range(5):
        lines = [encode_record(Record(f"spool:dead-{dead}:{n}", "tpp", METRIC, 1, EVENT)) for n in range(60)]
        write_as_dead(tmp_path / f"spool-dead-{dead}.log", b"".join(lines))
    write_as_dead(tmp_path / "spool-empty.log", b"")
    living = open_locked(tmp_path / "spool-living.log", create=True)
    os.write(living, encode_record(RECORD))
    async with (
        client_of(at(proxy.listening_port)) as one,
        client_of(at(proxy.listening_port)) as two,
        spool_of(one, tmp_path),
        spool_of(two, tmp_path),
    ):
        await until(lambda: len(files(tmp_path)) == 3, "only the files of the living")
    os.close(living)
    totals = await read_totals(control, KEYS, ["tpp"])
    totals.check()
    assert totals.settled == {"tpp": 300}
    assert [file.name for file in files(tmp_path)] == ["spool-living.log"], "what is another's is left alone"


async def test_a_replay_broken_off_again_and_again_charges_once(
    control: Redis, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.ledger.spool.spool.REPLAY_TIMEOUT_S", 0.3)
    monkeypatch.setattr("sidecar.ledger.spool.spool.REPLAY_BATCH", 16)
    await load(control, {"tpp": 1_000})
    lines = [encode_record(Record(f"spool:dead:{n}", "tpp", METRIC, 1, EVENT)) for n in range(300)]
    write_as_dead(tmp_path / "spool-dead.log", b"".join(lines))
    async with client_of(at(proxy.listening_port)) as client, spool_of(client, tmp_path):
        for cut in range(1, 6):
            await until(lambda cut=cut: client.counters.settles > 32 * cut, client)
            proxy.refuse()
            await asyncio.sleep(0.05)
            proxy.accept()
        await until(lambda: not (tmp_path / "spool-dead.log").exists(), client)
    totals = await read_totals(control, KEYS, ["tpp"])
    totals.check()
    assert totals.settled == {"tpp": 300}


async def test_a_directory_that_cannot_be_is_named(tmp_path: Path, proxy: FaultProxy) -> None:
    (tmp_path / "file").touch()
    async with client_of(at(proxy.listening_port)) as client:
        for directory in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/spool")):
            with pytest.raises(SpoolError, match=f"^spool directory {directory}: "):
                Spool(SpoolSettings(directory), client).start()
