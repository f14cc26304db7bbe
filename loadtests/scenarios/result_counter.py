"""Counts what came of requests while they are made. No I/O."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from loadtests.scenarios.plan import Answers, Latency, Second

CHARGED, REPEAT = "x-credits-charged", "x-credits-repeat"
CHARGED_STATUSES = range(200, 400)
"""The statuses of the API that the gateway charges by default (``charge_statuses``)."""

TEXTS_MAX = 5


class End(StrEnum):
    """How a request ended."""

    ANSWERED = "answered"
    REFUSED = "connection refused"
    CUT = "cut without an answer"
    BROKEN = "answer broke off"
    UNREAD = "answer left unread"


@dataclass(frozen=True, slots=True)
class Reply:
    """``status`` is 0 where there was none. ``fields``: names in lower case. ``why`` nobody could be reached."""

    end: End
    status: int = 0
    fields: Mapping[str, str] | None = None
    body: bytes = b""
    why: str = ""

    @property
    def is_charged(self) -> bool:
        """Whether the answer says that it was charged. A failure of the API carries the fields too, and its hold is
        given back; what the gateway itself refuses has none of them.
        """
        fields = self.fields or {}
        whole = self.end is End.ANSWERED and self.status in CHARGED_STATUSES
        return whole and CHARGED in fields and REPEAT not in fields


class ResultCounter:
    """``answers()`` at the end is all that anybody sees of it."""

    def __init__(self) -> None:
        self._by_status: Counter[str] = Counter()
        self._charged: Counter[str] = Counter()
        self._unsure: Counter[str] = Counter()
        self._notes: Counter[str] = Counter()
        self._passed_ms: list[float] = []
        self._seconds: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0, 0])
        self._texts: list[str] = []

    def __repr__(self) -> str:
        return f"ResultCounter({dict(self._by_status)})"

    def record(self, reply: Reply, *, account: str, units: int, at_s: float, took_ms: float) -> None:
        """``at_s``: seconds since the run began."""
        answered = reply.end is End.ANSWERED
        self._by_status[str(reply.status) if answered else reply.end.value] += 1
        if reply.is_charged:
            self._charged[account] += units
        elif reply.end in (End.CUT, End.BROKEN, End.UNREAD):
            self._unsure[account] += units
        passed = answered and 200 <= reply.status < 300
        if passed:
            self._passed_ms.append(took_ms)
        self._seconds[int(at_s)][0 if passed else 1 if answered else 2] += 1

    def note(self, what: str, count: int = 1) -> None:
        self._notes[what] += count

    def tell(self, text: str) -> None:
        """A sentence on what went wrong; the first few are kept."""
        if len(self._texts) < TEXTS_MAX:
            self._texts.append(text)

    def answers(self) -> Answers:
        return Answers(
            by_status=dict(sorted(self._by_status.items())),
            charged=dict(self._charged),
            unsure=dict(self._unsure),
            broken=self._by_status[End.BROKEN.value],
            latency=latency_of(self._passed_ms),
            seconds=_without_gaps(self._seconds),
            notes=dict(self._notes),
            texts=tuple(self._texts),
        )


def latency_of(values_ms: Sequence[float]) -> Latency:
    """Percentiles by the nearest rank, as locust has them."""
    if not values_ms:
        return Latency()
    ordered = sorted(values_ms)

    def rank(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)

    return Latency(rank(0.50), rank(0.90), rank(0.99), round(ordered[-1], 1))


def _without_gaps(seconds: Mapping[int, Sequence[int]]) -> tuple[Second, ...]:
    if not seconds:
        return ()
    none = (0, 0, 0)
    return tuple(Second(at, *seconds.get(at, none)) for at in range(min(seconds), max(seconds) + 1))
