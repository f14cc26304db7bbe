"""Coupons and credit notes of customers: what makes an invoice smaller before wallets pay it.

Source: lago-api ``app/controllers/concerns/applied_coupon_index.rb``, ``credit_note_index.rb``, ``app/serializers/v1/
applied_coupon_serializer.rb``, ``coupon_serializer.rb``, ``credit_note_serializer.rb``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from sidecar.billing.lago.answered_ids import all_of
from sidecar.billing.lago.json_fields import Fields
from sidecar.billing.lago.models import AppliedCoupon, Coupon, CreditNote, Page
from sidecar.billing.lago.object_requests import PER_PAGE, ObjectRequests
from sidecar.billing.lago.transport import Query

PAGES_MAX: Final = 10
"""Of one customer's coupons, or credit notes. What is beyond counts as no money."""

Credit = TypeVar("Credit", AppliedCoupon, CreditNote)


def applied_coupon(row: Fields) -> AppliedCoupon:
    return AppliedCoupon(
        lago_id=row.text("lago_id"),
        coupon_id=row.text("lago_coupon_id"),
        coupon_code=row.text("coupon_code"),
        customer=row.text("external_customer_id"),
        status=row.text("status"),
        frequency=row.text_or_none("frequency") or "",
        currency=row.text_or_none("amount_currency"),
        remaining_cents=row.whole_or_none("amount_cents_remaining"),
        expires_at_ms=row.instant_ms_or_none("expiration_at"),
    )


def coupon(row: Fields) -> Coupon:
    limits = (row.flag("limited_plans"), row.flag("limited_billable_metrics"))
    known = row.has("limited_plans") and row.has("limited_billable_metrics")
    return Coupon(row.text("lago_id"), row.text("code"), any(limits) or not known)


def credit_note(row: Fields) -> CreditNote:
    return CreditNote(
        lago_id=row.text("lago_id"),
        customer=row.row("customer").text("external_id"),
        currency=row.text("currency"),
        credit_status=row.text_or_none("credit_status") or "",
        balance_cents=row.whole("balance_amount_cents"),
    )


class CreditRequests(ObjectRequests):
    """The requests of ``LagoClient`` for coupons and credit notes."""

    async def applied_coupons(self, customer: str) -> tuple[AppliedCoupon, ...]:
        """A customer's active ones."""
        return all_of("GET /applied_coupons", customer, await _first_pages(self.applied_coupons_page, customer))

    async def applied_coupons_page(
        self, page: int = 1, per_page: int = PER_PAGE, query: Query = ()
    ) -> Page[AppliedCoupon]:
        """A page of the active ones of all customers."""
        active = [*query, ("status", "active")]
        return await self._page("/applied_coupons", "applied_coupons", applied_coupon, page, per_page, active)

    async def coupon(self, code: str) -> Coupon | None:
        """A coupon; None if it was deleted, whoever it is applied to."""
        return await self._find("/coupons/{id}", code, "coupon", coupon, id_of=lambda each: each.code)

    async def coupons_page(self, page: int = 1, per_page: int = PER_PAGE) -> Page[Coupon]:
        return await self._page("/coupons", "coupons", coupon, page, per_page)

    async def credit_notes(self, customer: str) -> tuple[CreditNote, ...]:
        """A customer's that have something left."""
        return all_of("GET /credit_notes", customer, await _first_pages(self.credit_notes_page, customer))

    async def credit_notes_page(self, page: int = 1, per_page: int = PER_PAGE, query: Query = ()) -> Page[CreditNote]:
        """A page of those of all customers that have something left."""
        available = [*query, ("credit_status", "available")]
        return await self._page("/credit_notes", "credit_notes", credit_note, page, per_page, available)


async def _first_pages(read: Callable[..., Awaitable[Page[Credit]]], customer: str) -> tuple[Credit, ...]:
    """A customer's of a list, each once: a list may change between two pages."""
    found: dict[str, Credit] = {}
    page: int | None = 1
    while page is not None and page <= PAGES_MAX:
        answer = await read(page, query=[("external_customer_id", customer)])
        found |= {each.lago_id: each for each in answer.items}
        page = answer.next_page
    return tuple(found.values())
