"""Coupons of the Lago stand-in, and how they reduce an invoice.

Source: lago-api ``app/services/coupons/``, ``app/services/applied_coupons/``, ``app/services/credits/
applied_coupon_service.rb``, ``app/serializers/v1/applied_coupon_serializer.rb``. A coupon that has expired is applied
to nobody any more; who has it keeps it.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

from sidecar.sandbox.lago.fields import Fields
from sidecar.sandbox.lago.lago_store import Store, newest_first
from sidecar.sandbox.lago.lago_wire import Call, Json, filtered, iso, iso_or_none, not_found, page
from sidecar.sandbox.lago.money import decimal_text, fraction_decimal, round_fraction
from sidecar.sandbox.lago.records import AppliedCoupon, Coupon, Credit, Fee, Invoice

KINDS = ("fixed_amount", "percentage")
FREQUENCIES = ("once", "recurring", "forever")


class CouponsApi:
    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, call: Call) -> Json:
        fields = Fields(call.root("coupon"))
        code, name = fields.required("code"), fields.required("name")
        kind = fields.choice("coupon_type", KINDS, "fixed_amount")
        frequency = fields.choice("frequency", FREQUENCIES, "once")
        amount, currency = fields.integer("amount_cents", low=1), fields.currency("amount_currency")
        rate, duration = fields.number("percentage_rate"), fields.integer("frequency_duration", low=1)
        expires_at = fields.instant("expiration_at")
        scope = Fields(fields.object("applies_to"))
        plans, metrics = scope.texts("plan_codes"), scope.texts("billable_metric_codes")
        if code in self._store.coupons:
            fields.error("code", "value_already_exist")
        if kind == "fixed_amount" and (amount is None or currency is None):
            fields.error("amount_cents", "value_is_mandatory")
        if kind == "percentage" and rate is None:
            fields.error("percentage_rate", "value_is_mandatory")
        fields.check()
        coupon = self._store.coupons[code] = Coupon(
            **self._store.new(), code=code, name=name, kind=kind, frequency=frequency, amount_cents=amount,
            currency=currency, rate=rate, duration=duration, expires_at=expires_at, plans=plans, metrics=metrics,
        )  # fmt: skip
        return {"coupon": _coupon_view(coupon)}

    def get(self, call: Call) -> Json:
        return {"coupon": _coupon_view(self._find(call.path["code"]))}

    def list(self, call: Call) -> Json:
        return page(call, "coupons", newest_first(self._store.coupons.values()), _coupon_view)

    def delete(self, call: Call) -> Json:
        """Who has it loses it."""
        coupon = self._store.coupons.pop(self._find(call.path["code"]).code)
        for applied in self._store.applied_coupons.values():
            if applied.coupon is coupon and applied.is_active:
                applied.terminated_at = self._store.now()
        return {"coupon": _coupon_view(coupon)}

    def apply(self, call: Call) -> Json:
        fields = Fields(call.root("applied_coupon"))
        customer = self._store.customer(fields.required("external_customer_id"))
        coupon = self._find(fields.required("coupon_code"))
        amount = fields.integer("amount_cents", coupon.amount_cents, low=1)
        currency = fields.currency("amount_currency") or coupon.currency
        frequency = fields.choice("frequency", FREQUENCIES, coupon.frequency)
        fields.check()
        applied = AppliedCoupon(
            **self._store.new(), coupon=coupon, customer=customer, frequency=frequency, amount_cents=amount,
            currency=currency, rate=coupon.rate, duration_left=coupon.duration,
        )  # fmt: skip
        self._store.applied_coupons[applied.id] = applied
        return {"applied_coupon": _applied_view(applied)}

    def list_applied(self, call: Call) -> Json:
        found = [item for item in self._store.applied_coupons.values() if not item.customer.deleted]
        wanted = {"external_customer_id": lambda item: item.customer.external_id, "status": lambda item: item.status}
        return page(call, "applied_coupons", newest_first(filtered(call, found, wanted)), _applied_view)

    def remove(self, call: Call) -> Json:
        found = self._store.applied_coupons.get(call.path["lago_id"])
        if found is None or found.customer.external_id != call.path["external_id"]:
            raise not_found("applied_coupon")
        found.terminated_at = found.terminated_at or self._store.now()
        return {"applied_coupon": _applied_view(found)}

    def _find(self, code: str) -> Coupon:
        found = self._store.coupons.get(code)
        if found is None:
            raise not_found("coupon")
        return found


def apply_coupons(store: Store, invoice: Invoice) -> None:
    """Reduces the fees of an invoice that becomes final; taxes are computed afterwards. Coupons of metrics come first,
    then those of plans, then those of everything, the older before the younger.
    """
    found = [item for item in store.applied_coupons.values() if item.customer is invoice.customer and item.is_active]
    found.sort(key=lambda item: (not item.coupon.metrics, not item.coupon.plans, item.created, item.seq))
    for applied in found:
        fees = [fee for fee in invoice.fees if _is_reduced(fee, applied.coupon)]
        if invoice.fees_cents - invoice.coupons_cents <= 0:
            return
        if not fees or (applied.coupon.kind == "fixed_amount" and applied.currency != invoice.currency):
            continue
        base = sum((Fraction(fee.amount_cents) - Fraction(fee.coupons_precise_cents) for fee in fees), Fraction(0))
        cents = _reduction(applied, base)
        for fee in fees:
            share = cents * (Fraction(fee.amount_cents) - Fraction(fee.coupons_precise_cents)) / base if base else 0
            fee.coupons_precise_cents = min(
                Decimal(fee.amount_cents), fee.coupons_precise_cents + fraction_decimal(Fraction(share))
            )
        invoice.coupons_cents += cents
        credit = Credit(store.new_id(), applied, cents)
        invoice.credits.append(credit)
        applied.used.append((invoice, cents))
        if applied.duration_left is not None and applied.frequency == "recurring":
            applied.duration_left = max(0, applied.duration_left - 1)
        if _is_used_up(applied):
            applied.terminated_at = store.now()


def give_back(invoice: Invoice) -> None:
    """An invoice is void: a coupon that it has used up is there again."""
    for credit in invoice.credits:
        applied = credit.source
        if isinstance(applied, AppliedCoupon) and applied.frequency != "forever":
            applied.terminated_at = None
            if applied.duration_left is not None and applied.frequency == "recurring":
                applied.duration_left += 1


def _is_reduced(fee: Fee, coupon: Coupon) -> bool:
    if coupon.metrics:
        return fee.charge is not None and fee.charge.metric.code in coupon.metrics
    if coupon.plans:
        return fee.subscription is not None and fee.subscription.plan.code in coupon.plans
    return True


def _reduction(applied: AppliedCoupon, base: Fraction) -> int:
    if applied.coupon.kind == "percentage":
        return min(round_fraction(base * Fraction(applied.rate or 0) / 100), round_fraction(base))
    amount = applied.remaining_cents if applied.frequency == "once" else applied.amount_cents
    return min(amount or 0, round_fraction(base))


def _is_used_up(applied: AppliedCoupon) -> bool:
    if applied.frequency == "once":
        return applied.coupon.kind == "percentage" or not applied.remaining_cents
    return applied.frequency == "recurring" and not applied.duration_left


def _coupon_view(coupon: Coupon) -> Json:
    return {
        "lago_id": coupon.id,
        "name": coupon.name,
        "code": coupon.code,
        "description": None,
        "coupon_type": coupon.kind,
        "amount_cents": coupon.amount_cents,
        "amount_currency": coupon.currency,
        "percentage_rate": None if coupon.rate is None else decimal_text(coupon.rate),
        "frequency": coupon.frequency,
        "frequency_duration": coupon.duration,
        "reusable": True,
        "limited_plans": bool(coupon.plans),
        "limited_billable_metrics": bool(coupon.metrics),
        "plan_codes": list(coupon.plans),
        "billable_metric_codes": list(coupon.metrics),
        "created_at": iso(coupon.created),
        "expiration": "no_expiration" if coupon.expires_at is None else "time_limit",
        "expiration_at": iso_or_none(coupon.expires_at),
        "terminated_at": None,
    }


def _applied_view(applied: AppliedCoupon) -> Json:
    coupon = applied.coupon
    is_once = applied.frequency == "once" and coupon.kind == "fixed_amount"
    return {
        "lago_id": applied.id,
        "lago_coupon_id": coupon.id,
        "coupon_code": coupon.code,
        "coupon_name": coupon.name,
        "coupon_description": None,
        "coupon_status": "active",
        "coupon_deleted_at": None,
        "lago_customer_id": applied.customer.id,
        "external_customer_id": applied.customer.external_id,
        "status": applied.status,
        "amount_cents": applied.amount_cents,
        "amount_cents_remaining": applied.remaining_cents if is_once else None,
        "amount_currency": applied.currency,
        "percentage_rate": None if applied.rate is None else decimal_text(applied.rate),
        "frequency": applied.frequency,
        "frequency_duration": coupon.duration,
        "frequency_duration_remaining": applied.duration_left,
        "expiration_at": iso_or_none(coupon.expires_at),
        "created_at": iso(applied.created),
        "terminated_at": iso_or_none(applied.terminated_at),
        "credits": [],
    }
