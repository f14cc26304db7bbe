"""Where the OpenMeter stand-in keeps events: in memory, by type and hour, a million of them in some 400 MB.

Source: the events table of ``openmeter/streaming/clickhouse/event_query.go``; a query reads it as it is, so a
new meter sees old events.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from sidecar.sandbox.openmeter.openmeter_events import CloudEvent

HOUR_S = 3600
#: ClickHouse's DateTime ends in 2106; its client refuses to insert what lies beyond.
TIME_S_MAX = 2**32 - 1


class Stored(Enum):
    """What became of an event that was accepted."""

    KEPT = "kept"
    DUPLICATE = "duplicate"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """One event with the times at which it was accepted; times are Unix seconds."""

    id: str
    source: str
    type: str
    subject: str
    time_s: int
    data: bytes
    ingested_s: int


class _Hour:
    """The events of one type and hour, in columns: containers per event would cost more than the events."""

    __slots__ = ("datas", "ids", "ingested_s", "sources", "subjects", "times_s")

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.sources: list[str] = []
        self.subjects: list[str] = []
        self.datas: list[bytes] = []
        self.times_s = array("q")
        self.ingested_s = array("q")


class OpenMeterEventStore:
    """Events by type and hour. ``now`` answers Unix seconds; ``dedupe`` keeps one event a source and id."""

    def __init__(self, *, dedupe: bool, now: Callable[[], float]) -> None:
        self._dedupe = dedupe
        self._now = now
        self._seen: dict[str, set[str]] = {}
        self._hours: dict[str, dict[int, _Hour]] = {}
        # One string for each account and source, instead of one for each event.
        self._names: dict[str, str] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"EventStore(events={self._count}, types={sorted(self._hours)})"

    def add(self, event: CloudEvent) -> Stored:
        """Keeps an event. One from before 1970 or after 2106 is dropped without a word, by the sink worker."""
        now_s = int(self._now())
        time_s = now_s if event.time_s is None else event.time_s
        if self._dedupe:
            seen = self._seen.setdefault(event.source, set())
            if event.id in seen:
                return Stored.DUPLICATE
            seen.add(event.id)
        if not 0 < time_s <= TIME_S_MAX:
            return Stored.DROPPED
        hour = self._hour(event.type, time_s // HOUR_S)
        hour.ids.append(event.id)
        hour.sources.append(self._names.setdefault(event.source, event.source))
        hour.subjects.append(self._names.setdefault(event.subject, event.subject))
        hour.datas.append(event.data)
        hour.times_s.append(time_s)
        hour.ingested_s.append(now_s)
        self._count += 1
        return Stored.KEPT

    def _hour(self, event_type: str, number: int) -> _Hour:
        hours = self._hours.setdefault(event_type, {})
        hour = hours.get(number)
        if hour is None:
            hour = hours[number] = _Hour()
        return hour

    def rows(self, event_type: str, from_s: int | None, to_s: int | None) -> Iterator[tuple[int, str, bytes]]:
        """``(time, subject, data)`` of the events of a type from ``from_s`` until before ``to_s``."""
        hours = self._hours.get(event_type, {})
        for number in sorted(hours):
            begin_s, hour = number * HOUR_S, hours[number]
            if (from_s is not None and begin_s + HOUR_S <= from_s) or (to_s is not None and begin_s >= to_s):
                continue
            whole = (from_s is None or begin_s >= from_s) and (to_s is None or begin_s + HOUR_S <= to_s)
            columns = zip(hour.times_s, hour.subjects, hour.datas, strict=True)
            if whole:
                yield from columns
            else:
                for row in columns:
                    if (from_s is None or row[0] >= from_s) and (to_s is None or row[0] < to_s):
                        yield row

    def events(self) -> Iterator[StoredEvent]:
        """Every event, the youngest hour first."""
        hours = [(number, name) for name, by_hour in self._hours.items() for number in by_hour]
        for number, name in sorted(hours, reverse=True):
            hour = self._hours[name][number]
            for i, time_s in enumerate(hour.times_s):
                yield StoredEvent(
                    hour.ids[i],
                    hour.sources[i],
                    name,
                    hour.subjects[i],
                    time_s,
                    hour.datas[i],
                    hour.ingested_s[i],
                )
