"""What Lago will bill beside usage while the current period of an account lasts, and at its end.

Lago's rules (lago-api ``app/services/invoices/calculate_fees_service.rb``, ``app/services/fees/``): a plan's fee is
billed once in its interval, at the end of the interval or, in advance, at its beginning. With monthly charges that is
not every invoice. Fixed charges follow the same rule, with a flag of their own for monthly ones. A minimum commitment
bills what fee, fixed charges and usage lack of it, at the end of the interval. All of them count as whole ones, though
Lago prorates the first and the last.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_CEILING, Decimal, localcontext
from typing import Final

from sidecar.billing.lago.models import Customer, FixedCharge, Invoice, Plan, Subscription, Tax
from sidecar.billing.reconcile.alerts import BillingRefused
from sidecar.billing.reconcile.calendar import zone
from sidecar.billing.reconcile.charge_prices import net_price
from sidecar.billing.reconcile.effective_prices import EffectivePrices
from sidecar.billing.reconcile.funds import money
from sidecar.billing.reconcile.taxes import charge_taxes, gross, subscription_taxes
from sidecar.ledger.pricing.price_tables import Graduated, PriceError, Standard, Tier, Volume

_DAY_MS: Final = 86_400_000
_MONTHS: Final = {"semiannual": 6, "yearly": 12}
IN_ADVANCE_BILLED_MS: Final = 7_200_000
"""Lago bills what is paid in advance at ten past the hour in which a period begins; if that fails, an hour later."""


@dataclass(frozen=True, slots=True)
class Account:
    """What the fees of an account follow from. ``pays``: kinds of fees that one of the counted wallets pays.
    ``spent``: what the usage of the current period has cost, taxes included.
    """

    effective: EffectivePrices
    customer: Customer
    default_taxes: tuple[Tax, ...]
    invoices: tuple[Invoice, ...]
    pays: Collection[str]
    spent: Decimal
    now_ms: int


def next_fees(account: Account) -> Decimal:
    """The sum, taxes included, rounded up to the coin.

    Raises:
        BillingRefused: a fixed charge that cannot be computed.
    """
    effective = account.effective
    total = Decimal(0)
    for subscription, plan in effective.actives:
        if plan.currency == effective.plan.currency:
            total += _fees_of(subscription, plan, account)
    # Taxes are rounded to the coin: up, to be on the safe side.
    return total.quantize(money(1, effective.plan.currency), ROUND_CEILING)


def _fees_of(subscription: Subscription, plan: Plan, account: Account) -> Decimal:
    taxes = subscription_taxes(plan, account.customer, account.default_taxes)
    timezone = account.customer.timezone
    ends_interval = _ends_interval(subscription, plan, timezone)
    waits = _waits_in_advance(subscription, account)
    begins_interval = waits and _begins_interval(subscription, plan, timezone)
    total = Decimal(0)
    fee = Decimal(0) if _on_trial(subscription, plan) else money(plan.amount_cents, plan.currency)
    fee_is_due = begins_interval if plan.pay_in_advance else ends_interval
    if fee_is_due and "subscription" in account.pays:
        total += gross(fee, taxes)
    fixed = Decimal(0)
    for charge in plan.fixed_charges or ():
        net = _fixed_net(charge, plan)
        fixed += net
        is_due = begins_interval if charge.pay_in_advance else ends_interval
        if plan.bill_fixed_charges_monthly:
            is_due = waits if charge.pay_in_advance else True
        if is_due and "fixed_charge" in account.pays:
            total += gross(net, charge.taxes or taxes)
    if plan.commitment is not None and ends_interval and "commitment" in account.pays:
        lacking = money(plan.commitment.amount_cents, plan.currency) - fee - fixed - _net_spent(plan, account)
        total += gross(max(Decimal(0), lacking), plan.commitment.taxes or taxes)
    return total


def _ends_interval(subscription: Subscription, plan: Plan, timezone: str) -> bool:
    """Whether the interval of the plan's fee ends with the current period, which may be a month of it."""
    end_ms = subscription.period_end_ms
    if end_ms is None or (subscription.ending_at_ms is not None and subscription.ending_at_ms <= end_ms):
        return True
    return _is_between_intervals(end_ms, subscription, plan, timezone)


