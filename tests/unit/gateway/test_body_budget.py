"""What the bodies of all requests may take together, and whose turn it is when there is room again."""

from __future__ import annotations

from functools import partial

from sidecar.gateway.admission.body_budget import FAVOURED_MAX, READ_BYTES, BodyBudget
from sidecar.gateway.admission.places import ANONYMOUS

MAX = 20 * READ_BYTES


class Waiters:
    """Bodies that wait, and the order in which they go on."""

    def __init__(self, budget: BodyBudget) -> None:
        self.order: list[str] = []
        self._budget = budget

    def wait(self, account: str) -> bool:
        return self._budget.wait(account, partial(self._go_on, account))

    def _go_on(self, account: str, favoured: bool) -> None:
        self.order.append(account + "!" * favoured)


def full(*favoured: str) -> tuple[BodyBudget, Waiters]:
    """A budget that somebody else has used up, with these accounts favoured."""
    budget = BodyBudget(MAX)
    budget.add("x", MAX)
    waiters = Waiters(budget)
    for account in favoured:
        assert not waiters.wait(account)
    return budget, waiters


def test_an_account_has_half_of_the_room_and_strangers_a_tenth() -> None:
    budget = BodyBudget(MAX)
    budget.add("a", MAX // 2)
    budget.add(ANONYMOUS, MAX // 10)
    assert [budget.has_room(account) for account in ("a", ANONYMOUS, "b")] == [False, False, True]
    budget.add("b", MAX // 2 - MAX // 10)
    assert not budget.has_room("c")


def test_what_is_given_back_makes_room() -> None:
    budget = BodyBudget(MAX)
    budget.add("a", MAX)
    budget.free("a", MAX)
    assert (budget.used, budget.has_room("a")) == (0, True)


def test_bytes_of_a_stranger_move_to_the_account_that_it_turns_out_to_be() -> None:
    budget = BodyBudget(MAX)
    budget.add(ANONYMOUS, MAX // 10)
    budget.move(ANONYMOUS, "a", MAX // 10)
    assert (budget.used, budget.has_room(ANONYMOUS)) == (MAX // 10, True)


def test_those_who_wait_go_on_in_turns_between_accounts() -> None:
    budget, waiters = full("a", "b", "c")
    assert all(waiters.wait(account) for account in ("a", "a", "a", "b", "c"))
    budget.free("x", 2 * READ_BYTES)
    assert waiters.order == ["a", "b"]
    budget.add("a", READ_BYTES)
    budget.add("b", READ_BYTES)
    budget.free("x", READ_BYTES)
    assert waiters.order == ["a", "b", "c"]
    budget.free("x", 2 * READ_BYTES)
    budget.free("x", 2 * READ_BYTES)
    assert waiters.order == ["a", "b", "c", "a", "a"]
    assert budget.waiting == 0


def test_an_account_beyond_its_share_waits_while_others_go_on() -> None:
    budget = BodyBudget(MAX)
    waiters = Waiters(budget)
    budget.add("greedy", MAX // 2)
    budget.add("x", MAX // 2)
    for account in ("greedy", "b", "greedy", "b"):
        waiters.wait(account)
    budget.free("x", MAX // 2)
    assert waiters.order == ["b"]
    budget.free("greedy", READ_BYTES)
    assert waiters.order == ["b", "greedy"]


def test_one_body_of_each_account_goes_on_even_without_room_so_that_not_all_wait_for_one_another() -> None:
    budget, waiters = full("a")
    assert waiters.wait("a")
    budget.free("a", 0, favoured=True)
    assert waiters.order == ["a!"]


def test_no_more_than_a_few_are_favoured_at_a_time() -> None:
    budget, waiters = full(*map(str, range(FAVOURED_MAX)))
    assert waiters.wait("late")
    budget.free("0", 0, favoured=True)
    assert waiters.order == ["late!"]


def test_who_gave_up_is_not_woken() -> None:
    budget, _ = full("a")
    woken: list[bool] = []

    def resume(favoured: bool) -> None:
        woken.append(favoured)

    assert budget.wait("a", resume)
    budget.forget("a", resume)
    budget.free("x", MAX)
    assert (woken, budget.waiting) == ([], 0)


def test_as_many_bodies_of_one_account_go_on_as_there_is_room_for() -> None:
    """A slow one among them does not keep the others waiting."""
    budget = BodyBudget(100 * READ_BYTES)
    budget.add("a", 50 * READ_BYTES)
    assert not budget.wait("a", lambda _: None)  # favoured
    went_on: list[int] = []
    for number in range(20):
        assert budget.wait("a", lambda _, number=number: went_on.append(number))  # type: ignore[misc]
    budget.free("a", 10 * READ_BYTES)
    assert went_on == list(range(10))
    assert budget.waiting == 10
