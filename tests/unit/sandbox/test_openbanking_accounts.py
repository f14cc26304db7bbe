from __future__ import annotations

from itertools import pairwise

import pytest

from sidecar.sandbox.bank.accounts_api import ACCOUNTS, AS_OF, Account, balance_json, money, transactions_of

EVERY_ACCOUNT = pytest.mark.parametrize("account", ACCOUNTS.values(), ids=lambda account: account.id)


def test_the_accounts_hold_what_the_platform_page_promises() -> None:
    balances = {id: balance_json(account)["Amount"] for id, account in ACCOUNTS.items()}
    assert balances == {
        "acc-001": {"Amount": "1500.00", "Currency": "GBP"},
        "acc-002": {"Amount": "25000.00", "Currency": "GBP"},
        "acc-003": {"Amount": "3200.50", "Currency": "EUR"},
    }


@EVERY_ACCOUNT
def test_the_transactions_of_an_account_lead_to_its_balance(account: Account) -> None:
    newest_first = transactions_of(account)
    assert newest_first[0].balance_minor == account.balance_minor
    for newer, older in pairwise(newest_first):
        assert newer.balance_minor - newer.amount_minor == older.balance_minor


@EVERY_ACCOUNT
def test_there_are_a_few_dozen_transactions_in_order_none_from_the_future(account: Account) -> None:
    booked = [transaction.booked for transaction in transactions_of(account)]
    assert 24 <= len(booked) <= 60
    assert booked == sorted(booked, reverse=True)
    assert booked[0] < AS_OF


def test_transactions_are_the_same_on_every_machine() -> None:
    first = transactions_of(ACCOUNTS["acc-001"])[0]
    assert (first.id, first.amount_minor, first.booked.isoformat(), first.text) == (
        "tx-acc-001-0036",
        -15651,
        "2025-06-30T00:26:00+00:00",
        "Mobile & Broadband",
    )


@pytest.mark.parametrize(("minor", "text"), [(0, "0.00"), (5, "0.05"), (150_000, "1500.00"), (-1234, "12.34")])
def test_an_amount_has_two_decimals_and_no_sign(minor: int, text: str) -> None:
    assert money(minor) == text
