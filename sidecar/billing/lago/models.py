"""Lago's objects as values (facts: lago-api ``app/serializers/v1/``; Lago's OpenAPI document).

Instants are Unix milliseconds, money in cents is an integer of the currency's smallest coin (for JPY that is a yen),
everything else that has decimals is a ``Decimal``. Only what the gateway uses is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Generic, TypeVar

T = TypeVar("T")

FilterValues = tuple[tuple[str, tuple[str, ...]], ...]
"""The values of a charge's filter by property, both sorted."""
GroupValues = tuple[tuple[str, str | None], ...]
"""The values of the properties that a charge is grouped by, sorted by name; None where an event lacks one."""


@dataclass(frozen=True, slots=True)
class Tax:
    """``rate`` is in per cent. ``is_default``: ``applied_to_organization``, for who has no taxes of their own.

    ``billing_entities``: codes of those whose customers have it so; older versions do not say any.
    """

    code: str
    rate: Decimal
    is_default: bool = False
    billing_entities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Customer:
    """``metadata`` holds the pairs that the bank has put on the customer; ``timezone`` is the applicable one.

    ``taxes`` is None in answers that do not say (lists do).
    """

    lago_id: str
    external_id: str
    currency: str | None
    timezone: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    taxes: tuple[Tax, ...] | None = ()
    billing_entity: str | None = None


@dataclass(frozen=True, slots=True)
class Wallet:
    """``fee_types`` and ``metric_codes`` are ``applies_to``; both empty: the wallet pays everything."""

    lago_id: str
    customer: str
    status: str
    currency: str
    balance_cents: int
    credits_balance: Decimal
    consumed_credits: Decimal
    rate_amount: Decimal
    priority: int
    created_at_ms: int
    expires_at_ms: int | None = None
    terminated_at_ms: int | None = None
    name: str | None = None
    code: str | None = None
    fee_types: tuple[str, ...] = ()
    metric_codes: tuple[str, ...] = ()

    @property
    def is_active(self) -> bool:
        return self.status == "active"


@dataclass(frozen=True, slots=True)
class AppliedCoupon:
    """A coupon of a customer. ``remaining_cents``: of one with an amount that is used once; None for others.

    ``expires_at_ms``: when the coupon can be applied to nobody any more.
    """

    lago_id: str
    coupon_id: str
    coupon_code: str
    customer: str
    status: str
    frequency: str
    currency: str | None = None
    remaining_cents: int | None = None
    expires_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Coupon:
    """``is_limited``: it reduces only the fees of some plans or metrics."""

    lago_id: str
    code: str
    is_limited: bool


@dataclass(frozen=True, slots=True)
class CreditNote:
    """``credit_status`` available, consumed or voided; ``balance_cents`` is what it may still take off invoices."""

    lago_id: str
    customer: str
    currency: str
    credit_status: str
    balance_cents: int


@dataclass(frozen=True, slots=True)
class WalletTransaction:
    """``type`` inbound or outbound; ``kind`` is Lago's ``transaction_status``; ``amount`` is money, not credits."""

    lago_id: str
    wallet_id: str
    status: str
    type: str
    kind: str
    amount: Decimal
    created_at_ms: int
    settled_at_ms: int | None = None
    invoice_id: str | None = None
    voided_invoice_id: str | None = None


@dataclass(frozen=True, slots=True)
class ChargeFilter:
    """The price of those events of a charge whose properties are among ``values``, by name. The one value
    ``__ALL_FILTER_VALUES__`` stands for all that the billable metric lists.
    """

    values: Mapping[str, tuple[str, ...]]
    properties: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Charge:
    """One price of a plan. ``properties`` is as Lago gives it, with every number a ``Decimal`` or text.

    ``has_filters``: it has prices beside that of ``properties``; those are ``filters``, in Lago's order, or, with none
    there, groups as versions before filters had them.
    """

    lago_id: str
    metric_code: str
    model: str
    properties: Mapping[str, Any]
    pay_in_advance: bool = False
    prorated: bool = False
    invoiceable: bool = True
    min_amount_cents: int = 0
    has_filters: bool = False
    has_pricing_unit: bool = False
    taxes: tuple[Tax, ...] = ()
    code: str | None = None
    filters: tuple[ChargeFilter, ...] = ()


@dataclass(frozen=True, slots=True)
class FixedCharge:
    """So many units of an add-on in every period, whatever is used. ``model``: standard, graduated, volume."""

    lago_id: str
    code: str
    model: str
    properties: Mapping[str, Any]
    units: Decimal
    pay_in_advance: bool = False
    taxes: tuple[Tax, ...] = ()


