"""Accounts whose plans have charges with filters: from Lago's figures to the ledger's."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

from sidecar.billing.lago.models import Charge, ChargeFilter, ChargeUsage, CurrentUsage, Fee, FeeUsage
from sidecar.billing.metric_mapping import BilledMetric
from sidecar.billing.reconcile.reconcile_state import ReconcileState
from sidecar.billing.settings import LagoSettings
from tests.unit.billing.scenario import (
    AUGUST,
    DAY_MS,
    JULY,
    NOW,
    SEPTEMBER,
    Scenario,
    invoice,
    plan,
    standard,
    subscription,
    wallet,
)

ENTRIES = [
    {"metric": "sepa", "code": "payments", "properties": {"scheme": "sepa"}},
    {"metric": "swift", "code": "payments", "properties": {"scheme": "swift"}},
]
SEPA, SWIFT = (("scheme", ("sepa",)),), (("scheme", ("swift",)),)
PAYMENTS = Charge(
    "ch", "payments", "standard", {"amount": "0.10"}, has_filters=True,
    filters=(
        ChargeFilter({"scheme": ("sepa",)}, {"amount": "0.25"}), ChargeFilter({"scheme": ("swift",)}, {"amount": "2"}),
    ),
)  # fmt: skip


def settings(entries: list[dict[str, Any]] | None = None) -> LagoSettings:
    return LagoSettings.model_validate({"billable_metrics": ENTRIES if entries is None else entries})


def scenario(entries: list[dict[str, Any]] | None = None, *charges: Charge) -> Scenario:
    found = Scenario(settings=settings(entries))
    return found.lago(subscriptions=(subscription(plan(*(charges or (PAYMENTS,)))),))


def counted(*fees: FeeUsage, cents: int = 0) -> dict[str, CurrentUsage]:
    total = sum((fee.units for fee in fees), Decimal(0))
    charge = ChargeUsage("payments", "ch", total, cents, 1, fees)
    return {"ext-1": CurrentUsage(AUGUST, SEPTEMBER, cents, 0, cents, (charge,))}


def test_each_metric_of_a_billable_metric_is_served_at_its_price() -> None:
    account = scenario()
    account.load()
    for units, metric in ((4, "sepa"), (3, "swift"), (2, "payments")):
        account.use(units, metric)
    assert account.available == Decimal(100) - 4 * Decimal("0.25") - 3 * 2 - 2 * Decimal("0.10")


def test_without_entries_a_charge_with_filters_serves_the_metric_of_its_code_at_the_charges_own_price() -> None:
    account = scenario([])
    assert account.load().alerts == ()
    account.use(10, "payments")
    assert account.available == Decimal(99)


def test_the_link_of_the_current_period_says_how_its_metrics_are_billed() -> None:
    link = scenario().load().reconcile_state.links[AUGUST, "sub-1"]
    assert link.metrics == ("payments", "sepa", "swift")
    assert link.billed == (
        BilledMetric("sepa", "payments", (("scheme", "sepa"),), SEPA),
        BilledMetric("swift", "payments", (("scheme", "swift"),), SWIFT),
    )


def test_a_new_account_begins_with_what_lago_has_counted_of_each_filter() -> None:
    account = scenario()
    account.lago(
        usages=counted(
            FeeUsage(SEPA, (), Decimal(40)), FeeUsage(SWIFT, (), Decimal(0)), FeeUsage(None, (), Decimal("1.5"))
        )
    )
    assert account.load().counted == {"sepa": 40, "payments": 2}
    assert account.available == Decimal(100) - 10 - Decimal("0.20")


def test_usage_that_no_metric_has_is_set_aside() -> None:
    """Events with a property that no entry has did not pass the gateway."""
    account = scenario()
    account.load()
    account.use(4, "sepa")
    fees = FeeUsage(SEPA, (), Decimal(4)), FeeUsage(SWIFT, (), Decimal(9)), FeeUsage(None, (), Decimal(0))
    account.lago(usages=counted(*fees, cents=1900))
    assert [alert.kind for alert in account.load().alerts] == ["foreign"]
    assert account.available == Decimal(81)


def test_as_many_roundings_are_no_foreign_usage_as_there_are_fees() -> None:
    account = scenario()
    account.load()
    fees = FeeUsage(SEPA, (), Decimal(0)), FeeUsage(SWIFT, (), Decimal(0)), FeeUsage(None, (), Decimal(0))
    account.lago(usages=counted(*fees, cents=4))
    assert account.load().alerts == ()
    account.lago(usages=counted(*fees, cents=5))
    assert [alert.kind for alert in account.load().alerts] == ["foreign"]


def test_a_wallet_pays_by_the_billable_metrics_code() -> None:
    account = scenario().lago(wallets=(wallet("50", metric_codes=("payments",)),))
    assert account.load().alerts == ()
    assert account.available == Decimal(50)


def in_august_after(units: dict[str, int]) -> Scenario:
    account = scenario()
    account.now_ms = JULY + DAY_MS
    july = replace(account.reading.subscriptions[0], period_start_ms=JULY, period_end_ms=AUGUST)
    now = account.reading.subscriptions
    account.lago(subscriptions=(july,)).load()
    for metric, number in units.items():
        account.use(number, metric)
    account.now_ms = NOW
    account.lago(subscriptions=now)
    return account


def fee(units: int, cents: int, filter_: Any) -> Fee:
    return Fee("f", "charge", "payments", "sub-1", Decimal(units), cents, 0, filter=filter_)


def test_an_invoice_that_lacks_units_of_one_filter_is_short_whatever_others_have() -> None:
    account = in_august_after({"sepa": 10, "swift": 10})
    assert account.load().figures is not None
    assert account.available == Decimal(100) - Decimal("2.50") - 20
    billed = invoice(fees=(fee(15, 375, SEPA), fee(5, 1000, SWIFT)), cents=1375)
    desired = account.lago(invoices=(billed,), wallets=(wallet("86.25"),)).load()
    assert [alert.kind for alert in desired.alerts] == ["short"]
    assert account.available == Decimal("86.25") - (Decimal("22.50") - Decimal("13.75"))


def test_an_invoice_with_the_units_of_every_filter_settles_the_period() -> None:
    account = in_august_after({"sepa": 10, "swift": 10})
    account.load()
    billed = invoice(fees=(fee(10, 250, SEPA), fee(10, 2000, SWIFT)), cents=2250)
    desired = account.lago(invoices=(billed,), wallets=(wallet("77.50"),)).load()
    assert desired.alerts == ()
    assert account.available == Decimal("77.50")


def test_an_invoice_with_other_filters_is_compared_by_the_sum_of_the_code() -> None:
    account = in_august_after({"sepa": 10, "swift": 10})
    account.load()
    billed = invoice(fees=(fee(20, 2250, (("scheme", ("sepa", "swift")),)),), cents=2250)
    assert account.lago(invoices=(billed,), wallets=(wallet("77.50"),)).load().alerts == ()


def test_too_many_metrics_drop_those_that_only_have_the_name_of_a_code() -> None:
    codes = [f"code_{number:02}" for number in range(20)]
    entries = [{"metric": f"m{code}", "code": code, "properties": {"a": "b"}} for code in codes]
    account = scenario(entries, *(standard(metric=code) for code in codes))
    desired = account.load()
    assert desired.spec is not None
    assert sorted(desired.spec.prices) == [f"m{code}" for code in codes]
    assert {alert.kind for alert in desired.alerts} == {"plan"}
    assert "code_07 is not served" in desired.alerts[7].message


def test_a_period_in_which_lago_was_out_of_reach_is_billed_by_the_entries() -> None:
    account = in_august_after({"sepa": 10, "payments": 1})
    account.saved = ReconcileState(last=account.saved.last)
    links = account.load().reconcile_state.links
    assert links[JULY, "sub-1"].metrics == ("payments", "sepa")
    assert links[JULY, "sub-1"].billed == (BilledMetric("sepa", "payments", (("scheme", "sepa"),)),)
