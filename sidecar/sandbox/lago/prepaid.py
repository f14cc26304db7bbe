"""Wallet money of the Lago stand-in: what comes in, what goes out, which wallet pays which fee.

Source: lago-api ``app/services/wallets/balance/``, ``app/services/wallet_transactions/``,
``app/services/credits/allocate_prepaid_credits_by_wallets_service.rb``. Always true: a wallet's balance is its settled
inbound transactions less its settled outbound ones, and the sum of what remains of the inbound ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal, localcontext

from sidecar.sandbox.lago.lago_store import Store
from sidecar.sandbox.lago.lago_wire import Json
from sidecar.sandbox.lago.money import WIDE, from_cents, round_half_away, to_cents
from sidecar.sandbox.lago.records import Fee, Invoice, Label, Transaction, Wallet
from sidecar.sandbox.lago.wallet_views import transaction_view, wallet_view

CREDIT_PLACES = 5
FeeKey = tuple[str, str]
_PLAIN = Label()


def fee_key(fee: Fee) -> FeeKey:
    """Fees are paid together by kind and metric."""
    return fee.kind, fee.charge.metric.code if fee.charge is not None else ""


def credits_of(wallet: Wallet, cents: int) -> Decimal:
    with localcontext(WIDE):
        return round_half_away(from_cents(cents, wallet.currency) / wallet.rate, CREDIT_PLACES)


def cents_of(wallet: Wallet, credits: Decimal) -> int:
    with localcontext(WIDE):
        return to_cents(credits * wallet.rate, wallet.currency)


class Prepaid:
    """Moves wallet money and says so by webhooks."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def inbound(
        self,
        wallet: Wallet,
        kind: str,
        cents: int,
        credits: Decimal,
        *,
        label: Label = _PLAIN,
        voided_invoice: Invoice | None = None,
    ) -> Transaction:
        """A pending transaction; :meth:`settle` makes it money."""
        transaction = self._record(wallet, "inbound", kind, cents, credits, label)
        transaction.voided_invoice = voided_invoice
        return transaction

    def settle(self, transaction: Transaction, *, uncount: bool = False) -> None:
        """Adds to the balance. ``uncount``: takes back from what was consumed, but not below 0, as for a void."""
        wallet, now = transaction.wallet, self._store.now()
        transaction.status, transaction.settled_at = "settled", now
        transaction.remaining_cents = transaction.amount_cents
        wallet.balance_cents += transaction.amount_cents
        wallet.credits += transaction.credits
        wallet.synced_at = now
        if uncount:
            wallet.consumed = max(Decimal(0), wallet.consumed - transaction.credits)
        self._wallet_updated(wallet)

    def fail(self, transaction: Transaction) -> None:
        """The payment did not succeed. A settled transaction stays as it is: its credits are voided by hand."""
        if transaction.status == "pending":
            transaction.status, transaction.failed_at = "failed", self._store.now()
            self.changed(transaction)

    def outbound(
        self,
        wallet: Wallet,
        kind: str,
        cents: int,
        credits: Decimal,
        *,
        label: Label = _PLAIN,
        source: Transaction | None = None,
        invoice: Invoice | None = None,
    ) -> tuple[Transaction, dict[str, int]]:
        """Takes money out, settled at once. Also answers how much of it was granted and purchased.

        ``source``: of one inbound transaction only, which has as much left.
        """
        now = self._store.now()
        transaction = self._record(wallet, "outbound", kind, cents, credits, label)
        transaction.status, transaction.settled_at, transaction.invoice = "settled", now, invoice
        parts = _consume([source] if source is not None else wallet.transactions, cents)
        wallet.balance_cents -= cents
        wallet.credits -= credits
        wallet.consumed += credits
        wallet.synced_at = wallet.consumed_at = now
        self._wallet_updated(wallet)
        return transaction, parts

    def pay(self, invoice: Invoice) -> None:
        """Applies wallets to an invoice that becomes final; what they cannot pay remains its total."""
        for wallet, cents in self.allocate(invoice).items():
            transaction, parts = self.outbound(wallet, "invoiced", cents, credits_of(wallet, cents), invoice=invoice)
            invoice.prepaid_cents += transaction.amount_cents
            invoice.total_cents -= transaction.amount_cents
            invoice.prepaid_granted_cents = (invoice.prepaid_granted_cents or 0) + parts["granted"] or None
            invoice.prepaid_purchased_cents = (invoice.prepaid_purchased_cents or 0) + parts["purchased"] or None
            self.created(transaction)

    def allocate(self, invoice: Invoice) -> Mapping[Wallet, int]:
        """Cents for each wallet, by priority then age; largest fees first within a wallet."""
        left = _payable(invoice)
        metrics = {fee_key(fee): fee.charge.metric for fee in invoice.fees if fee.charge is not None}
        unpaid, shares = Decimal(invoice.total_cents), {}
        for wallet in self._store.wallets_of(invoice.customer):
            if wallet.currency != invoice.currency:
                continue
            share = Decimal(0)
            for key in left:
                if wallet.pays(key[0], metrics.get(key)):
                    part = max(Decimal(0), min(left[key], wallet.balance_cents - share, unpaid))
                    left[key] -= part
                    unpaid -= part
                    share += part
            cents = int(round_half_away(share))
            if cents > 0:
                shares[wallet] = cents
        return shares

    def give_back(self, invoice: Invoice) -> None:
        """An invoice is void: each active wallet gets back what it paid, as a grant."""
        for wallet in self._store.wallets_of(invoice.customer):
            for paid in [item for item in wallet.transactions if item.invoice is invoice and item.type == "outbound"]:
                back = self.inbound(wallet, "granted", paid.amount_cents, paid.credits, voided_invoice=invoice)
                self.settle(back, uncount=True)
                self.created(back)

    def created(self, transaction: Transaction) -> None:
        self._emit("wallet_transaction.created", transaction)

    def changed(self, transaction: Transaction) -> None:
        self._emit("wallet_transaction.updated", transaction)

    def _emit(self, type: str, transaction: Transaction) -> None:
        def view() -> Json:
            return transaction_view(transaction, with_wallet=True)

        self._store.emit(type, "wallet_transaction", view)

    def _wallet_updated(self, wallet: Wallet) -> None:
        self._store.emit("wallet.updated", "wallet", lambda: wallet_view(wallet))

    def _record(self, wallet: Wallet, type: str, kind: str, cents: int, credits: Decimal, label: Label) -> Transaction:
        transaction = Transaction(
            **self._store.new(), wallet=wallet, type=type, kind=kind, status="pending", amount_cents=cents,
            credits=credits, label=label,
        )  # fmt: skip
        wallet.transactions.append(transaction)
        self._store.transactions[transaction.id] = transaction
        return transaction


