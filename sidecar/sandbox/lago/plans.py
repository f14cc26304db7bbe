"""``/plans`` of the Lago stand-in. Source: lago-api ``app/services/plans/``, ``app/models/plan.rb``, ``charge.rb``."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

from sidecar.sandbox.lago.charges import MODELS, property_errors
from sidecar.sandbox.lago.fields import Fields
from sidecar.sandbox.lago.lago_store import Store, newest_first
from sidecar.sandbox.lago.lago_wire import Call, Json, invalid, not_found, page
from sidecar.sandbox.lago.periods import INTERVALS
from sidecar.sandbox.lago.records import Charge, Filter, FixedCharge, Metric, Plan
from sidecar.sandbox.lago.views import PLAN_PARTS, plan_view

CHARGES_MAX = 100
FILTERS_MAX = 100


class PlansApi:
    """``on_delete`` ends the subscriptions of a deleted plan. Plans made by overrides are not touched by updates."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.on_delete: Callable[[Plan], None] | None = None

    def create(self, call: Call) -> Json:
        fields = Fields(call.root("plan"))
        code, name = fields.required("code"), fields.required("name")
        if code in self._store.plans:
            fields.error("code", "value_already_exist")
        interval = fields.choice("interval", INTERVALS)
        amount, currency = fields.integer("amount_cents", low=0), fields.currency("amount_currency") or ""
        if amount is None and "amount_cents" not in fields.errors:
            fields.error("amount_cents", "value_is_mandatory")
        if not currency:
            fields.error("amount_currency", "value_is_invalid")
        if not isinstance(fields.given.get("pay_in_advance"), bool):
            fields.error("pay_in_advance", "value_is_invalid")
        plan = Plan(
            **self._store.new(), code=code, name=name, interval=interval, amount_cents=amount or 0, currency=currency,
            pay_in_advance=fields.boolean("pay_in_advance"),
        )  # fmt: skip
        self._assign_texts(plan, fields)
        self._assign_terms(plan, fields)
        fields.check()
        plan.taxes = self._store.taxes_by_code(fields.texts("tax_codes"))
        plan.charges = self._charges(plan, fields)
        plan.fixed_charges = self._fixed_charges(fields)
        plan.commitment_cents = _commitment_cents(fields)
        self._store.plans[code] = plan
        self._store.emit("plan.created", "plan", lambda: plan_view(plan, "entitlements"))
        return {"plan": plan_view(plan, *PLAN_PARTS)}

    def update(self, call: Call) -> Json:
        """Terms such as the interval stay as they are once the plan is subscribed to. Charges are replaced as a whole;
        those with a known ``id`` are changed in place, which re-rates the running period.
        """
        plan, fields = self._find(call), Fields(call.root("plan"))
        amount = fields.integer("amount_cents", plan.amount_cents, low=0)
        self._assign_texts(plan, fields)
        code = plan.code
        if not any(item.plan is plan for item in self._store.subscriptions):
            code = fields.text("code") or plan.code
            if code != plan.code and code in self._store.plans:
                fields.error("code", "value_already_exist")
            interval = fields.choice("interval", INTERVALS, plan.interval)
            currency = fields.currency("amount_currency") or plan.currency
            self._assign_terms(plan, fields)
            fields.check()
            plan.interval, plan.currency = interval, currency
            plan.pay_in_advance = fields.boolean("pay_in_advance", plan.pay_in_advance)
        fields.check()
        if "tax_codes" in fields:
            plan.taxes = self._store.taxes_by_code(fields.texts("tax_codes"))
        if "charges" in fields:
            plan.charges = self._charges(plan, fields)
        if "fixed_charges" in fields:
            plan.fixed_charges = self._fixed_charges(fields)
        if "minimum_commitment" in fields:
            plan.commitment_cents = _commitment_cents(fields)
        plan.amount_cents = plan.amount_cents if amount is None else amount
        del self._store.plans[plan.code]
        plan.code = code
        self._store.plans[code] = plan
        for invoice in self._store.invoices.values():
            invoice.needs_refresh |= any(period.subscription.plan is plan for period in invoice.periods)
        self._store.emit("plan.updated", "plan", lambda: plan_view(plan, "entitlements"))
        return {"plan": plan_view(plan, *PLAN_PARTS)}

    def override(self, plan: Plan, given: Json) -> Plan:
        """The copy of a plan that one subscription has to itself. Raises :class:`Refusal` for bad overrides."""
        fields = Fields(given)
        amount = fields.integer("amount_cents", plan.amount_cents, low=0)
        copy = Plan(
            **self._store.new(), code=plan.code, name=plan.name, interval=plan.interval,
            amount_cents=plan.amount_cents if amount is None else amount,
            currency=fields.currency("amount_currency") or plan.currency, pay_in_advance=plan.pay_in_advance,
            display_name=plan.display_name, description=plan.description, trial_days=plan.trial_days,
            charges_monthly=plan.charges_monthly, taxes=list(plan.taxes), parent=plan,
            fixed_charges=list(plan.fixed_charges), commitment_cents=plan.commitment_cents,
        )  # fmt: skip
        self._assign_texts(copy, fields)
        if "trial_period" in fields:
            copy.trial_days = fields.number("trial_period") or Decimal(0)
        by_id = {item.get("id"): item for item in fields.objects("charges")}
        fields.check()
        if "tax_codes" in fields:
            copy.taxes = self._store.taxes_by_code(fields.texts("tax_codes"))
        copy.charges = [self._override_charge(charge, by_id.get(charge.id, {})) for charge in plan.charges]
        return copy

    def _override_charge(self, charge: Charge, given: Json) -> Charge:
        fields = Fields(given)
        properties = fields.object("properties") if "properties" in fields else charge.properties
        fields.errors.update(property_errors(charge.model, properties))
        minimum = fields.integer("min_amount_cents", charge.min_amount_cents, low=0)
        filters = _filters(self._store, fields, charge.model) if "filters" in fields else charge.filters
        fields.check()
        taxes = self._store.taxes_by_code(fields.texts("tax_codes")) if "tax_codes" in fields else charge.taxes
        return Charge(
            **self._store.new(), code=charge.code, metric=charge.metric, model=charge.model, properties=properties,
            display_name=fields.text("invoice_display_name", charge.display_name), pay_in_advance=charge.pay_in_advance,
            invoiceable=charge.invoiceable, prorated=charge.prorated, min_amount_cents=minimum or 0, filters=filters,
            taxes=list(taxes), parent_id=charge.id,
        )  # fmt: skip

    def _assign_texts(self, plan: Plan, fields: Fields) -> None:
        plan.name = fields.text("name") or plan.name
        plan.display_name = fields.text("invoice_display_name", plan.display_name)
        plan.description = fields.text("description", plan.description)

    def _assign_terms(self, plan: Plan, fields: Fields) -> None:
        trial = fields.number("trial_period", plan.trial_days)
        if trial is None or trial < 0:
            fields.error("trial_period", "value_is_invalid")
        plan.trial_days = trial or Decimal(0)
        if fields.given.get("interval", plan.interval) in ("yearly", "semiannual"):
            plan.charges_monthly = fields.boolean("bill_charges_monthly", bool(plan.charges_monthly))

    def _charges(self, plan: Plan, fields: Fields) -> list[Charge]:
        given = fields.objects("charges")
        if len(given) > CHARGES_MAX:
            fields.error("charges", "value_is_invalid")
        fields.check()
        known = {charge.id: charge for charge in plan.charges}
        made: list[Charge] = []
        for item in given:
            charge = self._charge(Fields(item), known.get(str(item.get("id"))))
            taken = {other.code for other in made}
            if charge.code in taken:
                if item.get("code"):
                    raise invalid({"code": ["value_already_exist"]})
                charge.code = next(
                    f"{charge.code}_{n}" for n in range(1, CHARGES_MAX + 1) if f"{charge.code}_{n}" not in taken
                )
            made.append(charge)
        return made

    def _fixed_charges(self, fields: Fields) -> list[FixedCharge]:
        """Standard ones in arrears. Their add-ons are not kept: ``code`` stands for one."""
        made: list[FixedCharge] = []
        for given in fields.objects("fixed_charges"):
            item = Fields(given)
            item.choice("charge_model", ("standard",))
            code, units = item.required("code"), item.number("units", Decimal(1))
            amount = Fields(item.object("properties")).number("amount")
            if units is None or units < 0 or amount is None or amount < 0:
                item.error("properties", "invalid_amount")
            item.check()
            assert units is not None, "a missing one was refused"
            assert amount is not None, "a missing one was refused"
            made.append(FixedCharge(**self._store.new(), code=code, units=units, amount=amount))
        return made

    def _charge(self, fields: Fields, known: Charge | None) -> Charge:
        metric = known.metric if known is not None else self._metric(fields)
        model = fields.choice("charge_model", MODELS, known.model if known is not None else None)
        default = known.properties if known is not None else {}
        properties = fields.object("properties") if "properties" in fields else default
        for name, codes in property_errors(model, properties).items():
            fields.error(name, *codes)
        in_advance = fields.boolean("pay_in_advance", bool(known and known.pay_in_advance))
        if in_advance and (model == "volume" or metric.aggregation in ("max_agg", "latest_agg")):
            fields.error("pay_in_advance", "invalid_aggregation_type_or_charge_model")
        minimum = fields.integer("min_amount_cents", known.min_amount_cents if known else 0, low=0)
        filters = _filters(self._store, fields, model) if "filters" in fields else (known.filters if known else [])
        code = fields.text("code") or (known.code if known else metric.code)
        display_name = fields.text("invoice_display_name", known.display_name if known else None)
        invoiceable = fields.boolean("invoiceable", known.invoiceable if known else True)
        prorated = fields.boolean("prorated", known.prorated if known else False)
        if not invoiceable and not in_advance:
            fields.error("invoiceable", "must_be_true_unless_pay_in_advance")
        if prorated and not metric.recurring:
            fields.error("prorated", "invalid_billable_metric_or_charge_model")
        fields.check()
        if "tax_codes" in fields:
            taxes = self._store.taxes_by_code(fields.texts("tax_codes"))
        else:
            taxes = known.taxes if known else []
        charge = known or Charge(**self._store.new(), code=code, metric=metric, model=model, properties=properties)
        charge.code, charge.model, charge.properties, charge.filters, charge.taxes = (
            code,
            model,
            properties,
            filters,
            taxes,
        )
        charge.display_name, charge.pay_in_advance, charge.invoiceable = display_name, in_advance, invoiceable
        charge.prorated, charge.min_amount_cents = prorated, minimum or 0
        return charge

    def _metric(self, fields: Fields) -> Metric:
        """By ``billable_metric_id``, as Lago takes it; a code is not enough."""
        wanted = fields.text("billable_metric_id")
        found = next((item for item in self._store.metrics.values() if item.id == wanted), None)
        if found is None:
            raise not_found("billable_metrics")
        return found

    def get(self, call: Call) -> Json:
        return {"plan": plan_view(self._find(call), *PLAN_PARTS)}

    def list(self, call: Call) -> Json:
        return page(
            call,
            "plans",
            newest_first(self._store.plans.values()),
            lambda item: plan_view(item, "applicable_usage_thresholds", "entitlements"),
        )

    def delete(self, call: Call) -> Json:
        plan = self._find(call)
        plan.deleted = True
        del self._store.plans[plan.code]
        self._store.emit("plan.deleted", "plan", lambda: plan_view(plan))
        if self.on_delete is not None:
            self.on_delete(plan)
        return {"plan": plan_view(plan, *PLAN_PARTS)}

    def _find(self, call: Call) -> Plan:
        found = self._store.plans.get(call.path["code"])
        if found is None:
            raise not_found("plan")
        return found


def _filters(store: Store, fields: Fields, model: str) -> list[Filter]:
    """Each has the values that it takes and the price of its own."""
    given = fields.objects("filters")
    if len(given) > FILTERS_MAX:
        fields.error("filters", "value_is_invalid")
        return []
    made: list[Filter] = []
    for item in given:
        one = Fields(item)
        values, properties = one.object("values"), one.object("properties")
        if not values or not all(isinstance(allowed, list) and allowed for allowed in values.values()):
            fields.error("filters", "value_is_invalid")
        for name, codes in property_errors(model, properties).items():
            fields.error(name, *codes)
        display_name = one.text("invoice_display_name")
        fields.errors.update(one.errors)
        made.append(
            {
                "lago_id": store.new_id(),
                "invoice_display_name": display_name,
                "properties": properties,
                "values": values,
            }
        )
    return made


def _commitment_cents(fields: Fields) -> int:
    given = Fields(fields.object("minimum_commitment") if "minimum_commitment" in fields else {})
    cents = given.integer("amount_cents", 0, low=0)
    given.check()
    return cents or 0
