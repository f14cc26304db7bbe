"""The one way in which the publisher waits, so that a test can do the waiting for it."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Time and waiting."""

    def now_s(self) -> float:
        """Seconds since 1970, for dates that a server names."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that only pass."""
        ...

    async def wait(self, event: asyncio.Event, timeout_s: float) -> bool:
        """Wait for ``event`` or for ``timeout_s``; answer whether the event is set."""
        ...


class SystemClock:
    """The real one."""

    def now_s(self) -> float:
        return time.time()

    def monotonic_s(self) -> float:
        return time.monotonic()

    async def wait(self, event: asyncio.Event, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            pass
        return event.is_set()
