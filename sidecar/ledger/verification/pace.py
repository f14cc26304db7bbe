"""How fast a pass goes through a ledger that others use."""

from __future__ import annotations

import asyncio
import math
import time


class Pace:
    """Waits between pages, so that there are at most so many a second."""

    def __init__(self, pages_per_second: float = math.inf) -> None:
        self._interval_s = 1 / pages_per_second
        self._next_s = 0.0

    async def wait(self) -> None:
        """Before each page."""
        pause_s = self._next_s - time.monotonic()
        if pause_s > 0:
            await asyncio.sleep(pause_s)
        self._next_s = max(time.monotonic(), self._next_s) + self._interval_s
