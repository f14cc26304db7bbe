"""From Lago's figures to the ledger's, without either."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from sidecar.billing.lago.models import Tax
from sidecar.billing.reconcile.alerts import BillingRefused
from sidecar.billing.reconcile.desired_state import DesiredState
from sidecar.billing.settings import LagoSettings
from sidecar.ledger.accounts.account_spec import Status
from sidecar.ledger.accounts.account_state import Usage
from sidecar.ledger.accounts.periods import FixedPeriod
from sidecar.ledger.pricing.price_tables import Standard
from tests.unit.billing.scenario import (
    AUGUST,
    DAY_MS,
    JULY,
    NOW,
    SEPTEMBER,
    Scenario,
    customer,
    invoice,
    plan,
    standard,
    subscription,
    usage,
    wallet,
    with_subscription,
)


def kinds(desired: DesiredState) -> list[str]:
    return [alert.kind for alert in desired.alerts]


def in_august(scenario: Scenario | None = None) -> Scenario:
    """A ledger that has had the account since July and has rolled over into August; nothing used in August."""
    scenario = scenario or Scenario()
    now = scenario.now_ms
    scenario.now_ms = JULY + DAY_MS
    actives = tuple(
        replace(each, period_start_ms=JULY, period_end_ms=AUGUST)
        for each in scenario.reading.subscriptions
        if each.is_active
    )
    kept = scenario.reading.subscriptions
    scenario.lago(subscriptions=actives).load()
    scenario.use(100)
    scenario.now_ms = now
    scenario.lago(subscriptions=kept)
    return scenario


# A new account


def test_a_new_account_gets_prices_period_and_the_sum_of_its_wallets() -> None:
    scenario = Scenario().lago(wallets=(wallet("100"), wallet("20.50", "w2"), wallet("9", "w3", status="terminated")))

    desired = scenario.load()

    assert desired.spec is not None
    assert desired.spec.mode == "prepaid"
    assert desired.spec.prices == {"api_calls": Standard(Decimal("0.10"))}
    assert desired.spec.period.at(NOW).start_ms == AUGUST
    assert desired.spec.period.at(NOW).end_ms == SEPTEMBER
    assert scenario.available == Decimal("120.50")
    assert kinds(desired) == []


def test_what_lago_has_counted_already_is_taken_over_by_an_account_that_is_new() -> None:
    scenario = Scenario().lago(usages={"ext-1": usage("30.0", 300)})

    scenario.load()

    assert scenario.state.usages == (Usage("api_calls", 30, 0),)
    assert scenario.available == Decimal("97.00")


def test_a_customer_whom_lago_does_not_know_is_not_loaded() -> None:
    desired = Scenario().lago(customer=None, subscriptions=(), wallets=()).desired()

    assert desired.spec is None
    assert "does not know" in desired.why


def test_a_customer_without_a_subscription_is_not_loaded() -> None:
    desired = Scenario().lago(subscriptions=()).desired()

    assert (desired.spec, desired.period_ends) == (None, ())
    assert "no active subscription" in desired.why


# Wallets


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"currency": "USD"}, "currency is USD"),
        ({"expires_at_ms": NOW - 1}, "expired"),
        ({"metric_codes": ("payments",)}, "does not pay for api_calls"),
        ({"fee_types": ("subscription",)}, "does not pay for api_calls"),
    ],
)
def test_a_wallet_that_would_not_pay_is_not_counted_and_said(options: dict[str, object], why: str) -> None:
    scenario = Scenario().lago(wallets=(wallet("5"), wallet("100", "w2", **options)))

    desired = scenario.load()

    assert scenario.available == Decimal("5")
    assert kinds(desired) == ["wallet"]
    assert why in desired.alerts[0].message


@pytest.mark.parametrize(
    "options", [{"fee_types": ("charge",)}, {"metric_codes": ("api_calls", "other")}, {"expires_at_ms": NOW + 1}]
)
def test_a_wallet_whose_scope_covers_the_account_s_metrics_counts(options: dict[str, object]) -> None:
    scenario = Scenario().lago(wallets=(wallet("100", **options),))

    scenario.load()

    assert scenario.available == Decimal("100")


def test_the_account_is_looked_at_again_when_a_wallet_expires_and_when_the_period_ends() -> None:
    desired = Scenario().lago(wallets=(wallet(expires_at_ms=NOW + 5000),)).desired()

    expiry, end = desired.reload_at_ms
    assert expiry == NOW + 5000
    assert SEPTEMBER <= end < SEPTEMBER + 1_800_000


def test_the_plan_s_own_fee_is_set_aside_where_a_wallet_would_pay_it() -> None:
    pro = plan(amount_cents=3_000)
    unrestricted = Scenario().lago(subscriptions=(subscription(pro),))
    scoped = Scenario().lago(subscriptions=(subscription(pro),), wallets=(wallet("100", fee_types=("charge",)),))
    trial = Scenario().lago(
        subscriptions=(subscription(plan(amount_cents=3_000, trial_days=Decimal(90)), started_at_ms=JULY),)
    )

    for scenario in (unrestricted, scoped, trial):
        scenario.load()

    assert (unrestricted.available, scoped.available, trial.available) == (Decimal(70), Decimal(100), Decimal(100))


def test_the_plan_s_fee_with_its_tax_is_rounded_up_to_the_coin() -> None:
    taxed = replace(customer(), taxes=(Tax("vat", Decimal("7.7")),))
    scenario = Scenario().lago(customer=taxed, subscriptions=(subscription(plan(standard("1"), amount_cents=1_001)),))

    desired = scenario.load()

    assert desired.figures is not None
    assert desired.figures.plan_fee == Decimal("10.79")  # 10.78077


def test_a_trial_waives_the_fee_of_its_own_subscription_alone() -> None:
    trial = subscription(plan(amount_cents=1_000, trial_days=Decimal(90)))
    paid = subscription(
        plan(standard("1", "payments"), code="pay", amount_cents=3_000), "sub-2", external_id="ext-2", started_at_ms=NOW
    )
    scenario = Scenario().lago(subscriptions=(trial, paid))

    scenario.load()

    assert scenario.available == Decimal(70)


def test_parts_of_a_unit_that_lago_has_counted_are_taken_over_as_whole_ones() -> None:
    scenario = Scenario().lago(usages={"ext-1": usage("30.5", 305)})

    scenario.load()

    assert scenario.state.usages == (Usage("api_calls", 31, 0),)


def test_prices_are_those_with_tax_and_a_cent_is_kept_for_its_rounding() -> None:
    taxed = replace(customer(), taxes=(Tax("vat", Decimal(20)),))
    whole = Scenario().lago(customer=taxed)
    parts = Scenario().lago(customer=taxed, subscriptions=(subscription(plan(standard("0.101"))),))

    whole.load()
    desired = parts.load()

    assert desired.spec is not None
    assert desired.spec.prices == {"api_calls": Standard(Decimal("0.1212"))}
    assert (whole.available, parts.available) == (Decimal(100), Decimal("99.99"))


def test_each_further_price_in_parts_of_a_coin_keeps_a_cent_more() -> None:
    tenth, cent = plan(standard("0.001"), standard("0.002", "b")), plan(standard("0.01"), standard("0.002", "b"))
    two, one = (Scenario().lago(subscriptions=(subscription(each),)) for each in (tenth, cent))

    two.load()
    one.load()

    assert (two.available, one.available) == (Decimal("99.99"), Decimal(100))


def test_a_wallet_whose_figures_contradict_each_other_is_an_alert_and_no_failure() -> None:
    desired = Scenario().lago(wallets=(wallet("100", credits_balance=Decimal(7)),)).desired()

    assert kinds(desired) == ["identity"]
    assert "7 credits at 1 are 7 EUR, but its balance is 100" in desired.alerts[0].message


# Modes


def mode(scenario: Scenario) -> str:
    desired = scenario.desired()
    assert desired.spec is not None
    return desired.spec.mode


def test_mode_comes_from_metadata_then_from_the_plan_s_policy_then_from_the_wallets_then_from_the_default() -> None:
    policy = LagoSettings.model_validate(
        {
            "plan_policies": [{"code": "pro", "mode": "overage", "spending_cap": "7"}, {"code": "other"}],
            "default_mode": "postpaid",
        }
    )
    unnamed = plan(code="other", amount_cents=9900)

    assert mode(Scenario(settings=policy).lago(customer=customer(quota_mode="prepaid"), wallets=())) == "prepaid"
    assert mode(Scenario(settings=policy)) == "overage"
    assert mode(Scenario(settings=policy).lago(subscriptions=(subscription(unnamed),))) == "prepaid"
    assert mode(Scenario(settings=policy).lago(subscriptions=(subscription(unnamed),), wallets=())) == "postpaid"


@pytest.mark.parametrize("default", ["prepaid", "overage", "postpaid"])
@pytest.mark.parametrize("fee", [0, 9_900])
def test_without_a_wallet_the_default_mode_counts_whatever_the_plan_costs(default: str, fee: int) -> None:
    settings = LagoSettings.model_validate({"default_mode": default})
    scenario = Scenario(settings=settings).lago(wallets=(), subscriptions=(subscription(plan(amount_cents=fee)),))

    assert mode(scenario) == default


@pytest.mark.parametrize("fee", [0, 9_900])
@pytest.mark.parametrize("is_loaded", [False, True])
def test_an_account_whose_mode_nothing_says_is_refused_and_the_setting_named(fee: int, is_loaded: bool) -> None:
    pro = subscription(plan(amount_cents=fee))
    scenario = Scenario(settings=LagoSettings.model_validate({"default_mode": "overage"}))
    scenario.lago(wallets=(), subscriptions=(pro,))
    if is_loaded:
        scenario.load()
        # Nor does it end a period early.
        upgraded = replace(pro, lago_id="sub-2", started_at_ms=NOW, period_start_ms=NOW)
        scenario.lago(subscriptions=(upgraded,))
    scenario.settings = LagoSettings.model_validate({})

    with pytest.raises(BillingRefused, match=r"lago\.default_mode is not set") as refused:
        scenario.desired()

    assert refused.value.kind == "policy"


@pytest.mark.parametrize("default", [None, "overage", "postpaid"])
@pytest.mark.parametrize("fee", [0, 9_900])
def test_a_customer_whose_wallets_have_ended_stays_prepaid_and_has_nothing_to_spend(
    default: str | None, fee: int
) -> None:
    settings = LagoSettings.model_validate({"default_mode": default})
    scenario = Scenario(settings=settings).lago(subscriptions=(subscription(plan(amount_cents=fee)),))
    scenario.lago(wallets=(wallet("40", fee_types=("charge",)), wallet("9", "w2", fee_types=("charge",))))
    scenario.load()
    ended = tuple(replace(each, status="terminated", terminated_at_ms=NOW) for each in scenario.reading.wallets)

    desired = scenario.lago(wallets=ended).load()

    assert desired.spec is not None
    assert (desired.spec.mode, scenario.available) == ("prepaid", Decimal(0))
    assert kinds(desired) == ["wallet"]
    assert "nothing to spend" in desired.alerts[0].message


def test_ended_wallets_are_no_finding_while_another_one_is_active_or_the_bank_has_said_another_mode() -> None:
    ended = wallet("9", "w2", status="terminated")
    one_left = Scenario().lago(wallets=(wallet(), ended))
    postpaid = Scenario().lago(wallets=(ended,), customer=customer(quota_mode="postpaid"))

    assert (kinds(one_left.desired()), kinds(postpaid.desired())) == ([], [])
    assert mode(postpaid) == "postpaid"


def test_metadata_suspends_limits_and_identifies() -> None:
    digest = "ab" * 32
    metadata = {"quota_status": "suspended", "quota_rate": "5", "quota_burst": "9", "quota_per_day": "1000",
                "quota_overdraft": "2.5", "quota_api_key": digest, "colour": "blue"}  # fmt: skip
    desired = Scenario().lago(customer=customer(**metadata)).desired()

    assert desired.spec is not None
    assert desired.spec.status is Status.SUSPENDED
    assert (desired.spec.limits.per_second, desired.spec.limits.burst, desired.spec.limits.per_day) == (
        Decimal(5),
        9,
        1000,
    )
    assert desired.spec.overdraft == Decimal("2.5")
    assert desired.spec.api_keys == (digest,)


@pytest.mark.parametrize(
    "metadata",
    [
        {"quota_mode": "free"}, {"quota_status": "gone"}, {"quota_overdraft": "-1"}, {"quota_credit_limit": "NaN"},
        {"quota_rate": "0"}, {"quota_burst": "1.5"}, {"quota_api_key": "secret"}, {"quota_speed": "1"},
    ],
)  # fmt: skip
def test_metadata_that_cannot_be_used_is_named_and_never_shows_a_key(metadata: dict[str, str]) -> None:
    (key,) = metadata

    with pytest.raises(BillingRefused, match=f"metadata {key}") as refused:
        Scenario().lago(customer=customer(**metadata)).desired()

    assert "secret" not in str(refused.value)


def test_a_postpaid_account_s_unpaid_invoices_count_against_its_credit_limit() -> None:
    unpaid = invoice(payment_status="failed", due_cents=2_500)
    scenario = Scenario().lago(
        wallets=(),
        invoices=(unpaid, invoice(lago_id="i2")),
        customer=customer(quota_mode="postpaid", quota_credit_limit="100"),
    )

    scenario.load()

    assert scenario.available == Decimal(75)


# Periods that are over


def test_what_a_period_cost_is_owed_until_its_invoice_is_final() -> None:
    scenario = in_august()
    assert scenario.available == Decimal(90)

    for status in ("draft", "pending", "failed"):
        scenario.lago(invoices=(invoice(status),)).load()
        assert scenario.available == Decimal(90)

    desired = scenario.lago(invoices=(invoice("finalized"),), wallets=(wallet("90"),)).load()
    assert scenario.available == Decimal(90)
    assert [status.stage for status in desired.billing_statuses] == ["final"]
    assert desired.forget
    assert kinds(desired) == []


def test_a_final_invoice_that_was_paid_in_cash_frees_what_was_owed() -> None:
    scenario = in_august()
    scenario.load()

    desired = scenario.lago(invoices=(invoice("finalized"),)).load()

    assert scenario.available == Decimal(100)
    assert kinds(desired) == []


def test_usage_that_missed_its_final_invoice_does_not_become_funds_again() -> None:
    scenario = in_august()
    scenario.load()

    desired = scenario.lago(invoices=(invoice(cents=700, units="70"),), wallets=(wallet("93"),)).load()

    assert scenario.available == Decimal(90)
    assert kinds(desired) == ["short"]
    assert kinds(scenario.load()) == ["short"]  # the invoice is not read in detail any more
    assert scenario.available == Decimal(90)


def test_what_rounding_loses_is_no_shortfall() -> None:
    scenario = in_august()

    desired = scenario.lago(invoices=(invoice(cents=999),), wallets=(wallet("90.01"),)).load()

    assert scenario.available == Decimal("90.01")
    assert kinds(desired) == []


def test_usage_that_is_carried_over_counts_by_lago_s_figure_for_the_current_period() -> None:
    scenario = in_august(Scenario(settings=LagoSettings.model_validate({"sync": {"late_usage": "carry"}})))
    short = invoice(cents=700, units="70")

    desired = scenario.lago(invoices=(short,), wallets=(wallet("93"),), usages={"ext-1": usage("30", 300)}).load()

    assert scenario.available == Decimal(90)
    assert kinds(desired) == ["foreign"]


def test_a_debit_that_is_seen_before_its_invoice_counts_twice_rather_than_not_at_all() -> None:
    scenario = in_august()

    scenario.lago(wallets=(wallet("90"),)).load()

    assert scenario.available == Decimal(80)


def test_a_draft_that_is_higher_than_the_ledger_s_figure_counts() -> None:
    scenario = in_august()

    scenario.lago(invoices=(invoice("draft", cents=1_250),)).load()

    assert scenario.available == Decimal("87.50")


def test_an_invoice_of_another_period_or_for_a_start_frees_nothing() -> None:
    scenario = in_august()
    others = (
        invoice(lago_id="i2", start=JULY - 31 * DAY_MS, end=JULY),
        invoice(lago_id="i3", sub="sub-9"),
        invoice(lago_id="i4", reason="subscription_starting"),
    )

    scenario.lago(invoices=others).load()

    assert scenario.available == Decimal(90)


def test_a_voided_invoice_s_period_is_owed_again_until_it_is_billed_again_or_time_has_passed() -> None:
    scenario = in_august()
    scenario.lago(invoices=(invoice(),), wallets=(wallet("90"),)).load()

    # Lago gives the money back to the wallet.
    scenario.lago(invoices=(invoice("voided"),), wallets=(wallet("100"),)).load()
    assert scenario.available == Decimal(90)
    corrected = invoice(lago_id="i2", cents=900)
    again = Scenario(scenario.reading, scenario.state, scenario.saved, scenario.settings, scenario.now_ms)
    again.lago(invoices=(corrected, invoice("voided")), wallets=(wallet("91"),)).load()
    assert again.available == Decimal(91)

    scenario.now_ms += 7 * DAY_MS
    desired = scenario.load()
    assert scenario.available == Decimal(100)
    assert [status.stage for status in desired.billing_statuses] == ["written_off"]


def test_a_period_without_usage_owes_the_plan_s_fee_until_that_is_billed() -> None:
    pro = plan(amount_cents=3_000)
    scenario = Scenario().lago(subscriptions=(subscription(pro),))
    in_august(scenario)
    scenario.state = with_subscription(scenario.state, usages=(Usage("api_calls", 0, 0),))
    scenario.load()
    assert scenario.available == Decimal(40)

    scenario.lago(invoices=(invoice(cents=3000, units="0"),), wallets=(wallet("70"),)).load()
    assert scenario.available == Decimal(40)


def test_a_period_that_is_long_over_and_has_no_invoice_is_an_alert() -> None:
    desired = in_august().load()

    assert "unsettled" in kinds(desired)


def test_a_period_during_which_lago_was_out_of_reach_is_found_by_its_subscription() -> None:
    scenario = in_august()
    scenario.load()
    scenario.use(50)
    scenario.now_ms = SEPTEMBER + 40 * DAY_MS  # both August and September are over
    october = SEPTEMBER + 30 * DAY_MS
    current = subscription(period_start_ms=october, period_end_ms=october + 31 * DAY_MS)
    bills = (invoice(), invoice(lago_id="i2", start=AUGUST, end=SEPTEMBER, cents=500))

    desired = scenario.lago(subscriptions=(current,), invoices=bills, wallets=(wallet("85"),)).load()

    assert scenario.available == Decimal(85)
    assert all(status.is_final for status in desired.billing_statuses if status.period.units)


def test_a_draft_for_a_time_before_the_ledger_is_owed() -> None:
    scenario = Scenario().lago(invoices=(invoice("draft", cents=4_000),))

    scenario.load()

    assert scenario.available == Decimal(60)


# Lago's own figure


def test_usage_that_only_lago_has_is_set_aside_and_said() -> None:
    scenario = Scenario()
    scenario.load()
    scenario.use(10)

    desired = scenario.lago(usages={"ext-1": usage("50", 500)}).load()

    assert scenario.available == Decimal(95)
    assert kinds(desired) == ["foreign"]


def test_usage_that_lago_has_not_yet_counts_by_the_ledger() -> None:
    scenario = Scenario()
    scenario.load()
    scenario.use(10)

    desired = scenario.lago(usages={"ext-1": usage("3", 30)}).load()

    assert scenario.available == Decimal(99)
    assert kinds(desired) == []


# Upgrades, terminations


def test_an_upgrade_ends_the_period_at_hand_and_begins_one_with_the_new_prices() -> None:
    scenario = in_august()
    scenario.lago(invoices=(invoice(),), wallets=(wallet("90"),)).load()
    scenario.use(20)
    new = subscription(
        plan(standard("0.20"), code="max"), "sub-2", started_at_ms=NOW - 3000, period_start_ms=NOW - 3000
    )
    old = subscription(status="terminated", terminated_at_ms=NOW - 3000, period_start_ms=None, period_end_ms=None)
    final = invoice(lago_id="i2", start=AUGUST, end=NOW - 3000, cents=200, reason="subscription_terminating")

    desired = scenario.lago(
        subscriptions=(new, replace(old, plan=None)), invoices=(final, invoice()), wallets=(wallet("88"),)
    ).load()

    assert desired.spec is not None
    start = desired.spec.period.at(scenario.now_ms).start_ms
    assert start % 1000 == 0
    assert NOW < start <= NOW + 1000
    assert desired.spec.prices == {"api_calls": Standard(Decimal("0.20"))}
    assert scenario.available == Decimal(88)
    (link,) = scenario.saved.links_of((start, ""))
    assert (link.subscription_id, link.lago_from_ms, link.lago_to_ms) == ("sub-2", NOW - 3000, SEPTEMBER)
    (before,) = scenario.saved.links_of((AUGUST, ""))
    assert (before.ledger_end_ms, before.is_final, before.is_current) == (start, True, False)
    assert before.lago_to_ms == NOW - 3000


@pytest.mark.parametrize("looked_in_between", [True, False])
def test_what_is_used_before_lago_carries_out_a_downgrade_goes_to_the_new_plan(looked_in_between: bool) -> None:
    # Asked for in July. Lago tells the end of August as its date as soon as August has begun.
    waiting = subscription(
        plan(code="basic"), "sub-2", status="pending", created_at_ms=JULY + DAY_MS, period_start_ms=None,
        period_end_ms=None, plan=None,
    )  # fmt: skip
    current = subscription(next_plan_code="basic", downgrade_date="2026-09-01")
    scenario = Scenario().lago(subscriptions=(current, waiting))
    scenario.now_ms = AUGUST + 300_000
    in_august(scenario)
    scenario.use(3)
    if looked_in_between:
        desired = scenario.load()
        assert scenario.saved.links_of((AUGUST, "")) == ()
        assert scenario.now_ms + 60_000 in desired.reload_at_ms
    ten_past = AUGUST + 600_000
    scenario.now_ms = ten_past + 5_000
    new = subscription(plan(standard("0.05"), code="basic"), "sub-2", started_at_ms=ten_past, period_start_ms=ten_past)
    old = subscription(
        status="terminated", terminated_at_ms=ten_past, plan=None, period_start_ms=None, period_end_ms=None
    )

    desired = scenario.lago(subscriptions=(new, old)).load()

    assert desired.spec is not None
    assert desired.spec.period.at(scenario.now_ms).start_ms == AUGUST
    (link,) = scenario.saved.links_of((AUGUST, ""))
    assert (link.subscription_id, link.lago_from_ms) == ("sub-2", ten_past)
    scenario.now_ms += 60_000
    assert scenario.desired().period_ends == ()
    assert [status.period.start_ms for status in desired.billing_statuses] == [JULY]


def test_a_downgrade_that_is_for_later_changes_nothing_now() -> None:
    waiting = subscription(
        plan(code="basic"), "sub-2", status="pending", created_at_ms=AUGUST + DAY_MS, period_start_ms=None,
        period_end_ms=None, plan=None,
    )  # fmt: skip
    scenario = Scenario().lago(subscriptions=(subscription(next_plan_code="basic"), waiting))

    scenario.load()

    assert [link.subscription_id for link in scenario.saved.links_of((AUGUST, ""))] == ["sub-1"]


def test_a_terminated_subscription_closes_the_account_and_leaves_what_it_owes() -> None:
    scenario = Scenario()
    scenario.load()
    scenario.use(20)
    ended = subscription(status="terminated", terminated_at_ms=NOW, plan=None, period_start_ms=None, period_end_ms=None)

    desired = scenario.lago(subscriptions=(ended,)).desired()
    assert [each.close for each in desired.period_ends] == [True]
    scenario.load()

    assert scenario.state.status is Status.CLOSED
    assert scenario.state.money(scenario.state.unsettled) == Decimal(2)
    final = invoice(start=AUGUST, end=NOW, cents=200)
    scenario.lago(invoices=(final,), wallets=(wallet("98"),)).load()
    assert scenario.state.unsettled == 0


def test_a_customer_who_comes_back_begins_a_new_period() -> None:
    scenario = Scenario()
    scenario.load()
    ended = subscription(status="terminated", terminated_at_ms=NOW, plan=None, period_start_ms=None, period_end_ms=None)
    scenario.lago(subscriptions=(ended,)).load()
    scenario.now_ms += DAY_MS
    back = subscription(lago_id="sub-2", started_at_ms=scenario.now_ms, period_start_ms=scenario.now_ms)

    scenario.lago(subscriptions=(back, ended)).load()

    assert scenario.state.status is Status.ACTIVE
    assert scenario.available == Decimal(100)
    assert scenario.state.period_end_ms == SEPTEMBER


def test_a_customer_whom_lago_has_forgotten_is_closed() -> None:
    scenario = Scenario()
    scenario.load()

    desired = scenario.lago(customer=None, subscriptions=(), wallets=()).load()

    assert scenario.state.status is Status.CLOSED
    assert "missing" in kinds(desired)


def test_a_ledger_that_is_ahead_of_lago_keeps_its_period() -> None:
    scenario = Scenario()
    scenario.load()
    scenario.use(10)
    scenario.now_ms = SEPTEMBER + 2000

    desired = scenario.load()

    assert desired.spec is not None
    assert desired.spec.period == FixedPeriod(SEPTEMBER, SEPTEMBER + 30 * DAY_MS, scenario.state.next_ends_ms)
    assert scenario.available == Decimal(99)


# Two subscriptions, plans that cannot be enforced


def test_two_subscriptions_with_one_period_share_the_account() -> None:
    calls = subscription(plan())
    pays = subscription(plan(standard("1", "payments"), code="pay"), "sub-2", external_id="ext-2")

    desired = Scenario().lago(subscriptions=(calls, pays)).desired()

    assert desired.spec is not None
    assert [(each.name, set(each.prices)) for each in desired.spec.subscriptions] == [
        ("", {"api_calls"}),
        ("ext-2", {"payments"}),
    ]
    assert {link.external_subscription_id: link.metrics for link in desired.reconcile_state.links.values()} == {
        "ext-1": ("api_calls",),
        "ext-2": ("payments",),
    }
    assert kinds(desired) == []


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (subscription(plan(standard("9")), "sub-2", external_id="ext-2", started_at_ms=NOW), "charged by the"),
        (
            subscription(plan(standard("9", "b"), currency="USD"), "sub-2", external_id="ext-2", started_at_ms=NOW),
            "currency is USD",
        ),
    ],
)
def test_a_second_subscription_that_does_not_fit_is_said_and_the_first_stands(second: object, why: str) -> None:
    desired = Scenario().lago(subscriptions=(subscription(), second)).desired()

    assert desired.spec is not None
    assert {metric: table for each in desired.spec.subscriptions for metric, table in each.prices.items()} == {
        "api_calls": Standard(Decimal("0.10"))
    }
    assert [why in alert.message for alert in desired.alerts] == [True]


def test_a_plan_that_cannot_be_enforced_leaves_what_the_ledger_has_in_force() -> None:
    scenario = Scenario()
    scenario.load()
    percentage = replace(standard(), model="percentage", properties={"rate": "1"})

    with pytest.raises(BillingRefused, match="pro"):
        scenario.lago(subscriptions=(subscription(plan(percentage)),)).desired()


def test_a_charge_that_cannot_be_enforced_leaves_the_others() -> None:
    percentage = replace(standard(metric="transfers"), model="percentage", properties={"rate": "1"})

    desired = Scenario().lago(subscriptions=(subscription(plan(standard(), percentage)),)).desired()

    assert desired.spec is not None
    assert set(desired.spec.prices) == {"api_calls"}
    assert kinds(desired) == ["plan"]


def test_an_amount_that_cannot_be_represented_is_refused_by_name() -> None:
    scenario = Scenario()
    scenario.load()
    with pytest.raises(BillingRefused, match="pro"):
        scenario.lago(subscriptions=(subscription(plan(standard("0.0000000000001"))),)).desired()
    with pytest.raises(BillingRefused, match="funds"):
        Scenario().lago(wallets=(wallet("99999999999999"),)).desired()


def test_more_available_without_new_money_or_a_final_invoice_is_an_alert() -> None:
    scenario = in_august()
    scenario.load()
    scenario.saved = replace(scenario.saved, links={}, fees={}, invoiced={})
    scenario.state = replace(scenario.state, closed=())  # as if the records of July had been lost

    desired = scenario.load()

    assert "raise" in kinds(desired)
