"""Whose look-up is next when more are asked for than the store should have at a time. No I/O."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from sidecar.identity.types import IdentityUnavailable

AT_ONCE: Final = 16
"""Look-ups under way at a time: they share the client with others, who must get through too."""
STRANGERS_AT_ONCE: Final = 12
"""Of which so many for keys that nobody here has seen: known callers always find room."""
WAITING_MAX: Final = 1_000
"""Look-ups of strangers that wait; of one peer at most half of them."""


class LookupTurns:
    """Known callers go first. Strangers take turns by peer: invented keys of one must not keep others from theirs.

    ``refused`` counts those that were not let wait.
    """

    def __init__(self, at_once: int = AT_ONCE, strangers: int = STRANGERS_AT_ONCE, waiting_max: int = WAITING_MAX):
        assert 0 < strangers <= at_once
        self.refused = 0
        self._free = at_once
        self._strangers_free = strangers
        self._waiting_max = waiting_max
        self._known: deque[asyncio.Future[None]] = deque()
        self._strangers: dict[str, deque[asyncio.Future[None]]] = {}
        """By peer, the peers in the order of their turns."""
        self._strangers_waiting = 0

    def __repr__(self) -> str:
        return f"LookupTurns(free={self._free}, known={len(self._known)}, strangers={self._strangers_waiting})"

    @property
    def waiting(self) -> int:
        return len(self._known) + self._strangers_waiting

    async def take(self, peer: str, *, known: bool) -> None:
        """Wait for a turn, which `give_back` ends.

        Raises ``IdentityUnavailable`` if too many wait.
        """
        if self._may_go(known=known):
            self._go(known=known)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if known:
            self._known.append(future)
        else:
            queue = self._strangers.setdefault(peer, deque())
            if self._strangers_waiting >= self._waiting_max or len(queue) >= max(1, self._waiting_max // 2):
                self.refused += 1
                if not queue:
                    del self._strangers[peer]
                raise IdentityUnavailable("too many credentials are being looked up")
            queue.append(future)
            self._strangers_waiting += 1
        try:
            await future
        except BaseException:
            if future.done() and not future.cancelled():
                self.give_back(known=known)  # its turn came at the moment in which it gave up
            else:
                self._forget(peer, future, known=known)
            raise

    def give_back(self, *, known: bool) -> None:
        """A look-up has ended."""
        self._free += 1
        if not known:
            self._strangers_free += 1
        while self._known and self._may_go(known=True):
            self._wake(self._known.popleft(), known=True)
        while self._strangers and self._may_go(known=False):
            peer = next(iter(self._strangers))
            queue = self._strangers.pop(peer)
            future = queue.popleft()
            self._strangers_waiting -= 1
            if queue:
                self._strangers[peer] = queue  # at the end: the others have their turn first
            self._wake(future, known=False)

    def _may_go(self, *, known: bool) -> bool:
        return self._free > 0 and (known or self._strangers_free > 0)

    def _go(self, *, known: bool) -> None:
        self._free -= 1
        if not known:
            self._strangers_free -= 1

    def _wake(self, future: asyncio.Future[None], *, known: bool) -> None:
        if not future.done():
            self._go(known=known)
            future.set_result(None)

    def _forget(self, peer: str, future: asyncio.Future[None], *, known: bool) -> None:
        queue = self._known if known else self._strangers.get(peer)
        if queue is None or future not in queue:
            return
        queue.remove(future)
        if not known:
            self._strangers_waiting -= 1
            if not queue:
                del self._strangers[peer]
