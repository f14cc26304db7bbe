"""``/taxes`` of the Lago stand-in. Source: lago-api ``app/services/taxes/``."""

from __future__ import annotations

from decimal import Decimal

from sidecar.sandbox.lago.fields import Fields
from sidecar.sandbox.lago.lago_store import Store, newest_first
from sidecar.sandbox.lago.lago_wire import Call, Json, not_found, page
from sidecar.sandbox.lago.records import Customer, Plan, Tax
from sidecar.sandbox.lago.views import tax_view


class TaxesApi:
    """Taxes by code; ``applied_to_organization`` makes one a default for customers without their own."""

    def __init__(self, store: Store) -> None:
        self._store = store
        for tax in store.config.taxes:
            made = Tax(**store.new(), code=tax.code, name=tax.name or tax.code, rate=tax.rate, is_default=True)
            store.taxes[tax.code] = made

    def create(self, call: Call) -> Json:
        fields = Fields(call.root("tax"))
        code, name, rate = fields.required("code"), fields.required("name"), fields.number("rate")
        if rate is None and "rate" not in fields.errors:
            fields.error("rate", "value_is_mandatory")
        if rate is not None and rate < 0:
            fields.error("rate", "value_is_invalid")
        if code in self._store.taxes:
            fields.error("code", "value_already_exist")
        description = fields.text("description")
        fields.check()
        tax = self._store.taxes[code] = Tax(
            **self._store.new(),
            code=code,
            name=name,
            rate=rate or Decimal(0),
            description=description,
            is_default=fields.boolean("applied_to_organization"),
        )
        return {"tax": tax_view(tax, entities=True)}

    def update(self, call: Call) -> Json:
        tax, fields = self._find(call), Fields(call.root("tax"))
        rate = fields.number("rate", tax.rate)
        name = fields.text("name", tax.name)
        description = fields.text("description", tax.description)
        code = fields.text("code", tax.code) or tax.code
        if code != tax.code and code in self._store.taxes:
            fields.error("code", "value_already_exist")
        fields.check()
        del self._store.taxes[tax.code]
        tax.code, tax.rate, tax.name, tax.description = code, rate or Decimal(0), name or tax.name, description
        tax.is_default = fields.boolean("applied_to_organization", tax.is_default)
        self._store.taxes[code] = tax
        return {"tax": tax_view(tax, entities=True)}

    def get(self, call: Call) -> Json:
        return {"tax": tax_view(self._find(call), entities=True)}

    def list(self, call: Call) -> Json:
        return page(call, "taxes", newest_first(self._store.taxes.values()), lambda item: tax_view(item, entities=True))

    def delete(self, call: Call) -> Json:
        """It is gone from all that had it; invoices that are final keep it."""
        tax = self._find(call)
        del self._store.taxes[tax.code]
        holders: list[Customer | Plan] = [*self._store.customers.values(), *self._store.plans.values()]
        holders += [item.plan for item in self._store.subscriptions]
        for holder in holders:
            holder.taxes = [item for item in holder.taxes if item is not tax]
        for plan in [*self._store.plans.values(), *(item.plan for item in self._store.subscriptions)]:
            for charge in plan.charges:
                charge.taxes = [item for item in charge.taxes if item is not tax]
        return {"tax": tax_view(tax, entities=True)}

    def _find(self, call: Call) -> Tax:
        found = self._store.taxes.get(call.path["code"])
        if found is None:
            raise not_found("tax")
        return found
