"""This machine's clock beside those of the servers."""

from __future__ import annotations

from sidecar.basics.clock_reading import ClockReading
from sidecar.cli.checks.finding import Finding

DIFFERENCE_S_MAX = 5.0
"""Clocks that are kept right differ by far less."""
KAFKA_AHEAD_S_MAX = 3_600
"""``message.timestamp.after.max.ms`` of Kafka 4, by default."""


def clock(what: str, whose: str, reading: ClockReading | None) -> list[Finding]:
    """A warning if the clocks differ by more than DIFFERENCE_S_MAX."""
    if reading is None or abs(reading.ahead_s) <= DIFFERENCE_S_MAX:
        return []
    apart_s = round(abs(reading.ahead_s))
    way = "ahead of" if reading.ahead_s > 0 else "behind"
    detail = f"this machine's clock is {apart_s} s {way} {whose}; set both by NTP"
    if apart_s > KAFKA_AHEAD_S_MAX:
        detail += ": Kafka 4 refuses usage events of more than 1 h ahead of its own clock"
    return [Finding(what, None, detail)]
