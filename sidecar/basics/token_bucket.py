"""A limit on how often something is done in this process: so many per second on average, so many at once."""

from __future__ import annotations

from collections.abc import Callable


class TokenBucket:
    """``per_second`` on average, ``burst`` after a rest. ``clock`` answers seconds that only pass."""

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float]) -> None:
        assert per_second > 0
        assert burst >= 1
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._tokens = burst
        self._counted_at_s = clock()

    def take(self) -> float:
        """Take one; answer 0, or the seconds until there is one, and nothing is taken."""
        now_s = self._clock()
        self._tokens = min(self._burst, self._tokens + (now_s - self._counted_at_s) * self._per_second)
        self._counted_at_s = now_s
        # What passes between two floats must not make a caller wait who came exactly in time.
        if self._tokens >= 1 - 1e-9:
            self._tokens = max(0.0, self._tokens - 1)
            return 0.0
        return (1 - self._tokens) / self._per_second

    def __repr__(self) -> str:
        return f"TokenBucket({self._tokens:.1f} of {self._burst:g}, {self._per_second:g}/s)"
