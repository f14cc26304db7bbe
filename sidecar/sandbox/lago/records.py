"""What the Lago stand-in keeps. Records change in place, as rows do; values that never change are frozen.

``seq`` is the order of creation, which breaks ties between equal ``created`` times in lists. All are in one module, as
they point at each other in circles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from sidecar.sandbox.lago.lago_wire import Json
from sidecar.sandbox.lago.periods import PER_YEAR, Span

Filter = dict[str, Any]
"""Of a charge: ``lago_id``, ``invoice_display_name``, ``values`` and ``properties``."""


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class Record:
    """Equal only to itself. Records point at each other in circles, so ``repr`` names this one alone."""

    id: str
    seq: int
    created: datetime

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id})"


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class Tax(Record):
    code: str
    name: str
    rate: Decimal
    description: str | None = None
    is_default: bool = False


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class MetadataPair(Record):
    key: str
    value: str
    shown: bool = False


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class Customer(Record):
    """``texts`` are the plain attributes that nothing here depends on (name, email, address, …)."""

    external_id: str
    sequential: int
    updated: datetime
    texts: dict[str, str | None] = field(default_factory=dict)
    currency: str | None = None
    timezone: str | None = None
    default_timezone: str = "UTC"
    net_payment_term: int | None = None
    finalize_zero: str = "inherit"
    grace_days: int | None = None
    payment_provider: str | None = None
    metadata: list[MetadataPair] = field(default_factory=list)
    taxes: list[Tax] = field(default_factory=list)
    credit_notes: list[CreditNote] = field(default_factory=list)
    invoices_made: int = 0
    awaits_refresh: bool = False
    deleted: bool = False

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone or self.default_timezone)


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class CreditNote(Record):
    """What is given back of an invoice: by the bank, or of a fee paid in advance when its subscription ends early."""

    customer: Customer
    invoice: Invoice
    currency: str
    amount_cents: int
    balance_cents: int
    reason: str = "other"
    voided: bool = False

    @property
    def credit_status(self) -> str:
        return "voided" if self.voided else "available" if self.balance_cents else "consumed"


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class Coupon(Record):
    """``plans`` and ``metrics``: codes, where it reduces only their fees."""

    code: str
    name: str
    kind: str
    frequency: str
    amount_cents: int | None = None
    currency: str | None = None
    rate: Decimal | None = None
    duration: int | None = None
    expires_at: datetime | None = None
    plans: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class AppliedCoupon(Record):
    """A coupon of a customer. ``used``: what it took off which invoice; it counts unless that one is void."""

    coupon: Coupon
    customer: Customer
    frequency: str
    amount_cents: int | None = None
    currency: str | None = None
    rate: Decimal | None = None
    duration_left: int | None = None
    terminated_at: datetime | None = None
    used: list[tuple[Invoice, int]] = field(default_factory=list)

    @property
    def is_active(self) -> bool:
        return self.terminated_at is None

    @property
    def status(self) -> str:
        return "active" if self.is_active else "terminated"

    @property
    def remaining_cents(self) -> int:
        return (self.amount_cents or 0) - sum(cents for invoice, cents in self.used if invoice.status != "voided")


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class Metric(Record):
    code: str
    name: str
    aggregation: str
    field_name: str | None = None
    description: str | None = None
    recurring: bool = False
    rounding: str | None = None
    rounding_places: int | None = None
    expression: str | None = None
    filters: list[Json] = field(default_factory=list)


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class Charge(Record):
    code: str
    metric: Metric
    model: str
    properties: Json
    display_name: str | None = None
    pay_in_advance: bool = False
    invoiceable: bool = True
    prorated: bool = False
    min_amount_cents: int = 0
    filters: list[Filter] = field(default_factory=list)
    taxes: list[Tax] = field(default_factory=list)
    parent_id: str | None = None


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class FixedCharge(Record):
    """So many units at one price, billed with the usage of a whole interval, never prorated."""

    code: str
    units: Decimal
    amount: Decimal


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class Plan(Record):
    """``parent`` is set on the copy that a subscription's ``plan_overrides`` make."""

    code: str
    name: str
    interval: str
    amount_cents: int
    currency: str
    pay_in_advance: bool = False
    display_name: str | None = None
    description: str | None = None
    trial_days: Decimal = Decimal(0)
    charges_monthly: bool | None = None
    charges: list[Charge] = field(default_factory=list)
    fixed_charges: list[FixedCharge] = field(default_factory=list)
    commitment_cents: int = 0
    """What an interval costs at least; 0: there is no minimum commitment."""
    taxes: list[Tax] = field(default_factory=list)
    parent: Plan | None = None
    deleted: bool = False

    @property
    def yearly_cents(self) -> int:
        return self.amount_cents * PER_YEAR[self.interval]

    @property
    def charges_interval(self) -> str:
        return "monthly" if self.charges_monthly and self.interval in ("yearly", "semiannual") else self.interval


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class Subscription(Record):
    """``previous`` is the one that it follows after an upgrade or a downgrade, ``next`` the one that follows it.

    ``billed`` holds the starts of the periods at whose beginning a periodic invoice was made, ``fee_days`` the starts
    of the days on which a subscription fee was charged.
    """

    external_id: str
    customer: Customer
    plan: Plan
    status: str
    billing_time: str
    subscription_at: datetime
    name: str | None = None
    started_at: datetime | None = None
    first_started_at: datetime | None = None
    ending_at: datetime | None = None
    terminated_at: datetime | None = None
    canceled_at: datetime | None = None
    trial_ended_at: datetime | None = None
    on_termination_credit_note: str | None = None
    on_termination_invoice: str = "generate"
    previous: Subscription | None = None
    next: Subscription | None = None
    billed: set[datetime] = field(default_factory=set)
    fee_days: set[datetime] = field(default_factory=set)
    last_fee: Fee | None = None

    @property
    def is_upgraded(self) -> bool:
        """Another subscription of the same or a higher amount a year has followed it."""
        return self.next is not None and self.plan.yearly_cents <= self.next.plan.yearly_cents


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class Wallet(Record):
    customer: Customer
    currency: str
    rate: Decimal
    code: str
    name: str | None = None
    priority: int = 50
    status: str = "active"
    balance_cents: int = 0
    credits: Decimal = Decimal(0)
    consumed: Decimal = Decimal(0)
    ongoing_cents: int = 0
    ongoing_usage_cents: int = 0
    is_depleted: bool = False
    expiration_at: datetime | None = None
    terminated_at: datetime | None = None
    synced_at: datetime | None = None
    consumed_at: datetime | None = None
    fee_types: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = ()
    min_top_up_cents: int | None = None
    max_top_up_cents: int | None = None
    needs_payment: bool = False
    metadata: Json | None = None
    transactions: list[Transaction] = field(default_factory=list)

    @property
    def is_active(self) -> bool:
        return self.status == "active"

    def pays(self, kind: str, metric: Metric | None) -> bool:
        """Whether a fee is in its scope (``app/services/credits/allocate_prepaid_credits_by_wallets_service.rb``)."""
        if not self.fee_types and not self.metrics:
            return True
        return kind in self.fee_types or (kind == "charge" and any(item is metric for item in self.metrics))


