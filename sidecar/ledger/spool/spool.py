"""Charges made while the ledger is away (``on_ledger_failure: open``): bounded, on disk, replayed exactly once.

Lines are written and fsynced in groups, on a thread. The ledger charges each line's id once, so replaying a file twice
charges once. A line with a caller's idempotency key is a free repeat if the ledger knows its call as charged. The file
of a process that died is replayed by the next one that finds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sidecar.basics.logger import get_logger
from sidecar.ledger.client.ledger_client import LedgerClient
from sidecar.ledger.client.outcomes import Event, Hold, IdempotencyKey
from sidecar.ledger.keys import idempotency_digest
from sidecar.ledger.spool.known_keys import KnownKeys
from sidecar.ledger.spool.spool_file import (
    Damage,
    Record,
    append,
    decode_record,
    encode_record,
    keep_damaged,
    open_locked,
    read_records,
)

log = get_logger("sidecar.spool")

REPLAY_BATCH = 256
RETRY_S = 0.25
REPLAY_TIMEOUT_S = 10.0


class SpoolError(Exception):
    """The spool's directory cannot be used. The message names it."""


@dataclass(frozen=True, slots=True)
class SpoolSettings:
    """``allowance_units``: units that each account may use per process until the ledger is back. ``keys_ttl_s``: how
    long an idempotency key counts."""

    directory: Path
    allowance_units: int = 1000
    bytes_max: int = 67_108_864
    keys_ttl_s: float = 86_400.0


