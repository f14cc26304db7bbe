"""The accounts file: YAML to ``AccountSpec``, with errors that name line and key."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from sidecar.config.fields import Model, conflict
from sidecar.config.reading import read_document
from sidecar.config.validation import validate
from sidecar.ledger.accounts.account_fields import Amount, AmountFromZero, ApiKeyModel, LimitsModel, Period, Price
from sidecar.ledger.accounts.account_spec import AMOUNTS_OF, API_KEYS_MAX, METRICS_MAX, AccountSpec, Mode, Status
from sidecar.ledger.pricing.currencies import exponent
from sidecar.ledger.pricing.price_tables import PriceError

FILE_BYTES_MAX: Final = 16_777_216
ACCOUNTS_MAX: Final = 50_000

_ID = re.compile(r"[A-Za-z0-9._:@+-]{1,128}")
_METRIC = re.compile(r"[a-z0-9]+(?:_[a-z0-9]+)*")


def _account_id(text: str) -> str:
    if _ID.fullmatch(text) is None:
        raise ValueError("should be 1 to 128 of the characters A-Z a-z 0-9 . _ : @ + -")
    return text


def _metric(text: str) -> str:
    if len(text) > 64 or _METRIC.fullmatch(text) is None:
        raise ValueError("should be named like api_calls: lower-case letters, digits and single underscores")
    return text


def _currency(text: str) -> str:
    exponent(text)
    return text


class AccountModel(Model):
    """One account of the file."""

    id: Annotated[str, AfterValidator(_account_id)]
    mode: Mode
    status: Literal["active", "suspended", "closed"] = "active"
    currency: Annotated[str, AfterValidator(_currency)]
    funds: Amount | None = None
    overdraft: AmountFromZero | None = None
    spending_cap: AmountFromZero | None = None
    credit_limit: AmountFromZero | None = None
    unsettled: AmountFromZero | None = None
    prices: Annotated[dict[Annotated[str, AfterValidator(_metric)], Price], Field(min_length=1, max_length=METRICS_MAX)]
    period: Period
    limits: LimitsModel = LimitsModel()
    api_keys: Annotated[tuple[ApiKeyModel, ...], Field(max_length=API_KEYS_MAX)] = ()

    @model_validator(mode="after")
    def _amounts_fit_the_mode(self) -> AccountModel:
        allowed = AMOUNTS_OF[self.mode]
        names = ("funds", "overdraft", "spending_cap", "credit_limit")
        problems = [
            (name, f"has no meaning in the mode {self.mode}")
            for name in names
            if name not in allowed and getattr(self, name) is not None
        ]
        if self.mode == "postpaid" and self.funds is not None and self.credit_limit is None:
            message = (
                "has no effect: a postpaid account without credit_limit may spend any amount; set credit_limit too"
            )
            problems.append(("funds", message))
        if self.mode == "prepaid" and self.funds is None:
            problems.append(("funds", "is missing: a prepaid account spends them"))
        if problems:
            raise conflict(problems)
        try:
            self.spec().check()
        except PriceError as error:
            raise ValueError(str(error)) from None
        return self

    def spec(self) -> AccountSpec:
        """The account as the loader takes it."""
        return AccountSpec(
            id=self.id,
            mode=self.mode,
            status=Status.of(self.status),
            currency=self.currency,
            funds=self.funds or Decimal(0),
            overdraft=self.overdraft or Decimal(0),
            spending_cap=self.spending_cap,
            credit_limit=self.credit_limit,
            unsettled=self.unsettled,
            prices={metric: price.table() for metric, price in self.prices.items()},
            period=self.period.rule(),
            limits=self.limits.limits(),
            api_keys=tuple(dict.fromkeys(key.digest() for key in self.api_keys)),
        )


def _unique(accounts: tuple[AccountModel, ...]) -> tuple[AccountModel, ...]:
    problems: list[tuple[str, str]] = []
    ids: dict[str, int] = {}
    owners: dict[str, int] = {}
    for index, account in enumerate(accounts):
        if account.id in ids:
            problems.append((f"{index}.id", f"is that of accounts[{ids[account.id]}] too"))
        ids.setdefault(account.id, index)
        for number, key in enumerate(account.api_keys):
            owner = owners.setdefault(key.digest(), index)
            if owner != index:
                problems.append((f"{index}.api_keys.{number}", f"is a key of accounts[{owner}] too"))
    if problems:
        raise conflict(problems)
    return accounts


class AccountsFile(Model):
    """The whole file."""

    accounts: Annotated[tuple[AccountModel, ...], Field(min_length=1, max_length=ACCOUNTS_MAX), AfterValidator(_unique)]


def load_accounts(path: Path) -> tuple[AccountSpec, ...]:
    """Read an accounts file.

    Raises:
        ConfigError: everything that is wrong, each with its line and key; keys in plain text are never repeated.
    """
    document = read_document(path, needs="accounts", bytes_max=FILE_BYTES_MAX)
    return tuple(account.spec() for account in validate(AccountsFile, document).accounts)
