"""``/customers`` of the Lago stand-in. Source: lago-api ``app/services/customers/upsert_from_api_service.rb``."""

from __future__ import annotations

from collections.abc import Callable

from sidecar.sandbox.lago.fields import Fields
from sidecar.sandbox.lago.lago_store import Store, newest_first
from sidecar.sandbox.lago.lago_wire import Call, Json, invalid, page
from sidecar.sandbox.lago.records import Customer, MetadataPair
from sidecar.sandbox.lago.views import CUSTOMER_PARTS, CUSTOMER_TEXTS, customer_view

METADATA_MAX = 5
METADATA_KEY_CHARS_MAX = 20
METADATA_VALUE_CHARS_MAX = 100


class CustomersApi:
    """``on_delete`` ends what a deleted customer has running."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._made = 0
        self.on_delete: Callable[[Customer], None] | None = None

    def find_or_create(self, external_id: str) -> Customer:
        """A subscription may be the first that Lago hears of a customer."""
        found = self._store.customers.get(external_id)
        if found is not None and not found.deleted:
            return found
        self._made += 1
        customer = Customer(
            **self._store.new(),
            external_id=external_id,
            sequential=self._made,
            updated=self._store.now(),
            default_timezone=self._store.config.timezone,
        )
        self._store.customers[external_id] = customer
        return customer

    def upsert(self, call: Call) -> Json:
        """Creates or changes; only what is given changes, and metadata as a whole."""
        fields = Fields(call.root("customer"))
        external_id = fields.required("external_id")
        pairs = self._metadata(fields)
        texts = {name: fields.text(name) for name in CUSTOMER_TEXTS if name in fields}
        timezone, currency = fields.timezone("timezone"), fields.currency("currency")
        term = fields.integer("net_payment_term", low=0)
        zero = fields.choice("finalize_zero_amount_invoice", ("inherit", "skip", "finalize"), "inherit")
        billing = Fields(fields.object("billing_configuration"))
        grace_days = billing.integer("invoice_grace_period", low=0)
        provider = billing.text("payment_provider")
        fields.errors.update(billing.errors)
        fields.check()
        taxes = self._store.taxes_by_code(fields.texts("tax_codes"))
        is_new = external_id not in self._store.customers or self._store.customers[external_id].deleted
        customer = self.find_or_create(external_id)
        customer.texts.update(texts)
        customer.updated = self._store.now()
        if "timezone" in fields:
            customer.timezone = timezone
        if "currency" in fields:
            customer.currency = currency
        if "net_payment_term" in fields:
            customer.net_payment_term = term
        if "finalize_zero_amount_invoice" in fields:
            customer.finalize_zero = zero
        if "invoice_grace_period" in billing:
            customer.grace_days = grace_days
        if "payment_provider" in billing:
            customer.payment_provider = provider
        if "tax_codes" in fields:
            customer.taxes = taxes
        if pairs is not None:
            customer.metadata = pairs
        view = self._view_later(customer)
        self._store.emit("customer.created" if is_new else "customer.updated", "customer", view)
        return {"customer": customer_view(customer, *CUSTOMER_PARTS)}

    def _view_later(self, customer: Customer) -> Callable[[], Json]:
        return lambda: customer_view(customer, "integration_customers")

    def _metadata(self, fields: Fields) -> list[MetadataPair] | None:
        """Pairs within Lago's limits; None if none are given."""
        if "metadata" not in fields:
            return None
        given = fields.objects("metadata")
        if len(given) > METADATA_MAX:
            raise invalid({"metadata": ["invalid_count"]})
        pairs: list[MetadataPair] = []
        for item in given:
            pair = Fields(item)
            key, value = pair.required("key"), pair.required("value")
            if len(key) > METADATA_KEY_CHARS_MAX:
                pair.error("key", "value_is_too_long")
            if len(value) > METADATA_VALUE_CHARS_MAX:
                pair.error("value", "value_is_too_long")
            if any(known.key == key for known in pairs):
                pair.error("key", "value_already_exist")
            pair.check()
            shown = pair.boolean("display_in_invoice")
            pairs.append(MetadataPair(**self._store.new(), key=key, value=value, shown=shown))
        return pairs

    def get(self, call: Call) -> Json:
        return {"customer": customer_view(self._store.customer(call.path["external_id"]), *CUSTOMER_PARTS)}

    def list(self, call: Call) -> Json:
        found = [item for item in self._store.customers.values() if not item.deleted]
        term = (call.one("search_term") or "").lower()
        if term:
            found = [
                item
                for item in found
                if term in item.external_id.lower() or term in (item.texts.get("name") or "").lower()
            ]
        currencies = call.many("currencies")
        if currencies:
            found = [item for item in found if item.currency in currencies]
        return page(
            call, "customers", newest_first(found), lambda item: customer_view(item, "taxes", "integration_customers")
        )

    def delete(self, call: Call) -> Json:
        customer = self._store.customer(call.path["external_id"])
        customer.deleted = True
        if self.on_delete is not None:
            self.on_delete(customer)
        return {"customer": customer_view(customer, *CUSTOMER_PARTS)}
