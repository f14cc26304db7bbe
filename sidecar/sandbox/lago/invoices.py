"""``/invoices`` and ``/fees`` of the Lago stand-in. Source: lago-api ``app/services/invoices/``, ``app/queries/``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date

from sidecar.sandbox.lago.fields import Fields
from sidecar.sandbox.lago.invoice_views import fee_view, full_invoice_view, invoice_view
from sidecar.sandbox.lago.invoicing import Invoicing
from sidecar.sandbox.lago.lago_store import Store, newest_first
from sidecar.sandbox.lago.lago_wire import Call, Json, filtered, invalid, not_allowed, not_found, page
from sidecar.sandbox.lago.payments import Payments
from sidecar.sandbox.lago.records import Fee, Invoice, MetadataPair

METADATA_MAX = 5
PAYMENT_STATUSES = ("pending", "succeeded", "failed")
_INVOICE_FILTERS: Sequence[tuple[tuple[str, ...], Callable[[Invoice], str]]] = (
    (("status", "statuses"), lambda item: item.status),
    (("payment_status", "payment_statuses"), lambda item: item.payment_status),
    (("invoice_type",), lambda item: item.kind),
    (("currency",), lambda item: item.currency),
)
_FEE_FILTERS: Mapping[str, Callable[[Fee], str | None]] = {
    "external_customer_id": lambda fee: fee.invoice.customer.external_id if fee.invoice else None,
    "external_subscription_id": lambda fee: fee.subscription.external_id if fee.subscription else None,
    "billable_metric_code": lambda fee: fee.charge.metric.code if fee.charge else None,
    "fee_type": lambda fee: fee.kind,
    "currency": lambda fee: fee.currency,
    "payment_status": lambda fee: fee.invoice.payment_status if fee.invoice else None,
}


class InvoicesApi:
    """Invoices that are ``closed`` are not found and not listed."""

    def __init__(self, store: Store, invoicing: Invoicing, payments: Payments) -> None:
        self._store = store
        self._invoicing = invoicing
        self._payments = payments

    def list(self, call: Call) -> Json:
        found = [item for item in self._store.invoices.values() if item.is_visible]
        wanted = call.one("external_customer_id") or call.one("customer_external_id")
        if wanted is not None:
            found = [item for item in found if item.customer.external_id == wanted]
        return self._page(call, found)

    def list_of_customer(self, call: Call) -> Json:
        customer = self._store.customer(call.path["external_id"])
        found = [item for item in self._store.invoices.values() if item.is_visible and item.customer is customer]
        return self._page(call, found)

    def _page(self, call: Call, found: Sequence[Invoice]) -> Json:
        """Filtered; the newest issuing date first, then the newest."""
        for names, value in _INVOICE_FILTERS:
            asked = call.many(*names)
            if asked:
                found = [item for item in found if value(item) in asked]
        first, last = _date(call, "issuing_date_from"), _date(call, "issuing_date_to")
        found = [item for item in found if (first or date.min) <= item.issuing_date <= (last or date.max)]
        ordered = sorted(newest_first(found), key=lambda item: item.issuing_date, reverse=True)
        return page(call, "invoices", ordered, invoice_view)

    def get(self, call: Call) -> Json:
        return self._show(self.find(call))

    def update(self, call: Call) -> Json:
        """A payment made elsewhere, and metadata. Settles a top-up, but leaves the amount paid as it is."""
        invoice, fields = self.find(call), Fields(call.root("invoice"))
        if invoice.status == "voided":
            raise not_allowed("update_on_voided_invoice")
        if "metadata" in fields and invoice.status == "draft":
            raise not_allowed("metadata_on_draft_invoice")
        pairs = fields.objects("metadata")
        if len(pairs) > METADATA_MAX:
            raise invalid({"metadata": ["invalid_count"]})
        status = fields.choice("payment_status", PAYMENT_STATUSES, invoice.payment_status)
        fields.check()
        if invoice.status == "draft" and status != invoice.payment_status:
            raise not_allowed("payment_status_update_on_draft_invoice")
        if "metadata" in fields:
            invoice.metadata = [self._pair(Fields(item)) for item in pairs]
        if "payment_status" in fields:
            self._payments.set_status(invoice, status)
        return self._show(invoice)

    def _pair(self, fields: Fields) -> MetadataPair:
        pair = MetadataPair(**self._store.new(), key=fields.required("key"), value=fields.required("value"))
        fields.check()
        return pair

    def refresh(self, call: Call) -> Json:
        """Counts a draft again. On an invoice that is final it changes nothing."""
        invoice = self.find(call)
        if invoice.status == "draft":
            self._invoicing.refresh(invoice)
        return self._show(invoice)

    def finalize(self, call: Call) -> Json:
        invoice = self.find(call)
        if invoice.status != "draft":
            raise not_found("invoice")
        self._invoicing.finalize(invoice)
        return self._show(invoice)

    def void(self, call: Call) -> Json:
        invoice = self.find(call)
        if invoice.status != "finalized":
            raise not_allowed("not_voidable")
        self._invoicing.void(invoice)
        return self._show(invoice)

    def retry_payment(self, call: Call) -> Json | None:
        invoice = self.find(call)
        if invoice.status in ("draft", "voided") or invoice.payment_status == "succeeded":
            raise not_allowed("invalid_status")
        self._payments.request(invoice)
        return None

    def fees(self, call: Call) -> Json:
        """Fees of all invoices that are shown."""
        found = [fee for invoice in self._store.invoices.values() if invoice.is_visible for fee in invoice.fees]
        return page(
            call, "fees", newest_first(filtered(call, found, _FEE_FILTERS)), lambda fee: fee_view(fee, with_taxes=True)
        )

    def fee(self, call: Call) -> Json:
        wanted = call.path["lago_id"]
        fees = (fee for invoice in self._store.invoices.values() if invoice.is_visible for fee in invoice.fees)
        found: Fee | None = next((fee for fee in fees if fee.id == wanted), None)
        if found is None:
            raise not_found("fee")
        return {"fee": fee_view(found, with_taxes=True)}

    def pay(self, call: Call) -> Json:
        """The stand-in's own: a payment's end, for an invoice whose payment was held."""
        invoice = self.find(call)
        succeed = call.body.get("succeed", True) if isinstance(call.body, dict) else True
        if not isinstance(succeed, bool):
            raise invalid({"succeed": ["value_is_invalid"]})
        if invoice.status != "finalized" or invoice.payment_status == "succeeded":
            raise not_allowed("invalid_status")
        self._payments.settle(invoice, succeeded=succeed)
        return self._show(invoice)

    def regenerate(self, call: Call) -> Json:
        """The stand-in's own, for Lago's screen: ``{"recount": true}`` counts usage and prices anew."""
        invoice = self.find(call)
        if invoice.status != "voided" or invoice.kind != "subscription":
            raise not_allowed("not_regenerable")
        recount = call.body.get("recount") is True if isinstance(call.body, dict) else False
        return self._show(self._invoicing.regenerate(invoice, recount=recount))

    def find(self, call: Call) -> Invoice:
        found = self._store.invoices.get(call.path["lago_id"])
        if found is None or not found.is_visible:
            raise not_found("invoice")
        return found

    def _show(self, invoice: Invoice) -> Json:
        return {"invoice": full_invoice_view(self._store, invoice)}


def _date(call: Call, name: str) -> date | None:
    text = call.one(name)
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        return None
