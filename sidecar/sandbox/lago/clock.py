"""The time of the Lago stand-in, which can be moved forward."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def instant(unix_s: float) -> datetime:
    """Unix seconds as a UTC instant, exact to the microsecond."""
    return _EPOCH + timedelta(microseconds=round(unix_s * 1_000_000))


def instant_us(unix_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=unix_us)


def unix_s(when: datetime) -> float:
    return unix_us(when) / 1_000_000


def unix_us(when: datetime) -> int:
    return (when - _EPOCH) // timedelta(microseconds=1)


class ClockError(ValueError):
    """The clock was to be moved back."""


class Clock:
    """``base`` plus what it has been moved by: over a running base it goes on running."""

    def __init__(self, base: Callable[[], float]) -> None:
        self._base = base
        self._moved = timedelta()

    def __repr__(self) -> str:
        return f"Clock({self.now().isoformat()})"

    def now(self) -> datetime:
        return instant(self._base()) + self._moved

    def unix_s(self) -> float:
        return unix_s(self.now())

    def set(self, when: datetime | float) -> None:
        """Moves to an instant, given as such or in Unix seconds. Raises :class:`ClockError` for one that has passed.

        Jobs that fall due do not run: that is ``Lago.advance_to``.
        """
        target = when if isinstance(when, datetime) else instant(when)
        now = self.now()
        if target < now:
            raise ClockError(f"the clock stands at {unix_s(now)} and does not go back to {unix_s(target)}")
        self._moved += target - now

    def at_least(self, when: datetime) -> None:
        """Moves to ``when`` unless that has passed."""
        behind = when - self.now()
        if behind > timedelta():
            self._moved += behind
