"""Aggregates events into rows of usage, as OpenMeter's SQL over its events table does.

Source: ``openmeter/streaming/clickhouse/meter_query.go`` and ``connector.go`` (QueryMeter),
``openmeter/meter/httphandler/query_csv.go``. What follows from ClickHouse rather than from that code:

* ``from`` is inclusive, ``to`` exclusive, both cut to whole seconds.
* A window without events has no row. But a COUNT without windows and groups is a query without GROUP BY,
  which answers one row of 0 when nothing matches.
* A value that is no number counts as NULL; a group of nothing but NULLs has no row. COUNT counts events.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Literal, get_args

import orjson

from sidecar.sandbox.openmeter.meters import Aggregation, Meter
from sidecar.sandbox.openmeter.openmeter_wire import format_time, from_unix, go_number
from sidecar.sandbox.openmeter.paths import number_reader, path_reader

WindowSize = Literal["MINUTE", "HOUR", "DAY", "MONTH"]
WINDOW_SIZES: tuple[str, ...] = get_args(WindowSize)
SUBJECT = "subject"

Number = int | float
Rows = Iterable[tuple[int, str, bytes]]


@dataclass(frozen=True, slots=True)
class GroupFilter:
    """Events pass whose value under the meter's group key ``key`` meets ``test``."""

    key: str
    test: Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Query:
    """What to aggregate. ``group_by`` holds keys of the meter, or "subject"; no ``window``: one for all."""

    begin: datetime | None = None
    end: datetime | None = None
    window: WindowSize | None = None
    zone: tzinfo = UTC
    subjects: tuple[str, ...] = ()
    group_by: tuple[str, ...] = ()
    filters: tuple[GroupFilter, ...] = ()


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One row of the result; ``subject`` is None unless grouped by it."""

    value: float
    window_start: datetime
    window_end: datetime
    subject: str | None
    groups: tuple[tuple[str, str], ...]

    def as_json(self) -> dict[str, object]:
        return {
            "value": go_number(self.value),
            "windowStart": format_time(self.window_start),
            "windowEnd": format_time(self.window_end),
            "subject": self.subject,
            "groupBy": dict(self.groups),
        }


@dataclass(slots=True)
class _Group:
    """What is known of one row so far. ``latest_s`` is the time of ``value`` when the latest is wanted."""

    first_s: int
    last_s: int
    events: int = 0
    numbers: int = 0
    value: Number = 0
    latest_s: int = -1
    distinct: set[str] | None = None


def run_query(meter: Meter, query: Query, rows: Rows) -> list[UsageRow]:
    """Aggregates ``rows``: the events of the meter's type within :func:`bounds_s`, in any order."""
    keys = tuple(key for key in query.group_by if key != SUBJECT)
    by_subject = SUBJECT in query.group_by
    readers = [path_reader(meter.group_by[key]) for key in keys]
    tests = [(path_reader(meter.group_by[item.key]), item.test) for item in query.filters]
    read_value = _value_reader(meter)
    wanted = frozenset(query.subjects)
    windows = _Windows(query.window, query.zone)
    groups: dict[tuple[object, ...], _Group] = {}
    for time_s, subject, raw in rows:
        if wanted and subject not in wanted:
            continue
        data = orjson.loads(raw) if raw and (readers or tests or read_value) else None
        if not all(test(read(data)) for read, test in tests):
            continue
        key = (
            windows.start_s(time_s),
            subject if by_subject else None,
            *(read(data) for read in readers),
        )
        group = groups.get(key)
        if group is None:
            group = groups[key] = _Group(time_s, time_s)
        _take(group, meter.aggregation, time_s, None if read_value is None else read_value(data))
    if not groups and not query.group_by and query.window is None:
        # SELECT without GROUP BY answers a row in any case; the time of nothing is the epoch.
        groups[(None, None)] = _Group(0, 0)
    found = [_row(key, keys, group, meter.aggregation, query, windows) for key, group in groups.items()]
    ordered = [row for row in found if row is not None]
    ordered.sort(key=lambda row: (row.window_start, row.subject or "", row.groups))
    return ordered


def _value_reader(meter: Meter) -> Callable[[object], Number | str | None] | None:
    if meter.value_property is None:
        return None
    return (path_reader if meter.aggregation == "UNIQUE_COUNT" else number_reader)(meter.value_property)


