"""What the wallets of an account allow, against a model of how Lago pays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.billing.reconcile.wallet_allocation import Allocation, Claims, Owed, ScopedBalance, allocate, usage_key
from tests.unit.billing.lago_wallets import LagoCustomer, LagoWallet

METRICS = ("a", "b", "c")
FEE = "subscription"
KEYS = (*map(usage_key, METRICS), FEE)


def scope(*metrics: str) -> frozenset[str]:
    return frozenset(map(usage_key, metrics))


def balance(amount: int, *metrics: str) -> ScopedBalance:
    """A wallet; without metrics it pays everything."""
    return ScopedBalance(Decimal(amount), scope(*metrics) if metrics else None)


def claims(prices: Mapping[str, int] | None = None, credit: int = 0, fee: int = 0, **used: int) -> Claims:
    owed = [Owed.on(usage_key(metric), Decimal(cost)) for metric, cost in used.items()]
    return Claims(
        [*owed, Owed.on(FEE, Decimal(fee))],
        {metric: Decimal(price) for metric, price in (prices or {"a": 0, "b": 0}).items()},
        Decimal(credit),
    )


@pytest.mark.parametrize(
    ("wallets", "claimed", "available"),
    [
        ((balance(50), balance(7)), claims(), 57),
        ((balance(50),), claims(a=20, b=5, fee=10), 15),
        ((balance(50),), claims(a=45, fee=10), -5),
        # The wallet of a metric comes first: it leaves the other one alone until it is empty.
        ((balance(100, "a"), balance(10)), claims(a=60), 10),
        ((balance(100, "a"), balance(10)), claims(a=95), 10),
        ((balance(100, "a"), balance(10)), claims(a=105), 5),
        # It comes second: the one for all may have gone to that metric.
        ((balance(10), balance(100, "a")), claims(), 10),
        # Wallets of their own: the smaller one decides, until it is empty.
        ((balance(100, "a"), balance(30, "b")), claims(), 30),
        ((balance(100, "a"), balance(30, "b")), claims(a=90), 10),
        ((balance(100, "a"), balance(30, "b"), balance(5)), claims(), 35),
        # Money that makes every invoice smaller is as good as a wallet for all, if a wallet pays all.
        ((balance(50),), claims(a=20, credit=15), 45),
        # A fee that no wallet pays may use it up first.
        ((balance(50, "a", "b"),), claims(a=20, fee=10, credit=15), 35),
        ((balance(50, "a", "b"),), claims(a=20, fee=10, credit=5), 30),
    ],
)
def test_what_may_be_spent_whatever_metric_is_called(
    wallets: tuple[ScopedBalance, ...], claimed: Claims, available: int
) -> None:
    found = allocate(wallets, claimed, keeps_all=True)

    assert found.available == available
    assert found.served == {"a", "b"}


def test_a_metric_that_no_wallet_pays_for_is_not_served_and_holds_nothing_back() -> None:
    found = allocate([balance(40, "a")], claims(b=7))

    assert found == Allocation(Decimal(40), frozenset({"a"}), {"a": Decimal(40)})


def test_a_metric_whose_wallet_is_nearly_empty_does_not_hold_the_others_back() -> None:
    prices = {"a": 2, "b": 2}

    enough = allocate([balance(1000, "a"), balance(20, "b")], claims(prices))
    short = allocate([balance(1000, "a"), balance(19, "b")], claims(prices))
    small = allocate([balance(30, "a"), balance(3, "b")], claims(prices))
    without_a_unit = allocate([balance(2, "a"), balance(1, "b")], claims(prices))

    assert (enough.available, enough.served) == (20, {"a", "b"})
    assert (short.available, short.served) == (1000, {"a"})
    assert (small.available, small.served) == (3, {"a", "b"})
    assert (without_a_unit.available, without_a_unit.served) == (2, {"a"})


def test_if_all_metrics_have_little_left_all_are_served_until_nothing_is_left() -> None:
    found = allocate([balance(9, "a"), balance(3, "b")], claims({"a": 20, "b": 20}))

    assert (found.available, found.served) == (3, {"a", "b"})


def test_usage_that_cannot_be_paid_any_more_does_not_block_a_metric_with_a_wallet_of_its_own() -> None:
    """The bank has voided money of the wallet for b after it was used."""
    found = allocate([balance(100, "a"), balance(5, "b")], claims({"a": 1, "b": 1}, a=30, b=8))

    assert (found.available, found.served) == (70, {"a"})


def test_an_amount_of_which_the_fee_is_not_known_counts_for_the_scarcest() -> None:
    unknown = Owed.on_any(scope("a", "b"), Decimal(4))
    claimed = Claims([unknown], {"a": Decimal(0), "b": Decimal(0)})

    assert allocate([balance(100, "a"), balance(30, "b")], claimed).available == 26


def test_a_price_that_may_fall_leaves_no_more_for_others_than_their_wallets_have() -> None:
    """The ledger's pool grows when a volume tier makes the usage so far cheaper, and the other wallet does not."""
    claimed = Claims(
        [Owed.on(usage_key("a"), Decimal(50))], {"a": Decimal(0), "b": Decimal(0)}, falls={"a": Decimal(20)}
    )

    assert allocate([balance(100, "a"), balance(30, "b")], claimed).available == 10
    assert allocate([balance(100)], claimed).available == 50


