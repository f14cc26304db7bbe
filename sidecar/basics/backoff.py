"""How long to wait before a retry (full jitter), and what a server says about it (RFC 9110, section 10.2.3)."""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime
from random import Random

_SECONDS_DIGITS_MAX = 10
_DATE_CHARS_MAX = 64


class Backoff:
    """Waits that grow: each is random between 0 and a bound, which doubles from ``min_s`` up to ``max_s``.

    Random from zero on, so that publishers which failed together do not come back together.
    """

    def __init__(self, min_s: float, max_s: float, random: Random) -> None:
        self._min_s = min_s
        self._max_s = max_s
        self._random = random
        self._bound_s = min_s

    def next_s(self) -> float:
        """Seconds to wait now."""
        bound_s = self._bound_s
        self._bound_s = min(self._max_s, bound_s * 2)
        return self._random.uniform(0, bound_s)

    def reset(self) -> None:
        """Something worked: the next wait is a short one again."""
        self._bound_s = self._min_s

    def __repr__(self) -> str:
        return f"Backoff(next below {self._bound_s:g} s)"


def retry_after_s(value: str | None, now_s: float) -> float | None:
    """Seconds named by a Retry-After field, a number or a date; None when there is none or it cannot be read."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:_SECONDS_DIGITS_MAX]) if len(text) <= _SECONDS_DIGITS_MAX else float("inf")
    if len(text) > _DATE_CHARS_MAX:
        return None
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if date.tzinfo is None:  # an HTTP date is in GMT even where the obsolete form does not say so
        date = date.replace(tzinfo=UTC)
    return max(0.0, date.timestamp() - now_s)
