"""Current usage, and the ongoing balances of wallets, which subtract it.

Source: lago-api ``app/services/invoices/customer_usage_service.rb``,
``app/services/wallets/balance/allocate_ongoing_usage_by_wallets_service.rb``, ``refresh_ongoing_usage_service.rb``.
"""

from __future__ import annotations

from collections.abc import Sequence

from sidecar.sandbox.lago.fees import Fees
from sidecar.sandbox.lago.fields import decimal_of
from sidecar.sandbox.lago.invoice_views import usage_view
from sidecar.sandbox.lago.lago_store import Store
from sidecar.sandbox.lago.lago_wire import Call, Json, internal_error, not_allowed, not_found
from sidecar.sandbox.lago.periods import MICROSECOND
from sidecar.sandbox.lago.prepaid import FeeKey, fee_key
from sidecar.sandbox.lago.records import CurrentUsage, Customer, Fee, Metric, Subscription, Wallet
from sidecar.sandbox.lago.wallet_views import wallet_view


class UsageApi:
    """``GET /customers/{external_id}/current_usage``, and the refresh of wallets."""

    def __init__(self, store: Store, fees: Fees) -> None:
        self._store = store
        self._fees = fees

    def show(self, call: Call) -> Json:
        customer = self._store.customers.get(call.path["external_id"])
        if customer is None or customer.deleted:
            raise not_found("resource")
        wanted = call.one("external_subscription_id")
        subscription = self._store.active(wanted) if wanted else None
        if subscription is None or subscription.customer is not customer:
            raise not_allowed("no_active_subscription")
        usage = self.of(subscription, with_taxes=call.one("apply_taxes") not in ("false", "0"))
        if any(_has_no_range(fee) for fee in usage.fees):
            raise internal_error()
        return {"customer_usage": usage_view(usage)}

    def of(self, subscription: Subscription, *, with_taxes: bool = True) -> CurrentUsage:
        """What an active subscription has used so far."""
        now = self._store.now()
        started = subscription.started_at or now
        whole = self._store.charge_periods(subscription).containing(max(now, started))
        span = whole.from_start(started)
        fees = self._fees.charges(subscription, span, with_unused=True)
        fees.sort(key=lambda fee: fee.charge.metric.name.lower() if fee.charge else "")
        taxes_cents = 0
        if with_taxes:
            self._fees.apply_taxes(fees)
            _, taxes_cents = self._fees.taxes_of(fees)
        zone = subscription.customer.zone
        issuing_date = (whole.until - MICROSECOND).astimezone(zone).date()
        amount = sum(fee.amount_cents for fee in fees)
        return CurrentUsage(span, subscription.plan.currency, issuing_date, fees, amount, taxes_cents)

    def refresh(self, customer: Customer) -> None:
        """Subtracts current usage and drafts, with taxes, from the balances of the wallets that will pay them."""
        customer.awaits_refresh = False
        wallets = self._store.wallets_of(customer)
        if not wallets:
            return
        spent = self._spread(wallets, self._unbilled(customer))
        for wallet in wallets:
            self._set(wallet, spent[wallet])

    def _unbilled(self, customer: Customer) -> list[Fee]:
        fees: list[Fee] = []
        for subscription in self._store.subscriptions:
            if subscription.customer is customer and subscription.status == "active":
                fees += self.of(subscription).fees
        for invoice in self._store.invoices.values():
            if invoice.customer is customer and invoice.status == "draft":
                fees += invoice.fees
        return fees

    def _spread(self, wallets: Sequence[Wallet], fees: Sequence[Fee]) -> dict[Wallet, int]:
        """The last wallet that may pay a fee takes what is too much for the others, and may go below zero."""
        amounts: dict[tuple[FeeKey, str], int] = {}
        metrics: dict[FeeKey, Metric] = {}
        for fee in fees:
            key = fee_key(fee)
            amounts[key, fee.currency] = amounts.get((key, fee.currency), 0) + fee.amount_cents + fee.taxes_cents
            if fee.charge is not None:
                metrics[key] = fee.charge.metric
        spent = dict.fromkeys(wallets, 0)
        for (key, currency), amount in sorted(amounts.items(), key=lambda item: (-item[1], item[0])):
            payers = [item for item in wallets if item.currency == currency and item.pays(key[0], metrics.get(key))]
            for wallet in payers:
                room = amount if wallet is payers[-1] else max(0, wallet.balance_cents - spent[wallet])
                part = min(amount, room)
                spent[wallet] += part
                amount -= part
        return spent

    def _set(self, wallet: Wallet, usage_cents: int) -> None:
        wallet.ongoing_usage_cents = usage_cents
        wallet.ongoing_cents = wallet.balance_cents - usage_cents
        was_depleted, wallet.is_depleted = wallet.is_depleted, wallet.ongoing_cents <= 0
        if wallet.is_depleted and not was_depleted:
            self._store.emit("wallet.depleted_ongoing_balance", "wallet", lambda: wallet_view(wallet, rules=False))


def _has_no_range(fee: Fee) -> bool:
    """Of a volume table that begins at 1, for no usage: Lago looks for its range and fails
    (``app/services/charge_models/volume_service.rb``).
    """
    if fee.charge is None or fee.charge.model != "volume" or fee.units:
        return False
    properties = fee.filter["properties"] if fee.filter else fee.charge.properties
    ranges = properties.get("volume_ranges") if isinstance(properties, dict) else None
    return isinstance(ranges, list) and all((decimal_of(each.get("from_value")) or 0) > 0 for each in ranges)