# Random lives


@dataclass
class Life:
    """An account: what the ledger lets through, and what Lago is then asked to pay. Money in coins."""

    customer: LagoCustomer
    prices: Mapping[str, tuple[int, int, int]]
    fee: int
    units: dict[str, int] = field(default_factory=lambda: dict.fromkeys(METRICS, 0))
    closed: list[dict[str, Fraction]] = field(default_factory=list)
    funds: Decimal = Decimal(0)
    unsettled: Fraction = Fraction(0)
    served: frozenset[str] = frozenset()

    def cost(self, metric: str, units: int) -> int:
        """Volume: a unit costs less, for all of them, from some count on."""
        dear, count, cheap = self.prices[metric]
        return units * (dear if units < count else cheap)

    def fall(self, metric: str) -> int:
        count = self.prices[metric][1]
        now = self.cost(metric, self.units[metric])
        return max(0, now - self.cost(metric, max(count, self.units[metric])))

    def fees(self) -> dict[str, Fraction]:
        used = {usage_key(metric): Fraction(self.cost(metric, units)) for metric, units in self.units.items()}
        return {**used, FEE: Fraction(self.fee)}

    def read(self) -> None:
        """Read the account from Lago and load it."""
        wallets = [ScopedBalance(_decimal(each.balance), each.scope) for each in self.customer.wallets]
        owed = [Owed.on(key, _decimal(amount)) for fees in (*self.closed, self.fees()) for key, amount in fees.items()]
        prices = {metric: Decimal(min(dear, cheap)) for metric, (dear, _, cheap) in self.prices.items()}
        falls = {metric: Decimal(self.fall(metric)) for metric in METRICS}
        credit = _decimal(sum(self.customer.credits, Fraction(0)))
        found = allocate(wallets, Claims(owed, prices, credit, falls))
        self.unsettled = sum((sum(fees.values(), Fraction(0)) for fees in self.closed), Fraction(0))
        spent = sum((self.cost(metric, units) for metric, units in self.units.items()), 0)
        self.funds = found.available + _decimal(self.unsettled) + spent
        self.served = found.served

    def call(self, metric: str, units: int) -> bool:
        """The ledger's rule: what is spent with this call fits into the funds, at the dearest count on the way."""
        if metric not in self.served:
            return False
        others = sum((self.cost(each, count) for each, count in self.units.items() if each != metric), 0)
        settled = self.units[metric]
        worst = max(self.cost(metric, count) for count in range(settled, settled + units + 1))
        if others + worst > self.funds - _decimal(self.unsettled):
            return False
        self.units[metric] += units
        return True

    def close(self) -> None:
        """The period ends, and the account is read."""
        self.closed.append(self.fees())
        self.units = dict.fromkeys(METRICS, 0)
        self.read()


