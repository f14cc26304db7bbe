"""The fees of the Lago stand-in: usage, subscription, top-up, and the taxes on them.

Source: lago-api ``app/services/fees/charge_service.rb`` (one rounding for each fee, half away from zero),
``subscription_service.rb`` (proration by days), ``paid_credit_service.rb``, ``apply_taxes_service.rb`` and
``app/services/invoices/apply_taxes_service.rb``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal, localcontext
from fractions import Fraction

from sidecar.sandbox.lago.charge_filters import group_keys, grouped, is_counted, scopes
from sidecar.sandbox.lago.charges import Cost, Usage, cost
from sidecar.sandbox.lago.lago_events import Aggregate, aggregate
from sidecar.sandbox.lago.lago_store import Store
from sidecar.sandbox.lago.money import (
    WIDE,
    exponent,
    fraction_decimal,
    from_cents,
    round_fraction,
    round_half_away,
    to_cents,
)
from sidecar.sandbox.lago.periods import Span
from sidecar.sandbox.lago.records import (
    AppliedTax,
    Charge,
    Fee,
    Filter,
    InvoicePeriod,
    Subscription,
    Tax,
    Transaction,
)

MICROSECONDS_PER_DAY = 86_400_000_000


def trial_end(subscription: Subscription) -> datetime | None:
    """The end of the trial, which counts from the first subscription under the external id. It waives no usage."""
    if not subscription.plan.trial_days or subscription.started_at is None:
        return None
    begin = subscription.first_started_at or subscription.started_at
    return begin + timedelta(microseconds=int(subscription.plan.trial_days * MICROSECONDS_PER_DAY))


class Fees:
    """Makes fees out of what the store knows now: a price edited in mid-period re-rates the whole period."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def charges(self, subscription: Subscription, span: Span, *, with_unused: bool) -> list[Fee]:
        """Usage fees of a span; ``with_unused`` also those of charges without any usage, as current usage shows them.

        Charges paid in advance are left out: Lago bills each of their events by itself, which is not done here.
        """
        fees = []
        for charge in subscription.plan.charges:
            if not charge.pay_in_advance:
                fees += self._charge(subscription, charge, span)
        if with_unused:
            return fees
        return [fee for fee in fees if fee.units or fee.amount_cents or fee.events_count]

    def _charge(self, subscription: Subscription, charge: Charge, span: Span) -> list[Fee]:
        """One fee, or one for each filter and group and one for what no filter takes."""
        since = subscription.first_started_at or span.start
        usage_span = Span(since, span.until, span.shown_to) if charge.metric.recurring else span
        if not charge.filters and not group_keys(charge.properties) and charge.model != "percentage":
            used = self._store.events.measure(charge.metric, subscription.external_id, usage_span)
            return [self._usage_fee(subscription, charge, span, used, None, {})]
        events = self._store.events.within(subscription.external_id, charge.metric.code, usage_span)
        fees = []
        for filter_, conditions, left_out in scopes(charge):
            keys = group_keys(charge.properties if filter_ is None else filter_["properties"])
            counted = [event for event in events if is_counted(event, conditions, left_out)]
            for group, of_group in grouped(counted, keys):
                used = aggregate(charge.metric, of_group)
                fees.append(self._usage_fee(subscription, charge, span, used, filter_, group))
        return fees

    def _usage_fee(
        self,
        subscription: Subscription,
        charge: Charge,
        span: Span,
        used: Aggregate,
        filter_: Filter | None,
        group: dict[str, str | None],
    ) -> Fee:
        properties = charge.properties if filter_ is None else filter_["properties"]
        if used.units < 0:
            used = Aggregate(Decimal(0), used.count, used.values)
        found = cost(charge.model, properties, Usage(used.units, used.values))
        currency = subscription.plan.currency
        return Fee(
            **self._store.new(),
            kind="charge",
            currency=currency,
            units=used.units,
            events_count=used.count,
            amount_cents=to_cents(found.amount, currency),
            precise_cents=found.amount.scaleb(exponent(currency), WIDE),
            unit_amount=_unit_amount(found, used.units),
            details=dict(found.details),
            subscription=subscription,
            charge=charge,
            filter=filter_,
            group=group,
            span=span,
        )

    def subscription(self, period: InvoicePeriod) -> Fee:
        """The plan's amount, prorated where the period is not a whole one; the upgrade day belongs to the new plan."""
        subscription, span = period.subscription, period.fee_span
        plan = subscription.plan
        precise = plan.amount_cents * self._share(period)
        amount = round_fraction(precise)
        return Fee(
            **self._store.new(),
            kind="subscription",
            currency=plan.currency,
            units=Decimal(1),
            amount_cents=amount,
            precise_cents=fraction_decimal(precise),
            unit_amount=from_cents(amount, plan.currency),
            details={"plan_amount_cents": plan.amount_cents},
            subscription=subscription,
            span=span,
        )

    def _share(self, period: InvoicePeriod) -> Fraction:
        subscription, span = period.subscription, period.fee_span
        periods = self._store.fee_periods(subscription)
        end = trial_end(subscription)
        if end is not None and end >= span.shown_to:
            return Fraction(0)
        if end is not None and end > span.start:
            span = Span(end, span.until, span.shown_to)
        upgraded = period.is_last and subscription.status == "terminated" and subscription.is_upgraded
        return periods.share(span, without_last=upgraded)

    def fixed(self, period: InvoicePeriod) -> list[Fee]:
        """Those of an interval that is over: with monthly charges, in its last month."""
        subscription, currency = period.subscription, period.subscription.plan.currency
        is_over = period.with_fee or subscription.plan.charges_interval == subscription.plan.interval
        if not period.with_charges or not is_over:
            return []
        fees = []
        for charge in subscription.plan.fixed_charges:
            amount = charge.amount * charge.units
            fees.append(
                Fee(
                    **self._store.new(),
                    kind="fixed_charge",
                    currency=currency,
                    units=charge.units,
                    amount_cents=to_cents(amount, currency),
                    precise_cents=amount.scaleb(exponent(currency), WIDE),
                    unit_amount=charge.amount,
                    subscription=subscription,
                    fixed_charge=charge,
                    span=period.charges_span,
                )
            )
        return fees

    def commitment(self, period: InvoicePeriod, fees: Sequence[Fee]) -> list[Fee]:
        """What the fees of an interval that ends lack of the minimum commitment (lago-api
        ``app/services/fees/commitments/minimum/create_service.rb``), prorated as the plan's amount is.
        """
        subscription, plan = period.subscription, period.subscription.plan
        if not plan.commitment_cents or plan.pay_in_advance or plan.charges_interval != plan.interval:
            return []
        mine = sum(fee.amount_cents for fee in fees if fee.subscription is subscription)
        lacking = round_fraction(plan.commitment_cents * self._share(period)) - mine
        if lacking <= 0:
            return []
        fee = Fee(
            **self._store.new(),
            kind="commitment",
            currency=plan.currency,
            units=Decimal(1),
            amount_cents=lacking,
            precise_cents=Decimal(lacking),
            unit_amount=from_cents(lacking, plan.currency),
            subscription=subscription,
            span=period.charges_span,
        )
        return [fee]

    def top_up(self, transaction: Transaction) -> Fee:
        """Untaxed: it is paid in advance."""
        wallet = transaction.wallet
        return Fee(
            **self._store.new(),
            kind="credit",
            currency=wallet.currency,
            units=transaction.credits,
            amount_cents=transaction.amount_cents,
            precise_cents=Decimal(transaction.amount_cents),
            unit_amount=wallet.rate,
            transaction=transaction,
        )

    def apply_taxes(self, fees: Sequence[Fee]) -> None:
        """A charge's own taxes go before its plan's, the customer's and the organisation's, in this order."""
        for fee in fees:
            if fee.subscription is None:
                continue
            own = fee.charge.taxes if fee.charge is not None else []
            default = [tax for tax in self._store.taxes.values() if tax.is_default]
            taxes = own or fee.subscription.plan.taxes or fee.subscription.customer.taxes or default
            with localcontext(WIDE):
                precise = fee.precise_cents - fee.coupons_precise_cents
                fee.taxes = [self._applied(tax, fee.net_cents, precise * tax.rate / 100) for tax in taxes]
                exact = sum((fee.net_cents * tax.rate / 100 for tax in taxes), Decimal(0))
                fee.taxes_precise_cents = sum((tax.precise_cents for tax in fee.taxes), Decimal(0))
            fee.taxes_cents = round_fraction(Fraction(exact))

    def taxes_of(self, fees: Sequence[Fee]) -> tuple[list[AppliedTax], int]:
        """The taxes on an invoice and their sum: rounded once, over all fees and taxes."""
        bases: dict[str, Decimal] = {}
        named: dict[str, AppliedTax] = {}
        for fee in fees:
            for tax in fee.taxes:
                bases[tax.tax_id] = bases.get(tax.tax_id, Decimal(0)) + fee.net_cents
                named[tax.tax_id] = tax
        total, applied = Fraction(0), []
        for tax_id, base in bases.items():
            tax = named[tax_id]
            exact = Fraction(tax.rate) * Fraction(base) / 100
            total += exact
            applied.append(
                AppliedTax(
                    self._store.new_id(), tax_id, tax.code, tax.name, tax.description, tax.rate,
                    fraction_decimal(exact), round_fraction(exact), int(round_half_away(base)),
                )
            )  # fmt: skip
        return applied, round_fraction(total)

    def _applied(self, tax: Tax, base_cents: Decimal, precise_cents: Decimal) -> AppliedTax:
        amount = round_fraction(Fraction(tax.rate) * Fraction(base_cents) / 100)
        return AppliedTax(
            self._store.new_id(),
            tax.id,
            tax.code,
            tax.name,
            tax.description,
            tax.rate,
            precise_cents,
            amount,
            int(round_half_away(base_cents)),
        )


def _unit_amount(found: Cost, units: Decimal) -> Decimal:
    if not units:
        return Decimal(0)
    with localcontext(WIDE):
        return round(found.amount / units, 15)
