"""Reads metered usage from OpenMeter with as few queries as possible.

Most accounts want the same hours, so an hour that two accounts want is asked for all subjects at once and kept for the
whole round. The rest, intervals cut by the bounds of a period and hours that one account is behind, is asked for that
account alone, neighbouring hours with one query.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Final, Literal, Protocol

from sidecar.billing.usage_sync.concurrency import gather_limited
from sidecar.billing.usage_sync.pushed_usage import HOUR_S

Window = Literal["HOUR", "MINUTE"]

STEP_S: Final[dict[Window, int]] = {"HOUR": HOUR_S, "MINUTE": 60}
MINUTES_MAX: Final = 15
"""An interval of more minutes is asked for as a whole."""
QUERIES_MAX: Final = 4
"""Queries at once; OpenMeter counts raw events for each."""
SHARED_CELLS_MAX: Final[dict[Window, int]] = {"HOUR": 6, "MINUTE": 10}
"""Windows in one query for all subjects: ten thousand subjects give as many rows for each."""
OWN_CELLS_MAX: Final = 2_000


class Row(Protocol):
    """A row of the query, as far as it is read here."""

    @property
    def subject(self) -> str: ...
    @property
    def window_start_ms(self) -> int: ...
    @property
    def units(self) -> int: ...


class UsageQuery(Protocol):
    """OpenMeter's query; raises ``sidecar.metering.openmeter.meter_query.QueryError``."""

    async def usage(
        self, metric: str, from_ms: int, to_ms: int, *, subject: str | None = None, window: Window | None = "HOUR"
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
        self._cells: dict[_Cell, dict[str, int]] = {}
        self._intervals: dict[_Interval, dict[str, int]] = {}
        # For one account, kept for the page.
        self._own_cells: dict[tuple[str, _Cell], int] = {}
        self._own_intervals: dict[tuple[str, _Interval], int] = {}

    def __repr__(self) -> str:
        return f"UsageReader({len(self._cells)} windows and {len(self._intervals)} intervals of all subjects)"

    async def load(self, ranges: Sequence[UsageRange]) -> None:
        """Fetch what is needed and not known yet.

        Raises:
            QueryError: the first query that failed; the others have come to their ends.
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
            *(partial(self._fetch_cells, run) for run in _runs(shared, SHARED_CELLS_MAX)),
            *(partial(self._fetch_own_cells, account, run) for account, run in _own_runs(own)),
            *(
                partial(self._fetch_interval, interval, None if len(accounts) > 1 else next(iter(accounts)))
                for interval, accounts in intervals.items()
                if interval not in self._intervals
            ),
        ]
        await gather_limited(lambda query: query(), queries, QUERIES_MAX)

    def units(self, usage_range: UsageRange) -> int:
        """Units of a range that was loaded last. OpenMeter has no row for what has no usage."""
        window, account = usage_range.window(), usage_range.account
        if window is None:
            interval = _interval(usage_range)
            if interval in self._intervals:
                return self._intervals[interval].get(account, 0)
            return self._own_intervals[account, interval]
        return sum(
            self._cells[cell].get(account, 0) if cell in self._cells else self._own_cells[account, cell]
            for cell in _cells(usage_range, window)
        )

    async def _fetch_cells(self, run: Sequence[_Cell]) -> None:
        rows = await self._ask(run, None)
        found: dict[_Cell, Counter[str]] = {cell: Counter() for cell in run}
        for row in rows:
            cell = _Cell(run[0].metric, run[0].window, row.window_start_ms // 1000)
            if cell in found:
                found[cell][row.subject] += row.units
        self._cells.update((cell, dict(by_subject)) for cell, by_subject in found.items())

    async def _fetch_own_cells(self, account: str, run: Sequence[_Cell]) -> None:
        rows = await self._ask(run, account)
        self._own_cells.update(((account, cell), 0) for cell in run)
        for row in rows:
            key = account, _Cell(run[0].metric, run[0].window, row.window_start_ms // 1000)
            if row.subject == account and key in self._own_cells:
                self._own_cells[key] += row.units

    async def _ask(self, run: Sequence[_Cell], subject: str | None) -> Sequence[Row]:
        first, end_s = run[0], run[-1].start_s + STEP_S[run[-1].window]
        return await self._query.usage(
            first.metric, first.start_s * 1000, end_s * 1000, subject=subject, window=first.window
        )

    async def _fetch_interval(self, interval: _Interval, account: str | None) -> None:
        rows = await self._query.usage(
            interval.metric, interval.start_s * 1000, interval.end_s * 1000, subject=account, window=None
        )
        totals = Counter[str]()
        for row in rows:
            totals[row.subject] += row.units
        if account is None:
            self._intervals[interval] = dict(totals)
        else:
            self._own_intervals[account, interval] = totals[account]


def _interval(usage_range: UsageRange) -> _Interval:
    return _Interval(usage_range.metric, usage_range.start_s, usage_range.end_s)


def _cells(usage_range: UsageRange, window: Window) -> list[_Cell]:
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
