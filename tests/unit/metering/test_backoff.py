"""How long a retry waits."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.basics.backoff import Backoff, retry_after_s

NOW_S = 784_111_777.0  # Sun, 06 Nov 1994 08:49:37 GMT, the date in RFC 9110's examples


class Highest(Random):
    """Draws the upper bound, which makes it visible."""

    def uniform(self, a: float, b: float) -> float:
        assert a == 0
        return b


def test_the_bound_doubles_up_to_its_limit_and_starts_again() -> None:
    backoff = Backoff(0.1, 1.0, Highest())
    assert [backoff.next_s() for _ in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    backoff.reset()
    assert backoff.next_s() == 0.1


@given(st.integers(), st.integers(0, 60))
def test_every_wait_is_between_nothing_and_the_bound(seed: int, retries: int) -> None:
    backoff = Backoff(0.1, 30.0, Random(seed))
    waits = [backoff.next_s() for _ in range(retries)]
    assert all(0 <= wait <= min(30.0, 0.1 * 2**n) for n, wait in enumerate(waits))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("9" * 40, float("inf")),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("٣", None),
        ("Sun, 06 Nov 1994 08:49:47 GMT", 10.0),
        ("Sunday, 06-Nov-94 08:49:47 GMT", 10.0),
        ("Sun Nov  6 08:49:47 1994", 10.0),
        ("Sun, 06 Nov 1994 08:49:00 GMT", 0.0),
        ("Sun, 99 Nov 1994 08:49:00 GMT", None),
        ("Sun, 06 Nov 1994 " + "0" * 100, None),
    ],
)
def test_retry_after_is_read_in_both_its_forms(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value, NOW_S) == seconds


@given(st.text(max_size=80))
def test_no_retry_after_is_an_error(value: str) -> None:
    seconds = retry_after_s(value, NOW_S)
    assert seconds is None or seconds >= 0
