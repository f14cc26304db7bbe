"""What a verification found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import Final

DIFFERENCES_MAX: Final = 1_000
"""Differences that are named; further ones are counted."""

NOTES_MAX: Final = 100


class Check(Enum):
    """What is compared with what."""

    READABLE = "readable"
    """Every value can be read, and is what it must be."""
    HELD = "held"
    """The held units of a counter are the sum of its shares."""
    EPOCHS = "epochs"
    """The shares of an epoch are what its gateway process holds, or held when it departed."""
    ORPHANED_SHARES = "orphaned shares"
    """Shares of an epoch that belongs to nobody: they never come back by themselves."""
    HOURS = "hours"
    """The settled units of a period are the sum of its hours."""
    EVENTS = "events"
    """The units of an hour are those of its events."""
    ACCOUNTS = "accounts"
    """The index, the states and the hashes name the same accounts."""
    API_KEYS = "API keys"
    """An API key and its account name each other."""
    INSTANCES = "instances"
    """A gateway process has a heartbeat and a record, or neither."""
    PARTITIONS = "partitions"
    """All partitions are of one format, one number of partitions, and a clock that is not ahead."""
    KEYS = "keys"
    """Every key belongs to a partition of this ledger, and to the right one."""


@dataclass(frozen=True, slots=True)
class Difference:
    """``place``: where it is. ``expected`` and ``found`` are texts for people."""

    check: Check
    place: str
    what: str
    expected: str
    found: str


@dataclass(frozen=True, slots=True)
class OrphanedShares:
    """Units of accounts that are held for an epoch that belongs to nobody. ``accounts``: the first of them."""

    epoch: int
    units: int
    accounts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """``more``: differences that are not named. ``epochs_moving``: epochs whose holds moved during every look, so that
    their sum is not known. ``first_hour``, ``hours``: how many hours, from which on, were compared with their events.
    """

    accounts: int
    epochs: int
    epochs_moving: int
    first_hour: int
    hours: int
    differences: tuple[Difference, ...] = ()
    more: int = 0
    orphans: tuple[OrphanedShares, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        return not self.differences


class Findings:
    """Collects differences and notes, a bounded number of each."""

    def __init__(self) -> None:
        self.differences: list[Difference] = []
        self.more = 0
        self._notes: Counter[str] = Counter()

    def add(self, check: Check, place: str, what: str, expected: object, found: object) -> None:
        self.extend([Difference(check, place, what, str(expected)[:300], str(found)[:300])])

    def extend(self, differences: list[Difference]) -> None:
        room = max(0, DIFFERENCES_MAX - len(self.differences))
        self.differences += differences[:room]
        self.more += len(differences[room:])

    def note(self, text: str) -> None:
        """What is worth knowing and no difference."""
        if text in self._notes or len(self._notes) < NOTES_MAX:
            self._notes[text] += 1

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self._notes)
