"""Billing periods: where they start and end, in the customer's time zone."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.sandbox.lago.lago_wire import iso
from sidecar.sandbox.lago.periods import INTERVALS, CalendarPeriods, SecondPeriods, Span, before, period_days


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def day(text: str) -> date:
    return date.fromisoformat(text)


@pytest.mark.parametrize(
    ("interval", "first", "following"),
    [
        ("weekly", "2025-08-11", "2025-08-18"),
        ("monthly", "2025-08-01", "2025-09-01"),
        ("quarterly", "2025-07-01", "2025-10-01"),
        ("semiannual", "2025-07-01", "2026-01-01"),
        ("yearly", "2025-01-01", "2026-01-01"),
    ],
)
def test_calendar_periods_start_on_mondays_and_firsts(interval: str, first: str, following: str) -> None:
    assert period_days(day("2025-08-14"), interval, None) == (day(first), day(following))


@pytest.mark.parametrize(
    ("interval", "anchor", "today", "first", "following"),
    [
        ("weekly", "2025-06-04", "2025-06-10", "2025-06-04", "2025-06-11"),
        ("monthly", "2025-01-15", "2025-03-14", "2025-02-15", "2025-03-15"),
        ("monthly", "2025-01-15", "2025-03-15", "2025-03-15", "2025-04-15"),
        ("monthly", "2025-01-31", "2025-02-28", "2025-02-28", "2025-03-31"),
        ("monthly", "2025-01-31", "2025-02-27", "2025-01-31", "2025-02-28"),
        ("monthly", "2024-01-31", "2024-03-01", "2024-02-29", "2024-03-31"),
        ("quarterly", "2025-02-10", "2025-05-09", "2025-02-10", "2025-05-10"),
        ("semiannual", "2025-08-31", "2026-02-28", "2026-02-28", "2026-08-31"),
        ("yearly", "2024-02-29", "2025-02-28", "2025-02-28", "2026-02-28"),
        ("yearly", "2024-02-29", "2028-02-29", "2028-02-29", "2029-02-28"),
    ],
)
def test_anniversary_periods_start_on_the_day_of_the_subscription_clamped_to_short_months(
    interval: str, anchor: str, today: str, first: str, following: str
) -> None:
    assert period_days(day(today), interval, day(anchor)) == (day(first), day(following))


@given(
    st.dates(date(1999, 1, 1), date(2060, 1, 1)),
    st.sampled_from(INTERVALS),
    st.none() | st.dates(date(2000, 1, 1), date(2030, 1, 1)),
)
def test_each_day_lies_in_exactly_one_period(today: date, interval: str, anchor: date | None) -> None:
    first, following = period_days(today, interval, anchor)
    assert first <= today < following
    assert period_days(first, interval, anchor) == (first, following)
    assert period_days(following, interval, anchor)[0] == following
    assert period_days(first - timedelta(days=1), interval, anchor)[1] == first


def test_a_period_ends_with_the_last_second_of_a_local_day() -> None:
    periods = CalendarPeriods("monthly", ZoneInfo("America/New_York"), None)
    period = periods.containing(at("2025-03-31 23:00"))
    assert (iso(period.start), iso(period.shown_to)) == ("2025-03-01T05:00:00Z", "2025-04-01T03:59:59Z")
    assert iso(before(periods, period).shown_to) == "2025-03-01T04:59:59Z"


def test_a_span_counts_its_days_first_and_last_included() -> None:
    periods = CalendarPeriods("monthly", ZoneInfo("UTC"), None)
    june = periods.containing(at("2025-06-10 12:00"))
    assert periods.share(june) == 1
    late = june.from_start(at("2025-06-21 00:00"))
    assert periods.share(late) == Fraction(10, 30)
    cut = june.cut(at("2025-06-10 12:00"), included=True)
    assert periods.share(cut) == Fraction(10, 30)
    assert periods.share(cut, without_last=True) == Fraction(9, 30)
    first_day = june.cut(at("2025-06-01 12:00"), included=False)
    assert periods.share(first_day, without_last=True) == 0


def test_a_span_of_an_anniversary_period_is_a_share_of_the_whole_one() -> None:
    periods = CalendarPeriods("monthly", ZoneInfo("UTC"), day("2025-01-15"))
    whole = periods.containing(at("2025-02-20 00:00"))
    rest = Span(at("2025-02-20 00:00"), whole.until, whole.shown_to)
    assert periods.share(rest) == Fraction(23, 28)


def test_what_happens_at_the_very_end_belongs_to_a_span_only_if_included() -> None:
    june = CalendarPeriods("monthly", ZoneInfo("UTC"), None).containing(at("2025-06-10 12:00"))
    end = at("2025-06-10 12:00")
    assert june.cut(end, included=False).until == end
    assert june.cut(end, included=True).until == end + timedelta(microseconds=1)
    assert june.cut(end, included=True).shown_to == june.cut(end, included=False).shown_to == end
    assert june.cut(june.until, included=True) == june


def test_a_span_that_ended_before_the_start_is_empty() -> None:
    june = CalendarPeriods("monthly", ZoneInfo("UTC"), None).containing(at("2025-06-10 12:00"))
    empty = june.from_start(at("2025-07-02 00:00"))
    assert empty.is_empty
    assert empty.start == empty.shown_to == at("2025-07-02 00:00")
    assert not june.is_empty


def test_periods_of_seconds_are_aligned_to_the_epoch_and_prorated_by_seconds() -> None:
    periods = SecondPeriods(10)
    period = periods.containing(at("2025-06-10 12:00:07"))
    assert (iso(period.start), iso(period.shown_to)) == ("2025-06-10T12:00:00Z", "2025-06-10T12:00:09Z")
    assert periods.share(period) == 1
    assert periods.share(period.from_start(at("2025-06-10 12:00:07"))) == Fraction(3, 10)
    assert before(periods, period).until == period.start
