"""Shares of the connections to an API, and the order in which those get one who wait."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sidecar.gateway.admission.places import ANONYMOUS, Places, Waiter


class Held(Places[Waiter]):
    """Places, and who has them as far as anybody outside knows."""

    def __init__(self, total: int, waiting_max: int) -> None:
        super().__init__(total, waiting_max, lambda: self.holders)
        self.holders: list[str] = []

    def take(self, account: str) -> bool:
        got = super().take(account)
        if got:
            self.holders.append(account)
        return got

    def give_back(self, account: str, *, stream: bool = False) -> None:
        self.holders.remove(account)
        super().give_back(account, stream=stream)


def taken(places: Places[str], account: str, tries: int) -> int:
    return sum(places.take(account) for _ in range(tries))


def test_an_account_has_half_and_strangers_have_a_tenth() -> None:
    places: Held[str] = Held(100, 10)
    assert [taken(places, account, 100) for account in ("a", "b", ANONYMOUS)] == [50, 50, 10]


def test_places_are_not_counted_by_account_when_it_is_calm_again_whoever_leaves_last() -> None:
    places: Held[str] = Held(3, 10)
    assert [places.take(account) for account in ("a", "b")] == [True, True]
    assert places._counting
    places.give_back("a")
    assert places.take(ANONYMOUS)
    for account in ("b", ANONYMOUS):
        places.give_back(account)
    assert not places._counting
    assert not places._held


def test_every_share_is_at_least_one_place() -> None:
    for total in (1, 2, 3, 9):
        places: Held[str] = Held(total, 10)
        assert taken(places, ANONYMOUS, 100) == 1
        assert taken(places, "a", 100) == max(1, total // 2)
        assert places.may_stream("a")


def test_a_quarter_of_the_places_may_be_streams_of_one_account() -> None:
    places: Held[str] = Held(16, 10)
    for _ in range(4):
        assert places.may_stream("a")
        assert places.take("a")
        places.add_stream("a")
    assert not places.may_stream("a")
    assert places.may_stream("b")
    assert places.take("a")
    places.give_back("a", stream=True)
    assert places.may_stream("a")


def test_places_go_to_accounts_in_turn_however_many_wait_of_one() -> None:
    places: Held[str] = Held(100, 100)
    for waiter in ("a1", "a2", "a3", "b1", "c1", "b2"):
        assert places.wait(waiter[0], waiter)
    order = []
    while (turn := places.next()) is not None:
        order.append(turn[1])
    assert order == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert (places.waiting, sorted(places.holders)) == (0, ["a", "a", "a", "b", "b", "c"])


def test_an_account_with_its_share_is_passed_over() -> None:
    places: Held[str] = Held(4, 100)
    assert taken(places, "a", 4) == 2
    places.wait("a", "a1")
    assert places.next() is None
    places.wait("b", "b1")
    assert places.next() == ("b", "b1")
    places.give_back("a")
    assert places.next() == ("a", "a1")


def test_an_account_may_not_fill_the_queue() -> None:
    places: Held[str] = Held(1, 4)
    assert [places.wait("a", str(n)) for n in range(3)] == [True, True, False]
    assert [places.wait("b", str(n)) for n in range(3)] == [True, True, False]
    assert not places.wait("c", "0")


def test_an_account_has_no_more_than_its_share_however_often_it_gets_crowded() -> None:
    places: Held[str] = Held(40, 10)
    for _ in range(3):
        assert taken(places, "a", 15) == 15
        assert taken(places, "b", 15) == 15
        assert taken(places, "a", 15) == 5
        for account in list(places.holders):
            places.give_back(account)
        assert places.taken == 0


def test_who_gave_up_waits_no_more() -> None:
    places: Held[str] = Held(1, 4)
    places.wait("a", "one")
    places.forget("a", "one")
    places.forget("a", "one")
    assert (places.waiting, places.next()) == (0, None)


STEPS = st.lists(
    st.tuples(st.sampled_from(["take", "give", "wait", "next", "forget"]), st.sampled_from(["a", "b", ""]))
)


@given(st.integers(1, 12), STEPS)
def test_no_share_is_ever_passed_and_nobody_waits_who_could_go_on(total: int, steps: list[tuple[str, str]]) -> None:
    places: Held[int] = Held(total, 6)
    held = {"a": 0, "b": 0, "": 0}
    waiting: dict[int, str] = {}
    for number, (step, account) in enumerate(steps):
        if step == "take" and places.take(account):
            held[account] += 1
        elif step == "give" and held[account]:
            places.give_back(account)
            held[account] -= 1
        elif step == "wait" and places.wait(account, number):
            waiting[number] = account
        elif step == "forget" and account in waiting.values():
            waiter = next(n for n, of in waiting.items() if of == account)
            places.forget(account, waiter)
            del waiting[waiter]
        elif step == "next":
            turn = places.next()
            may = {a for a in waiting.values() if held[a] < max(1, total // (2 if a else 10))}
            assert (turn is None) == (not may)
            if turn is not None:
                assert waiting.pop(turn[1]) == turn[0]
                held[turn[0]] += 1
        assert {a: places.holders.count(a) for a in held} == held
        assert places.taken == sum(held.values())
        assert places.waiting == len(waiting)
        assert all(count <= max(1, total // (2 if a else 10)) for a, count in held.items())
