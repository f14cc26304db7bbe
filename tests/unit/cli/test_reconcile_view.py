"""What ``sidecar reconcile --once`` prints of an account's money."""

from __future__ import annotations

from decimal import Decimal

import pytest

from sidecar.billing.lago.models import AppliedCoupon
from sidecar.billing.reconcile.credit_reading import Credits
from sidecar.billing.reconcile.reconciler import Outcome
from sidecar.cli.reconcile_view import outcome_document, print_outcome
from tests.unit.billing.scenario import Scenario, plan, standard, subscription, wallet

COUPON = AppliedCoupon("ac1", "c1", "start", "tpp-1", "active", "once", "EUR", 500)


def outcome(scenario: Scenario) -> Outcome:
    desired = scenario.load()
    return Outcome("tpp-1", "dry-run", desired=desired, before=scenario.state, alerts=desired.alerts)


def test_scoped_wallets_show_what_they_hold_back_and_what_is_not_served(capsys: pytest.CaptureFixture[str]) -> None:
    of = plan(standard(), standard("0.50", "payments"))
    low = wallet("1.50", "w2", metric_codes=("payments",))
    scenario = Scenario().lago(
        subscriptions=(subscription(of),), wallets=(wallet("100", metric_codes=("api_calls",)), low)
    )
    first = outcome(scenario)
    print_outcome(first)
    assert any(line.split() == ["held", "back", "−100"] for line in capsys.readouterr().out.splitlines())

    print_outcome(outcome(scenario))

    printed = capsys.readouterr().out
    assert "payments: the wallets that pay for it have 1.5 left" in printed
    assert "held back" not in printed


def test_coupons_and_credit_notes_have_a_line_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    found = outcome(Scenario().lago(wallets=(wallet("10"),), credits=Credits((COUPON,))))

    print_outcome(found)

    assert any("coupons, notes" in line and line.split()[-1] == "5" for line in capsys.readouterr().out.splitlines())
    assert outcome_document(found)["figures"].credit == Decimal(5)
