"""Verifies the books: the archive and the ledger's streams, each by itself and against each other."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from sidecar.ledger.proof.books import Books, BooksReport
from sidecar.ledger.proof.checkpoint import Checkpoint, CheckpointError, opened
from sidecar.ledger.proof.entries import Entry, UnreadableEntry, entry_of
from sidecar.ledger.proof.history import End, Fault
from sidecar.metering.archive.archive_place import ArchivePlace
from sidecar.metering.archive.archived_entries import ArchivedEntry, UnreadableLine
from sidecar.metering.proof.ledger_books import KeptEntry, LedgerBooks

CHECKPOINT: Final = ".checkpoint.json"
SETTLED_MS: Final = 5_000
"""A process has said its last value with a heartbeat after this time."""


@dataclass(slots=True)
class BookReport:
    """``archive`` and ``ledger``: what each has, None if it was not read. ``torn``: files of the archive that end in a
    part of a line, as a publisher that was killed leaves them. ``checkpoints``: how many were compared."""

    archive: BooksReport | None = None
    ledger: BooksReport | None = None
    checkpoints: int = 0
    torn: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class CountedEntry:
    """``counts`` False: a repetition, or of a branch that a server lost. ``is_chained``: it is proven."""

    what: ArchivedEntry
    counts: bool
    is_chained: bool


class BookVerification:
    """One run. ``keys``: of the chains, one or several. ``archive``, ``ledger``: what to read, None to leave out.
    ``checkpoints``: where they are, the archive unless given. ``public_key`` None: their signatures are not looked at.
    """

    def __init__(
        self, keys: Sequence[bytes], *, archive: ArchivePlace | None, ledger: LedgerBooks | None,
        checkpoints: ArchivePlace | None = None, public_key: Ed25519PublicKey | None = None,
    ) -> None:  # fmt: skip
        self._archive = archive
        self._ledger = ledger
        self._checkpoints_place = checkpoints or archive
        self._public_key = public_key
        self._archive_books = Books(keys, may_fork=True)
        self._ledger_books = Books(keys, may_fork=False)
        self._names: list[str] = []
        self._first_ms = 0
        self._first_numbers: dict[str, int] = {}
        self._places: dict[str, str | None] = {}
        """In the archive, of entries that the ledger has too."""
        self._kept: list[tuple[KeptEntry, Entry]] = []
        self.report = BookReport()

    def __repr__(self) -> str:
        return f"BookVerification({self._archive!r}, {self._ledger!r})"

    async def run(self) -> BookReport:
        """Raises ArchiveError; RedisError or OSError when Valkey cannot be reached."""
        report = self.report
        # First the ends, then the tail, then the archive: an entry moves in this direction, and none is missed.
        said = await self._ledger.origins() if self._ledger is not None else []
        ends: defaultdict[str, list[End]] = defaultdict(list)
        for mark in said:
            ends[mark.origin].append(End(mark.chain, "the ledger", mark.number))
        if self._ledger is not None:
            await self._read_ledger(self._ledger)
        if self._archive is not None:
            self._read_archive(self._archive)
            archive_ends = self._checkpoint_ends()
            for origin, known in ends.items():
                if not self._ledger_books.has(origin):
                    archive_ends[origin] += known
            report.archive = self._archive_books.verify(archive_ends)
            report.faults += report.archive.faults
        if self._ledger is not None:
            report.ledger = self._ledger_books.verify(ends)
            report.faults += report.ledger.faults
            if self._archive is not None:
                self._compare()
        report.faults.sort(key=lambda fault: (fault.at_ms, fault.entry))
        return report

    def _fault(self, place: str, entry: str, at_ms: int, what: str) -> None:
        self.report.faults.append(Fault(place, entry, at_ms, what))

    async def _read_ledger(self, ledger: LedgerBooks) -> None:
        for place in await ledger.deleted():
            self._fault(place, "?", 0, "was deleted from the tail, which nothing does")
        async for kept in ledger.entries():
            what = kept.what
            order = None if kept.is_sent else what.order
            try:
                entry = entry_of(kept.place, what.fields, order, is_edge=kept.is_edge)
            except UnreadableEntry as error:
                self._fault(kept.place, "?", what.order[0], str(error))
                continue
            self._ledger_books.add(entry)
            self._check_partition(entry, what.partition)
            self._kept.append((kept, entry))
            self._places[entry.name] = None

    def _check_partition(self, entry: Entry, partition: int) -> None:
        if entry.chain and not entry.origin.endswith(f".{partition:02d}"):
            self._fault(entry.place, entry.name, entry.at_ms, f"is an entry of another partition than {partition}")

    def _read_archive(self, archive: ArchivePlace) -> None:
        self._names = [name for name in archive.names() if not name.endswith(CHECKPOINT)]
        for place, line in self._lines(archive):
            try:
                what, entry = _parsed(place, line)
            except (UnreadableLine, UnreadableEntry) as error:
                if line.endswith(b"\n"):
                    self._fault(place, "?", 0, str(error))
                else:
                    self.report.torn.append(place)
                continue
            self._archive_books.add(entry)
            if entry.name in self._places:
                self._places[entry.name] = place
            self._check_partition(entry, what.partition)
            self._first_ms = min(self._first_ms or what.accepted_ms, what.accepted_ms)
            first = self._first_numbers.get(entry.origin)
            if first is None or entry.number < first:
                self._first_numbers[entry.origin] = entry.number

    def _lines(self, archive: ArchivePlace) -> Iterator[tuple[str, bytes]]:
        for name in self._names:
            for number, line in enumerate(archive.lines(name), 1):
                yield f"{name} line {number}", line

    def _checkpoint_ends(self) -> defaultdict[str, list[End]]:
        ends: defaultdict[str, list[End]] = defaultdict(list)
        place = self._checkpoints_place
        assert place is not None
        for name in place.names():
            if not name.endswith(CHECKPOINT):
                continue
            try:
                checkpoint, _ = opened(b"".join(place.lines(name)), self._public_key)
            except CheckpointError as error:
                self._fault(name, "?", 0, f"is a checkpoint that proves nothing: {error}")
                continue
            self.report.checkpoints += 1
            if checkpoint.at_ms >= self._first_ms + SETTLED_MS:
                self._take(name, checkpoint, ends)
        return ends

    def _take(self, name: str, checkpoint: Checkpoint, ends: defaultdict[str, list[End]]) -> None:
        idle = {f"{mark.partition:02d}" for mark in checkpoint.partitions if not mark.waiting}
        for mark in checkpoint.origins:
            if mark.origin.rpartition(".")[2] in idle:  # else the archive may not have had its last entries yet
                ends[mark.origin].append(End(mark.chain, f"the checkpoint {name}", mark.number))

    def _compare(self) -> None:
        """Everything in the tail was archived before, since the archive has an entry of its origin."""
        for kept, entry in self._kept:
            value = self._ledger_books.value_of(entry)
            first = self._first_numbers.get(entry.origin)
            if not kept.is_sent or not value or first is None or entry.number < first:
                continue
            if value in self._archive_books.values_of(entry.origin):
                continue
            place = self._places.get(entry.name)
            if place is not None:
                self._fault(place, entry.name, entry.at_ms, f"was changed: it is another one in the {kept.place}")
            else:
                self._fault(kept.place, entry.name, entry.at_ms, "is not in the archive: it was cut out there")

    async def counted(self) -> AsyncIterator[CountedEntry]:
        """Every entry, once the run is over: of the archive, and of the ledger what the archive has not got."""
        seen: Counter[str] = Counter()
        if self._archive is not None:
            for _, line in self._lines(self._archive):
                try:
                    what, entry = _parsed("", line)
                except (UnreadableLine, UnreadableEntry):
                    continue
                at = seen[entry.origin]
                seen[entry.origin] += 1
                yield CountedEntry(what, at not in self._archive_books.left_of(entry.origin), bool(entry.chain))
        seen.clear()
        for kept, entry in self._kept:
            value = self._ledger_books.value_of(entry)
            at = seen[entry.origin]
            seen[entry.origin] += 1
            counts = at not in self._ledger_books.left_of(entry.origin)
            if not value or value not in self._archive_books.values_of(entry.origin):
                yield CountedEntry(kept.what, counts, bool(entry.chain))


def first_of(faults: Sequence[Fault]) -> Fault | None:
    """The first entry that is wrong; a fault without a time comes last."""
    return next((fault for fault in faults if fault.at_ms), faults[0] if faults else None)


def _parsed(place: str, line: bytes) -> tuple[ArchivedEntry, Entry]:
    """Raises UnreadableLine, UnreadableEntry."""
    what = ArchivedEntry.from_line(line)
    return what, entry_of(place, what.fields, what.order, has_parts=bool(what.refused))
