"""What is set aside beside usage: fees, fixed charges, commitments, drafts, and usage that Lago alone has."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from sidecar.billing.lago.models import Commitment, Fee, FixedCharge, Plan, Tax
from sidecar.billing.reconcile.alerts import BillingRefused
from sidecar.billing.reconcile.reconcile_state import decode_reconcile_state
from tests.unit.billing.scenario import (
    AUGUST,
    DAY_MS,
    JULY,
    SEPTEMBER,
    Scenario,
    customer,
    invoice,
    plan,
    subscription,
    usage,
    wallet,
)
from tests.unit.billing.test_reconcile import in_august, kinds

DECEMBER, JANUARY = SEPTEMBER + 91 * DAY_MS, SEPTEMBER + 122 * DAY_MS
ANNIVERSARY = {"billing_time": "anniversary"}


def fixed(amount: str = "5", units: str = "1", model: str = "standard", **options: Any) -> FixedCharge:
    return FixedCharge("f1", "support", model, {"amount": amount}, Decimal(units), **options)


def tiered(model: str, units: str) -> FixedCharge:
    """Ten at 1, and 2 for having any; then at 0.50, and 1 for having more."""
    ranges = [
        {"from_value": 0, "to_value": 10, "per_unit_amount": "1", "flat_amount": "2"},
        {"from_value": 10, "to_value": None, "per_unit_amount": "0.5", "flat_amount": "1"},
    ]
    return replace(fixed(units=units, model=model), properties={f"{model}_ranges": ranges})


def set_aside(of: Plan, **options: Any) -> Decimal:
    """Of a wallet of 1,000 that pays everything."""
    scenario = Scenario().lago(subscriptions=(subscription(of, **options),), wallets=(wallet("1000"),))
    if "period_end_ms" in options:
        scenario.now_ms = options["period_end_ms"] - DAY_MS
    scenario.load()
    assert scenario.available is not None
    return Decimal(1000) - scenario.available


# The plan's fee


@pytest.mark.parametrize("interval", ["weekly", "monthly", "quarterly", "semiannual", "yearly"])
def test_a_fee_in_arrears_is_billed_at_the_end_of_the_period_and_one_in_advance_has_been_paid(interval: str) -> None:
    assert set_aside(plan(amount_cents=3_000, interval=interval)) == 30
    assert set_aside(plan(amount_cents=3_000, interval=interval, pay_in_advance=True)) == 0


@pytest.mark.parametrize(
    ("interval", "start", "end", "options", "fee"),
    [
        ("yearly", AUGUST, SEPTEMBER, {}, 0),
        ("yearly", DECEMBER, JANUARY, {}, 120),
        ("semiannual", AUGUST, SEPTEMBER, {}, 0),
        ("semiannual", DECEMBER, JANUARY, {}, 120),
        ("semiannual", JULY - 30 * DAY_MS, JULY, {}, 120),
        ("yearly", AUGUST, SEPTEMBER, {**ANNIVERSARY, "subscription_at_ms": SEPTEMBER - 365 * DAY_MS}, 120),
        ("yearly", DECEMBER, JANUARY, {**ANNIVERSARY, "subscription_at_ms": JULY}, 0),
        ("yearly", AUGUST, SEPTEMBER, {"ending_at_ms": SEPTEMBER - DAY_MS}, 120),
    ],
)
def test_a_yearly_fee_with_monthly_charges_is_set_aside_in_its_last_month(
    interval: str, start: int, end: int, options: dict[str, Any], fee: int
) -> None:
    yearly = plan(amount_cents=12_000, interval=interval, bill_charges_monthly=True)
    bounds = {"period_start_ms": start, "period_end_ms": end, "started_at_ms": JULY - 400 * DAY_MS}

    assert set_aside(yearly, **bounds, **options) == fee
    assert set_aside(replace(yearly, pay_in_advance=True), **bounds, **options) == 0


def test_the_month_in_which_a_yearly_fee_falls_due_is_that_of_the_customer_s_time_zone() -> None:
    yearly = plan(amount_cents=12_000, interval="yearly", bill_charges_monthly=True)
    midnight = JANUARY - 9 * 3_600_000  # in Tokyo, where it is still December in UTC
    scenario = Scenario().lago(
        subscriptions=(subscription(yearly, period_start_ms=DECEMBER, period_end_ms=midnight),),
        customer=replace(customer(), timezone="Asia/Tokyo"),
        wallets=(wallet("1000"),),
    )
    scenario.now_ms = DECEMBER + DAY_MS

    scenario.load()

    assert scenario.available == 880


def just_begun(of: Plan) -> Scenario:
    scenario = Scenario().lago(subscriptions=(subscription(of),), wallets=(wallet("100"),))
    scenario.now_ms = AUGUST + 60_000
    return scenario


@pytest.mark.parametrize("status", ["draft", "finalized"])
def test_a_fee_in_advance_is_owed_from_the_period_s_first_second_until_it_is_paid(status: str) -> None:
    scenario = just_begun(plan(amount_cents=3_000, pay_in_advance=True))
    scenario.load()
    assert scenario.available == 70
    fee = Fee("f1", "subscription", None, "sub-1", Decimal(1), 3_000, 0)

    scenario.lago(
        invoices=(invoice(status, cents=3_000, fees=(fee,)),),
        wallets=(wallet("70" if status == "finalized" else "100"),),
    )
    desired = scenario.load()

    assert scenario.available == 70
    assert kinds(desired) == []


def test_a_yearly_fee_in_advance_is_not_due_in_every_month() -> None:
    scenario = just_begun(plan(amount_cents=3_000, pay_in_advance=True, interval="yearly", bill_charges_monthly=True))

    scenario.load()

    assert scenario.available == 100


def test_each_subscription_s_fee_falls_due_by_its_own_plan() -> None:
    one = subscription(plan(amount_cents=1_000))
    two = subscription(plan(code="pay", amount_cents=2_000, pay_in_advance=True), "sub-2", external_id="ext-2")
    scenario = Scenario().lago(subscriptions=(one, two))

    scenario.load()

    assert scenario.available == 90


# Fixed charges


@pytest.mark.parametrize(
    ("charge", "amount"),
    [
        (fixed(), "5"),
        (fixed("2.5", "3"), "7.5"),
        (fixed("2.5", "0.5"), "1.25"),
        (fixed(units="0"), "0"),
        (fixed(pay_in_advance=True), "0"),
        (fixed(taxes=(Tax("vat", Decimal(20)),)), "6"),
        (tiered("graduated", "12"), "14"),
        (tiered("graduated", "10"), "12"),
        (tiered("volume", "12"), "7"),
        (tiered("volume", "10"), "12"),
    ],
)
def test_fixed_charges_are_set_aside(charge: FixedCharge, amount: str) -> None:
    assert set_aside(plan(fixed_charges=(charge,))) == Decimal(amount)


def test_a_fixed_charge_of_a_yearly_plan_is_billed_monthly_only_if_the_plan_says_so() -> None:
    yearly = plan(interval="yearly", bill_charges_monthly=True, fixed_charges=(fixed(),))

    assert set_aside(yearly) == 0
    assert set_aside(replace(yearly, bill_fixed_charges_monthly=True)) == 5


def test_a_fixed_charge_is_not_set_aside_from_wallets_that_do_not_pay_it() -> None:
    scenario = Scenario().lago(
        subscriptions=(subscription(plan(fixed_charges=(fixed(),))),), wallets=(wallet("100", fee_types=("charge",)),)
    )

    scenario.load()

    assert scenario.available == 100


def test_a_fixed_charge_that_cannot_be_computed_is_refused_by_name() -> None:
    with pytest.raises(BillingRefused, match="fixed charge support"):
        set_aside(plan(fixed_charges=(fixed(model="package"),)))


# Minimum commitments


def committed(units: int, *, taxes: tuple[Tax, ...] = (), fee: int = 0) -> Decimal | None:
    """What is left of 100 after so many calls at 0.10, with a commitment of 8."""
    of = plan(amount_cents=fee, commitment=Commitment(800, taxes))
    scenario = Scenario().lago(subscriptions=(subscription(of),))
    scenario.load()
    scenario.use(units)
    desired = scenario.load()
    assert kinds(desired) == []
    return scenario.available


@pytest.mark.parametrize(("units", "left"), [(0, "92"), (30, "92"), (80, "92"), (100, "90")])
def test_a_period_costs_at_least_the_commitment(units: int, left: str) -> None:
    assert committed(units) == Decimal(left)


def test_a_commitment_contains_the_plan_s_fee_and_bears_its_own_taxes() -> None:
    assert committed(0, fee=300) == 92
    assert committed(0, fee=900) == 91
    assert committed(0, taxes=(Tax("vat", Decimal(25)),)) == 90


# Drafts


def test_a_draft_is_owed_as_a_whole() -> None:
    scenario = in_august()
    scenario.load()
    fees = tuple(
        Fee(f"f-{kind}", kind, "api_calls" if kind == "charge" else None, sub, Decimal(1), cents, 0)
        for kind, sub, cents in (
            ("charge", "sub-1", 100), ("subscription", "sub-1", 300), ("commitment", "sub-1", 100),
            ("fixed_charge", "sub-1", 1_100), ("add_on", None, 200),
        )
    )  # fmt: skip

    scenario.lago(invoices=(invoice("draft", cents=1_800, fees=fees),)).load()

    assert scenario.available == 82


def test_a_draft_owes_its_total_where_its_fees_say_less() -> None:
    scenario = in_august()

    scenario.lago(invoices=(invoice("draft", cents=1_000, taxes_cents=250),)).load()

    assert scenario.available == Decimal("87.50")


def test_of_a_draft_only_what_a_wallet_pays_is_owed() -> None:
    scenario = in_august(Scenario().lago(wallets=(wallet("100", fee_types=("charge", "fixed_charge")),)))
    kinds_ = ("charge", "subscription", "fixed_charge")
    fees = tuple(Fee(f"f-{kind}", kind, None, "sub-1", Decimal(1), 1_000, 0) for kind in kinds_)

    scenario.lago(invoices=(invoice("draft", cents=3_000, fees=fees),)).load()

    assert scenario.available == 80


# Usage that only Lago has


def test_usage_that_the_gateway_did_not_meter_stays_subtracted_until_its_invoice_exists() -> None:
    scenario = Scenario()
    scenario.load()
    scenario.use(10)
    scenario.lago(usages={"ext-1": usage("50", 500)}).load()
    assert scenario.available == 95

    september = subscription(period_start_ms=SEPTEMBER, period_end_ms=SEPTEMBER + 30 * DAY_MS)
    scenario.now_ms = SEPTEMBER + 60_000
    scenario.lago(subscriptions=(september,), usages={}).load()
    assert scenario.available == 95
    stored = {name.encode(): value.encode() for name, value in scenario.saved.fields().items()}
    assert decode_reconcile_state(stored) == scenario.saved

    scenario.lago(invoices=(invoice("draft", AUGUST, SEPTEMBER, cents=500),)).load()
    assert scenario.available == 95

    final = invoice("finalized", AUGUST, SEPTEMBER, cents=500)
    desired = scenario.lago(invoices=(final,), wallets=(wallet("95"),)).load()
    assert scenario.available == 95
    assert kinds(desired) == []


def test_usage_that_turns_out_to_be_metered_is_not_kept_back() -> None:
    scenario = Scenario()
    scenario.load()
    scenario.lago(usages={"ext-1": usage("50", 500)}).load()
    scenario.use(50)

    scenario.load()

    assert scenario.available == 95
    assert scenario.saved.foreign == {}


def test_usage_that_lago_cannot_tell_now_stays_set_aside() -> None:
    scenario = Scenario()
    scenario.load()
    scenario.lago(usages={"ext-1": usage("50", 500)}).load()
    assert scenario.available == 95

    scenario.lago(usages={}, unread_usages=frozenset({"ext-1"}), wallets=(wallet("110"),)).load()

    assert scenario.available == 105, "the top-up is seen, the usage is not forgotten"
    scenario.lago(usages={"ext-1": usage("0", 0)}, unread_usages=frozenset()).load()
    assert scenario.available == 110
