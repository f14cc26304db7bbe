"""What is to be done about customers, subscriptions and wallets; above all what is not done twice."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from sidecar.billing.catalog.changes import Change, Observed
from sidecar.billing.catalog.values import Catalog
from sidecar.billing.lago.models import Customer, Subscription, Wallet
from tests.unit.billing.catalog.kit import FILE, NOW_MS, catalog, changes, observed, plan, subscription, wallet

CUSTOMER = Customer("c1", "tpp-1", "USD", "UTC")
WALLET = "wallet tpp-1/main"
DAY_MS = 86_400_000


@pytest.fixture
def wanted(tmp_path: Path) -> Catalog:
    return catalog(tmp_path)


def fields(change: Change) -> dict[str, tuple[str | None, str | None]]:
    return {each.name: (each.before, each.after) for each in change.fields}


def of_customer(tmp_path: Path, keys: str, found: Observed) -> Change:
    return changes(catalog(tmp_path, f"customers: [{{id: tpp-1, {keys}}}]"), found)["customer tpp-1"]


def test_a_customer_is_changed_where_the_file_says_something_else(tmp_path: Path) -> None:
    there = observed(customers={"tpp-1": replace(CUSTOMER, metadata={"quota_mode": "prepaid", "crm": "7"})})
    assert of_customer(tmp_path, "metadata: {quota_mode: prepaid}", there).action == "keep"
    found = of_customer(tmp_path, "timezone: Europe/London, metadata: {quota_mode: postpaid, quota_rate: '5'}", there)
    assert (found.action, fields(found)) == (
        "update",
        {
            "timezone": ("UTC", "Europe/London"),
            "metadata.quota_mode": ("prepaid", "postpaid"),
            "metadata.quota_rate": (None, "5"),
        },
    )


def test_digests_of_api_keys_are_cut(tmp_path: Path) -> None:
    there = observed(customers={"tpp-1": replace(CUSTOMER, metadata={"quota_api_key": "b" * 64})})
    found = of_customer(tmp_path, f"metadata: {{quota_api_key: {'a' * 64}}}", there)
    assert fields(found) == {"metadata.quota_api_key": ("bbbbbbbb…", "aaaaaaaa…")}


def test_the_currency_of_a_customer_that_is_billed_already_is_refused(tmp_path: Path) -> None:
    there = observed()
    assert of_customer(tmp_path, "currency: EUR", there).action == "refuse"
    assert of_customer(tmp_path, "currency: EUR", replace(there, subscriptions={})).action == "refuse"
    assert of_customer(tmp_path, "currency: EUR", replace(there, subscriptions={}, wallets={})).action == "update"


def test_more_metadata_than_lago_keeps_is_refused(tmp_path: Path) -> None:
    there = observed(customers={"tpp-1": replace(CUSTOMER, metadata={f"k{n}": "v" for n in range(4)})})
    assert of_customer(tmp_path, "metadata: {quota_mode: prepaid}", there).action == "update"
    found = of_customer(tmp_path, "metadata: {quota_mode: prepaid, quota_rate: '1'}", there)
    assert found.action == "refuse"
    assert "6 pairs" in found.notes[0]


def of_subscription(wanted: Catalog, *theirs: Subscription, **more: object) -> Change:
    found = observed(subscriptions={"tpp-1": theirs}, **more)
    return changes(wanted, found)["subscription tpp-1"]


def test_a_subscription_that_has_ended_is_followed_by_a_new_one(wanted: Catalog) -> None:
    assert of_subscription(wanted, subscription(status="terminated")).action == "create"
    assert of_subscription(wanted).action == "create"


def test_a_customer_with_another_subscription_is_not_subscribed_a_second_time(wanted: Catalog) -> None:
    for status in ("active", "pending"):
        found = of_subscription(wanted, subscription(external_id="old", status=status))
        assert (found.action, found.wanted) == ("refuse", None)
        assert "billed twice" in found.notes[0]
        assert "subscription: old" in found.notes[0]


PLANS = {"pro": plan(), "basic": plan(code="basic", amount_cents=500), "max": plan(code="max", amount_cents=20_000)}
YEARLY = plan(code="yearly", interval="yearly", amount_cents=99_000)


def test_an_upgrade_says_that_lago_bills_at_once(wanted: Catalog) -> None:
    found = of_subscription(wanted, subscription(plan_code="basic"), plans=PLANS)
    assert (found.action, fields(found)) == ("update", {"plan": ("basic", "pro")})
    assert found.notes[0].startswith("an upgrade, at once")
    assert "sidecar sync --once --flush tpp-1" in found.notes[0]


def test_a_downgrade_says_that_it_waits_for_the_end_of_the_period(wanted: Catalog) -> None:
    found = of_subscription(wanted, subscription(plan_code="max"), plans=PLANS)
    assert (found.action, found.notes) == (
        "update",
        ("a downgrade: the old plan stays in force until the end of the period",),
    )


def test_fees_are_compared_by_the_year(wanted: Catalog) -> None:
    # 990.00 a year is less than 99.00 a month.
    found = of_subscription(wanted, subscription(plan_code="yearly"), plans={**PLANS, "yearly": YEARLY})
    assert found.notes[0].startswith("an upgrade")


def test_plans_of_the_same_fee_are_an_upgrade(wanted: Catalog) -> None:
    found = of_subscription(wanted, subscription(plan_code="same"), plans={**PLANS, "same": plan(code="same")})
    assert found.notes[0].startswith("an upgrade")


def test_a_downgrade_that_waits_is_not_asked_for_again(wanted: Catalog) -> None:
    active = subscription(plan_code="max", next_plan_code="pro", downgrade_date="2026-07-01")
    found = of_subscription(wanted, subscription(status="pending"), active, plans=PLANS)
    assert found.action == "keep"
    assert found.notes == ("changes from max to pro on 2026-07-01",)


def test_a_subscription_that_is_about_to_change_away_is_pointed_out(wanted: Catalog) -> None:
    found = of_subscription(wanted, subscription(next_plan_code="basic"))
    assert found.action == "keep"
    assert found.notes == ("changes to basic on the next billing day; cancel that in Lago",)


def test_a_subscription_to_a_plan_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    text = "customers: [{id: tpp-1, plan: gone}]"
    found = changes(catalog(tmp_path, text), observed())["subscription tpp-1"]
    assert (found.action, found.notes) == ("refuse", ("there is no plan gone, neither in the file nor in Lago",))


def of_wallet(wanted: Catalog, *theirs: Wallet) -> Change:
    return changes(wanted, observed(wallets={"tpp-1": theirs}))[WALLET]


def test_a_wallet_is_known_by_its_code_or_by_its_name(tmp_path: Path) -> None:
    text = FILE.replace("code: main", "code: main, name: Credits")
    by_name = wallet(code="credits", name="Credits")
    assert changes(catalog(tmp_path, text), observed(wallets={"tpp-1": (by_name,)}))[WALLET].action == "keep"
    other = wallet(code="other", name="Other")
    assert changes(catalog(tmp_path, text), observed(wallets={"tpp-1": (other,)}))[WALLET].action == "create"


def test_credits_that_were_spent_or_bought_since_are_no_difference(wanted: Catalog) -> None:
    spent = wallet(balance_cents=0, credits_balance=Decimal(0), consumed_credits=Decimal(500))
    assert of_wallet(wanted, spent).action == "keep"


def test_a_wallet_that_has_ended_is_not_made_again_with_its_credits(wanted: Catalog) -> None:
    ended = wallet(status="terminated", terminated_at_ms=NOW_MS)
    found = of_wallet(wanted, ended)
    assert (found.action, found.wanted) == ("keep", None)
    assert "given twice" in found.notes[0]
    assert of_wallet(wanted, ended, wallet(lago_id="w2")).notes == ()


@pytest.mark.parametrize("there", [wallet(rate_amount=Decimal(2)), wallet(currency="EUR")])
def test_rate_and_currency_of_a_wallet_are_refused(wanted: Catalog, there: Wallet) -> None:
    found = of_wallet(wanted, there)
    assert (found.action, found.wanted) == ("refuse", None)
    assert "Lago does not change" in found.notes[0]


def test_what_a_wallet_pays_is_changed_in_place(wanted: Catalog) -> None:
    found = of_wallet(wanted, wallet(metric_codes=(), fee_types=("subscription",)))
    assert (found.action, found.lago_id) == ("update", "w1")
    assert fields(found) == {"applies_to": ("fees of type subscription", "api_calls")}


def test_priority_and_expiration_are_compared_only_if_the_file_has_them(tmp_path: Path) -> None:
    there = observed(wallets={"tpp-1": (wallet(priority=7, expires_at_ms=NOW_MS + DAY_MS),)})
    assert changes(catalog(tmp_path), there)[WALLET].action == "keep"
    text = FILE.replace("code: main", "code: main, priority: 1, expiration_at: '2030-12-31T23:59:59Z'")
    found = changes(catalog(tmp_path, text), there)[WALLET]
    assert fields(found) == {
        "priority": ("7", "1"),
        "expiration_at": ("2026-05-29T20:26:40Z", "2030-12-31T23:59:59Z"),
    }


def test_a_wallet_to_be_made_must_not_have_expired_but_one_that_is_there_may_have(tmp_path: Path) -> None:
    text = FILE.replace("code: main", "code: main, expiration_at: '2025-12-31T23:59:59Z'")
    found = changes(catalog(tmp_path, text), observed(wallets={}))[WALLET]
    assert found.action == "refuse"
    assert "has passed" in found.notes[0]
    there = wallet(expires_at_ms=1_767_225_599_000)
    assert changes(catalog(tmp_path, text), observed(wallets={"tpp-1": (there,)}))[WALLET].action == "keep"


def test_a_wallet_that_would_pay_the_plans_fee_too_says_so(tmp_path: Path) -> None:
    text = FILE.replace(", applies_to: [api_calls]", ", paid_credits: '5'")
    notes = changes(catalog(tmp_path, text), observed(wallets={}))[WALLET].notes
    assert "when it is paid" in notes[0]
    assert "99.00 USD" in notes[1]
    assert changes(catalog(tmp_path), observed(wallets={}))[WALLET].notes == ()


def test_a_wallet_for_a_metric_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    text = FILE.replace("applies_to: [api_calls]", "applies_to: [payments]")
    found = changes(catalog(tmp_path, text), observed(wallets={}))[WALLET]
    assert found.notes == ("there is no metric payments, neither in the file nor in Lago",)
