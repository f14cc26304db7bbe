from __future__ import annotations

import pytest

from sidecar.billing.usage_sync.metered_usage import UsageRange, UsageReader
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
