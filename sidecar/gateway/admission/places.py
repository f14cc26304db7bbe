"""Who may have how many connections to an API, and whose turn it is when there are not enough. No I/O.

A connection in use is a place. Without shares one caller whose calls take long would have all of them, and at no cost.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Final, Generic, TypeVar

ANONYMOUS: Final = ""
"""Account of requests whose caller is not known, or need not be."""

Waiter = TypeVar("Waiter")


class Places(Generic[Waiter]):
    """``total`` places, of which one account never has more than half, and not more than a quarter in tunnels and
    streams. `ANONYMOUS` has a tenth. Every share is at least one place.

    Whoever gets no place waits; places go to the accounts that wait in turn.

    No account can have its share while fewer places are taken in all. So places are counted by account only from then
    on, until it is calm again; ``holders`` tells at that moment who has those that are taken, an account for each.
    """

    def __init__(self, total: int, waiting_max: int, holders: Callable[[], Iterable[str]]) -> None:
        self.total = total
        self._holders = holders
        self._taken = 0
        self._anonymous = 0
        self._counting = False
        self.waiting_max = waiting_max
        self._share = max(1, total // 2)
        self._streams_share = max(1, total // 4)
        self._anonymous_share = max(1, total // 10)
        self._held: Counter[str] = Counter()
        self._streams: dict[str, int] = {}
        self._queues: dict[str, deque[Waiter]] = {}
        """Those who wait by account, the accounts in the order of their turns."""
        self._waiting = 0

    def __repr__(self) -> str:
        return f"<Places {self._taken} of {self.total}, waiting={self._waiting}>"

    @property
    def waiting(self) -> int:
        return self._waiting

    @property
    def taken(self) -> int:
        return self._taken

    def take(self, account: str) -> bool:
        """Takes a place for the account. False: it has its share."""
        if not account:
            if self._anonymous >= self._anonymous_share:
                return False
            self._anonymous += 1
        elif self._counting or self._taken >= self._share:
            if not self._counting:
                self._counting = True
                self._held = Counter(self._holders())
            held = self._held[account]
            if held >= self._share:
                return False
            self._held[account] = held + 1
        self._taken += 1
        return True

    def give_back(self, account: str, *, stream: bool = False) -> None:
        """A place that was taken is free."""
        self._taken -= 1
        if not account:
            self._anonymous -= 1
        elif self._counting:
            self._held[account] -= 1
        if self._counting and self._taken * 2 < self._share:
            self._counting = False
            self._held = Counter()
        if stream:
            self._count_stream(account, -1)

    def may_stream(self, account: str) -> bool:
        """Whether another of the account's places may become a tunnel or a stream."""
        return self._streams.get(account, 0) < self._streams_share

    def add_stream(self, account: str) -> None:
        """A place that the account has is a tunnel or a stream from now on."""
        self._count_stream(account, 1)

    def _count_stream(self, account: str, change: int) -> None:
        count = self._streams.get(account, 0) + change
        if count:
            self._streams[account] = count
        else:
            del self._streams[account]

    def wait(self, account: str, waiter: Waiter) -> bool:
        """Queues a waiter up. False: too many wait, in all or of this account."""
        queue = self._queues.get(account)
        length = len(queue) if queue is not None else 0
        if self._waiting >= self.waiting_max or length >= max(1, self.waiting_max // 2):
            return False
        if queue is None:
            queue = self._queues[account] = deque()
        queue.append(waiter)
        self._waiting += 1
        return True

    def forget(self, account: str, waiter: Waiter) -> None:
        """A waiter is no longer there."""
        queue = self._queues.get(account)
        if queue is not None and waiter in queue:
            queue.remove(waiter)
            self._waiting -= 1
            if not queue:
                del self._queues[account]

    def next(self) -> tuple[str, Waiter] | None:
        """The waiter whose turn it is, with a place taken for its account; None if nobody waits who may have one."""
        for account in self._queues:
            if self.take(account):
                queue = self._queues.pop(account)
                waiter = queue.popleft()
                if queue:
                    self._queues[account] = queue  # at the end: the others have their turn first
                self._waiting -= 1
                return account, waiter
        return None

    def take_all(self) -> list[Waiter]:
        """Everybody who waits, in no order, taken out of the queues."""
        waiters = [waiter for queue in self._queues.values() for waiter in queue]
        self._queues.clear()
        self._waiting = 0
        return waiters
