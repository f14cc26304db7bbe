"""One clock for everything: the scripts of the ledger, the loader, Lago. It stands until it is moved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis.asyncio as valkey

from sidecar.valkey import scripts
from tests.support.ledger_driver import CLOCK_KEY, text_of


class ClockedClient(valkey.Redis):
    """A client whose TIME is the moved clock's, as that of the scripts is."""

    async def time(self, **_: Any) -> tuple[int, int]:  # type: ignore[override]
        now_us = int(await self.get(CLOCK_KEY) or 0)
        return divmod(now_us, 1_000_000)


@contextmanager
def movable_scripts() -> Iterator[None]:
    """Within, every script that is loaded asks the moved clock for the time. Of their text nothing else differs."""
    read = scripts._read
    text_of.cache_clear()
    movable = _movable()

    def replaced(relative: str) -> str:
        return movable if relative == "lib/time.lua" else read(relative)

    scripts._read = replaced
    scripts.script.cache_clear()
    scripts.function.cache_clear()
    try:
        yield
    finally:
        scripts._read = read
        scripts.script.cache_clear()
        scripts.function.cache_clear()
        text_of.cache_clear()


def _movable() -> str:
    text = text_of("batch", movable_clock=True)
    start = text.index("local function server_time_us()")
    return text[start : text.index("\nend\n", start) + 5]
