"""Charges that the ledger cannot have yet, on disk: what a kill of this process must not lose.

A charge that waits longer than a moment, because Valkey is away or slow, is sealed into a numbered batch and written to
a journal (fsync). The link goes on to offer it; when it is confirmed, the journal forgets it. The journal of a process
that died is offered by the next one that finds it, under the same numbers, so nothing is charged twice.

With an allowance (``on_ledger_failure: open``), calls pass while the ledger is away, and their charges come here too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from sidecar.basics.errors import SetupError
from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.logger import get_logger, wait_until_logged
from sidecar.ledger.client.ledger_client import LedgerClient
from sidecar.ledger.client.link import Link
from sidecar.ledger.client.outcomes import Code, Event, Hold
from sidecar.ledger.client.sealed import SealedBatch, SealedError, events_of
from sidecar.ledger.spool.allowances import Allowances
from sidecar.ledger.spool.journal import Journal, JournalError, JournalFull
from sidecar.ledger.spool.known_keys import KnownKeys
from sidecar.ledger.spool.window_file import WindowFile

log = get_logger("sidecar.spool")

CHARGE_LOGGED_S: Final = 5.0
"""So long a line with a charge that nothing else keeps waits to be written."""
MOMENT_S: Final = 0.1
"""How long a charge waits before it is written down; also how often is looked."""
PROMPT_S: Final = 0.005
"""The same for a charge of a call that passed without a hold: nothing else knows of it."""

NO_SPOOL: Final = (
    "ledger.spool_directory is not set: a kill while Valkey is away or slow loses the charges that wait for it, and "
    "SIGTERM then writes them to the log alone"
)

WINDOW_CHUNK: Final = 200
"""Confirmed batches that are written at once."""
WINDOW_BYTES_MAX: Final = 33_554_432
"""Disk for confirmed charges that memory has no room for."""

_UNAVAILABLE: Final = int(Code.UNAVAILABLE)
_Result = TypeVar("_Result")


class SpoolError(SetupError):
    """The spool's directory cannot be used. The message names it."""


@dataclass(frozen=True, slots=True)
class SpoolSettings:
    """``allowance_units``: units that each account may use per process while the ledger is away; None: none, the
    gateway fails closed. ``keys_ttl_s``: how long an idempotency key counts. ``is_default``: nobody asked for this
    directory, so a gateway goes without one that it cannot have."""

    directory: Path
    allowance_units: int | None = None
    bytes_max: int = 67_108_864
    keys_ttl_s: float = 86_400.0
    is_default: bool = False


