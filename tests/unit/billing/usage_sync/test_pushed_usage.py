from __future__ import annotations

from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.billing.usage_sync.pushed_usage import (
    DETAILED_S,
    PUSHED_USAGE_BYTES_MAX,
    PushedUsage,
    Segment,
    decode_pushed_usage,
    encode_pushed_usage,
)
from tests.unit.billing.usage_sync.kit import DAY, HOUR, T0

PUSHED_USAGE = PushedUsage(T0, "api_calls", "s1", (T0 + 30 * DAY) * 1000, T0)


def test_a_book_is_read_as_it_was_written() -> None:
    pushed_usage = replace(
        PUSHED_USAGE,
        segments=(Segment(T0, T0 + HOUR, 5, 1, 2, 3),),
        carried_in=7,
        was_open=False,
        is_done=True,
        through_s=9,
        hourly_s=8,
    )
    assert decode_pushed_usage(T0, "api_calls", encode_pushed_usage(pushed_usage)) == pushed_usage


@pytest.mark.parametrize(
    "name", ["subscription", "lago_to_ms", "through_s", "hourly_s", "segments", "carried_in", "open", "done"]
)
def test_what_lacks_something_is_no_book(name: str) -> None:
    row = orjson.loads(encode_pushed_usage(PUSHED_USAGE))
    del row[name]
    with pytest.raises(ValueError):
        decode_pushed_usage(T0, "api_calls", orjson.dumps(row))


@pytest.mark.parametrize("data", [b"", b"[]", b"7", b"{", b'{"segments": [[1]]}', b" " * (PUSHED_USAGE_BYTES_MAX + 1)])
def test_what_is_something_else_is_no_book(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode_pushed_usage(T0, "api_calls", data)


def hours(*units: int) -> tuple[Segment, ...]:
    return tuple(Segment(T0 + n * HOUR, T0 + (n + 1) * HOUR, pushed=each, next_rev=1) for n, each in enumerate(units))


def test_everything_older_than_the_rescan_becomes_one_segment() -> None:
    pushed_usage = replace(PUSHED_USAGE, segments=hours(1, 2, 3, 4), through_s=T0 + 4 * HOUR)
    compact = pushed_usage.compacted(T0 + 30 * DAY, T0 + 4 * HOUR + 10, 2 * HOUR)
    assert compact.segments == (Segment(T0, T0 + 2 * HOUR, 3, next_rev=1), *hours(1, 2, 3, 4)[2:])


def test_what_was_not_compared_yet_is_not_merged() -> None:
    pushed_usage = replace(PUSHED_USAGE, segments=hours(1, 2, 3, 4), through_s=T0 + HOUR)
    compact = pushed_usage.compacted(T0 + 30 * DAY, T0 + 4 * HOUR + 10, HOUR)
    assert compact.segments == hours(1, 2, 3, 4)


def test_a_period_that_is_over_and_compared_becomes_one_segment() -> None:
    pushed_usage = replace(PUSHED_USAGE, segments=hours(1, 2, 3), through_s=T0 + 3 * HOUR)
    assert pushed_usage.compacted(T0 + 3 * HOUR, T0 + 3 * HOUR + 10, DAY).segments == (
        Segment(T0, T0 + 3 * HOUR, 6, next_rev=1),
    )


def test_the_windows_of_an_hour_become_one_segment_when_no_cut_of_lagos_may_lie_in_it() -> None:
    minutes = (Segment(T0 + 60, T0 + 120, 1, next_rev=1), Segment(T0 + 600, T0 + 660, 2, 1, 3, next_rev=4))
    now = Segment(T0 + HOUR, T0 + HOUR + 60, 9, next_rev=1)
    pushed_usage = replace(PUSHED_USAGE, segments=(*minutes, now), through_s=T0 + HOUR + 60)
    assert pushed_usage.compacted(T0 + 30 * DAY, T0 + HOUR + DETAILED_S - 1, DAY).segments == pushed_usage.segments
    compact = pushed_usage.compacted(T0 + 30 * DAY, T0 + HOUR + DETAILED_S, DAY)
    assert compact.hourly_s == T0 + HOUR
    assert compact.segments == (Segment(T0, T0 + HOUR, 3, 1, 3, 0), now)


def test_a_merged_segment_does_not_begin_again_with_its_revisions() -> None:
    minutes = (Segment(T0, T0 + 60, 1, next_rev=3), Segment(T0 + 600, T0 + 660, 2, next_rev=1))
    compact = replace(PUSHED_USAGE, segments=minutes, through_s=T0 + HOUR).compacted(
        T0 + DAY, T0 + HOUR + DETAILED_S, DAY
    )
    assert compact.segments[0].next_rev == 3


def test_a_period_that_starts_in_an_hour_keeps_its_start() -> None:
    pushed_usage = replace(
        PUSHED_USAGE, start_s=T0 + 100, segments=(Segment(T0 + 100, T0 + 120, 1, next_rev=1),), through_s=T0 + HOUR
    )
    compact = pushed_usage.compacted(T0 + DAY, T0 + HOUR + DETAILED_S, DAY)
    assert compact.segments == (Segment(T0 + 100, T0 + HOUR, 1, next_rev=1),)


def test_a_period_that_ends_early_keeps_what_was_frozen() -> None:
    pushed_usage = replace(PUSHED_USAGE, segments=hours(1, 2, 3))
    assert pushed_usage.clipped(T0 + 3 * HOUR) is pushed_usage
    assert pushed_usage.clipped(T0 + HOUR + 60).segments == (
        hours(1)[0],
        Segment(T0 + HOUR, T0 + HOUR + 60, 5, next_rev=1),
    )
    late = replace(PUSHED_USAGE, segments=hours(1, 2)[1:])
    assert late.clipped(T0 + 60).segments == (Segment(T0, T0 + 60, 2),)


def test_a_correction_meets_the_segment_that_the_instant_lies_in_now() -> None:
    pushed_usage = replace(
        PUSHED_USAGE, segments=(Segment(T0, T0 + DAY, 10, 5, next_rev=1), Segment(T0 + DAY, T0 + DAY + HOUR, 1))
    )
    assert pushed_usage.adjusted(T0 + HOUR, pushed=-3, carried=2).segments[0] == Segment(T0, T0 + DAY, 7, 7, next_rev=1)
    assert pushed_usage.adjusted(T0 + DAY, pushed=1).segments[1].pushed == 2


segments = st.lists(
    st.tuples(st.integers(0, 200), st.integers(1, 40), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)),
    max_size=12,
)


