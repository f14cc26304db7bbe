"""Wallets with scopes, from what Lago says of them to what the ledger may spend."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from sidecar.billing.lago.models import Charge, Fee, Wallet
from sidecar.billing.reconcile.desired_state import DesiredState
from sidecar.billing.reconcile.reconcile_state import ReconcileState, decode_reconcile_state
from tests.unit.billing.scenario import (
    AUGUST,
    DAY_MS,
    JULY,
    NOW,
    Scenario,
    invoice,
    plan,
    standard,
    subscription,
    wallet,
)

MINUTE_MS = 60_000
CALLS, PAYMENTS = standard("0.10", "api_calls"), standard("0.50", "payments")


def scenario(*wallets: Wallet, charges: tuple[Charge, ...] = (CALLS, PAYMENTS), amount_cents: int = 0) -> Scenario:
    of = plan(*charges, amount_cents=amount_cents)
    return Scenario().lago(subscriptions=(subscription(of),), wallets=wallets)


def served(desired: DesiredState) -> set[str]:
    assert desired.spec is not None
    return set(desired.spec.prices)


def findings(desired: DesiredState, kind: str = "wallet") -> list[str]:
    return [alert.message for alert in desired.alerts if alert.kind == kind]


def reload_in_ms(desired: DesiredState, now_ms: int = NOW) -> int:
    return min(desired.reload_at_ms) - now_ms


def test_a_metric_that_no_wallet_pays_for_is_refused_and_the_others_are_served() -> None:
    desired = scenario(wallet("40", metric_codes=("api_calls",))).load()

    assert served(desired) == {"api_calls"}
    assert findings(desired) == ["payments is not served: none of the wallets that count pays for it"]


def test_a_metric_that_costs_nothing_needs_no_wallet() -> None:
    free = standard("0", "status")
    desired = scenario(wallet("40", metric_codes=("api_calls",)), charges=(CALLS, free)).load()

    assert served(desired) == {"api_calls", "status"}
    assert desired.alerts == ()


def test_a_metric_whose_wallets_have_little_left_is_shown_and_is_no_finding() -> None:
    account = scenario(wallet("100", metric_codes=("api_calls",)), wallet("30", "w2", metric_codes=("payments",)))
    account.load()
    account.use(55, "payments")  # 27.50: five units are left

    desired = account.load()

    assert desired.figures is not None
    assert desired.figures.low == {"payments": Decimal("2.50")}
    assert desired.alerts == ()
    assert served(desired) == {"api_calls"}


def test_what_was_used_of_a_metric_before_its_wallet_ended_is_still_billed_and_blocks_nothing() -> None:
    calls, payments = wallet("40", metric_codes=("api_calls",)), wallet("40", "w2", metric_codes=("payments",))
    account = scenario(calls, payments)
    account.load()
    account.use(20, "payments")

    desired = account.lago(wallets=(calls, replace(payments, status="terminated"))).load()

    assert served(desired) == {"api_calls"}
    assert account.available == 40
    (link,) = desired.reconcile_state.links.values()
    assert link.metrics == ("api_calls", "payments")


def test_scoped_wallets_pay_in_lago_s_order() -> None:
    for_all = wallet("10", "w1", priority=2)
    first = scenario(for_all, wallet("100", "w2", metric_codes=("api_calls",), priority=1))
    last = scenario(for_all, wallet("100", "w2", metric_codes=("api_calls",), priority=3))
    first.load()
    last.load()
    for account in (first, last):
        account.use(100)  # 10.00
        account.load()

    assert first.available == 10
    # The one for all may have gone to the calls, so nothing is left for payments; the calls have their own.
    assert last.available == 100
    assert served(last.desired()) == {"api_calls"}


@pytest.mark.parametrize(
    "other",
    [
        wallet("70", "w2", currency="USD"),
        wallet("70", "w2", status="terminated"),
        wallet("70", "w2", expires_at_ms=NOW),
        wallet("70", "w2", fee_types=("subscription",)),
        wallet("70", "w2", metric_codes=("reports",)),
    ],
    ids=("currency", "ended", "expired", "other fees", "other metric"),
)
def test_a_wallet_that_pays_for_none_of_the_metrics_is_no_money(other: Wallet) -> None:
    account = scenario(wallet("40", metric_codes=("api_calls", "payments")), other)
    account.load()

    assert account.available == 40


def test_money_held_back_becomes_available_as_its_metric_is_used_and_the_account_is_read() -> None:
    account = scenario(wallet("100", metric_codes=("api_calls",)), wallet("30", "w2", metric_codes=("payments",)))
    first = account.load()
    account.use(300)  # 30.00: all that was available
    before = account.available
    second = account.load()

    assert (before, account.available) == (0, 30)
    assert reload_in_ms(first) == reload_in_ms(second) == MINUTE_MS
    assert findings(second, "raise") == []


def test_all_scoped_money_can_be_spent_in_the_end() -> None:
    account = scenario(wallet("100", metric_codes=("api_calls",)), wallet("30", "w2", metric_codes=("payments",)))
    spent = Decimal(0)
    for _ in range(20):
        desired = account.load()
        assert findings(desired, "raise") == []
        left = account.available or Decimal(0)
        metric, price = (
            ("payments", Decimal("0.50")) if "payments" in served(desired) else ("api_calls", Decimal("0.10"))
        )
        account.use(int(left / price), metric)
        spent += int(left / price) * price

    assert spent == 130


def test_an_account_that_is_idle_is_read_less_and_less_often_for_what_is_held_back() -> None:
    account = scenario(wallet("100", metric_codes=("api_calls",)), wallet("30", "w2", metric_codes=("payments",)))
    waits = []
    for _ in range(7):
        waits.append(reload_in_ms(account.load(), account.now_ms))
        account.now_ms += waits[-1]

    assert [each // MINUTE_MS for each in waits] == [1, 2, 4, 8, 15, 15, 15]


def test_wallets_that_pay_for_every_metric_hold_nothing_back() -> None:
    account = scenario(wallet("40"), wallet("5", "w2", fee_types=("charge",)))
    account.load()
    account.use(100)
    desired = account.load()

    assert account.available == 35
    assert reload_in_ms(desired) > 24 * 60 * MINUTE_MS  # the end of the period
    assert desired.figures is not None
    assert desired.figures.held_back == 0


def test_the_fee_of_the_plan_counts_where_a_wallet_for_all_may_pay_it() -> None:
    calls = wallet("100", metric_codes=("api_calls",), priority=1)
    alone = scenario(calls, charges=(CALLS,), amount_cents=3000)
    both = scenario(calls, wallet("50", "w2"), charges=(CALLS, PAYMENTS), amount_cents=3000)
    alone.load()
    both.load()

    assert alone.available == 100
    assert both.available == 20


def in_july(*charges: Charge) -> Scenario:
    """An account of July with two wallets of their own, 20.00 of calls and 10.00 of payments; now it is August."""
    account = scenario(wallet("100", metric_codes=("api_calls",)), wallet("30", "w2", metric_codes=("payments",)))
    account.now_ms = JULY + 1000
    account.lago(subscriptions=(subscription(plan(*charges), period_start_ms=JULY, period_end_ms=AUGUST),)).load()
    account.use(200)
    account.use(20, "payments")
    account.now_ms = NOW
    return account.lago(subscriptions=(subscription(plan(*charges)),))


def test_a_closed_period_is_owed_metric_by_metric_until_its_invoice_is_final() -> None:
    account = in_july(CALLS, PAYMENTS)
    account.load()

    # Of the wallet for payments 20 are left; it is the scarcer one.
    assert account.available == 20


def test_a_draft_that_has_more_of_one_metric_than_the_ledger_counts_for_its_wallet() -> None:
    account = in_july(CALLS, PAYMENTS)
    fees = (
        Fee("f1", "charge", "api_calls", "sub-1", Decimal(50), 500, 0),
        Fee("f2", "charge", "payments", "sub-1", Decimal(50), 2500, 0),
    )
    draft = invoice("draft", cents=3000, fees=fees)
    account.lago(invoices=(draft,)).load()

    assert account.available == 5


def test_a_new_account_serves_what_its_wallets_pay_for_whatever_lago_has_counted() -> None:
    account = scenario(wallet("100", metric_codes=("api_calls",)), wallet("1", "w2", metric_codes=("payments",)))

    assert served(account.load()) == {"api_calls", "payments"}
    assert served(account.load()) == {"api_calls"}


def test_other_modes_count_wallets_that_pay_for_every_metric() -> None:
    account = scenario(wallet("100", metric_codes=("api_calls",)), wallet("5", "w2"))
    customer = account.reading.customer
    assert customer is not None
    account.lago(customer=replace(customer, metadata={"quota_mode": "postpaid", "quota_credit_limit": "20"}))
    desired = account.load()

    assert account.available == 25
    assert served(desired) == {"api_calls", "payments"}


def test_what_was_held_back_is_remembered_and_missing_in_what_older_releases_saved() -> None:
    account = scenario(wallet("100", metric_codes=("api_calls",)), wallet("30", "w2", metric_codes=("payments",)))
    account.load()
    stored = {name.encode(): value.encode() for name, value in account.saved.fields().items()}
    found = decode_reconcile_state(stored)
    older = decode_reconcile_state(
        {b"last": b'{"read_at_ms":1,"balance":"2","policy":"p","fingerprint":"","is_open":false}'}
    )

    assert found == account.saved
    assert found.last is not None
    assert found.last.held_back == 100
    assert isinstance(older, ReconcileState)
    assert older.last is not None
    assert older.last.held_back == older.last.claimed == 0


def test_subscriptions_with_periods_of_their_own_share_scoped_wallets() -> None:
    monthly = subscription(plan(CALLS, code="calls"))
    other = subscription(
        plan(PAYMENTS, code="payments"), "sub-2", external_id="ext-2", period_start_ms=NOW - DAY_MS,
        period_end_ms=NOW + 6 * DAY_MS,
    )  # fmt: skip
    account = Scenario().lago(
        subscriptions=(monthly, other),
        wallets=(wallet("100", metric_codes=("api_calls",)), wallet("30", "w2", metric_codes=("payments",))),
    )
    desired = account.desired()

    assert desired.spec is not None
    assert [set(each.prices) for each in desired.spec.subscriptions] == [{"api_calls"}, {"payments"}]
    assert desired.spec.funds == 30
    assert desired.figures is not None
    assert desired.figures.held_back == 100

    gone = account.lago(wallets=(wallet("100", metric_codes=("api_calls",)),)).desired()

    assert gone.spec is not None
    assert [set(each.prices) for each in gone.spec.subscriptions] == [{"api_calls"}, set()]
    assert gone.spec.funds == 100
