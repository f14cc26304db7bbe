"""When a server counts as reachable, and since when: the reaper believes no heartbeat that could not be renewed."""

from __future__ import annotations

import pytest

from sidecar.ledger.client.contact import Contact

GAP_S = 3.0


def seen(*answers: tuple[float, str, float]) -> Contact:
    contact = Contact(GAP_S)
    for answer in answers:
        contact.note_answer(*answer)
    return contact


def test_a_server_that_was_never_reached_is_not_reachable() -> None:
    assert Contact(GAP_S).reachable_s(100.0) == -1


def test_a_window_grows_with_answers_that_follow_each_other() -> None:
    contact = seen((100, "a", 5000), (103, "a", 5003), (106, "a", 5006.5))
    assert contact.reachable_s(107) == 7


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((103.1, "a", 5003.1), "the server or this process stood still"),
        ((102, "b", 5002), "the server was restarted"),
        ((102, "a", 5006), "the server's clock went ahead, or this machine slept"),
    ],
)
def test_a_window_begins_anew(answer: tuple[float, str, float], why: str) -> None:
    assert seen((100, "a", 5000), answer).reachable_s(110) == 110 - answer[0], why


def test_a_failure_ends_the_window() -> None:
    contact = seen((100, "a", 5000))
    contact.note_failure()
    assert contact.reachable_s(101) == -1
    contact.touch(101)
    assert contact.reachable_s(101) == -1
    contact.note_answer(102, "a", 5002)
    assert contact.reachable_s(103) == 1


def test_answers_between_two_looks_bridge_a_long_one() -> None:
    contact = seen((100, "a", 5000))
    contact.touch(102.5)
    contact.touch(105)
    contact.note_answer(107.5, "a", 5007.5)
    assert contact.reachable_s(108) == 8
    contact.touch(115)
    contact.note_answer(116, "a", 5016)
    assert contact.reachable_s(116) == 0


def test_a_clock_that_goes_back_makes_nobody_older() -> None:
    assert seen((100, "a", 5000), (102, "a", 1000)).reachable_s(102) == 2
