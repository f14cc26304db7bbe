"""Subscriptions of the Lago stand-in from start to end, and which spans their invoices cover.

Source: lago-api ``app/services/subscriptions/`` (``activate_service.rb``, ``terminate_service.rb``,
``plan_upgrade_service.rb``, ``plan_downgrade_service.rb``), ``create_invoice_subscription_service.rb``,
``app/services/credit_notes/create_from_termination.rb``.

As there: an upgrade bills the period that it falls in up to now. One that comes after a period's end but before that
period was billed leaves the period unbilled. The plan after a downgrade starts when the old one is billed, ten
minutes into the day; what is used in between is billed to neither.
"""

from __future__ import annotations

from datetime import datetime
from fractions import Fraction

from sidecar.sandbox.lago.credit_notes import announce
from sidecar.sandbox.lago.fees import trial_end
from sidecar.sandbox.lago.invoicing import Invoicing
from sidecar.sandbox.lago.lago_store import Store
from sidecar.sandbox.lago.lago_wire import Json
from sidecar.sandbox.lago.money import round_fraction
from sidecar.sandbox.lago.periods import Span, before
from sidecar.sandbox.lago.records import CreditNote, InvoicePeriod, Subscription
from sidecar.sandbox.lago.views import subscription_view


class Lifecycle:
    """Starts, ends and replaces subscriptions, with their invoices."""

    def __init__(self, store: Store, invoicing: Invoicing) -> None:
        self._store = store
        self._invoicing = invoicing

    def start(self, subscription: Subscription, at: datetime, *, bill: bool = True) -> None:
        """A plan paid in advance is billed at once, unless a trial waives its fee."""
        self._activate(subscription, at)
        if bill and self._pays_at_start(subscription):
            self._bill_later(self._starting(subscription, at))

    def upgrade(self, old: Subscription, new: Subscription) -> None:
        """Ends ``old`` now and starts ``new``; one invoice for both."""
        at = self._store.now()
        self._terminate(old, at, upgrade=True)
        self._activate(new, at)
        periods = [self._terminating(old, at)]
        if self._pays_at_start(new):
            periods.append(self._starting(new, at))
        self._bill_later(*periods)

    def downgrade(self, old: Subscription, at: datetime) -> None:
        """The pending plan takes over; the old one is billed for the period that has just ended."""
        new = old.next
        assert new is not None, "a downgrade has a successor waiting"
        old.status, old.terminated_at = "terminated", at
        self.emit("subscription.terminated", old)
        self._activate(new, at)
        periods = [self.periodic(old, at)]
        periods[0].reason, periods[0].is_last = "subscription_terminating", True
        if new.plan.pay_in_advance:
            periods.append(self._starting(new, at))
        self._bill_later(*periods)

    def terminate(self, subscription: Subscription) -> None:
        """Ends an active subscription now, with its last invoice; a successor that waits is canceled."""
        at = self._store.now()
        self._terminate(subscription, at, upgrade=False)
        if subscription.next is not None and subscription.next.status == "pending":
            self.cancel(subscription.next)
        if subscription.on_termination_invoice == "generate":
            self._bill_later(self._terminating(subscription, at))

    def cancel(self, subscription: Subscription) -> None:
        """Drops one that has not started."""
        subscription.status, subscription.canceled_at = "canceled", self._store.now()
        if subscription.previous is not None and subscription.previous.next is subscription:
            subscription.previous.next = None

    def end_trial(self, subscription: Subscription, at: datetime) -> None:
        """The fee that the trial has put off falls due for a plan paid in advance."""
        today = self._store.fee_periods(subscription).day_start(at)
        if subscription.plan.pay_in_advance and today not in subscription.fee_days:
            self._bill_later(self._starting(subscription, at))
        subscription.trial_ended_at = trial_end(subscription)
        self.emit("subscription.trial_ended", subscription)

    def periodic(self, subscription: Subscription, at: datetime) -> InvoicePeriod:
        """Usage of the period that ended before the one around ``at``; a fee in advance is for the one around it."""
        fee_periods, charge_periods = self._store.fee_periods(subscription), self._store.charge_periods(subscription)
        current = fee_periods.containing(at)
        started = subscription.started_at or at
        charges = before(charge_periods, charge_periods.containing(at)).from_start(started)
        in_advance = subscription.plan.pay_in_advance
        fees = current if in_advance else before(fee_periods, current)
        starts_fee_period = current.start == charge_periods.containing(at).start
        return InvoicePeriod(
            subscription=subscription,
            fee_span=fees.from_start(fee_periods.day_start(started)),
            charges_span=charges,
            reason="subscription_periodic",
            with_fee=starts_fee_period and self._fee_is_due(subscription, at),
            with_charges=True,
        )

    def bill(self, *periods: InvoicePeriod) -> None:
        """One invoice for several subscriptions of a customer, all in one currency."""
        subscription = periods[0].subscription
        at = self._store.now()
        for period in periods:
            if period.with_fee:
                day = self._store.fee_periods(period.subscription).day_start(at)
                period.subscription.fee_days.add(day)
        self._invoicing.bill(subscription.customer, subscription.plan.currency, periods)

    def emit(self, type: str, subscription: Subscription) -> None:
        def view() -> Json:
            more = ("entitlements",) if type in ("subscription.started", "subscription.updated") else ()
            return subscription_view(self._store, subscription, "plan", "customer", *more)

        self._store.emit(type, "subscription", view)

    def _bill_later(self, *periods: InvoicePeriod) -> None:
        self._store.later(lambda: self.bill(*periods))

    def _activate(self, subscription: Subscription, at: datetime) -> None:
        subscription.status = "active"
        subscription.started_at = at
        earlier = [item.started_at for item in self._store.subscriptions_of(subscription.external_id)]
        subscription.first_started_at = min(item for item in earlier if item is not None)
        self.emit("subscription.started", subscription)

    def _terminate(self, subscription: Subscription, at: datetime, *, upgrade: bool) -> None:
        subscription.status, subscription.terminated_at = "terminated", at
        if subscription.plan.pay_in_advance and subscription.on_termination_credit_note != "skip":
            self._give_credit(subscription, at, upgrade=upgrade)
        self.emit("subscription.terminated", subscription)

    def _give_credit(self, subscription: Subscription, at: datetime, *, upgrade: bool) -> None:
        """A credit note for the days paid in advance but not used; the day of an upgrade counts as not used."""
        fee = subscription.last_fee
        if fee is None or fee.invoice is None or fee.invoice.status == "voided" or not fee.amount_cents:
            return
        periods = self._store.fee_periods(subscription)
        period = periods.containing(at)
        rest = Span(periods.day_start(at), period.until, period.shown_to)
        share = periods.share(rest, without_last=not upgrade)
        unused = min(Fraction(fee.amount_cents), subscription.plan.amount_cents * share)
        with_tax = round_fraction(unused * (1 + Fraction(fee.taxes_rate) / 100))
        if with_tax > 0:
            note = CreditNote(
                **self._store.new(), customer=subscription.customer, invoice=fee.invoice, currency=fee.currency,
                amount_cents=with_tax, balance_cents=with_tax, reason="order_change",
            )  # fmt: skip
            subscription.customer.credit_notes.append(note)
            announce(self._store, note)

    def _pays_at_start(self, subscription: Subscription) -> bool:
        end = trial_end(subscription)
        return subscription.plan.pay_in_advance and (end is None or end <= self._store.now())

    def _fee_is_due(self, subscription: Subscription, at: datetime) -> bool:
        """Not in a trial, and not a second time on a day on which a fee in advance was charged."""
        periods, end = self._store.fee_periods(subscription), trial_end(subscription)
        today = periods.day_start(at)
        if subscription.plan.pay_in_advance and today in subscription.fee_days:
            return False
        in_trial = end is not None and subscription.trial_ended_at is None and end > at
        return not in_trial or (end is not None and periods.day_start(end) == today)

    def _starting(self, subscription: Subscription, at: datetime) -> InvoicePeriod:
        periods = self._store.fee_periods(subscription)
        started = subscription.started_at or at
        return InvoicePeriod(
            subscription=subscription,
            fee_span=periods.containing(at).from_start(periods.day_start(started)),
            charges_span=Span(started, started, started),
            reason="subscription_starting",
            with_fee=True,
            with_charges=False,
        )

    def _terminating(self, subscription: Subscription, at: datetime) -> InvoicePeriod:
        """Up to now. What ends on a billing day that was not billed yet is billed for the period before instead."""
        fee_periods, charge_periods = self._store.fee_periods(subscription), self._store.charge_periods(subscription)
        started = subscription.started_at or at
        charges, fees = charge_periods.containing(at), fee_periods.containing(at)
        upgrade = subscription.is_upgraded
        if not upgrade and self._missed_billing(subscription, charges, at):
            charges = before(charge_periods, charges)
            fees = before(fee_periods, fees) if fees.start == fee_periods.day_start(at) else fees
        in_advance = subscription.plan.pay_in_advance
        return InvoicePeriod(
            subscription=subscription,
            fee_span=fees.from_start(fee_periods.day_start(started)).cut(at, included=True),
            charges_span=charges.from_start(started).cut(at, included=not upgrade),
            reason="subscription_terminating",
            with_fee=not in_advance and self._fee_is_due(subscription, at),
            with_charges=True,
            is_last=True,
        )

    def _missed_billing(self, subscription: Subscription, period: Span, at: datetime) -> bool:
        periods = self._store.charge_periods(subscription)
        started = subscription.started_at or at
        on_billing_day = periods.day_start(at) == period.start
        return on_billing_day and started < period.start and period.start not in subscription.billed