class Spool:
    """One process's spool. Holds a lock on its file for as long as it lives."""

    def __init__(self, settings: SpoolSettings, ledger: LedgerClient) -> None:
        self.settings = settings
        self.written = 0
        self.replayed = 0
        self.known_keys = KnownKeys(settings.keys_ttl_s)
        self.allowances = Allowances(settings.allowance_units or 0)
        self._ledger = ledger
        ledger.on_late_refusal = self.allowances.note_late
        self._journal: Journal | None = None
        self._window: WindowFile | None = None
        self._unwritten: deque[tuple[Link, SealedBatch]] = deque()
        """Sealed and not on disk yet, or refused by it."""
        self._entries: deque[tuple[int, Link, int, int]] = deque()
        """Of the journal: sequence, link, number, charges."""
        self._uncovered: dict[Link, dict[str, int]] = {}
        """Units by account of charges that passed by the allowance and have no number yet."""
        self._covered: list[tuple[Link, int, dict[str, int]]] = []
        self._done = 0
        """The sequence up to which the ledger has all entries."""
        self._broken = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._wake = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Spool {self.settings.directory} entries={len(self._entries)} unwritten={len(self._unwritten)}>"

    @property
    def bytes_used(self) -> int:
        """Bytes of charges on disk that the ledger does not have yet, 0 if there are none."""
        journal = self._journal
        return journal.size if journal is not None and self._entries else 0

    @property
    def is_broken(self) -> bool:
        """The disk takes nothing, or the file is full: nothing more can be promised."""
        return self._broken

    def status(self) -> dict[str, Any]:
        """What ``/v1/status`` shows."""
        return {
            "directory": str(self.settings.directory), "bytes": self.bytes_used,
            "waiting_charges": sum(entry[3] for entry in self._entries), "broken": self._broken,
        }  # fmt: skip

    def start(self) -> None:
        """Takes the directory into use.

        Raises:
            SpoolError: it cannot be trusted or written.
        """
        try:
            self._journal = Journal.create(
                self.settings.directory, self._ledger.instance, bytes_max=self.settings.bytes_max
            )
            self._window = WindowFile(self.settings.directory, min(WINDOW_BYTES_MAX, self.settings.bytes_max))
        except JournalError as error:
            raise SpoolError(f"spool directory: {error}") from None
        except OSError as error:
            raise SpoolError(f"spool directory {self.settings.directory}: {error.strerror}") from None
        self._ledger.window.overflow = self._window
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    # Calls without a hold (gateway.context.Spool)

    def note(self, hold: Hold) -> None:
        """The ledger decided a hold: what it says of the account is what counts while the ledger is away."""
        if hold.code != _UNAVAILABLE:
            self.allowances.note(hold)

    def admit(self, hold: Hold) -> bool:
        """Whether a call may pass although it cannot be checked."""
        if self._broken or self._journal is None:
            return False
        return self.allowances.admit(hold.account, hold.metric, hold.units)

    def give_back(self, hold: Hold) -> None:
        """A call that was admitted is not charged."""
        self.allowances.give_back(hold.account, hold.units)

    def charge(self, hold: Hold, event: Event) -> None:
        """Charges a call that was admitted. It is on disk some milliseconds later."""
        link = self._ledger.link_of(hold.account)
        link.settle_late(hold, event)
        units = self._uncovered.setdefault(link, {})
        units[hold.account] = units.get(hold.account, 0) + hold.units
        self._wake.set()
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

    # Keeping

    async def _keep(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(MOMENT_S):
                    await self._wake.wait()
            if self._wake.is_set():
                self._wake.clear()
                await asyncio.sleep(PROMPT_S)  # one fsync for all that comes up meanwhile
            try:
                await self._round()
            except Exception:
                # Nobody restarts the keeper: one bad round must not keep later charges from the disk.
                log.exception("the spool failed", directory=str(self.settings.directory))
                await asyncio.sleep(MOMENT_S)

    async def _round(self) -> None:
        for link in self._ledger.links:
            uncovered = self._uncovered.pop(link, None)
            if uncovered or link.is_stuck(MOMENT_S):
                self._unwritten += [(link, sealed) for sealed in link.seal_waiting()]
                if uncovered:
                    self._covered.append((link, link.number, uncovered))
        await self._write()
        await self._forget()
        if self._window is not None and self._window.waits:
            await self._on_thread(self._window.flush)

    async def _write(self) -> None:
        """Brings what is sealed to disk. What the disk does not take stays in memory, and nothing more is admitted,
        since nothing more can be promised."""
        while self._unwritten and self._is_done(self._unwritten[0][0], self._unwritten[0][1].number):
            self._unwritten.popleft()
        some = list(self._unwritten)
        if not some or self._journal is None:
            self._broken = self._broken and bool(some)
            return
        try:
            payloads = [sealed.to_bytes() for _, sealed in some]
            sequences = await self._on_thread(lambda: self._append(payloads))
        except (OSError, JournalError) as error:
            if not self._broken:
                full = isinstance(error, JournalFull)
                log.error("the spool is full" if full else "the spool cannot be written", error=reason_of(error))
            self._broken = True
            return
        self._broken = False
        for sequence, (link, sealed) in zip(sequences, some, strict=True):
            self._entries.append((sequence, link, sealed.number, sealed.settles))
            self.written += sealed.settles
            self._unwritten.popleft()

    def _append(self, payloads: Sequence[bytes]) -> list[int]:
        assert self._journal is not None
        return self._journal.append(payloads)

    @staticmethod
    def _is_done(link: Link, number: int) -> bool:
        return link.confirmed >= number

    async def _forget(self) -> None:
        """What the ledger has, neither the disk nor the allowances need to know any more."""
        for link, number, settled in list(self._covered):
            if self._is_done(link, number):
                self._covered.remove((link, number, settled))
                for account, units in settled.items():
                    self.allowances.settled(account, units)
        while self._entries and self._is_done(self._entries[0][1], self._entries[0][2]):
            self._done, _, _, charges = self._entries.popleft()
            self.replayed += charges
        journal = self._journal
        if journal is not None and journal.position < self._done:  # also what an earlier round was kept from
            await self._on_thread(lambda: journal.advance(self._done))

    async def _write_windows(self) -> None:
        """Where a server could not be asked whether it still has what it confirmed: the next process offers that again.
        What the server has costs nothing then. The newest first, as long as there is room."""
        for link in self._ledger.links:
            if link.has_left or link.is_up or self._broken or self._journal is None:
                continue
            confirmed, _ = self._ledger.window.take_after(link.home_partition, 0)
            for at in range(len(confirmed), 0, -WINDOW_CHUNK):
                payloads = [sealed.to_bytes() for sealed in confirmed[max(0, at - WINDOW_CHUNK) : at]]
                try:
                    await self._on_thread(partial(self._append, payloads))
                except (OSError, JournalError) as error:
                    log.warning("not all confirmed charges are in the spool", reason=reason_of(error))
                    break

    async def _on_thread(self, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # The end

    async def stop_keeping(self) -> None:
        """Before the ledger client is closed."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper

    async def close(self) -> None:
        """After the ledger client is closed: writes down what Valkey has not confirmed. A file without charges is
        removed; one with charges is replayed by the next process."""
        await self.stop_keeping()
        try:
            await self._round_at_end()
        finally:
            self._thread.shutdown()

    async def _round_at_end(self) -> None:
        for link in self._ledger.links:
            self._unwritten += [(link, sealed) for sealed in link.seal_waiting()]
        await self._write()
        await self._forget()
        await self._write_windows()
        log_charges([sealed for _, sealed in self._unwritten], why="the spool does not take them")
        journal, self._journal = self._journal, None
        if journal is not None:
            await self._on_thread(lambda: journal.close(remove=not journal.pending))
        if self._window is not None:
            self._ledger.window.overflow = None
            self._window.close()


def log_charges(batches: Sequence[SealedBatch], why: str) -> None:
    """Writes charges that nothing else keeps to the log, so that they can be charged by hand. Each waits until it is
    out: it must not be dropped."""
    for sealed in batches:
        try:
            events: object = events_of(sealed)
        except SealedError as error:
            events = str(error)
        log.error("charges that Valkey has not confirmed are only in this line", why=why, number=sealed.number,
                  partition=sealed.home_partition, charges=sealed.settles, events=events)  # fmt: skip
        wait_until_logged(CHARGE_LOGGED_S)
