"""How old the funds of accounts are, and who could not be read from Lago for too long. Without I/O.

A completed sweep confirms every account that it did not fail to read: Lago's lists had it as it was read last, or it
was read. So neither how long a sweep takes nor the time until the next one makes funds old, only Lago's silence does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class ReadingAges:
    """Instants are Unix milliseconds by Valkey's clock. ``limit_s`` None: nothing is ever too old.

    A control plane that begins to lead knows of no sweep, and goes by the readings alone: ``clear``.
    """

    limit_s: int | None
    confirmed_ms: int = 0
    unread_since_ms: dict[str, int] = field(default_factory=dict)
    suspended_readings: dict[str, int] = field(default_factory=dict)

    def clear(self) -> None:
        self.confirmed_ms = 0
        self.unread_since_ms.clear()
        self.suspended_readings.clear()

    def confirm(self, unread: Iterable[str], at_ms: int) -> None:
        """A sweep is over, the next begins at ``at_ms``. ``unread``: accounts that it tried to read and could not."""
        self.unread_since_ms = {each: self.unread_since_ms.get(each, self.confirmed_ms) for each in unread}
        self.confirmed_ms = at_ms

    def is_too_old(self, account: str, read_at_ms: int, now_ms: int) -> bool:
        """Whether the account must be suspended: True once for each reading, until ``failed`` takes it back."""
        known_ms = max(read_at_ms, self.unread_since_ms.get(account, self.confirmed_ms))
        if self.limit_s is None or now_ms - known_ms <= self.limit_s * 1000:
            self.suspended_readings.pop(account, None)
            return False
        if self.suspended_readings.get(account) == read_at_ms:
            return False
        self.suspended_readings[account] = read_at_ms
        return True

    def failed(self, account: str) -> None:
        """It was not suspended."""
        self.suspended_readings.pop(account, None)
