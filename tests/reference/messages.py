"""What is said to a ledger and what it answers; the model and the real scripts speak the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from tests.reference.pricing import Table

HOLD, SETTLE, RELEASE, REPLAY = 1, 2, 3, 4


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
    UNPAID = 12
    MISMATCH = 13
    UNDER_WAY = 14


class LedgerError(Exception):
    """The script answered with an error; ``word`` is its first word: STALE, LIMIT, INVALID, OVERFLOW, FORMAT. For an
    account that stops a batch it is ``ACCOUNT <number>``."""

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
    """A call under an idempotency key: ``scope`` names the key, ``body`` is what was sent. A settle and a release have
    the ``epoch`` and the ``token`` of their hold. A replay has the ``record`` of a spool, and a key or none."""

    account: str
    metric: str
    units: int
    scope: str = ""
    kind: int = HOLD
    known_version: int = 0
    body: str = ""
    repeats_max: int = 3
    refuses: bool = False
    epoch: int = 0
    token: int = 0
    record: str = ""

    @staticmethod
    def spooled(account: str, metric: str, units: int, record: str) -> Single:
        """A charge of a spool, without a key."""
        return Single(account, metric, units, kind=REPLAY, record=record)

    @property
    def event(self) -> Event | None:
        if self.kind in (HOLD, RELEASE):
            return None
        return Event(self.account, self.metric, self.units, f"/once/{self.record or self.scope}")


@dataclass(frozen=True)
class Batch:
    """``unpaid``: accounts, and how many answered requests of each were given back."""

    epoch: int
    seq: int
    groups: tuple[Group, ...] = ()
    singles: tuple[Single, ...] = ()
    unpaid: tuple[tuple[str, int], ...] = ()
    unpaid_interval_us: int = 250_000
    unpaid_burst: int = 4


@dataclass(frozen=True)
class Mark:
    """What an account keeps of an idempotency key. ``epoch``: of the hold that is under way, which has the ``token``; 0
    once it was charged. ``body`` None: of a record of a spool."""

    until_ms: int
    body: str | None = None
    epoch: int = 0
    token: int = 0
    repeats: int = 0


@dataclass(frozen=True)
class Outcome:
    code: Code
    x: int = 0
    y: int = 0


@dataclass(frozen=True)
class Summary:
    """``view`` is None unless the caller knows another version; -1: no such limit; version 0: nothing was said.
    ``token``: the idempotency key is the hold's now."""

    view: str | None
    rate_left: int
    day_left: int
    outcomes: tuple[Outcome, ...]
    version: int = 0
    token: int = 0


@dataclass(frozen=True)
class Reply:
    """``groups`` has None for a group without holds. ``stepped``: the latest instant and the server's, if its clock
    went back."""

    registered: bool
    now_us: int
    groups: tuple[Summary | None, ...]
    singles: tuple[Summary, ...]
    stepped: tuple[int, int] | None = None


@dataclass(frozen=True)
class Plan:
    """One subscription of a load. ``counted``: units that something else has counted in the period."""

    prices: Mapping[str, Table]
    start_ms: int
    end_ms: int
    following: tuple[int, ...] = ()
    expected_start_ms: int | None = None
    name: str = "main"
    counted: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Load:
    """``unsettled`` None: what is stored stays. Money in 10^-digits."""

    account: str
    plans: tuple[Plan, ...]
    ceiling: int | None = None
    expected_version: int = 0
    status: int = 0
    counts_unsettled: bool = True
    rate_interval_us: int = 0
    burst: int = 0
    day_limit: int = 0
    unsettled: int | None = None
    digits: int = 2
    expected_digits: int = 2
    fence: int | None = None
    view: str = "a view"
    about: str = "about it"


@dataclass(frozen=True)
class Loaded:
    version: int


@dataclass(frozen=True)
class Conflict:
    version: int
    digits: int


@dataclass(frozen=True)
class Inexact:
    """Something that is stored cannot be told by so few decimals."""

    version: int
    digits: int


@dataclass(frozen=True)
class Fenced:
    fence: int


LoadAnswer = Loaded | Conflict | Inexact | Fenced


@dataclass(frozen=True)
class Entry:
    """One entry of the outbox. ``times``: of the accounts whose events have another time than ``t_ms``."""

    origin: str
    seq: int
    t_ms: int
    events: tuple[tuple[Any, ...], ...]
    times: Mapping[str, int] = field(default_factory=dict)

    def time_of(self, account: str) -> int:
        return self.times.get(account, self.t_ms)


@dataclass(frozen=True)
class MetricState:
    """Units of one metric in the current period."""

    settled: int
    held: int


@dataclass(frozen=True)
class SubscriptionState:
    """A metric with no units is left out."""

    name: str
    start_ms: int
    end_ms: int
    metrics: Mapping[str, MetricState]
    live: Mapping[str, Table]
    gone: Mapping[str, Table]
    following: tuple[int, ...]


@dataclass(frozen=True)
class AccountState:
    """Everything the ledger keeps of one account, in comparable form."""

    version: int
    unsettled: int
    tat_us: int
    day: int
    day_count: int
    subscriptions: tuple[SubscriptionState, ...]
    shares: Mapping[tuple[int, str, str], int]
    """(epoch, subscription, metric) to units."""
    closed: Mapping[tuple[int, str, str], tuple[int, int]]
    """(start, subscription, metric) to units and cost."""
    hours: Mapping[tuple[int, str], int]
    """(hour since 1970, metric) to the units settled in it."""
    marks: Mapping[str, Mark]
    """Idempotency keys, and records of spools."""
    policy: tuple[Any, ...] | None
    digits: int | None
    view: str | None
    about: str | None
    fence: int | None = None
    unpaid_tat_us: int = 0

    def of(self, name: str) -> SubscriptionState:
        [found] = [subscription for subscription in self.subscriptions if subscription.name == name]
        return found

    @property
    def _only(self) -> SubscriptionState:
        [only] = self.subscriptions
        return only

    # For an account with one subscription, as most tests have it.

    @property
    def start_ms(self) -> int:
        return self._only.start_ms

    @property
    def end_ms(self) -> int:
        return self._only.end_ms

    @property
    def metrics(self) -> Mapping[str, MetricState]:
        return self._only.metrics

    @property
    def live(self) -> Mapping[str, Table]:
        return self._only.live

    @property
    def gone(self) -> Mapping[str, Table]:
        return self._only.gone

    @property
    def following(self) -> tuple[int, ...]:
        return self._only.following

    @property
    def records(self) -> dict[tuple[int, str], tuple[int, int]]:
        """``closed`` of the only subscription."""
        assert {name for _, name, _ in self.closed} <= {self._only.name}
        return {(start, metric): record for (start, _, metric), record in self.closed.items()}


@dataclass(frozen=True)
class InstanceState:
    """``held``: units in all."""

    epoch: int
    seq: int
    held: int
    heartbeat_ms: int | None
    expires: bool


@dataclass(frozen=True)
class HomeState:
    """What the meta hash of the home partition says. ``departed``: epoch to the units that are to be given back."""

    latest_us: int
    stepped: tuple[int, int] | None
    epochs: int
    departed: Mapping[int, int]


@dataclass(frozen=True)
class State:
    accounts: Mapping[str, AccountState]
    instances: Mapping[str, InstanceState]
    outbox: tuple[Entry, ...]
    home: HomeState

    @property
    def hours(self) -> dict[tuple[int, str, str], int]:
        """(hour since 1970, account, metric) to the units settled in it."""
        return {
            (hour, name, metric): units
            for name, account in self.accounts.items()
            for (hour, metric), units in account.hours.items()
        }
