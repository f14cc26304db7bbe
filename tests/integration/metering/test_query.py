"""What OpenMeter is asked, on a real socket: usage, meters, and what goes wrong on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from sidecar.metering.openmeter.access import MeteringError
from sidecar.metering.openmeter.meter_query import Meter, MeterQuery, QueryError, UsageRow
from sidecar.metering.settings import MeteringSettings
from sidecar.sandbox.openmeter.meters import DEFAULT_METERS
from sidecar.sandbox.openmeter.openmeter_events import CloudEvent
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter, OpenMeterConfig
from sidecar.sandbox.server import Server

HOUR_MS = 3_600_000
T_MS = 1_767_225_600_000
METER = Meter("payments", "SUM", "$.units", "api.call", {"metric": "$.metric", "endpoint": "$.endpoint"})

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture
async def query(url: str) -> AsyncIterator[MeterQuery]:
    async with MeterQuery(MeteringSettings(url=url)) as query:
        yield query


def use(meter: OpenMeter, t_ms: int, units: int, subject: str = "tpp-1", metric: str = "api_calls") -> None:
    data = f'{{"units":{units},"metric":"{metric}","endpoint":"/a"}}'.encode()
    number = len(meter.store)
    event = CloudEvent(
        id=f"gw.{number}", source="bank", type="api.call", subject=subject, time_s=t_ms // 1000, data=data
    )
    meter.keep([event])


@asynccontextmanager
async def answering(handler: Handler, **changes: Any) -> AsyncIterator[MeterQuery]:
    """OpenMeter's place is taken by ``handler``."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    async with Server(app) as server, MeterQuery(MeteringSettings(url=server.url, **changes)) as query:
        yield query


def always(**answer: Any) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(**answer)

    return handler


async def test_usage_comes_by_subject_and_hour_from_the_first_instant_to_before_the_last(
    meter: OpenMeter, query: MeterQuery
) -> None:
    for t_ms, units in ((-1, 1), (0, 2), (999, 4), (HOUR_MS - 1, 8), (HOUR_MS, 16), (2 * HOUR_MS, 32)):
        use(meter, T_MS + t_ms, units)
    use(meter, T_MS, 64, "tpp-2")
    rows = await query.usage("api_calls", T_MS, T_MS + 2 * HOUR_MS)
    assert set(rows) == {
        UsageRow("tpp-1", T_MS, 2 + 4 + 8),
        UsageRow("tpp-1", T_MS + HOUR_MS, 16),
        UsageRow("tpp-2", T_MS, 64),
    }
    assert len(rows) == 3


async def test_usage_can_be_of_one_subject_by_minute_or_in_one_sum(meter: OpenMeter, query: MeterQuery) -> None:
    for minute in range(3):
        use(meter, T_MS + minute * 60_000, 1)
        use(meter, T_MS + minute * 60_000, 5, "tpp-2")
    by_minute = await query.usage("api_calls", T_MS, T_MS + 120_000, subject="tpp-2", window="MINUTE")
    assert by_minute == (UsageRow("tpp-2", T_MS, 5), UsageRow("tpp-2", T_MS + 60_000, 5))
    in_one = await query.usage("api_calls", T_MS + 1_000, T_MS + 121_000, window=None)
    assert in_one == (UsageRow("tpp-1", T_MS + 1_000, 2), UsageRow("tpp-2", T_MS + 1_000, 10))


async def test_events_of_another_metric_do_not_count_though_the_meter_takes_them(
    meter: OpenMeter, query: MeterQuery
) -> None:
    use(meter, T_MS, 1)
    use(meter, T_MS, 2, metric="payments")
    assert await query.usage("api_calls", T_MS, T_MS + HOUR_MS) == (UsageRow("tpp-1", T_MS, 1),)


async def test_where_nothing_was_used_there_is_no_row(query: MeterQuery) -> None:
    assert await query.usage("api_calls", T_MS, T_MS + HOUR_MS) == ()


