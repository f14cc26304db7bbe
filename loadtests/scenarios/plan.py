"""What the process that makes load is told, and what it answers. Both travel as JSON through pipes. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

Kind = Literal["calls", "herd", "slow", "bodies"]


@dataclass(frozen=True, slots=True)
class Caller:
    """An account and its API key."""

    account: str
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Call:
    """A request to make. ``units``: what it costs. ``twice``: it is made twice under one idempotency key.
    ``fields``: of its header, besides the key.
    """

    path: str
    method: str = "GET"
    body: str = ""
    units: int = 1
    weight: int = 1
    twice: bool = False
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """``kind`` says which users there are (``users.py``). ``attempts_max``: calls after which a herd rests; 0: no end.
    ``limit_s``: the longest time after which the gateway must have ended a slow client. ``body_bytes``: of big bodies.
    ``echo``, ``blob``: paths of an API that answers what it got, and that sends so many bytes; "" without.
    """

    kind: Kind
    urls: tuple[str, ...]
    callers: tuple[Caller, ...]
    calls: tuple[Call, ...]
    users: int
    seconds: float
    pause_s: tuple[float, float] = (0.0, 0.02)
    attempts_max: int = 0
    limit_s: float = 0.0
    body_bytes: int = 0
    echo: str = ""
    blob: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Plan:
        return cls(**{
            **document,
            "urls": tuple(document["urls"]),
            "callers": tuple(Caller(**each) for each in document["callers"]),
            "calls": tuple(Call(**each) for each in document["calls"]),
            "pause_s": tuple(document["pause_s"]),
        })  # fmt: skip


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds from a request's first byte to the last of its answer, of answers with a status of 2xx."""

    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    max: float = 0.0


@dataclass(frozen=True, slots=True)
class Second:
    """Requests that ended in one second of the run: with 2xx, with other statuses, without an answer."""

    at: int
    passed: int = 0
    refused: int = 0
    lost: int = 0


@dataclass(frozen=True, slots=True)
class Answers:
    """What came of all requests.

    ``by_status``: how many ended how: a status, or words for one that got none. ``charged``: units by account of the
    answers that said so; ``unsure``: units of requests that may have been charged and may not, since their connection
    was cut. ``broken``: answers that began and did not end. ``notes``: counts that only some users make. ``took_s``:
    from the first request to the end of the last one.
    """

    by_status: Mapping[str, int] = field(default_factory=dict)
    charged: Mapping[str, int] = field(default_factory=dict)
    unsure: Mapping[str, int] = field(default_factory=dict)
    broken: int = 0
    took_s: float = 0.0
    latency: Latency = Latency()
    seconds: tuple[Second, ...] = ()
    notes: Mapping[str, int] = field(default_factory=dict)
    texts: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        return sum(self.by_status.values())

    def statuses(self, first: str) -> int:
        """How many answers had a status that begins with this digit."""
        return sum(count for status, count in self.by_status.items() if status.isdigit() and status[0] == first)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Answers:
        return cls(**{
            **document,
            "latency": Latency(**document["latency"]),
            "seconds": tuple(Second(**each) for each in document["seconds"]),
            "texts": tuple(document["texts"]),
        })  # fmt: skip


def merged(run: Answers, first: Answers) -> Answers:
    """The answers of a run together with those of the calls before it, which have no time."""

    def added(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
        total = Counter(one)
        total.update(other)
        return dict(sorted(total.items()))

    return replace(
        run,
        by_status=added(run.by_status, first.by_status),
        charged=added(run.charged, first.charged),
        unsure=added(run.unsure, first.unsure),
        broken=run.broken + first.broken,
    )
