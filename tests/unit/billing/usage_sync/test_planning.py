from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from sidecar.billing.settings import SyncSettings
from sidecar.billing.usage_sync.period_links import PeriodLink
from sidecar.billing.usage_sync.planning import (
    SEGMENTS_MAX,
    Finding,
    PlannedUsage,
    RoundTime,
    new_pushed_usage,
    plan_usage,
    segments_to_compare,
)
from sidecar.billing.usage_sync.pushed_usage import PushedUsage, Segment
from tests.unit.billing.usage_sync.kit import DAY, HOUR, T0, link

SETTINGS = SyncSettings()
MONTH = link(T0, T0 + 30 * DAY)


def bounds(
    each: PeriodLink, pushed_usage: PushedUsage, round_time: RoundTime, settings: SyncSettings = SETTINGS
) -> list[tuple[int, int]]:
    return [
        (compared.segment.start_s - T0, compared.until_s - T0)
        for compared in segments_to_compare(each, pushed_usage, round_time, settings)
    ]


def test_an_hour_is_looked_at_once_it_has_ended_and_settled() -> None:
    pushed_usage = new_pushed_usage(MONTH, "api_calls")
    assert bounds(MONTH, pushed_usage, RoundTime(T0 + HOUR + 9)) == []
    assert bounds(MONTH, pushed_usage, RoundTime(T0 + HOUR + 10)) == [(0, HOUR)]


def test_windows_are_cut_at_the_bounds_of_the_period() -> None:
    nepal = link(T0 + 900, T0 + 900 + 2 * HOUR)
    after = RoundTime(T0 + 3 * HOUR)
    assert bounds(nepal, new_pushed_usage(nepal, "api_calls"), after) == [
        (900, HOUR),
        (HOUR, 2 * HOUR),
        (2 * HOUR, 2 * HOUR + 900),
    ]


def test_shorter_windows_are_aligned_to_utc() -> None:
    each = link(T0 + 100, T0 + DAY)
    quarter = SyncSettings(window_s=900)
    assert bounds(each, new_pushed_usage(each, "api_calls"), RoundTime(T0 + 2_000), quarter) == [
        (100, 900),
        (900, 1800),
    ]


def test_a_flush_looks_up_to_this_second() -> None:
    pushed_usage = new_pushed_usage(MONTH, "api_calls")
    assert bounds(MONTH, pushed_usage, RoundTime(T0 + HOUR + 5, flush=True)) == [(0, HOUR), (HOUR, HOUR + 5)]


def test_a_period_about_to_end_is_looked_at_up_to_this_second() -> None:
    each = link(T0, T0 + HOUR + 100)
    assert bounds(each, new_pushed_usage(each, "api_calls"), RoundTime(T0 + HOUR + 39)) == [(0, HOUR)]
    assert bounds(each, new_pushed_usage(each, "api_calls"), RoundTime(T0 + HOUR + 40)) == [
        (0, HOUR),
        (HOUR, HOUR + 40),
    ]


def test_a_period_without_an_invoice_is_looked_at_as_a_whole_right_after_its_end() -> None:
    each = link(T0, T0 + HOUR + 100, is_current=False)
    pushed_usage = replace(
        new_pushed_usage(each, "api_calls"), through_s=each.end_s, segments=(Segment(T0, each.end_s, 5, next_rev=1),)
    )
    assert bounds(each, new_pushed_usage(each, "api_calls"), RoundTime(each.end_s)) == [(0, HOUR), (HOUR, HOUR + 100)]
    assert bounds(each, pushed_usage, RoundTime(each.end_s + 5 * DAY)) == [(0, HOUR + 100)]


def test_a_final_period_is_looked_at_as_a_whole() -> None:
    each = link(T0, T0 + HOUR, is_final=True, is_current=False)
    assert bounds(each, new_pushed_usage(each, "api_calls"), RoundTime(each.end_s + 10)) == [(0, HOUR)]


def test_a_period_to_come_is_not_looked_at() -> None:
    each = link(T0 + HOUR, T0 + 2 * HOUR)
    assert bounds(each, new_pushed_usage(each, "api_calls"), RoundTime(T0 + HOUR, flush=True)) == []


def pushed_through(through_s: int, *segments: Segment) -> PushedUsage:
    return replace(new_pushed_usage(MONTH, "api_calls"), through_s=through_s, segments=segments)


def test_a_rescan_goes_back_so_far_and_the_rest_waits_for_the_end() -> None:
    settings = SyncSettings(rescan_s=2 * HOUR)
    pushed_usage = pushed_through(T0 + 4 * HOUR, Segment(T0, T0 + 2 * HOUR, 9, next_rev=1))
    now = RoundTime(T0 + 5 * HOUR + 10)
    assert bounds(MONTH, pushed_usage, now, settings) == [(3 * HOUR, 4 * HOUR), (4 * HOUR, 5 * HOUR)]
    assert bounds(MONTH, pushed_usage, replace(now, rescan=False), settings) == [(4 * HOUR, 5 * HOUR)]
    assert bounds(MONTH, pushed_usage, replace(now, flush=True), settings)[0] == (0, 2 * HOUR)


