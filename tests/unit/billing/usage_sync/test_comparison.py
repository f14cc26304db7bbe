from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from sidecar.billing.lago.models import Fee, Invoice
from sidecar.billing.usage_sync.comparison import LedgerUsage, SyncedUnits, compare
from tests.unit.billing.usage_sync.kit import HOUR, T0, link

LINK = link(T0, T0 + HOUR, is_final=True, is_current=False)


def fee(
    metric: str | None, units: int, cents: int, *, sub: str | None = "s1", kind: str = "charge", taxes: int = 0
) -> Fee:
    return Fee("f", kind, metric, sub, Decimal(units), cents, taxes, from_ms=T0 * 1000, to_ms=(T0 + HOUR) * 1000)


def invoice(*fees: Fee, currency: str = "GBP") -> Invoice:
    return Invoice(
        lago_id="i1",
        number="BNK-1",
        type="subscription",
        status="finalized",
        payment_status="succeeded",
        currency=currency,
        fees_cents=0,
        taxes_cents=0,
        prepaid_cents=0,
        total_cents=0,
        due_cents=0,
        issuing_date="2026-07-16",
        created_at_ms=0,
        fees=fees,
    )


def test_an_invoice_of_what_was_debited_differs_in_nothing() -> None:
    (row,) = compare(
        "tpp-1",
        [LINK],
        [LedgerUsage("api_calls", 100, Decimal("1.234"))],
        {"api_calls": SyncedUnits(100, 100)},
        invoice(fee("api_calls", 100, 103, taxes=20), fee(None, 1, 9900, kind="subscription")),
    )
    assert row.is_equal
    assert (row.ledger, row.openmeter, row.pushed, int(row.invoiced)) == (100, 100, 100, 100)
    assert (row.ledger_cents, row.invoiced_cents) == (123, 123)


@pytest.mark.parametrize(
    ("net", "rate", "fee_cents", "tax_cents"),
    [("17.1765", "20", 1718, 344), ("10.005", "20", 1001, 200), ("0.004", "20", 0, 0), ("5", "7.7", 500, 39)],
)
def test_fee_and_taxes_are_rounded_one_after_the_other_as_on_the_invoice(
    net: str, rate: str, fee_cents: int, tax_cents: int
) -> None:
    cost = Decimal(net) * (1 + Decimal(rate) / 100)
    billed = replace(fee("api_calls", 7, fee_cents, taxes=tax_cents), taxes_rate=Decimal(rate))

    (row,) = compare(
        "tpp-1", [LINK], [LedgerUsage("api_calls", 7, cost)], {"api_calls": SyncedUnits(7, 7)}, invoice(billed)
    )

    assert (row.ledger_cents, row.cents_difference) == (fee_cents + tax_cents, 0)


def test_a_missing_unit_is_seen() -> None:
    (row,) = compare(
        "tpp-1", [LINK], [LedgerUsage("api_calls", 100, Decimal(1))], {}, invoice(fee("api_calls", 99, 99))
    )
    assert (int(row.difference), row.cents_difference) == (1, 1)
    assert not row.is_equal


def test_what_was_carried_is_accounted_for_in_both_periods() -> None:
    usage = [LedgerUsage("api_calls", 100, Decimal(1))]
    (old,) = compare(
        "tpp-1", [LINK], usage, {"api_calls": SyncedUnits(100, 97, carried_out=3)}, invoice(fee("api_calls", 97, 97))
    )
    (new,) = compare(
        "tpp-1", [LINK], usage, {"api_calls": SyncedUnits(100, 100, carried_in=3)}, invoice(fee("api_calls", 103, 103))
    )
    assert old.difference == new.difference == 0
    assert old.cents_difference == 3


def test_metrics_that_only_one_side_knows_have_rows() -> None:
    rows = compare(
        "tpp-1",
        [replace(LINK, metrics=("quiet",))],
        [LedgerUsage("debited", 1, Decimal(0))],
        {},
        invoice(fee("invoiced", 2, 0)),
    )
    assert [(row.metric, int(row.difference)) for row in rows] == [("debited", 1), ("invoiced", -2), ("quiet", 0)]


def test_fees_of_other_subscriptions_and_periods_are_left_out() -> None:
    other = fee("api_calls", 5, 5, sub="s2")
    later = replace(fee("api_calls", 7, 7), from_ms=(T0 + HOUR) * 1000, to_ms=(T0 + 2 * HOUR) * 1000)
    add_on = fee("api_calls", 9, 9, kind="add_on")
    unsaid = replace(fee("api_calls", 2, 2, sub=None), from_ms=None, to_ms=None)
    (row,) = compare("tpp-1", [LINK], [], {}, invoice(other, later, add_on, unsaid, fee("api_calls", 1, 1)))
    assert (int(row.invoiced), row.invoiced_cents) == (3, 3)


def test_several_fees_and_several_periods_of_the_ledger_are_summed_up() -> None:
    second = link(T0 + 600, T0 + HOUR, lago_from_ms=T0 * 1000, is_current=False)
    usages = [LedgerUsage("api_calls", 4, Decimal("0.5")), LedgerUsage("api_calls", 6, Decimal("0.25"))]
    (row,) = compare("tpp-1", [second, LINK], usages, {}, invoice(fee("api_calls", 4, 50), fee("api_calls", 6, 25)))
    assert row.is_equal
    assert row.period_start_ms == T0 * 1000


@pytest.mark.parametrize(
    ("currency", "cost", "cents"), [("JPY", "12.5", 13), ("KWD", "1.2345", 1235), ("GBP", "0.005", 1)]
)
def test_money_is_rounded_to_the_currencys_smallest_coin_half_away_from_zero(
    currency: str, cost: str, cents: int
) -> None:
    (row,) = compare("tpp-1", [LINK], [LedgerUsage("api_calls", 1, Decimal(cost))], {}, invoice(currency=currency))
    assert row.ledger_cents == cents


def test_an_invoice_without_its_fees_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="BNK-1 was read without its fees"):
        compare("tpp-1", [LINK], [], {}, replace(invoice(), fees=None))


def test_periods_of_several_billing_periods_cannot_be_compared_at_once() -> None:
    with pytest.raises(ValueError, match="one billing period"):
        compare("tpp-1", [LINK, replace(LINK, subscription_id="s2")], [], {}, invoice())
    with pytest.raises(ValueError, match="one billing period"):
        compare("tpp-1", [], [], {}, invoice())
