"""One leader among several control planes: a lease in Valkey, by Valkey's clock, with a fencing token.

A lease lasts ``ttl_ms`` from each renewal. Whoever holds it gives up before that by its own clock, counted from the
moment *before* it asked, so two holders that both run never overlap. A process that stood still (SIGSTOP, a paused
machine) may go on for a moment after its lease has ended: against that every term has a token, larger than all before,
and what is written under an old token can be told from what is current (:meth:`Lease.is_current`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from sidecar.basics.clock import Clock, SystemClock
from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.logger import get_logger
from sidecar.valkey.deadlines import with_deadline
from sidecar.valkey.topology import CLIENT_ERRORS, Client

log = get_logger("sidecar.lease")

SAFE_SHARE: Final = 0.8
"""Of the ttl, after which a holder without a renewal gives up: the rest is for its work to end in."""
POLL_S: Final = 0.25
"""Time between two attempts to acquire the lease; a released lease is acquired within that time."""
CANCEL_AGAIN_S_MIN, CANCEL_AGAIN_S_MAX = 0.01, 0.2
RELEASE_TIMEOUT_S: Final = 1.0
CANCEL_ATTEMPTS_BEFORE_LOG: Final = 30
"""After so many cancellations without effect, about 5 seconds, an error is logged."""

_ACQUIRE: Final = """
-- KEYS [1] lease, a hash {holder, token, until_us}, which stays when the lease ends: the token has to go on rising
-- ARGV [1] holder [2] ttl in microseconds
-- reply {token or '', holder}
--
-- A new token is the time in milliseconds, or one more than the last: it rises even if Valkey has lost its data.
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local holder, token, until_us = unpack(redis.call('HMGET', KEYS[1], 'holder', 'token', 'until_us'))
if holder and tonumber(until_us) > now_us then
  if holder ~= ARGV[1] then
    return {'', holder}
  end
else
  token = string.format('%.0f', math.max(math.floor(now_us / 1000), (tonumber(token) or 0) + 1))
end
redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'token', token, 'until_us', string.format('%.0f', now_us + ARGV[2]))
return {token, ARGV[1]}
"""

_EXTEND: Final = """
-- KEYS [1] lease  ARGV [1] holder [2] token [3] ttl in microseconds; 0 ends the lease, -1 leaves it as it is
-- reply 1 if this term goes on until now, otherwise 0 and nothing is changed
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local holder, token, until_us = unpack(redis.call('HMGET', KEYS[1], 'holder', 'token', 'until_us'))
if holder ~= ARGV[1] or token ~= ARGV[2] or tonumber(until_us) <= now_us then
  return 0
end
if tonumber(ARGV[3]) >= 0 then
  redis.call('HSET', KEYS[1], 'until_us', string.format('%.0f', now_us + ARGV[3]))
end
return 1
"""


@dataclass(frozen=True, slots=True)
class LeaseState:
    """For status and metrics. ``leader``: the last holder seen, None before the first look. ``terms``: how often this
    process has become the leader; ``failures``: calls to Valkey that failed."""

    held: bool
    token: int | None
    leader: str | None
    terms: int
    failures: int


class Lease:
    """One contender for the lease at ``key``. ``holder`` is unique for every start of a process.

    Every method that asks Valkey raises what redis-py raises (``sidecar.valkey.topology.CLIENT_ERRORS``); whether the
    lease was taken, renewed or released is not known then.
    """

    def __init__(self, client: Client, key: str, holder: str, ttl_ms: int, *, clock: Clock | None = None) -> None:
        assert holder
        assert ttl_ms > 0
        self.name = key.rpartition(":")[2]
        self.holder = holder
        self.ttl_s = ttl_ms / 1000
        self.clock = clock or SystemClock()
        self._client = client
        self._key = key
        self._ttl_us = ttl_ms * 1000
        self._token: int | None = None
        self._safe_until_s = 0.0
        self._question = 0
        self._leader: str | None = None
        self._terms = 0
        self._failures = 0

    def __repr__(self) -> str:
        return f"Lease({self.name}, {self.holder}, {f'token {self._token}' if self.is_held else 'not held'})"

    @property
    def is_held(self) -> bool:
        """Whether it is certain, without asking, that nobody else holds the lease."""
        return self._token is not None and self.remaining_s > 0

    @property
    def remaining_s(self) -> float:
        """Seconds until the holder has to give up unless it renews."""
        return self._safe_until_s - self.clock.monotonic_s()

    @property
    def state(self) -> LeaseState:
        held = self.is_held
        return LeaseState(held, self._token if held else None, self._leader, self._terms, self._failures)

    async def acquire(self) -> int | None:
        """Take the lease if it is free, or go on with it; answer the term's token, None if another holds it."""
        asked_at_s = self.clock.monotonic_s()
        question = self._ask()
        token, leader = await self._eval(_ACQUIRE, self.holder, self._ttl_us)
        if question != self._question:
            return None
        self._leader = leader.decode(errors="replace")
        if not token:
            self._token = None
            return None
        if self._token != int(token):
            self._terms += 1
        self._token = int(token)
        self._safe_until_s = asked_at_s + self.ttl_s * SAFE_SHARE
        return self._token

    async def renew(self) -> bool:
        """Make the term last from now; False if it has ended, by time or because another has begun."""
        asked_at_s = self.clock.monotonic_s()
        question = self._ask()
        goes_on = await self._extend(self._token, self._ttl_us)
        if question != self._question:
            return False
        if not goes_on:
            self._token = None
            return False
        self._safe_until_s = asked_at_s + self.ttl_s * SAFE_SHARE
        return True

    async def release(self) -> bool:
        """End the term, so that another can begin at once; False if it had ended."""
        self._ask()
        token, self._token = self._token, None
        return await self._extend(token, 0)

    async def is_current(self, token: int) -> bool:
        """Whether ``token`` is that of this contender's term, which goes on: Valkey's word, for before a write that
        must not come from a leader of the past."""
        return await self._extend(token, -1)

    def _ask(self) -> int:
        """Numbers the questions: an answer that comes when a later one has been asked must not change anything."""
        self._question += 1
        return self._question

    async def _extend(self, token: int | None, ttl_us: int) -> bool:
        return token is not None and await self._eval(_EXTEND, self.holder, token, ttl_us) == 1

    async def _eval(self, text: str, *args: str | int) -> Any:
        try:
            return await self._client.eval(text, 1, self._key, *args)
        except CLIENT_ERRORS:
            self._failures += 1
            raise