@given(segments, st.integers(0, 14_000), st.integers(0, 14_000), st.sampled_from([HOUR, 2 * HOUR]))
def test_compacting_loses_no_unit_and_leaves_no_overlap(
    rows: list[tuple[int, int, int, int, int]], through: int, now: int, rescan_s: int
) -> None:
    at_s, made = T0 + 700, []
    for gap, length, pushed, carried, late in rows:
        start = at_s + gap * 30
        at_s = start + length * 30
        made.append(Segment(start, at_s, pushed, carried, late, 2))
    pushed_usage = replace(PUSHED_USAGE, start_s=T0 + 700, segments=tuple(made), through_s=T0 + 700 + through)
    compact = pushed_usage.compacted(max(at_s, T0 + 10_000), T0 + 700 + now, rescan_s)
    assert (compact.pushed, compact.carried_out, compact.late) == (
        pushed_usage.pushed,
        pushed_usage.carried_out,
        pushed_usage.late,
    )
    for before, following in zip(compact.segments, compact.segments[1:], strict=False):
        assert before.start_s < before.end_s <= following.start_s
    for segment in compact.segments:
        same = [each for each in made if each.start_s == segment.start_s]
        assert segment.next_rev == (same[0].next_rev if same else 0)
    assert (compact.hourly_s, compact.through_s) <= (
        max(pushed_usage.hourly_s, pushed_usage.through_s),
        pushed_usage.through_s,
    )
    assert compact.compacted(max(at_s, T0 + 10_000), T0 + 700 + now, rescan_s) == compact


def test_a_short_rescan_merges_nothing_in_which_a_cut_of_lagos_may_lie() -> None:
    pushed_usage = replace(PUSHED_USAGE, segments=hours(1, 2, 3, 4), through_s=T0 + 4 * HOUR)
    assert pushed_usage.compacted(T0 + 30 * DAY, T0 + 4 * HOUR, HOUR).segments[0].end_s == T0 + 4 * HOUR - DETAILED_S