def test_what_was_never_compared_is_looked_at_however_old() -> None:
    settings = SyncSettings(rescan_s=HOUR)
    assert bounds(MONTH, new_pushed_usage(MONTH, "api_calls"), RoundTime(T0 + 3 * HOUR + 10, rescan=False), settings)[
        0
    ] == (
        0,
        HOUR,
    )


def test_a_segment_keeps_its_bounds_when_the_window_is_changed() -> None:
    pushed_usage = pushed_through(T0, Segment(T0, T0 + HOUR, 5, next_rev=1))
    minute = SyncSettings(window_s=60)
    assert bounds(MONTH, pushed_usage, RoundTime(T0 + HOUR + 130), minute)[:3] == [
        (0, HOUR),
        (HOUR, HOUR + 60),
        (HOUR + 60, HOUR + 120),
    ]


def test_hours_that_were_merged_are_looked_at_as_hours() -> None:
    minute = SyncSettings(window_s=60)
    pushed_usage = replace(pushed_through(T0 + HOUR + 60), hourly_s=T0 + HOUR)
    found = bounds(MONTH, pushed_usage, RoundTime(T0 + HOUR + 70), minute)
    assert found == [(0, HOUR), (HOUR, HOUR + 60)]


def test_one_round_looks_at_so_many_stretches_and_the_next_goes_on() -> None:
    minute = SyncSettings(window_s=60)
    pushed_usage = new_pushed_usage(MONTH, "api_calls")
    round_time = RoundTime(T0 + 10 * DAY)
    found = segments_to_compare(MONTH, pushed_usage, round_time, minute)
    assert len(found) == SEGMENTS_MAX
    settled = plan_usage(MONTH, pushed_usage, found, [0] * SEGMENTS_MAX, round_time, minute, "calls")
    assert settled.pushed_usage.through_s == found[-1].segment.end_s
    assert (
        segments_to_compare(MONTH, settled.pushed_usage, replace(round_time, rescan=False), minute)[0].segment.start_s
        == found[-1].segment.end_s
    )


def look(
    each: PeriodLink,
    pushed_usage: PushedUsage,
    round_time: RoundTime,
    units: Mapping[int, int],
    current: PeriodLink | None = None,
) -> PlannedUsage:
    found = segments_to_compare(each, pushed_usage, round_time, SETTINGS)
    counted = [units.get(compared.segment.start_s - T0, 0) for compared in found]
    return plan_usage(each, pushed_usage, found, counted, round_time, SETTINGS, "calls", current)


def test_a_window_becomes_one_event_with_a_fixed_id_and_time() -> None:
    settled = look(MONTH, new_pushed_usage(MONTH, "api_calls"), RoundTime(T0 + 2 * HOUR + 10), {0: 3, HOUR: 4})
    first, second = settled.events
    assert (first.transaction_id, int(first.timestamp), first.units) == (f"om:api_calls:s1:{T0}:0", T0, 3)
    assert (second.transaction_id, int(second.timestamp), second.units) == (
        f"om:api_calls:s1:{T0 + HOUR}:0",
        T0 + HOUR,
        4,
    )
    assert first.event().properties == {"calls": "3"}
    assert first.external_subscription_id == "sub-1"


def test_a_window_without_usage_becomes_no_event() -> None:
    settled = look(MONTH, new_pushed_usage(MONTH, "api_calls"), RoundTime(T0 + HOUR + 10), {})
    assert not settled.events
    assert settled.pushed_usage.through_s == T0 + HOUR


def test_what_comes_late_is_pushed_as_a_difference() -> None:
    now = RoundTime(T0 + HOUR + 10)
    first = look(MONTH, new_pushed_usage(MONTH, "api_calls"), now, {0: 3})
    second = look(MONTH, first.pushed_usage, now, {0: 10})
    assert [(each.transaction_id, each.units, each.revision) for each in second.events] == [
        (f"om:api_calls:s1:{T0}:1", 7, 1)
    ]
    assert not look(MONTH, second.pushed_usage, now, {0: 10}).events


def test_a_window_that_was_pushed_in_part_gets_the_rest_as_a_difference() -> None:
    first = look(MONTH, new_pushed_usage(MONTH, "api_calls"), RoundTime(T0 + 100, flush=True), {0: 3})
    assert [each.units for each in first.events] == [3]
    assert first.pushed_usage.through_s == T0
    second = look(MONTH, first.pushed_usage, RoundTime(T0 + HOUR + 10), {0: 5})
    assert [(each.transaction_id, each.units) for each in second.events] == [(f"om:api_calls:s1:{T0}:1", 2)]


def test_less_than_was_pushed_is_reported_and_nothing_is_taken_back() -> None:
    first = look(MONTH, new_pushed_usage(MONTH, "api_calls"), RoundTime(T0 + HOUR + 10), {0: 3})
    second = look(MONTH, first.pushed_usage, RoundTime(T0 + HOUR + 10), {0: 1})
    assert not second.events
    assert second.findings == (Finding("excess", T0, 2, is_new=False),)
    assert second.pushed_usage == first.pushed_usage


