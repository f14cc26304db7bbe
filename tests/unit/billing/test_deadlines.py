"""No longer than one has time, whatever the call does with its cancellation."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress

import pytest

from sidecar.valkey.deadlines import with_deadline


async def test_an_answer_in_time_is_given() -> None:
    async def call() -> int:
        await asyncio.sleep(0)
        return 7

    assert await with_deadline(5, call()) == 7


async def test_what_the_call_raises_is_raised() -> None:
    async def call() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await with_deadline(5, call())


async def test_a_call_that_loses_its_cancellation_keeps_nobody_waiting() -> None:
    release = asyncio.Event()
    ended = asyncio.Event()

    async def call() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await release.wait()
        ended.set()
        raise ValueError("nobody hears")

    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(with_deadline(0.01, call()), 5)
    release.set()
    await asyncio.wait_for(ended.wait(), 5)
    await asyncio.sleep(0)
    gc.collect()
    assert complaints == []


async def test_whoever_is_cancelled_takes_the_call_along() -> None:
    cancelled = asyncio.Event()

    async def call() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    task = asyncio.create_task(with_deadline(60, call()))
    await asyncio.sleep(0.01)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await asyncio.wait_for(cancelled.wait(), 5)
