"""A look at every customer through Lago's lists, a hundred to a page: whose wallets, subscriptions or data have changed
since they were last read is read in full, and so is everybody now and then.

A reading takes half a dozen requests, a page of a list one for a hundred accounts, and Lago has rate limits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from sidecar.basics.logger import get_logger
from sidecar.billing.lago.errors import LagoError
from sidecar.billing.lago.models import AppliedCoupon, CreditNote, Customer, Page, Subscription, Wallet

log = get_logger("sidecar.billing")

PAGE: Final = 100


class Lists(Protocol):
    """The lists of ``LagoClient``."""

    async def customers(self, page: int, per_page: int = ...) -> Page[Customer]: ...

    async def wallets_page(self, page: int, per_page: int = ...) -> Page[Wallet]: ...

    async def applied_coupons_page(self, page: int, per_page: int = ...) -> Page[AppliedCoupon]: ...

    async def credit_notes_page(self, page: int, per_page: int = ...) -> Page[CreditNote]: ...

    async def subscriptions_page(
        self, page: int, *, statuses: tuple[str, ...] = ..., plan_code: str | None = ..., per_page: int = ...
    ) -> Page[Subscription]: ...


@dataclass(slots=True)
class Fingerprints:
    """One number for each account, whatever the order of what it was made of. 8 bytes of hash an object: two states of
    an account look the same once in 10^19. ``credited``: the accounts that have coupons or credit notes.
    ``settings``: a number of those that decide how accounts are read.
    """

    by_account: dict[str, int] = field(default_factory=dict)
    settings: int = 0
    seen: set[str] = field(default_factory=set)
    credited: set[str] = field(default_factory=set)

    def add(self, account: str, lago_id: str, value: object) -> None:
        """A page that moved while the list was read shows an object twice; it counts once."""
        if lago_id in self.seen:
            return
        self.seen.add(lago_id)
        digest = hashlib.blake2b(repr(value).encode(), digest_size=8).digest()
        self.by_account[account] = self.by_account.get(account, 0) ^ int.from_bytes(digest, "big")

    def of(self, account: str) -> str:
        return f"{self.by_account.get(account, 0) ^ self.settings:016x}"


async def read_lists(lago: Lists, progress: Callable[[str, int, int], None] | None = None) -> Fingerprints:
    """The fingerprints of all customers. ``progress`` is called with what is read, items so far and in all.

    Raises:
        LagoError: as the client does.
    """
    prints = Fingerprints()

    async def through(what: str, read: Callable[[int], Awaitable[Page[Any]]], take: Callable[[Any], None]) -> None:
        page, done = 1, 0
        while True:
            answer = await read(page)
            for item in answer.items:
                take(item)
            done += len(answer.items)
            if progress is not None:
                progress(what, done, answer.total_count)
            if answer.next_page is None or answer.next_page <= page:
                return
            page = answer.next_page

    await through(
        "customers",
        lambda page: lago.customers(page, PAGE),
        lambda c: prints.add(c.external_id, c.lago_id, _customer(c)),
    )
    await through(
        "subscriptions",
        lambda page: lago.subscriptions_page(page, statuses=("active", "pending"), per_page=PAGE),
        lambda s: prints.add(s.customer, s.lago_id, s),
    )
    await through("wallets", lambda page: lago.wallets_page(page, PAGE), lambda w: prints.add(w.customer, w.lago_id, w))

    def credit(item: AppliedCoupon | CreditNote) -> None:
        if item.customer not in prints.by_account:
            return  # Lago has deleted the customer
        prints.credited.add(item.customer)
        prints.add(item.customer, item.lago_id, item)

    for what, read in (("coupons", lago.applied_coupons_page), ("credit notes", lago.credit_notes_page)):
        try:
            await through(what, lambda page, read=read: read(page, PAGE), credit)  # type: ignore[misc]
        except LagoError as error:
            if error.transient:
                raise
            log.warning("list not read", list=what, reason=str(error))
    prints.seen.clear()
    return prints


def _customer(customer: Customer) -> Mapping[str, object]:
    # Lists do not tell a customer's taxes.
    return {
        "currency": customer.currency,
        "timezone": customer.timezone,
        "metadata": sorted(customer.metadata.items()),
    }
