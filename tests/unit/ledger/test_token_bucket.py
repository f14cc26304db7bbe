"""So many at once, so many per second."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sidecar.basics.token_bucket import TokenBucket


class Time:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_burst_passes_and_the_next_is_told_how_long_to_wait() -> None:
    time = Time()
    bucket = TokenBucket(per_second=4, burst=3, clock=time)
    assert [bucket.take() for _ in range(4)] == [0, 0, 0, 0.25]
    time.now_s += 0.125
    assert bucket.take() == 0.125


def test_who_waits_as_long_as_told_passes() -> None:
    time = Time()
    bucket = TokenBucket(per_second=7, burst=1, clock=time)
    bucket.take()
    for _ in range(100):
        time.now_s += bucket.take()
        assert bucket.take() == 0


def test_a_rest_fills_the_bucket_no_further_than_the_burst() -> None:
    time = Time()
    bucket = TokenBucket(per_second=10, burst=2, clock=time)
    time.now_s += 1_000
    assert [bucket.take() > 0 for _ in range(3)] == [False, False, True]


@given(st.lists(st.floats(0, 0.5), max_size=200))
def test_never_more_pass_than_rate_and_burst_allow(pauses_s: list[float]) -> None:
    time = Time()
    bucket = TokenBucket(per_second=5, burst=3, clock=time)
    passed = 0
    for pause_s in pauses_s:
        time.now_s += pause_s
        passed += bucket.take() == 0
        assert passed <= 3 + 5 * (time.now_s - 100) + 1e-6
