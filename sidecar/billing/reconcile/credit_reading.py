"""Reads coupons and credit notes of accounts from Lago."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final, Protocol

from sidecar.basics.logger import get_logger
from sidecar.billing.lago.errors import LagoError
from sidecar.billing.lago.models import AppliedCoupon, Coupon, CreditNote

log = get_logger("sidecar.billing")

KNOWN_COUPONS_MAX: Final = 10_000


class CreditLists(Protocol):
    """The part of ``LagoClient`` that is needed here."""

    async def applied_coupons(self, customer: str) -> tuple[AppliedCoupon, ...]: ...

    async def coupon(self, code: str) -> Coupon | None: ...

    async def credit_notes(self, customer: str) -> tuple[CreditNote, ...]: ...


@dataclass(frozen=True, slots=True)
class Credits:
    """What Lago has beside wallets for a customer. ``coupons``: those that reduce every fee."""

    coupons: tuple[AppliedCoupon, ...] = ()
    notes: tuple[CreditNote, ...] = ()


NO_CREDITS: Final = Credits()


class CreditReader:
    """Reads credits. ``accounts``: who has any, as the last sweep has seen; None: not known, so all are asked for."""

    def __init__(self, lago: CreditLists) -> None:
        self.accounts: frozenset[str] | None = None
        self._lago = lago
        self._limited: dict[str, bool] = {}

    def __repr__(self) -> str:
        return f"CreditReader({'all' if self.accounts is None else len(self.accounts)})"

    async def read(self, account: str) -> Credits:
        """An account's. A Lago that refuses these lists, as an older one or a key without the right does, has none.

        Raises:
            LagoError: one that passes.
        """
        if self.accounts is not None and account not in self.accounts:
            return NO_CREDITS
        try:
            coupons, notes = await asyncio.gather(self._lago.applied_coupons(account), self._lago.credit_notes(account))
            limited = [await self._is_limited(each) for each in coupons]
        except LagoError as error:
            if error.transient:
                raise
            log.warning("coupons and credit notes not read", account=account, reason=str(error))
            return NO_CREDITS
        return Credits(tuple(each for each, is_limited in zip(coupons, limited, strict=True) if not is_limited), notes)

    async def _is_limited(self, applied: AppliedCoupon) -> bool:
        """Lago does not change the limits of a coupon that a customer has (``app/services/coupons/update_service.rb``),
        so they are asked for once.
        """
        if applied.remaining_cents is None:
            return True  # it is no money anyway
        known = self._limited.get(applied.coupon_id)
        if known is None:
            found = await self._lago.coupon(applied.coupon_code)
            known = found is None or found.lago_id != applied.coupon_id or found.is_limited
            if len(self._limited) >= KNOWN_COUPONS_MAX:
                self._limited.clear()
            self._limited[applied.coupon_id] = known
        return known
