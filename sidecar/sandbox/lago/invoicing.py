"""How invoices of the Lago stand-in come about, become final and are voided.

Source: lago-api ``app/services/invoices/subscription_service.rb``, ``calculate_fees_service.rb`` (the order: fees,
coupons, taxes, credit notes, wallets), ``transition_to_final_status_service.rb``, ``void_service.rb``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from sidecar.sandbox.lago.coupons import apply_coupons, give_back
from sidecar.sandbox.lago.fees import Fees
from sidecar.sandbox.lago.invoice_views import hook_view
from sidecar.sandbox.lago.lago_store import Store
from sidecar.sandbox.lago.payments import Payments
from sidecar.sandbox.lago.prepaid import Prepaid
from sidecar.sandbox.lago.records import Credit, Customer, Fee, Invoice, InvoicePeriod, Transaction
from sidecar.sandbox.lago.usage import UsageApi


class Invoicing:
    """Makes invoices and changes their status; who is billed when is decided elsewhere."""

    def __init__(self, store: Store, fees: Fees, prepaid: Prepaid, payments: Payments, usage: UsageApi) -> None:
        self._store = store
        self._fees = fees
        self._prepaid = prepaid
        self._payments = payments
        self._usage = usage

    def bill(self, customer: Customer, currency: str, periods: Sequence[InvoicePeriod]) -> Invoice:
        """An invoice for subscriptions of one customer: final at once, or a draft for the days of grace."""
        invoice = self._new(customer, "subscription", currency)
        invoice.periods = list(periods)
        self._fill(invoice)
        grace_days = self.grace_days(customer)
        if grace_days:
            invoice.status = "draft"
            invoice.finalize_on = invoice.issuing_date = invoice.issuing_date + timedelta(days=grace_days)
            self._emit("invoice.drafted", invoice)
            self._emit("invoice.ready_to_finalize", invoice)
            customer.awaits_refresh = True
        else:
            self._complete(invoice)
        return invoice

    def bill_top_up(self, transaction: Transaction) -> Invoice:
        """The credit invoice of a paid top-up. Its payment is what settles the transaction."""
        wallet = transaction.wallet
        invoice = self._new(wallet.customer, "credit", wallet.currency)
        invoice.fees = [self._fees.top_up(transaction)]
        self._total(invoice)
        invoice.status = "finalized"
        transaction.invoice = invoice
        self._emit("invoice.paid_credit_added", invoice)
        self._payments.request(invoice)
        return invoice

    def grace_days(self, customer: Customer) -> int:
        own = customer.grace_days
        return self._store.config.invoice_grace_period_days if own is None else own

    def refresh(self, invoice: Invoice) -> None:
        """A draft counts again: events that came late, prices that were edited."""
        invoice.needs_refresh = False
        self._fill(invoice)
        invoice.updated = self._store.now()

    def finalize(self, invoice: Invoice) -> None:
        """Counts a draft for the last time; what comes later is never billed."""
        self.refresh(invoice)
        self._complete(invoice)

    def void(self, invoice: Invoice) -> None:
        """Wallets and coupons get their money back; credit notes and payments are left alone."""
        invoice.status, invoice.voided_at = "voided", self._store.now()
        invoice.updated = invoice.voided_at
        self._prepaid.give_back(invoice)
        give_back(invoice)
        self._usage.refresh(invoice.customer)
        self._emit("invoice.voided", invoice)

    def regenerate(self, voided: Invoice, *, recount: bool) -> Invoice:
        """A corrected invoice for a voided one, with its fees, or with usage and prices counted anew."""
        invoice = self._new(voided.customer, voided.kind, voided.currency)
        invoice.voided_invoice, invoice.periods = voided, list(voided.periods)
        if recount:
            self._fill(invoice)
        else:
            invoice.fees = [self._copy(fee) for fee in voided.fees]
            self._total(invoice)
        self._complete(invoice)
        return invoice

    def _fill(self, invoice: Invoice) -> None:
        fees: list[Fee] = []
        for period in invoice.periods:
            if period.with_fee:
                fees.append(self._fees.subscription(period))
            if period.with_charges and not period.charges_span.is_empty:
                fees += self._fees.charges(period.subscription, period.charges_span, with_unused=False)
                fees += self._fees.fixed(period)
                fees += self._fees.commitment(period, fees)
        invoice.fees = fees
        self._total(invoice)

    def _total(self, invoice: Invoice) -> None:
        self._fees.apply_taxes(invoice.fees)
        invoice.taxes, invoice.taxes_cents = self._fees.taxes_of(invoice.fees)
        for fee in invoice.fees:
            fee.invoice = invoice
            if fee.kind == "subscription" and fee.subscription is not None:
                fee.subscription.last_fee = fee
        invoice.fees_cents = sum(fee.amount_cents for fee in invoice.fees)
        invoice.total_cents = invoice.fees_cents - invoice.coupons_cents + invoice.taxes_cents
        invoice.payment_status = "pending" if invoice.total_cents > 0 else "succeeded"

    def _complete(self, invoice: Invoice) -> None:
        """Coupons, credit notes and wallets pay what they can, the rest is due."""
        apply_coupons(self._store, invoice)
        self._total(invoice)
        self._apply_credit_notes(invoice)
        self._prepaid.pay(invoice)
        invoice.payment_status = "pending" if invoice.total_cents > 0 else "succeeded"
        invoice.updated = self._store.now()
        self._usage_after(invoice)
        if not invoice.fees_cents and not self._finalizes_zero(invoice.customer):
            invoice.status = "closed"
            return
        invoice.status = "finalized"
        self._emit("invoice.created", invoice)
        if invoice.total_cents > 0:
            self._payments.request(invoice)

    def _usage_after(self, invoice: Invoice) -> None:
        """What was billed is no longer current usage, so this comes once the invoice is no draft any more."""
        self._store.later(lambda: self._usage.refresh(invoice.customer))

    def _finalizes_zero(self, customer: Customer) -> bool:
        if customer.finalize_zero == "inherit":
            return self._store.config.finalize_zero_invoices
        return customer.finalize_zero == "finalize"

    def _apply_credit_notes(self, invoice: Invoice) -> None:
        for note in invoice.customer.credit_notes:
            part = min(note.balance_cents, invoice.total_cents)
            if part <= 0 or note.currency != invoice.currency:
                continue
            for fee in invoice.fees:
                share = fee.net_cents + fee.taxes_cents - fee.credit_notes_precise_cents
                fee.credit_notes_precise_cents += share * part / invoice.total_cents
            note.balance_cents -= part
            invoice.credits.append(Credit(self._store.new_id(), note, part))
            invoice.credit_notes_cents += part
            invoice.total_cents -= part

    def _copy(self, fee: Fee) -> Fee:
        return Fee(
            **self._store.new(), kind=fee.kind, currency=fee.currency, units=fee.units, amount_cents=fee.amount_cents,
            precise_cents=fee.precise_cents, events_count=fee.events_count, subscription=fee.subscription,
            charge=fee.charge, fixed_charge=fee.fixed_charge, filter=fee.filter, transaction=fee.transaction,
            span=fee.span, unit_amount=fee.unit_amount, details=dict(fee.details),
        )  # fmt: skip

    def _new(self, customer: Customer, kind: str, currency: str) -> Invoice:
        now = self._store.now()
        customer.invoices_made += 1
        today = now.astimezone(customer.zone).date()
        invoice = Invoice(
            **self._store.new(),
            customer=customer,
            number=f"LAG-1234-{customer.sequential:03d}-{customer.invoices_made:03d}",
            sequential=customer.invoices_made,
            kind=kind,
            status="generating",
            payment_status="pending",
            currency=currency,
            issuing_date=today,
            due_date=today + timedelta(days=customer.net_payment_term or 0),
            updated=now,
        )
        self._store.invoices[invoice.id] = invoice
        return invoice

    def _emit(self, type: str, invoice: Invoice) -> None:
        self._store.emit(type, "invoice", lambda: hook_view(self._store, invoice, type))