def _begins_interval(subscription: Subscription, plan: Plan, timezone: str) -> bool:
    """Whether it begins with the current period. The first one begins with the subscription."""
    start_ms, started_ms = subscription.period_start_ms, subscription.started_at_ms
    if start_ms is None or (started_ms is not None and started_ms // 1000 >= start_ms // 1000):
        return True
    return _is_between_intervals(start_ms, subscription, plan, timezone)


def _is_between_intervals(at_ms: int, subscription: Subscription, plan: Plan, timezone: str) -> bool:
    """``at_ms``: a bound of the periods in which charges are billed."""
    months = _MONTHS.get(plan.interval)
    if months is None or not (plan.bill_charges_monthly or plan.bill_fixed_charges_monthly):
        return True
    local = zone(timezone)
    first_month = 1
    if subscription.billing_time == "anniversary" and subscription.subscription_at_ms is not None:
        first_month = datetime.fromtimestamp(subscription.subscription_at_ms / 1000, local).month
    return (datetime.fromtimestamp(at_ms / 1000, local).month - first_month) % months == 0


def _waits_in_advance(subscription: Subscription, account: Account) -> bool:
    """Whether a fee in advance of the period that has just begun is on no invoice yet. A draft owes it as a whole."""
    start_ms, now_ms = subscription.period_start_ms, account.now_ms
    if start_ms is None or now_ms - start_ms > IN_ADVANCE_BILLED_MS:
        return False
    since = start_ms - start_ms % 1000
    return not any(
        invoice.created_at_ms >= since
        and invoice.status != "voided"
        and any(fee.subscription_id == subscription.lago_id for fee in invoice.fees or ())
        for invoice in account.invoices
    )


def _net_spent(plan: Plan, account: Account) -> Decimal:
    """At most what the usage came to before taxes: the highest of the taxes on it is taken off."""
    rates = [
        sum((tax.rate for tax in charge_taxes(charge, plan, account.customer, account.default_taxes)), Decimal(0))
        for charge in plan.charges
    ]
    with localcontext(prec=60):
        return account.spent / (1 + max(rates, default=Decimal(0)) / 100)


def _fixed_net(charge: FixedCharge, plan: Plan) -> Decimal:
    try:
        table = net_price(charge.model, charge.properties)
    except PriceError as error:
        raise _refusal(charge, plan, str(error)) from None
    match table:
        case Standard(amount):
            return amount * charge.units
        case Graduated(tiers):
            return _graduated(tiers, charge.units)
        case Volume(tiers):
            return _volume(tiers, charge.units)
    raise _refusal(charge, plan, f"the model {charge.model} is not one of a fixed charge")


def _refusal(charge: FixedCharge, plan: Plan, why: str) -> BillingRefused:
    return BillingRefused("plan", f"plan {plan.code}: fixed charge {charge.code or charge.lago_id}: {why}")


def _graduated(tiers: Sequence[Tier], units: Decimal) -> Decimal:
    total, low = Decimal(0), Decimal(0)
    for tier in tiers:
        if units <= low and low:
            break
        high = units if tier.up_to is None else min(units, Decimal(tier.up_to))
        total += tier.flat + (high - low) * tier.unit
        low = high if tier.up_to is None else Decimal(tier.up_to)
    return total


def _volume(tiers: Iterable[Tier], units: Decimal) -> Decimal:
    tier = next(each for each in tiers if each.up_to is None or math.ceil(units) <= each.up_to)
    return tier.flat + units * tier.unit


def _on_trial(subscription: Subscription, plan: Plan) -> bool:
    started, end = subscription.started_at_ms, subscription.period_end_ms
    if plan.trial_days <= 0 or subscription.trial_ended_at_ms is not None or started is None or end is None:
        return False
    return started + int(plan.trial_days * _DAY_MS) >= end
