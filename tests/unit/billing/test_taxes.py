"""Which taxes a fee bears, and what it is with them."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.billing.lago.models import Charge, Customer, Plan, Tax
from sidecar.billing.reconcile.taxes import charge_taxes, gross, subscription_taxes

OF_CHARGE, OF_PLAN, OF_CUSTOMER = Tax("charge", Decimal(1)), Tax("plan", Decimal(2)), Tax("customer", Decimal(3))
DEFAULT, OTHER = Tax("default", Decimal(4), is_default=True), Tax("other", Decimal(5))


def taxes_of(charge: tuple[Tax, ...], plan: tuple[Tax, ...], customer: tuple[Tax, ...] | None) -> list[tuple[Tax, ...]]:
    """On usage, and on the plan's fee."""
    a_charge = Charge("ch", "api_calls", "standard", {"amount": "1"}, taxes=charge)
    a_plan = Plan("p", "pro", "Pro", "monthly", 0, "EUR", False, (a_charge,), taxes=plan)
    a_customer = Customer("c", "tpp-1", "EUR", "UTC", taxes=customer)
    return [
        charge_taxes(a_charge, a_plan, a_customer, (DEFAULT, OTHER)),
        subscription_taxes(a_plan, a_customer, (DEFAULT, OTHER)),
    ]


@pytest.mark.parametrize(
    ("charge", "plan", "customer", "on_usage", "on_fee"),
    [
        ((OF_CHARGE,), (OF_PLAN,), (OF_CUSTOMER,), OF_CHARGE, OF_PLAN),
        ((), (OF_PLAN,), (OF_CUSTOMER,), OF_PLAN, OF_PLAN),
        ((), (), (OF_CUSTOMER,), OF_CUSTOMER, OF_CUSTOMER),
        ((OF_CHARGE,), (), (OF_CUSTOMER,), OF_CHARGE, OF_CUSTOMER),
        ((), (), (), DEFAULT, DEFAULT),
    ],
)
def test_the_closest_taxes_are_taken_and_no_others(
    charge: tuple[Tax, ...], plan: tuple[Tax, ...], customer: tuple[Tax, ...], on_usage: Tax, on_fee: Tax
) -> None:
    assert taxes_of(charge, plan, customer) == [(on_usage,), (on_fee,)]


def test_a_tax_of_nothing_exempts() -> None:
    exempt = Tax("exempt", Decimal(0))
    assert taxes_of((), (), (exempt,)) == [(exempt,), (exempt,)]


def test_taxes_that_have_not_been_read_are_not_taken_for_none() -> None:
    with pytest.raises(ValueError, match="customer tpp-1: its taxes have not been read"):
        taxes_of((), (), None)
    assert taxes_of((OF_CHARGE,), (OF_PLAN,), None) == [(OF_CHARGE,), (OF_PLAN,)]


def test_rates_are_added_up_and_not_put_on_top_of_each_other() -> None:
    assert gross(Decimal("100"), (Tax("a", Decimal(10)), Tax("b", Decimal("8.875")))) == Decimal("118.875")


def test_without_taxes_nothing_changes() -> None:
    assert gross(Decimal("0.00012"), ()) == Decimal("0.00012")


@given(
    st.decimals(min_value=0, max_value=10**15, places=15),
    st.lists(st.decimals(min_value=0, max_value=100, places=5), max_size=5),
)
def test_no_digit_is_lost(net: Decimal, rates: list[Decimal]) -> None:
    taxes = [Tax(f"t{i}", rate) for i, rate in enumerate(rates)]
    assert Fraction(gross(net, taxes)) == Fraction(net) * (1 + sum(map(Fraction, rates), Fraction(0)) / 100)


@pytest.mark.parametrize(
    ("entity", "tax", "applies"),
    [
        ("bank", Tax("de19", Decimal(19), False, ("second",)), False),
        ("second", Tax("de19", Decimal(19), False, ("second",)), True),
        ("second", Tax("vat", Decimal(20), True, ("bank",)), False),
        ("bank", Tax("vat", Decimal(20), True, ("bank", "second")), True),
        ("bank", Tax("vat", Decimal(20), True), True),
        ("bank", Tax("vat", Decimal(20)), False),
        (None, Tax("vat", Decimal(20), True, ("bank",)), True),
    ],
)
def test_a_customer_without_taxes_bears_those_of_its_billing_entity(
    entity: str | None, tax: Tax, applies: bool
) -> None:
    plan = Plan("p", "p", "p", "monthly", 0, "EUR", False, ())
    customer = Customer("c", "c", "EUR", "UTC", taxes=(), billing_entity=entity)

    assert subscription_taxes(plan, customer, (tax,)) == ((tax,) if applies else ())
