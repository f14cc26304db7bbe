"""Reload requests: "read this account again", kept in Valkey until somebody has read it.

A request is a name with the instant from which it waits. Many requests of one name are one. A request that comes while
an earlier one of that name is being handled stays, so it is never lost, and nothing is done twice. Names:
``account:<id>``, ``wallet:<lago id>``, ``plan:<code>``, ``subscription:<external id>``, ``sweep``.

All keys lie in one slot. Valkey's clock decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from sidecar.ledger.keys import Keys
from sidecar.valkey.topology import Client

REQUESTS_MAX: Final = 1_000_000
"""Names waiting, and as many scheduled. Beyond that a name becomes ``sweep``, which reads everything."""
IDEMPOTENCY_KEYS_MAX: Final = 100_000
"""Idempotency keys remembered, some 15 MB. Beyond that the oldest goes: its request would be made once more."""
STRANGERS_MAX: Final = 100
"""Requests waiting, of whatever kind, up to which an account is requested that a caller named and nobody knows."""
CALL_MAX: Final = 1_000
"""Names in one call of a script, which keeps the server's only thread for about a millisecond."""
WAITING_MAX: Final = 20_000
"""Requests that one call may list."""
AHEAD_MAX: Final = 32
"""Requests that wait, up to which scheduled reloads that are due join them. When a month has ended, those of all
accounts are due: a top-up would wait for hours behind them."""
NAME_BYTES_MAX: Final = 512
SWEEP: Final = "sweep"

_ADD_ONE: Final = """
-- A score is the time from which the request waits, in microseconds. Another request for a name that waits adds one to
-- its score: it keeps its place, and whoever completes the earlier request sees that there was a later one.
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local function add(requests, name, names_max)
  local last = redis.call('ZSCORE', requests, name)
  if not last and redis.call('ZCARD', requests) >= names_max then
    name = 'sweep'
    last = redis.call('ZSCORE', requests, name)
  end
  return redis.call('ZADD', requests, string.format('%.0f', last and last + 1 or now_us), name)
end
"""

_ADD: Final = (
    _ADD_ONE
    + """
-- KEYS [1] reload requests [2] idempotency keys
-- ARGV [1] most names [2] an idempotency key, '' for none [3] microseconds for which it is kept [4] most of these keys
--      [5 ...] names
-- reply how many were not waiting yet, or -1: the idempotency key is known, so nothing was done
--
-- Why one script: a crash between the idempotency key and the request would lose the request.
local idempotency_key = ARGV[2]
if idempotency_key ~= '' then
  local expired = string.format('%.0f', now_us - ARGV[3])
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', expired)
  if redis.call('ZSCORE', KEYS[2], idempotency_key) then
    return -1
  end
end
local fresh = 0
for i = 5, #ARGV do
  fresh = fresh + add(KEYS[1], ARGV[i], tonumber(ARGV[1]))
end
if idempotency_key ~= '' then
  redis.call('ZADD', KEYS[2], string.format('%.0f', now_us), idempotency_key)
  redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -1 - ARGV[4])
end
return fresh
"""
)

_ADD_FOR_STRANGER: Final = (
    _ADD_ONE
    + """
-- KEYS [1] reload requests  ARGV [1] most names [2] a name
-- reply 1, or 0: so many wait that it was not requested
if not redis.call('ZSCORE', KEYS[1], ARGV[2]) then
  if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[1]) then
    return 0
  end
  add(KEYS[1], ARGV[2], tonumber(ARGV[1]))
end
return 1
"""
)

