"""The clock's jobs of the Lago stand-in, and when they are due.

Source: lago-api ``clock.rb`` and ``app/services/subscriptions/organization_billing_service.rb``: subscriptions that
wait start every five minutes, ended ones terminate at hh:05, periods are billed at hh:10 of their first day, drafts
become final at hh:20, trials end at hh:35, wallets expire at hh:45. With periods of seconds, every job runs at the end
of each period as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from sidecar.sandbox.lago.clock import instant_us, unix_us
from sidecar.sandbox.lago.fees import trial_end
from sidecar.sandbox.lago.ingest import EventsApi
from sidecar.sandbox.lago.invoicing import Invoicing
from sidecar.sandbox.lago.lago_store import Store
from sidecar.sandbox.lago.lifecycle import Lifecycle
from sidecar.sandbox.lago.records import InvoicePeriod, Subscription
from sidecar.sandbox.lago.usage import UsageApi
from sidecar.sandbox.lago.wallets import WalletsApi

MINUTE_US = 60_000_000
STEP_US = 5 * MINUTE_US
HOUR_US = 60 * MINUTE_US


class Billing:
    """``run_until`` runs, in order and each at its time, all jobs due since the last run."""

    def __init__(
        self,
        store: Store,
        lifecycle: Lifecycle,
        invoicing: Invoicing,
        usage: UsageApi,
        wallets: WalletsApi,
        events: EventsApi,
    ) -> None:
        self._store = store
        self._lifecycle = lifecycle
        self._invoicing = invoicing
        self._usage = usage
        self._wallets = wallets
        self._events = events
        self._done_us = unix_us(store.now())
        by_minute: dict[int, list[Callable[[datetime], None]]] = {}
        for minute, job in (
            (5, self._end_subscriptions),
            (5, self._report_events),
            (store.config.bill_minute, self._bill),
            (20, self._finalize_drafts),
            (35, self._end_trials),
            (45, self._expire_wallets),
        ):
            by_minute.setdefault(minute, []).append(job)
        self._by_minute: Mapping[int, list[Callable[[datetime], None]]] = by_minute

    def run_until(self, until: datetime) -> None:
        """The clock must not be past ``until``; it stands at each job's time while that job runs."""
        self._store.run_jobs()
        while (due_us := self._next_us(self._done_us)) <= unix_us(until):
            self._done_us = due_us
            at = instant_us(due_us)
            self._store.clock.at_least(at)
            self._run(at, due_us)
            self._store.run_jobs()

    def _next_us(self, after_us: int) -> int:
        """The next instant at which a job is due: a job's minute, or the end of a period of seconds."""
        marks = [(after_us // STEP_US + 1) * STEP_US]
        bill_us = self._store.config.bill_minute * MINUTE_US
        marks.append((after_us - bill_us) // HOUR_US * HOUR_US + HOUR_US + bill_us)
        if self._store.config.period_s is not None:
            length_us, delay_us = self._store.config.period_s * 1_000_000, self._store.config.period_delay_s * 1_000_000
            marks.append(((after_us - delay_us) // length_us + 1) * length_us + delay_us)
        return min(marks)

    def _run(self, at: datetime, due_us: int) -> None:
        """Jobs find nothing left to do when they run twice at one time."""
        period_s, delay_s = self._store.config.period_s, self._store.config.period_delay_s
        if period_s is not None and (due_us - delay_s * 1_000_000) % (period_s * 1_000_000) == 0:
            self._activate(at)
            ended = instant_us(due_us - delay_s * 1_000_000)
            jobs = (self._end_subscriptions, self._bill, self._finalize_drafts, self._end_trials, self._expire_wallets)
            for work in jobs:
                work(ended)
                self._store.run_jobs()
        if due_us % STEP_US == 0:
            self._activate(at)
            self._refresh(at, due_us)
        if due_us % MINUTE_US == 0:
            for job in self._by_minute.get(due_us % HOUR_US // MINUTE_US, ()):
                job(at)
                self._store.run_jobs()

    def _activate(self, at: datetime) -> None:
        """Those whose day has come, but for successors, which wait for the billing day."""
        for item in self._store.subscriptions:
            if item.status != "pending" or item.previous is not None:
                continue
            zone = item.customer.zone
            by_day = item.subscription_at.astimezone(zone).date() <= at.astimezone(zone).date()
            if by_day if self._store.config.period_s is None else item.subscription_at <= at:
                self._lifecycle.start(item, at)

    def _refresh(self, at: datetime, due_us: int) -> None:
        for invoice in self._store.invoices.values():
            if invoice.needs_refresh and invoice.status == "draft":
                self._invoicing.refresh(invoice)
        every_us = self._store.config.refresh_wallets_s * 1_000_000
        if not self._store.config.premium or not every_us or due_us % every_us:
            return
        for customer in self._store.customers.values():
            if customer.awaits_refresh:
                self._usage.refresh(customer)

    def _end_subscriptions(self, at: datetime) -> None:
        """On the local day of ``ending_at``, at its first hh:05."""
        for item in list(self._store.subscriptions):
            if item.status != "active" or item.ending_at is None:
                continue
            zone = item.customer.zone
            by_day = item.ending_at.astimezone(zone).date() <= at.astimezone(zone).date()
            if by_day if self._store.config.period_s is None else item.ending_at <= at:
                self._lifecycle.terminate(item)

    def _bill(self, at: datetime) -> None:
        """One invoice for each customer and currency; plans that wait for the end of the period take over."""
        groups: dict[tuple[str, str], list[Subscription]] = {}
        for item in list(self._store.subscriptions):
            if not self._is_due(item, at):
                continue
            if item.next is not None and item.next.status == "pending":
                self._lifecycle.downgrade(item, at)
            else:
                groups.setdefault((item.customer.id, item.plan.currency), []).append(item)
        for subscriptions in groups.values():
            periods = [self._periodic(item, at) for item in subscriptions]
            self._store.later(lambda periods=periods: self._lifecycle.bill(*periods))  # type: ignore[misc]

    def _is_due(self, item: Subscription, at: datetime) -> bool:
        """Today a period begins, one has passed since the start, and it was not billed yet."""
        if item.status != "active" or item.started_at is None:
            return False
        periods = self._store.charge_periods(item)
        start = periods.containing(at).start
        today = periods.day_start(at)
        return start == today and item.started_at < today and start not in item.billed

    def _periodic(self, item: Subscription, at: datetime) -> InvoicePeriod:
        item.billed.add(self._store.charge_periods(item).containing(at).start)
        return self._lifecycle.periodic(item, at)

    def _finalize_drafts(self, at: datetime) -> None:
        for invoice in list(self._store.invoices.values()):
            if invoice.status == "draft" and invoice.finalize_on is not None and invoice.finalize_on <= at.date():
                self._invoicing.finalize(invoice)

    def _end_trials(self, at: datetime) -> None:
        for item in self._store.subscriptions:
            end = trial_end(item) if item.status == "active" and item.trial_ended_at is None else None
            if end is not None and end <= at:
                self._lifecycle.end_trial(item, at)

    def _expire_wallets(self, at: datetime) -> None:
        for wallet in list(self._store.wallets.values()):
            if wallet.is_active and wallet.expiration_at is not None and wallet.expiration_at <= at:
                self._wallets.end(wallet)

    def _report_events(self, at: datetime) -> None:
        self._events.report_errors()
