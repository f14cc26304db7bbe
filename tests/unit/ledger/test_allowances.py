"""`allowance_units` is the most that an account can overspend, whatever the ledger does meanwhile."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.ledger.client.outcomes import Code, Hold
from sidecar.ledger.spool.allowances import METRICS_MAX, Allowances

UNLIMITED = -1
REFILL_S = 600.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def hold(
    account: str = "tpp", available: int = UNLIMITED, *, price: int = 1, metric: str = "calls", units: int = 1,
    code: Code = Code.GRANTED,
) -> Hold:  # fmt: skip
    """One that the ledger decided."""
    decided = Hold(account, metric, units, None, lambda _: None)
    decided.code, decided.available, decided.price = code, available, price
    return decided


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def allowances(clock: Clock) -> Allowances:
    return Allowances(20, refill_s=REFILL_S, monotonic=clock)


def admitted(allowances: Allowances, calls: int, account: str = "tpp", metric: str = "calls") -> int:
    return sum(allowances.admit(account, metric, 1) for _ in range(calls))


def test_an_account_has_one_allowance_over_all_metrics(allowances: Allowances) -> None:
    allowances.note(hold())
    assert admitted(allowances, 15) == 15
    assert admitted(allowances, 15, metric="payments") == 5
    assert not allowances.admit("tpp", "calls", 1)
    allowances.note(hold("other"))
    assert not allowances.admit("other", "calls", 21)
    assert allowances.admit("other", "calls", 20)


def test_a_ledger_that_is_merely_slow_does_not_refill_it(allowances: Allowances, clock: Clock) -> None:
    """Seen: every answer took 300 ms, the charges were settled all the time, and 400 were served at 20."""
    allowances.note(hold())
    served = 0
    for _ in range(400):
        clock.now += 0.3
        if allowances.admit("tpp", "calls", 1):
            served += 1
            allowances.settled("tpp", 1)
    assert served == 20


def test_three_outages_give_it_once(allowances: Allowances, clock: Clock) -> None:
    served = 0
    for _ in range(3):
        allowances.note(hold())
        served += admitted(allowances, 50)
        allowances.settled("tpp", 50)
        clock.now += 60
    assert served == 20


def test_it_is_full_again_when_all_is_settled_and_ten_minutes_have_passed_since_its_last_unit(
    allowances: Allowances, clock: Clock
) -> None:
    allowances.note(hold())
    assert admitted(allowances, 20) == 20
    clock.now += 10 * REFILL_S
    assert admitted(allowances, 20) == 0, "not settled"
    allowances.settled("tpp", 19)
    assert admitted(allowances, 20) == 0, "one is not"
    allowances.settled("tpp", 1)
    assert admitted(allowances, 19) == 19
    allowances.settled("tpp", 19)
    clock.now += REFILL_S - 1
    assert admitted(allowances, 20) == 1, "the last of the allowance"
    allowances.settled("tpp", 1)
    clock.now += REFILL_S - 1
    assert admitted(allowances, 20) == 0
    clock.now += 1
    assert admitted(allowances, 21) == 20


def test_what_was_not_used_can_be_used_again(allowances: Allowances) -> None:
    allowances.note(hold())
    assert admitted(allowances, 20) == 20
    allowances.give_back("tpp", 3)
    assert admitted(allowances, 20) == 3
    allowances.settled("tpp", 20)
    allowances.give_back("tpp", 5)
    assert admitted(allowances, 20) == 0, "what is settled was used"
    allowances.give_back("nobody", 5)
    allowances.settled("nobody", 5)


@pytest.mark.parametrize(
    "code", [Code.CREDIT, Code.RATE, Code.DAILY, Code.SUSPENDED, Code.CLOSED, Code.UNKNOWN, Code.UNPRICED]
)
def test_who_was_last_refused_is_not_served(allowances: Allowances, code: Code) -> None:
    allowances.note(hold(code=code))
    assert not allowances.admit("tpp", "calls", 1)
    allowances.note(hold())
    assert allowances.admit("tpp", "calls", 1)
    allowances.note(hold(code=code))
    assert not allowances.admit("tpp", "calls", 1)
    allowances.note(hold())
    allowances.note_late("tpp", code)
    assert not allowances.admit("tpp", "calls", 1)


@pytest.mark.parametrize(
    "code",
    [Code.UNREGISTERED, Code.REPEAT, Code.UNAVAILABLE, Code.REFUSED, Code.UNPAID, Code.MISMATCH, Code.UNDER_WAY],
)
def test_what_says_nothing_of_the_account_changes_nothing(allowances: Allowances, code: Code) -> None:
    allowances.note(hold(code=code, available=0))
    assert not allowances.admit("tpp", "calls", 1)
    allowances.note(hold(available=1))
    allowances.note(hold(code=code, available=0, price=0))
    allowances.note_late("tpp", code)
    assert admitted(allowances, 5) == 1


def test_whom_the_ledger_never_answered_for_is_not_served(allowances: Allowances) -> None:
    allowances.note(hold("other"))
    assert not allowances.admit("tpp", "calls", 1)


def test_nothing_is_served_beyond_the_last_known_funds(allowances: Allowances) -> None:
    allowances.note(hold(available=35, price=20, units=2))
    assert admitted(allowances, 20) == 3, "30 of 35"
    allowances.give_back("tpp", 1)
    assert admitted(allowances, 20) == 1
    allowances.settled("tpp", 3)
    assert admitted(allowances, 20) == 0, "no hold has come since, so what is left is 5"
    allowances.note(hold(available=5, price=10))
    assert admitted(allowances, 20) == 0
    allowances.note(hold(available=105, price=10))
    assert admitted(allowances, 20) == 10


def test_a_hold_that_came_before_the_charges_were_settled_does_not_know_of_them(allowances: Allowances) -> None:
    allowances.note(hold(available=10, price=1))
    assert admitted(allowances, 6) == 6
    allowances.note(hold(available=9, price=1))
    assert admitted(allowances, 6) == 3
    allowances.settled("tpp", 9)
    assert admitted(allowances, 6) == 0
    allowances.note(hold(available=0, price=1))
    assert admitted(allowances, 6) == 0


def test_a_later_hold_knows_of_what_was_settled_before_it_alone(allowances: Allowances) -> None:
    allowances.note(hold(available=10, price=1))
    assert admitted(allowances, 6) == 6
    allowances.note(hold(available=9, price=1))
    allowances.settled("tpp", 6)
    assert admitted(allowances, 6) == 3, "9 less the 6 that it could not know of"


def test_a_price_that_does_not_divide_counts_as_the_next_whole_one(allowances: Allowances) -> None:
    allowances.note(hold(available=7, price=7, units=2))
    assert admitted(allowances, 5) == 1


def test_what_is_no_longer_open_costs_nothing_more(allowances: Allowances) -> None:
    allowances.note(hold(available=100, price=30, metric="payments"))
    allowances.note(hold(available=70, price=1))
    assert admitted(allowances, 1) == 1
    allowances.give_back("tpp", 1)
    assert admitted(allowances, 2, metric="payments") == 2
    allowances.give_back("tpp", 1)
    assert admitted(allowances, 2, metric="payments") == 1, "the cheap call is over"
    assert admitted(allowances, 1) == 1
    allowances.settled("tpp", 3)
    allowances.note(hold(available=30, price=1))
    assert admitted(allowances, 2, metric="payments") == 1, "the ledger has all of them"


def test_a_free_call_is_served_without_funds_up_to_the_allowance(allowances: Allowances) -> None:
    allowances.note(hold(available=0, price=0))
    assert admitted(allowances, 30) == 20


def test_each_metric_has_its_price_and_one_without_is_not_served_to_an_account_with_a_limit(
    allowances: Allowances,
) -> None:
    allowances.note(hold(available=100, price=30, metric="payments"))
    allowances.note(hold(available=70, price=10))
    assert allowances.admit("tpp", "payments", 1)
    assert allowances.admit("tpp", "calls", 4)
    assert not allowances.admit("tpp", "calls", 1), "30 + 40 of 70"
    assert not allowances.admit("tpp", "unheard-of", 1)
    allowances.give_back("tpp", 1)
    assert admitted(allowances, 5) == 1, "which of them it was is not said: the cheapest"
    allowances.note(hold("rich"))
    assert allowances.admit("rich", "unheard-of", 1)


def test_the_prices_of_an_account_have_a_bound(allowances: Allowances) -> None:
    for number in range(METRICS_MAX + 3):
        allowances.note(hold(available=100, metric=f"m{number}"))
    assert not allowances.admit("tpp", "m0", 1)
    assert allowances.admit("tpp", f"m{METRICS_MAX}", 1)


def test_beyond_the_accounts_that_are_remembered_the_oldest_is_unknown(clock: Clock) -> None:
    allowances = Allowances(5, accounts_max=2, monotonic=clock)
    for name in ("a", "b", "c"):
        allowances.note(hold(name))
    assert [allowances.admit(name, "calls", 1) for name in ("a", "b", "c")] == [False, True, True]


def test_an_account_that_was_dropped_and_comes_again_has_no_second_allowance(clock: Clock) -> None:
    allowances = Allowances(5, accounts_max=1, refill_s=REFILL_S, monotonic=clock)
    allowances.note(hold("a"))
    assert admitted(allowances, 9, "a") == 5
    allowances.note(hold("b"))
    assert admitted(allowances, 9, "b") == 0, "there is no room to count"
    allowances.note(hold("a"))
    assert admitted(allowances, 9, "a") == 0
    allowances.settled("a", 5)
    clock.now += REFILL_S
    allowances.note(hold("b"))
    assert admitted(allowances, 9, "b") == 5


def test_an_allowance_that_makes_room_takes_what_it_knew_of_the_funds_with_it(clock: Clock) -> None:
    allowances = Allowances(5, accounts_max=2, refill_s=REFILL_S, monotonic=clock)
    allowances.note(hold("b"))
    allowances.note(hold("a", available=5))
    assert admitted(allowances, 9, "a") + admitted(allowances, 9, "b") == 10
    allowances.settled("a", 5)
    allowances.settled("b", 5)
    clock.now += REFILL_S
    allowances.note(hold("c"))
    assert admitted(allowances, 9, "c") == 5
    assert admitted(allowances, 9, "a") == 0, "its funds are spent, and no hold has come since"
    allowances.note(hold("a", available=1))
    assert admitted(allowances, 9, "a") == 1


ACCOUNTS = ("rich", "poor", "capped")
PRICES = {"calls": 1, "payments": 7}
STEPS = st.one_of(
    st.tuples(st.just("call"), st.sampled_from(ACCOUNTS), st.sampled_from(sorted(PRICES)), st.integers(1, 4)),
    st.tuples(st.just("call"), st.sampled_from(ACCOUNTS), st.just("calls"), st.just(1)),
    st.tuples(st.just("settle"), st.integers(1, 5)),
    st.tuples(st.just("give back"), st.integers(0, 30)),
    st.tuples(st.sampled_from(["outage", "back", "slow"])),
    st.tuples(st.just("wait"), st.sampled_from([1, 60, 599, 600, 1200])),
)


@given(st.lists(STEPS, max_size=120))
@settings(max_examples=300)
def test_no_account_overspends_its_allowance_in_ten_minutes_nor_its_funds(steps: list[tuple]) -> None:  # type: ignore[type-arg]
    """A ledger of one process: it debits holds at once, charges of the spool when they are replayed in order."""
    clock = Clock()
    allowances = Allowances(10, refill_s=REFILL_S, accounts_max=2, monotonic=clock)
    funds: dict[str, int | None] = {"rich": None, "poor": 12, "capped": 60}
    taken: list[tuple[float, str, str, int]] = []  # admitted and not given back: when, who, what, units
    spooled: list[tuple[float, str, str, int]] = []  # of them, not in the ledger
    late: dict[str, int] = dict.fromkeys(ACCOUNTS, 0)  # cost of what was spooled when the ledger granted a hold
    state = "back"
    for step in steps:
        match step:
            case ["outage" | "back" | "slow"]:
                (state,) = step
            case ["wait", seconds]:
                clock.now += seconds
            case ["settle", count] if state != "outage":
                for _ in range(min(count, len(spooled))):
                    _, account, metric, units = spooled.pop(0)
                    left = funds[account]
                    if left is not None:
                        funds[account] = left - units * PRICES[metric]
                    allowances.settled(account, units)
            case ["give back", index] if spooled:
                one = spooled.pop(index % len(spooled))
                taken.remove(one)
                allowances.give_back(one[1], one[3])
            case ["call", account, metric, units]:
                cost = units * PRICES[metric]
                left = funds[account]
                if state == "back":
                    granted = left is None or cost <= left
                    after = UNLIMITED if left is None else left - cost if granted else left
                    if granted and left is not None:
                        funds[account] = after
                    if granted:
                        late[account] = sum(u * PRICES[m] for _, a, m, u in spooled if a == account)
                    code = Code.GRANTED if granted else Code.CREDIT
                    allowances.note(hold(account, after, price=cost, metric=metric, units=units, code=code))
                elif allowances.admit(account, metric, units):
                    one = (clock.now, account, metric, units)
                    taken.append(one)
                    spooled.append(one)
        for account in ACCOUNTS:
            mine = [(when, units) for when, who, _, units in taken if who == account]
            for start, _ in mine:
                assert sum(units for when, units in mine if start <= when < start + REFILL_S) <= 10
            balance = funds[account]
            if balance is not None:
                # A hold that the ledger granted while charges were on their way is the ledger's: it could not know.
                assert balance >= -late[account]
                owed = sum(u * PRICES[m] for _, a, m, u in spooled if a == account)
                assert balance - owed >= -late[account]


def test_the_accounts_that_are_remembered_are_no_more_than_allowed(clock: Clock) -> None:
    allowances = Allowances(5, accounts_max=10, monotonic=clock)
    for number in range(100):
        allowances.note(hold(f"a{number}"))
        allowances.note(hold(f"a{number}", metric="payments"))
        allowances.admit(f"a{number}", "calls", 1)
        allowances.settled(f"a{number}", 1)
    assert repr(allowances) == "<Allowances of 5 known=10 in_use=10>"
    assert len(allowances._prices) <= 10
