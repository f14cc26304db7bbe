"""Doorbells: "look at this account again", kept in Valkey until somebody has looked.

A bell is a name with the instant of its last ring. Ringing often is ringing once, and a ring during the work that an
earlier one has caused stays, so it is never lost and never does the same work twice. Names: ``account:<id>``,
``wallet:<lago id>``, ``plan:<code>``, ``subscription:<external id>``, ``sweep``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sidecar.ledger.keys import Keys
from sidecar.ledger.topology import Client

BELLS_MAX: Final = 1_000_000
"""Names waiting. Beyond that a ring becomes ``sweep``, which looks at everything."""
SWEEP: Final = "sweep"

_RING: Final = b"""
-- KEYS [1] bells  ARGV [1] most names [2 ...] names
-- reply how many were not waiting yet
-- A score is the time of the ring in microseconds, and rises with each, so that whoever answers a ring sees a later one.
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local fresh = 0
for i = 2, #ARGV do
  local name = ARGV[i]
  local last = tonumber(redis.call('ZSCORE', KEYS[1], name) or 0)
  if last == 0 and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[1]) then
    name = 'sweep'
    last = tonumber(redis.call('ZSCORE', KEYS[1], name) or 0)
  end
  fresh = fresh + redis.call('ZADD', KEYS[1], string.format('%.0f', math.max(now_us, last + 1)), name)
end
return fresh
"""

_ANSWER: Final = b"""
-- KEYS [1] bells  ARGV name, score, name, score, ...
-- reply how many were removed; one that rang again since stays
local removed = 0
for i = 1, #ARGV, 2 do
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) == ARGV[i + 1] then
    removed = removed + redis.call('ZREM', KEYS[1], ARGV[i])
  end
end
return removed
"""

_RIPEN: Final = b"""
-- KEYS [1] bells [2] alarms  ARGV [1] most names
-- reply how many alarms went off
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', math.floor(now_us / 1000)), 'LIMIT', 0, ARGV[1])
for _, name in ipairs(due) do
  local last = tonumber(redis.call('ZSCORE', KEYS[1], name) or 0)
  redis.call('ZADD', KEYS[1], string.format('%.0f', math.max(now_us, last + 1)), name)
  redis.call('ZREM', KEYS[2], name)
end
return #due
"""


@dataclass(frozen=True, slots=True)
class Ring:
    """A bell that waits. ``score`` identifies the ring; ``age_s`` is how long ago it was."""

    name: str
    score: bytes
    age_s: float


class Bells:
    """The bells of one ledger. All methods raise what redis-py raises (``sidecar.ledger.topology.CLIENT_ERRORS``)."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._bells = keys.bells()
        self._alarms = keys.alarms()

    def __repr__(self) -> str:
        return f"Bells({self._bells})"

    async def ring(self, names: Iterable[str]) -> int:
        """Ring each; answer how many were not waiting already. When it returns, the rings are as durable as Valkey."""
        wanted = list(dict.fromkeys(names))
        if not wanted:
            return 0
        return int(await self._client.eval(_RING.decode(), 1, self._bells, BELLS_MAX, *wanted))

    async def waiting(self, limit: int) -> tuple[Ring, ...]:
        """Those that wait, longest first."""
        await self._client.eval(_RIPEN.decode(), 2, self._bells, self._alarms, limit)
        seconds, micros = await self._client.time()
        now_us = int(seconds) * 1_000_000 + int(micros)
        rows = await self._client.execute_command("ZRANGE", self._bells, 0, limit - 1, "WITHSCORES")
        # RESP3 answers pairs, RESP2 a flat list.
        pairs = [tuple(row) for row in rows] if rows and isinstance(rows[0], (list, tuple)) else list(zip(*[iter(rows)] * 2))
        rings = []
        for name, score in pairs:
            text = score if isinstance(score, bytes) else format(score, ".0f").encode()
            rings.append(Ring(name.decode(), text, max(0.0, (now_us - float(text)) / 1e6)))
        return tuple(rings)

    async def answer(self, rings: Iterable[Ring]) -> int:
        """What they asked for is done. One that rang again meanwhile stays."""
        args = [value for ring in rings for value in (ring.name.encode(), ring.score)]
        return int(await self._client.eval(_ANSWER.decode(), 1, self._bells, *args)) if args else 0

    async def count(self) -> int:
        return int(await self._client.zcard(self._bells))

    async def wake(self, name: str, at_ms: int) -> None:
        """Ring at an instant; an earlier alarm of the same name stays."""
        await self._client.execute_command("ZADD", self._alarms, "LT", at_ms, name)
