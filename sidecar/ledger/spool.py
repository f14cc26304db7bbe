"""Charges made while the ledger is away (``on_ledger_failure: open``): bounded, on disk, replayed exactly once.

A file holds one line a charge: CRC-32, a space, JSON ``[id, account, metric, units, event]``. Lines are written and fsynced in groups, on a
thread. A line that is torn was never promised. Each line's id becomes an idempotency key in the ledger, so replaying a file twice
charges once. The file of a process that died is replayed by the next one that finds it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from zlib import crc32

import orjson
import structlog

from sidecar.ledger.client import LedgerClient
from sidecar.ledger.outcomes import Event, Hold

log = structlog.get_logger("sidecar.spool")

REPLAY_BATCH = 256
RETRY_S = 0.25
REPLAY_TIMEOUT_S = 10.0


class SpoolError(Exception):
    """The spool's directory cannot be used. The message names it."""


@dataclass(frozen=True, slots=True)
class SpoolSettings:
    """``allowance_units``: units that each account may use per process until the ledger is back."""

    directory: Path
    allowance_units: int = 1000
    bytes_max: int = 67_108_864


@dataclass(frozen=True, slots=True)
class Record:
    """One charge on disk."""

    id: str
    account: str
    metric: str
    units: int
    event: Event


def encode_record(record: Record) -> bytes:
    body = orjson.dumps([record.id, record.account, record.metric, record.units, record.event])
    return b"%08x %b\n" % (crc32(body), body)


def read_records(path: Path) -> Iterator[Record]:
    """The whole lines of a file; what is torn or damaged is passed over and logged."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            body = line[9:-1]
            try:
                if not line.endswith(b"\n") or int(line[:8], 16) != crc32(body):
                    raise ValueError
                key, account, metric, units, event = orjson.loads(body)
            except ValueError:
                log.error("a line of the spool is damaged and was passed over", file=str(path), line=number)
                continue
            yield Record(key, account, metric, units, tuple(event))


class Spool:
    """One process's spool. Holds a lock on its file for as long as it lives."""

    def __init__(self, settings: SpoolSettings, ledger: LedgerClient) -> None:
        self.settings = settings
        self.written = 0
        self.replayed = 0
        self._ledger = ledger
        self._used: dict[str, int] = {}
        self._bytes = 0
        self._count = 0
        self._lines: list[bytes] = []
        self._path = settings.directory / f"spool-{ledger.instance}.log"
        self._file: int | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<Spool {self._path} bytes={self._bytes} accounts={len(self._used)}>"

    @property
    def bytes_used(self) -> int:
        return self._bytes

    def start(self) -> None:
        """Takes the directory into use and replays what it finds there once the ledger is up.

        Raises:
            SpoolError: the directory cannot be written.
        """
        try:
            self.settings.directory.mkdir(parents=True, exist_ok=True)
            self._file = self._open(self._path)
        except OSError as error:
            raise SpoolError(f"spool directory {self.settings.directory}: {error.strerror}") from error
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._write()), loop.create_task(self._replay_when_up())]

    @staticmethod
    def _open(path: Path) -> int:
        descriptor = os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    # proxy.gateway.Spool

    def admit(self, account: str, units: int) -> bool:
        """Whether this account may use ``units`` more although they cannot be checked."""
        used = self._used.get(account, 0) + units
        if used > self.settings.allowance_units or self._bytes >= self.settings.bytes_max or self._file is None:
            return False
        self._used[account] = used
        return True

    def give_back(self, account: str, units: int) -> None:
        """What was admitted was not used."""
        self._used[account] = max(0, self._used.get(account, 0) - units)

    def charge(self, hold: Hold, event: Event) -> None:
        """Writes a charge down. It is on disk a few milliseconds later (one fsync for all that came up meanwhile)."""
        self._count += 1
        key = f"spool:{self._ledger.instance}:{self._count}"
        line = encode_record(Record(key, hold.account, hold.metric, hold.units, event))
        self._bytes += len(line)
        self._lines.append(line)
        self._wake.set()

    # writing

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._flush(loop)

    async def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        lines, self._lines = self._lines, []
        if not lines or self._file is None:
            return
        descriptor = self._file
        try:
            await loop.run_in_executor(self._thread, _append, descriptor, b"".join(lines))
        except OSError as error:
            # Kept in memory and written with the next group; admissions stop, since nothing more can be promised.
            log.error("spool cannot be written", file=str(self._path), error=error.strerror)
            self._lines = lines + self._lines
            self._bytes = self.settings.bytes_max
            return
        self.written += len(lines)

    # replaying

    async def _replay_when_up(self) -> None:
        while True:
            try:
                if self._ledger.is_up:
                    await self._replay_all()
            except OSError as error:
                log.error("spool cannot be replayed", directory=str(self.settings.directory), error=error.strerror)
            await asyncio.sleep(RETRY_S)

    async def _replay_all(self) -> None:
        if self._bytes or self._used:
            await self._replay_own()
        for path in self.settings.directory.glob("spool-*.log"):
            if path == self._path:
                continue
            try:
                descriptor = self._open(path)
            except OSError:
                continue  # its process lives
            try:
                if path.exists() and await self._replay(path):
                    path.unlink()
            finally:
                os.close(descriptor)

    async def _replay_own(self) -> None:
        loop = asyncio.get_running_loop()
        await self._flush(loop)
        assert self._file is not None
        size = os.fstat(self._file).st_size
        if not size:
            self._used.clear()
            self._bytes = 0
            return
        if await self._replay(self._path) and os.fstat(self._file).st_size == size and not self._lines:
            os.ftruncate(self._file, 0)
            self._used.clear()
            self._bytes = 0

    async def _replay(self, path: Path) -> bool:
        """Gives every charge to the ledger and waits until it has them. False: it went away meanwhile; to be done again."""
        count = 0
        records = read_records(path)
        while group := list(islice(records, REPLAY_BATCH)):
            if not await self._settle(group):
                return False
            count += len(group)
        self.replayed += count
        if count:
            log.info("charges made while the ledger was away are settled", charges=count, file=path.name)
        return True

    async def _settle(self, records: list[Record]) -> bool:
        done = asyncio.Event()
        missing = len(records)

        def settled(_hold: Hold) -> None:
            nonlocal missing
            missing -= 1
            if not missing:
                done.set()

        for record in records:
            key = self._ledger.keys.idempotency(record.account, record.id.encode())
            hold = Hold(record.account, record.metric, record.units, key, settled)
            self._ledger.link_of(record.account).settle_late(hold, record.event)
        try:
            async with asyncio.timeout(REPLAY_TIMEOUT_S):
                await done.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Writes what is left. A file without charges is removed."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._flush(asyncio.get_running_loop())
        self._thread.shutdown()
        if self._file is not None:
            if not os.fstat(self._file).st_size:
                self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None


def _append(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.fdatasync(descriptor)
