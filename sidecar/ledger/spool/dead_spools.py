"""Replays the spools of dead processes: whoever finds one first adopts it, and the ledger does each batch once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.logger import get_logger
from sidecar.ledger.client.sealed import SealedBatch, SealedError
from sidecar.ledger.spool.adoption import Adoption, OfferError, TooOldError
from sidecar.ledger.spool.former_spools import FormerSpool, former_spools
from sidecar.ledger.spool.journal import Damage, Journal, JournalError, dead_journals
from sidecar.valkey.topology import CLIENT_ERRORS

log = get_logger("sidecar.spool")

LOOK_S: Final = 1.0
"""Time between two looks into the directory."""


@dataclass(slots=True)
class Replay:
    """What became of one file. ``charges``: that the ledger has now, or had already; ``refused`` of them no account
    could take, they are kept as refused settles. ``left``: charges that stay in the file, and ``why``. ``damaged``:
    where damaged parts were put aside."""

    name: str
    charges: int = 0
    refused: int = 0
    left: int = 0
    why: str = ""
    damaged: str = ""
    damages: int = 0


class DeadSpools:
    """Those in a directory. ``own``: the journal of this process, if it has one."""

    def __init__(self, directory: Path, adoption: Adoption, own: str = "") -> None:
        self.directory = directory
        self.replayed = 0
        """Charges."""
        self.damages = 0
        """Damaged parts that were put aside."""
        self._adoption = adoption
        self._own = own
        self._counted: set[str] = set()
        self._said: dict[str, str] = {}
        """What was logged of a file, so that it is said once."""

    def __repr__(self) -> str:
        return f"DeadSpools({self.directory})"

    async def keep_replaying(self, is_up: Callable[[], bool]) -> None:
        """Looks every second while the ledger is up, until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            if not is_up():
                continue
            try:
                await self.replay_all()
            except CLIENT_ERRORS as error:
                self._say("", "spools of dead processes cannot be replayed", reason_of(error)[:200])
            except Exception:
                # Nobody restarts this: a file that breaks it must not keep others.
                log.exception("spools of dead processes cannot be replayed", directory=str(self.directory))

    async def replay_all(self) -> list[Replay]:
        """Replays what can be replayed now.

        Raises:
            JournalError: the directory cannot be trusted.
            OSError: it cannot be read.
        """
        found: list[Replay] = []
        for name in await asyncio.to_thread(dead_journals, self.directory):
            if name == self._own:
                continue
            try:
                journal = await asyncio.to_thread(Journal.adopt, self.directory, name)
            except (JournalError, OSError) as error:
                why = reason_of(error)
                self._say(name, "a spool cannot be adopted", why)
                found.append(Replay(name, why=why))
                continue
            if journal is not None:
                found.append(await self._replay_journal(name, journal))
        for former in await asyncio.to_thread(former_spools, self.directory):
            replay = await self._replay_former(former)
            if replay is not None:
                found.append(replay)
        return found

    async def _replay_journal(self, name: str, journal: Journal) -> Replay:
        replay = Replay(name)
        try:
            entries, undone, last = await asyncio.to_thread(_read, journal, replay)
            # By number, as the ledger takes them; a process writes a batch twice if the ledger's data went back.
            entries.sort(key=lambda each: (each[1].home_partition, each[1].number))
            undone += await self._offer_all(replay, entries)
            replay.damaged = str(await asyncio.to_thread(journal.keep_damaged) or "")
            done = min(undone) - 1 if undone else last
            if done > journal.position:
                await asyncio.to_thread(journal.advance, done)
        finally:
            await asyncio.to_thread(lambda: journal.close(remove=not replay.left))
        return self._told(replay)

    async def _offer_all(self, replay: Replay, entries: list[tuple[int, SealedBatch]]) -> list[int]:
        """The sequences that stay to be done. One home partition waits in order; another one's server may be there."""
        undone: list[int] = []
        waiting: set[int] = set()
        for sequence, sealed in entries:
            home = sealed.home_partition
            if home not in waiting:
                try:
                    offered = await self._adoption.offer(sealed)
                except SealedError as error:
                    replay.why = f"entry {sequence}: {error}"
                    undone.append(sequence)
                    replay.left += sealed.settles
                    continue
                except (OfferError, TooOldError, *CLIENT_ERRORS) as error:
                    replay.why = reason_of(error)[:200]
                    waiting.add(home)
                else:
                    replay.charges += offered.charges
                    replay.refused += offered.refused
                    continue
            undone.append(sequence)
            replay.left += sealed.settles
        return undone

    async def _replay_former(self, former: FormerSpool) -> Replay | None:
        """A file of release 0.2."""
        replay = Replay(former.path.name)
        try:
            if not await asyncio.to_thread(former.lock):
                return None
            batches = await asyncio.to_thread(former.read, self._adoption.keys, self._adoption.settings)
            replay.left = sum(sealed.settles for sealed in batches)
            await self._offer_all(replay, list(enumerate(batches, 1)))
            replay.left -= replay.charges
            if not replay.why:
                replay.left = 0
                replay.damages = former.damages
                replay.damaged = str(await asyncio.to_thread(former.finish) or "")
        except (OSError, JournalError) as error:
            replay.why = reason_of(error)
        finally:
            former.close()
        return self._told(replay)

    def _told(self, replay: Replay) -> Replay:
        self.replayed += replay.charges
        if replay.charges:
            log.info("charges of a dead process's spool are settled", file=replay.name, charges=replay.charges,
                     refused=replay.refused)  # fmt: skip
        if replay.damaged and replay.name not in self._counted:
            self._counted.add(replay.name)
            self.damages += replay.damages
        if replay.damaged:
            self._say(replay.name + "!", "damaged parts of a spool are kept in a file", replay.damaged)
        if replay.why:
            self._say(replay.name, "a dead process's spool is not settled yet", replay.why)
        return replay

    def _say(self, name: str, what: str, why: str) -> None:
        if self._said.get(name) != why:
            if len(self._said) > 1000:
                self._said.clear()
            self._said[name] = why
            log.error(what, directory=str(self.directory), file=name.rstrip("!"), reason=why)


def _read(journal: Journal, replay: Replay) -> tuple[list[tuple[int, SealedBatch]], list[int], int]:
    """What can be read, the sequences of what cannot, and the last sequence."""
    entries: list[tuple[int, SealedBatch]] = []
    undone: list[int] = []
    last = journal.position
    for item in journal.entries():
        if isinstance(item, Damage):
            replay.damages += 1
            continue  # it is put aside
        last = item.sequence
        try:
            entries.append((item.sequence, SealedBatch.from_bytes(item.payload)))
        except SealedError as error:
            replay.why = f"entry {item.sequence}: {error}"
            replay.left += 1
            undone.append(item.sequence)
    return entries, undone, last