def bounds_s(meter: Meter, query: Query) -> tuple[int | None, int | None]:
    """The seconds from (inclusive) and to (exclusive) which events count; a meter may begin later."""
    begins = [int(when.timestamp()) for when in (query.begin, meter.event_from) if when is not None]
    return max(begins, default=None), None if query.end is None else int(query.end.timestamp())


def as_csv(query: Query, rows: Iterable[UsageRow]) -> str:
    keys = [key for key in query.group_by if key != SUBJECT]
    subject_header = [SUBJECT] if SUBJECT in query.group_by else []
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["window_start", "window_end", *subject_header, *keys, "value"])
    for row in rows:
        groups = dict(row.groups)
        subject = [row.subject or ""] if subject_header else []
        times = [format_time(when.replace(microsecond=0)) for when in (row.window_start, row.window_end)]
        writer.writerow([*times, *subject, *(groups[key] for key in keys), f"{row.value:f}"])
    return out.getvalue()


class _Windows:
    """Where windows begin and end, in a time zone. Looked up once a minute of usage, not once an event."""

    def __init__(self, size: WindowSize | None, zone: tzinfo) -> None:
        self._size = size
        self._zone = zone
        self._starts: dict[int, int] = {}

    def start_s(self, time_s: int) -> int | None:
        if self._size is None:
            return None
        minute = time_s // 60
        start = self._starts.get(minute)
        if start is None:
            start = self._starts[minute] = int(self._floor(time_s).timestamp())
        return start

    def _floor(self, time_s: int) -> datetime:
        local = datetime.fromtimestamp(time_s, self._zone)
        if self._size == "MINUTE":
            return local.replace(second=0)
        if self._size == "HOUR":
            return local.replace(minute=0, second=0)
        midnight = local.replace(hour=0, minute=0, second=0, fold=0)
        return midnight if self._size == "DAY" else midnight.replace(day=1)

    def bounds(self, start_s: int) -> tuple[datetime, datetime]:
        start = datetime.fromtimestamp(start_s, self._zone)
        if self._size in ("MINUTE", "HOUR"):
            # Added in UTC: where clocks change, the next hour on the wall is not an hour away.
            length = timedelta(minutes=1) if self._size == "MINUTE" else timedelta(hours=1)
            return start, (start.astimezone(UTC) + length).astimezone(self._zone)
        if self._size == "DAY":
            return start, start + timedelta(days=1)
        return start, (start.replace(day=1) + timedelta(days=32)).replace(day=1)


def _take(group: _Group, aggregation: Aggregation, time_s: int, value: Number | str | None) -> None:
    group.events += 1
    group.first_s = min(group.first_s, time_s)
    group.last_s = max(group.last_s, time_s)
    if aggregation == "COUNT":
        return
    if aggregation == "UNIQUE_COUNT":
        # JSON_VALUE answers '' for what is missing, and only a JSON null is taken out: '' is one more value.
        if group.distinct is None:
            group.distinct = set()
        if isinstance(value, str) and value != "null":
            group.distinct.add(value)
        return
    if value is None or isinstance(value, str):
        return
    group.numbers += 1
    if aggregation in ("SUM", "AVG"):
        group.value += value
    elif aggregation == "LATEST":
        if time_s >= group.latest_s:
            group.latest_s, group.value = time_s, value
    elif group.numbers == 1 or (value < group.value) == (aggregation == "MIN"):
        group.value = value


def _row(
    key: tuple[object, ...],
    names: tuple[str, ...],
    group: _Group,
    aggregation: Aggregation,
    query: Query,
    windows: _Windows,
) -> UsageRow | None:
    start_s, subject, *values = key
    if aggregation == "COUNT":
        value: float = group.events
    elif aggregation == "UNIQUE_COUNT":
        value = len(group.distinct or ())
    elif group.numbers == 0:
        return None
    else:
        value = group.value / group.numbers if aggregation == "AVG" else float(group.value)
    if isinstance(start_s, int):
        begin, end = windows.bounds(start_s)
    else:
        # Without windows a row spans what was asked for; where nothing was, the minutes of its events.
        begin = query.begin or from_unix(group.first_s // 60 * 60)
        end = query.end or from_unix(group.last_s // 60 * 60 + 60)
    shown = tuple(zip(names, map(str, values), strict=True))
    return UsageRow(float(value), begin, end, None if subject is None else str(subject), shown)