@pytest.mark.parametrize(
    ("from_ms", "to_ms", "window"),
    [
        (T_MS + 1, T_MS + HOUR_MS, None),
        (T_MS, T_MS, None),
        (T_MS, T_MS + 60_000, "HOUR"),
        (T_MS, T_MS + 1_000, "MINUTE"),
    ],
)
async def test_bounds_that_would_cut_a_window_are_a_mistake_of_the_caller(
    query: MeterQuery, from_ms: int, to_ms: int, window: Any
) -> None:
    with pytest.raises(AssertionError):
        await query.usage("api_calls", from_ms, to_ms, window=window)


async def test_a_meter_that_is_not_there_is_named_with_what_makes_it(query: MeterQuery) -> None:
    with pytest.raises(QueryError, match="no meter payments; `sidecar catalog apply` makes it") as caught:
        await query.usage("payments", T_MS, T_MS + HOUR_MS)
    assert not caught.value.transient


async def test_a_meter_without_the_metric_group_is_named_with_what_it_lacks() -> None:
    bare = replace(DEFAULT_METERS[0], group_by={"endpoint": "$.endpoint"})
    async with (
        Server(OpenMeter(OpenMeterConfig(meters=(bare,))).app()) as server,
        MeterQuery(MeteringSettings(url=server.url)) as query,
    ):
        with pytest.raises(QueryError, match=r"meter api_calls has no group-by metric: it needs groupBy") as caught:
            await query.usage("api_calls", T_MS, T_MS + HOUR_MS)
    assert not caught.value.transient


@pytest.mark.parametrize("metric", ["", "API", "a/b", "a b", "a__b", "é", "a" * 65, "../events"])
async def test_a_metric_that_cannot_be_a_meter_is_not_asked_for(query: MeterQuery, metric: str) -> None:
    with pytest.raises(QueryError, match="cannot be a meter"):
        await query.usage(metric, T_MS, T_MS + HOUR_MS)


async def test_meters_are_made_and_shown(query: MeterQuery) -> None:
    assert await query.meter("payments") is None
    assert await query.create_meter(METER) == METER
    assert await query.meter("payments") == METER
    assert [each.slug for each in await query.meters()] == ["api_calls", "api_requests", "payments"]
    with pytest.raises(QueryError, match=r"does not take meter payments.*already exists") as caught:
        await query.create_meter(METER)
    assert not caught.value.transient


async def test_a_meter_is_deleted_once(query: MeterQuery) -> None:
    await query.create_meter(METER)
    assert await query.delete_meter("payments")
    assert await query.meter("payments") is None
    assert not await query.delete_meter("payments")


async def test_of_a_meter_groups_name_and_description_are_changed_and_it_is_deleted(query: MeterQuery) -> None:
    await query.create_meter(METER)
    other = replace(METER, group_by={"metric": "$.metric"}, name="Payments", description="All of them")
    assert await query.update_meter(replace(other, aggregation="MAX", event_type="other")) == other
    assert await query.meter("payments") == other
    await query.delete_meter("payments")
    assert await query.meter("payments") is None
    await query.delete_meter("payments")
    with pytest.raises(QueryError, match=r"does not change meter payments: .*not found") as caught:
        await query.update_meter(other)
    assert not caught.value.transient


@pytest.mark.parametrize("seconds", [True, False])
async def test_a_version_that_takes_whole_minutes_only_is_told_apart(seconds: bool) -> None:
    async with (
        Server(OpenMeter(OpenMeterConfig(seconds=seconds)).app()) as server,
        MeterQuery(MeteringSettings(url=server.url)) as query,
    ):
        assert await query.takes_seconds("api_calls", T_MS + 12_345) is seconds
        with pytest.raises(QueryError, match="not found"):
            await query.takes_seconds("payments", T_MS)


async def test_the_last_answer_says_what_its_clock_says() -> None:
    dates: list[str] = ["Thu, 01 Jan 2026 00:00:00 GMT", "soon"]

    async def dated(request: web.Request) -> web.StreamResponse:
        return web.json_response([], headers={"Date": dates.pop(0)})

    async with answering(dated) as query:
        assert query.last_date is None
        await query.meters()
        assert query.last_date is not None
        assert query.last_date.earliest_s == T_MS / 1000
        assert query.last_date.ahead_s > 0
        await query.meters()
        assert query.last_date is None