@dataclass(frozen=True, slots=True)
class Commitment:
    """The least that a period costs, before taxes. Lago bills what is missing."""

    amount_cents: int
    taxes: tuple[Tax, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """``interval``: weekly, monthly, quarterly, semiannual, yearly. ``trial_days`` waives the fee, not usage.

    ``fixed_charges`` None: the answer does not say (that of a subscription does not).
    """

    lago_id: str
    code: str
    name: str
    interval: str
    amount_cents: int
    currency: str
    pay_in_advance: bool
    charges: tuple[Charge, ...]
    trial_days: Decimal = Decimal(0)
    bill_charges_monthly: bool = False
    taxes: tuple[Tax, ...] = ()
    has_usage_thresholds: bool = False
    has_minimum_commitment: bool = False
    has_fixed_charges: bool = False
    commitment: Commitment | None = None
    fixed_charges: tuple[FixedCharge, ...] | None = ()
    bill_fixed_charges_monthly: bool = False


@dataclass(frozen=True, slots=True)
class Subscription:
    """``period_start_ms`` and ``period_end_ms`` are the current billing period, the end exclusive (Lago's last second
    and one); None for one that is not active. ``plan`` is the effective plan, None where the answer has none (lists).
    """

    lago_id: str
    external_id: str
    customer: str
    plan_code: str
    status: str
    billing_time: str
    created_at_ms: int
    subscription_at_ms: int | None = None
    started_at_ms: int | None = None
    ending_at_ms: int | None = None
    terminated_at_ms: int | None = None
    trial_ended_at_ms: int | None = None
    period_start_ms: int | None = None
    period_end_ms: int | None = None
    previous_plan_code: str | None = None
    next_plan_code: str | None = None
    downgrade_date: str | None = None
    plan: Plan | None = None

    @property
    def is_active(self) -> bool:
        return self.status == "active"


@dataclass(frozen=True, slots=True)
class Fee:
    """One line of an invoice. ``kind`` is ``item.type``: charge, subscription, …; ``metric_code`` is the item's code
    for charges. ``from_ms`` and ``to_ms`` bound what it covers, the end exclusive; None where the answer says nothing.
    ``taxes_rate`` is the sum of its taxes in per cent. ``filter`` and ``group`` tell the fees of one charge apart.
    """

    lago_id: str | None
    kind: str
    metric_code: str | None
    subscription_id: str | None
    units: Decimal
    amount_cents: int
    taxes_cents: int
    precise_amount: Decimal | None = None
    from_ms: int | None = None
    to_ms: int | None = None
    taxes_rate: Decimal = Decimal(0)
    filter: FilterValues | None = None
    group: GroupValues = ()


@dataclass(frozen=True, slots=True)
class BillingPeriod:
    """The usage that an invoice covers for one subscription: from ``from_ms`` to just before ``to_ms``."""

    subscription_id: str
    external_subscription_id: str | None
    plan_code: str | None
    from_ms: int
    to_ms: int
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Invoice:
    """``status``: draft, finalized, voided, failed, pending, …; ``payment_status``: pending, succeeded, failed.

    ``periods`` and ``fees`` are None in answers that do not say (lists).
    """

    lago_id: str
    number: str
    type: str
    status: str
    payment_status: str
    currency: str
    fees_cents: int
    taxes_cents: int
    prepaid_cents: int
    total_cents: int
    due_cents: int
    issuing_date: str
    created_at_ms: int
    customer: str | None = None
    periods: tuple[BillingPeriod, ...] | None = None
    fees: tuple[Fee, ...] | None = None
    voided_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class FeeUsage:
    """The part of a charge's usage that becomes one fee."""

    filter: FilterValues | None
    group: GroupValues
    units: Decimal


@dataclass(frozen=True, slots=True)
class ChargeUsage:
    """The usage of one metric that Lago has ingested in the current period. ``fees``: its parts, if the charge has
    filters or groups.
    """

    metric_code: str
    charge_id: str
    units: Decimal
    amount_cents: int
    events_count: int
    fees: tuple[FeeUsage, ...] = ()


@dataclass(frozen=True, slots=True)
class CurrentUsage:
    """``total_cents`` includes taxes. ``to_ms`` is exclusive."""

    from_ms: int
    to_ms: int
    amount_cents: int
    taxes_cents: int
    total_cents: int
    charges: tuple[ChargeUsage, ...]


@dataclass(frozen=True, slots=True)
class BillableMetric:
    """``aggregation``: sum_agg, count_agg, … ``filters``: properties that charges may be filtered by, with values."""

    lago_id: str
    code: str
    name: str
    aggregation: str
    field_name: str | None
    recurring: bool
    has_expression: bool = False
    rounding: str | None = None
    rounding_precision: int = 0
    filters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def rounds_units(self) -> bool:
        """Whether Lago bills other units than whole ones that it was told: it rounds a period's sum to tens or more
        (lago-api ``app/services/billable_metrics/aggregations/apply_rounding_service.rb``)."""
        return self.rounding is not None and self.rounding_precision < 0


@dataclass(frozen=True, slots=True)
class Event:
    """A usage event. ``timestamp`` is in Unix seconds; ``properties`` as pushed or read."""

    transaction_id: str
    external_subscription_id: str
    code: str
    timestamp: Decimal
    properties: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class WebhookEndpoint:
    lago_id: str
    url: str
    signature: str
    event_types: tuple[str, ...] | None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list."""

    items: tuple[T, ...]
    next_page: int | None
    total_count: int
