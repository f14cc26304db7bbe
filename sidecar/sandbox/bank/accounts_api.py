"""The sample bank's accounts, balances and transactions: the same on every run and every machine.

Source: Open Banking Account and Transaction API v3.1 (OBReadAccount, OBReadBalance1, OBReadTransaction).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache

#: The day on which the sample bank stands still. Balances are of this instant; no transaction is younger.
AS_OF = datetime(2025, 6, 30, 18, 0, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Account:
    """``balance_minor`` is in the currency's minor unit (pence, cents)."""

    id: str
    currency: str
    balance_minor: int
    transactions: int
    nickname: str
    holder: str
    scheme: str
    identification: str


@dataclass(frozen=True, slots=True)
class BankTransaction:
    """``amount_minor`` is signed, a credit is positive; ``balance_minor`` is the balance after it."""

    account: Account
    number: int
    booked: datetime
    amount_minor: int
    balance_minor: int
    text: str

    @property
    def id(self) -> str:
        return f"tx-{self.account.id}-{self.number:04d}"


ACCOUNTS = {
    account.id: account
    for account in (
        Account("acc-001", "GBP", 150_000, 36, "Household", "Ms A Sample",
                "UK.OBIE.SortCodeAccountNumber", "10000119820101"),
        Account("acc-002", "GBP", 2_500_000, 48, "Business", "Sample Trading Ltd",
                "UK.OBIE.SortCodeAccountNumber", "10000119820102"),
        Account("acc-003", "EUR", 320_050, 24, "Holiday home", "Ms A Sample",
                "UK.OBIE.IBAN", "IE29AIBK93115212345678"),
    )
}  # fmt: skip

_SPENDING = ("Corner Grocer", "City Transport", "Mobile & Broadband", "Green Energy", "Bookshop", "Rent")
_INCOME = ("Salary", "Refund Corner Grocer", "Invoice 2025-017", "Interest")


def money(minor: int) -> str:
    """An amount as the API writes it: no sign (that is CreditDebitIndicator's part), two decimals."""
    return f"{abs(minor) // 100}.{abs(minor) % 100:02d}"


def instant(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S+00:00")


@cache
def transactions_of(account: Account) -> tuple[BankTransaction, ...]:
    """All transactions of an account, newest first. The newest leaves the account's balance behind."""
    found: list[BankTransaction] = []
    booked, balance = AS_OF, account.balance_minor
    for number in range(account.transactions, 0, -1):
        # A digest, not a random generator: its bytes are the same in every Python version.
        noise = hashlib.sha256(f"{account.id}:{number}".encode()).digest()
        booked -= timedelta(minutes=600 + int.from_bytes(noise[0:2]) % 1800)
        size = 100 + int.from_bytes(noise[2:4]) % 20_000
        income = noise[4] % 3 == 0
        amount = size if income else -size
        texts = _INCOME if income else _SPENDING
        found.append(BankTransaction(account, number, booked, amount, balance, texts[noise[5] % len(texts)]))
        balance -= amount
    return tuple(found)


def account_json(account: Account) -> dict[str, object]:
    return {
        "AccountId": account.id,
        "Status": "Enabled",
        "StatusUpdateDateTime": "2024-01-02T09:00:00+00:00",
        "Currency": account.currency,
        "AccountType": "Business" if account.id == "acc-002" else "Personal",
        "AccountSubType": "CurrentAccount",
        "Nickname": account.nickname,
        "Account": [{"SchemeName": account.scheme, "Identification": account.identification, "Name": account.holder}],
    }


def balance_json(account: Account) -> dict[str, object]:
    return {
        "AccountId": account.id,
        "Amount": {"Amount": money(account.balance_minor), "Currency": account.currency},
        "CreditDebitIndicator": _indicator(account.balance_minor),
        "Type": "InterimAvailable",
        "DateTime": instant(AS_OF),
    }


def transaction_json(transaction: BankTransaction) -> dict[str, object]:
    account, credit = transaction.account, transaction.amount_minor >= 0
    return {
        "AccountId": account.id,
        "TransactionId": transaction.id,
        "TransactionReference": f"Ref {transaction.number}",
        "Amount": {"Amount": money(transaction.amount_minor), "Currency": account.currency},
        "CreditDebitIndicator": _indicator(transaction.amount_minor),
        "Status": "Booked",
        "BookingDateTime": instant(transaction.booked),
        "ValueDateTime": instant(transaction.booked),
        "TransactionInformation": transaction.text,
        "BankTransactionCode": {
            "Code": "ReceivedCreditTransfers" if credit else "IssuedCreditTransfers",
            "SubCode": "DomesticCreditTransfer",
        },
        "Balance": {
            "Amount": {"Amount": money(transaction.balance_minor), "Currency": account.currency},
            "CreditDebitIndicator": _indicator(transaction.balance_minor),
            "Type": "InterimBooked",
        },
    }


def _indicator(minor: int) -> str:
    return "Credit" if minor >= 0 else "Debit"
