"""What the clients of a scenario saw: every attempt, and what each account was told that it was charged.

A call is what a TPP wants done once. It takes one attempt, or under an idempotency key several. What it counts for in
the end:

* charged, if an attempt was answered as charged, or as the repetition of one that had been (whose answer was lost);
* in doubt, if no attempt was answered so and one of them was sent and not answered;
* nothing otherwise.
"""

from __future__ import annotations

import math
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

NO_ANSWER = 0
"""Stands for the status of an attempt that was sent and not answered whole."""
NOT_SENT = -1
"""Stands for the status of an attempt that found nobody to connect to."""


class Entry(NamedTuple):
    """What is counted for itself: an account's use of a metric."""

    account: str
    metric: str


@dataclass(frozen=True, slots=True)
class Claim:
    """Units of an entry by the clients' word: ``charged`` for certain, and ``doubtful`` ones beyond that at most."""

    charged: int = 0
    doubtful: int = 0


class Fate(Enum):
    """What became of one attempt."""

    CHARGED = "charged"
    REPEATED = "repeated"
    UNCHARGED = "uncharged"
    DOUBTFUL = "doubtful"
    UNSENT = "unsent"


def fate_of(status: int, charged: str | None, repeat: str | None) -> Fate:
    """What an answer of a charged route says: by its status, ``X-Credits-Charged`` and ``X-Credits-Repeat``.

    Answers of 500 and above are never charged, whatever fields they carry. Of the others those with the field are; one
    without it is a refusal by the gateway, or a success where credit fields are switched off.
    """
    if status == NOT_SENT:
        return Fate.UNSENT
    if status == NO_ANSWER:
        return Fate.DOUBTFUL
    if status >= 500:
        return Fate.UNCHARGED
    if repeat is not None:
        return Fate.REPEATED
    if charged is not None or status < 400:
        return Fate.CHARGED
    return Fate.UNCHARGED


class Call:
    """One call under way. ``counted``: it repeats a call that was counted already, so a repetition adds nothing."""

    __slots__ = ("charged", "counted", "doubtful", "fate", "pending")

    def __init__(self, *, counted: bool = False) -> None:
        self.counted = counted
        self.charged = 0
        self.doubtful = False
        self.pending = False
        self.fate: Fate | None = None
        """What became of the last attempt."""

    def sent(self) -> None:
        """An attempt begins."""
        self.pending = True
        self.fate = None

    def ended(self, fate: Fate) -> None:
        """The attempt is over."""
        self.pending = False
        self.fate = fate
        if fate is Fate.CHARGED:
            self.charged += 1
        elif fate is Fate.REPEATED and not self.counted and not self.charged:
            self.charged = 1
        elif fate is Fate.DOUBTFUL:
            self.doubtful = True

    def claim(self, units: int) -> Claim:
        """What the call counts for. An attempt that was broken off by its own client is in doubt too."""
        if self.charged:
            return Claim(self.charged * units)
        return Claim(0, units if self.doubtful or self.pending else 0)


@dataclass(frozen=True, slots=True)
class Latencies:
    """Of ``count`` answers, in milliseconds."""

    count: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


class Tally:
    """Everything that was seen. Times are seconds since ``restart``, or since it was made."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.at_s = array("d")
        self.took_ms = array("d")
        self.statuses = array("h")
        self.by_account: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self.repeated = 0
        """Answers that said that they repeat an earlier call."""
        self._charged: Counter[Entry] = Counter()
        self._doubtful: Counter[Entry] = Counter()

    def restart(self) -> None:
        """The load begins now; what was seen before lies at negative times."""
        shift = self.now_s()
        self.began += shift
        self.at_s = array("d", (at - shift for at in self.at_s))

    def now_s(self) -> float:
        return time.perf_counter() - self.began

    @contextmanager
    def call(self, entry: Entry, units: int = 1, *, counted: bool = False) -> Iterator[Call]:
        """Counts a call when the block ends, however it ends."""
        call = Call(counted=counted)
        try:
            yield call
        finally:
            claim = call.claim(units)
            self._charged[entry] += claim.charged
            self._doubtful[entry] += claim.doubtful

    def note(self, caller: str, status: int, took_ms: float) -> None:
        """One attempt that has ended now. ``caller`` names a TPP, which need not be an account."""
        self.at_s.append(self.now_s())
        self.took_ms.append(took_ms)
        self.statuses.append(status)
        self.by_account[caller][status] += 1

    def claims(self) -> Mapping[Entry, Claim]:
        """By entry, those with nothing left out."""
        entries = sorted({*self._charged, *self._doubtful})
        found = {entry: Claim(self._charged[entry], self._doubtful[entry]) for entry in entries}
        return {entry: claim for entry, claim in found.items() if claim != Claim()}

    def charged(self, account: str) -> int:
        """Units of all metrics that an account's clients know to be charged."""
        return sum(units for entry, units in self._charged.items() if entry.account == account)

    def doubtful(self, account: str | None = None) -> int:
        """Units in doubt, of one account or of all."""
        return sum(units for entry, units in self._doubtful.items() if account in (None, entry.account))

    def counts(self, begin_s: float = -math.inf, end_s: float = math.inf) -> Counter[int]:
        """How many attempts ended with each status."""
        return Counter(status for at, status in zip(self.at_s, self.statuses, strict=True) if begin_s <= at < end_s)

    def latencies(self, begin_s: float = -math.inf, end_s: float = math.inf) -> Latencies:
        """Of whatever was answered between two instants."""
        rows = zip(self.at_s, self.took_ms, self.statuses, strict=True)
        return latencies_of(sorted(ms for at, ms, status in rows if begin_s <= at < end_s and status > NO_ANSWER))

    def first(self, status: range, begin_s: float) -> float | None:
        """When the first answer with such a status came, at ``begin_s`` or later."""
        rows = zip(self.at_s, self.statuses, strict=True)
        return min((at for at, seen in rows if at >= begin_s and seen in status), default=None)


def latencies_of(ordered: list[float]) -> Latencies:
    """Percentiles of figures in order, each one that really occurred (nearest rank)."""
    if not ordered:
        return Latencies(0, 0.0, 0.0, 0.0, 0.0)

    def rank(share: float) -> float:
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    return Latencies(len(ordered), rank(0.5), rank(0.95), rank(0.99), ordered[-1])
