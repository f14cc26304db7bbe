"""Adds up the wallets of an account.

Lago pays an invoice from the active wallets of the invoice's currency (lago-api
``app/services/credits/applied_prepaid_credits_service.rb``): a wallet pays a fee when the metric matches, or the fee's
type does, or it is unrestricted. For a prepaid account each wallet counts that pays for one of its metrics;
``wallet_allocation`` says how much of them may be spent. For other accounts a wallet counts only if it pays for every
metric: what it does not pay, the customer owes.

Stated bounds, all on the safe side: the fees beside usage (``next_fees``) are set aside where a wallet would pay them;
and a cent for each further rounding on the invoice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from sidecar.billing.lago.models import Wallet
from sidecar.ledger.pricing.currencies import exponent
from sidecar.ledger.pricing.price_tables import PriceTable, amounts

FEE_KINDS: Final = ("subscription", "fixed_charge", "commitment", "add_on")
"""Kinds of fees on a subscription's invoice beside ``charge``."""


@dataclass(frozen=True, slots=True)
class Funds:
    """``balance`` is what the counted wallets hold. ``ignored`` says of each other active wallet why it is not counted.

    ``pays``: kinds of fees beside usage that one of the counted wallets would pay too. ``next_expiry_ms`` is when the
    first of them expires.
    """

    balance: Decimal
    counted: tuple[Wallet, ...]
    ignored: tuple[str, ...]
    pays: frozenset[str]
    next_expiry_ms: int | None


def money(cents: int, currency: str) -> Decimal:
    """An integer of the smallest coin as money."""
    return Decimal(cents).scaleb(-exponent(currency))


def funds_of(
    wallets: Iterable[Wallet], metrics: Sequence[str], currency: str, now_ms: int, *, of_any: bool = False
) -> Funds:
    """The funds for usage of ``metrics``. ``of_any``: of wallets that pay for one of them; else for all of them."""
    counted: list[Wallet] = []
    ignored: list[str] = []
    for wallet in wallets:
        if not wallet.is_active:
            continue
        why = _why_not(wallet, metrics, currency, now_ms, of_any)
        if why is None:
            counted.append(wallet)
        else:
            ignored.append(f"wallet {wallet.lago_id} ({wallet.name or 'unnamed'}): {why}")
    expiries = [wallet.expires_at_ms for wallet in counted if wallet.expires_at_ms is not None]
    return Funds(
        balance=sum((money(max(0, wallet.balance_cents), currency) for wallet in counted), Decimal(0)),
        counted=tuple(sorted(counted, key=lambda wallet: (wallet.priority, wallet.created_at_ms))),
        ignored=tuple(ignored),
        pays=frozenset(kind for kind in FEE_KINDS if any(_pays(wallet, kind) for wallet in counted)),
        next_expiry_ms=min(expiries, default=None),
    )


def identity_faults(wallet: Wallet) -> Iterable[str]:
    """Contradictions between Lago's figures of one wallet."""
    name = f"wallet {wallet.lago_id}"
    if wallet.balance_cents < 0:
        yield f"{name}: its balance is negative ({wallet.balance_cents} cents)"
    if wallet.consumed_credits < 0:
        yield f"{name}: its consumed credits are negative ({wallet.consumed_credits})"
    try:
        worth = wallet.credits_balance * wallet.rate_amount
        difference = abs(worth - money(wallet.balance_cents, wallet.currency))
    except (ValueError, ArithmeticError) as error:
        yield f"{name}: {error}"
        return
    # Both are rounded on their own: credits to five decimals, money to the coin.
    if difference > money(1, wallet.currency) + wallet.rate_amount.scaleb(-5):
        yield (
            f"{name}: {wallet.credits_balance} credits at {wallet.rate_amount} are {worth} {wallet.currency},"
            f" but its balance is {money(wallet.balance_cents, wallet.currency)}"
        )


def rounding_margin(tables: Iterable[PriceTable], taxes: int, currency: str) -> Decimal:
    """By how much an invoice may exceed the exact cost, as each fee, and the taxes on it, are rounded to the coin.

    ``tables``: prices with taxes. One in whole coins rounds nothing. A single rounding needs no margin: what a fee
    costs cannot exceed funds in whole coins before it is rounded, and rounding half up cannot lift it above them.
    """
    coin = money(1, currency)
    fractional = sum(any(amount % coin for amount in amounts(table)) for table in tables)
    return money(max(0, fractional * (1 + taxes) - 1), currency)


def _why_not(wallet: Wallet, metrics: Sequence[str], currency: str, now_ms: int, of_any: bool) -> str | None:
    if wallet.expires_at_ms is not None and wallet.expires_at_ms <= now_ms:
        return "it has expired"
    if wallet.currency != currency:
        return f"its currency is {wallet.currency}, the plan's is {currency}"
    if not wallet.fee_types and not wallet.metric_codes:
        return None
    if "charge" in wallet.fee_types:
        return None
    missing = [metric for metric in metrics if metric not in wallet.metric_codes]
    if of_any and len(missing) < len(metrics):
        return None
    if missing or not metrics:
        pool = "" if of_any else ", and the account's funds are one pool"
        return f"it does not pay for {', '.join(missing) or 'usage'}{pool}"
    return None


def _pays(wallet: Wallet, kind: str) -> bool:
    return kind in wallet.fee_types or not (wallet.fee_types or wallet.metric_codes)
