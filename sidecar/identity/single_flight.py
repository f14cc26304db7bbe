"""Many waiters, one call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

from sidecar.identity.types import IdentityUnavailable

WAITERS_MAX: Final = 1_000

K = TypeVar("K")
V = TypeVar("V")


class SingleFlight(Generic[K, V]):
    """Runs at most one call per key at a time and tells everyone who asked meanwhile.

    Each waiter has a future of its own: a client that goes away cancels its own and takes nobody along.
    """

    def __init__(self, waiters_max: int = WAITERS_MAX) -> None:
        """Of one call at most ``waiters_max`` wait; who comes then gets ``IdentityUnavailable``."""
        self._waiters_max = waiters_max
        self._waiters: dict[K, list[asyncio.Future[V]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def begin(self, key: K, call: Callable[[], Awaitable[V]]) -> None:
        """Start the call unless one is under way. Nobody waits for it: what it raises is lost."""
        if key not in self._waiters and not self._closed:
            self._start(key, call, [])

    def join(self, key: K, call: Callable[[], Awaitable[V]]) -> asyncio.Future[V]:
        """Answer a future for what the call under way, or else a new one, will answer or raise."""
        future: asyncio.Future[V] = asyncio.get_running_loop().create_future()
        if self._closed:
            future.set_exception(_closing())
        elif key in self._waiters:
            waiters = self._waiters[key]
            if len(waiters) >= self._waiters_max:
                future.set_exception(IdentityUnavailable("too many requests wait for the same look-up"))
            else:
                waiters.append(future)
        else:
            self._start(key, call, [future])
        return future

    async def close(self) -> None:
        """End the calls under way; who waits for them gets ``IdentityUnavailable``."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for key in list(self._waiters):  # a task cancelled before its first step never saw its waiters
            self._fail(key, _closing())

    def _start(self, key: K, call: Callable[[], Awaitable[V]], waiters: list[asyncio.Future[V]]) -> None:
        self._waiters[key] = waiters
        task = asyncio.get_running_loop().create_task(self._run(key, call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, key: K, call: Callable[[], Awaitable[V]]) -> None:
        try:
            value = await call()
        except asyncio.CancelledError:
            self._fail(key, _closing())
            raise
        except Exception as error:  # it belongs to the waiters; lost here, it would let them wait for ever
            self._fail(key, error)
        else:
            for future in self._waiters.pop(key):
                if not future.done():
                    future.set_result(value)

    def _fail(self, key: K, error: Exception) -> None:
        for future in self._waiters.pop(key, ()):
            if not future.done():
                future.set_exception(error)

    def __repr__(self) -> str:
        return f"SingleFlight({len(self._waiters)} calls, {sum(map(len, self._waiters.values()))} waiters)"


def _closing() -> IdentityUnavailable:
    return IdentityUnavailable("the gateway is shutting down")
