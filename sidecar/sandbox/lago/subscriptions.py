"""``/subscriptions`` of the Lago stand-in. Source: lago-api ``app/services/subscriptions/create_service.rb``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from sidecar.sandbox.lago.customers import CustomersApi
from sidecar.sandbox.lago.fields import Fields
from sidecar.sandbox.lago.lago_store import Store, newest_first
from sidecar.sandbox.lago.lago_wire import Call, Json, filtered, forbidden, invalid, not_found, page
from sidecar.sandbox.lago.lifecycle import Lifecycle
from sidecar.sandbox.lago.plans import PlansApi
from sidecar.sandbox.lago.records import Customer, Plan, Subscription
from sidecar.sandbox.lago.views import SUBSCRIPTION_PARTS, fixed_charge_view, subscription_view

STATUSES = ("pending", "active", "terminated", "canceled", "incomplete")
_PARTS = tuple(part for part in SUBSCRIPTION_PARTS if part != "customer")
_FILTERS: Mapping[str, Callable[[Subscription], str | None]] = {
    "external_customer_id": lambda item: item.customer.external_id,
    "plan_code": lambda item: item.plan.code,
    "external_id": lambda item: item.external_id,
    "currency": lambda item: item.plan.currency,
}


class SubscriptionsApi:
    def __init__(self, store: Store, lifecycle: Lifecycle, plans: PlansApi, customers: CustomersApi) -> None:
        self._store = store
        self._lifecycle = lifecycle
        self._plans = plans
        self._customers = customers

    def create(self, call: Call) -> Json:
        """A new one; for an external id in use, another plan is an upgrade or a downgrade, the same plan nothing."""
        given = call.root("subscription")
        fields = Fields(given)
        customer_id = fields.text("external_customer_id") or ""
        plan = self._store.plans.get(fields.text("plan_code") or "")
        if plan is None:
            raise not_found("plan")
        now = self._store.now()
        begin = fields.instant("subscription_at", now) or now
        ending_at = self._ending_at(fields, begin)
        fields.check()
        if "plan_overrides" in fields and not self._store.config.premium:
            raise forbidden()
        if not customer_id:
            raise invalid({"external_customer_id": ["value_is_mandatory"]})
        external_id = fields.required("external_id")
        billing_time = fields.choice("billing_time", ("calendar", "anniversary"), "calendar")
        overrides = fields.object("plan_overrides") if "plan_overrides" in fields else None
        name = fields.text("name")
        fields.check()
        customer = self._customers.find_or_create(customer_id)
        current = self._current(customer, external_id)
        if current is not None and current.plan is not plan:
            return self._show(self._replace(current, plan, overrides, name, ending_at))
        if current is not None:
            return self._show(current)
        customer.currency = customer.currency or plan.currency
        target = plan if overrides is None else self._plans.override(plan, overrides)
        subscription = Subscription(
            **self._store.new(),
            external_id=external_id, customer=customer, plan=target, status="pending", billing_time=billing_time,
            subscription_at=begin, name=name, ending_at=ending_at,
        )  # fmt: skip
        self._store.add_subscription(subscription)
        self._begin(subscription, now)
        return self._show(subscription)

    def _begin(self, subscription: Subscription, now: datetime) -> None:
        """From today on it is active at once and billed; backdated it is active and not billed; else it waits."""
        zone = subscription.customer.zone
        begin, today = subscription.subscription_at.astimezone(zone).date(), now.astimezone(zone).date()
        if begin <= today or (self._store.config.period_s is not None and subscription.subscription_at <= now):
            self._lifecycle.start(subscription, subscription.subscription_at, bill=begin == today)

    def _current(self, customer: Customer, external_id: str) -> Subscription | None:
        """The active or waiting one under the id. Raises :class:`Refusal` if it is another customer's."""
        for item in self._store.subscriptions_of(external_id):
            waits = item.status == "pending" and item.previous is None
            if item.customer is customer and (item.status == "active" or waits):
                return item
            if item.status == "active":
                raise invalid({"external_id": ["value_already_exist"]})
        return None

    def _replace(
        self, current: Subscription, plan: Plan, overrides: Json | None, name: str | None, ending_at: datetime | None
    ) -> Subscription:
        """Upgrade if the new plan's amount a year is as high, else a downgrade at the end of the period."""
        if current.status == "pending":
            current.plan, current.name = plan, name or current.name
            return current
        target = plan if overrides is None else self._plans.override(plan, overrides)
        if current.next is not None and current.next.status == "pending":
            self._lifecycle.cancel(current.next)
        following = Subscription(
            **self._store.new(),
            external_id=current.external_id,
            customer=current.customer,
            plan=target,
            status="pending",
            billing_time=current.billing_time,
            subscription_at=current.subscription_at,
            name=name,
            ending_at=ending_at or current.ending_at,
            previous=current,
        )
        self._store.add_subscription(following)
        is_upgrade = plan.yearly_cents >= current.plan.yearly_cents
        current.next = following
        if is_upgrade:
            self._lifecycle.upgrade(current, following)
            return following
        self._lifecycle.emit("subscription.updated", current)
        return current

    def list(self, call: Call) -> Json:
        """Active ones unless asked for others; a status that there is not is not a filter."""
        found = list(self._store.subscriptions)
        wanted = call.many("status") or ["active"]
        if all(item in STATUSES for item in wanted):
            found = [item for item in found if item.status in wanted]
        found = filtered(call, found, _FILTERS)
        ordered = sorted(newest_first(found), key=lambda item: item.subscription_at, reverse=True)
        return page(call, "subscriptions", ordered, lambda item: subscription_view(self._store, item))

    def get(self, call: Call) -> Json:
        found = self._find(call, call.one("status") or "active")
        if found is None:
            raise not_found("subscription")
        return self._show(found)

    def fixed_charges(self, call: Call) -> Json:
        found = self._find(call, "active")
        if found is None:
            raise not_found("subscription")
        return page(call, "fixed_charges", newest_first(found.plan.fixed_charges), fixed_charge_view)

    def update(self, call: Call) -> Json:
        """Name, end, what happens on termination, and overrides of the plan."""
        with_id = self._store.subscriptions_of(call.path["external_id"])
        only = with_id[0] if len(with_id) == 1 else None
        subscription = only or self._find(call, call.one("status") or "active")
        if subscription is None:
            raise not_found("subscription")
        fields = Fields(call.root("subscription"))
        ending_at = self._ending_at(fields, subscription.subscription_at)
        credit_note = fields.text("on_termination_credit_note", subscription.on_termination_credit_note)
        on_invoice = fields.choice("on_termination_invoice", ("generate", "skip"), subscription.on_termination_invoice)
        fields.check()
        if "plan_overrides" in fields:
            if not self._store.config.premium:
                raise forbidden()
            subscription.plan = self._plans.override(subscription.plan, fields.object("plan_overrides"))
        if "name" in fields:
            subscription.name = fields.text("name")
        if "ending_at" in fields:
            subscription.ending_at = ending_at
        if subscription.plan.pay_in_advance:
            subscription.on_termination_credit_note = credit_note
        subscription.on_termination_invoice = on_invoice
        self._lifecycle.emit("subscription.updated", subscription)
        return self._show(subscription)

    def terminate(self, call: Call) -> Json:
        wanted = "pending" if call.one("status") == "pending" else "active"
        subscription = self._find(call, wanted)
        if subscription is None:
            raise not_found("subscription")
        if wanted == "pending":
            previous = subscription.previous
            self._lifecycle.cancel(subscription)
            if previous is not None:
                self._lifecycle.emit("subscription.updated", previous)
            self._lifecycle.emit("subscription.terminated", subscription)
        else:
            if call.one("on_termination_invoice") in ("generate", "skip"):
                subscription.on_termination_invoice = call.one("on_termination_invoice") or "generate"
            if subscription.plan.pay_in_advance and call.one("on_termination_credit_note"):
                subscription.on_termination_credit_note = call.one("on_termination_credit_note")
            self._lifecycle.terminate(subscription)
        return self._show(subscription)

    def _find(self, call: Call, status: str) -> Subscription | None:
        found = [item for item in self._store.subscriptions_of(call.path["external_id"]) if item.status == status]
        return found[-1] if found else None

    def _show(self, subscription: Subscription) -> Json:
        return {"subscription": subscription_view(self._store, subscription, *_PARTS)}

    def _ending_at(self, fields: Fields, begin: datetime) -> datetime | None:
        """It must be on a later day than today and the start, but for periods of seconds."""
        ending_at = fields.instant("ending_at")
        if ending_at is None:
            return None
        latest = max(begin, self._store.now())
        by_days = self._store.config.period_s is None
        if ending_at.date() <= latest.date() if by_days else ending_at <= latest:
            fields.error("ending_at", "invalid_date")
        return ending_at
