"""Sections of a catalog file. Plans, metrics and charges also take the names that Lago's API has for their keys."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, AliasChoices, Field, model_validator

from sidecar.billing.catalog.charges import ChargeSection
from sidecar.billing.catalog.section_fields import Code, Codes, Currency, Description, MetricCode, MetricCodes, Text
from sidecar.billing.webhooks.event_types import EVENT_TYPES, Action
from sidecar.config.fields import Model, Whole, conflict
from sidecar.ledger.accounts.account_fields import AmountFromZero, Instant
from sidecar.ledger.accounts.account_spec import METRICS_MAX
from sidecar.ledger.pricing.currencies import exponent

CUSTOMERS_MAX: Final = 10_000
METADATA_MAX: Final = 5
"""Pairs that Lago keeps for a customer (lago-api ``app/models/metadata/customer_metadata.rb``)."""

CENTS_MAX: Final = 2**53 - 1
WALLETS_MAX: Final = 6
"""Active wallets of a customer (lago-api ``app/services/wallets/validate_service.rb``)."""

_NOT_LAGOS: Final = frozenset(
    ("credit.exhausted", "credit_note.refund_failure", "invoice.add_on_added")
)  # names of older pages and versions, which the receiver knows but Lago does not send
HANDLED_EVENT_TYPES: Final = tuple(
    sorted(name for name, rule in EVENT_TYPES.items() if rule.action is not Action.IGNORE and name not in _NOT_LAGOS)
)
"""The webhooks that make the gateway read something again, or say something to people."""

CatalogMoney = Annotated[AmountFromZero, Field(le=10**13)]
Interval = Literal["weekly", "monthly", "quarterly", "semiannual", "yearly"]


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{name!r} is not a time zone like Europe/London") from None
    return name


def _endpoint_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise ValueError("should be an http or https URL with a host, such as https://gateway.bank/webhooks/lago")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError("should have neither user, password, query nor fragment: Lago shows it to all its users")
    return url


class TaxSection(Model):
    """``rate`` in per cent; ``default``: on every customer without taxes of their own."""

    code: Code
    name: Text | None = None
    description: Description | None = None
    rate: Annotated[AmountFromZero, Field(le=100)]
    default: bool = Field(default=False, validation_alias=AliasChoices("default", "applied_to_organization"))


class MetricFilterSection(Model):
    """A property that charges may be filtered by, and its values."""

    key: Text
    values: Annotated[tuple[Text, ...], Field(min_length=1, max_length=1_000)]


class MetricSection(Model):
    """A billable metric of Lago, and the meter of OpenMeter with the same name."""

    code: MetricCode
    name: Text | None = None
    description: Description | None = None
    aggregation_type: Text = "sum_agg"
    field_name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")] = "calls"
    recurring: bool = False
    filters: Annotated[tuple[MetricFilterSection, ...], Field(max_length=100)] | None = None


class PlanSection(Model):
    """``amount`` is the fee of an ``interval`` in units of the currency; Lago's ``amount_cents`` is taken too."""

    code: Code
    name: Text | None = None
    description: Description | None = None
    interval: Interval = "monthly"
    amount: CatalogMoney | None = None
    amount_cents: Annotated[Whole, Field(ge=0, le=CENTS_MAX)] | None = None
    currency: Currency = Field(validation_alias=AliasChoices("currency", "amount_currency"))
    pay_in_advance: bool = False
    trial_days: Annotated[Whole, Field(ge=0, le=3_650)] = Field(
        default=0, validation_alias=AliasChoices("trial_days", "trial_period")
    )
    bill_charges_monthly: bool = False
    taxes: Codes = Field(default=(), validation_alias=AliasChoices("taxes", "tax_codes"))
    charges: Annotated[tuple[ChargeSection, ...], Field(max_length=METRICS_MAX)] = ()
    minimum_commitment: dict[str, Any] | None = None
    usage_thresholds: Annotated[tuple[dict[str, Any], ...], Field(max_length=100)] = ()
    fixed_charges: Annotated[tuple[dict[str, Any], ...], Field(max_length=100)] = ()

    @model_validator(mode="after")
    def _fee_is_whole_coins(self) -> PlanSection:
        if self.amount is not None and self.amount_cents is not None:
            raise conflict([("amount_cents", "is set, but amount is too")])
        decimals = exponent(self.currency)
        if self.amount is not None and (self.amount != round(self.amount, decimals) or self.cents() > CENTS_MAX):
            raise conflict(
                [("amount", f"should be an amount with at most {decimals} decimals, as {self.currency} has")]
            )
        if self.bill_charges_monthly and self.interval not in ("semiannual", "yearly"):
            raise conflict([("bill_charges_monthly", f"has no meaning for a {self.interval} plan")])
        return self

    def cents(self) -> int:
        """The fee in the currency's smallest coin."""
        if self.amount is None:
            return self.amount_cents or 0
        return int(self.amount.scaleb(exponent(self.currency)))


