"""Finding the bad events of a batch."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from sidecar.metering.publisher.bisection import Bisection

COUNT_MAX = 200
batches = st.integers(0, COUNT_MAX).flatmap(
    lambda count: st.tuples(st.just(count), st.sets(st.integers(0, max(0, count - 1)), max_size=count))
)


class Server:
    """Refuses a part that holds a bad event; ``blame`` says which it names."""

    def __init__(self, count: int, bad: set[int], blame: Callable[[range, int], int | None]) -> None:
        self.bad = {position for position in bad if position < count}
        self.blame = blame
        self.requests = 0
        self.accepted: list[int] = []
        self.rejected: list[int] = []

    def serve(self, work: Bisection) -> None:
        while (part := work.part) is not None:
            self.requests += 1
            first_bad = next((i for i, position in enumerate(part) if position in self.bad), None)
            if first_bad is None:
                self.accepted += work.accept()
            elif len(part) > 1:
                work.divide(self.blame(part, first_bad))
            else:
                self.rejected.append(work.reject())


def served(count: int, bad: set[int], blame: Callable[[range, int], int | None]) -> Server:
    server = Server(count, bad, blame)
    server.serve(Bisection(count))
    assert sorted(server.rejected) == sorted(server.bad)
    assert sorted(server.accepted) == sorted(set(range(count)) - server.bad)
    assert server.accepted == sorted(server.accepted)
    return server


@given(batches)
def test_an_honest_hint_finds_each_bad_event_with_two_requests(batch: tuple[int, set[int]]) -> None:
    server = served(*batch, lambda part, first: first)
    assert server.requests <= 1 + 3 * len(server.bad)


@given(batches)
def test_without_hints_the_batch_is_halved(batch: tuple[int, set[int]]) -> None:
    server = served(*batch, lambda part, first: None)
    assert server.requests <= 1 + 2 * len(server.bad) * COUNT_MAX.bit_length()


@given(batches, st.randoms(use_true_random=False))
def test_no_lie_about_the_position_costs_an_event_or_more_than_two_requests_for_each(
    batch: tuple[int, set[int]], random: Random
) -> None:
    server = served(*batch, lambda part, first: random.choice([None, first, random.randrange(COUNT_MAX * 2)]))
    assert server.requests <= max(1, 2 * batch[0])


def test_a_server_that_blames_a_sound_event_is_not_believed_again() -> None:
    server = served(64, {63}, lambda part, first: 0)
    assert server.requests <= 2 + 2 * (64).bit_length()
    assert server.rejected == [63]


def test_nothing_is_sent_of_an_empty_batch() -> None:
    assert Bisection(0).part is None


def test_the_rest_is_what_has_yet_to_be_sent_in_order() -> None:
    work = Bisection(9)
    work.divide(2)
    work.accept()
    assert work.take_rest() == [range(2, 3), range(3, 9)]
    assert work.part is None
    assert work.take_rest() == []
