"""Requests follow each other at a rate_limit, in order, and stop when Lago asks for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.basics.clock import SystemClock
from sidecar.billing.lago.errors import LagoUnavailable
from sidecar.billing.lago.metrics import LagoMetrics
from sidecar.billing.lago.request_rate import BURST_S, RequestRateLimit


class TurningClock:
    """Time passes only by waiting. ``on_wait`` runs before each wait."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.on_wait: Callable[[float], object] = float

    def now_s(self) -> float:
        return self.now

    def monotonic_s(self) -> float:
        return self.now

    async def wait(self, event: asyncio.Event, timeout_s: float) -> bool:
        self.on_wait(timeout_s)
        await asyncio.sleep(0)
        if not event.is_set():
            self.now += timeout_s
        return event.is_set()


def paced(rate: float) -> tuple[RequestRateLimit, TurningClock, LagoMetrics]:
    clock, metrics = TurningClock(), LagoMetrics()
    return RequestRateLimit(rate, clock, metrics), clock, metrics


async def times(rate_limit: RequestRateLimit, clock: TurningClock, count: int) -> list[float]:
    passed = []
    for _ in range(count):
        await rate_limit.turn()
        passed.append(clock.now - 1000)
    return passed


async def test_a_tenth_of_the_rate_may_come_at_once_and_then_it_is_steady() -> None:
    rate_limit, clock, metrics = paced(40)
    passed = await times(rate_limit, clock, 10)
    assert passed[:4] == [0, 0, 0, 0]
    assert [round(later - earlier, 6) for earlier, later in pairwise(passed[3:])] == [0.025] * 6
    assert metrics.throttled_s == pytest.approx(0.15)


async def test_a_slow_pace_has_no_burst() -> None:
    rate_limit, clock, _ = paced(2)
    assert await times(rate_limit, clock, 4) == pytest.approx([0, 0.5, 1, 1.5])


async def test_time_that_passes_unused_is_saved_up_to_the_burst() -> None:
    rate_limit, clock, metrics = paced(40)
    await times(rate_limit, clock, 4)
    clock.now += 100
    held_s = metrics.throttled_s
    assert [round(at, 6) for at in await times(rate_limit, clock, 5)] == [100, 100, 100, 100, 100.025]
    assert metrics.throttled_s == pytest.approx(held_s + 0.025)


async def test_a_pause_holds_everything_and_what_waited_goes_at_the_pace() -> None:
    rate_limit, clock, metrics = paced(40)
    rate_limit.pause(3)
    assert await times(rate_limit, clock, 3) == pytest.approx([3, 3.025, 3.05])
    assert metrics.pauses == 1
    assert metrics.throttled_s == pytest.approx(3.05)


async def test_a_pause_during_a_wait_prolongs_it() -> None:
    rate_limit, clock, _ = paced(1)
    await rate_limit.turn()
    clock.on_wait = lambda seconds: rate_limit.pause(10) if clock.now == 1000 else None
    await rate_limit.turn()
    assert clock.now == pytest.approx(1010)


async def test_a_shorter_pause_does_not_end_a_longer_one() -> None:
    rate_limit, clock, _ = paced(40)
    rate_limit.pause(5)
    rate_limit.pause(1)
    await rate_limit.turn()
    assert clock.now == pytest.approx(1005)


async def test_many_tasks_share_one_pace_in_their_order() -> None:
    rate_limit, clock, metrics = paced(40)
    order: list[tuple[int, float]] = []

    async def one(number: int) -> None:
        await rate_limit.turn()
        order.append((number, clock.now - 1000))

    await asyncio.gather(*map(one, range(24)))
    assert [number for number, _ in order] == list(range(24))
    assert order[-1][1] == pytest.approx(20 * 0.025)
    assert metrics.throttled_s == pytest.approx(20 * 0.025), "the time passes once, however many wait"


async def test_one_who_gives_up_does_not_hold_up_the_others() -> None:
    rate_limit, clock, _ = paced(40)
    rate_limit.pause(1)
    gone = asyncio.create_task(rate_limit.turn())
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    await rate_limit.turn()
    assert clock.now == pytest.approx(1001)


async def test_closing_ends_all_waits() -> None:
    rate_limit, _, _ = paced(40)
    rate_limit.pause(3600)
    waiting = [asyncio.create_task(rate_limit.turn()) for _ in range(3)]
    await asyncio.sleep(0)
    rate_limit.close()
    for found in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(found, LagoUnavailable)
        assert found.unsent
    with pytest.raises(LagoUnavailable):
        await rate_limit.wait(1)


@given(st.floats(min_value=0.1, max_value=10_000), st.lists(st.floats(min_value=0, max_value=2), max_size=40))
def test_no_second_has_more_requests_than_the_rate_and_its_burst(rate: float, gaps: list[float]) -> None:
    async def run() -> list[float]:
        rate_limit, clock, _ = paced(rate)
        passed = []
        for gap in gaps:
            clock.now += gap
            await rate_limit.turn()
            passed.append(clock.now)
        return passed

    passed = asyncio.run(run())
    for first in range(len(passed)):
        within = [at for at in passed[first:] if at < passed[first] + 1]
        assert len(within) <= rate * (1 + BURST_S) + 2


def test_it_tells_how_it_is_doing() -> None:
    rate_limit, _, _ = paced(40)
    rate_limit.pause(3)
    assert repr(rate_limit) == "RequestRateLimit(40/s, the next in 3.0 s)"


async def test_those_who_wait_together_are_counted_as_one_wait() -> None:
    metrics = LagoMetrics()
    rate_limit = RequestRateLimit(200, SystemClock(), metrics)
    started = time.monotonic()
    await asyncio.gather(*(rate_limit.turn() for _ in range(40)))
    assert metrics.throttled_s <= time.monotonic() - started + 0.01