async def lead(lease: Lease, work: Callable[[int], Awaitable[None]], stop: asyncio.Event) -> None:
    """Run ``work(token)`` whenever this process holds the lease, until ``stop`` or until the work returns.

    The work is cancelled when ``stop`` is set, when another holds the lease, and before the lease could have ended
    unseen; it must end promptly then, and a new term begins only after it has. Failures of Valkey are waited out.
    What the work raises is raised here, after the lease was released.
    """
    failing = False
    while not stop.is_set():
        _notice_cancellation()
        try:
            token = await with_deadline(lease.ttl_s, lease.acquire())
        except (TimeoutError, *CLIENT_ERRORS) as error:
            if not failing:
                log.warning("cannot acquire the lease", lease=lease.name, reason=reason_of(error)[:200])
            failing, token = True, None
        else:
            failing = False
        if token is None:
            await lease.clock.wait(stop, min(POLL_S, lease.ttl_s / 3))
        elif await _term(lease, token, work, stop):
            return


async def _term(lease: Lease, token: int, work: Callable[[int], Awaitable[None]], stop: asyncio.Event) -> bool:
    """One term; True if the work returned by itself. Raises what it raised."""
    log.info("lease acquired", lease=lease.name, holder=lease.holder, token=token)
    changed = asyncio.Event()

    async def working() -> None:
        await work(token)

    async def watching() -> None:
        await stop.wait()
        changed.set()

    task, watcher = asyncio.create_task(working()), asyncio.create_task(watching())
    task.add_done_callback(lambda _: changed.set())
    try:
        await _keep(lease, changed)
    finally:
        watcher.cancel()
        done = task.done()
        await _end(task, lease.name)
        await _release(lease)
        log.info("lease given up", lease=lease.name, holder=lease.holder, token=token)
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error
    return done and not task.cancelled()


async def _keep(lease: Lease, changed: asyncio.Event) -> None:
    """Renews until ``changed``, until the lease is lost, or until it might be."""
    pause_s = lease.ttl_s / 3
    failing = False
    while not changed.is_set():
        _notice_cancellation()
        # After a failure sooner: a lost connection should not cost the lease.
        await lease.clock.wait(changed, max(0.0, min(pause_s / 4 if failing else pause_s, lease.remaining_s)))
        if changed.is_set():
            return
        remaining_s = lease.remaining_s
        if remaining_s <= 0:
            log.warning("the lease was not renewed in time", lease=lease.name, holder=lease.holder)
            return
        try:
            if not await with_deadline(min(pause_s, remaining_s), lease.renew()):
                log.warning("the lease has ended, another process may lead", lease=lease.name, holder=lease.holder)
                return
            failing = False
        except (TimeoutError, *CLIENT_ERRORS) as error:
            if not failing:
                log.warning("cannot renew the lease", lease=lease.name, reason=reason_of(error)[:200])
            failing = True


async def _end(task: asyncio.Task[None], name: str) -> None:
    """Cancels until it has ended: redis-py can lose a cancellation that falls together with an answer."""
    tries = 0
    pause_s = CANCEL_AGAIN_S_MIN
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=pause_s)
        pause_s = min(CANCEL_AGAIN_S_MAX, 2 * pause_s)
        tries += 1
        if tries == CANCEL_ATTEMPTS_BEFORE_LOG:
            log.error("the work under an ended lease does not stop", lease=name)


async def _release(lease: Lease) -> None:
    try:
        await with_deadline(RELEASE_TIMEOUT_S, lease.release())
    except (TimeoutError, *CLIENT_ERRORS) as error:
        log.warning("cannot release the lease, it expires by itself", lease=lease.name, reason=reason_of(error)[:200])


def _notice_cancellation() -> None:
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
