from __future__ import annotations

import pytest

from sidecar.billing.usage_sync.metered_usage import QUERIES_MAX, UsageRange, UsageReader
from sidecar.metering.openmeter.meter_query import QueryError
from tests.unit.billing.usage_sync.kit import DAY, HOUR, T0, OpenMeterFake


@pytest.fixture
def meter() -> OpenMeterFake:
    meter = OpenMeterFake()
    for n in range(8):
        meter.use(f"tpp-{n}", T0 + 30, 10 + n)
        meter.use(f"tpp-{n}", T0 + HOUR + 90, 20 + n)
        meter.use(f"tpp-{n}", T0 + 2 * HOUR + 90, 30 + n, "payments")
    return meter


def usage_range(account: int, start_s: int, end_s: int, metric: str = "api_calls") -> UsageRange:
    return UsageRange(f"tpp-{account}", metric, T0 + start_s, T0 + end_s)


async def test_hours_that_several_accounts_want_are_asked_for_at_once(meter: OpenMeterFake) -> None:
    reader = UsageReader(meter)
    ranges = [usage_range(n, hour * HOUR, (hour + 1) * HOUR) for n in range(4) for hour in range(2)]
    await reader.load(ranges)
    assert meter.queries == [("api_calls", T0, T0 + 2 * HOUR, None, "HOUR")]
    assert [reader.units(each) for each in ranges] == [10, 20, 11, 21, 12, 22, 13, 23]


async def test_another_page_asks_for_nothing_that_is_known(meter: OpenMeterFake) -> None:
    reader = UsageReader(meter)
    await reader.load([usage_range(0, 0, HOUR), usage_range(1, 0, HOUR)])
    await reader.load([usage_range(5, 0, HOUR)])
    assert len(meter.queries) == 1
    assert reader.units(usage_range(5, 0, HOUR)) == 15


async def test_hours_that_one_account_is_behind_are_asked_for_with_one_query(meter: OpenMeterFake) -> None:
    reader = UsageReader(meter)
    ranges = [usage_range(3, hour * HOUR, (hour + 1) * HOUR) for hour in range(30)]
    await reader.load(ranges)
    assert meter.queries == [("api_calls", T0, T0 + 30 * HOUR, "tpp-3", "HOUR")]
    assert [reader.units(each) for each in ranges[:3]] == [13, 23, 0]


async def test_a_query_for_all_subjects_covers_few_hours(meter: OpenMeterFake) -> None:
    await UsageReader(meter).load(
        [usage_range(n, hour * HOUR, (hour + 1) * HOUR) for n in range(2) for hour in range(24)]
    )
    assert sorted(end_s - start_s for _, start_s, end_s, _, _ in meter.queries) == [6 * HOUR] * 4


async def test_a_window_that_a_period_cuts_is_asked_for_exactly(meter: OpenMeterFake) -> None:
    reader = UsageReader(meter)
    await reader.load([usage_range(2, 31, HOUR), usage_range(3, 0, 31)])
    assert sorted(meter.queries, key=str) == [
        ("api_calls", T0, T0 + 31, "tpp-3", None),
        ("api_calls", T0 + 31, T0 + HOUR, "tpp-2", None),
    ]
    assert reader.units(usage_range(2, 31, HOUR)) == 0
    assert reader.units(usage_range(3, 0, 31)) == 13


async def test_a_whole_period_that_several_share_is_asked_for_once(meter: OpenMeterFake) -> None:
    reader = UsageReader(meter)
    await reader.load([usage_range(n, 0, DAY) for n in range(8)])
    await reader.load([usage_range(1, 0, DAY), usage_range(99, 0, DAY)])
    assert meter.queries == [("api_calls", T0, T0 + DAY, None, None)]
    assert reader.units(usage_range(1, 0, DAY)) == 32
    assert reader.units(usage_range(99, 0, DAY)) == 0


async def test_short_windows_are_summed_up_from_minutes(meter: OpenMeterFake) -> None:
    reader = UsageReader(meter)
    ranges = [usage_range(n, HOUR, HOUR + 900) for n in range(2)]
    await reader.load(ranges)
    assert {(subject, window) for _, _, _, subject, window in meter.queries} == {(None, "MINUTE")}
    assert [reader.units(each) for each in ranges] == [20, 21]


async def test_metrics_are_kept_apart(meter: OpenMeterFake) -> None:
    reader = UsageReader(meter)
    calls, payments = usage_range(0, 2 * HOUR, 3 * HOUR), usage_range(0, 2 * HOUR, 3 * HOUR, "payments")
    await reader.load([calls, payments])
    assert (reader.units(calls), reader.units(payments)) == (0, 30)


async def test_hours_that_do_not_follow_each_other_are_asked_for_apart(meter: OpenMeterFake) -> None:
    await UsageReader(meter).load([usage_range(0, 0, HOUR), usage_range(0, 2 * HOUR, 3 * HOUR)])
    assert sorted(start_s for _, start_s, _, _, _ in meter.queries) == [T0, T0 + 2 * HOUR]