_WAITING: Final = (
    _ADD_ONE
    + """
-- KEYS [1] reload requests [2] scheduled reloads  ARGV [1] most names [2] how many are asked for
--      [3] most requests that wait, for a scheduled reload to become one
-- reply {name, score, age in microseconds, name, ...}, all text: numbers differ between protocol versions
local now_ms = string.format('%.0f', math.floor(now_us / 1000))
local room = math.max(0, math.min(ARGV[2], ARGV[3] - redis.call('ZCARD', KEYS[1])))
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now_ms, 'LIMIT', 0, room)) do
  add(KEYS[1], name, tonumber(ARGV[1]))
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

_SCHEDULE_ONE: Final = """
local function schedule(scheduled, name, at_ms, names_max)
  if not redis.call('ZSCORE', scheduled, name) and redis.call('ZCARD', scheduled) >= names_max then
    name = 'sweep'
  end
  return redis.call('ZADD', scheduled, 'LT', at_ms, name)
end
"""

_COMPLETE: Final = (
    _SCHEDULE_ONE
    + """
-- KEYS [1] reload requests [2] scheduled reloads
-- ARGV [1] most names [2] '', or milliseconds after which what is removed is requested again
--      [3 ...] name, score, name, ...
-- reply how many were removed; one that was requested again stays
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
      schedule(KEYS[2], ARGV[i], again_ms, tonumber(ARGV[1]))
    end
  end
end
return removed
"""
)

_SCHEDULE: Final = (
    _SCHEDULE_ONE
    + """
-- KEYS [1] scheduled reloads  ARGV [1] most names [2] Unix milliseconds [3] name
return schedule(KEYS[1], ARGV[3], ARGV[2], tonumber(ARGV[1]))
"""
)


@dataclass(frozen=True, slots=True)
class ReloadRequest:
    """A request that waits. ``score`` tells it from a later one of the same name; ``age_s`` is how long it has
    waited."""

    name: str
    score: bytes
    age_s: float


class ReloadRequests:
    """The requests of one ledger. All methods raise what redis-py raises (``sidecar.valkey.topology.CLIENT_ERRORS``).

    ``names_max`` and ``idempotency_keys_max`` are limits of this object's calls, not of what is stored.
    """

    def __init__(
        self,
        client: Client,
        keys: Keys,
        *,
        names_max: int = REQUESTS_MAX,
        idempotency_keys_max: int = IDEMPOTENCY_KEYS_MAX,
    ) -> None:
        self._client = client
        self._requests = keys.reload_requests()
        self._scheduled = keys.scheduled_reloads()
        self._idempotency_keys = keys.webhooks_seen()
        self._names_max = names_max
        self._idempotency_keys_max = idempotency_keys_max

    def __repr__(self) -> str:
        return f"ReloadRequests({self._requests})"

    async def add(self, names: Iterable[str]) -> int:
        """Request a reload of each; answer how many were not waiting already. When it returns, the requests are as
        durable as Valkey."""
        wanted = _checked(names)
        return sum([await self._add("", 0, wanted[at : at + CALL_MAX]) for at in range(0, len(wanted), CALL_MAX)])

    async def add_for_stranger(self, name: str) -> bool:
        """Request a reload of what a caller named and nobody here has seen, unless `STRANGERS_MAX` requests wait
        already: names that callers invent must not keep a top-up waiting. False: it was not requested."""
        [wanted] = _checked([name])
        return bool(await self._eval(_ADD_FOR_STRANGER, (self._requests,), STRANGERS_MAX, wanted))

    async def add_once(self, names: Iterable[str], idempotency_key: str, keep_s: int) -> int | None:
        """As :meth:`add`, unless this key was given within the last ``keep_s``: then None.

        Requests and key are written in one step: whoever gets no answer may simply ask again.
        """
        assert idempotency_key
        assert keep_s > 0
        wanted = _checked(names)
        assert len(wanted) <= CALL_MAX
        fresh = await self._add(idempotency_key, keep_s * 1_000_000, wanted)
        return None if fresh < 0 else fresh

    async def _add(self, idempotency_key: str, keep_us: int, names: list[str]) -> int:
        limits = (self._names_max, idempotency_key, keep_us, self._idempotency_keys_max)
        return int(await self._eval(_ADD, (self._requests, self._idempotency_keys), *limits, *names))

    async def waiting(self, limit: int) -> tuple[ReloadRequest, ...]:
        """The waiting requests, longest first; scheduled reloads that are due are among them, as long as there are
        not many requests."""
        assert 0 < limit <= WAITING_MAX, f"{limit} reload requests at once"
        keys = self._requests, self._scheduled
        reply = await self._eval(_WAITING, keys, self._names_max, limit, AHEAD_MAX)
        rows = zip(reply[::3], reply[1::3], reply[2::3], strict=True)
        return tuple(ReloadRequest(name.decode(), score, max(0.0, int(age_us) / 1e6)) for name, score, age_us in rows)

    async def complete(self, requests: Iterable[ReloadRequest]) -> int:
        """Remove requests that are handled; answer how many are gone. One that was made again meanwhile stays."""
        return await self._complete(requests, "")

    async def postpone(self, requests: Iterable[ReloadRequest], delay_ms: int) -> int:
        """Postpone requests that cannot be handled now: they are made again after ``delay_ms``, and do not stand in the
        way of others until then. Answers as :meth:`complete`."""
        assert delay_ms >= 0
        return await self._complete(requests, delay_ms)

    async def _complete(self, requests: Iterable[ReloadRequest], again_ms: int | str) -> int:
        pairs = [value for request in requests for value in (request.name, request.score)]
        removed = 0
        for at in range(0, len(pairs), 2 * CALL_MAX):
            some = pairs[at : at + 2 * CALL_MAX]
            removed += await self._eval(_COMPLETE, (self._requests, self._scheduled), self._names_max, again_ms, *some)
        return removed

    async def count(self) -> int:
        """How many wait."""
        return int(await self._client.zcard(self._requests))

    async def schedule(self, name: str, at_ms: int) -> None:
        """Request a reload at an instant of Unix milliseconds, by Valkey's clock. An earlier one that is scheduled for
        the same name stays."""
        await self._eval(_SCHEDULE, (self._scheduled,), self._names_max, at_ms, *_checked((name,)))

    async def _eval(self, text: str, keys: tuple[str, ...], *args: str | bytes | int) -> Any:
        return await self._client.eval(text, len(keys), *keys, *args)


def _checked(names: Iterable[str]) -> list[str]:
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        assert 0 < len(name.encode()) <= NAME_BYTES_MAX, "the name of a reload request is 1 to 512 bytes"
    return wanted
