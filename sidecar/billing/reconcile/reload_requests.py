"""Doorbells: "look at this account again", kept in Valkey until somebody has looked.

A bell is a name with the instant from which it waits. Ringing often is ringing once, and a ring during the work that an
earlier one has caused stays, so it is never lost and never does the same work twice. Names: ``account:<id>``,
``wallet:<lago id>``, ``plan:<code>``, ``subscription:<external id>``, ``sweep``.

Everything lives in one slot and is decided by Valkey's clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from sidecar.ledger.keys import Keys
from sidecar.valkey.topology import Client

BELLS_MAX: Final = 1_000_000
"""Names waiting, and as many with an alarm. Beyond that a name becomes ``sweep``, which looks at everything."""
MARKS_MAX: Final = 100_000
"""Marks of what has rung, some 15 MB. Beyond that the oldest goes: what it stood for would ring once more."""
CALL_MAX: Final = 1_000
"""Names in one call of a script, which keeps the server's only thread for about a millisecond."""
WAITING_MAX: Final = 20_000
"""Bells that may be looked at in one call."""
NAME_BYTES_MAX: Final = 512
SWEEP: Final = "sweep"

_RINGING: Final = """
-- A score is the time from which the bell waits, in microseconds. A ring of a bell that waits already adds one: it
-- keeps its place, and whoever answers the earlier ring sees that there was a later one.
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local function ring(bells, name, names_max)
  local last = redis.call('ZSCORE', bells, name)
  if not last and redis.call('ZCARD', bells) >= names_max then
    name = 'sweep'
    last = redis.call('ZSCORE', bells, name)
  end
  return redis.call('ZADD', bells, string.format('%.0f', last and last + 1 or now_us), name)
end
"""

_RING: Final = (
    _RINGING
    + """
-- KEYS [1] bells [2] marks
-- ARGV [1] most names [2] a mark, '' for none [3] microseconds for which it is kept [4] most marks [5 ...] names
-- reply how many were not waiting yet, or -1: the mark is there, so nothing was done
--
-- Why one script: a crash between mark and ring would lose the ring.
local mark = ARGV[2]
if mark ~= '' then
  local expired = string.format('%.0f', now_us - ARGV[3])
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', expired)
  if redis.call('ZSCORE', KEYS[2], mark) then
    return -1
  end
end
local fresh = 0
for i = 5, #ARGV do
  fresh = fresh + ring(KEYS[1], ARGV[i], tonumber(ARGV[1]))
end
if mark ~= '' then
  redis.call('ZADD', KEYS[2], string.format('%.0f', now_us), mark)
  redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -1 - ARGV[4])
end
return fresh
"""
)

_WAITING: Final = (
    _RINGING
    + """
-- KEYS [1] bells [2] alarms  ARGV [1] most names [2] how many are asked for
-- reply {name, score, age in microseconds, name, ...}, all text: numbers differ between protocol versions
local now_ms = string.format('%.0f', math.floor(now_us / 1000))
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now_ms, 'LIMIT', 0, ARGV[2])) do
  ring(KEYS[1], name, tonumber(ARGV[1]))
  redis.call('ZREM', KEYS[2], name)
end
local found = {}
local rows = redis.call('ZRANGE', KEYS[1], 0, ARGV[2] - 1, 'WITHSCORES')
for i = 1, #rows, 2 do
  local score = tonumber(rows[i + 1])
  found[#found + 1] = rows[i]
  found[#found + 1] = string.format('%.0f', score)
  found[#found + 1] = string.format('%.0f', now_us - score)
end
return found
"""
)

_WAKING: Final = """
local function wake(alarms, name, at_ms, names_max)
  if not redis.call('ZSCORE', alarms, name) and redis.call('ZCARD', alarms) >= names_max then
    name = 'sweep'
  end
  return redis.call('ZADD', alarms, 'LT', at_ms, name)
end
"""

_ANSWER: Final = (
    _WAKING
    + """
-- KEYS [1] bells [2] alarms
-- ARGV [1] most names [2] '', or milliseconds after which what is answered rings again [3 ...] name, score, name, ...
-- reply how many were removed; one that rang again since stays
local again_ms
if ARGV[2] ~= '' then
  local time = redis.call('TIME')
  again_ms = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2])
end
local removed = 0
for i = 3, #ARGV, 2 do
  local score = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if score and tonumber(score) == tonumber(ARGV[i + 1]) then
    removed = removed + redis.call('ZREM', KEYS[1], ARGV[i])
    if again_ms then
      wake(KEYS[2], ARGV[i], again_ms, tonumber(ARGV[1]))
    end
  end
end
return removed
"""
)