def test_usage_after_lagos_cut_gets_the_last_second_of_the_old_subscription() -> None:
    cut = link(T0, T0 + 3 * HOUR, lago_to_ms=(T0 + HOUR) * 1000 + 456, is_current=False)
    settled = look(cut, new_pushed_usage(cut, "api_calls"), RoundTime(T0 + 3 * HOUR), {2 * HOUR: 5})
    assert [(each.units, int(each.timestamp)) for each in settled.events] == [(5, T0 + HOUR)]


FINAL = replace(MONTH, ledger_end_ms=(T0 + HOUR) * 1000, lago_to_ms=(T0 + HOUR) * 1000, is_final=True, is_current=False)
AFTER = RoundTime(T0 + HOUR + 600)
OPEN_BOOK = replace(new_pushed_usage(FINAL, "api_calls"), was_open=True)


def test_usage_that_missed_its_invoice_is_reported_once_and_stays_known() -> None:
    first = look(FINAL, OPEN_BOOK, AFTER, {0: 3})
    assert not first.events
    assert first.findings == (Finding("late", T0, 3, is_new=True),)
    again = look(FINAL, first.pushed_usage, AFTER, {0: 3})
    assert again.findings == (Finding("late", T0, 3, is_new=False),)
    assert again.pushed_usage.late == 3
    more = look(FINAL, again.pushed_usage, AFTER, {0: 5})
    assert more.findings == (Finding("late", T0, 2, is_new=True),)
    assert more.pushed_usage.late == 5


def test_usage_that_missed_its_invoice_can_be_carried_into_the_current_period() -> None:
    current = link(T0 + HOUR, T0 + DAY, sub="s2", lago_from_ms=(T0 + HOUR) * 1000 + 500)
    settled = look(FINAL, OPEN_BOOK, AFTER, {0: 3}, current)
    (event,) = settled.events
    assert event.transaction_id == f"om:api_calls:s1:{T0}:0:carried"
    assert event.timestamp == T0 + HOUR + 1
    assert event.is_carried
    assert event.revision == 0
    assert settled.carried == settled.pushed_usage.carried_out == 3
    assert settled.pushed_usage.pushed == 0
    assert not look(FINAL, settled.pushed_usage, AFTER, {0: 3}, current).events


def test_a_period_that_was_final_when_it_was_first_seen_is_never_carried() -> None:
    """Its usage may well be on the invoice, pushed before the memory of it was lost."""
    current = link(T0 + HOUR, T0 + DAY, sub="s2")
    settled = look(FINAL, new_pushed_usage(FINAL, "api_calls"), AFTER, {0: 3}, current)
    assert not settled.events
    assert settled.findings == (Finding("late", T0, 3),)


def test_usage_known_as_late_is_pushed_when_the_invoice_turns_out_open() -> None:
    late = look(FINAL, OPEN_BOOK, AFTER, {0: 3})
    opened = look(replace(FINAL, is_final=False), late.pushed_usage, AFTER, {0: 3})
    assert [each.units for each in opened.events] == [3]
    assert opened.pushed_usage.late == 0


@pytest.mark.parametrize("settle_s", [0, 600])
def test_late_usage_of_a_final_period_is_looked_for_when_it_has_settled(settle_s: int) -> None:
    settings = SyncSettings(settle_s=settle_s)
    expected = [(0, HOUR)] if settle_s == 0 else []
    assert bounds(FINAL, OPEN_BOOK, RoundTime(FINAL.end_s + 300), settings) == expected


def test_a_window_that_has_not_settled_is_looked_at_again() -> None:
    settled = look(MONTH, new_pushed_usage(MONTH, "api_calls"), RoundTime(T0 + HOUR + 9, flush=True), {0: 3})
    assert settled.pushed_usage.through_s == T0
    assert bounds(MONTH, settled.pushed_usage, RoundTime(T0 + HOUR + 10, rescan=False)) == [(0, HOUR)]


def test_a_final_period_is_looked_at_from_its_start_on_however_long_it_was() -> None:
    final = replace(FINAL, ledger_end_ms=(T0 + 5 * DAY) * 1000)
    pushed_usage = replace(OPEN_BOOK, through_s=T0 + 4 * DAY, segments=(Segment(T0, T0 + 4 * DAY, 1, next_rev=1),))
    found = bounds(final, pushed_usage, RoundTime(final.end_s + 10, rescan=False))
    assert found[0] == (0, 4 * DAY)
    assert found[-1] == (5 * DAY - HOUR, 5 * DAY)


def test_a_new_segment_ends_where_a_stored_one_begins() -> None:
    pushed_usage = pushed_through(T0, Segment(T0 + 600, T0 + HOUR + 600, 5, next_rev=1))
    assert bounds(MONTH, pushed_usage, RoundTime(T0 + 2 * HOUR + 10)) == [
        (0, 600),
        (600, HOUR + 600),
        (HOUR + 600, 2 * HOUR),
    ]
