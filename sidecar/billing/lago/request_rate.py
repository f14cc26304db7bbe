"""Limits the rate of requests to Lago: one limit for all tasks (GCRA, a token bucket without a timer)."""

from __future__ import annotations

import asyncio
from typing import Final

from sidecar.basics.clock import Clock
from sidecar.billing.lago.errors import LagoUnavailable
from sidecar.billing.lago.metrics import LagoMetrics

BURST_S: Final = 0.1
"""The burst: a tenth of Lago's windows of one second."""

_EPSILON_S: Final = 1e-6
"""A wait shorter than that is none; it is what is left over by rounding."""


class RequestRateLimit:
    """``turn`` lets requests pass in the order in which they came. ``close`` ends all waiting."""

    def __init__(self, requests_per_second: float, clock: Clock, metrics: LagoMetrics) -> None:
        self._interval_s = 1 / requests_per_second
        self._slack_s = max(0.0, BURST_S - self._interval_s)
        self._clock = clock
        self._metrics = metrics
        self._queue = asyncio.Lock()
        self._closed = asyncio.Event()
        self._free_at_s = clock.monotonic_s()

    def __repr__(self) -> str:
        due_s = max(0.0, self._due_s() - self._clock.monotonic_s())
        return f"RequestRateLimit({1 / self._interval_s:g}/s, the next in {due_s:.1f} s)"

    async def turn(self) -> None:
        """Wait until one more request may be sent. Raises ``LagoUnavailable`` if the client is closed."""
        async with self._queue:
            # A pause may begin, or grow, while this waits.
            while (wait_s := self._due_s() - self._clock.monotonic_s()) > _EPSILON_S:
                self._metrics.throttled_s += wait_s
                await self.wait(wait_s)
            self._check_open()
            self._free_at_s = max(self._free_at_s, self._clock.monotonic_s()) + self._interval_s

    def pause(self, seconds: float) -> None:
        """Let nothing pass for so long. Waiting requests then go at the rate, and not all at once."""
        self._free_at_s = max(self._free_at_s, self._clock.monotonic_s() + seconds + self._slack_s)
        self._metrics.pauses += 1

    async def wait(self, seconds: float) -> None:
        """Wait outside the queue. Raises ``LagoUnavailable`` if the client is closed."""
        await self._clock.wait(self._closed, seconds)
        self._check_open()

    def close(self) -> None:
        """End all waits with an error."""
        self._closed.set()

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise LagoUnavailable("the client of Lago is closed", kind="network", unsent=True)

    def _due_s(self) -> float:
        return self._free_at_s - self._slack_s
