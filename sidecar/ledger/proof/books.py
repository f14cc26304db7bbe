"""All entries of one place, the ledger's streams or an archive, verified origin by origin. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from sidecar.ledger.proof.entries import Entry
from sidecar.ledger.proof.history import End, Fault, OriginHistory, OriginReport

_NOBODY: frozenset[bytes] = frozenset()


@dataclass(slots=True)
class BooksReport:
    """What one place has.

    Attributes:
        entries: each once.
        origins: how many wrote them.
        chained: entries that carry a chain value.
        unchained: entries without one: an operator's adjustments, refused settles that were charged later, gateways
            without a key. They are not proven.
        adopted: entries that another process appended out of a spool.
        offered_again: entries that a server lost, and that stand here a second time.
        parts: dead letters that were put back.
        unproven: last entries that nothing confirms yet.
        without_beginning: origins whose first entries are not here any more.
        faults: in the order of time.
    """

    entries: int = 0
    origins: int = 0
    chained: int = 0
    unchained: int = 0
    adopted: int = 0
    offered_again: int = 0
    parts: int = 0
    unproven: int = 0
    without_beginning: int = 0
    faults: list[Fault] = field(default_factory=list)


class Books:
    """``keys``: one, or several if the key was changed; an origin has one of them. ``may_fork`` False: the place cannot
    have what a server lost."""

    def __init__(self, keys: Sequence[bytes], *, may_fork: bool) -> None:
        self._keys = keys
        self._may_fork = may_fork
        self._histories: dict[str, list[OriginHistory]] = {}
        self._chosen: dict[str, OriginHistory] = {}
        self._left: dict[str, Set[int]] = {}

    def __repr__(self) -> str:
        return f"Books({len(self._histories)} origins)"

    def add(self, entry: Entry) -> None:
        histories = self._histories.get(entry.origin)
        if histories is None:
            histories = [OriginHistory(key, entry.origin, may_fork=self._may_fork) for key in self._keys]
            self._histories[entry.origin] = histories
        for history in histories:
            history.add(entry)

    def has(self, origin: str) -> bool:
        """Whether an origin has entries with a chain value here."""
        return any(history.values for history in self._histories.get(origin, ()))

    def values_of(self, origin: str) -> Set[bytes]:
        """Of the entries of an origin, once the books were verified; empty if it has none here."""
        history = self._chosen.get(origin)
        return history.values if history is not None else _NOBODY

    def value_of(self, entry: Entry) -> bytes:
        """Of an entry that was added, once the books were verified; b"" if it has none."""
        return self._chosen[entry.origin].value_of(entry)

    def left_of(self, origin: str) -> Set[int]:
        """Positions of an origin's entries, in the order in which they were added, that count for nothing. Known once
        the books were verified."""
        return self._left.get(origin, frozenset())

    def verify(self, ends: Mapping[str, Sequence[End]]) -> BooksReport:
        """Once. ``ends``: by origin."""
        found = BooksReport()
        for origin, histories in self._histories.items():
            reports = [history.verify(ends.get(origin, ())) for history in histories]
            best = min(range(len(reports)), key=lambda n: len(reports[n].faults))
            report, self._chosen[origin] = reports[best], histories[best]
            self._left[origin] = report.left
            _add(found, report)
        found.faults.sort(key=lambda fault: (fault.at_ms, fault.entry))
        return found


def _add(found: BooksReport, report: OriginReport) -> None:
    found.origins += 1
    found.entries += report.entries
    found.chained += report.entries - report.unchained
    found.unchained += report.unchained
    found.adopted += report.adopted
    found.offered_again += report.offered_again
    found.parts += report.parts
    found.unproven += report.unproven
    found.without_beginning += not report.begins
    found.faults += report.faults
