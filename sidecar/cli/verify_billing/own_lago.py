"""A client of Lago that sees nothing but the run's own customers.

A control plane loads every customer that Lago lists, and pushes usage for them. In a Lago that others use too, that
would bill their usage a second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sidecar.billing.lago.client import LagoClient
from sidecar.billing.lago.models import AppliedCoupon, CreditNote, Customer, Page, Subscription, Wallet
from sidecar.billing.lago.object_requests import PER_PAGE
from sidecar.billing.lago.transport import Query
from sidecar.billing.settings import LagoSettings
from sidecar.cli.verify_billing.names import Names


class OwnLago(LagoClient):
    """Raises as `LagoClient`."""

    def __init__(self, settings: LagoSettings, names: Names) -> None:
        super().__init__(settings)
        self._names = names

    async def customer(self, external_id: str) -> Customer | None:
        return await super().customer(external_id) if self._names.owns(external_id) else None

    async def customers(self, page: int = 1, per_page: int = PER_PAGE) -> Page[Customer]:
        found = await super().customers(page, per_page)
        return replace(found, items=tuple(each for each in found.items if self._names.owns(each.external_id)))

    async def wallets_page(self, page: int = 1, per_page: int = PER_PAGE) -> Page[Wallet]:
        found = await super().wallets_page(page, per_page)
        return replace(found, items=tuple(each for each in found.items if self._names.owns(each.customer)))

    async def subscriptions_page(
        self,
        page: int = 1,
        statuses: Sequence[str] = ("active",),
        plan_code: str | None = None,
        per_page: int = PER_PAGE,
    ) -> Page[Subscription]:
        found = await super().subscriptions_page(page, statuses, plan_code, per_page)
        return replace(found, items=tuple(each for each in found.items if self._names.owns(each.customer)))

    async def applied_coupons_page(
        self, page: int = 1, per_page: int = PER_PAGE, query: Query = ()
    ) -> Page[AppliedCoupon]:
        found = await super().applied_coupons_page(page, per_page, query)
        return replace(found, items=tuple(each for each in found.items if self._names.owns(each.customer)))

    async def credit_notes_page(self, page: int = 1, per_page: int = PER_PAGE, query: Query = ()) -> Page[CreditNote]:
        found = await super().credit_notes_page(page, per_page, query)
        return replace(found, items=tuple(each for each in found.items if self._names.owns(each.customer)))