class Spool:
    """One process's spool. Holds a lock on its file for as long as it lives."""

    def __init__(self, settings: SpoolSettings, ledger: LedgerClient) -> None:
        self.settings = settings
        self.written = 0
        self.replayed = 0
        self.known_keys = KnownKeys(settings.keys_ttl_s)
        self._ledger = ledger
        self._used: dict[str, int] = {}
        self._count = 0
        self._path = settings.directory / f"spool-{ledger.instance}.log"
        self._file: int | None = None
        self._size = 0
        """Bytes in the file; ``_lines`` are those that it has not got yet."""
        self._lines: list[bytes] = []
        self._lines_bytes = 0
        self._broken = False
        self._unreadable: set[Path] = set()
        self._writing = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._wake = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._replayer: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Spool {self._path} bytes={self.bytes_used} accounts={len(self._used)}>"

    @property
    def bytes_used(self) -> int:
        return self._size + self._lines_bytes

    def start(self) -> None:
        """Takes the directory into use and replays what it finds there once the ledger is up.

        Raises:
            SpoolError: the directory cannot be written.
        """
        directory = self.settings.directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = open_locked(self._path, create=True)
        except (FileExistsError, NotADirectoryError):
            raise SpoolError(f"spool directory {directory}: it is not a directory") from None
        except OSError as error:
            raise SpoolError(f"spool directory {directory}: {error.strerror}") from None
        loop = asyncio.get_running_loop()
        self._writer = loop.create_task(self._write())
        self._replayer = loop.create_task(self._replay_when_up())

    # proxy.gateway.Spool

    def admit(self, account: str, units: int) -> bool:
        """Whether this account may use ``units`` more although they cannot be checked."""
        used = self._used.get(account, 0) + units
        if used > self.settings.allowance_units or self.bytes_used >= self.settings.bytes_max:
            return False
        if self._broken or self._file is None:
            return False
        self._used[account] = used
        return True

    def give_back(self, account: str, units: int) -> None:
        """Gives back units that were admitted and not used."""
        self._used[account] = max(0, self._used.get(account, 0) - units)

    def charge(self, hold: Hold, event: Event) -> None:
        """Writes a charge down. It is on disk a few milliseconds later (one fsync for all that came up meanwhile)."""
        self._keep(hold.account, hold.metric, hold.units, event, hold.key)
        self.note_charged(hold)

    def note_charged(self, hold: Hold) -> None:
        """A call was charged, here or by the ledger: its idempotency key is known while the ledger is away."""
        if hold.key is not None:
            self.known_keys.charged(hold.key)

    def note_repeat(self, hold: Hold) -> None:
        """The ledger said that it is a free repeat."""
        if hold.key is not None:
            self.known_keys.repeated(hold.key)

    def take_repeat(self, hold: Hold) -> bool:
        """Whether the call is a free repeat of one that this process saw charged. It counts as one then."""
        return hold.key is not None and self.known_keys.take_repeat(hold.key)

    def keep(self, events: list[Event]) -> None:
        """Writes down charges that the ledger was asked for and never got."""
        for event in events:
            self._keep(event[0], event[1], event[2], event)

    def _keep(self, account: str, metric: str, units: int, event: Event, key: IdempotencyKey | None = None) -> None:
        self._count += 1
        name = f"spool:{self._ledger.instance}:{self._count}"
        line = encode_record(Record(name, account, metric, units, event, key))
        self._lines.append(line)
        self._lines_bytes += len(line)
        self._wake.set()

    # writing

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            async with self._writing:
                await self._write_lines()

    async def _write_lines(self) -> None:
        """Brings what is in memory to disk. Lines that the disk does not take stay in memory, and nothing more is
        admitted, since nothing more can be promised. The caller holds ``_writing``.
        """
        lines = list(self._lines)
        if not lines or self._file is None:
            return
        data = b"".join(lines)
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._thread, append, self._file, self._size, data)
        except OSError as error:
            if not self._broken:
                log.error("spool cannot be written", file=str(self._path), error=error.strerror)
            self._broken = True
            return
        self._broken = False
        self._size += len(data)
        self.written += len(lines)
        self._forget_lines(lines)

    def _forget_lines(self, lines: list[bytes]) -> None:
        done = set(lines)  # every line has an id of its own
        self._lines = [line for line in self._lines if line not in done]
        self._lines_bytes = sum(map(len, self._lines))

    # replaying

    async def _replay_when_up(self) -> None:
        while True:
            try:
                if self._broken:
                    self._wake.set()
                if self._ledger.is_up:
                    await self._replay_all()
            except OSError as error:
                log.error("spool cannot be replayed", directory=str(self.settings.directory), error=error.strerror)
            except Exception:
                # Nobody restarts the replay: a file that breaks it must not keep later charges from being settled.
                log.exception("spool cannot be replayed", directory=str(self.settings.directory))
            await asyncio.sleep(RETRY_S)

    async def _replay_all(self) -> None:
        if self.bytes_used or self._used:
            await self._replay_own()
        for path in sorted(self.settings.directory.glob("spool-*.log")):
            if path != self._path:
                await self._replay_other_process(path)

    async def _replay_other_process(self, path: Path) -> None:
        try:
            descriptor = open_locked(path, create=False)
        except (BlockingIOError, FileNotFoundError):
            return  # its process lives, or another one has replayed it
        except OSError as error:
            if path not in self._unreadable:
                self._unreadable.add(path)
                log.error("cannot read the spool of a dead process", file=str(path), error=error.strerror)
            return
        try:
            # Another process may have replayed and removed the file between its opening and its lock.
            if os.fstat(descriptor).st_nlink and await self._replay(path):
                os.unlink(path)
        finally:
            os.close(descriptor)

    async def _replay_own(self) -> None:
        async with self._writing:
            await self._write_lines()
            size, kept = self._size, list(self._lines)
        if kept and not await self._settle([decode_record(line) for line in kept]):
            return
        if size and not await self._replay(self._path):
            return
        async with self._writing:
            self._forget_lines(kept)
            if not self._lines:
                self._broken = False  # nothing is owed to the disk; the next charge shows whether it takes it
            if self._size == size and self._file is not None:
                os.ftruncate(self._file, 0)
                self._size = 0
        if not self.bytes_used:
            self._used.clear()

    async def _replay(self, path: Path) -> bool:
        """Gives every charge of a file to the ledger and waits until it has them, and puts aside what is damaged.

        False: the ledger went away meanwhile, and all of it is to be done again, which charges nothing twice.
        """
        group: list[Record] = []
        damaged: list[bytes] = []
        count = 0
        for item in read_records(path):
            if isinstance(item, Damage):
                if not item.torn:
                    damaged.append(item.line)
                log.error("skipped a damaged line of the spool",
                          file=str(path), line=item.line_number, torn=item.torn)  # fmt: skip
                continue
            group.append(item)
            count += 1
            if len(group) == REPLAY_BATCH:
                if not await self._settle(group):
                    return False
                group = []
        if group and not await self._settle(group):
            return False
        if damaged:
            log.error(
                "damaged lines of the spool are kept in a file",
                file=str(keep_damaged(path, damaged)),
                lines=len(damaged),
            )
        if count:
            self.replayed += count
            log.info("spooled charges are settled", charges=count, file=path.name)
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
            hold = Hold(record.account, record.metric, record.units, record.key, settled)
            hold.record = idempotency_digest(record.account, record.id.encode())
            self._ledger.link_of(record.account).settle_late(hold, record.event)
        try:
            async with asyncio.timeout(REPLAY_TIMEOUT_S):
                await done.wait()
        except TimeoutError:
            return False
        return True

    # the end

    async def stop_replaying(self) -> None:
        """Gives the ledger nothing more, so that it can be closed; charges are still written down."""
        await _ended(self._replayer)
        self._replayer = None

    async def close(self) -> None:
        """Writes what is left. A file without charges is removed; one with charges is replayed by the next process."""
        await self.stop_replaying()
        await _ended(self._writer)
        async with self._writing:
            await self._write_lines()
        self._thread.shutdown()
        if self._lines:
            log.error("cannot write charges to the spool, they are only in this line", file=str(self._path),
                      lines=[line.decode() for line in self._lines])  # fmt: skip
        if self._file is not None:
            if not self._size:
                self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None


async def _ended(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
