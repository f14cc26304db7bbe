"""Has accounts loaded that a caller names and the ledger does not have, once for all who wait.

The request path asks here; a reload request is made for the control plane, which loads the account from Lago or leaves
a mark that Lago does not know it (``Keys.absent``). Whichever appears first in Valkey is the answer. However many
requests wait for an account, there is one reload request and one loop that looks.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.logger import get_logger
from sidecar.basics.token_bucket import TokenBucket
from sidecar.ledger.keys import Keys
from sidecar.valkey.topology import CLIENT_ERRORS, Client

log = get_logger("sidecar.ledger")

LOOK_S_MIN, LOOK_S_MAX = 0.02, 0.2
_LOOK_GROWTH: Final = 1.6
_LOG_PAUSE_S: Final = 10.0
_CALLS_MAX: Final = 16
"""Calls to Valkey at a time: its client has a limited number of connections, which others need too."""

_LOOK: Final = """
-- KEYS [1] hash of the account, whose view only a load writes [2] mark that it is absent
-- reply 1 if the account is loaded, 2 if it is known to be absent, otherwise 0
return redis.call('HEXISTS', KEYS[1], 'view') == 1 and 1 or redis.call('EXISTS', KEYS[2]) * 2
"""


class AccountLookup(Enum):
    """``KNOWN``: the ledger has the account now. ``ABSENT``: Lago does not know it. ``PENDING``: neither in time, or
    too many ask; the caller may come again."""

    KNOWN = "known"
    ABSENT = "absent"
    PENDING = "pending"


_LOOKUPS: Final = {1: AccountLookup.KNOWN, 2: AccountLookup.ABSENT}

Done = Callable[[AccountLookup], None]


@dataclass(frozen=True, slots=True)
class UnknownAccountSettings:
    """``wait_s`` for one request; ``refused_s`` and ``refused_max``: how long and how many absent accounts are
    remembered here; ``waiting_max`` requests wait at a time; ``asks_per_second_max`` new accounts."""

    wait_s: float = 1.5
    refused_s: float = 30.0
    refused_max: int = 10_000
    waiting_max: int = 1_000
    asks_per_second_max: float = 50.0


@dataclass(slots=True)
class UnknownAccountCounters:
    """Requests by their answer, accounts asked for, and requests that were not let wait because too many did."""

    known: int = 0
    absent: int = 0
    pending: int = 0
    asks: int = 0
    refused_by_limit: int = 0


@dataclass(slots=True)
class _Search:
    """One account and those who wait for it. ``next_waiter`` numbers them."""

    waiters: dict[int, tuple[Done, asyncio.TimerHandle]] = field(default_factory=dict)
    next_waiter: int = 0


class UnknownAccounts:
    """Lives on one event loop.

    ``request_reload`` makes the reload request of a name (``sidecar.billing.reconcile.reload_requests``).
    """

    def __init__(
        self,
        client: Client,
        keys: Keys,
        request_reload: Callable[[str], Awaitable[None]],
        settings: UnknownAccountSettings | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters = UnknownAccountCounters()
        self._client = client
        self._keys = keys
        self._request_reload = request_reload
        self._settings = settings or UnknownAccountSettings()
        self._clock = clock
        asks = self._settings.asks_per_second_max
        self._asks = TokenBucket(asks, max(1.0, asks), clock)
        self._slots = asyncio.Semaphore(_CALLS_MAX)
        self._searches: dict[str, _Search] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting = 0
        self._absent_until_s: OrderedDict[str, float] = OrderedDict()
        self._log_from_s = float("-inf")
        self._closed = False

    def __repr__(self) -> str:
        absent = len(self._absent_until_s)
        return f"UnknownAccounts({self._waiting} wait for {len(self._searches)} accounts, {absent} absent)"

    @property
    def waiting(self) -> int:
        """Requests that wait now."""
        return self._waiting

    def ask(self, account: str, done: Done) -> None:
        """Look for the account; ``done`` is called once, possibly before this returns, and must not raise."""
        if self._is_absent(account):
            self._count(AccountLookup.ABSENT)
            done(AccountLookup.ABSENT)
            return
        search = None if self._closed or self._waiting >= self._settings.waiting_max else self._search(account)
        if search is None:
            self.counters.refused_by_limit += 1
            self._count(AccountLookup.PENDING)
            done(AccountLookup.PENDING)
            return
        number, search.next_waiter = search.next_waiter, search.next_waiter + 1
        timer = asyncio.get_running_loop().call_later(self._settings.wait_s, self._give_up, search, number)
        search.waiters[number] = (done, timer)
        self._waiting += 1

    def _search(self, account: str) -> _Search | None:
        search = self._searches.get(account)
        if search is None and self._asks.take() == 0:
            search = self._searches[account] = _Search()
            self.counters.asks += 1
            task = asyncio.get_running_loop().create_task(self._run(account, search))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return search

    async def _run(self, account: str, search: _Search) -> None:
        lookup = AccountLookup.PENDING
        try:
            lookup = await self._look_until_found(account, search)
        except CLIENT_ERRORS as error:
            self._note(error)
        finally:
            # Nobody can join from here on: an answer is given to all, a new question starts a new search.
            if self._searches.get(account) is search:
                del self._searches[account]
            if lookup is AccountLookup.ABSENT:
                self._remember_absent(account)
            for number in list(search.waiters):
                self._tell(search, number, lookup)

    async def _look_until_found(self, account: str, search: _Search) -> AccountLookup:
        request_at_s = self._clock()
        pause_s = LOOK_S_MIN
        while True:
            lookup = await self._look(account)
            if lookup is not AccountLookup.PENDING or self._closed or not search.waiters:
                return lookup
            if self._clock() >= request_at_s:
                # Again after a while, as long as somebody new waits: a Valkey that failed over may have lost the
                # request.
                async with self._slots:
                    await self._request_reload(f"account:{account}")
                request_at_s = self._clock() + self._settings.wait_s
            await asyncio.sleep(pause_s)
            pause_s = min(LOOK_S_MAX, pause_s * _LOOK_GROWTH)

    async def _look(self, account: str) -> AccountLookup:
        keys = (self._keys.account(account), self._keys.absent(account))
        async with self._slots:
            return _LOOKUPS.get(int(await self._client.eval(_LOOK, 2, *keys)), AccountLookup.PENDING)

    def _give_up(self, search: _Search, number: int) -> None:
        self._tell(search, number, AccountLookup.PENDING)

    def _tell(self, search: _Search, number: int, lookup: AccountLookup) -> None:
        done, timer = search.waiters.pop(number)
        timer.cancel()
        self._waiting -= 1
        self._count(lookup)
        try:
            done(lookup)
        except Exception:  # one caller's fault must not leave the others waiting
            log.exception("the callback of an account lookup failed")

    def _is_absent(self, account: str) -> bool:
        until_s = self._absent_until_s.get(account)
        if until_s is None:
            return False
        if self._clock() < until_s:
            return True
        del self._absent_until_s[account]
        return False

    def _remember_absent(self, account: str) -> None:
        self._absent_until_s[account] = self._clock() + self._settings.refused_s
        self._absent_until_s.move_to_end(account)
        if len(self._absent_until_s) > self._settings.refused_max:
            self._absent_until_s.popitem(last=False)

    def _count(self, lookup: AccountLookup) -> None:
        match lookup:
            case AccountLookup.KNOWN:
                self.counters.known += 1
            case AccountLookup.ABSENT:
                self.counters.absent += 1
            case AccountLookup.PENDING:
                self.counters.pending += 1

    def _note(self, error: Exception) -> None:
        now_s = self._clock()
        if now_s >= self._log_from_s:
            self._log_from_s = now_s + _LOG_PAUSE_S
            log.warning("cannot request the load of unknown accounts", reason=reason_of(error)[:200])

    async def close(self) -> None:
        """Tell everyone who waits ``PENDING`` and end all searches; who asks afterwards is told the same."""
        self._closed = True
        for search in list(self._searches.values()):
            for number in list(search.waiters):
                self._tell(search, number, AccountLookup.PENDING)
        while self._tasks:
            # redis-py can lose a cancellation that falls together with an answer.
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=0.1)
