"""Credit and rate-limit fields: the short way of the usual answer gives what the general way gives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sidecar.gateway.exchange.credit_fields import granted_fields
from sidecar.ledger.client.outcomes import AccountView, Code, Hold

MONEY = st.integers(0, 2**53 - 1)


def granted(view: AccountView, available: int, price: int) -> Hold:
    hold = Hold("tpp", "api_calls", 1, None, lambda _: None)
    hold.code, hold.view, hold.available, hold.price = Code.GRANTED, view, available, price
    return hold


@given(MONEY, MONEY, st.integers(0, 12), st.booleans(), MONEY)
def test_all_fields_together_are_the_credit_fields_and_then_the_rate_limit_fields(
    available: int, price: int, digits: int, constant: bool, ceiling: int
) -> None:
    view = AccountView(1, digits, "GBP", "prepaid", 0.0, 0, 0, ceiling, constant_prices=constant)
    hold = granted(view, available, price)
    apart = granted_fields(hold, rate_limit=False) + granted_fields(hold, credits=False)
    assert granted_fields(hold) == apart
    assert granted_fields(hold) == apart, "also when the price was seen before"


def test_calls_of_the_credit_are_not_counted_where_the_next_call_may_cost_something_else() -> None:
    tiers = AccountView(1, 2, "GBP", "prepaid", 0.0, 0, 0, 1000, constant_prices=False)
    assert b"RateLimit" not in granted_fields(granted(tiers, 500, 10))
    same = AccountView(1, 2, "GBP", "prepaid", 0.0, 0, 0, 1000)
    assert b'RateLimit: "credit";r=50' in granted_fields(granted(same, 500, 10))