@dataclass(frozen=True, slots=True)
class Label:
    """What a request may put on the transactions that it makes."""

    name: str | None = None
    metadata: tuple[Json, ...] = ()
    priority: int = 50


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class Transaction(Record):
    """``kind`` is Lago's ``transaction_status``; ``remaining_cents`` is what is left of an inbound one."""

    wallet: Wallet
    type: str
    kind: str
    status: str
    amount_cents: int
    credits: Decimal
    remaining_cents: int | None = None
    invoice: Invoice | None = None
    voided_invoice: Invoice | None = None
    label: Label = Label()
    settled_at: datetime | None = None
    failed_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class AppliedTax:
    """A tax on a fee or an invoice, as it was then. ``precise_cents`` is not rounded."""

    id: str
    tax_id: str
    code: str
    name: str
    description: str | None
    rate: Decimal
    precise_cents: Decimal
    amount_cents: int
    base_cents: int


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class Fee(Record):
    kind: str
    currency: str
    units: Decimal
    amount_cents: int
    precise_cents: Decimal
    events_count: int | None = None
    subscription: Subscription | None = None
    charge: Charge | None = None
    fixed_charge: FixedCharge | None = None
    filter: Filter | None = None
    group: dict[str, str | None] = field(default_factory=dict)
    transaction: Transaction | None = None
    span: Span | None = None
    unit_amount: Decimal = Decimal(0)
    details: Json = field(default_factory=dict)
    taxes: list[AppliedTax] = field(default_factory=list)
    taxes_cents: int = 0
    taxes_precise_cents: Decimal = Decimal(0)
    coupons_precise_cents: Decimal = Decimal(0)
    credit_notes_precise_cents: Decimal = Decimal(0)
    invoice: Invoice | None = None

    @property
    def net_cents(self) -> Decimal:
        """What taxes are on: the amount less coupons."""
        return self.amount_cents - self.coupons_precise_cents

    @property
    def taxes_rate(self) -> Decimal:
        return sum((tax.rate for tax in self.taxes), Decimal(0))


