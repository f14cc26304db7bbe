"""The memory that request bodies may take while they are gathered, and who has to wait for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from sidecar.gateway.admission.places import ANONYMOUS

READ_BYTES: Final = 65_536
"""What one read may bring."""
FAVOURED_MAX: Final = 16
"""Accounts of which one body each may go on although there is no room: else all could wait for one another."""

Resume = Callable[[bool], None]
"""Goes on with a body. True: it is favoured, and does not wait again."""


class BodyBudget:
    """Counts the bytes of all bodies that are being gathered. Reading stops when they are ``bytes_max`` together, or
    half of it for one account, or a tenth for `ANONYMOUS`; who waits goes on in turns between accounts.

    Bytes are counted when they have arrived, so a connection can pass its share by what one read brings.
    """

    __slots__ = ("_by_account", "_favoured", "_waiting", "bytes_max", "used")

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.used = 0
        self._by_account: dict[str, int] = {}
        self._waiting: dict[str, deque[Resume]] = {}
        """Accounts in the order of their turns."""
        self._favoured: set[str] = set()

    def __repr__(self) -> str:
        return f"<BodyBudget {self.used} of {self.bytes_max}, accounts={len(self._by_account)}>"

    @property
    def waiting(self) -> int:
        """Bodies whose reading has stopped."""
        return sum(len(waiters) for waiters in self._waiting.values())

    def has_room(self, account: str) -> bool:
        """Whether more may be read of a body of the account."""
        return self.used < self.bytes_max and self._left(account) > 0

    def _left(self, account: str) -> int:
        """Of the account's share."""
        share = self.bytes_max // 10 if account == ANONYMOUS else self.bytes_max // 2
        return share - self._by_account.get(account, 0)

    def add(self, account: str, size: int) -> None:
        """Counts what has arrived."""
        self.used += size
        self._by_account[account] = self._by_account.get(account, 0) + size

    def move(self, account: str, other: str, size: int) -> None:
        """It turned out whose it is."""
        self._take(account, size)
        self.add(other, size)

    def free(self, account: str, size: int, *, favoured: bool = False) -> None:
        """Gives back what was added for a body, which may have been favoured, and lets others go on."""
        self._take(account, size)
        if favoured:
            self._favoured.discard(account)
        if self._waiting:
            self._wake()

    def _take(self, account: str, size: int) -> None:
        self.used -= size
        left = self._by_account.get(account, 0) - size
        if left > 0:
            self._by_account[account] = left
        else:
            self._by_account.pop(account, None)

    def wait(self, account: str, resume: Resume) -> bool:
        """Whether a body has to wait; ``resume`` is called once, when it may go on. False: it is favoured."""
        if self._favour(account):
            return False
        self._waiting.setdefault(account, deque()).append(resume)
        return True

    def forget(self, account: str, resume: Resume) -> None:
        """A waiter is no longer there."""
        waiters = self._waiting.get(account)
        if waiters is not None and resume in waiters:
            waiters.remove(resume)
            if not waiters:
                del self._waiting[account]

    def _favour(self, account: str) -> bool:
        if account in self._favoured or len(self._favoured) >= FAVOURED_MAX:
            return False
        self._favoured.add(account)
        return True

    def _wake(self) -> None:
        """Lets bodies go on, one of each account in turn, for as many as there is room for."""
        room = self.bytes_max - self.used
        coming: dict[str, int] = {}
        goes_on = True
        while goes_on:
            goes_on = False
            for account in list(self._waiting):
                fits = room > 0 and self._left(account) > coming.get(account, 0)
                favoured = not fits and self._favour(account)
                if not fits and not favoured:
                    continue
                waiters = self._waiting.pop(account)
                resume = waiters.popleft()
                if waiters:
                    self._waiting[account] = waiters  # at the end: the others have their turn first
                    goes_on = True
                room -= READ_BYTES
                coming[account] = coming.get(account, 0) + READ_BYTES
                resume(favoured)
