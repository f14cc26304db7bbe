from __future__ import annotations

import asyncio

import pytest

from sidecar.identity.single_flight import SingleFlight
from sidecar.identity.types import IdentityUnavailable


class Call:
    """Counts how often it runs, and ends when it is told how."""

    def __init__(self) -> None:
        self.runs = 0
        self.end: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def __call__(self) -> str:
        self.runs += 1
        return await asyncio.shield(self.end)


async def test_all_who_ask_during_a_call_get_its_one_answer() -> None:
    flight, call = SingleFlight[str, str](), Call()
    waiting = [flight.join("k", call) for _ in range(100)]
    call.end.set_result("done")
    assert await asyncio.gather(*waiting) == ["done"] * 100
    assert call.runs == 1
    assert repr(flight) == "SingleFlight(0 calls, 0 waiters)"


async def test_different_keys_are_different_calls() -> None:
    flight, one, two = SingleFlight[str, str](), Call(), Call()
    first, second = flight.join("1", one), flight.join("2", two)
    two.end.set_result("two")
    assert await second == "two"
    assert not first.done()
    one.end.set_result("one")
    assert await first == "one"


async def test_who_asks_after_the_answer_starts_a_new_call() -> None:
    flight, call = SingleFlight[str, str](), Call()
    call.end.set_result("done")
    await flight.join("k", call)
    await flight.join("k", call)
    assert call.runs == 2


async def test_a_waiter_that_gives_up_takes_nobody_along() -> None:
    flight, call = SingleFlight[str, str](), Call()
    first, second = flight.join("k", call), flight.join("k", call)
    await asyncio.sleep(0)
    first.cancel()
    call.end.set_result("done")
    assert await second == "done"
    assert call.runs == 1


async def test_a_failure_reaches_every_waiter_and_is_not_remembered() -> None:
    flight, call = SingleFlight[str, str](), Call()
    waiting = [flight.join("k", call) for _ in range(3)]
    call.end.set_exception(ValueError("broken"))
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["broken"] * 3
    assert repr(flight) == "SingleFlight(0 calls, 0 waiters)"


async def test_a_call_that_nobody_waits_for_runs_once_and_may_be_joined() -> None:
    flight, call = SingleFlight[str, str](), Call()
    flight.begin("k", call)
    flight.begin("k", call)
    waiter = flight.join("k", call)
    call.end.set_result("done")
    assert await waiter == "done"
    assert call.runs == 1


@pytest.mark.parametrize("steps", [0, 1, 2])
async def test_closing_answers_every_waiter_however_far_the_call_is(steps: int) -> None:
    flight, call = SingleFlight[str, str](), Call()
    waiter = flight.join("k", call)
    for _ in range(steps):
        await asyncio.sleep(0)
    await flight.close()
    with pytest.raises(IdentityUnavailable, match="shutting down"):
        await waiter


async def test_after_closing_nothing_is_called() -> None:
    flight, call = SingleFlight[str, str](), Call()
    await flight.close()
    flight.begin("k", call)
    with pytest.raises(IdentityUnavailable):
        await flight.join("k", call)
    assert call.runs == 0
