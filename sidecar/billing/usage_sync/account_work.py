"""The work of one round on one account: its sync state, what it owes, what became of it. Without I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Final

from sidecar.billing.settings import SyncSettings
from sidecar.billing.usage_sync.billable_units import ChargedUnits, billable_units
from sidecar.billing.usage_sync.delivery import DeliveryOutcome
from sidecar.billing.usage_sync.event_fields import EventFields
from sidecar.billing.usage_sync.frozen_events import FrozenEvent
from sidecar.billing.usage_sync.metered_usage import Shown, UsageRange
from sidecar.billing.usage_sync.period_links import PeriodLink, SyncAccount
from sidecar.billing.usage_sync.planning import (
    Finding,
    PlannedUsage,
    RoundTime,
    SegmentToCompare,
    displaced_segments,
    is_due,
    is_finished,
    is_flushing,
    new_pushed_usage,
    plan_usage,
    segments_to_compare,
)
from sidecar.billing.usage_sync.pushed_usage import PushedUsage
from sidecar.billing.usage_sync.sync_report import Counts, ReportBuilder, RowKind, SyncRow
from sidecar.billing.usage_sync.sync_store import SyncState, SyncStateChange
from sidecar.ledger.account_counts import AccountCounts

SURPLUS_CAUSE: Final = (
    "OpenMeter shows more than the ledger has charged, which is not billed: it counts events twice (sink.dedupe.enabled"
    " is off, or its driver is memory), or another producer sends events of this subject"
)
LEDGER_CAUSE: Final = "OpenMeter does not show them, and Lago makes the invoice: pushed by the ledger's own counts"

PUSHED_USAGES_DONE_MAX: Final = 64
"""Periods and metrics of one account that are kept after the last look at them, for comparisons with invoices."""


@dataclass(frozen=True, slots=True)
class DisplacedUnits:
    """Units that were pushed for a period, and that Lago bills in another one, ``billed_in``."""

    segment_s: int
    units: int
    billed_in: PeriodLink


@dataclass(frozen=True, slots=True)
class MetricPeriod:
    """A metric of a period, and the segments of it to compare. ``displaced``: units of it that Lago bills in
    other periods, which was not known before."""

    link: PeriodLink
    metric: str
    pushed_usage: PushedUsage
    to_compare: tuple[SegmentToCompare, ...]
    displaced: tuple[DisplacedUnits, ...] = ()

    def ranges(self, account: str) -> Iterator[UsageRange]:
        for compared in self.to_compare:
            yield UsageRange(account, self.metric, compared.segment.start_s, compared.until_s)


@dataclass(slots=True)
class AccountWork:
    """``change`` is what to write before ``fresh`` events are sent. ``has_failed``: the account is left for the next
    round."""

    account: SyncAccount
    state: SyncState
    metric_periods: list[MetricPeriod] = field(default_factory=list)
    change: SyncStateChange = field(default_factory=SyncStateChange)
    fresh: Sequence[FrozenEvent] = ()
    has_failed: bool = False

    def target_of(self, frozen_event: FrozenEvent) -> PeriodLink | None:
        """The period that an event is billed in, if it is still listed."""
        return next(
            (
                link
                for link, metric in self.account.metric_periods()
                if link.ledger_start_ms == frozen_event.target_start_ms and metric == frozen_event.metric
            ),
            None,
        )

    def is_missed(self, frozen_event: FrozenEvent) -> bool:
        """Whether an event that has not reached Lago yet would be billed no more."""
        target = self.target_of(frozen_event)
        return target is not None and target.is_final

    def is_due(self, frozen_event: FrozenEvent, round_time: RoundTime, settings: SyncSettings) -> bool:
        """Whether to send it now. One that was set aside gets another chance before its period's invoice is made."""
        if self.is_missed(frozen_event):
            return False
        target = self.target_of(frozen_event)
        is_last_chance = target is not None and is_flushing(target, round_time, settings)
        return frozen_event.state == "frozen" or round_time.flush or is_last_chance

    def find_metric_periods(
        self, fields: EventFields, round_time: RoundTime, settings: SyncSettings, report: ReportBuilder
    ) -> None:
        """Find out what has to be known of OpenMeter."""
        taken: dict[tuple[int, str], str] = {}
        for link, metric in self.account.metric_periods():
            key = link.start_s, metric
            pushed_usage = self.state.pushed_usages.get(key)
            # A year that goes on may be older than months that are done.
            is_forgotten = link.start_s <= self.state.forgotten_periods.until_s and not link.is_current
            if pushed_usage is None and is_forgotten:
                continue
            other = taken.get(key) or (
                pushed_usage.subscription_id if pushed_usage is not None else link.subscription_id
            )
            if other != link.subscription_id:
                report.add(self._row(link.ledger_start_ms, metric, "error", 0, detail=_two_subscriptions(link, other)))
                report.counts.accounts_failed += 1
                continue
            taken[key] = link.subscription_id
            pushed_usage = (pushed_usage or new_pushed_usage(link, metric)).clipped(link.end_s)
            if fields.of(link.billed_metric(metric)) is None or pushed_usage.is_done or link.start_s > round_time.now_s:
                continue
            pushed_usage, displaced = self._without_displaced(link, metric, pushed_usage)
            self.metric_periods.append(
                MetricPeriod(
                    link, metric, pushed_usage, segments_to_compare(link, pushed_usage, round_time, settings), displaced
                )
            )

    def _billable(
        self,
        metric_period: MetricPeriod,
        units: Mapping[UsageRange, Shown],
        counts: AccountCounts,
        round_time: RoundTime,
        settings: SyncSettings,
        report: ReportBuilder,
    ) -> tuple[int | None, ...]:
        """The units to bill of each segment; what is wrong with them goes into the report."""
        link, metric = metric_period.link, metric_period.metric
        period = counts.periods.get((link.ledger_start_ms, metric), self.account.charged(link, metric))
        billable = billable_units(
            metric_period.to_compare,
            [units[usage_range] for usage_range in metric_period.ranges(self.account.id)],
            metric_period.pushed_usage,
            ChargedUnits(metric, counts, period, counts.taken.get((link.ledger_start_ms, metric), 0)),
            from_ledger=settings.source == "ledger" or is_due(link, round_time),
            end_s=link.end_s,
            is_over=round_time.now_s >= link.end_s,
        )
        if billable.held:
            report.counts.held += 1
            report.add(self._row(link.ledger_start_ms, metric, "held", 0, detail=billable.held, is_new=False))
        if billable.surplus:
            report.counts.surplus_units += billable.surplus
            report.add(
                self._row(link.ledger_start_ms, metric, "surplus", billable.surplus, detail=SURPLUS_CAUSE, is_new=False)
            )
        if billable.from_ledger and settings.source != "ledger":
            report.counts.ledger_units += billable.from_ledger
            report.add(self._row(link.ledger_start_ms, metric, "ledger", billable.from_ledger, detail=LEDGER_CAUSE))
        return billable.units

    def plan(
        self,
        units: Mapping[UsageRange, Shown],
        counts: AccountCounts,
        fields: EventFields,
        round_time: RoundTime,
        settings: SyncSettings,
        report: ReportBuilder,
    ) -> None:
        """Decide what to write: events to freeze, and the pushed usage with them."""
        events: list[FrozenEvent] = []
        retargeted: list[FrozenEvent] = []
        pushed_usages: dict[tuple[int, str], PushedUsage] = {}
        carried: list[tuple[PeriodLink, str, int]] = []
        for metric_period in self.metric_periods:
            billable = self._billable(metric_period, units, counts, round_time, settings, report)
            current = self.account.current(metric_period.metric) if settings.late_usage == "carry" else None
            current, field_name = _field_to_fill(metric_period, current, fields)
            planned = plan_usage(
                metric_period.link,
                metric_period.pushed_usage,
                metric_period.to_compare,
                billable,
                round_time,
                settings,
                field_name,
                current,
            )
            pushed_usages[metric_period.link.start_s, metric_period.metric] = self._marked_done(
                metric_period.link, planned, round_time, settings
            )
            events += planned.events
            for finding in planned.findings:
                self._note_finding(metric_period, finding, report)
            report.counts.late_units_known += planned.pushed_usage.late
            if current is not None and planned.carried:
                carried.append((current, metric_period.metric, planned.carried))
            carried += [(moved.billed_in, metric_period.metric, moved.units) for moved in metric_period.displaced]
            retargeted += self._retargeted(metric_period)
        for billing_link, metric, more in carried:
            key = billing_link.start_s, metric
            into = pushed_usages.get(key) or self.state.pushed_usages.get(key) or new_pushed_usage(billing_link, metric)
            pushed_usages[key] = replace(into, carried_in=into.carried_in + more)
        changed = [
            pushed_usage
            for key, pushed_usage in pushed_usages.items()
            if pushed_usage != self.state.pushed_usages.get(key)
        ]
        self.change = self._with_forgotten(SyncStateChange(pushed_usages=changed, frozen_events=[*events, *retargeted]))
        self.fresh = events

    def count_remaining(self, counts: Counts) -> None:
        """Count what is left."""
        for frozen_event in self.state.frozen_events.values():
            counts.pending += frozen_event.state == "frozen"
            counts.set_aside += frozen_event.state != "frozen"

    def note(self, outcomes: Mapping[str, DeliveryOutcome], report: ReportBuilder) -> None:
        """Count and report what became of this account's events."""
        pushed: dict[tuple[int, str, RowKind], list[int]] = {}
        counts = report.counts
        for transaction_id, frozen_event in self.state.frozen_events.items():
            outcome = outcomes.get(transaction_id)
            if outcome is None:
                continue
            if outcome.kind == "sent":
                counts.events += 1
                counts.units += frozen_event.units
                counts.deltas += frozen_event.revision > 0
                counts.carried_events += frozen_event.is_carried
                counts.carried_units += frozen_event.units if frozen_event.is_carried else 0
                kind: RowKind = "carried" if frozen_event.is_carried else "pushed"
                pushed.setdefault((frozen_event.period_start_ms, frozen_event.metric, kind), []).append(
                    frozen_event.units
                )
                continue
            counts.duplicates += outcome.kind == "duplicate"
            counts.adopted += outcome.kind == "adopted"
            counts.rejected += outcome.kind == "rejected"
            counts.conflicts += outcome.kind in ("conflict", "adopted")
            counts.voided += outcome.kind == "void"
            if outcome.kind != "void":
                detail = f"{transaction_id}{': ' if outcome.reason else ''}{outcome.reason}"
                report.add(
                    self._row(
                        frozen_event.period_start_ms,
                        frozen_event.metric,
                        outcome.kind,
                        frozen_event.units,
                        1,
                        detail=detail,
                    )
                )
        for (period_ms, metric, kind), units in pushed.items():
            report.add(self._row(period_ms, metric, kind, sum(units), len(units)))

    def let_go(self) -> None:
        """Forget what was planned: it was pushed, or the next round does it."""
        self.metric_periods, self.change, self.fresh = [], SyncStateChange(), ()

    def fail(self, reason: str, report: ReportBuilder) -> None:
        """Leave the account for the next round."""
        self.has_failed = True
        report.counts.accounts_failed += 1
        report.add(SyncRow(self.account.id, 0, "", "error", 0, detail=reason))

    def _without_displaced(
        self, link: PeriodLink, metric: str, pushed_usage: PushedUsage
    ) -> tuple[PushedUsage, tuple[DisplacedUnits, ...]]:
        """The pushed usage, with what turned out to lie beyond the end of Lago's period counted as carried out."""
        changed, displaced = [], []
        for segment, at_s in displaced_segments(link, pushed_usage):
            billing_link = self._billing_link(link, metric, at_s)
            if billing_link is not None:
                displaced.append(DisplacedUnits(segment.start_s, segment.pushed, billing_link))
                changed.append(replace(segment, pushed=0, carried=segment.carried + segment.pushed))
            elif link.is_final:  # nobody bills it: it is late usage
                changed.append(replace(segment, pushed=0))
            else:  # what follows is not listed yet
                return pushed_usage, ()
        return replace(pushed_usage.with_segments(changed), lago_to_ms=link.lago_to_ms), tuple(displaced)

    def _billing_link(self, link: PeriodLink, metric: str, at_s: Decimal) -> PeriodLink | None:
        """The other period in which Lago bills an event of this one's subscription at an instant."""
        for each, name in self.account.metric_periods():
            is_same = each.external_subscription_id == link.external_subscription_id and name == metric
            if is_same and each is not link and each.lago_from_ms <= at_s * 1000 < each.lago_to_ms:
                return each
        return None

    def _retargeted(self, metric_period: MetricPeriod) -> Iterator[FrozenEvent]:
        """Events of displaced segments that are still on their way, told where they will be billed."""
        billed_in = {moved.segment_s: moved.billed_in for moved in metric_period.displaced}
        for frozen_event in self.state.frozen_events.values():
            is_own = (frozen_event.period_start_ms, frozen_event.metric) == (
                metric_period.link.ledger_start_ms,
                metric_period.metric,
            )
            if is_own and not frozen_event.is_carried and frozen_event.segment_s in billed_in:
                yield replace(frozen_event, target_start_ms=billed_in[frozen_event.segment_s].ledger_start_ms)

    def _marked_done(
        self, link: PeriodLink, planned: PlannedUsage, round_time: RoundTime, settings: SyncSettings
    ) -> PushedUsage:
        """The pushed usage, done if nothing can come any more."""
        awaited = {each.period_start_ms for each in self.state.frozen_events.values()}
        awaited |= {each.target_start_ms for each in self.state.frozen_events.values()}
        is_done = is_finished(link, round_time, settings) and not planned.events and link.ledger_start_ms not in awaited
        return replace(planned.pushed_usage, is_done=is_done)

    def _with_forgotten(self, change: SyncStateChange) -> SyncStateChange:
        """The same change, which also moves the oldest of too many done periods into the sums."""
        done = sorted(
            (pushed_usage for pushed_usage in self.state.pushed_usages.values() if pushed_usage.is_done),
            key=lambda pushed_usage: (pushed_usage.start_s, pushed_usage.metric),
        )
        surplus = done[: max(0, len(done) - PUSHED_USAGES_DONE_MAX)]
        if not surplus:
            return change
        forgotten_periods = self.state.forgotten_periods
        for pushed_usage in surplus:
            forgotten_periods = forgotten_periods.with_pushed_usage(pushed_usage)
        return replace(
            change,
            forgotten=[(pushed_usage.start_s, pushed_usage.metric) for pushed_usage in surplus],
            forgotten_periods=forgotten_periods,
        )

    def _note_finding(self, metric_period: MetricPeriod, finding: Finding, report: ReportBuilder) -> None:
        if finding.kind == "late":
            report.counts.late_units += finding.units if finding.is_new else 0
            detail = "missed its invoice" if finding.is_new else "missed its invoice, as reported before"
        else:
            report.counts.excess_units += finding.units
            detail = "pushed, and more than the ledger has charged; Lago takes nothing back"
        report.add(
            self._row(
                metric_period.link.ledger_start_ms,
                metric_period.metric,
                finding.kind,
                finding.units,
                detail=f"segment {finding.segment_s}: {detail}",
                is_new=finding.is_new,
            )
        )

    def _row(
        self,
        period_ms: int,
        metric: str,
        kind: RowKind,
        units: int,
        events: int = 0,
        *,
        detail: str = "",
        is_new: bool = True,
    ) -> SyncRow:
        return SyncRow(self.account.id, period_ms, metric, kind, units, events, detail, is_new)


def _field_to_fill(
    metric_period: MetricPeriod, current: PeriodLink | None, fields: EventFields
) -> tuple[PeriodLink | None, str]:
    """The period that late usage is carried into, and the property of its events that Lago sums. Without the property
    nothing is carried.
    """
    is_late = metric_period.link.is_final and metric_period.pushed_usage.was_open
    into = fields.of(current.billed_metric(metric_period.metric)) if current is not None and is_late else None
    own = fields.of(metric_period.link.billed_metric(metric_period.metric))
    assert own is not None, "only such periods are looked at"
    if is_late:
        return (current, into) if into is not None else (None, own)
    return current, own


def _two_subscriptions(link: PeriodLink, other: str) -> str:
    return (
        f"subscriptions {other} and {link.subscription_id} both charge this metric in the period;"
        f" it is pushed to {other} only"
    )


def unsent(works: Sequence[AccountWork]) -> list[tuple[AccountWork, FrozenEvent]]:
    """Every event that Lago is not known to have, account by account."""
    return [(work, each) for work in works if not work.has_failed for each in work.state.frozen_events.values()]
