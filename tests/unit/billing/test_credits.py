"""Coupons and credit notes as money: what is certain."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from sidecar.billing.lago.errors import LagoError, LagoRejected, LagoUnauthorized, LagoUnavailable
from sidecar.billing.lago.models import AppliedCoupon, Charge, Coupon, CreditNote, FixedCharge
from sidecar.billing.reconcile.credit_reading import NO_CREDITS, CreditReader, Credits
from tests.unit.billing.scenario import DAY_MS, SEPTEMBER, Scenario, customer, plan, standard, subscription, wallet

COUPON = AppliedCoupon("ac1", "c1", "start", "tpp-1", "active", "once", "EUR", 500)
NOTE = CreditNote("cn1", "tpp-1", "EUR", "available", 250)


def available(credits: Credits, **changes: Any) -> Decimal | None:
    scenario = Scenario().lago(wallets=(wallet("10"),), credits=credits, **changes)
    scenario.load()
    return scenario.available


@pytest.mark.parametrize(
    ("credits", "expected"),
    [
        (Credits((COUPON,), (NOTE,)), "17.50"),
        (Credits((replace(COUPON, remaining_cents=120),)), "11.20"),
        (Credits((replace(COUPON, remaining_cents=None),)), "10"),
        (Credits((replace(COUPON, frequency="recurring"),)), "10"),
        (Credits((replace(COUPON, frequency="forever"),)), "10"),
        (Credits((replace(COUPON, currency="USD"),)), "10"),
        (Credits((replace(COUPON, status="terminated"),)), "10"),
        (Credits((replace(COUPON, expires_at_ms=SEPTEMBER + DAY_MS),)), "10"),
        (Credits((replace(COUPON, expires_at_ms=SEPTEMBER + DAY_MS + 1),)), "15"),
        (Credits(notes=(replace(NOTE, credit_status="voided"),)), "10"),
        (Credits(notes=(replace(NOTE, credit_status="consumed"),)), "10"),
        (Credits(notes=(replace(NOTE, currency="USD"),)), "10"),
    ],
)
def test_what_counts(credits: Credits, expected: str) -> None:
    assert available(credits) == Decimal(expected)


@pytest.mark.parametrize(
    "of",
    [
        plan(standard(), replace(standard(metric="reports"), pay_in_advance=True)),
        plan(amount_cents=100, pay_in_advance=True),
        plan(fixed_charges=(FixedCharge("f1", "f", "standard", {"amount": "1"}, Decimal(1), pay_in_advance=True),)),
    ],
    ids=("a charge that is refused", "a fee in advance", "a fixed charge in advance"),
)
def test_nothing_counts_where_an_invoice_asks_for_what_is_not_known_before(of: Any) -> None:
    scenario = Scenario().lago(subscriptions=(subscription(of),), wallets=(wallet("10"),))
    scenario.load()
    without = scenario.available

    scenario.lago(credits=Credits((COUPON,), (NOTE,))).load()

    assert scenario.available == without


def test_only_prepaid_accounts_have_credits() -> None:
    assert available(Credits((COUPON,)), customer=customer(quota_mode="postpaid", quota_credit_limit="3")) == 13


def test_an_account_without_a_wallet_can_be_paid_by_a_credit_note() -> None:
    scenario = Scenario().lago(customer=customer(quota_mode="prepaid"), wallets=(), credits=Credits(notes=(NOTE,)))
    scenario.load()
    scenario.use(10)
    scenario.load()

    assert scenario.available == Decimal("1.50")


def test_a_fee_that_no_wallet_pays_uses_a_coupon_up_first() -> None:
    of, for_calls = plan(amount_cents=300), wallet("10", fee_types=("charge",))
    scenario = Scenario().lago(subscriptions=(subscription(of),), wallets=(for_calls,))
    scenario.load()
    without = scenario.available

    scenario.lago(credits=Credits((COUPON,))).load()

    assert (without, scenario.available) == (10, 12)


def test_a_metric_without_a_wallet_is_not_served_for_a_coupon() -> None:
    charges: tuple[Charge, ...] = (standard(), standard(metric="reports"))
    scenario = Scenario().lago(
        subscriptions=(subscription(plan(*charges)),),
        wallets=(wallet("10", metric_codes=("api_calls",)),),
        credits=Credits((COUPON,)),
    )
    desired = scenario.load()

    assert desired.spec is not None
    assert set(desired.spec.prices) == {"api_calls"}
    assert scenario.available == 15


def test_a_coupon_that_is_used_up_is_no_unexplained_rise_and_its_end_is_seen() -> None:
    scenario = Scenario().lago(wallets=(wallet("10"),), credits=Credits((COUPON,)))
    scenario.load()
    scenario.lago(credits=NO_CREDITS).load()
    assert scenario.available == 10

    desired = scenario.lago(credits=Credits((COUPON,))).load()

    assert scenario.available == 15
    assert desired.alerts == ()
    assert desired.figures is not None
    assert desired.figures.credit == 5


# Reading them


class Lists:
    """``limits`` by code of the coupon; a code that is not there was deleted."""

    def __init__(self, limits: dict[str, bool], error: LagoError | None = None) -> None:
        self.limits = limits
        self.error = error
        self.asked: list[str] = []

    async def applied_coupons(self, customer: str) -> tuple[AppliedCoupon, ...]:
        self.asked.append("coupons")
        if self.error is not None:
            raise self.error
        return COUPON, replace(COUPON, lago_id="ac2", coupon_id="c2", coupon_code="percent", remaining_cents=None)

    async def coupon(self, code: str) -> Coupon | None:
        self.asked.append(code)
        return Coupon("c1", code, self.limits[code]) if code in self.limits else None

    async def credit_notes(self, customer: str) -> tuple[CreditNote, ...]:
        return (NOTE,)


async def test_the_limits_of_a_coupon_are_asked_for_once_and_only_of_one_that_could_count() -> None:
    lists = Lists({"start": False})
    reader = CreditReader(lists)

    first, second = await reader.read("tpp-1"), await reader.read("tpp-1")

    assert first == second == Credits((COUPON,), (NOTE,))
    assert lists.asked == ["coupons", "start", "coupons"]


@pytest.mark.parametrize("limits", [{"start": True}, {}], ids=("limited", "deleted"))
async def test_a_coupon_that_is_limited_or_whose_limits_cannot_be_known_is_left_out(limits: dict[str, bool]) -> None:
    assert (await CreditReader(Lists(limits)).read("tpp-1")).coupons == ()


@pytest.mark.parametrize("error", [LagoRejected("404", status=404), LagoUnauthorized("403", status=403)])
async def test_a_lago_that_refuses_has_none(error: LagoError) -> None:
    assert await CreditReader(Lists({}, error)).read("tpp-1") == NO_CREDITS


async def test_a_lago_that_fails_for_now_is_asked_again_later() -> None:
    with pytest.raises(LagoUnavailable):
        await CreditReader(Lists({}, LagoUnavailable("502"))).read("tpp-1")


async def test_who_has_none_by_the_last_sweep_is_not_asked_for() -> None:
    lists = Lists({"start": False})
    reader = CreditReader(lists)
    reader.accounts = frozenset({"tpp-2"})

    assert await reader.read("tpp-1") == NO_CREDITS
    assert lists.asked == []
    assert (await reader.read("tpp-2")).notes == (NOTE,)
