"""The payment switch of the Lago stand-in: it stands for a payment provider.

Source: lago-api ``app/services/invoices/update_service.rb``, ``app/services/wallets/apply_paid_credits_service.rb``.
``invoice.payment_status_updated`` is sent before the wallet gets its money: that is another job.
"""

from __future__ import annotations

from sidecar.sandbox.lago.config import PaymentMode
from sidecar.sandbox.lago.invoice_views import hook_view
from sidecar.sandbox.lago.lago_store import Store
from sidecar.sandbox.lago.lago_wire import Json
from sidecar.sandbox.lago.prepaid import Prepaid
from sidecar.sandbox.lago.records import Customer, Invoice, Transaction
from sidecar.sandbox.lago.usage import UsageApi


class Payments:
    """``mode``: whether invoices are paid at once, or fail, or stay pending until :meth:`set_status`."""

    def __init__(self, store: Store, prepaid: Prepaid, usage: UsageApi) -> None:
        self.mode: PaymentMode = store.config.payments
        self._store = store
        self._prepaid = prepaid
        self._usage = usage

    def request(self, invoice: Invoice) -> None:
        """Has an invoice paid in a job of its own."""
        self._store.later(lambda: self._attempt(invoice))

    def _attempt(self, invoice: Invoice) -> None:
        if invoice.status != "finalized" or invoice.payment_status == "succeeded" or self.mode == "hold":
            return
        self.settle(invoice, succeeded=self.mode == "succeed")

    def settle(self, invoice: Invoice, *, succeeded: bool) -> None:
        """The provider's answer."""
        if succeeded:
            invoice.paid_cents = invoice.total_cents
        self.set_status(invoice, "succeeded" if succeeded else "failed")
        if not succeeded:
            self._store.emit(
                "invoice.payment_failure", "payment_provider_invoice_payment_error", lambda: _invoice_failure(invoice)
            )

    def set_status(self, invoice: Invoice, status: str) -> None:
        """Also what ``PUT /invoices/{id}`` does, which leaves the amount paid as it is."""
        before, invoice.payment_status = invoice.payment_status, status
        invoice.updated = self._store.now()
        if before != status:
            self._store.emit(
                "invoice.payment_status_updated",
                "invoice",
                lambda: hook_view(self._store, invoice, "invoice.payment_status_updated"),
            )
        if invoice.kind == "credit" and status in ("succeeded", "failed"):
            for fee in invoice.fees:
                if fee.transaction is not None:
                    self._credit_later(fee.transaction, succeeded=status == "succeeded")

    def _credit_later(self, transaction: Transaction, *, succeeded: bool) -> None:
        self._store.later(lambda: self._credit(transaction, succeeded=succeeded))

    def _credit(self, transaction: Transaction, *, succeeded: bool) -> None:
        """A payment that succeeds settles a transaction that had failed, too."""
        if transaction.status == "settled":
            return
        if not succeeded:
            self._prepaid.fail(transaction)
            self._store.emit(
                "wallet_transaction.payment_failure",
                "payment_provider_wallet_transaction_payment_error",
                lambda: _transaction_failure(transaction),
            )
            return
        self._prepaid.settle(transaction)
        self._prepaid.changed(transaction)
        self._usage.refresh(transaction.wallet.customer)


def _provider(customer: Customer) -> Json:
    return {
        "lago_customer_id": customer.id,
        "external_customer_id": customer.external_id,
        "provider_customer_id": f"cus_{customer.sequential}",
        "payment_provider": customer.payment_provider or "stripe",
        "payment_provider_code": "sandbox",
        "provider_error": {"message": "declined", "error_code": "card_declined"},
    }


def _invoice_failure(invoice: Invoice) -> Json:
    return {"lago_invoice_id": invoice.id, **_provider(invoice.customer), "error_details": None}


def _transaction_failure(transaction: Transaction) -> Json:
    return {"lago_wallet_transaction_id": transaction.id, **_provider(transaction.wallet.customer)}
