"""How Lago pays invoices, in fractions of a coin: a model of its own, for tests of what is computed before.

Source: lago-api ``app/services/invoices/calculate_fees_service.rb`` (the order: coupons, credit notes, wallets) and
``app/services/credits/``. Without taxes, so that nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass
class LagoWallet:
    """``scope``: keys of fees; None pays all. Wallets are in the order in which they pay."""

    balance: Fraction
    scope: frozenset[str] | None

    def pays(self, key: str) -> bool:
        return self.scope is None or key in self.scope


@dataclass
class LagoCustomer:
    """``credits``: balances of coupons and credit notes, which are used up before wallets pay."""

    wallets: list[LagoWallet]
    credits: list[Fraction]

    def pay(self, fees: Mapping[str, Fraction], tie: Callable[[Sequence[str]], Sequence[str]]) -> dict[str, Fraction]:
        """Pay an invoice; what remains by fee. ``tie``: the order among fees, where Lago's own is not certain."""
        left = {key: amount for key, amount in fees.items() if amount > 0}
        for number, credit in enumerate(self.credits):
            total = sum(left.values(), Fraction(0))
            used = min(credit, total)
            if used:
                left = {key: amount - used * amount / total for key, amount in left.items()}
                self.credits[number] -= used
        order = sorted(tie(list(left)), key=lambda key: left[key], reverse=True)
        for wallet in self.wallets:
            for key in order:
                if wallet.pays(key):
                    part = min(left[key], wallet.balance)
                    left[key] -= part
                    wallet.balance -= part
        return {key: amount for key, amount in left.items() if amount}
