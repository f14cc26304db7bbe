"""The usage that was pushed to Lago for one metric of one period of the ledger, without I/O.

Pushed usage is a row of segments of time, each with the units for which events were frozen. Whether a frozen event
has reached Lago yet is told by ``frozen_events``; for what is still owed it makes no difference. Finished intervals are
merged, which keeps a pushed_usage small: an hour's windows into the hour, everything older than the rescan into one
segment, a whole period into one when it is over. A merged segment keeps the revisions of the one that started where it
starts, so no transaction id is ever used twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from sidecar.basics.fault_reasons import reason_of

HOUR_S: Final = 3_600
PUSHED_USAGE_BYTES_MAX: Final = 4_194_304
DETAILED_S: Final = 7_200
"""Seconds for which windows are not merged: an upgrade that is noticed so late still tells by a window's start on which
side of Lago's cut its events lie."""


@dataclass(frozen=True, slots=True)
class Segment:
    """From ``start_s`` to just before ``end_s`` (Unix seconds).

    ``pushed``: units of events with timestamps of this period. ``carried``: units of events that bill this segment in
    a later period. ``late``: units that missed their invoice and are only reported. ``next_rev``: revision that the
    next event gets.
    """

    start_s: int
    end_s: int
    pushed: int = 0
    carried: int = 0
    late: int = 0
    next_rev: int = 0

    @property
    def frozen(self) -> int:
        """Units that Lago has been told of, or is about to be."""
        return self.pushed + self.carried