def _decimal(amount: Fraction) -> Decimal:
    """Rounded down."""
    return Decimal(amount.numerator * 10**12 // amount.denominator).scaleb(-12)


def run(life: Life, steps: Sequence[Any], data: st.DataObject) -> None:
    """Live through the steps. Each invoice that is due must leave no usage unpaid."""

    def bill() -> None:
        for fees in life.closed:
            left = life.customer.pay(fees, lambda keys: data.draw(st.permutations(keys)))
            assert {key: amount for key, amount in left.items() if key != FEE} == {}
        life.closed = []

    life.read()
    for name, *arguments in steps:
        match name:
            case "call":
                life.call(*arguments)
            case "rush":
                while life.call(*arguments):
                    pass
            case "read":
                life.read()
            case "close":
                life.close()
            case "bill":
                bill()
            case "top up" if life.customer.wallets:
                life.customer.wallets[arguments[0] % len(life.customer.wallets)].balance += arguments[1]
    life.close()
    bill()


SCOPES = st.one_of(st.none(), st.sets(st.sampled_from(KEYS), min_size=1).map(frozenset))
BALANCES = st.integers(0, 120).map(Fraction)
WALLETS = st.lists(st.builds(LagoWallet, BALANCES, SCOPES), max_size=5)
CREDITS = st.lists(st.integers(1, 40).map(Fraction), max_size=2)
PRICES = st.tuples(st.integers(1, 9), st.integers(2, 30), st.integers(1, 9))
STEPS = st.one_of(
    st.tuples(st.just("call"), st.sampled_from(METRICS), st.integers(1, 12)),
    st.tuples(st.just("rush"), st.sampled_from(METRICS), st.integers(1, 3)),
    st.just(("read",)),
    st.just(("close",)),
    st.just(("bill",)),
    st.tuples(st.just("top up"), st.integers(0, 4), st.integers(1, 60)),
)
CHEAPER = st.lists(
    st.tuples(st.integers(1, 6), st.booleans(), st.integers(1, 6)).map(
        lambda drawn: [("call", "a", drawn[0]), *([("read",)] * drawn[1]), ("call", "a", drawn[2]), ("rush", "b", 1)]
    ),
    min_size=1,
    max_size=3,
).map(lambda blocks: [step for block in blocks for step in block])


@settings(max_examples=600)
@given(
    wallets=WALLETS,
    credits=CREDITS,
    prices=st.tuples(PRICES, PRICES, PRICES),
    fee=st.sampled_from((0, 0, 7, 50)),
    steps=st.lists(STEPS, min_size=6, max_size=30),
    data=st.data(),
)
def test_wallets_pay_for_every_call_that_was_served(
    wallets: list[LagoWallet], credits: list[Fraction], prices: Any, fee: int, steps: list[Any], data: st.DataObject
) -> None:
    run(Life(LagoCustomer(wallets, credits), dict(zip(METRICS, prices, strict=True)), fee), steps, data)


@settings(max_examples=400)
@given(
    balances=st.tuples(BALANCES, BALANCES, st.integers(0, 20).map(Fraction)),
    is_first=st.booleans(),
    falls_at=st.integers(4, 12),
    steps=CHEAPER,
    data=st.data(),
)
def test_a_metric_that_becomes_cheaper_leaves_no_more_for_others_than_their_wallets_have(
    balances: tuple[Fraction, Fraction, Fraction], is_first: bool, falls_at: int, steps: list[Any], data: st.DataObject
) -> None:
    """Wallets of their own for a and b, and one for everything; units of a cost a tenth from some count on."""
    own, others, everything = balances
    scoped = [LagoWallet(own, scope("a")), LagoWallet(others, scope("b"))]
    wallets = [LagoWallet(everything, None), *scoped] if is_first else [*scoped, LagoWallet(everything, None)]
    run(Life(LagoCustomer(wallets, []), {"a": (10, falls_at, 1), "b": (1, 99, 1), "c": (1, 99, 1)}, 0), steps, data)


@settings(max_examples=200)
@given(credits=CREDITS, prices=st.tuples(PRICES, PRICES, PRICES), steps=st.lists(STEPS, min_size=3), data=st.data())
def test_without_a_wallet_credits_pay_for_every_call_that_was_served(
    credits: list[Fraction], prices: Any, steps: list[Any], data: st.DataObject
) -> None:
    run(Life(LagoCustomer([], credits), dict(zip(METRICS, prices, strict=True)), 0), steps, data)


@given(
    st.lists(st.integers(0, 200), min_size=1, max_size=4), st.integers(0, 300), st.integers(0, 300), st.integers(0, 50)
)
def test_wallets_without_a_scope_are_one_sum(balances: list[int], used: int, other: int, fee: int) -> None:
    found = allocate([balance(each) for each in balances], claims(a=used, b=other, fee=fee))

    assert found.available == sum(balances) - used - other - fee
    assert found.served == {"a", "b"}


@given(st.lists(st.tuples(st.integers(0, 99), SCOPES), min_size=1, max_size=4), st.integers(0, 60), st.integers(0, 60))
def test_one_wallet_more_at_the_end_never_leaves_less(
    wallets: list[tuple[int, frozenset[str] | None]], used: int, other: int
) -> None:
    scoped = [ScopedBalance(Decimal(amount), keys) for amount, keys in wallets]
    rooms = [allocate(scoped[:count], claims(a=used, b=other)).rooms for count in (len(scoped) - 1, len(scoped))]

    assert all(rooms[1][metric] >= room for metric, room in rooms[0].items())
