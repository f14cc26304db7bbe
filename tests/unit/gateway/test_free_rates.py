"""How many requests to free routes a peer may make."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sidecar.gateway.admission.free_rates import FreeRates


def test_a_burst_then_the_rate() -> None:
    rates = FreeRates(2.0, 3)
    assert [rates.take("a", 10.0) for _ in range(5)] == [0.0, 0.0, 0.0, 0.5, 0.5]
    assert rates.take("a", 10.5) == 0.0
    assert rates.take("a", 10.5) == 0.5
    assert rates.take("b", 10.5) == 0.0
    assert [rates.take("a", 100.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


def test_the_peer_that_was_seen_least_recently_is_forgotten() -> None:
    rates = FreeRates(1.0, 1, peers_max=2)
    for peer in ("a", "b"):
        rates.take(peer, 0.0)
    assert rates.take("a", 0.0) > 0
    rates.take("c", 0.0)
    assert len(rates) == 2
    assert rates.take("a", 0.0) > 0
    assert rates.take("b", 0.0) == 0


@given(st.lists(st.floats(0, 10), max_size=200).map(sorted), st.floats(0.1, 50), st.integers(1, 20))
def test_no_peer_gets_more_than_burst_and_rate(times: list[float], per_second: float, burst: int) -> None:
    rates = FreeRates(per_second, burst)
    granted = [now for now in times if not rates.take("a", now)]
    for first, began in enumerate(granted):
        for last in range(first, len(granted)):
            assert last - first + 1 <= burst + (granted[last] - began) * per_second + 1e-6
