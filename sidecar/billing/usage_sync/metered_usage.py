"""Reads metered usage from OpenMeter with as few queries as possible.

Most accounts want the same hours, so an hour that two accounts want is asked for all subjects at once and kept for the
whole round, as long as there is room. If the answer is too large it is asked for fewer hours, in the end for the
accounts that want it. The rest, intervals cut by the bounds of a period and hours that one account is behind, is asked
for that account alone, neighbouring hours with one query.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Final, Literal, Protocol
from urllib.parse import quote

from sidecar.billing.usage_sync.concurrency import gather_limited
from sidecar.billing.usage_sync.pushed_usage import HOUR_S
from sidecar.metering.openmeter.query_rows import AnswerTooLarge, QueryError

Window = Literal["HOUR", "MINUTE"]

STEP_S: Final[dict[Window, int]] = {"HOUR": HOUR_S, "MINUTE": 60}
MINUTES_MAX: Final = 15
"""An interval of more minutes is asked for as a whole."""
QUERIES_MAX: Final = 4
"""Queries at once; OpenMeter counts raw events for each."""
SHARED_CELLS_MAX: Final[dict[Window, int]] = {"HOUR": 6, "MINUTE": 10}
"""Windows in one query for all subjects: ten thousand subjects give as many rows for each."""
OWN_CELLS_MAX: Final = 2_000
SUBJECTS_MAX: Final = 100
"""Of one query (OpenMeter's OpenAPI document, MeterQueryRequest)."""
SUBJECT_CHARS_MAX: Final = 4_000
"""Of all subjects in one query: proxies allow 8 kB for a request's first line."""
KEPT_MAX: Final = 1_000_000
"""Counts of subjects that are kept for the round; the windows that came first go when there are more."""


class Row(Protocol):
    """A row of the query, as far as it is read here."""

    @property
    def subject(self) -> str: ...
    @property
    def window_start_ms(self) -> int: ...
    @property
    def units(self) -> int: ...
    @property
    def fault(self) -> str: ...


@dataclass(frozen=True, slots=True)
class NotShown:
    """In the place of units: OpenMeter does not say. ``is_fault``: what it says of this account cannot be."""

    reason: str
    is_fault: bool = True


Shown = int | NotShown


class UsageQuery(Protocol):
    """OpenMeter's query; raises ``sidecar.metering.openmeter.meter_query.QueryError``."""

    async def usage(
        self,
        metric: str,
        from_ms: int,
        to_ms: int,
        *,
        subject: str | Sequence[str] | None = None,
        window: Window | None = "HOUR",
    ) -> Sequence[Row]: ...


@dataclass(frozen=True, slots=True)
class UsageRange:
    """Units of one account from ``start_s`` to just before ``end_s``."""

    account: str
    metric: str
    start_s: int
    end_s: int

    def window(self) -> Window | None:
        """The windows that it consists of, None if of none."""
        if self.start_s % HOUR_S == 0 and self.end_s - self.start_s == HOUR_S:
            return "HOUR"
        if self.start_s % 60 == 0 and self.end_s % 60 == 0 and self.end_s - self.start_s <= MINUTES_MAX * 60:
            return "MINUTE"
        return None


@dataclass(frozen=True, slots=True)
class _Cell:
    metric: str
    window: Window
    start_s: int


@dataclass(frozen=True, slots=True)
class _Interval:
    metric: str
    start_s: int
    end_s: int


class UsageReader:
    """Answers for one round. ``load`` the ranges of a page, then ask for each with ``units``."""

    def __init__(self, query: UsageQuery) -> None:
        self._query = query
        # For all subjects, kept for the round.
        self._cells: dict[_Cell, dict[str, Shown]] = {}
        self._intervals: dict[_Interval, dict[str, Shown]] = {}
        self._names: dict[str, str] = {}
        self._too_large: set[_Cell] = set()
        # For one account, kept for the page.
        self._own_cells: dict[tuple[str, _Cell], Shown] = {}
        self._own_intervals: dict[tuple[str, _Interval], Shown] = {}

    def __repr__(self) -> str:
        return f"UsageReader({len(self._cells)} windows and {len(self._intervals)} intervals of all subjects)"

    async def load(self, ranges: Sequence[UsageRange]) -> None:
        """Fetch what is needed and not known yet.

        Raises:
            QueryError: the first query that failed. Those under way have come to their ends and no other was begun, so
                that nobody waits for as many timeouts as there are queries.
        """
        self._own_cells.clear()
        self._own_intervals.clear()
        cells, intervals = defaultdict[_Cell, set[str]](set), defaultdict[_Interval, set[str]](set)
        for usage_range in ranges:
            window = usage_range.window()
            if window is None:
                intervals[_interval(usage_range)].add(usage_range.account)
            else:
                for cell in _cells(usage_range, window):
                    cells[cell].add(usage_range.account)
        unknown = {cell: accounts for cell, accounts in cells.items() if cell not in self._cells}
        shared = [cell for cell, accounts in unknown.items() if len(accounts) > 1]
        own = [(next(iter(accounts)), cell) for cell, accounts in unknown.items() if len(accounts) == 1]
        queries: list[Callable[[], Awaitable[None]]] = [
            *(partial(self._fetch_cells, run, unknown) for run in _runs(shared, SHARED_CELLS_MAX)),
            *(partial(self._fetch_own_cells, account, run) for account, run in _own_runs(own)),
            *(
                partial(self._fetch_interval, interval, accounts)
                for interval, accounts in intervals.items()
                if interval not in self._intervals
            ),
        ]
        self._make_room(cells.keys(), intervals.keys())
        failures: list[QueryError] = []

        async def fetch(query: Callable[[], Awaitable[None]]) -> None:
            if not failures:
                try:
                    await query()
                except QueryError as error:
                    failures.append(error)

        await gather_limited(fetch, queries, QUERIES_MAX)
        if failures:
            raise failures[0]

    def units(self, usage_range: UsageRange) -> Shown:
        """Units of a range that was loaded last. OpenMeter has no row for what has no usage."""
        window, account = usage_range.window(), usage_range.account
        if window is None:
            interval = _interval(usage_range)
            if interval in self._intervals:
                return self._intervals[interval].get(account, 0)
            return self._own_intervals[account, interval]
        total = 0
        for cell in _cells(usage_range, window):  # one, but for minutes
            shown = self._cells[cell].get(account, 0) if cell in self._cells else self._own_cells[account, cell]
            if isinstance(shown, NotShown):
                return shown
            total += shown
        return total

    def _make_room(self, wanted: Collection[_Cell], wanted_intervals: Collection[_Interval]) -> None:
        kept = sum(map(len, self._cells.values())) + sum(map(len, self._intervals.values()))
        for cell in [cell for cell in self._cells if cell not in wanted]:
            if kept <= KEPT_MAX:
                return
            kept -= len(self._cells.pop(cell))
        for interval in [interval for interval in self._intervals if interval not in wanted_intervals]:
            if kept <= KEPT_MAX:
                return
            kept -= len(self._intervals.pop(interval))

    async def _fetch_cells(self, run: Sequence[_Cell], wanted: Mapping[_Cell, Collection[str]]) -> None:
        if not self._too_large.isdisjoint(run) and len(run) > 1:
            await self._fetch_halves(run, wanted)
            return
        try:
            if run[0] in self._too_large:
                raise AnswerTooLarge(0)
            self._note_cells(run, await self._ask(run, None))
        except AnswerTooLarge:
            if len(run) > 1:
                await self._fetch_halves(run, wanted)
                return
            self._too_large.add(run[0])
            # For this page only: the accounts of the next one are not in it.
            for some in _chunks(sorted(wanted[run[0]])):
                rows = await self._ask(run, some)
                self._own_cells.update(((account, run[0]), 0) for account in some)
                for account, shown in _by_subject(rows).items():
                    self._own_cells[account, run[0]] = shown

    async def _fetch_halves(self, run: Sequence[_Cell], wanted: Mapping[_Cell, Collection[str]]) -> None:
        half = len(run) // 2
        await self._fetch_cells(run[:half], wanted)
        await self._fetch_cells(run[half:], wanted)

    def _note_cells(self, run: Sequence[_Cell], rows: Sequence[Row]) -> None:
        found: dict[_Cell, dict[str, Shown]] = {cell: {} for cell in run}
        faults = {row.subject: row.fault for row in rows if row.fault}
        names = self._names
        for row in rows:
            cell = _Cell(run[0].metric, run[0].window, row.window_start_ms // 1000)
            if cell in found and row.subject not in faults:
                found[cell][names.setdefault(row.subject, row.subject)] = row.units
        for subject, fault in faults.items():
            for by_subject in found.values():
                by_subject[subject] = _not_shown(fault)
        self._cells.update(found)

    async def _fetch_own_cells(self, account: str, run: Sequence[_Cell]) -> None:
        rows = [row for row in await self._ask(run, account) if row.subject == account]
        fault = next((row.fault for row in rows if row.fault), "")
        nothing: Shown = _not_shown(fault) if fault else 0
        self._own_cells.update(((account, cell), nothing) for cell in run)
        for row in rows:
            key = account, _Cell(run[0].metric, run[0].window, row.window_start_ms // 1000)
            if not fault and key in self._own_cells:
                self._own_cells[key] = row.units

    async def _ask(self, run: Sequence[_Cell], subject: str | Sequence[str] | None) -> Sequence[Row]:
        first, end_s = run[0], run[-1].start_s + STEP_S[run[-1].window]
        return await self._query.usage(
            first.metric, first.start_s * 1000, end_s * 1000, subject=subject, window=first.window
        )

    async def _fetch_interval(self, interval: _Interval, accounts: Collection[str]) -> None:
        if len(accounts) > 1:
            try:
                self._intervals[interval] = _by_subject(await self._ask_interval(interval, None))
            except AnswerTooLarge:
                pass
            else:
                return
        for some in _chunks(sorted(accounts)):
            shown = _by_subject(await self._ask_interval(interval, some if len(some) > 1 else some[0]))
            self._own_intervals.update(((account, interval), shown.get(account, 0)) for account in some)

    async def _ask_interval(self, interval: _Interval, subject: str | Sequence[str] | None) -> Sequence[Row]:
        return await self._query.usage(
            interval.metric, interval.start_s * 1000, interval.end_s * 1000, subject=subject, window=None
        )


def _not_shown(fault: str) -> NotShown:
    return NotShown(f"OpenMeter's answer {fault}")


def _by_subject(rows: Sequence[Row]) -> dict[str, Shown]:
    """Of one window."""
    found: dict[str, Shown] = {}
    for row in rows:
        if row.fault or not isinstance(found.get(row.subject), NotShown):
            found[row.subject] = _not_shown(row.fault) if row.fault else row.units
    return found


def _chunks(subjects: Sequence[str]) -> Iterator[list[str]]:
    """As many at a time as one query may name."""
    some: list[str] = []
    chars = 0
    for subject in subjects:
        more = len(quote(subject, safe="")) + len("&subject=")
        if some and (len(some) >= SUBJECTS_MAX or chars + more > SUBJECT_CHARS_MAX):
            yield some
            some, chars = [], 0
        some.append(subject)
        chars += more
    if some:
        yield some


def _interval(usage_range: UsageRange) -> _Interval:
    return _Interval(usage_range.metric, usage_range.start_s, usage_range.end_s)


def _cells(usage_range: UsageRange, window: Window) -> list[_Cell]:
    if window == "HOUR":
        return [_Cell(usage_range.metric, window, usage_range.start_s)]
    return [
        _Cell(usage_range.metric, window, at_s)
        for at_s in range(usage_range.start_s, usage_range.end_s, STEP_S[window])
    ]


def _own_runs(own: Iterable[tuple[str, _Cell]]) -> Iterator[tuple[str, list[_Cell]]]:
    limits: dict[Window, int] = {"HOUR": OWN_CELLS_MAX, "MINUTE": OWN_CELLS_MAX}
    for account, pairs in groupby(sorted(own, key=lambda each: each[0]), key=lambda each: each[0]):
        for run in _runs([cell for _, cell in pairs], limits):
            yield account, run


def _runs(cells: Iterable[_Cell], limits: dict[Window, int]) -> Iterator[list[_Cell]]:
    """Windows of one metric that follow each other."""
    run: list[_Cell] = []
    for cell in sorted(cells, key=lambda each: (each.metric, each.window, each.start_s)):
        step_s = STEP_S[cell.window]
        follows = run and (cell.metric, cell.window, cell.start_s - step_s) == (
            run[-1].metric,
            run[-1].window,
            run[-1].start_s,
        )
        if run and (not follows or len(run) >= limits[cell.window]):
            yield run
            run = []
        run.append(cell)
    if run:
        yield run
