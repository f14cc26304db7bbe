"""``/credit_notes`` of the Lago stand-in. Source: lago-api ``app/services/credit_notes/``, ``app/serializers/v1/
credit_note_serializer.rb``. Only credits: what is refunded or set off against its own invoice is not done here.
"""

from __future__ import annotations

from sidecar.sandbox.lago.fields import Fields
from sidecar.sandbox.lago.lago_store import Store, newest_first
from sidecar.sandbox.lago.lago_wire import Call, Json, filtered, iso, not_allowed, not_found, page
from sidecar.sandbox.lago.records import CreditNote
from sidecar.sandbox.lago.views import BILLING_ENTITY, customer_view


class CreditNotesApi:
    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, call: Call) -> Json:
        """Of a final invoice, at most what it came to."""
        fields = Fields(call.root("credit_note"))
        invoice = self._store.invoices.get(fields.required("invoice_id"))
        if invoice is None or not invoice.is_visible:
            raise not_found("invoice")
        cents = fields.integer("credit_amount_cents", 0, low=0) or 0
        before = sum(note.amount_cents for note in invoice.customer.credit_notes if note.invoice is invoice)
        if invoice.status != "finalized" or not 0 < cents <= invoice.fees_cents + invoice.taxes_cents - before:
            fields.error("base", "higher_than_remaining_invoice_amount")
        fields.check()
        note = CreditNote(
            **self._store.new(), customer=invoice.customer, invoice=invoice, currency=invoice.currency,
            amount_cents=cents, balance_cents=cents, reason=fields.text("reason") or "other",
        )  # fmt: skip
        invoice.customer.credit_notes.append(note)
        announce(self._store, note)
        return {"credit_note": _view(note)}

    def get(self, call: Call) -> Json:
        return {"credit_note": _view(self._find(call))}

    def list(self, call: Call) -> Json:
        found = [note for customer in self._store.customers.values() for note in customer.credit_notes]
        wanted = {
            "external_customer_id": lambda note: note.customer.external_id,
            "credit_status": lambda note: note.credit_status,
            "currency": lambda note: note.currency,
        }
        return page(call, "credit_notes", newest_first(filtered(call, found, wanted)), _view)

    def void(self, call: Call) -> Json:
        note = self._find(call)
        if note.credit_status != "available":
            raise not_allowed("no_voidable_amount")
        note.voided, note.balance_cents = True, 0
        return {"credit_note": _view(note)}

    def _find(self, call: Call) -> CreditNote:
        notes = (note for customer in self._store.customers.values() for note in customer.credit_notes)
        found = next((note for note in notes if note.id == call.path["lago_id"]), None)
        if found is None:
            raise not_found("credit_note")
        return found


def announce(store: Store, note: CreditNote) -> None:
    store.emit("credit_note.created", "credit_note", lambda: _note_view(note))


def _view(note: CreditNote) -> Json:
    """As in answers."""
    customer = customer_view(note.customer, "integration_customers")
    return {**_note_view(note), "customer": customer, "error_details": []}


def _note_view(note: CreditNote) -> Json:
    """As in webhooks."""
    invoice = note.invoice
    return {
        "lago_id": note.id,
        "billing_entity_code": BILLING_ENTITY,
        "sequential_id": 1,
        "number": f"CN-{note.seq}",
        "lago_invoice_id": invoice.id,
        "invoice_number": invoice.number,
        "purchase_order_number": None,
        "issuing_date": note.created.date().isoformat(),
        "credit_status": note.credit_status,
        "refund_status": None,
        "reason": note.reason,
        "description": None,
        "currency": note.currency,
        "total_amount_cents": note.amount_cents,
        "precise_total_amount_cents": f"{note.amount_cents}.0",
        "taxes_amount_cents": 0,
        "precise_taxes_amount_cents": "0.0",
        "sub_total_excluding_taxes_amount_cents": note.amount_cents,
        "balance_amount_cents": note.balance_cents,
        "credit_amount_cents": note.amount_cents,
        "refund_amount_cents": 0,
        "offset_amount_cents": 0,
        "coupons_adjustment_amount_cents": 0,
        "taxes_rate": 0.0,
        "created_at": iso(note.created),
        "updated_at": iso(note.created),
        "file_url": None,
        "xml_url": None,
        "self_billed": False,
        "customer": customer_view(note.customer),
        "items": [],
        "applied_taxes": [],
    }
