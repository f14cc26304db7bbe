"""Random lives of prepaid accounts with scoped wallets, from Lago's answers to its invoices: nothing stays due."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.billing.lago.models import Charge, Fee, Invoice, Plan, Wallet
from sidecar.ledger.accounts.account_state import Usage
from tests.unit.billing.lago_wallets import LagoCustomer, LagoWallet
from tests.unit.billing.scenario import AUGUST, DAY_MS, Scenario, invoice, plan, standard, subscription, wallet
from tests.unit.billing.scenario import with_subscription as changed

METRICS = ("a", "b", "c")
PERIOD_MS = 30 * DAY_MS


def tiers(model: str, first: str, up_to: int, then: str, flat: str) -> Any:
    rows = [
        {"from_value": 0, "to_value": up_to, "per_unit_amount": first, "flat_amount": "0"},
        {"from_value": up_to + 1, "to_value": None, "per_unit_amount": then, "flat_amount": flat},
    ]
    return model, {f"{model}_ranges": rows}


AMOUNTS = st.sampled_from(("0.01", "0.10", "0.333", "0.5", "0.0049", "1.20", "2"))
MODELS = st.one_of(
    AMOUNTS.map(lambda amount: ("standard", {"amount": amount})),
    st.builds(tiers, st.just("graduated"), AMOUNTS, st.integers(1, 30), AMOUNTS, st.sampled_from(("0", "0.25"))),
    st.builds(tiers, st.just("volume"), AMOUNTS, st.integers(1, 30), AMOUNTS, st.just("0")),
    st.builds(
        lambda amount, size: ("package", {"amount": amount, "package_size": size, "free_units": 0}),
        AMOUNTS, st.integers(1, 5),
    ),
)  # fmt: skip


@dataclass
class Life:
    """``wallets`` in Lago's order, balances in cents. ``due``: periods that are over, with their fees in cents."""

    models: Sequence[tuple[str, dict[str, Any]]]
    wallets: list[LagoWallet]
    fee_cents: int
    scenario: Scenario = field(default_factory=Scenario)
    due: list[tuple[int, dict[str, Fraction], dict[str, int]]] = field(default_factory=list)
    invoices: list[Invoice] = field(default_factory=list)
    start_ms: int = AUGUST

    def plan(self) -> Plan:
        charges = [
            replace(standard(metric=metric), model=model, properties=properties)
            for metric, (model, properties) in zip(METRICS, self.models, strict=True)
        ]
        return plan(*charges, amount_cents=self.fee_cents)

    def lago_wallets(self) -> tuple[Wallet, ...]:
        found = []
        for number, each in enumerate(self.wallets):
            euros = str(Decimal(int(each.balance)).scaleb(-2))
            keys = each.scope or ()
            metrics = tuple(key.partition(":")[2] for key in sorted(keys) if ":" in key)
            kinds = tuple(key for key in sorted(keys) if ":" not in key)
            found.append(wallet(euros, f"w{number}", priority=number + 1, metric_codes=metrics, fee_types=kinds))
        return tuple(found)

    def read(self) -> None:
        self.scenario.now_ms += 1000
        current = subscription(self.plan(), period_start_ms=self.start_ms, period_end_ms=self.start_ms + PERIOD_MS)
        self.scenario.lago(
            subscriptions=(current,), wallets=self.lago_wallets(), invoices=tuple(reversed(self.invoices))
        )
        desired = self.scenario.load()
        assert [each for each in desired.alerts if each.kind == "raise"] == []

    def call(self, metric: str, units: int) -> bool:
        """The ledger's rule: it holds the units at the dearest count on the way, then settles them."""
        state = self.scenario.state
        if metric not in state.prices:
            return False
        usages = {each.metric: each for each in state.usages}
        one = usages.get(metric, Usage(metric, 0, 0))
        held = changed(state, usages=tuple((usages | {metric: replace(one, held=units)}).values()))
        if (held.available() or 0) < 0:
            return False
        self.scenario.use(units, metric)
        return True

    def fees(self) -> tuple[dict[str, Fraction], dict[str, int]]:
        """What Lago rounds each fee to, and the units."""
        state = self.scenario.state
        fees, units = {"subscription": Fraction(self.fee_cents)}, {}
        for each in state.usages:
            cents = state.money(state.cost_of(each)).scaleb(2)
            fees[f"charge:{each.metric}"] = Fraction(int(cents.quantize(Decimal(1), ROUND_HALF_UP)))
            units[each.metric] = each.settled
        return fees, units

    def close(self) -> None:
        """The period ends, and the account is read in the next."""
        self.due.append((self.start_ms, *self.fees()))
        self.start_ms += PERIOD_MS
        self.scenario.now_ms = self.start_ms + 3 * 3_600_000
        self.read()

    def bill(self, data: st.DataObject) -> None:
        for start_ms, fees, units in self.due:
            customer = LagoCustomer(self.wallets, [])
            left = customer.pay(fees, lambda keys: data.draw(st.permutations(keys)))
            assert {key: amount for key, amount in left.items() if key != "subscription"} == {}
            lines = tuple(
                Fee(f"f-{key}", key.partition(":")[0], key.partition(":")[2] or None, "sub-1",
                    Decimal(units.get(key.partition(":")[2], 1)), int(cents), 0)
                for key, cents in fees.items()
            )  # fmt: skip
            total = int(sum(fees.values(), Fraction(0)))
            paid = total - int(sum(left.values(), Fraction(0)))
            self.invoices.append(
                invoice(start=start_ms, end=start_ms + PERIOD_MS, lago_id=f"i{start_ms}", cents=total, fees=lines,
                        prepaid_cents=paid)
            )  # fmt: skip
        self.due = []


