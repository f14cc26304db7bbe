"""Drops accepted entries early when Valkey runs out of memory.

A Valkey that has reached ``maxmemory`` refuses every hold. The tail of accepted entries only serves the audit, so it
makes room first: of every partition the older half, and if that does not do, all of it. Then nothing more is kept until
there is room again.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Final

from redis.exceptions import OutOfMemoryError, ResponseError

from sidecar.basics.clock import Clock
from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.logger import get_logger
from sidecar.metering.outbox.outbox import Outbox
from sidecar.valkey.memory import memory_uses, place_of_key
from sidecar.valkey.topology import Client

log = get_logger("sidecar.metering")

LOOK_S: Final = 1.0
"""Time between two looks."""

FULL_SHARE: Final = 0.95
"""Share of maxmemory from which entries are dropped: before the server refuses anything."""

RELIEVED_SHARE: Final = 0.9
"""Share of maxmemory below which entries are kept again."""


class _Step(IntEnum):
    """What has been done on a server."""

    NOTHING = 0
    HALF_DROPPED = 1
    ALL_DROPPED = 2
    TOLD = 3
    """All is dropped, it did not help, and the operator was told."""


class MemoryRelief:
    """Looks after the memory of each server of the ledger. :meth:`relieve` wants to be called often; it looks once in a
    second, or at once when :meth:`note` was told that the server refused something for want of memory."""

    def __init__(self, client: Client, outbox: Outbox, clock: Clock) -> None:
        self._client = client
        self._outbox = outbox
        self._clock = clock
        self._due_s = self._dropped_s = -LOOK_S
        self._refused = False
        self._blind = False
        self._steps: dict[str, _Step] = {}

    def __repr__(self) -> str:
        return f"MemoryRelief({self._steps})"

    def note(self, errors: Iterable[Exception]) -> None:
        """Tells of failed calls."""
        if any(isinstance(error, OutOfMemoryError) for error in errors):
            self._refused = True
            self._due_s = self._dropped_s + LOOK_S  # what was dropped a moment ago may have been enough

    async def relieve(self) -> None:
        """Drops what must go, if it is time to look.

        Raises:
            RedisError, OSError: Valkey cannot be reached.
        """
        now_s = self._clock.monotonic_s()
        if now_s < self._due_s:
            return
        self._due_s = now_s + LOOK_S
        shares = await self._shares()
        refused, self._refused = self._refused, False
        for place, share in shares.items():
            step = self._steps.get(place, _Step.NOTHING)
            if share >= (RELIEVED_SHARE if refused and step is _Step.NOTHING else FULL_SHARE):
                self._dropped_s = now_s
                await self._drop(place, share, step)
            elif step is not _Step.NOTHING and (step is _Step.HALF_DROPPED or share < RELIEVED_SHARE):
                del self._steps[place]
                self._outbox.keep_again(self._partitions(place))

    async def _shares(self) -> dict[str, float]:
        try:
            uses = await memory_uses(self._client)
        except ResponseError as error:
            # A user may lack the right to ask. Then what the server refuses is all that can be known.
            if not self._blind:
                log.warning("valkey does not say how much memory it uses", reason=reason_of(error))
            self._blind = True
            return dict.fromkeys(self._places(), 1.0 if self._refused else 0.0)
        return {place: use.share for place, use in uses.items()}

    async def _drop(self, place: str, share: float, step: _Step) -> None:
        partitions = self._partitions(place)
        half = step is _Step.NOTHING
        if not half:
            self._outbox.keep_nothing(partitions)
        dropped = await self._outbox.drop_tail(partitions, half=half)
        where = {"server": place} if place else {}
        used = f"{share:.0%} of maxmemory"
        if dropped:
            what = "the older half of the accepted events is" if half else "accepted events are"
            log.warning(
                f"valkey is short of memory: {what} no longer kept for the audit", entries=dropped, used=used, **where
            )
        elif step is _Step.ALL_DROPPED:
            log.error(
                "valkey is short of memory although no accepted events are kept: raise maxmemory", used=used, **where
            )
            step = _Step.TOLD
        self._steps[place] = _Step.HALF_DROPPED if half else max(step, _Step.ALL_DROPPED)

    def _partitions(self, place: str) -> list[int]:
        return [partition for partition, of in enumerate(self._places_of_partitions()) if of == place]

    def _places(self) -> frozenset[str]:
        return frozenset(self._places_of_partitions())

    def _places_of_partitions(self) -> list[str]:
        return [place_of_key(self._client, key) for key in self._outbox.tails]
