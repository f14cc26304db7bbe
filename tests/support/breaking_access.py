"""A connection of the ledger's tools that fails on the way, at every place where a run can be interrupted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis

from sidecar.ledger.transfer.access import Access
from sidecar.valkey.calls import Call


class Interrupted(Exception):
    pass


class Breaking(Access):
    """Fails after so many calls, before or after the last one was done."""

    def __init__(self, client: Redis, calls: int, after: bool) -> None:
        super().__init__(client)
        self.left = calls
        self._after = after

    async def each(self, calls: Sequence[Call]) -> list[Any]:
        self.left -= 1
        if self.left < 0 and not self._after:
            raise Interrupted
        replies = await super().each(calls)
        if self.left < 0:
            raise Interrupted
        return replies
