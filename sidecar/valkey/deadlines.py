"""Calls to Valkey with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_abandoned: set[asyncio.Task[Any]] = set()


async def with_deadline(timeout_s: float, call: Coroutine[Any, Any, T]) -> T:
    """What ``call`` answers or raises.

    ``asyncio.timeout`` is not enough for redis-py: a cancellation that falls together with an answer, or into the
    making of a connection, may be lost in it, and whoever waits then waits as long as the socket does. Here the call
    is cancelled and abandoned.

    Raises:
        TimeoutError: it took longer; whether it took effect is not known.
    """
    task = asyncio.get_running_loop().create_task(call)
    try:
        await asyncio.wait({task}, timeout=timeout_s)
    finally:
        if not task.done():
            _abandoned.add(task)
            task.add_done_callback(_forget)
            task.cancel()
    if not task.done():
        raise TimeoutError
    return task.result()


def _forget(task: asyncio.Task[Any]) -> None:
    _abandoned.discard(task)
    if not task.cancelled():
        task.exception()  # otherwise asyncio would complain that nobody has looked