def _payable(invoice: Invoice) -> dict[FeeKey, Decimal]:
    """What each kind of fee costs with taxes, unrounded, largest first; a cent lost to rounding goes to the largest."""
    amounts: dict[FeeKey, Decimal] = {}
    for fee in invoice.fees:
        cap = fee.net_cents + fee.taxes_precise_cents - fee.credit_notes_precise_cents
        if fee.net_cents and cap > 0:
            amounts[fee_key(fee)] = amounts.get(fee_key(fee), Decimal(0)) + cap
    ordered = dict(sorted(amounts.items(), key=lambda item: item[1], reverse=True))
    missing = invoice.total_cents - sum(ordered.values(), Decimal(0))
    if ordered and 0 < missing <= len(ordered):
        ordered[next(iter(ordered))] += missing
    return ordered


def _consume(transactions: Sequence[Transaction], cents: int) -> dict[str, int]:
    """Takes from what remains: by priority, grants before purchases, oldest first."""
    parts = dict.fromkeys(("granted", "purchased"), 0)
    open_ones = [item for item in transactions if item.type == "inbound" and item.remaining_cents]
    open_ones.sort(key=lambda item: (item.label.priority, item.kind != "granted", item.created, item.seq))
    for item in open_ones:
        part = min(cents, item.remaining_cents or 0)
        item.remaining_cents = (item.remaining_cents or 0) - part
        parts[item.kind] += part
        cents -= part
        if not cents:
            break
    return parts
