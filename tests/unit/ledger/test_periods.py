"""Which period an instant lies in."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.ledger.accounts.periods import (
    ENDS_AHEAD,
    NOW_MS_MAX,
    CalendarPeriods,
    EqualPeriods,
    FixedPeriod,
    PeriodBounds,
    PeriodRule,
)

AHEAD_MS = (ENDS_AHEAD + 1) * 366 * 86_400_000
"""What the longest periods, of a year, reach ahead."""


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def written(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%MZ")


MONTHS = CalendarPeriods("month")
LONDON = CalendarPeriods("month", "Europe/London")


@pytest.mark.parametrize(
    ("rule", "now", "start", "end"),
    [
        (MONTHS, "2026-11-22T20:00Z", "2026-11-01T00:00Z", "2026-12-01T00:00Z"),
        (MONTHS, "2026-12-31T23:59:59.999Z", "2026-12-01T00:00Z", "2027-01-01T00:00Z"),
        (MONTHS, "2027-01-01T00:00Z", "2027-01-01T00:00Z", "2027-02-01T00:00Z"),
        # In summer London's midnight is 23:00 UTC of the day before.
        (LONDON, "2026-03-31T22:59:59Z", "2026-03-01T00:00Z", "2026-03-31T23:00Z"),
        (LONDON, "2026-03-31T23:00Z", "2026-03-31T23:00Z", "2026-04-30T23:00Z"),
        (LONDON, "2026-10-31T23:30Z", "2026-09-30T23:00Z", "2026-11-01T00:00Z"),
        # An anchor that a month lacks is its last day.
        (CalendarPeriods("month", anchor=31), "2026-02-28T00:00Z", "2026-02-28T00:00Z", "2026-03-31T00:00Z"),
        (CalendarPeriods("month", anchor=31), "2026-02-27T23:00Z", "2026-01-31T00:00Z", "2026-02-28T00:00Z"),
        (CalendarPeriods("month", anchor=30), "2028-02-29T01:00Z", "2028-02-29T00:00Z", "2028-03-30T00:00Z"),
        (CalendarPeriods("month", anchor=15), "2026-11-14T00:00Z", "2026-10-15T00:00Z", "2026-11-15T00:00Z"),
        # A day of 23 hours and one of 25.
        (CalendarPeriods("day", "Europe/Berlin"), "2026-03-29T10:00Z", "2026-03-28T23:00Z", "2026-03-29T22:00Z"),
        (CalendarPeriods("day", "Europe/Berlin"), "2026-10-25T10:00Z", "2026-10-24T22:00Z", "2026-10-25T23:00Z"),
        # In Cairo clocks go from 00:00 to 01:00: that day begins at the change.
        (CalendarPeriods("day", "Africa/Cairo"), "2026-04-24T12:00Z", "2026-04-23T22:00Z", "2026-04-24T21:00Z"),
        # In Havana they go back from 01:00 to 00:00: the day begins at the first midnight.
        (CalendarPeriods("day", "America/Havana"), "2026-11-01T05:30Z", "2026-11-01T04:00Z", "2026-11-02T05:00Z"),
        # Samoa had no 30 December 2011.
        (CalendarPeriods("day", "Pacific/Apia"), "2011-12-30T09:59Z", "2011-12-29T10:00Z", "2011-12-30T10:00Z"),
        (CalendarPeriods("day", "Pacific/Apia"), "2011-12-30T10:00Z", "2011-12-30T10:00Z", "2011-12-31T10:00Z"),
        (CalendarPeriods("week"), "2026-11-22T20:00Z", "2026-11-16T00:00Z", "2026-11-23T00:00Z"),
        (CalendarPeriods("week", anchor=7), "2026-11-22T20:00Z", "2026-11-22T00:00Z", "2026-11-29T00:00Z"),
        (CalendarPeriods("year"), "2026-11-22T20:00Z", "2026-01-01T00:00Z", "2027-01-01T00:00Z"),
        (CalendarPeriods("year", "UTC", (4, 6)), "2026-04-05T23:00Z", "2025-04-06T00:00Z", "2026-04-06T00:00Z"),
        (CalendarPeriods("year", "UTC", (2, 29)), "2027-06-01T00:00Z", "2027-02-28T00:00Z", "2028-02-29T00:00Z"),
        (EqualPeriods(3_600_000), "2026-11-22T20:15Z", "2026-11-22T20:00Z", "2026-11-22T21:00Z"),
        (EqualPeriods(3_600_000), "2026-11-22T20:00Z", "2026-11-22T20:00Z", "2026-11-22T21:00Z"),
        (EqualPeriods(3_600_000, 1_200_000), "2026-11-22T20:15Z", "2026-11-22T19:20Z", "2026-11-22T20:20Z"),
    ],
)  # fmt: skip
def test_the_period_around_an_instant(rule: PeriodRule, now: str, start: str, end: str) -> None:
    bounds = rule.at(ms(now))

    assert (written(bounds.start_ms), written(bounds.end_ms)) == (start, end)


def test_the_ends_that_follow_are_three_years_of_months() -> None:
    bounds = LONDON.at(ms("2026-11-22T20:00Z"))

    assert len(bounds.next_ends_ms) == ENDS_AHEAD
    assert [written(end) for end in bounds.next_ends_ms[:5]] == [
        "2027-01-01T00:00Z",
        "2027-02-01T00:00Z",
        "2027-03-01T00:00Z",
        "2027-03-31T23:00Z",
        "2027-04-30T23:00Z",
    ]
    assert written(bounds.next_ends_ms[-1]) == "2029-12-01T00:00Z"


def test_a_fixed_period_is_what_it_is_whatever_the_time() -> None:
    rule = FixedPeriod(ms("2026-01-01T00:00Z"), ms("2026-02-01T00:00Z"))

    assert rule.at(ms("2031-01-01T00:00Z")) == PeriodBounds(rule.start_ms, rule.end_ms)


ZONES = st.sampled_from(
    [
        "UTC",
        "Europe/London",
        "America/St_Johns",
        "Africa/Cairo",
        "Australia/Lord_Howe",
        "Asia/Kathmandu",
        "America/Havana",
    ]
)
CALENDARS = st.one_of(
    st.builds(CalendarPeriods, st.just("day"), ZONES),
    st.builds(CalendarPeriods, st.just("week"), ZONES, st.integers(1, 7)),
    st.builds(CalendarPeriods, st.just("month"), ZONES, st.integers(1, 31)),
    st.builds(CalendarPeriods, st.just("year"), ZONES, st.tuples(st.integers(1, 12), st.integers(1, 28))),
)
EQUALS = st.builds(EqualPeriods, st.integers(1_000, 10**10), st.integers(0, 10**10))


@given(CALENDARS | EQUALS, st.integers(10**11, NOW_MS_MAX))
def test_periods_follow_one_another_and_one_of_them_holds_now(rule: PeriodRule, now_ms: int) -> None:
    bounds = rule.at(now_ms)

    assert bounds.start_ms <= now_ms < bounds.end_ms
    assert len(bounds.next_ends_ms) == ENDS_AHEAD
    ends = [bounds.start_ms, bounds.end_ms, *bounds.next_ends_ms]
    assert all(a < b for a, b in pairwise(ends))


@given(CALENDARS | EQUALS, st.integers(10**11, NOW_MS_MAX - AHEAD_MS), st.integers(0, ENDS_AHEAD - 1))
def test_what_is_foretold_is_what_comes(rule: PeriodRule, now_ms: int, later: int) -> None:
    bounds = rule.at(now_ms)
    ends = (bounds.end_ms, *bounds.next_ends_ms)

    then = rule.at(ends[later])

    assert (then.start_ms, then.end_ms) == (ends[later], ends[later + 1])