class EndpointSection(Model):
    """Where Lago sends its webhooks. ``event_types`` are by default those that the receiver acts upon."""

    url: Annotated[str, Field(max_length=2048), AfterValidator(_endpoint_url)] = Field(
        validation_alias=AliasChoices("url", "webhook_url")
    )
    signature: Literal["hmac", "jwt"] = Field(
        default="hmac", validation_alias=AliasChoices("signature", "signature_algo")
    )
    name: Text | None = None
    event_types: Annotated[tuple[str, ...], Field(min_length=1, max_length=200)] = HANDLED_EVENT_TYPES

    @model_validator(mode="after")
    def _types_are_lagos(self) -> EndpointSection:
        problems = []
        for index, each in enumerate(self.event_types):
            if each == "credit.exhausted":
                problems.append((f"event_types.{index}", "is not an event of Lago; wallet.depleted_ongoing_balance is"))
            elif each not in EVENT_TYPES or each in _NOT_LAGOS:
                problems.append((f"event_types.{index}", f"{each[:60]!r} is not an event of Lago"))
        if problems:
            raise conflict(problems)
        return self


class WalletSection(Model):
    """Credits bought or given. ``rate`` is money per credit. Known by ``code``, or else by ``name``."""

    name: Text | None = None
    code: Code | None = None
    currency: Currency | None = None
    rate: Annotated[CatalogMoney, Field(gt=0)] = Field(
        default=Decimal(1), validation_alias=AliasChoices("rate", "rate_amount")
    )
    paid_credits: CatalogMoney = Decimal(0)
    granted_credits: CatalogMoney = Decimal(0)
    expiration_at: Instant | None = None
    priority: Annotated[Whole, Field(ge=1, le=50)] | None = None
    applies_to: MetricCodes = ()

    @model_validator(mode="after")
    def _has_a_name(self) -> WalletSection:
        if self.name is None and self.code is None:
            raise conflict([("code", "is missing: without code or name a wallet would be made anew each time")])
        return self


class CustomerSection(Model):
    """A TPP. ``plan`` subscribes it; ``subscription`` is that subscription's external id, by default the customer's."""

    id: Code = Field(validation_alias=AliasChoices("id", "external_id"))
    name: Text | None = None
    currency: Currency | None = None
    timezone: Annotated[str, Field(max_length=64), AfterValidator(_zone)] | None = None
    metadata: Annotated[
        dict[Annotated[str, Field(max_length=20)], Annotated[str, Field(min_length=1, max_length=100)]],
        Field(max_length=METADATA_MAX),
    ] = Field(default_factory=dict)
    plan: Code | None = None
    subscription: Code | None = None
    billing_time: Literal["calendar", "anniversary"] | None = None
    wallets: Annotated[tuple[WalletSection, ...], Field(max_length=WALLETS_MAX)] = ()

    @model_validator(mode="after")
    def _subscription_has_a_plan(self) -> CustomerSection:
        if self.plan is None:
            given = [name for name in ("subscription", "billing_time") if getattr(self, name) is not None]
            if given:
                raise conflict([(name, "has no meaning without plan") for name in given])
        problems = [*_twice("wallets", "code", self.wallets), *_twice("wallets", "name", self.wallets)]
        if problems:
            raise conflict(problems)
        return self


def _twice(section: str, key: str, items: Iterable[Model]) -> list[tuple[str, str]]:
    """Problems of entries that share a key with an earlier one."""
    seen: dict[str, int] = {}
    problems = []
    for index, item in enumerate(items):
        value = getattr(item, key)
        if value is not None and seen.setdefault(value, index) != index:
            problems.append((f"{section}.{index}.{key}", f"is that of {section}[{seen[value]}] too"))
    return problems


class CatalogFile(Model):
    """The whole file."""

    taxes: Annotated[tuple[TaxSection, ...], Field(max_length=200)] = ()
    metrics: Annotated[tuple[MetricSection, ...], Field(max_length=200)] = ()
    plans: Annotated[tuple[PlanSection, ...], Field(max_length=1_000)] = ()
    webhook_endpoint: EndpointSection | None = None
    customers: Annotated[tuple[CustomerSection, ...], Field(max_length=CUSTOMERS_MAX)] = ()

    @model_validator(mode="after")
    def _codes_are_unique(self) -> CatalogFile:
        problems = [
            *_twice("taxes", "code", self.taxes),
            *_twice("metrics", "code", self.metrics),
            *_twice("plans", "code", self.plans),
            *_twice("customers", "id", self.customers),
            *self._subscriptions_twice(),
        ]
        if problems:
            raise conflict(problems)
        return self

    def _subscriptions_twice(self) -> list[tuple[str, str]]:
        seen: dict[str, int] = {}
        problems = []
        for index, customer in enumerate(self.customers):
            external_id = customer.subscription or customer.id
            if customer.plan is not None and seen.setdefault(external_id, index) != index:
                other = f"customers[{seen[external_id]}]"
                problems.append(
                    (f"customers.{index}.subscription", f"{external_id} is the subscription of {other} too")
                )
        return problems