@dataclass(frozen=True, slots=True)
class PushedUsage:
    """One metric in the period of the ledger that starts at ``start_s``.

    ``subscription_id`` is Lago's own id of the subscription that it was pushed to, ``lago_to_ms`` the end of Lago's
    period as it was known then. ``through_s``: everything before was compared with OpenMeter at least once after it was
    complete; ``hourly_s``: windows before were merged into hours. ``carried_in``: units of older periods billed in this
    one. ``was_open``: its invoice was not final yet when the first segment was looked at. ``is_done``: never to be
    looked at again.
    """

    start_s: int
    metric: str
    subscription_id: str
    lago_to_ms: int
    through_s: int
    hourly_s: int = 0
    segments: tuple[Segment, ...] = ()
    carried_in: int = 0
    was_open: bool = True
    is_done: bool = False

    @property
    def pushed(self) -> int:
        return sum(segment.pushed for segment in self.segments)

    @property
    def carried_out(self) -> int:
        return sum(segment.carried for segment in self.segments)

    @property
    def late(self) -> int:
        return sum(segment.late for segment in self.segments)

    def with_segments(self, changed: Iterable[Segment]) -> PushedUsage:
        """The pushed usage with these in the place of those that have the same starts."""
        by_start = {segment.start_s: segment for segment in self.segments}
        by_start.update((segment.start_s, segment) for segment in changed)
        return replace(self, segments=tuple(by_start[start] for start in sorted(by_start)))

    def adjusted(self, at_s: int, *, pushed: int = 0, carried: int = 0) -> PushedUsage:
        """The pushed usage after the units frozen for the segment at an instant have turned out to be others."""
        found = next((each for each in self.segments if each.start_s <= at_s < each.end_s), None)
        segment = found or Segment(at_s, at_s + 1, next_rev=1)
        return self.with_segments([replace(segment, pushed=segment.pushed + pushed, carried=segment.carried + carried)])

    def clipped(self, end_s: int) -> PushedUsage:
        """The pushed usage of a period that turned out to end earlier than planned. The last segment takes the
        units that were frozen for later, so that they are seen as too many."""
        if all(segment.end_s <= end_s for segment in self.segments):
            return self
        last = Segment(self.start_s, end_s)
        kept: list[Segment] = []
        for segment in self.segments:
            if segment.start_s < end_s:
                kept.append(replace(segment, end_s=min(segment.end_s, end_s)))
            else:
                last = kept.pop() if kept else last
                kept.append(
                    replace(
                        last,
                        pushed=last.pushed + segment.pushed,
                        carried=last.carried + segment.carried,
                        late=last.late + segment.late,
                    )
                )
        return replace(self, segments=tuple(kept))

    def compacted(self, end_s: int, now_s: int, rescan_s: int) -> PushedUsage:
        """The pushed usage with finished intervals merged; ``end_s`` is where the period ends."""
        if self.through_s >= end_s:
            return self._merged(self.start_s, end_s)
        old_s = min(self.through_s, (now_s - max(rescan_s, DETAILED_S)) // HOUR_S * HOUR_S)
        pushed_usage = self._merged(self.start_s, old_s) if old_s > self.start_s else self
        hourly_s = max(self.hourly_s, min(self.through_s, now_s - DETAILED_S) // HOUR_S * HOUR_S)
        parts = (each for each in pushed_usage.segments if each.start_s >= old_s and each.end_s - each.start_s < HOUR_S)
        for hour in {segment.start_s // HOUR_S for segment in parts}:
            start, end = max(hour * HOUR_S, self.start_s), (hour + 1) * HOUR_S
            if end <= hourly_s:
                pushed_usage = pushed_usage._merged(start, end)
        return replace(pushed_usage, hourly_s=hourly_s)

    def _merged(self, start_s: int, end_s: int) -> PushedUsage:
        """All segments of an interval as one, also where there are none. One that reaches over its bounds is left, and
        ends the interval."""
        for segment in self.segments:
            if segment.start_s < start_s < segment.end_s:
                start_s = segment.end_s
            if segment.start_s < end_s < segment.end_s:
                end_s = segment.start_s
        if end_s <= start_s:
            return self
        inside = [each for each in self.segments if start_s <= each.start_s < end_s]
        merged = Segment(
            start_s,
            end_s,
            pushed=sum(each.pushed for each in inside),
            carried=sum(each.carried for each in inside),
            late=sum(each.late for each in inside),
            next_rev=inside[0].next_rev if inside and inside[0].start_s == start_s else 0,
        )
        outside = [each for each in self.segments if not start_s <= each.start_s < end_s]
        return replace(self, segments=tuple(sorted([*outside, merged], key=lambda each: each.start_s)))


def encode_pushed_usage(pushed_usage: PushedUsage) -> bytes:
    """Pushed usage as it is stored under its start and metric."""
    row: dict[str, Any] = {
        "subscription": pushed_usage.subscription_id,
        "lago_to_ms": pushed_usage.lago_to_ms,
        "through_s": pushed_usage.through_s,
        "hourly_s": pushed_usage.hourly_s,
        "segments": [
            [each.start_s, each.end_s, each.pushed, each.carried, each.late, each.next_rev]
            for each in pushed_usage.segments
        ],
        "carried_in": pushed_usage.carried_in,
        "open": pushed_usage.was_open,
        "done": pushed_usage.is_done,
    }
    return orjson.dumps(row)


def decode_pushed_usage(start_s: int, metric: str, data: bytes) -> PushedUsage:
    """Pushed usage as ``encode_pushed_usage`` has written it.

    Raises:
        ValueError: it is none.
    """
    if len(data) > PUSHED_USAGE_BYTES_MAX:
        raise ValueError(f"{len(data)} bytes, more than {PUSHED_USAGE_BYTES_MAX}")
    row = orjson.loads(data)
    try:
        segments = tuple(Segment(*map(int, each)) for each in row["segments"])
        return PushedUsage(
            start_s,
            metric,
            str(row["subscription"]),
            int(row["lago_to_ms"]),
            int(row["through_s"]),
            int(row["hourly_s"]),
            segments,
            int(row["carried_in"]),
            bool(row["open"]),
            bool(row["done"]),
        )
    except (TypeError, KeyError) as error:
        raise ValueError(reason_of(error)) from None