KEYS = (*(f"charge:{metric}" for metric in METRICS), "subscription", "charge")
WALLETS = st.lists(
    st.builds(
        LagoWallet,
        st.integers(0, 3000).map(Fraction),
        st.one_of(st.none(), st.sets(st.sampled_from(KEYS[:4]), min_size=1).map(frozenset)),
    ),
    min_size=1,
    max_size=4,
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.sampled_from(METRICS), st.integers(1, 40)),
        st.tuples(st.just("rush"), st.sampled_from(METRICS), st.integers(1, 12)),
        st.sampled_from((("read",), ("close",), ("bill",))),
        st.tuples(st.just("top up"), st.integers(0, 3), st.integers(1, 900)),
    ),
    min_size=4,
    max_size=20,
)
RUSH_MAX = 60


@settings(max_examples=250)
@given(
    models=st.tuples(MODELS, MODELS, MODELS),
    wallets=WALLETS,
    fee=st.sampled_from((0, 0, 500)),
    steps=STEPS,
    data=st.data(),
)
def test_lago_s_wallets_pay_for_all_that_the_ledger_served(
    models: Any, wallets: list[LagoWallet], fee: int, steps: list[Any], data: st.DataObject
) -> None:
    life = Life(models, wallets, fee)
    life.scenario.now_ms = AUGUST + 3 * 3_600_000
    life.read()
    for name, *arguments in steps:
        match name:
            case "call":
                life.call(*arguments)
            case "rush":
                for _ in range(RUSH_MAX):
                    if not life.call(*arguments):
                        break
            case "read":
                life.read()
            case "close":
                life.close()
            case "bill":
                life.bill(data)
            case "top up":
                wallets[arguments[0] % len(wallets)].balance += arguments[1]
    life.close()
    life.bill(data)


def test_the_charges_of_these_lives_are_ones_that_can_be_enforced() -> None:
    charges: tuple[Charge, ...] = Life([("standard", {"amount": "1"})] * 3, [], 0).plan().charges

    assert [each.metric_code for each in charges] == list(METRICS)
