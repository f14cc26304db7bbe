"""How far the clocks of two machines are apart, by what one of them answers."""

from __future__ import annotations

from dataclasses import dataclass
from email.utils import parsedate_to_datetime


@dataclass(frozen=True, slots=True)
class ClockReading:
    """Another machine's clock was between ``earliest_s`` and ``latest_s`` (since 1970) at some instant between
    ``sent_s`` and ``received_s`` of the local clock.
    """

    sent_s: float
    received_s: float
    earliest_s: float
    latest_s: float

    @property
    def ahead_s(self) -> float:
        """By how much the local clock is ahead of the other at least, in seconds; negative: behind. 0 where the reading
        cannot tell them apart.
        """
        least, most = self.sent_s - self.latest_s, self.received_s - self.earliest_s
        return least if least > 0 else min(most, 0.0)


def http_date(text: str | None, sent_s: float, received_s: float) -> ClockReading | None:
    """The reading of a Date field (RFC 9110 6.6.1), which has whole seconds; None for one that is no date."""
    try:
        at_s = parsedate_to_datetime(text or "").timestamp()
    except (ValueError, OverflowError):
        return None
    return ClockReading(sent_s, received_s, at_s, at_s + 1)
