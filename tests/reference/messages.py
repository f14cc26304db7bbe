"""What is said to a ledger and what it answers; the model and the real scripts speak the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from tests.reference.pricing import Table

HOLD, SETTLE, LATE_SETTLE = 1, 2, 3


class Code(IntEnum):
    GRANTED = 0
    CREDIT = 1
    RATE = 2
    DAILY = 3
    SUSPENDED = 4
    CLOSED = 5
    UNKNOWN = 6
    UNPRICED = 7
    UNREGISTERED = 8
    REPEAT = 9


class LedgerError(Exception):
    """The script answered with an error; ``word`` is its first word: STALE, LIMIT, HELD, INVALID, OVERFLOW."""

    def __init__(self, word: str, message: str = "") -> None:
        super().__init__(message or word)
        self.word = word


@dataclass(frozen=True)
class Event:
    """A usage event; its JSON form is docs/ledger.md's."""

    account: str
    metric: str
    units: int
    route: str = "/accounts"
    status: int = 200

    def as_json(self) -> list[Any]:
        return [self.account, self.metric, self.units, self.route, "GET", self.status, 1.5, None, None]


@dataclass(frozen=True)
class Group:
    account: str
    metric: str
    settled: int = 0
    released: int = 0
    late: int = 0
    holds: tuple[int, ...] = ()
    known_version: int = 0
    events: tuple[Event, ...] = ()

    @staticmethod
    def of(
        account: str,
        metric: str = "api_calls",
        *,
        hold: tuple[int, ...] = (),
        settle: tuple[int, ...] = (),
        late: tuple[int, ...] = (),
        release: int = 0,
        known_version: int = 0,
    ) -> Group:
        """A group with an event for each settle."""
        events = tuple(Event(account, metric, units) for units in settle + late)
        return Group(account, metric, sum(settle), release, sum(late), hold, known_version, events)


@dataclass(frozen=True)
class Single:
    """A call under an idempotency key; ``scope`` names the key."""

    account: str
    metric: str
    units: int
    scope: str
    kind: int = HOLD
    known_version: int = 0

    @property
    def event(self) -> Event | None:
        return None if self.kind == HOLD else Event(self.account, self.metric, self.units, f"/once/{self.scope}")


@dataclass(frozen=True)
class Batch:
    epoch: int
    seq: int
    groups: tuple[Group, ...] = ()
    singles: tuple[Single, ...] = ()


@dataclass(frozen=True)
class Outcome:
    code: Code
    x: int = 0
    y: int = 0


@dataclass(frozen=True)
class Summary:
    """``info`` is None unless the caller knows another version; -1: no such limit."""

    info: str | None
    rate_left: int
    day_left: int
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True)
class Reply:
    """``groups`` has None for a group without holds."""

    registered: bool
    now_us: int
    groups: tuple[Summary | None, ...]
    singles: tuple[Summary, ...]


@dataclass(frozen=True)
class Load:
    """``unsettled`` None: what is stored stays. Money in 10^-digits."""

    account: str
    prices: Mapping[str, Table]
    period_start_ms: int
    period_end_ms: int
    ceiling: int | None = None
    expected_version: int = 0
    status: int = 0
    counts_unsettled: bool = True
    rate_interval_us: int = 0
    burst: int = 0
    day_limit: int = 0
    periods: tuple[int, ...] = ()
    unsettled: int | None = None
    digits: int = 2
    expected_digits: int = 2
    expected_start_ms: int | None = None
    info: str = field(default='{"version":0,"currency":"EUR"}')


@dataclass(frozen=True)
class Loaded:
    version: int


@dataclass(frozen=True)
class Conflict:
    version: int
    digits: int


@dataclass(frozen=True)
class Entry:
    """One entry of the outbox."""

    origin: str
    seq: int
    t_ms: int
    events: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class MetricState:
    """Units of one metric in the current period."""

    settled: int
    held: int


@dataclass(frozen=True)
class AccountState:
    """Everything the ledger keeps of one account, in comparable form. A metric with no units is left out."""

    version: int
    unsettled: int
    start_ms: int
    end_ms: int
    tat_us: int
    day: int
    day_count: int
    metrics: Mapping[str, MetricState]
    live: Mapping[str, Table]
    gone: Mapping[str, Table]
    periods: tuple[int, ...]
    closed: Mapping[tuple[int, str], tuple[int, int]]
    policy: tuple[Any, ...] | None
    digits: int | None
    info: str | None


@dataclass(frozen=True)
class InstanceState:
    epoch: int
    seq: int
    shares: Mapping[tuple[str, str], int]
    heartbeat_ms: int | None
    expires: bool


@dataclass(frozen=True)
class State:
    accounts: Mapping[str, AccountState]
    instances: Mapping[str, InstanceState]
    outbox: tuple[Entry, ...]
    hours: Mapping[tuple[int, str, str], int]
    """(hour since 1970, account, metric) to the units settled in it."""