async def test_all_meters_are_listed_however_many_pages_there_are() -> None:
    meters = tuple(replace(DEFAULT_METERS[0], slug=f"meter_{number}") for number in range(250))
    async with (
        Server(OpenMeter(OpenMeterConfig(meters=meters)).app()) as server,
        MeterQuery(MeteringSettings(url=server.url)) as query,
    ):
        assert {each.slug for each in await query.meters()} == {each.slug for each in meters}


async def test_the_token_is_sent_and_one_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old")
    async with (
        Server(OpenMeter(OpenMeterConfig(token="new")).app()) as server,
        MeterQuery(MeteringSettings(url=server.url, token_file=file)) as query,
    ):
        with pytest.raises(QueryError, match=r"refuses the token \(401\): check metering.token_file$") as caught:
            await query.meters()
        assert not caught.value.transient
        file.write_text("new\n")
        assert len(await query.meters()) == 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "wants a token (401): set metering.token_file"),
        ({"token": "old"}, "refuses the token (401): check metering.token"),
    ],
)
async def test_a_refusal_names_the_setting_that_has_the_token_or_should_have(
    settings: dict[str, str], says: str
) -> None:
    async with (
        Server(OpenMeter(OpenMeterConfig(token="new")).app()) as server,
        MeterQuery(MeteringSettings.model_validate({"url": server.url, **settings})) as query,
    ):
        with pytest.raises(QueryError) as caught:
            await query.meters()
    assert str(caught.value) == f"OpenMeter {says}"


async def test_without_a_url_it_does_not_start() -> None:
    with pytest.raises(MeteringError, match=r"metering\.url is not set"):
        async with MeterQuery(MeteringSettings()):
            pass


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_a_passing_failure_is_transient(status: int) -> None:
    async with answering(always(status=status, text='{"detail":"too busy"}', content_type="application/json")) as query:
        with pytest.raises(QueryError, match=f"{status} too busy") as caught:
            await query.usage("api_calls", T_MS, T_MS + HOUR_MS)
    assert caught.value.transient


@pytest.mark.parametrize("status", [200, 400, 404, 502])
async def test_a_web_page_is_some_proxys_and_transient(status: int) -> None:
    async with answering(always(status=status, text="<html>maintenance", content_type="text/html")) as query:
        with pytest.raises(QueryError, match="web page") as caught:
            await query.meter("api_calls")
    assert caught.value.transient


async def test_an_answer_that_is_cut_off_or_no_json_is_transient() -> None:
    async with answering(always(text='{"data":[', content_type="application/json")) as query:
        with pytest.raises(QueryError, match="not JSON") as caught:
            await query.usage("api_calls", T_MS, T_MS + HOUR_MS)
    assert caught.value.transient


@pytest.mark.parametrize(("status", "message"), [(302, "redirect"), (400, "does not answer for meter"), (403, "token")])
async def test_a_lasting_refusal_is_not_transient(status: int, message: str) -> None:
    async with answering(always(status=status, headers={"Location": "/elsewhere"})) as query:
        with pytest.raises(QueryError, match=message) as caught:
            await query.usage("api_calls", T_MS, T_MS + HOUR_MS)
    assert not caught.value.transient


async def test_a_server_that_hangs_or_hangs_up_or_is_not_there_is_transient() -> None:
    async def hang(request: web.Request) -> web.StreamResponse:
        if request.query.get("subject") == "cut" and request.transport is not None:
            request.transport.abort()
        await asyncio.sleep(0.4)
        return web.Response()

    async with answering(hang, query_timeout_ms=100) as query:
        for subject, message in (("slow", "no answer of OpenMeter in 100 ms"), ("cut", "cannot be reached")):
            with pytest.raises(QueryError, match=message) as caught:
                await query.usage("api_calls", T_MS, T_MS + HOUR_MS, subject=subject)
            assert caught.value.transient
    async with MeterQuery(MeteringSettings(url="http://127.0.0.1:9")) as query:
        with pytest.raises(QueryError, match="cannot be reached") as caught:
            await query.meters()
    assert caught.value.transient


async def test_an_answer_without_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.metering.openmeter.meter_query.ANSWER_BYTES_MAX", 100_000)
    async with answering(always(text="[" + "1," * 100_000, content_type="application/json")) as query:
        with pytest.raises(QueryError, match="more than 100000 bytes") as caught:
            await query.meters()
    assert not caught.value.transient