async def test_a_query_that_fails_is_the_callers_to_handle(meter: OpenMeterFake) -> None:
    meter.error = QueryError("OpenMeter is away", transient=True)
    with pytest.raises(QueryError):
        await UsageReader(meter).load([usage_range(0, 0, HOUR)])


async def test_an_hour_that_does_not_begin_on_the_hour_is_asked_for_exactly(meter: OpenMeterFake) -> None:
    reader = UsageReader(meter)
    await reader.load([usage_range(0, 60, HOUR + 60), usage_range(1, 60, HOUR + 60)])
    assert meter.queries == [("api_calls", T0 + 60, T0 + HOUR + 60, None, None)]
    assert reader.units(usage_range(1, 60, HOUR + 60)) == 0


async def test_an_answer_that_is_too_large_is_asked_for_in_parts(meter: OpenMeterFake) -> None:
    """Eight subjects have usage in each hour."""
    meter.rows_max = 8
    reader = UsageReader(meter)
    ranges = [usage_range(n, hour * HOUR, (hour + 1) * HOUR) for n in range(3) for hour in range(2)]
    await reader.load(ranges)
    assert [(start_s, end_s, who) for _, start_s, end_s, who, _ in meter.queries] == [
        (T0, T0 + 2 * HOUR, None), (T0, T0 + HOUR, None), (T0 + HOUR, T0 + 2 * HOUR, None)
    ]  # fmt: skip
    assert [reader.units(each) for each in ranges] == [10, 20, 11, 21, 12, 22]


async def test_an_hour_that_is_too_large_is_asked_for_the_accounts_that_want_it(meter: OpenMeterFake) -> None:
    meter.rows_max = 4
    reader = UsageReader(meter)
    ranges = [usage_range(n, 0, HOUR) for n in range(3)]
    await reader.load(ranges)
    assert [who for _, _, _, who, _ in meter.queries] == [None, ("tpp-0", "tpp-1", "tpp-2")]
    assert [reader.units(each) for each in ranges] == [10, 11, 12]
    more = [usage_range(n, 0, HOUR) for n in (5, 6, 100)]
    await reader.load(more)
    assert meter.queries[2][3] == ("tpp-100", "tpp-5", "tpp-6"), "it is not tried as a whole again"
    assert [reader.units(each) for each in more] == [15, 16, 0]


async def test_so_is_an_interval(meter: OpenMeterFake) -> None:
    meter.rows_max = 4
    reader = UsageReader(meter)
    ranges = [usage_range(n, 7, 2 * HOUR + 7) for n in range(3)]
    await reader.load(ranges)
    assert [who for _, _, _, who, _ in meter.queries] == [None, ("tpp-0", "tpp-1", "tpp-2")]
    assert [reader.units(each) for each in ranges] == [30, 32, 34]


async def test_a_query_names_no_more_subjects_than_openmeter_and_proxies_take(meter: OpenMeterFake) -> None:
    meter.rows_max = 1
    reader = UsageReader(meter)
    names = [f"{n:03d}" for n in range(250)] + [f"{'é' * 200}-{n}" for n in range(10)]
    await reader.load([UsageRange(name, "api_calls", T0, T0 + HOUR) for name in names])
    asked = [who for _, _, _, who, _ in meter.queries if isinstance(who, tuple)]
    assert max(map(len, asked)) == 100
    assert max(sum(len(each) for each in who if "é" in each) for who in asked) < 4_000 / 6


async def test_counts_are_dropped_when_there_are_too_many(
    meter: OpenMeterFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.billing.usage_sync.metered_usage.KEPT_MAX", 10)
    reader = UsageReader(meter)
    for hour in range(3):
        await reader.load([usage_range(n, hour * HOUR, (hour + 1) * HOUR) for n in range(2)])
    await reader.load([usage_range(n, 0, HOUR) for n in range(2)])
    assert len(meter.queries) == 4, "the first hour had to go, and is asked for again"
    assert reader.units(usage_range(1, 0, HOUR)) == 11


async def test_nobody_waits_for_one_timeout_after_another() -> None:
    """Five hundred accounts whose periods began at seconds of their own: as many queries, of which each would wait."""
    meter = OpenMeterFake(error=QueryError("no answer of OpenMeter in 30000 ms", transient=True))
    reader = UsageReader(meter)
    with pytest.raises(QueryError):
        await reader.load([UsageRange(f"tpp-{n}", "api_calls", T0 + n, T0 + HOUR) for n in range(500)])
    assert len(meter.queries) <= QUERIES_MAX


async def test_intervals_of_earlier_pages_make_room_too(meter: OpenMeterFake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merged hours of periods that began on thirty different days are thirty answers with all subjects."""
    monkeypatch.setattr("sidecar.billing.usage_sync.metered_usage.KEPT_MAX", 20)
    reader = UsageReader(meter)
    for page in range(30):
        await reader.load([usage_range(n, page, 3 * HOUR - 1) for n in range(2)])
    assert repr(reader) == "UsageReader(0 windows and 3 intervals of all subjects)"
