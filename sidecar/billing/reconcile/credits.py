"""Coupons and credit notes as money, where that is certain.

Lago takes coupons off the fees before taxes and credit notes off the sum with taxes, each from all fees of the invoice
in proportion, before wallets pay (lago-api ``app/services/invoices/calculate_fees_service.rb``,
``app/services/credits/``). So all invoices together are smaller by at least what coupons and notes have left. Add-ons
are on invoices of their own that take neither, nor wallets (``app/services/invoices/create_one_off_service.rb``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Final

from sidecar.billing.lago.models import AppliedCoupon
from sidecar.billing.reconcile.credit_reading import Credits
from sidecar.billing.reconcile.effective_prices import EffectivePrices
from sidecar.billing.reconcile.funds import money

INVOICED_MS_MAX: Final = 86_400_000
"""A coupon counts if it can be applied for so long after the period's end: until the invoice is there."""


def credit_of(credits: Credits, effective: Sequence[EffectivePrices], currency: str, period_end_ms: int) -> Decimal:
    """What coupons and credit notes certainly take off the account's invoices. ``period_end_ms``: of its last period.

    Nothing, where an invoice may ask for something that the gateway does not know beforehand, for that would use them
    up too: usage of charges that cannot be enforced or of subscriptions that are not served, fees in advance of the
    next period.
    """
    coupons = [each for each in credits.coupons if _is_certain(each, currency, period_end_ms)]
    notes = [each for each in credits.notes if each.credit_status == "available" and each.currency == currency]
    cents = sum(each.remaining_cents or 0 for each in coupons) + sum(max(0, each.balance_cents) for each in notes)
    return money(cents, currency) if cents and _is_foreseeable(effective, currency) else Decimal(0)


def _is_certain(coupon: AppliedCoupon, currency: str, period_end_ms: int) -> bool:
    lasts = coupon.expires_at_ms is None or coupon.expires_at_ms > period_end_ms + INVOICED_MS_MAX
    is_money = coupon.frequency == "once" and coupon.currency == currency and (coupon.remaining_cents or 0) > 0
    return coupon.status == "active" and is_money and lasts


def _is_foreseeable(effective: Sequence[EffectivePrices], currency: str) -> bool:
    served = {each.lago_id for group in effective for each in group.billed_by.values()}
    plans: Iterable[bool] = (
        plan.currency == currency
        and (not plan.charges or subscription.lago_id in served)
        and not (plan.pay_in_advance and plan.amount_cents)
        and not any(charge.pay_in_advance for charge in plan.fixed_charges or ())
        for group in effective
        for subscription, plan in group.actives
    )
    return not any(group.refused for group in effective) and all(plans)
