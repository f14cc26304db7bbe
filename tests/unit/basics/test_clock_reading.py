"""How far clocks are apart is said only as far as a reading proves it."""

from __future__ import annotations

import pytest

from sidecar.basics.clock_reading import ClockReading, http_date

AT_S = 1_767_225_600


@pytest.mark.parametrize(
    ("sent_s", "received_s", "ahead_s"),
    [
        (AT_S + 0.2, AT_S + 0.3, 0),
        (AT_S - 3, AT_S + 5, 0),
        (AT_S + 11, AT_S + 12, 10),
        (AT_S - 12, AT_S - 10, -10),
    ],
)
def test_a_date_tells_the_least_difference(sent_s: float, received_s: float, ahead_s: float) -> None:
    reading = http_date("Thu, 01 Jan 2026 00:00:00 GMT", sent_s, received_s)
    assert reading == ClockReading(sent_s, received_s, AT_S, AT_S + 1)
    assert reading.ahead_s == ahead_s


@pytest.mark.parametrize("text", [None, "", "soon", "Thu, 32 Jan 2026 00:00:00 GMT", "Thu, 01 Jan 99999 00:00:00 GMT"])
def test_what_is_no_date_is_no_reading(text: str | None) -> None:
    assert http_date(text, AT_S, AT_S) is None