_WAKE: Final = (
    _WAKING
    + """
-- KEYS [1] alarms  ARGV [1] most names [2] Unix milliseconds [3] name
return wake(KEYS[1], ARGV[3], ARGV[2], tonumber(ARGV[1]))
"""
)


@dataclass(frozen=True, slots=True)
class Ring:
    """A bell that waits. ``score`` identifies its last ring; ``age_s`` is how long ago it began to wait."""

    name: str
    score: bytes
    age_s: float


class Bells:
    """The bells of one ledger. All methods raise what redis-py raises (``sidecar.valkey.topology.CLIENT_ERRORS``).

    ``names_max`` and ``marks_max`` are limits of this object's calls, not of what is stored.
    """

    def __init__(self, client: Client, keys: Keys, *, names_max: int = BELLS_MAX, marks_max: int = MARKS_MAX) -> None:
        self._client = client
        self._bells = keys.bells()
        self._alarms = keys.alarms()
        self._marks = keys.webhook("marks")
        self._names_max = names_max
        self._marks_max = marks_max

    def __repr__(self) -> str:
        return f"Bells({self._bells})"

    async def ring(self, names: Iterable[str]) -> int:
        """Ring each; answer how many were not waiting already. When it returns, the rings are as durable as Valkey."""
        wanted = _checked(names)
        return sum([await self._ring("", 0, wanted[at : at + CALL_MAX]) for at in range(0, len(wanted), CALL_MAX)])

    async def ring_once(self, names: Iterable[str], mark: str, keep_s: int) -> int | None:
        """Ring unless ``mark`` was given within the last ``keep_s``; answer as :meth:`ring`, None if it was.

        Rings and mark are one step: whoever gets no answer may simply ask again.
        """
        assert mark
        assert keep_s > 0
        wanted = _checked(names)
        assert len(wanted) <= CALL_MAX
        fresh = await self._ring(mark, keep_s * 1_000_000, wanted)
        return None if fresh < 0 else fresh

    async def _ring(self, mark: str, keep_us: int, names: list[str]) -> int:
        limits = (self._names_max, mark, keep_us, self._marks_max)
        return int(await self._eval(_RING, (self._bells, self._marks), *limits, *names))

    async def waiting(self, limit: int) -> tuple[Ring, ...]:
        """Those that wait, longest first, after the alarms that are due have rung."""
        assert 0 < limit <= WAITING_MAX, f"{limit} bells at once"
        reply = await self._eval(_WAITING, (self._bells, self._alarms), self._names_max, limit)
        rows = zip(reply[::3], reply[1::3], reply[2::3], strict=True)
        return tuple(Ring(name.decode(), score, max(0.0, int(age_us) / 1e6)) for name, score, age_us in rows)

    async def answer(self, rings: Iterable[Ring]) -> int:
        """What they asked for is done; answer how many are gone. One that rang again meanwhile stays."""
        return await self._answer(rings, "")

    async def postpone(self, rings: Iterable[Ring], delay_ms: int) -> int:
        """What they asked for cannot be done now: they ring again after ``delay_ms``, and do not stand in the way of
        others until then. Answers as :meth:`answer`."""
        assert delay_ms >= 0
        return await self._answer(rings, delay_ms)

    async def _answer(self, rings: Iterable[Ring], again_ms: int | str) -> int:
        pairs = [value for ring in rings for value in (ring.name, ring.score)]
        removed = 0
        for at in range(0, len(pairs), 2 * CALL_MAX):
            some = pairs[at : at + 2 * CALL_MAX]
            removed += await self._eval(_ANSWER, (self._bells, self._alarms), self._names_max, again_ms, *some)
        return removed

    async def count(self) -> int:
        """How many bells wait."""
        return int(await self._client.zcard(self._bells))

    async def wake(self, name: str, at_ms: int) -> None:
        """Ring at an instant of Unix milliseconds, by Valkey's clock; an earlier alarm of the same name stays."""
        await self._eval(_WAKE, (self._alarms,), self._names_max, at_ms, *_checked((name,)))

    async def _eval(self, text: str, keys: tuple[str, ...], *args: str | bytes | int) -> Any:
        return await self._client.eval(text, len(keys), *keys, *args)


def _checked(names: Iterable[str]) -> list[str]:
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        assert 0 < len(name.encode()) <= NAME_BYTES_MAX, "a bell's name is 1 to 512 bytes"
    return wanted