@dataclass(frozen=True, slots=True)
class CurrentUsage:
    """Usage of the period that runs, one fee for each charge and filter. ``total_cents`` includes taxes."""

    span: Span
    currency: str
    issuing_date: date
    fees: Sequence[Fee]
    amount_cents: int
    taxes_cents: int

    @property
    def total_cents(self) -> int:
        return self.amount_cents + self.taxes_cents


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class InvoicePeriod:
    """What an invoice covers of one subscription. ``is_last``: the subscription ended with it."""

    subscription: Subscription
    fee_span: Span
    charges_span: Span
    reason: str
    with_fee: bool
    with_charges: bool
    is_last: bool = False


@dataclass(frozen=True, slots=True)
class Credit:
    """The part of a coupon or a credit note in paying an invoice."""

    id: str
    source: CreditNote | AppliedCoupon
    amount_cents: int


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class Invoice(Record):
    customer: Customer
    number: str
    sequential: int
    kind: str
    status: str
    payment_status: str
    currency: str
    issuing_date: date
    due_date: date
    updated: datetime
    finalize_on: date | None = None
    periods: list[InvoicePeriod] = field(default_factory=list)
    fees: list[Fee] = field(default_factory=list)
    taxes: list[AppliedTax] = field(default_factory=list)
    credits: list[Credit] = field(default_factory=list)
    metadata: list[MetadataPair] = field(default_factory=list)
    fees_cents: int = 0
    taxes_cents: int = 0
    coupons_cents: int = 0
    credit_notes_cents: int = 0
    prepaid_cents: int = 0
    prepaid_granted_cents: int | None = None
    prepaid_purchased_cents: int | None = None
    total_cents: int = 0
    paid_cents: int = 0
    voided_at: datetime | None = None
    voided_invoice: Invoice | None = None
    needs_refresh: bool = False

    @property
    def is_visible(self) -> bool:
        return self.status != "closed"

    @property
    def due_cents(self) -> int:
        return 0 if self.status == "voided" else self.total_cents - self.paid_cents


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class Event(Record):
    transaction_id: str
    external_subscription_id: str
    code: str
    at_us: int
    properties: Json
    precise_cents: str | None = None
    subscription: Subscription | None = None


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class Endpoint(Record):
    url: str
    algorithm: str
    name: str | None = None
    event_types: tuple[str, ...] | None = None
