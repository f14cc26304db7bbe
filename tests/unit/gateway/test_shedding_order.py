"""Which connections give way, and in which order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sidecar.gateway.admission.shedding import REASONS, Candidate, Handshakes, Standing, choose
from sidecar.gateway.counters import SHED_REASONS


def candidate(
    name: str, standing: Standing, since: float = 0.0, peer: str | None = "a", size: int = 1
) -> Candidate[str]:
    return Candidate(name, standing, since, peer, size)


def names(chosen: list[Candidate[str]]) -> str:
    return "".join(each.connection for each in chosen)


def test_every_standing_that_gives_way_has_a_reason_that_is_counted() -> None:
    assert set(REASONS) == set(Standing) - {Standing.STAYS}
    assert set(REASONS.values()) <= set(SHED_REASONS)


def test_who_was_never_identified_gives_way_before_who_was_and_what_the_api_has_never_does() -> None:
    several = [candidate(str(int(each)), each, peer=None) for each in reversed(Standing)]
    assert names(choose(several, 100)) == "01234"


def test_only_as_many_as_needed_give_way_the_oldest_first() -> None:
    several = [candidate(name, Standing.IDLE, since) for name, since in (("c", 3.0), ("a", 1.0), ("b", 2.0))]
    assert names(choose(several, 2)) == "ab"


def test_peers_above_their_share_come_first_within_a_standing() -> None:
    several = [candidate(f"{n}", Standing.IDLE, 10.0 + n, "greedy") for n in range(4)]
    several += [candidate("m", Standing.IDLE, 1.0, "modest"), candidate("h", Standing.PARTIAL_HEAD, 0.0, "greedy")]
    assert names(choose(several, 6)) == "0123mh"


def test_requests_of_known_callers_give_way_only_down_to_their_peer_s_share() -> None:
    several = [candidate(f"{n}", Standing.UNSENT, n, "greedy") for n in range(8)]
    several += [candidate("m", Standing.UNSENT, -1.0, "modest"), candidate("x", Standing.UNSENT, -1.0, None)]
    assert names(choose(several, 100)) == "0123"  # nine connections of two peers: four and a half for each
    assert names(choose(several[:8], 100)) == ""  # there is one peer


def test_sizes_count() -> None:
    several = [candidate(name, Standing.PARTIAL_HEAD, n, size=10) for n, name in enumerate("abcd")]
    assert names(choose(several, 11)) == "ab"


@given(
    st.lists(
        st.tuples(st.sampled_from(Standing), st.floats(0, 100), st.sampled_from(["a", "b", "c", None])), max_size=40
    ),
    st.integers(0, 50),
)
def test_never_more_than_needed_and_never_a_later_standing_before_an_earlier(
    rows: list[tuple[Standing, float, str | None]], needed: int
) -> None:
    several = [Candidate(number, *row) for number, row in enumerate(rows)]
    chosen = choose(several, needed)
    assert len(chosen) <= needed
    assert [each.standing for each in chosen] == sorted(each.standing for each in chosen)
    left = [each.standing for each in several if each not in chosen and each.standing < Standing.UNSENT]
    assert not chosen or not left or max(each.standing for each in chosen) <= min(left)


def test_a_handshake_too_many_takes_the_place_of_the_oldest_of_the_peer_with_most() -> None:
    handshakes: Handshakes[str] = Handshakes(4)
    assert [handshakes.add(name, peer) for name, peer in (("x", "b"), ("1", "a"), ("2", "a"), ("y", "b"))] == [None] * 4
    assert handshakes.add("3", "a") == "x"  # both have two; it is the oldest of all
    assert handshakes.add("4", "a") == "1"
    assert [*handshakes] == ["2", "y", "3", "4"]
    assert handshakes.dropped == {"x", "1"}
    for name in ("x", "1", "2", "y", "3", "4", "4"):
        handshakes.remove(name)
    assert (len(handshakes), handshakes.dropped) == (0, set())
